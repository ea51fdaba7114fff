"""Corpora in the formats that people have: tables, archives, documents, folders, other encodings.

The files are made by the libraries that people use for them.
"""

import csv
import gzip
import io
import json
import random
import sys
import zipfile

import pytest

from golpo import encodings, formats
from golpo.corpus import ReadOptions, load_corpus, read_blocks, read_stories
from golpo.corpus_checks import CorpusReport
from golpo.errors import MissingPackageError
from golpo.formats import read_file
from golpo_utils import get_tokenizer

TOKENIZER = get_tokenizer(300)
TALES = [
    ("The Fox", 'A fox said, "Good morning; sun", and slept.\n\nThen it woke.'),
    ("চাঁদ", "একটি ছোট চাঁদ, and a “moon”."),
    (None, "No title here, but a text."),
]
EXPECTED = [
    f"<|start|>\n<|title|>{title}</|title|>\n\n{text}\n<|end|>\n"
    if title
    else f"<|start|>\n{text}\n<|end|>\n"
    for title, text in TALES
]


def stories_of(path, **options):
    report = CorpusReport()
    text = "".join(read_file(path, report=report, **options))
    stories = [part + "<|end|>\n" for part in text.split("<|end|>\n") if part.strip()]
    return stories, report.notes()


def one_sentence(caught):
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


def check_refusal(path, content, complaint):
    """A file with that content is refused in one sentence with its path."""
    path.write_text(content)
    with pytest.raises(ValueError, match=complaint) as caught:
        stories_of(path)
    assert str(path) in one_sentence(caught)


# --- tables ----------------------------------------------------------------------------------


def test_json_lines_become_stories(tmp_path):
    path = tmp_path / "tales.jsonl"
    records = [{"title": title, "text": text, "id": 7} for title, text in TALES]
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n\n")
    stories, notes = stories_of(path)
    assert stories == EXPECTED
    assert any("Each of the 3 records" in note for note in notes)
    assert any("not used: id" in note for note in notes)
    corpus = load_corpus(path, TOKENIZER, cache_dir=tmp_path / "tokens")
    assert corpus.stories == 3
    renamed = path.rename(tmp_path / "tales.txt")  # known by its content
    assert stories_of(renamed)[0] == EXPECTED


@pytest.mark.parametrize(
    "content, complaint",
    [
        ('{"text": "A"}\n{"text": "B"\n', "line 2 of .* is no JSON record"),
        ('{"text": "A"}\n["B"]\n', "line 2 of .* is no JSON record but"),
        ('{"story_text": "A"}\n{"story_text": "B"}\n', "no field 'text'; its fields are"),
        ('{"text": ["A"]}\n', "line 1 of .*'text' is .* must be a text"),
    ],
)
def test_a_bad_json_line_is_named(tmp_path, content, complaint):
    check_refusal(tmp_path / "tales.jsonl", content, complaint)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_tables_become_stories(tmp_path, delimiter):
    """Written by Python's csv module, with line breaks and separators inside the fields."""
    path = tmp_path / "tales.csv"
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        table = csv.writer(file, delimiter=delimiter)
        table.writerow(["Title", "Text"])
        table.writerows([title or "", text] for title, text in TALES)
        table.writerow(["Long", "word " * 100_000])
    stories, _ = stories_of(path)
    assert stories[:3] == EXPECTED
    assert len(stories) == 4 and len(stories[3]) > 400_000
    assert csv.field_size_limit() == 131_072


@pytest.mark.parametrize(
    "content, complaint",
    [
        ("name,age\nA,1\n", "no field 'text'; its fields are 'name', 'age'"),
        ("title,text\nA,b\nC,d,e\n", "line 3 of .* has 3 columns"),
        ('title,text\nA,"never closed\nB,c\n', "is no CSV .*quotation marks"),
    ],
)
def test_a_bad_csv_table_is_named(tmp_path, content, complaint):
    check_refusal(tmp_path / "tales.csv", content, complaint)


# --- folders and archives --------------------------------------------------------------------


