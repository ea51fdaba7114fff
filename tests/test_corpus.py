"""The corpus: read, checked, split, cut into windows, fetched. Held against naive recomputations, a real
web server, and files as bad as they come."""

import http.server
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import golpo_utils as golpo

ROOT = Path(golpo.__file__).parent
TOKENIZER = golpo.get_tokenizer(300)


def story(i, words=30):
    prose = " ".join(random.Random(i).choices("the old moon told a fox how rivers sleep under snow".split(), k=words))
    return f"<|start|>\n<|title|>Tale {i}</|title|>\n\n{prose}, number {i}.\n<|end|>"


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture
def load(tmp_path):
    """content → the Corpus of a file that holds it, its token files in a folder of its own."""
    def load(content, **options):
        path = write(tmp_path / "corpus.txt", content)
        return golpo.load_corpus(path, options.pop("tokenizer", TOKENIZER), cache_dir=tmp_path / "tokens", **options)
    return load


def text_of(ids, tokenizer=TOKENIZER):
    return tokenizer.decode(ids.tolist())


# --- reading ---------------------------------------------------------------------------------

def test_byte_order_mark_and_windows_line_ends_change_nothing(load):
    clean = "\n\n".join(map(story, range(20))) + "\n"
    expected = load(clean)
    for content in (b"\xef\xbb\xbf" + clean.encode(), clean.replace("\n", "\r\n"),
                    b"\xef\xbb\xbf" + clean.replace("\n", "\r\n").encode(), clean.replace("\n", "\r")):
        corpus = load(content)
        assert torch.equal(corpus.train_ids, expected.train_ids) and torch.equal(corpus.val_ids, expected.val_ids)
        assert corpus.fingerprint == expected.fingerprint


@pytest.mark.parametrize("content, complaint, way_out", [
    (b"", "is empty", "put stories into it"),
    (b"\xef\xbb\xbf \r\n\t", "is empty", "put stories into it"),
    (story(1).encode() + b"\nna\xefve\n", "not UTF-8 (byte 0xef", "save it as UTF-8"),
    ("caf\xe9 ".encode("latin-1") * 2_000_000, "not UTF-8", "save it as UTF-8"),
    (story(1).encode() + b"\0" * 9, "NUL bytes", "save it as UTF-8 text"),
    (story(1).encode("utf-16-le"), "NUL bytes", "save it as UTF-8 text"),
    ((story(1) + "\n" + story(2).replace("<|end|>", "") + story(3)).encode(), "story 2 of", "put <|end|>"),
    ((story(1) + "\n" + story(2).replace("<|end|>", "")).encode(), "('Tale 2') has no <|end|>", "put <|end|>"),
    (story(1).encode(), "holds 1 story", "add at least one more"),
])
def test_a_bad_file_is_refused_in_one_sentence_with_a_way_out(load, tmp_path, content, complaint, way_out):
    with pytest.raises(ValueError) as caught:
        load(content)
    message = str(caught.value)
    assert complaint in message and way_out in message
    assert str(tmp_path / "corpus.txt") in message and "\n" not in message


def test_a_missing_file_is_refused_in_one_sentence(tmp_path):
    for path in (tmp_path / "nowhere.txt", tmp_path):
        with pytest.raises(FileNotFoundError, match="no corpus at .*check data_path"):
            golpo.load_corpus(path)


def test_a_corpus_shorter_than_one_context_is_refused(load):
    corpus = load(story(1) + story(2))
    with pytest.raises(ValueError, match=f"{len(corpus.train_ids)} tokens, fewer than one window .*bring more text"):
        golpo.GPTDataset(corpus.train_ids, None, 512, 512)


# --- splitting -------------------------------------------------------------------------------

def test_every_story_is_whole_in_exactly_one_part(load):
    stories = [story(i, words=5 + i % 50) for i in range(200)]
    corpus = load("\n\n\n".join(stories))
    parts = [text_of(corpus.train_ids), text_of(corpus.val_ids)]
    assert sorted("".join(parts).split("<|start|>")[1:]) == sorted(s.removeprefix("<|start|>") + "\n" for s in stories)
    assert parts[1].count("<|start|>") == 20 and corpus.stories == 200 and corpus.notes == []


