"""Chapters of documents: Word (.docx), electronic books (.epub) and Markdown headings."""

import html.parser
import posixpath
import re
import urllib.parse
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

from golpo.errors import MissingPackageError

MAX_DOCUMENT_SIZE = 30 << 20  # bytes of one XML part, unpacked
PARAGRAPH_TAGS = {
    *("p", "div", "hr", "li", "ul", "ol", "dl", "dt", "dd", "tr", "table", "blockquote"),
    *("h3", "h4", "h5", "h6", "section", "article", "header", "footer", "pre"),
    *("figure", "figcaption", "aside", "body"),
}
HEADING_TAGS = {"h1", "h2"}
LINE_BREAK = "\0"  # stands for <br> until the text of a paragraph is complete
HIDDEN_TAGS = {"head", "script", "style"}
MARKDOWN_HEADING = re.compile(r"(#{1,6})[ \t]+(.+?)[ \t]*#*[ \t]*$")
MARKDOWN_FENCE = re.compile(r" {0,3}(```|~~~)")


class Chapter(NamedTuple):
    """A part of a document that becomes a story."""

    title: str | None
    text: str


class DocumentError(ValueError):
    """A document that cannot be read; the message lacks the file's name."""


# --- Word ----------------------------------------------------------------------------------------


def read_docx(file: BinaryIO, notes: list[str]) -> list[Chapter]:
    """The chapters of a Word document: a heading of any level begins one.

    Adds to `notes` what is not read. Raises DocumentError, or MissingPackageError without
    python-docx.
    """
    try:
        import docx
        from docx.table import Table
    except ImportError:
        raise MissingPackageError(
            "reading .docx needs the package python-docx: `pip install python-docx`, or save the "
            "document as text"
        ) from None
    check_sizes(file)
    try:
        document = docx.Document(file)
    except Exception as error:  # damaged XML, a part that is missing, a template …
        reason = " ".join(str(error).split())[:100]
        raise DocumentError(f"cannot be read as a Word document ({reason})") from error
    title = None
    paragraphs: list[str] = []
    chapters = []
    tables = 0
    for block in document.iter_inner_content():
        if isinstance(block, Table):
            tables += 1
            continue
        style = (block.style.name if block.style is not None else None) or ""
        if style.startswith(("Heading", "Title")) and block.text.strip():
            chapters.append(Chapter(title, join_paragraphs(paragraphs)))
            title = block.text
            paragraphs = []
        else:
            paragraphs.append(block.text)
    chapters.append(Chapter(title, join_paragraphs(paragraphs)))
    if tables:
        notes.append(f"tables are not read ({tables})")
    return chapters


def join_paragraphs(paragraphs: Iterable[str]) -> str:
    """Paragraphs of a document as text, with an empty line between them."""
    return "\n\n".join(text for text in paragraphs if text.strip())


def check_sizes(file: BinaryIO) -> None:
    """Raise DocumentError if a part of a zipped document is too large to be read at once."""
    with zipfile.ZipFile(file) as archive:
        for part in archive.infolist():
            if part.filename.endswith(".xml") and part.file_size > MAX_DOCUMENT_SIZE:
                limit = MAX_DOCUMENT_SIZE >> 20
                raise DocumentError(f"has more than {limit} MB in one part; save it as text")
    file.seek(0)


# --- EPUB ----------------------------------------------------------------------------------------


def read_epub(file: BinaryIO) -> Iterator[Chapter]:
    """Yield the chapters of an electronic book in reading order.

    Each document of the book begins a chapter, and so does each heading <h1> or <h2> in it.
    Uses the standard library alone: the maintained library for EPUB has the AGPL as its licence.
    Raises DocumentError.
    """
    with zipfile.ZipFile(file) as archive:
        names = set(archive.namelist())
        for path in reading_order(archive):
            if path not in names:
                raise DocumentError(f"lacks its part {path!r}")
            parser = ChapterParser()
            parser.feed(read_part(archive, path).decode("utf-8", errors="replace"))
            parser.close()
            yield from parser.chapters()


