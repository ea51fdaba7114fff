"""What looks like a mistake in a corpus is counted and named; it is repaired only on request."""

import random

import pytest

from golpo.corpus import load_corpus, read_stories
from golpo.corpus_checks import CorpusReport, TextBlock, check_text
from golpo_utils import get_tokenizer

TOKENIZER = get_tokenizer(300)
MISSPELT = """<|START|>
<|title|>One<|title|>

Text one.
<|end>
<start>
<|title|>Two

Text two. <|book_end|>
<|start|>
<|title|>Three<|/title|>

Text three.
<|end|
"""
REPAIRED = """<|start|>
<|title|>One</|title|>

Text one.
<|end|>
<|start|>
<|title|>Two</|title|>

Text two. <|end|>
<|start|>
<|title|>Three</|title|>

Text three.
<|end|>
"""


def check(text, fix_markers=False, size=None):
    """The checked text and the notes; `text` arrives in blocks of `size` characters."""
    report = CorpusReport()
    size = size or len(text)
    blocks = [
        TextBlock(text[start : start + size], 1 + text.count("\n", 0, start), "")
        for start in range(0, len(text), size)
    ]
    return "".join(check_text(blocks, report, fix_markers)), report.notes()


def test_near_misses_are_counted_with_their_first_line_and_left_alone():
    text, notes = check(MISSPELT)
    assert text == MISSPELT
    for form, line in (
        ("<|START|>", 1),
        ("<|end>", 5),
        ("<start>", 6),
        ("<|book_end|>", 9),
        ("<|/title|>", 11),
        ("<|end|", 14),
    ):
        assert f"1 × {form!r} (first in line {line})" in notes[0]
    assert "--fix-markers" in notes[0]
    assert "3 × '<|title|>' (first in line 2)" in notes[1]


def test_what_is_plain_is_repaired_on_request_and_said():
    text, notes = check(MISSPELT, fix_markers=True)
    assert text == REPAIRED
    assert len(notes) == 1
    assert "1 × '<|START|>' (first in line 1)" in notes[0]
    assert "2 × '<|title|> never closed' (first in line 2)" in notes[0]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 17, 64])
@pytest.mark.parametrize("fix_markers", [False, True])
def test_the_size_of_the_blocks_changes_nothing(size, fix_markers):
    assert check(MISSPELT, fix_markers, size) == check(MISSPELT, fix_markers)


@pytest.mark.parametrize(
    "form, marker",
    [
        ("<|Start|>", "<|start|>"),
        ("< |start| >", "<|start|>"),
        ("<begin>", "<|start|>"),
        ("&lt;|start|&gt;", "<|start|>"),
        ("|start|>", "<|start|>"),
        ("<|end_of_story|>", "<|end|>"),
        ("</end>", "<|end|>"),
        ("<\\end>", "<|end|>"),
        ("<|eos|>", "<|end|>"),
        ("</title>", "</|title|>"),
        ("<|title/|>", "</|title|>"),
        ("</start>", "</start>"),
    ],
)
def test_forms_of_near_misses(form, marker):
    """The last one may mean a start or an end, so it is left alone."""
    head = "<|title|>T" if "/|t" in marker else ""
    text, notes = check(f"{head}{form} and more", fix_markers=True)
    assert text == f"{head}{marker} and more"
    assert repr(form) in notes[0]


@pytest.mark.parametrize(
    "text",
    [
        "<|start|>\n<|title|>A</|title|>\n\nHe had <3 apples & a pear | a plum.\n<|end|>\n",
        "<|start|>\n<|title|>A title\nof two lines</|title|>\n\nText.\n<|end|>\n",
        "The endless title: a < b > c; <ending>, <|startup|>, [end], R&D; &c.\n",
        "I <b and c> d\n",
    ],
)
def test_text_that_is_right_gives_no_note(text):
    for fix_markers in (False, True):
        assert check(text, fix_markers) == (text, [])


