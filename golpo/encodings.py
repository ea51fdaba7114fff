"""Turns the bytes of a text file into text, and says which encoding a file has if not UTF-8."""

import codecs
import contextlib
import errno
import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

BLOCK_SIZE = 1 << 20  # bytes that are read at once
SAMPLE_SIZE = 100_000  # bytes from which an encoding is guessed
MAX_UNPACKED_RATIO = 100  # a compressed file that unpacks to more than this is refused …
MAX_UNPACKED_SIZE = 100 << 20  # … once it has unpacked to this many bytes
# The encodings that are suggested for text with few plain letters, none of them rare.
COMMON_ENCODINGS = (
    *("cp1251", "koi8_r", "cp1250", "cp1253", "cp1254", "cp1255", "cp1256"),
    *("shift_jis", "euc_jp", "gb18030", "big5", "euc_kr"),
)
# What the standard library raises for damaged, encrypted and unusual archives.
PACK_ERRORS = (
    *(EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, struct.error),
    *(OSError, NotImplementedError, RuntimeError, KeyError, IndexError, OverflowError),
    UnicodeDecodeError,
)
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16's, with which it begins
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@dataclass(frozen=True)
class ByteSource:
    """A file's content that can be opened several times: on disk, or packed in another file."""

    name: str  # for messages
    open: Callable[[], BinaryIO]

    def head(self, size: int = 4096) -> bytes:
        """The first bytes."""
        with self.open() as file:
            return read_packed(file, size, self.name)


def read_packed(file: BinaryIO, size: int, name: str) -> bytes:
    """Read up to `size` bytes; a damaged compressed file is a ValueError that names it."""
    with unpacking(name):
        return file.read(size)


@contextlib.contextmanager
def unpacking(name: str) -> Iterator[None]:
    """Turn the many exceptions that a damaged archive causes into a ValueError that names it."""
    try:
        yield
    except PACK_ERRORS as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # the disk's fault
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise ValueError(
            f"{name!r} cannot be unpacked ({reason}); download or pack it again"
        ) from error


class LimitedReader(io.RawIOBase):
    """Reads a compressed file, and stops one that unpacks to an unreasonable size."""

    def __init__(self, file: BinaryIO, packed_size: int, name: str, packed: BinaryIO | None = None):
        self.file = file
        self.packed = packed  # the file that `file` unpacks, if it must be closed too
        self.name = name
        self.limit = max(MAX_UNPACKED_SIZE, MAX_UNPACKED_RATIO * packed_size)
        self.size = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        data = self.file.read(len(buffer))
        buffer[: len(data)] = data
        self.size += len(data)
        if self.size > self.limit:
            raise ValueError(
                f"{self.name!r} unpacks to more than {self.limit >> 20} MB, "
                f"{MAX_UNPACKED_RATIO} times its size, so it is hardly a text; unpack it yourself"
            )
        return len(data)

    def close(self) -> None:
        self.file.close()
        if self.packed is not None:
            self.packed.close()
        super().close()


def check_encoding(encoding: str | None) -> None:
    """Raise ValueError that names `encoding` unless it is None or a text encoding."""
    if encoding is None:
        return
    try:
        "".encode(encoding)
    except (LookupError, TypeError):
        raise ValueError(
            f"encoding is {encoding!r}, which Python does not know as a text encoding; common "
            f"ones are utf-8, utf-16, cp1252, latin-1, cp1251, shift_jis, gb18030"
        ) from None