def test_a_folder_of_texts_is_read_in_name_order_with_names_as_titles(tmp_path):
    folder = tmp_path / "my tales"
    folder.mkdir()
    for name in ("10 The Owl.txt", "02 The Fox.txt", "11 Own title.txt", "blank.txt"):
        (folder / name).write_text(f"Text of {name}." if name[0] == "1" else "", "utf-8")
    (folder / "02 The Fox.txt").write_text("A fox.\n")
    (folder / "11 Own title.txt").write_text(
        "<|start|>\n<|title|>Mine</|title|>\n\nText.\n<|end|>\n<|start|>\nMore.\n<|end|>"
    )
    (folder / "cover.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    (folder / ".DS_Store").write_bytes(b"\0")
    (folder / "older").mkdir()
    report = CorpusReport()
    assert list(read_stories(folder, report=report)) == [
        "<|start|>\n<|title|>02 The Fox</|title|>\n\nA fox.\n<|end|>\n",
        "<|start|>\n<|title|>10 The Owl</|title|>\n\nText of 10 The Owl.txt.\n<|end|>\n",
        "<|start|>\n<|title|>Mine</|title|>\n\nText.\n<|end|>\n",
        "<|start|>\nMore.\n<|end|>\n",
    ]
    notes = " ".join(report.notes())
    assert "3 files of" in notes and "titled with their names" in notes
    assert "cover.jpg" in notes and "older" in notes and ".DS_Store" not in notes
    assert "Stories without text are left out: 1." in notes
    assert load_corpus(folder, TOKENIZER, cache_dir=tmp_path / "tokens").stories == 4


def test_a_folder_without_texts_is_refused_by_name(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ValueError, match="holds no text; what is read is"):
        stories_of(tmp_path)


def test_a_zip_of_texts_is_read_like_a_folder(tmp_path):
    path = tmp_path / "tales.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("b/Moon.txt", "The moon rose.")
        archive.writestr("a/Fox.txt", "\ufeffA fox.\r\n")
        archive.writestr("__MACOSX/a/._Fox.txt", b"\0\1\2")
    assert stories_of(path)[0] == [
        "<|start|>\n<|title|>Fox</|title|>\n\nA fox.\n<|end|>\n",
        "<|start|>\n<|title|>Moon</|title|>\n\nThe moon rose.\n<|end|>\n",
    ]


@pytest.mark.parametrize("pack", ["gz", "zip"])
def test_a_packed_corpus_is_the_corpus(tmp_path, pack):
    content = "".join(EXPECTED)
    plain = tmp_path / "tales.txt"
    plain.write_text(content, encoding="utf-8")
    packed = tmp_path / f"tales.txt.{pack}"
    if pack == "gz":
        with gzip.open(packed, "wt", encoding="utf-8") as file:
            file.write(content)
    else:
        with zipfile.ZipFile(packed, "w") as archive:
            archive.write(plain, "tales.txt")
    cache = tmp_path / "tokens"
    expected = load_corpus(plain, TOKENIZER, cache_dir=cache).fingerprint
    assert load_corpus(packed, TOKENIZER, cache_dir=cache).fingerprint == expected


def test_json_lines_in_gzip_are_json_lines(tmp_path):
    path = tmp_path / "tales.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps({"title": t, "text": x}) + "\n" for t, x in TALES)
    assert stories_of(path)[0] == EXPECTED


def test_archives_that_unpack_to_too_much_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(encodings, "MAX_UNPACKED_SIZE", 1 << 20)
    bomb = b"zero " * (1 << 21)
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bomb))
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", bomb)
    for name in ("bomb.gz", "bomb.zip"):
        with pytest.raises(ValueError, match="unpacks to more than .* times its size"):
            stories_of(tmp_path / name)


