"""Reading, checking, splitting and tokenizing: against the file's own text, and files of all kinds
of damage."""

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from golpo import corpus as corpus_module
from golpo import encodings
from golpo.corpus import CORPUS_VERSION, load_corpus, read_options, read_stories, split_text
from golpo.dataset import GPTDataset
from golpo.legacy import upgrade_settings
from golpo.settings import Settings
from golpo.stories import remove_markers
from golpo_utils import encode, get_tokenizer

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER = get_tokenizer(300)
WORDS = "the old moon showed a fox how rivers sleep under snow".split()


def story(number, words=30):
    prose = " ".join(random.Random(number).choices(WORDS, k=words))
    return f"<|start|>\n<|title|>Tale {number}</|title|>\n\n{prose}, number {number}.\n<|end|>"


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture
def load(tmp_path):
    """Content → the Corpus of a file that holds it, with a cache folder of its own."""

    def load(content, tokenizer=TOKENIZER, **options):
        path = write(tmp_path / "corpus.txt", content)
        return load_corpus(path, tokenizer, cache_dir=tmp_path / "tokens", **options)

    return load


def text_of(ids, tokenizer=TOKENIZER):
    return tokenizer.decode(ids.tolist())


# --- reading ---------------------------------------------------------------------------------


def test_byte_order_mark_and_windows_line_ends_change_nothing(load):
    clean = "\n\n".join(map(story, range(20))) + "\n"
    expected = load(clean)
    windows = clean.replace("\n", "\r\n")
    for content in (
        b"\xef\xbb\xbf" + clean.encode(),
        windows,
        b"\xef\xbb\xbf" + windows.encode(),
        clean.replace("\n", "\r"),
    ):
        corpus = load(content)
        assert torch.equal(corpus.train_ids, expected.train_ids)
        assert torch.equal(corpus.val_ids, expected.val_ids)
        assert corpus.fingerprint == expected.fingerprint


WITHOUT_END = story(2).replace("<|end|>", "")


@pytest.mark.parametrize(
    "content, complaint, advice",
    [
        (b"", "is empty", "put stories into it"),
        (b"\xef\xbb\xbf \r\n\t", "is empty", "put stories into it"),
        (story(1).encode() + b"\nna\xefve\n", "not UTF-8 (byte 0xef", "save it as UTF-8"),
        ("caf\xe9 ".encode("latin-1") * 2_000_000, "not UTF-8", "save it as UTF-8"),
        (story(1).encode() + b"\0" * 9, "NUL bytes", "save it as UTF-8 text"),
        (story(1).encode("utf-16-le"), "NUL bytes", "save it as UTF-8 text"),
        (story(1) + "\n" + WITHOUT_END + story(3), "story 2 of", "put <|end|>"),
        (story(1) + "\n" + WITHOUT_END, "('Tale 2') has no <|end|>", "put <|end|>"),
        (story(1), "holds 1 story", "add at least one more"),
    ],
)
def test_a_bad_file_is_refused_in_one_sentence_with_advice(
    load, tmp_path, content, complaint, advice
):
    with pytest.raises(ValueError) as caught:
        load(content)
    message = str(caught.value)
    assert complaint in message and advice in message
    assert str(tmp_path / "corpus.txt") in message and "\n" not in message


def test_a_missing_file_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="no corpus at .*check data_path"):
        load_corpus(tmp_path / "nowhere.txt")


def test_a_corpus_shorter_than_one_context_is_refused(load):
    corpus = load(story(1) + story(2))
    count = len(corpus.train_ids)
    with pytest.raises(ValueError, match=f"{count} tokens, fewer than one window .*more text"):
        GPTDataset(corpus.train_ids, None, 512, 512)


# --- splitting -------------------------------------------------------------------------------


def test_every_story_is_whole_in_exactly_one_part(load):
    stories = [story(number, words=5 + number % 50) for number in range(200)]
    corpus = load("\n\n\n".join(stories))
    parts = [text_of(corpus.train_ids), text_of(corpus.val_ids)]
    found = "".join(parts).split("<|start|>")[1:]
    assert sorted(found) == sorted(text.removeprefix("<|start|>") + "\n" for text in stories)
    assert parts[1].count("<|start|>") == 20
    assert corpus.stories == 200
    assert corpus.notes == []