def is_utf8(source: ByteSource) -> bool:
    """Whether the whole file is UTF-8 with at least one character beyond ASCII and no NUL."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    only_ascii = True
    with source.open() as file:
        try:
            while chunk := read_packed(file, BLOCK_SIZE, source.name):
                if b"\0" in chunk:
                    return False
                only_ascii = only_ascii and chunk.isascii()
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
    return not only_ascii


def read_text(source: ByteSource, encoding: str | None = None) -> Iterator[str]:
    """Yield a file's text in blocks, without a byte-order mark and with \\n for line ends.

    encoding: None means UTF-8. Raises ValueError that names the file, the byte, its line and a
    likely encoding if the file has another one, or if it holds NUL bytes.
    """
    if encoding is None or codecs.lookup(encoding).name == "utf-8":
        encoding = "utf-8"
    decoder = codecs.getincrementaldecoder(encoding)()
    newlines = io.IncrementalNewlineDecoder(decoder, translate=True)
    lines = 1
    first = True
    with source.open() as file:
        while True:
            chunk = read_packed(file, BLOCK_SIZE, source.name)
            try:
                text = newlines.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                raise ValueError(wrong_encoding(source.name, encoding, lines, error)) from None
            except UnicodeError as error:  # "UTF-16 stream does not start with BOM"
                raise ValueError(
                    f"{source.name!r} is not {encoding.upper()} ({error}); choose another encoding"
                ) from None
            if "\0" in text:
                raise ValueError(holds_nul(source.name, chunk))
            if first and text:
                text = text.removeprefix("\ufeff")
                first = False
            lines += text.count("\n")
            if text:
                yield text
            if not chunk:
                return


def count_lines(data: bytes) -> int:
    """How many lines end in `data`."""
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").count(b"\n")


def wrong_encoding(name: str, encoding: str, lines: int, error: UnicodeDecodeError) -> str:
    """The sentence about a byte that `encoding` does not allow."""
    line = lines + count_lines(error.object[: error.start])
    problem = f"{name!r} is not {encoding.upper()} (byte {error.object[error.start]:#04x} in line"
    problem = f"{problem} {line})"
    if encoding != "utf-8":
        return f"{problem}; choose another encoding, or none if it is UTF-8"
    start = max(0, error.start - SAMPLE_SIZE // 2)
    sample = error.object[start : start + SAMPLE_SIZE]
    decoded = sample.decode("utf-8", errors="replace")
    bad = decoded.count("\ufffd")
    good = sum(not character.isascii() for character in decoded) - bad
    if good > 3 * bad:
        return f"{problem}, although nearly all of it is; mend that line and save it as UTF-8"
    guess = guess_encoding(sample)
    if guess is None:
        return f"{problem}; save it as UTF-8, or name its encoding (encoding, --encoding)"
    same = " (Windows' Latin-1; for Central Europe, cp1250)" if guess == "cp1252" else ""
    return (
        f"{problem}; it looks like {guess}{same}: set encoding={guess!r} (--encoding {guess}), "
        f"or save it as UTF-8"
    )


def holds_nul(name: str, chunk: bytes) -> str:
    """The sentence about a file with NUL bytes."""
    guess = guess_encoding(chunk[:SAMPLE_SIZE])
    if guess is not None and guess.startswith("utf-"):
        return (
            f"{name!r} holds NUL bytes and looks like {guess}: set encoding={guess!r} "
            f"(--encoding {guess}), or save it as UTF-8 text"
        )
    return f"{name!r} holds NUL bytes, so it is no plain text; save it as UTF-8 text"


def guess_encoding(sample: bytes) -> str | None:
    """The likely encoding of bytes that are not UTF-8, or None."""
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if sample.startswith(mark):
            return encoding
    if b"\0" in sample:
        even = sample[0::2].count(0)
        odd = sample[1::2].count(0)
        if max(even, odd) < len(sample) / 8 or min(even, odd) > max(even, odd) / 8:
            return None
        return "utf-16-le" if odd > even else "utf-16-be"
    letters = len(sample) - sample.count(b" ") - sample.count(b"\n")
    high = sum(byte >= 0x80 for byte in sample)
    if high < 0.4 * letters:  # some accents and curly quotes among plain letters
        return "cp1252"
    try:
        from charset_normalizer import from_bytes
    except ImportError:
        return None
    best = from_bytes(sample, cp_isolation=list(COMMON_ENCODINGS)).best()
    return best.encoding if best is not None else None