def test_damaged_and_nested_archives_are_named(tmp_path):
    whole = gzip.compress("".join(EXPECTED).encode() * 50)
    (tmp_path / "cut.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "wrong.gz").write_bytes(whole[:50] + b"\xff" * 20 + whole[70:])
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", "A text. " * 1000)
    data = memory.getvalue()
    (tmp_path / "cut.zip").write_bytes(data[: len(data) // 2])
    (tmp_path / "wrong.zip").write_bytes(data[:45] + b"\xff\xff" + data[47:])
    with zipfile.ZipFile(tmp_path / "nested.zip", "w") as archive:
        archive.writestr("inner.txt.gz", whole)
    for name in ("cut.gz", "wrong.gz", "cut.zip", "wrong.zip", "nested.zip"):
        with pytest.raises(ValueError, match="unpack|zip archive") as caught:
            stories_of(tmp_path / name)
        assert name in one_sentence(caught)


@pytest.mark.parametrize("count", [400, pytest.param(20_000, marks=pytest.mark.slow)])
def test_randomly_damaged_files_are_read_or_named_in_one_sentence(tmp_path, count):
    """Cut, changed and filled with noise; nothing but a ValueError that names the file."""
    rng = random.Random(count)
    text = "".join(EXPECTED).encode() * 5
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", text)
        archive.writestr("b.txt", "Hello there. " * 30)
        archive.writestr("c.jsonl", '{"text": "A fox."}\n' * 9)
    whole = {
        "a.txt": text,
        "a.txt.gz": gzip.compress(text),
        "a.zip": memory.getvalue(),
        "a.jsonl": b'{"title": "A", "text": "Once \\u00e9."}\n' * 10,
        "a.csv": b'title,text\nA,"B, c"\nD,"e ""f"" g"\n' * 3,
        "a.md": b"# A\ntext\n## B\n```\n# x\n```\nmore\n",
        "a.epub": small_epub(),
    }
    refused = 0
    for _ in range(count):
        name = rng.choice(list(whole))
        path = tmp_path / name
        path.write_bytes(damaged(whole[name], rng))
        encoding = rng.choice([None, None, "cp1252", "utf-16"])
        options = ReadOptions(encoding, fix_markers=rng.random() < 0.5)
        try:
            list(read_stories(path, options))
        except ValueError as error:
            message = str(error)
            assert name in message and "\n" not in message and len(message) < 900, message
            refused += 1
    assert count // 10 < refused < count


def damaged(data, rng):
    """`data` with one kind of random damage."""
    data = bytearray(data)
    place = rng.randrange(len(data))
    noise = rng.randbytes(rng.randrange(1, 40))
    kind = rng.randrange(3)
    if kind == 0:
        return data[:place]
    if kind == 1:
        data[place : place + len(noise)] = noise
        return data
    for _ in range(rng.choice([1, 2, 10, 50])):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return data


def small_epub():
    """An electronic book of two chapters, by hand."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mimetype", "application/epub+zip")
        archive.writestr(
            "META-INF/container.xml", "<container><rootfile full-path='a.opf'/></container>"
        )
        items = "".join(f"<item id='i{n}' href='{n}.xhtml'/>" for n in (1, 2))
        order = "<itemref idref='i2'/><itemref idref='i1'/>"
        package = f"<package><manifest>{items}</manifest><spine>{order}</spine></package>"
        archive.writestr("a.opf", package)
        for n in (1, 2):
            archive.writestr(f"{n}.xhtml", f"<html><body><h1>T{n}</h1><p>Text {n}.</p></body>")
    return memory.getvalue()


def test_the_reading_order_of_a_book_is_that_of_its_spine(tmp_path):
    (tmp_path / "a.epub").write_bytes(small_epub())
    assert [story.split("|title|>")[1] for story in stories_of(tmp_path / "a.epub")[0]] == [
        "T2</",
        "T1</",
    ]


# --- documents -------------------------------------------------------------------------------


def test_a_word_document_becomes_a_story_for_each_heading(tmp_path):
    """Written by python-docx."""
    docx = pytest.importorskip("docx")
    document = docx.Document()
    document.add_heading("The Fox", 1)
    document.add_paragraph("A fox “slept”.")
    document.add_paragraph("It woke.")
    document.add_heading("An empty one", 1)
    document.add_heading("The Moon", 2)
    document.add_paragraph("It rose.")
    document.add_table(1, 1).cell(0, 0).text = "in a table"
    document.save(tmp_path / "tales.docx")
    stories, notes = stories_of(tmp_path / "tales.docx")
    assert stories == [
        "<|start|>\n<|title|>The Fox</|title|>\n\nA fox “slept”.\n\nIt woke.\n<|end|>\n",
        "<|start|>\n<|title|>The Moon</|title|>\n\nIt rose.\n<|end|>\n",
    ]
    assert any("tables are not read (1)" in note for note in notes)
    assert any("'An empty one'" in note for note in notes)


def test_a_word_document_with_markers_is_read_as_it_is(tmp_path):
    docx = pytest.importorskip("docx")
    document = docx.Document()
    for line in "".join(EXPECTED).split("\n"):
        document.add_paragraph(line)
    document.save(tmp_path / "tales.docx")
    corpus = load_corpus(tmp_path / "tales.docx", TOKENIZER, cache_dir=tmp_path / "tokens")
    assert corpus.stories == 3


def test_without_python_docx_the_error_names_it(tmp_path, monkeypatch):
    docx = pytest.importorskip("docx")
    docx.Document().save(tmp_path / "tales.docx")
    monkeypatch.setitem(sys.modules, "docx", None)
    with pytest.raises(MissingPackageError, match="pip install python-docx") as caught:
        stories_of(tmp_path / "tales.docx")
    one_sentence(caught)


def test_an_electronic_book_becomes_a_story_for_each_chapter(tmp_path):
    """Written by EbookLib, with a table of contents and a chapter that has two headings."""
    epub = pytest.importorskip("ebooklib.epub")
    book = epub.EpubBook()
    book.set_title("Tales")
    book.set_language("en")
    chapters = []
    for number, body in enumerate(
        (
            "<h1>The <i>Fox</i></h1><p>A fox &amp; a hen<br/>sang:</p><p>“Good\n night.”</p>",
            "<h2>One</h2><p>First.</p><h2>Two</h2><p>Second.</p>",
            "<p>Without a title.</p>",
        )
    ):
        chapter = epub.EpubHtml(title=f"c{number}", file_name=f"part {number}.xhtml")
        chapter.content = f"<html><head><title>no</title></head><body>{body}</body></html>"
        book.add_item(chapter)
        chapters.append(chapter)
    book.toc = chapters
    book.add_item(epub.EpubNcx())
    book.add_item(epub.EpubNav())
    book.spine = ["nav", *chapters]
    epub.write_epub(str(tmp_path / "tales.epub"), book)
    assert stories_of(tmp_path / "tales.epub")[0] == [
        "<|start|>\n<|title|>The Fox</|title|>\n\nA fox & a hen\nsang:\n\n“Good night.”\n<|end|>\n",
        "<|start|>\n<|title|>One</|title|>\n\nFirst.\n<|end|>\n",
        "<|start|>\n<|title|>Two</|title|>\n\nSecond.\n<|end|>\n",
        "<|start|>\nWithout a title.\n<|end|>\n",
    ]


def test_markdown_becomes_a_story_for_each_heading_unless_it_has_markers(tmp_path):
    path = tmp_path / "tales.md"
    path.write_text("A preface.\n\n# The Fox #\n\nA *fox*.\n```\n# no heading\n```\n## Moon\nRose.")
    stories = list(read_stories(path))
    assert stories[0] == "A preface.\n"
    assert stories[1:] == [
        "<|start|>\n<|title|>The Fox</|title|>\n\nA *fox*.\n```\n# no heading\n```\n<|end|>\n",
        "<|start|>\n<|title|>Moon</|title|>\n\nRose.\n<|end|>\n",
    ]
    path.write_text("# A heading\n" + "".join(EXPECTED), encoding="utf-8")
    assert "".join(read_blocks(path)) == "# A heading\n" + "".join(EXPECTED)


# --- what is no text -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, content, kind",
    [
        ("page.txt", b"\n<!DOCTYPE html>\n<html><p>A fox.</p></html>", "a web page (HTML)"),
        ("page.html", b"<html><body>A fox.</body></html>", "a web page (HTML)"),
        ("answer.txt", b'{\n "error": "not found"\n}', "a JSON document"),
        ("tales.json", b'[{"text": "A fox."}, {"text": "A hen."}]', "a JSON document"),
        ("tales.pdf", b"%PDF-1.7\n...", "a PDF document"),
        ("tales.rtf", b"{\\rtf1 A fox.}", "an RTF document"),
        ("tales.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\0\0", "an old Word document (.doc)"),
        ("tales.txt", b"\x89PNG\r\n\x1a\n\0", "a PNG picture"),
        ("tales.tar", b"a.txt".ljust(257, b"\0") + b"ustar\x0000" + b"\0" * 248, "a tar archive"),
        ("tales.7z", b"7z\xbc\xaf\x27\x1c\0\0", "a 7-Zip archive"),
        ("tales.txt.xz", b"\xfd7zXZ\x00\0\0", "an xz file"),
        ("tales.txt.zst", b"\x28\xb5\x2f\xfd\0", "a Zstandard file"),
        ("tales.parquet", b"PAR1\x15\x04\0\0", "a Parquet table"),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path, name, content, kind):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as caught:
        stories_of(tmp_path / name)
    assert f"is {kind}" in one_sentence(caught)


@pytest.mark.parametrize(
    "content",
    ["RIFF raff said the dog.", "[1] A note.", "{A brace}", "BZhe said.", "ID3 is a name.", "MZ"],
)
def test_a_text_that_begins_like_another_file_stays_a_text(tmp_path, content):
    (tmp_path / "tales.txt").write_text(content)
    assert "".join(read_blocks(tmp_path / "tales.txt")) == content


def test_an_office_table_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "tales.xlsx", "w") as archive:
        archive.writestr("[Content_Types].xml", "<a/>")
        archive.writestr("xl/workbook.xml", "<a/>")
    with pytest.raises(ValueError, match="is an Excel table"):
        stories_of(tmp_path / "tales.xlsx")


# --- encodings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "encoding, text",
    [
        ("cp1252", "“Naïve”, said the fœx – and ate a crêpe."),
        ("latin-1", "Ein schöner Fuchs aß Käse."),
        ("cp1251", "Однажды лиса встретила луну, и они долго говорили о реке. " * 20),
        ("utf-16", "A fox met the moon, and they talked. “Yes.”"),
        ("utf-16-le", "A fox met the moon, and they talked. “Yes.”"),
        ("utf-16-be", "A fox met the moon, and they talked. “Yes.”"),
        ("shift_jis", "むかしむかし、きつねが月に会いました。そして長い話をしました。" * 20),
    ],
)
def test_another_encoding_is_named_and_can_be_read(tmp_path, encoding, text):
    path = tmp_path / "tales.txt"
    path.write_bytes(text.encode(encoding))
    with pytest.raises(ValueError) as caught:
        list(read_blocks(path))
    message = one_sentence(caught)
    named = message.partition("--encoding ")[2].partition(")")[0]
    assert "".join(read_file(path, encoding=named)) == text
    assert "".join(read_file(path, encoding=encoding)) == text


def test_a_single_wrong_byte_in_a_utf8_file_is_named_with_its_line(tmp_path):
    path = tmp_path / "tales.txt"
    lines = ["চাঁদ আর নদী।".encode()] * 20
    lines[11] = b"na\xefve"
    path.write_bytes(b"\r\n".join(lines))
    with pytest.raises(ValueError, match="byte 0xef in line 12.*nearly all of it is; mend"):
        list(read_blocks(path))


def test_an_encoding_is_not_used_for_a_file_that_is_utf8(tmp_path):
    """So that a file that `fetch_corpus` has converted is not converted twice."""
    path = tmp_path / "tales.txt"
    path.write_text("“Naïve.”", encoding="utf-8")
    stories, notes = stories_of(path, encoding="cp1252")
    assert stories == ["“Naïve.”<|end|>\n"]
    assert any("is UTF-8, so encoding='cp1252' is not used" in note for note in notes)


@pytest.mark.parametrize("encoding", ["klingon", "rot13", 7])
def test_an_unknown_encoding_is_named(tmp_path, encoding):
    path = tmp_path / "tales.txt"
    path.write_text("A fox.")
    with pytest.raises(ValueError, match=f"encoding is {encoding!r}"):
        list(read_file(path, encoding=encoding))


def test_a_line_without_end_is_refused_in_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "MAX_STORY_LENGTH", 1000)
    monkeypatch.setattr(encodings, "BLOCK_SIZE", 500)
    path = tmp_path / "tales.jsonl"
    path.write_text('{"text": "' + "word " * 1000 + '"}')
    with pytest.raises(ValueError, match="a line of more than 1,000 characters"):
        stories_of(path)