def test_the_seed_alone_decides_what_validates(load, tmp_path):
    content = "\n".join(map(story, range(100)))
    one, same, other = load(content, seed=1), load(content, seed=1), load(content, seed=2)
    afresh = golpo.load_corpus(tmp_path / "corpus.txt", TOKENIZER, seed=1, cache_dir=tmp_path / "elsewhere")
    assert torch.equal(one.val_ids, same.val_ids) and torch.equal(one.val_ids, afresh.val_ids)
    assert not torch.equal(one.val_ids, other.val_ids)
    finer = golpo.load_corpus(tmp_path / "corpus.txt", golpo.get_tokenizer(), seed=1, cache_dir=tmp_path / "tokens")
    assert text_of(finer.val_ids, golpo.get_tokenizer()) == text_of(one.val_ids)


def test_text_without_markers_trains_and_says_what_it_misses(load, tmp_path):
    text = "\n\n".join(f"Paragraph {i}: " + "a fox told the moon a tale. " * 8 for i in range(60)) + "\n"
    corpus = load(text)
    assert "no <|start|>" in corpus.notes[0] and "neither where stories begin nor where they end" in corpus.notes[0]
    pieces = list(golpo.read_stories(tmp_path / "corpus.txt"))
    assert "".join(pieces) == text and all(piece.startswith("\n\nParagraph") for piece in pieces[1:])
    parts = [text_of(corpus.train_ids), text_of(corpus.val_ids)]
    assert sorted(map(len, parts)) == sorted([len(text) - len(parts[1]), len(parts[1])]) and parts[1] in pieces


def test_text_outside_of_markers_is_kept_and_told(load):
    untitled = story(3).replace("<|title|>Tale 3</|title|>", "")
    corpus = load(f"A preface.\n{story(1)}\nAn interlude.\n{story(2)}{untitled}\nAn afterword.", validation_fraction=0)
    everything = text_of(corpus.train_ids) + text_of(corpus.val_ids)
    assert all(everything.count(words) == 1 for words in ("A preface.", "An interlude.", "An afterword.", "number 3."))
    assert any(note.startswith("3 pieces of text stand outside") for note in corpus.notes)
    assert any(note.startswith("1 of 3 stories have no <|title|>") for note in corpus.notes)


@pytest.mark.parametrize("marked", [True, False])
def test_where_blocks_are_cut_changes_nothing(load, monkeypatch, marked):
    content = "\n\n".join(story(i, words=200) for i in range(12))
    content = content if marked else golpo.remove_markers(content)
    expected = load(content)
    for size in (7, 64, 1000):
        monkeypatch.setattr(golpo, "BLOCK", size)
        assert load(content).fingerprint == expected.fingerprint


def test_a_story_longer_than_a_block_keeps_its_tokens(load, monkeypatch):
    content = story(1, words=3000) + story(2)
    whole = load(content, validation_fraction=0)
    monkeypatch.setattr(golpo, "BLOCK", 500)
    in_pieces = load(content, validation_fraction=0, seed=0, tokenizer=golpo.get_tokenizer(301))
    expected = golpo.encode(text_of(whole.train_ids), golpo.get_tokenizer(301))
    assert in_pieces.train_ids.tolist() == expected


LOAD_AND_MEASURE = """
import pathlib, sys, time
sys.path.insert(0, {root!r})
import golpo_utils as golpo

def megabytes(what):            # of this process, as Linux counts them: VmRSS now, VmHWM at the most
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split(what + ":")[1].split()[0]) / 1024

tokenizer = golpo.get_tokenizer(4096)
pathlib.Path("/proc/self/clear_refs").write_text("5")      # forget the highest so far
before, started = megabytes("VmRSS"), time.time()
corpus = golpo.load_corpus({path!r}, tokenizer, cache_dir={cache!r})
print(len(corpus.train_ids), megabytes("VmHWM") - before, time.time() - started)
"""


