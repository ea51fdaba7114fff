"""Reads what people bring as a corpus: text files, tables, documents, archives and folders.

Everything becomes text in the story format. What is not read is named.
"""

import gzip
import io
import itertools
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePath
from typing import BinaryIO

from golpo.corpus_checks import CorpusReport, TextBlock, check_text
from golpo.documents import Chapter, DocumentError, read_docx, read_epub, read_markdown
from golpo.encodings import ByteSource, LimitedReader, check_encoding, is_utf8, read_text, unpacking
from golpo.file_kinds import READABLE, TEXT_SUFFIXES, kind_of, kind_of_path, kind_of_zip, refuse
from golpo.files import as_path
from golpo.records import csv_records, json_records, record_fields
from golpo.stories import remove_markers
from golpo_utils import END, END_OF_TEXT, START, TITLE, TITLE_END

MAX_STORY_LENGTH = 1 << 24  # characters that are held in memory for one story
HEAD_SIZE = 1 << 16  # bytes from which a file's kind is recognized
READABLE_SUFFIXES = (*TEXT_SUFFIXES, ".jsonl", ".ndjson", ".csv", ".tsv", ".docx", ".epub", ".gz")


def read_file(
    path: str | Path,
    encoding: str | None = None,
    fix_markers: bool = False,
    report: CorpusReport | None = None,
) -> Iterator[str]:
    """Yield a corpus as text in the story format, in blocks.

    path: a file of any kind in READABLE, or a folder of them. encoding: of text files; None means
    UTF-8. fix_markers: see `check_text`. Raises FileNotFoundError, MissingPackageError, or
    ValueError that says what the file is or what is wrong with it.
    """
    check_encoding(encoding)
    reader = _Reader(encoding, fix_markers, report or CorpusReport())
    path = as_path("the corpus", path)
    kind = kind_of_path(path)
    if kind is None:
        raise FileNotFoundError(
            f"there is no corpus at {str(path)!r}; check data_path, or leave it out for the "
            f"bundled corpus"
        )
    if kind == "folder":
        yield from reader.read_folder(path)
    else:
        yield from reader.read(ByteSource(str(path), opener(path)), path.name)


def story_text(title: str | None, text: str) -> str:
    """A title and a text in the story format; a text that has <|start|> stays as it is."""
    if START in text:
        return text.strip() + "\n"
    title = " ".join(remove_markers(title or "").split())
    heading = f"{TITLE}{title}{TITLE_END}\n\n" if title and TITLE not in text else ""
    return f"{START}\n{heading}{text.strip().removesuffix(END).rstrip()}\n{END}\n"


def separate_stories(blocks: Iterator[str], report: CorpusReport) -> Iterator[str]:
    """Blocks of text in the story format: <|endoftext|> between stories, as TinyStories has it,
    is replaced by the markers around each story. Other text stays as it is.
    """
    first = next(blocks, "")
    if START in first or END_OF_TEXT not in first:
        yield first
        yield from blocks
        return
    report.separated = True
    rest = ""
    for block in itertools.chain([first], blocks, [END_OF_TEXT]):
        *stories, rest = (rest + block).split(END_OF_TEXT)
        for story in stories:
            if story.strip():
                yield f"{START}\n{story.strip()}\n{END}\n"