def test_the_seed_alone_decides_what_validates(load, tmp_path):
    content = "\n".join(map(story, range(100)))
    one = load(content, seed=1)
    same = load(content, seed=1)
    other = load(content, seed=2)
    path = tmp_path / "corpus.txt"
    anew = load_corpus(path, TOKENIZER, seed=1, cache_dir=tmp_path / "elsewhere")
    assert torch.equal(one.val_ids, same.val_ids)
    assert torch.equal(one.val_ids, anew.val_ids)
    assert not torch.equal(one.val_ids, other.val_ids)
    finer = load(content, get_tokenizer(), seed=1)
    assert text_of(finer.val_ids, get_tokenizer()) == text_of(one.val_ids)


def test_the_split_is_a_permutation_by_the_seed(load):
    """Recomputed with numpy and regular expressions; checkpoints rely on exactly this split."""
    content = "\n".join(map(story, range(100)))
    stories = [text + "\n" for text in re.findall(r"<\|start\|>.*?<\|end\|>", content, re.DOTALL)]
    chosen = set(np.random.default_rng(7).permutation(100)[:20].tolist())
    corpus = load(content, seed=7, validation_fraction=0.2)
    expected = "".join(text for number, text in enumerate(stories) if number in chosen)
    assert text_of(corpus.val_ids) == expected


def test_text_without_markers_trains_with_a_note_about_what_it_lacks(load, tmp_path):
    tale = "a fox gave the moon a tale. " * 8
    text = "\n\n".join(f"Paragraph {i}: {tale}" for i in range(60)) + "\n"
    corpus = load(text)
    assert "no <|start|>" in corpus.notes[0]
    assert "neither where stories begin nor where they end" in corpus.notes[0]
    pieces = list(read_stories(tmp_path / "corpus.txt"))
    assert "".join(pieces) == text
    assert all(piece.startswith("\n\nParagraph") for piece in pieces[1:])
    train_text, val_text = text_of(corpus.train_ids), text_of(corpus.val_ids)
    assert len(train_text) + len(val_text) == len(text)
    assert val_text in pieces


def test_text_outside_of_markers_is_kept_and_noted(load):
    untitled = story(3).replace("<|title|>Tale 3</|title|>", "")
    content = f"A preface.\n{story(1)}\nAn interlude.\n{story(2)}{untitled}\nAn afterword."
    corpus = load(content, validation_fraction=0)
    everything = text_of(corpus.train_ids) + text_of(corpus.val_ids)
    for words in ("A preface.", "An interlude.", "An afterword.", "number 3."):
        assert everything.count(words) == 1
    assert any(note.startswith("3 pieces of text stand outside") for note in corpus.notes)
    assert any(note.startswith("1 of 3 stories have no <|title|>") for note in corpus.notes)


@pytest.mark.parametrize("marked", [True, False])
def test_the_size_of_the_blocks_changes_nothing(load, monkeypatch, marked):
    content = "\n\n".join(story(number, words=200) for number in range(12))
    content = content if marked else remove_markers(content)
    expected = load(content)
    for size in (7, 64, 1000):
        monkeypatch.setattr(encodings, "BLOCK_SIZE", size)
        assert load(content).fingerprint == expected.fingerprint


def test_a_story_longer_than_a_block_keeps_its_tokens(load, monkeypatch):
    content = story(1, words=3000) + story(2)
    whole = load(content, validation_fraction=0)
    monkeypatch.setattr(encodings, "BLOCK_SIZE", 500)
    monkeypatch.setattr(corpus_module, "ENCODE_LENGTH", 500)
    other = get_tokenizer(301)  # another key in the cache
    in_pieces = load(content, other, validation_fraction=0, seed=0)
    assert in_pieces.train_ids.tolist() == encode(text_of(whole.train_ids), other)


def test_pieces_of_text_end_before_a_paragraph_a_line_or_a_word():
    text = "one two\n\nthree four five six seven\neight nine ten eleven twelve thirteen"
    pieces = split_text(text, 10)
    assert "".join(pieces) == text
    assert pieces[:3] == ["one two", "\n\nthree", " four"]
    assert all(len(piece) <= 10 for piece in pieces[:-1])
    assert split_text("x" * 45, 10) == ["x" * 10, "x" * 10, "x" * 10, "x" * 15]


def test_a_story_without_end_is_refused_before_it_fills_the_memory(load, monkeypatch):
    monkeypatch.setattr(corpus_module, "MAX_STORY_LENGTH", 3000)
    monkeypatch.setattr(encodings, "BLOCK_SIZE", 1000)
    content = story(1) + "<|start|>" + "A story.\n" * 1000 + "<|end|>"
    with pytest.raises(ValueError, match="story 2 of .* has more than 3,000 characters; put <.end"):
        load(content)


def test_both_parts_have_a_story_whatever_the_fraction(load):
    for fraction in (0, 0.1, 0.9):
        corpus = load(story(1) + story(2), validation_fraction=fraction)
        assert len(corpus.train_ids) > 20 and len(corpus.val_ids) > 20


