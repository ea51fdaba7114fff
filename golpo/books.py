"""Stories as a book: Markdown, HTML that prints like a book, EPUB, and plain text."""

import html
import io
import re
import unicodedata
import uuid
from collections.abc import Sequence
from typing import NamedTuple

from golpo.console import clean_text
from golpo.packages import import_optional
from golpo.stories import wrap_text
from golpo_utils import check_kind

UNTITLED = "Untitled"
# Characters that Markdown could read as marks.
MARKDOWN_MARKS = re.compile(r"([\\`*_{}\[\]<>#|$~])")
LINE_MARKS = re.compile(r"^(\s*)([-+=>]|\d+[.)])", re.MULTILINE)
STYLE = """
body { max-width: 34rem; margin: 3rem auto; padding: 0 1.2rem;
    font: 1.1rem/1.6 Charter, Georgia, serif }
h1, h2 { font-weight: normal; line-height: 1.25; text-align: center }
h2 { margin: 4rem 0 2rem }
p { margin: 0; text-indent: 1.4em; hyphens: auto; text-align: justify }
h2 + p { text-indent: 0 }
@page { size: A5; margin: 18mm 16mm 20mm }
@media print {
    body { max-width: none; margin: 0; padding: 0; font-size: 11pt }
    h2 { break-before: page; margin-top: 28mm; break-after: avoid }
    section:first-of-type h2 { break-before: auto }
    p { orphans: 2; widows: 2 }
}
"""


class Chapter(NamedTuple):
    """A story of a book."""

    title: str
    text: str

    def heading(self) -> str:
        """The title on one line, without control characters."""
        return " ".join(clean_text(self.title).split()) or UNTITLED

    def paragraphs(self) -> list[str]:
        """The lines of the text that are not empty."""
        lines = (line.strip() for line in clean_text(self.text).split("\n"))
        return [line for line in lines if line]


def as_plain_text(chapters: Sequence[Chapter]) -> str:
    """The stories with their titles, wrapped at 80 columns."""
    parts = [f"{c.heading()}\n\n" + wrap_text("\n\n".join(c.paragraphs())) for c in chapters]
    return "\n\n\n".join(parts) + "\n"


def escape_markdown(text: str) -> str:
    """`text` so that Markdown shows it as it is."""
    return LINE_MARKS.sub(r"\1\\\2", MARKDOWN_MARKS.sub(r"\\\1", text))


def as_markdown(chapters: Sequence[Chapter]) -> str:
    """The stories as Markdown: a heading and paragraphs each; nothing in them is markup."""
    parts = []
    for chapter in chapters:
        lines = [escape_markdown(paragraph) for paragraph in chapter.paragraphs()]
        parts.append("\n\n".join([f"# {escape_markdown(chapter.heading())}", *lines]))
    return "\n\n".join(parts) + "\n"


def chapter_html(chapter: Chapter) -> str:
    """A story as a heading and paragraphs."""
    paragraphs = "\n".join(f"<p>{html.escape(line)}</p>" for line in chapter.paragraphs())
    return f"<h2>{html.escape(chapter.heading())}</h2>\n{paragraphs}"


def book_title(chapters: Sequence[Chapter]) -> str:
    """The title of the one story, or "Stories"."""
    return chapters[0].heading() if len(chapters) == 1 else "Stories"


def language_of(text: str) -> str:
    """The language of a book: "bn" if most letters are Bengali, else "en"."""
    letters = [character for character in text if character.isalpha()]
    bengali = sum("\u0980" <= letter <= "\u09ff" for letter in letters)
    return "bn" if bengali > len(letters) / 2 else "en"


def as_html(chapters: Sequence[Chapter]) -> str:
    """The stories as one HTML page, whose printed pages look like a book's."""
    sections = "\n".join(f"<section>\n{chapter_html(c)}\n</section>" for c in chapters)
    title = html.escape(book_title(chapters))
    language = language_of("\n".join(chapter.text for chapter in chapters))
    return (
        f'<!DOCTYPE html>\n<html lang="{language}">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{title}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n{sections}\n</body>\n</html>\n"
    )


def as_epub(chapters: Sequence[Chapter]) -> bytes:
    """The stories as an electronic book (EPUB 3), a chapter each.

    Its identifier comes from what is in it, so that different books have different ones. Raises
    MissingPackageError without the package ebooklib.
    """
    epub = import_optional("ebooklib.epub", "writing an EPUB", "ebooklib")
    book = epub.EpubBook()
    content = "\n".join(map(chapter_html, chapters))
    book.set_identifier(uuid.uuid5(uuid.NAMESPACE_URL, content).urn)
    book.set_title(book_title(chapters))
    book.set_language(language_of("\n".join(chapter.text for chapter in chapters)))
    style = epub.EpubItem("style", "style.css", "text/css", STYLE.encode())
    book.add_item(style)
    pages = []
    for number, chapter in enumerate(chapters, start=1):
        page = epub.EpubHtml(
            title=chapter.heading(),
            file_name=f"story-{number}.xhtml",
            lang=language_of(chapter.text),
        )
        page.set_content(f"<html><body>{chapter_html(chapter)}</body></html>")
        page.add_item(style)
        book.add_item(page)
        pages.append(page)
    book.toc = pages
    book.spine = ["nav", *pages]
    book.add_item(epub.EpubNcx())
    book.add_item(epub.EpubNav())
    file = io.BytesIO()
    epub.write_epub(file, book)
    return file.getvalue()


FORMATS = {  # ending → (how it is written, media type)
    "md": (as_markdown, "text/markdown"),
    "html": (as_html, "text/html"),
    "epub": (as_epub, "application/epub+zip"),
    "txt": (as_plain_text, "text/plain"),
}


def file_name(title: str) -> str:
    """A title as the name of a file, without an ending: its letters, marks and digits.

    Vowel signs of scripts such as Bengali are marks. Joiners, which nobody sees, are left out.
    """
    characters = [
        character if unicodedata.category(character)[0] in "LMN" else " "
        for character in title
        if unicodedata.category(character) != "Cf"
    ]
    return "-".join("".join(characters).split())[:60].strip("-") or "story"


def export_stories(chapters: Sequence[Chapter], kind: str) -> tuple[str, str, bytes]:
    """A file with the stories: its name, its media type, its content.

    kind: md, html, epub or txt. Raises ValueError for another kind, or without a story.
    """
    check_kind("the kind of file", kind, str, "one of " + ", ".join(FORMATS))
    if kind not in FORMATS:
        raise ValueError(f"the kind of file is {kind!r}; it must be one of {', '.join(FORMATS)}")
    if not chapters:
        raise ValueError("there is no story to export; write one first")
    write, media_type = FORMATS[kind]
    content = write(chapters)
    if isinstance(content, str):
        content = content.encode("utf-8", "replace")
    return f"{file_name(book_title(chapters))}.{kind}", media_type, content