class _Reader:
    """Reads files of all kinds in one way, with one report."""

    def __init__(self, encoding: str | None, fix_markers: bool, report: CorpusReport):
        self.encoding = encoding
        self.fix_markers = fix_markers
        self.report = report

    def note(self, sentence: str) -> None:
        """Add a sentence to the report, once."""
        if sentence not in self.report.source_notes:
            self.report.source_notes.append(sentence)

    def read(self, source: ByteSource, name: str, inside: str = "") -> Iterator[str]:
        """Yield one file in the story format. inside: the kind of archive that it is in, or ""."""
        kind = kind_of(source.head(HEAD_SIZE), name)
        if kind == "text":
            yield from self.read_plain(source, name)
        elif kind == "jsonl":
            yield from self.read_records(source, json_records(self.lines(source), source.name))
        elif kind == "csv":
            yield from self.read_records(source, csv_records(self.lines(source), source.name))
        elif kind == "gzip" and not inside:
            yield from self.read_gzip(source, name)
        elif kind == "zip" and not inside:
            yield from self.read_zip(source)
        elif kind in ("gzip", "zip"):
            raise refuse(source.name, f"a packed file in a {inside} archive")
        else:
            raise refuse(source.name, kind)

    # --- text ------------------------------------------------------------------------------

    def decode(self, source: ByteSource) -> Iterator[str]:
        """The text of a file in blocks."""
        encoding = self.encoding
        if encoding is not None and is_utf8(source):
            self.note(f"{source.name!r} is UTF-8, so encoding={encoding!r} is not used for it.")
            encoding = None
        return read_text(source, encoding)

    def lines(self, source: ByteSource) -> Iterator[str]:
        """The lines of a text file, each with its line end."""
        return split_lines(self.decode(source), source.name)

    def text(self, source: ByteSource, shown_name: str = "") -> Iterator[str]:
        """The text of a file, checked. shown_name: its name for messages, if it is not alone."""
        blocks = number_lines(self.decode(source), shown_name)
        checked = check_text(blocks, self.report, self.fix_markers)
        return separate_stories(checked, self.report)

    def checked(self, text: str, place: str) -> str:
        """The text of a record or a chapter, checked."""
        return "".join(check_text([TextBlock(text, None, place)], self.report, self.fix_markers))

    def read_plain(self, source: ByteSource, name: str) -> Iterator[str]:
        """A text file as it is; Markdown without markers by its headings."""
        is_markdown = PurePath(name).suffix.lower() in (".md", ".markdown")
        silent = _Reader(self.encoding, self.fix_markers, CorpusReport())
        if not is_markdown or any(START in text for text in silent.text(source)):
            yield from self.text(source)
            return
        lines = split_lines(self.text(source), source.name)
        yield from self.read_chapters(read_markdown(lines), source, "headings", checked=True)

    # --- records and chapters --------------------------------------------------------------

    def read_records(
        self, source: ByteSource, records: Iterable[tuple[int, dict]]
    ) -> Iterator[str]:
        """Each record of a table as a story."""
        unused: dict[str, None] = {}
        count = 0
        for line, record in records:
            count += 1
            place = f"line {line}"
            text, title, others = record_fields(record, f"{place} of {source.name!r}")
            unused |= dict.fromkeys(others)
            yield story_text(title, self.checked(text, place))
        self.note(f"Each of the {count} records of {source.name!r} is a story.")
        if unused:
            names = ", ".join(map(str, list(unused)[:10]))
            self.note(f"These fields of {source.name!r} are not used: {names}.")

    def read_chapters(
        self, chapters: Iterable[Chapter], source: ByteSource, what: str, checked: bool = False
    ) -> Iterator[str]:
        """Each chapter as a story; text before the first heading of a document as it is.

        what: "headings" or "chapters", which begin stories. checked: whether the text is.
        """
        count = 0
        empty = []
        for number, chapter in enumerate(chapters, start=1):
            text = chapter.text
            if not checked:
                text = self.checked(text, f"part {number} of {source.name!r}")
            is_story = what == "chapters" or number > 1 or chapter.title is not None
            count += is_story
            if text:
                yield story_text(chapter.title, text) if is_story else text + "\n"
            elif is_story:
                empty.append(repr(chapter.title or f"number {number}"))
        if count:
            self.note(f"Each of the {count} {what} of {source.name!r} begins a story.")
        if empty:
            some = ", ".join(empty[:5]) + (" …" if len(empty) > 5 else "")
            self.note(f"{len(empty)} of these {what} have no text and are left out: {some}.")

    def read_document(self, source: ByteSource, kind: str) -> Iterator[str]:
        """A Word document or an electronic book, chapter by chapter."""
        notes: list[str] = []
        try:
            with source.open() as file:
                if kind == "docx":
                    yield from self.read_chapters(read_docx(file, notes), source, "headings")
                else:
                    yield from self.read_chapters(read_epub(file), source, "chapters")
        except DocumentError as error:
            raise ValueError(f"{source.name!r} {error}") from error
        for note in notes:
            self.note(f"{source.name!r}: {note}.")

    # --- archives and folders --------------------------------------------------------------

    def read_gzip(self, source: ByteSource, name: str) -> Iterator[str]:
        """The file in a gzip file."""
        inner = PurePath(name).stem if name.lower().endswith(".gz") else name
        yield from self.read(ByteSource(source.name, gzip_opener(source)), inner, inside="gzip")

    def read_zip(self, source: ByteSource) -> Iterator[str]:
        """A Word document, an electronic book, or an archive of texts."""
        with unpacking(source.name), source.open() as file, zipfile.ZipFile(file) as archive:
            kind = kind_of_zip(archive)
            if kind in ("docx", "epub"):
                yield from self.read_document(source, kind)
                return
            if kind is not None:
                raise refuse(source.name, kind)
            sources = {}
            for member in archive.infolist():
                if not member.is_dir():
                    name = f"{source.name}: {member.filename}"
                    sources[member.filename] = ByteSource(name, unpacker(archive, member, name))
            yield from self.read_several(sources, source.name, inside="zip")

    def read_folder(self, folder: Path) -> Iterator[str]:
        """The files of a folder in the order of their names. Raises OSError if it is unreadable."""
        sources = {}
        with os.scandir(folder) as entries:  # Path.glob would call an unreadable folder empty
            for entry in entries:
                if entry.is_file():
                    sources[entry.name] = ByteSource(entry.path, opener(entry.path))
                elif not is_hidden(entry.name):
                    self.note(f"The folder {entry.path!r} is not read.")
        yield from self.read_several(sources, str(folder))

    def read_several(
        self, sources: dict[str, ByteSource], where: str, inside: str = ""
    ) -> Iterator[str]:
        """Files by name: a text without markers is one story, with the file's name as its title."""
        visible = [name for name in sources if not is_hidden(name)]
        names = sorted(name for name in visible if name.lower().endswith(READABLE_SUFFIXES))
        skipped = sorted(set(visible) - set(names))
        if not names:
            raise ValueError(f"{where!r} holds no text; what is read is {READABLE}")
        if skipped:
            some = ", ".join(map(repr, skipped[:5])) + (" …" if len(skipped) > 5 else "")
            self.note(f"{len(skipped)} files of {where!r} are not read: {some}.")
        if len(names) == 1:
            yield from self.read(sources[names[0]], names[0], inside)
            return
        titled = 0
        for name in names:
            if kind_of(sources[name].head(HEAD_SIZE), name) != "text":
                yield from self.read(sources[name], name, inside)
                continue
            blocks = self.text(sources[name], name)
            text, is_whole = text_to_start(blocks)
            if is_whole and START not in text:
                titled += TITLE not in text
                yield story_text(PurePath(name).stem, text)
            else:
                yield text
                yield from blocks
                yield "\n"
        if titled:
            self.note(f"{titled} files of {where!r} are one story each, titled with their names.")