def read_part(archive: zipfile.ZipFile, path: str) -> bytes:
    """The content of one file of an EPUB. Raises DocumentError if it is too large."""
    if archive.getinfo(path).file_size > MAX_DOCUMENT_SIZE:
        raise DocumentError(f"has more than {MAX_DOCUMENT_SIZE >> 20} MB in {path!r}")
    data = archive.read(path)
    for mark, encoding in ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if data.startswith(mark):
            return data.decode(encoding).encode()
    return data


def reading_order(archive: zipfile.ZipFile) -> list[str]:
    """The paths of an EPUB's documents, in reading order. Raises DocumentError."""
    names = archive.namelist()
    if "META-INF/encryption.xml" in names and "META-INF/rights.xml" in names:
        raise DocumentError("is protected against copying (DRM), so its text cannot be read")
    try:
        container = ElementTree.fromstring(read_part(archive, "META-INF/container.xml"))
        package_path = container.find(".//{*}rootfile").get("full-path")
        package = ElementTree.fromstring(read_part(archive, package_path))
    except (KeyError, AttributeError, ElementTree.ParseError) as error:
        raise DocumentError(f"cannot be read as an EPUB ({error})") from error
    folder = posixpath.dirname(package_path)
    items = {item.get("id"): item for item in package.iterfind(".//{*}manifest/{*}item")}
    paths = []
    for reference in package.iterfind(".//{*}spine/{*}itemref"):
        item = items.get(reference.get("idref"))
        if item is None or "nav" in (item.get("properties") or "").split():
            continue
        if "html" in (item.get("media-type") or "html"):
            href = urllib.parse.unquote(item.get("href").partition("#")[0])
            paths.append(posixpath.normpath(posixpath.join(folder, href)))
    return paths


class ChapterParser(html.parser.HTMLParser):
    """Collects the text of an XHTML document, paragraph by paragraph, and its headings."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.parts: list[tuple[str | None, list[str]]] = [(None, [""])]  # titles, paragraphs
        self.hidden = 0
        self.heading: str | None = None  # the one that is being read

    def handle_starttag(self, tag, attributes):
        if tag in HIDDEN_TAGS:
            self.hidden += 1
        elif tag in HEADING_TAGS:
            self.heading = ""
        elif tag == "br":
            self.handle_data(LINE_BREAK)
        elif tag in PARAGRAPH_TAGS:
            self.parts[-1][1].append("")

    def handle_startendtag(self, tag, attributes):
        if tag not in HIDDEN_TAGS and tag not in HEADING_TAGS:
            self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag):
        if tag in HIDDEN_TAGS:
            self.hidden = max(0, self.hidden - 1)
        elif tag in HEADING_TAGS and self.heading is not None:
            title = " ".join(self.heading.replace(LINE_BREAK, " ").split())
            self.heading = None
            if title:
                self.parts.append((title, [""]))
        elif tag in PARAGRAPH_TAGS:
            self.parts[-1][1].append("")

    def handle_data(self, data):
        if self.hidden:
            return
        if self.heading is not None:
            self.heading += data
        else:
            self.parts[-1][1][-1] += data

    def chapters(self) -> Iterator[Chapter]:
        for title, paragraphs in self.parts:
            text = join_paragraphs(map(join_lines, paragraphs))
            if text or title is not None or len(self.parts) == 1:
                yield Chapter(title, text)


def join_lines(paragraph: str) -> str:
    """A paragraph of XHTML as text: single spaces, and line breaks only where <br> stands."""
    return "\n".join(" ".join(line.split()) for line in paragraph.split(LINE_BREAK)).strip()


# --- Markdown ------------------------------------------------------------------------------------


def read_markdown(lines: Iterable[str]) -> Iterator[Chapter]:
    """Yield a Markdown text's chapters: each heading (a line that begins with #) begins one.

    Text before the first heading comes first, as a chapter without a title. Only the headings
    are understood; everything else stays as it is.
    """
    title = None
    text: list[str] = []
    in_code = False
    for line in lines:
        if MARKDOWN_FENCE.match(line):
            in_code = not in_code
        heading = None if in_code else MARKDOWN_HEADING.match(line.rstrip("\n"))
        if heading is None:
            text.append(line)
            continue
        if title is not None or "".join(text).strip():
            yield Chapter(title, "".join(text).strip())
        title = heading[2]
        text = []
    yield Chapter(title, "".join(text).strip())