def test_a_corpus_that_changes_while_it_is_read_is_refused(load, monkeypatch, tmp_path):
    find_copies = corpus_module.find_copies

    def find_and_change(*arguments, **more):
        write(tmp_path / "corpus.txt", story(1) + story(5))
        return find_copies(*arguments, **more)

    monkeypatch.setattr(corpus_module, "find_copies", find_and_change)
    with pytest.raises(ValueError, match="changed while it was read"):
        load(story(1) + story(2))


def test_the_first_version_reads_text_as_it_is(load, tmp_path):
    """What is in the file, story by story, and nothing else: no format, no repair, no removal."""
    content = "<|start|>\n \n<|end|>\nA. <|endoftext|> &amp; <|END|>\n" + story(1) + "\n"
    load(content, corpus_version=1)
    options = corpus_module.ReadOptions(corpus_version=1)
    stories = list(read_stories(tmp_path / "corpus.txt", options))
    assert stories == [
        "<|start|>\n \n<|end|>\n",
        "\nA. <|endoftext|> &amp; <|END|>\n",
        story(1) + "\n",
    ]


def test_the_options_of_a_training_are_those_in_its_settings():
    assert read_options(upgrade_settings({"seed": 1})) == read_options({})
    assert read_options({}) == {"encoding": None, "fix_markers": False, "corpus_version": 1}
    settings = vars(Settings(encoding="cp1252", fix_markers=True))
    expected = {"encoding": "cp1252", "fix_markers": True, "corpus_version": CORPUS_VERSION}
    assert read_options(settings) == expected


LOAD_AND_MEASURE = """
import pathlib, sys
sys.path.insert(0, {root!r})
from golpo.corpus import load_corpus
from golpo_utils import get_tokenizer

def megabytes(what):  # of this process, as Linux counts them: VmRSS now, VmHWM at most
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split(what + ":")[1].split()[0]) / 1024

tokenizer = get_tokenizer(4096)
pathlib.Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
before = megabytes("VmRSS")
corpus = load_corpus({path!r}, tokenizer, cache_dir={cache!r})
print(len(corpus.train_ids), megabytes("VmHWM") - before)
"""


@pytest.mark.parametrize("megabytes", [8, pytest.param(50, marks=pytest.mark.slow)])
def test_one_very_long_line_takes_bounded_memory(tmp_path, megabytes):
    path = tmp_path / "line.txt"
    words = random.Random(0).choices(["moon", "river", "fox", "and"], k=1000)
    line = " ".join(words).encode()
    with open(path, "wb") as file:
        for _ in range(megabytes * 1_000_000 // len(line)):
            file.write(line)
    cache = str(tmp_path / "tokens")
    code = LOAD_AND_MEASURE.format(root=str(ROOT), cache=cache, path=str(path))
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    tokens, added = map(float, result.stdout.split())
    assert tokens > megabytes * 100_000
    assert added < 100


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stories", "copies", "no markers", "jsonl"])
def test_a_corpus_of_any_kind_takes_less_than_500_megabytes(tmp_path, kind):
    """120 MB, of which all kinds of Python objects would take far more."""
    rng = random.Random(0)
    path = tmp_path / ("corpus.jsonl" if kind == "jsonl" else "corpus.txt")
    text = ""
    with open(path, "w") as file:
        for number in range(200_000):
            if kind != "copies" or number < 500:
                text = " ".join(rng.choices(WORDS, k=120))
            if kind == "jsonl":
                file.write(json.dumps({"title": f"Tale {number}", "text": text}) + "\n")
            elif kind == "no markers":
                file.write(text + "\n\n")
            else:
                file.write(f"<|start|>\n<|title|>Tale {number}</|title|>\n\n{text}\n<|end|>\n")
    cache = str(tmp_path / "tokens")
    code = LOAD_AND_MEASURE.format(root=str(ROOT), cache=cache, path=str(path))
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=900, check=True
    )
    tokens, added = map(float, result.stdout.split())
    assert tokens > 10_000_000
    assert added < 500


@pytest.mark.parametrize(
    "name, value",
    [("path", 5), ("path", ""), ("tokenizer", "gpt2"), ("seed", "x"), ("seed", -1)],
)
def test_arguments_of_another_kind_are_named(tmp_path, name, value):
    path = tmp_path / "stories.txt"
    path.write_text("<|start|>A fox.<|end|>" * 3)
    called = "corpus" if name == "path" else name
    with pytest.raises(ValueError, match=f"{called} is {value!r}; it must be"):
        load_corpus(**{"path": path, "cache_dir": tmp_path, name: value})