def number_lines(blocks: Iterable[str], name: str) -> Iterator[TextBlock]:
    """Blocks of one text file with the numbers of their first lines."""
    line = 1
    for text in blocks:
        yield TextBlock(text, line, name)
        line += text.count("\n")


def split_lines(blocks: Iterable[str], name: str) -> Iterator[str]:
    """The lines of a text, each with its line end. Raises ValueError for an endless line."""
    rest = ""
    for text in blocks:
        *lines, rest = (rest + text).split("\n")
        for line in lines:
            yield line + "\n"
        if len(rest) > MAX_STORY_LENGTH:
            raise ValueError(f"{name!r} has a line of more than {MAX_STORY_LENGTH:,} characters")
    if rest:
        yield rest


def text_to_start(blocks: Iterator[str]) -> tuple[str, bool]:
    """The text up to the block with the first <|start|>, and whether that is all of it."""
    text = ""
    for block in blocks:
        text += block
        if START in text or len(text) > MAX_STORY_LENGTH:
            return text, False
    return text, True


def opener(path: str | Path) -> Callable[[], BinaryIO]:
    """A function that opens the file at `path`."""
    return lambda: open(path, "rb")


def gzip_opener(source: ByteSource) -> Callable[[], BinaryIO]:
    """A function that opens the file that is packed in a gzip file."""
    with source.open() as file:
        packed_size = file.seek(0, os.SEEK_END)

    def unpack() -> BinaryIO:
        packed = source.open()
        unpacked = gzip.GzipFile(fileobj=packed)
        return io.BufferedReader(LimitedReader(unpacked, packed_size, source.name, packed))

    return unpack


def unpacker(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str
) -> Callable[[], BinaryIO]:
    """A function that opens one file of an archive. It raises ValueError for an encrypted one."""

    def unpack() -> BinaryIO:
        if member.flag_bits & 1:
            raise refuse(name, "encrypted in its archive")
        return io.BufferedReader(LimitedReader(archive.open(member), member.compress_size, name))

    return unpack


def is_hidden(name: str) -> bool:
    """Whether a file belongs to the system and not to the person."""
    return any(part.startswith((".", "__MACOSX")) for part in PurePath(name).parts)
