"""Stories that last, as files, and the books that are made of them."""

import io
import json
import os
import re
import subprocess
import sys
import time
import uuid
import zipfile
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from golpo.books import Chapter, as_html, as_markdown, as_plain_text, export_stories
from golpo.errors import MissingPackageError
from golpo.manuscript import MODEL, PERSON, Manuscript
from golpo.shelf import Shelf, ShelfStory

HOSTILE = "One <b>day</b> & $x^2$ **bold** 😀\n\n1. A list\n# A heading\x1b[2J \x00 end ]]>"


def story(title="The Mill", text="Mira ran home.", **values):
    return ShelfStory(title=title, passages=[[PERSON, text, 0]], **values)


def test_another_program_finds_what_was_kept(tmp_path):
    manuscript = Manuscript("The Mill", "Mira ran. ")
    manuscript.begin_passage()
    manuscript.append("She saw 😀.")
    manuscript.end_passage("end")
    kept = ShelfStory()
    kept.keep(manuscript.now, "Mira is brave.")
    path = Shelf(tmp_path).save(kept)
    assert json.loads(path.read_text("utf-8"))["title"] == "The Mill"
    code = """if True:
        import sys
        from golpo.shelf import Shelf
        (found,) = Shelf(sys.argv[1]).stories()
        print(ascii((found.summary(), found.version().passages[1].text, found.note)))
    """
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True
    )
    summary, text, note = eval(done.stdout)
    assert summary["title"] == "The Mill" and summary["words"] == 5 and not summary["starred"]
    assert (text, note) == ("She saw 😀.", "Mira is brave.")
    assert Shelf(tmp_path).read(kept.name).version() == manuscript.now


def test_the_newest_change_is_first_and_words_are_found(tmp_path):
    shelf = Shelf(tmp_path)
    for number, (title, text) in enumerate([("One", "a Lamp"), ("Two", "b"), ("Lamp", "owl c")]):
        shelf.save(story(title, text, changed=f"2026-01-0{3 - number}T00:00:00+00:00"))
    assert [found.title for found in shelf.stories()] == ["One", "Two", "Lamp"]
    assert [found.title for found in shelf.search("lamp")] == ["One", "Lamp"]
    assert [found.title for found in shelf.search(" LAMP owl ")] == ["Lamp"]
    assert len(shelf.search("")) == 3


def test_star_and_delete(tmp_path):
    shelf = Shelf(tmp_path)
    kept, other = story(), story("Other")
    shelf.save(kept)
    shelf.save(other)
    shelf.star(kept.name, True)
    assert Shelf(tmp_path).read(kept.name).starred
    shelf.delete(other.name)
    assert [found.name for found in shelf.stories()] == [kept.name]
    with pytest.raises(OSError):
        shelf.delete(other.name)


TORN = [
    b"",
    b'{"title": "Th',
    b"[1]",
    b"1",
    b'{"passages": [["x"]]}',
    b'{"name": "a package", "dependencies": {}}',
]


@pytest.mark.parametrize("content", TORN)
def test_a_torn_or_foreign_file_is_skipped_and_counted(tmp_path, content):
    shelf = Shelf(tmp_path)
    path = shelf.save(story())
    path.with_name("torn.json").write_bytes(content)
    path.with_name("note.txt").write_text("not ours")
    assert [found.title for found in shelf.stories()] == ["The Mill"]
    assert shelf.skipped == 1
    with pytest.raises(ValueError, match="damaged"):
        shelf.read("torn")


def test_a_kill_while_writing_leaves_a_whole_story(tmp_path):
    code = """if True:
        import sys
        from golpo.shelf import Shelf, ShelfStory
        story = ShelfStory(name="one")
        for n in range(1, 10**9):
            story.passages = [["model", "word " * 20_000, n]]
            Shelf(sys.argv[1]).save(story)
    """
    for wait in (0.05, 0.21):
        process = subprocess.Popen([sys.executable, "-c", code, tmp_path])
        while not (tmp_path / "stories/one.json").exists():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(wait)
        process.kill()
        process.wait()
        (found,) = Shelf(tmp_path).stories()
        assert len(found.text) == 100_000


def test_names_lead_to_no_other_folder(tmp_path):
    for name in ("../x", "a/b", "", "x" * 81, None):
        with pytest.raises(ValueError, match="name"):
            Shelf(tmp_path).read(name)


def test_a_folder_that_refuses_is_named(tmp_path):
    (tmp_path / "stories").write_text("in the way")
    with pytest.raises(OSError, match="stories"):
        Shelf(tmp_path).save(story())


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_a_read_only_folder_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="stories"):
        Shelf(tmp_path).save(story())


# Books

CHAPTERS = [Chapter("The <Mill> & 😀", HOSTILE), Chapter(" ", "Second.\n\nLast one.")]


class Reader(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.words = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)

    def handle_data(self, data):
        self.words += data.split()


def test_html_holds_stories_as_text():
    page = Reader(as_html(CHAPTERS))
    assert page.tags.count("h2") == 2 and page.tags.count("p") == 5
    assert not {"b", "i", "script"} & set(page.tags)
    assert "<b>day</b>" in page.words and "😀" in page.words and "Untitled" in page.words


def test_markdown_and_text_hold_stories_as_text():
    markdown = as_markdown(CHAPTERS)
    assert r"\*\*bold\*\*" in markdown and "\n\\1. A list" in markdown
    assert markdown.count("\n# ") + markdown.startswith("# ") == 2
    plain = as_plain_text(CHAPTERS)
    assert "One <b>day</b> & $x^2$ **bold** 😀" in plain and max(map(len, plain.split("\n"))) <= 80
    assert not set(markdown + plain) & set(map(chr, [*range(10), *range(11, 32)]))