def test_html_is_counted_by_form_with_its_first_line():
    text = "A &quot;fox&quot; &amp; a\nhen.<p class='x'>One</p>\n<br/>&#8220;&nosuch; <x>\n"
    checked, notes = check(text)
    assert checked == text
    assert notes == [
        "HTML is trained on as text: 2 × '&quot;' (first in line 1), "
        "1 × '&amp;' (first in line 1), 1 × '<p>' (first in line 2), "
        "1 × '</p>' (first in line 2), 1 × '<br>' (first in line 3), "
        "1 × '&#8220;' (first in line 3)."
    ]


def test_a_long_title_far_from_its_block_end_is_closed_in_any_block():
    """The story continues in the next block, where its <|end|> shows that the title was open."""
    text = "<|start|>\n<|title|>Never closed\n" + "A long story.\n" * 500 + "<|end|>\n"
    expected = text.replace("closed\n", "closed</|title|>\n")
    for size in (1000, 5000, 10_000):
        assert check(text, fix_markers=True, size=size)[0] == expected


def test_random_texts_are_never_changed_without_fix_markers():
    rng = random.Random(0)
    parts = ["<|start|>", "<|end|>", "<|title|>", "</|title|>", "<", "|", ">", "end", "\n", "a b"]
    for _ in range(300):
        text = "".join(rng.choices(parts, k=40))
        for size in (5, 1000):
            assert check(text, size=size)[0] == text


# --- in a corpus -----------------------------------------------------------------------------


def test_a_repaired_corpus_is_the_corpus_written_right(tmp_path):
    wrong = tmp_path / "wrong.txt"
    right = tmp_path / "right.txt"
    wrong.write_text(MISSPELT)
    right.write_text(REPAIRED)
    cache = tmp_path / "tokens"
    repaired = load_corpus(wrong, TOKENIZER, cache_dir=cache, fix_markers=True)
    expected = load_corpus(right, TOKENIZER, cache_dir=cache, fix_markers=True)
    assert repaired.fingerprint == expected.fingerprint
    assert expected.notes == []
    assert any(note.startswith("fix_markers replaced") for note in repaired.notes)


def test_a_missing_end_is_refused_with_the_near_miss_or_repaired(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("<|start|>\nOne.\n<|END|>\n<|start|>\nTwo.\n<|end|>\n")
    with pytest.raises(ValueError, match=r"story 1 .* fix_markers=True .*'<\|END\|>' \(first in"):
        load_corpus(path, TOKENIZER, cache_dir=tmp_path)
    path.write_text("<|start|>\nOne.\n<|start|>\nTwo.\n<|end|>\n<|start|>\nThree.\n")
    corpus = load_corpus(path, TOKENIZER, cache_dir=tmp_path, fix_markers=True)
    assert corpus.stories == 3
    assert "fix_markers put <|end|> after stories without it: 2." in corpus.notes


def test_stories_without_text_are_left_out_and_counted(tmp_path):
    path = tmp_path / "corpus.txt"
    empty = "<|start|>\n \n<|end|>\n<|start|><|end|><|start|>\n<|title|>T</|title|>\n\n<|end|>\n"
    path.write_text(f"<|start|>\nOne.\n<|end|>\n{empty}<|start|>\nTwo.\n<|end|>\n")
    report = CorpusReport()
    assert list(read_stories(path, report=report)) == [
        "<|start|>\nOne.\n<|end|>\n",
        "<|start|>\nTwo.\n<|end|>\n",
    ]
    assert report.notes() == ["Stories without text are left out: 3."]


def test_endoftext_between_stories_becomes_markers_and_is_said(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("One.\n<|endoftext|>\nTwo.\n")
    corpus = load_corpus(path, TOKENIZER, cache_dir=tmp_path)
    assert corpus.stories == 2
    assert any("<|endoftext|> separates the stories" in note for note in corpus.notes)
    path.write_text("<|start|>\nOne.\n<|endoftext|>\n<|end|>\n<|start|>\nTwo.\n<|end|>\n")
    notes = load_corpus(path, TOKENIZER, cache_dir=tmp_path).notes
    assert any("<|endoftext|> is trained on as text" in note and "line 3" in note for note in notes)