def test_one_endless_line_takes_bounded_memory(tmp_path, record_figure, long):
    megabytes = 50 if long else 8
    path = tmp_path / "line.txt"
    line = " ".join(random.Random(0).choices(["moon", "river", "fox", "and"], k=1000)).encode()
    with open(path, "wb") as file:
        for _ in range(megabytes * 1_000_000 // len(line)):
            file.write(line)
    code = LOAD_AND_MEASURE.format(root=str(ROOT), cache=str(tmp_path / "tokens"), path=str(path))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    tokens, added, seconds = map(float, result.stdout.split())
    record_figure(f"a corpus that is one {megabytes} MB line",
                  f"at most {added:.0f} MB of memory added, {seconds:.1f} s")
    assert tokens > megabytes * 100_000 and added < 60


# --- windows ---------------------------------------------------------------------------------

@pytest.mark.parametrize("length, stride", [(16, 16), (16, 5), (7, 20), (1, 1)])
def test_windows_are_those_of_a_naive_loop(length, stride):
    text = " ".join(map(story, range(3)))
    ids = TOKENIZER.encode(text, allowed_special="all")
    expected = [(ids[i:i + length], ids[i + 1:i + 1 + length]) for i in range(0, len(ids) - length, stride)]
    for source in (text, torch.tensor(ids).to(torch.uint16)):
        dataset = golpo.GPTDataset(source, TOKENIZER, length, stride)
        assert [(x.tolist(), y.tolist()) for x, y in dataset] == expected
        assert dataset[0][0].dtype == torch.long and dataset[-1][1].tolist() == expected[-1][1]
    with pytest.raises(IndexError):
        dataset[len(expected)]


def test_windows_side_by_side_predict_every_token_once():
    for extra in range(16):
        ids = torch.arange(160 + extra)
        predicted = torch.cat([target for _, target in golpo.GPTDataset(ids, None, 16, 16)]).tolist()
        assert predicted == list(range(1, 1 + len(predicted))) and len(ids) - 1 - len(predicted) < 16


def test_windows_that_move_still_cover_every_token_of_every_story():
    """Hundreds of small corpora, by a naive count: each token that can be predicted is, the first window of a story
    stays where it is, and most of the others do move."""
    rng, moved, still = np.random.default_rng(0), 0, 0
    for _ in range(300):
        lengths = rng.integers(1, 60, size=rng.integers(2, 7))
        ids = torch.tensor([token for length in lengths for token in (1, *[9] * int(length))])
        if len(ids) <= 16:
            continue
        dataset = golpo.GPTDataset(ids, None, 16, 16, start_id=1)
        dataset.ids = torch.arange(len(ids))                        # now a window says where it lies
        for share in (0.0, 0.4, 0.99):
            inputs, targets = dataset.batch(np.arange(len(dataset)), share)
            assert set(targets.flatten().tolist()) == set(range(1, len(ids))) and torch.equal(targets, inputs + 1)
            begins = ids[dataset.starts] == 1
            assert torch.equal(inputs[:, 0][begins], torch.from_numpy(dataset.starts)[begins])
            moves = inputs[:, 0] != torch.from_numpy(dataset.starts)
            moved, still = moved + int(moves.sum()) * (share > 0.9), still + int((~begins & ~moves).sum()) * (share > 0.9)
    assert moved > still > 0


def test_a_window_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="16 tokens, fewer than one window of 16"):
        golpo.GPTDataset(torch.arange(16), None, 16, 16)
    assert len(golpo.GPTDataset(torch.arange(17), None, 16, 16)) == 1
    for bad in ((0, 16), (16, 0), (16, -1), (1.5, 16)):
        with pytest.raises(ValueError):
            golpo.GPTDataset(torch.arange(100), None, *bad)


def test_dataloader_gives_batches_of_the_same_windows():
    text = " ".join(map(story, range(10)))
    windows = [x.tolist() for x, _ in golpo.GPTDataset(text, golpo.get_tokenizer(), 8, 8)]
    in_order = golpo.create_dataloader(text, 4, 8, 8, shuffle=False)
    rows = [row for inputs, _ in in_order for row in inputs.tolist()]
    assert rows == windows[:len(windows) // 4 * 4] and all(x.shape == y.shape == (4, 8) for x, y in in_order)
    shuffled = golpo.create_dataloader(text, 4, 8, 8, drop_last=False)
    assert sorted(row for inputs, _ in shuffled for row in inputs.tolist()) == sorted(windows)


# --- fetching --------------------------------------------------------------------------------

TINY_STORIES = "Once there was a fox.\nHe slept.\n<|endoftext|>\nA moon\nrose.\n<|endoftext|>\n\n<|endoftext|>Last one."


class Answers(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked += 1
        body, kind = (story(1) + story(2)).encode() * 500, "text/plain"
        status, declared = 200, None
        if self.path == "/tiny.txt":
            body = TINY_STORIES.encode()
        elif self.path == "/page.txt":
            body, kind = b"<html>Sign in to go on</html>", "text/html; charset=utf-8"
        elif self.path == "/gone.txt":
            status, body = 404, b"no"
        elif self.path == "/picture.txt":
            body, kind = b"\x89PNG\r\n\x1a\n\0\0", "application/octet-stream"
        elif self.path in ("/cut.txt", "/silent.txt"):
            declared = len(body) + 1000
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if "chunked" in self.path:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for i in range(0, len(body), 1000):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(body[i:i + 1000]), body[i:i + 1000]))
            self.wfile.write(b"" if "cut" in self.path else b"0\r\n\r\n")
        else:
            if "endless" not in self.path:
                self.send_header("Content-Length", str(declared or len(body)))
            self.end_headers()
            self.wfile.write(body)
            if self.path == "/silent.txt":
                self.server.released.wait(20)
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.asked, server.released = 0, threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.address = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["whole.txt", "chunked.txt", "endless.txt", "whole.txt?download=true"])
def test_a_download_arrives_whole_and_only_once(server, tmp_path, name):
    path = golpo.fetch_corpus(f"{server.address}/{name}", tmp_path)
    assert path.read_text() == (story(1) + story(2)) * 500 and list(tmp_path.iterdir()) == [path]
    assert golpo.fetch_corpus(f"{server.address}/{name}", tmp_path) == path and server.asked == 1
    assert path.suffix == ".txt" and golpo.load_corpus(path, TOKENIZER, cache_dir=tmp_path).stories == 1000