def test_an_epub_keeps_the_rules_of_the_format():
    """Those of EPUB 3: the zip's first file, the container, package, spine, navigation."""
    pytest.importorskip("ebooklib")
    name, media_type, content = export_stories(CHAPTERS, "epub")
    assert (name, media_type) == ("Stories.epub", "application/epub+zip")
    archive = zipfile.ZipFile(io.BytesIO(content))
    first = archive.infolist()[0]
    assert (first.filename, first.compress_type) == ("mimetype", zipfile.ZIP_STORED)
    assert archive.read("mimetype") == b"application/epub+zip" and archive.testzip() is None
    container = ElementTree.fromstring(archive.read("META-INF/container.xml"))
    package_path = container.find(".//{*}rootfile").get("full-path")
    package = ElementTree.fromstring(archive.read(package_path))
    assert package.get("version") == "3.0"
    for required in ("identifier", "title", "language"):
        assert package.find(".//{http://purl.org/dc/elements/1.1/}" + required).text
    items = {item.get("id"): item for item in package.findall(".//{*}item")}
    folder = package_path.rpartition("/")[0]
    for item in items.values():
        assert f"{folder}/{item.get('href')}" in archive.namelist()
    assert sum("nav" in (item.get("properties") or "") for item in items.values()) == 1
    spine = [items[place.get("idref")].get("href") for place in package.findall(".//{*}itemref")]
    pages = [ElementTree.fromstring(archive.read(f"{folder}/{href}")) for href in spine]
    text = " ".join(" ".join(page.itertext()) for page in pages)
    assert "One <b>day</b> & $x^2$ **bold** 😀" in text and "Last one." in text
    links = [link.get("href") for link in pages[0].findall(".//{*}a")]
    assert links == ["story-1.xhtml", "story-2.xhtml"]


def test_a_reader_library_opens_the_epub(tmp_path):
    epub = pytest.importorskip("ebooklib.epub")
    path = tmp_path / "book.epub"
    path.write_bytes(export_stories(CHAPTERS[:1], "epub")[2])
    book = epub.read_epub(path)
    assert book.title == "The <Mill> & 😀"
    assert any(b"A heading" in item.get_content() for item in book.get_items())


def metadata(chapters, name):
    """What an EPUB of the chapters says of itself."""
    archive = zipfile.ZipFile(io.BytesIO(export_stories(chapters, "epub")[2]))
    (path,) = [path for path in archive.namelist() if path.endswith(".opf")]
    package = ElementTree.fromstring(archive.read(path))
    return package.find(".//{http://purl.org/dc/elements/1.1/}" + name).text


def test_each_book_has_an_identifier_of_its_own():
    """A reader's library takes two books with one identifier for the same book."""
    pytest.importorskip("ebooklib")
    books = [[Chapter("A", "One.")], [Chapter("A", "Two.")], [Chapter("B", "One.")], CHAPTERS]
    identifiers = [metadata(book, "identifier") for book in books]
    assert len(set(identifiers)) == 4
    assert all(uuid.UUID(identifier) for identifier in identifiers)
    assert identifiers == [metadata(book, "identifier") for book in books]
    assert uuid.UUID(metadata([Chapter("\ud800", "half a \udc00 pair")], "identifier"))


BENGALI = Chapter("হারানো চাবি", "মিতা খেলছিল।\nসে চাবিটা পেল।")


def test_a_book_says_in_which_language_it_is():
    pytest.importorskip("ebooklib")
    english = Chapter("The Key", "Mita found the key, চাবি.")
    assert metadata([BENGALI], "language") == "bn"
    assert metadata([english], "language") == "en"
    assert metadata([Chapter("1", "2, 3!")], "language") == "en"
    assert '<html lang="bn">' in as_html([BENGALI])
    assert '<html lang="en">' in as_html([english])
    archive = zipfile.ZipFile(io.BytesIO(export_stories([english, BENGALI], "epub")[2]))
    languages = [
        re.search(rb'\blang="(..)"', archive.read(f"EPUB/story-{number}.xhtml"))[1]
        for number in (1, 2)
    ]
    assert languages == [b"en", b"bn"]


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("হারানো চাবি", "হারানো-চাবি.txt"),
        ("Cafe\u0301: mu\u0308nu\u0308?", "Cafe\u0301-mu\u0308nu\u0308.txt"),
        ("র\u200d্যাব ও সে", "র্যাব-ও-সে.txt"),
        ("../../etc/passwd", "etc-passwd.txt"),
        ("The 'Mill' – 2", "The-Mill-2.txt"),
        ("?!", "story.txt"),
        ("a" * 59 + " b", "a" * 59 + ".txt"),
    ],
)
def test_the_name_of_a_file_keeps_the_letters_of_the_title(title, name):
    assert export_stories([Chapter(title, "x")], "txt")[0] == name


def test_a_missing_library_is_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "ebooklib", None)
    monkeypatch.setitem(sys.modules, "ebooklib.epub", None)
    with pytest.raises(MissingPackageError, match="pip install ebooklib"):
        export_stories(CHAPTERS, "epub")


def test_what_cannot_be_exported_is_said():
    with pytest.raises(ValueError, match="'pdf'.*epub"):
        export_stories(CHAPTERS, "pdf")
    with pytest.raises(ValueError, match="no story"):
        export_stories([], "md")


def test_authors_survive_the_shelf(tmp_path):
    kept = ShelfStory(passages=[[PERSON, "I ", 0], [MODEL, "ran", 3]])
    Shelf(tmp_path).save(kept)
    version = Shelf(tmp_path).read(kept.name).version()
    assert [(p.author, p.run) for p in version.passages] == [(PERSON, 0), (MODEL, 3)]
