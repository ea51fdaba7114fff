"""Says what a file is, by its content and its name, so that what is no text is named."""

import json
import os
import re
import stat
import zipfile
from pathlib import Path, PurePath

from golpo.files import is_unmounted, not_mounted

TEXT_SUFFIXES = (".txt", ".md", ".markdown", ".text")
# What `read_blocks` reads.
READABLE = "text (.txt, .md), .jsonl, .csv, .docx, .epub, .gz, .zip, or a folder of .txt files"
SIGNATURES = (
    (b"%PDF", "a PDF document"),
    (b"{\\rtf", "an RTF document"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Word document (.doc) or another Office file"),
    (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"RIFF", "a sound, a film or a WebP picture"),
    (b"ID3", "an MP3 sound"),
    (b"OggS", "an Ogg sound"),
    (b"fLaC", "a FLAC sound"),
    (b"\x1aE\xdf\xa3", "a Matroska film"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ\x00", "an xz file"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (b"PAR1", "a Parquet table"),
    (b"ARROW1", "an Arrow table"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x7fELF", "a program"),
    (b"MZ\x90\x00", "a Windows program"),
    (b"%!PS", "a PostScript document"),
    (b"AT&TFORM", "a DjVu document"),
    (b"version https://git-lfs", "a Git LFS pointer and not the file itself"),
)
HTML_START = re.compile(
    rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body|script)\b",
    re.IGNORECASE | re.DOTALL,
)


def kind_of_path(path: str | Path) -> str | None:
    """ "file", "folder", or None if there is neither.

    Raises OSError if that cannot be known, as on a Drive that is not mounted or does not answer.
    """
    if is_unmounted(path):
        raise not_mounted(path)
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISDIR(mode):
        return "folder"
    return "file" if stat.S_ISREG(mode) else None


def kind_of(head: bytes, name: str) -> str:
    """The kind of a file: "text", "jsonl", "csv", "gzip", "zip", or a description of another one.

    head: its first bytes, a few thousand. name: its name, of which only the suffix counts, and
    only where the content does not decide.
    """
    suffix = PurePath(name).suffix.lower()
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    looks_binary = b"\0" in head
    for signature, description in SIGNATURES:
        is_certain = looks_binary or len(signature) > 4 or not signature.isalnum()
        if is_certain and head.startswith(signature):
            return description
    if head[257:262] == b"ustar":
        return "a tar archive"
    if head[60:68] in (b"BOOKMOBI", b"TEXtREAd"):
        return "a Kindle book"
    if head[4:8] == b"ftyp":
        return "a film, a sound or a HEIC picture"
    head = head.removeprefix(b"\xef\xbb\xbf")
    if HTML_START.match(head):
        return "a web page (HTML)"
    if head.lstrip().startswith(b"<?xml"):
        return "an XML document"
    if suffix in (".jsonl", ".ndjson"):
        return "jsonl"
    if suffix in (".csv", ".tsv"):
        return "csv"
    return kind_of_json(head, suffix) or "text"


def kind_of_json(head: bytes, suffix: str) -> str | None:
    """ "jsonl", a description of other JSON, or None for what is no JSON."""
    start = head.lstrip()
    if not start.startswith((b"{", b"[")):
        return None
    first_line = start.partition(b"\n")[0]
    try:
        record = json.loads(first_line)
    except (ValueError, RecursionError):
        record = None
    if isinstance(record, dict):
        lines = [line for line in start.splitlines() if line.strip()]
        has_text = any(str(key).lower() in ("text", "story", "content") for key in record)
        if has_text or (len(lines) > 1 and lines[1].lstrip().startswith(b"{")):
            return "jsonl"
        return "a JSON document"
    if b"\n" not in start and re.match(rb'\{\s*"[^"]{1,80}"\s*:', start) and len(head) > 4000:
        return "jsonl"  # a first record that is longer than `head`
    looks_like_json = re.match(rb'\[\s*[\[{"\d\]]|\{\s*(?:"|\})', start)
    if suffix in (".json", ".ipynb") or (record is not None and looks_like_json):
        return "a JSON document"
    if re.match(rb'(?:\[\s*)?\{\s*"[^"\n]{1,80}"\s*:', start):
        return "a JSON document"
    return None


def kind_of_zip(archive: zipfile.ZipFile) -> str | None:
    """ "docx", "epub", a description of another document, or None for an archive of files."""
    names = set(archive.namelist())
    if "word/document.xml" in names:
        return "docx"
    if "META-INF/container.xml" in names:
        return "epub"
    if "mimetype" in names and b"opendocument" in archive.read("mimetype"):
        return "an OpenDocument file"
    if "xl/workbook.xml" in names:
        return "an Excel table"
    if "ppt/presentation.xml" in names:
        return "a PowerPoint presentation"
    if any(name.endswith("data.pkl") for name in names):
        return "a PyTorch checkpoint"
    return None


def refuse(name: str, kind: str) -> ValueError:
    """The exception for a file that is not read: its name, what it is, and what is read."""
    if kind == "a JSON document":
        advice = 'give JSON Lines, one {"title": …, "text": …} a line, in a file named .jsonl'
    elif kind.endswith(("archive", "bzip2 file", "xz file", "Zstandard file")):
        advice = f"unpack it first; what is read is {READABLE}"
    else:
        advice = f"save its text as UTF-8 text; what is read is {READABLE}"
    return ValueError(f"{name!r} is {kind}; {advice}")