def test_stories_between_endoftext_get_our_markers(server, tmp_path, monkeypatch):
    stories = ("Once there was a fox.\nHe slept.", "A moon\nrose.", "Last one.")
    for block in (1 << 20, 50):             # characters; the second cuts a separator in two
        monkeypatch.setattr(golpo, "BLOCK", block)
        path = golpo.fetch_corpus(f"{server.address}/tiny.txt", tmp_path / str(block))
        assert path.read_text() == "".join(f"<|start|>\n{story}\n<|end|>\n" for story in stories)


@pytest.mark.parametrize("name, complaint", [
    ("cut.txt", "187000 bytes read, 1000 more expected"), ("chunked-cut.txt", "ended prematurely"), ("gone.txt", "404"),
    ("page.txt", "web page"), ("silent.txt", "timed out")])
def test_a_download_that_fails_says_why_and_leaves_nothing(server, tmp_path, name, complaint):
    with pytest.raises(ConnectionError) as caught:
        golpo.fetch_corpus(f"{server.address}/{name}", tmp_path, timeout=1)
    assert complaint in str(caught.value) and server.address in str(caught.value) and "run again" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_no_server_and_no_text_leave_nothing_either(server, tmp_path):
    with pytest.raises(ConnectionError, match="run again"):
        golpo.fetch_corpus("http://127.0.0.1:9/stories.txt", tmp_path)
    with pytest.raises(ValueError, match="not UTF-8|NUL"):
        golpo.fetch_corpus(f"{server.address}/picture.txt", tmp_path)
    with pytest.raises(FileNotFoundError, match="give a URL"):
        golpo.fetch_corpus(tmp_path / "nowhere.txt", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_on_drive_is_copied_to_local_disk(tmp_path):
    on_drive = write(tmp_path / "my stories.txt", b"\xef\xbb\xbf" + (story(1) + "\r\n" + story(2)).encode())
    local = golpo.fetch_corpus(on_drive, tmp_path / "data")
    assert local.parent == tmp_path / "data" and local.read_text() == story(1) + "\n" + story(2)
    assert golpo.fetch_corpus(on_drive, tmp_path / "data") == local
    write(on_drive, story(3) + story(4))
    later = local.stat().st_mtime + 10
    os.utime(on_drive, (later, later))
    assert golpo.fetch_corpus(on_drive, tmp_path / "data").read_text() == story(3) + story(4)


def test_the_corpus_in_the_box_is_what_its_grammar_makes(tmp_path):
    """Byte for byte; most stories titled, some without, so that a model also learns to begin with a person's words."""
    made = tmp_path / "made.txt"
    subprocess.run([sys.executable, ROOT / "data" / "make_training_data.py", "--output", made], check=True, capture_output=True)
    assert made.read_bytes() == golpo.DEFAULT_CORPUS.read_bytes()
    stories = list(golpo.read_stories(made))
    untitled = [text for text in stories if golpo.split_story(text)[0] is None]
    assert len(set(stories)) == len(stories) and 0.05 < len(untitled) / len(stories) < 0.1
    assert not any(golpo.TITLE in text for text in untitled)
