"""Corpora by URL and path, from a real web server that answers as bad servers do."""

import contextlib
import gzip
import http.server
import io
import json
import os
import threading
import time
import zipfile

import pytest

from golpo import download, encodings, files
from golpo.corpus import load_corpus, read_stories
from golpo.download import fetch_corpus
from golpo.stories import split_story
from golpo_utils import get_tokenizer

STORIES = "<|start|>\n<|title|>A</|title|>\n\nOnce.\n<|end|>\n<|start|>\nTwice.\n<|end|>\n"
WHOLE = STORIES * 2000
TINY_STORIES = (
    "Once there was a fox.\nHe slept.\n<|endoftext|>\nA moon\nrose.\n<|endoftext|>\n\n"
    "<|endoftext|>Last one."
)

RECORD = json.dumps({"title": "A", "text": "Once."}) + "\n"
INSTEAD = {
    "/html-as-text.txt": ("text/plain", b"<!DOCTYPE html>\n<html>Sign in</html>"),
    "/json-error.txt": ("text/plain", b'{"error": "Repository not found"}'),
    "/xml-error.txt": ("application/xml", b"<?xml version='1.0'?><Error>AccessDenied</Error>"),
    "/photo.txt": ("image/jpeg", b"\xff\xd8\xff\xe0"),
    "/tales.jsonl?raw=true": ("application/json", (RECORD * 3).encode()),
}


def zipped(text):
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("stories.txt", text)
    return memory.getvalue()


BOMB = gzip.compress(b"zero " * (1 << 21))
PACKED = {
    "corpus.txt.gz": gzip.compress(WHOLE.encode()),
    "corpus": gzip.compress(WHOLE.encode()),
    "encoded.txt": gzip.compress(WHOLE.encode()),
    "corpus.zip": zipped(WHOLE),
    "bomb.gz": BOMB,
    "encoded-bomb.txt": BOMB,
}


class Answers(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked += 1
        body = WHOLE.encode()
        kind = "text/plain"
        status = 200
        declared = None
        if self.path == "/tiny.txt":
            body = TINY_STORIES.encode()
        elif self.path == "/page.txt":
            body = b"<html>Sign in to read</html>"
            kind = "text/html; charset=utf-8"
        elif self.path == "/gone.txt":
            body = b"no"
            status = 404
        elif self.path == "/picture.txt":
            body = b"\x89PNG\r\n\x1a\n\0\0"
            kind = "application/octet-stream"
        elif self.path in ("/cut.txt", "/silent.txt", "/dripping.txt"):
            declared = len(body) + 1000
        elif self.path in INSTEAD:
            kind, body = INSTEAD[self.path]
        elif self.path.startswith("/packed/"):
            body = PACKED[self.path.removeprefix("/packed/")]
            kind = "application/octet-stream"
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if "encoded" in self.path:
            self.send_header("Content-Encoding", "gzip")
        if "chunked" in self.path:
            self.send_chunks(body)
        else:
            if "endless" not in self.path:
                self.send_header("Content-Length", str(declared or len(body)))
            self.end_headers()
            if self.path == "/dripping.txt":
                self.drip(body)
            else:
                self.wfile.write(body)
            if self.path == "/silent.txt":
                self.server.released.wait(20)
        self.close_connection = True

    def send_chunks(self, body):
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for i in range(0, len(body), 1000):
            chunk = body[i : i + 1000]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        self.wfile.write(b"" if "cut" in self.path else b"0\r\n\r\n")

    def drip(self, body):
        with contextlib.suppress(OSError):
            for byte in body[:100]:
                self.wfile.write(bytes([byte]))
                if self.server.released.wait(0.2):
                    return

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.asked = 0
    server.released = threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.address = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "name", ["whole.txt", "chunked.txt", "endless.txt", "whole.txt?download=true"]
)
def test_a_download_arrives_whole_and_only_once(server, tmp_path, name):
    path = fetch_corpus(f"{server.address}/{name}", tmp_path / "data")
    assert path.read_text() == WHOLE
    assert list((tmp_path / "data").iterdir()) == [path]
    assert fetch_corpus(f"{server.address}/{name}", tmp_path / "data") == path
    assert server.asked == 1
    assert path.suffix == ".txt"
    assert load_corpus(path, get_tokenizer(300), cache_dir=tmp_path / "tokens").stories == 4000


def test_stories_between_endoftext_get_our_markers(server, tmp_path, monkeypatch):
    stories = ("Once there was a fox.\nHe slept.", "A moon\nrose.", "Last one.")
    for size in (1 << 20, 50):  # the second one splits a separator
        monkeypatch.setattr(encodings, "BLOCK_SIZE", size)
        path = fetch_corpus(f"{server.address}/tiny.txt", tmp_path / str(size), titles=False)
        expected = "".join(f"<|start|>\n{text}\n<|end|>\n" for text in stories)
        assert path.read_text() == expected


def test_a_corpus_without_titles_gets_some_and_says_so(server, tmp_path, capsys):
    path = fetch_corpus(f"{server.address}/tiny.txt", tmp_path)
    titles = [split_story(story)[0] for story in read_stories(path)]
    assert titles[0] == "The Fox"
    assert "Most stories have no title" in capsys.readouterr().out
    named = tmp_path / "named.txt"
    named.write_text(STORIES)
    assert fetch_corpus(named, tmp_path / "data").read_text() == STORIES
    assert "Most stories have no title" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, complaint",
    [
        ("cut.txt", f"{len(WHOLE)} bytes read, 1000 more expected"),
        ("chunked-cut.txt", "ended prematurely"),
        ("gone.txt", "404"),
        ("page.txt", "web page"),
        ("silent.txt", "timed out"),
    ],
)
def test_a_download_that_fails_says_why_and_leaves_nothing(server, tmp_path, name, complaint):
    with pytest.raises(ConnectionError) as caught:
        fetch_corpus(f"{server.address}/{name}", tmp_path, timeout=1)
    message = str(caught.value)
    assert complaint in message and server.address in message and "run again" in message
    assert list(tmp_path.iterdir()) == []


def test_no_server_and_no_text_leave_nothing_either(server, tmp_path):
    with pytest.raises(ConnectionError, match="run again"):
        fetch_corpus("http://127.0.0.1:9/stories.txt", tmp_path)
    with pytest.raises(ValueError, match="picture.txt. is a PNG picture"):
        fetch_corpus(f"{server.address}/picture.txt", tmp_path)
    with pytest.raises(FileNotFoundError, match="give a URL"):
        fetch_corpus(tmp_path / "nowhere.txt", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_on_drive_is_copied_to_local_disk(tmp_path):
    on_drive = tmp_path / "my stories.txt"
    on_drive.write_bytes(b"\xef\xbb\xbf" + STORIES.replace("\n", "\r\n").encode())
    local = fetch_corpus(on_drive, tmp_path / "data")
    assert local.parent == tmp_path / "data"
    assert local.read_text() == STORIES
    assert fetch_corpus(on_drive, tmp_path / "data") == local
    on_drive.write_text(STORIES * 2)
    later = local.stat().st_mtime + 10
    os.utime(on_drive, (later, later))
    assert fetch_corpus(on_drive, tmp_path / "data").read_text() == STORIES * 2


# --- what servers send instead of a corpus ---------------------------------------------------


@pytest.mark.parametrize(
    "name, complaint",
    [
        ("html-as-text.txt", "the server sent a web page .HTML., not a text file: <!DOCTYPE html>"),
        ("json-error.txt", "the server sent a JSON document, .*Repository not found"),
        ("xml-error.txt", "the server sent an XML document, .*AccessDenied"),
        ("photo.txt", "it is image/jpeg, not a text file"),
    ],
)
def test_what_a_server_sends_instead_is_named(server, tmp_path, name, complaint):
    with pytest.raises(ConnectionError, match=complaint):
        fetch_corpus(f"{server.address}/{name}", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["corpus.txt.gz", "corpus", "corpus.zip", "encoded.txt"])
def test_a_packed_download_is_unpacked(server, tmp_path, name):
    """Known by its content; the last one is packed by the transport (Content-Encoding)."""
    assert fetch_corpus(f"{server.address}/packed/{name}", tmp_path).read_text() == WHOLE


@pytest.mark.parametrize("name", ["bomb.gz", "encoded-bomb.txt"])
def test_a_download_that_unpacks_to_too_much_is_refused(server, tmp_path, monkeypatch, name):
    for module in (download, encodings):
        monkeypatch.setattr(module, "MAX_UNPACKED_SIZE", 1 << 20)
    with pytest.raises((ValueError, ConnectionError), match="unpacks to more than"):
        fetch_corpus(f"{server.address}/packed/{name}", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_json_lines_are_downloaded_whatever_their_content_type(server, tmp_path, capsys):
    path = fetch_corpus(f"{server.address}/tales.jsonl?raw=true", tmp_path)
    assert path.read_text() == "<|start|>\n<|title|>A</|title|>\n\nOnce.\n<|end|>\n" * 3
    output = capsys.readouterr().out
    assert f"Each of the 3 records of '{server.address}/tales.jsonl?raw=true' is a story" in output


def test_a_server_that_sends_a_byte_now_and_then_is_given_up(server, tmp_path):
    """Each byte comes in time for the socket, but the download would take days."""
    started = time.monotonic()
    with pytest.raises(ConnectionError, match="no progress for 2 seconds"):
        fetch_corpus(f"{server.address}/dripping.txt", tmp_path, timeout=1)
    assert time.monotonic() - started < 10
    assert list(tmp_path.iterdir()) == []


def test_long_names_are_shortened_and_stay_different(server, tmp_path):
    paths = {
        fetch_corpus(f"{server.address}/{'চাঁদ' * 60}{number}.txt", tmp_path) for number in (1, 2)
    }
    assert len(paths) == 2
    assert all(len(path.name.encode()) < 100 for path in paths)
    assert all(path.read_text() == WHOLE for path in paths)


def test_another_encoding_is_read_on_request(tmp_path):
    source = tmp_path / "tales.txt"
    source.write_bytes("“Naïve.” ".encode("cp1252") * 20)
    with pytest.raises(ValueError, match="--encoding cp1252") as caught:
        fetch_corpus(source, tmp_path / "data")
    assert str(source) in str(caught.value)
    local = fetch_corpus(source, tmp_path / "data", encoding="cp1252")
    assert local.read_text(encoding="utf-8") == "“Naïve.” " * 20
    other = fetch_corpus(source, tmp_path / "data", encoding="latin-1")
    assert other.read_text(encoding="utf-8") == "\x93Naïve.\x94 " * 20


def test_nothing_is_made_below_a_drive_that_is_not_mounted(tmp_path, monkeypatch):
    """Not by a corpus that is on it, nor by a folder that the copy goes to."""
    monkeypatch.setattr(files, "MOUNT_POINTS", {tmp_path / "drive"})
    (tmp_path / "drive").mkdir()
    source = tmp_path / "tales.txt"
    source.write_text(STORIES)
    on_drive = tmp_path / "drive" / "MyDrive"
    with pytest.raises(OSError, match="not mounted"):
        fetch_corpus(source, on_drive / "data")
    with pytest.raises(OSError, match="not mounted"):
        fetch_corpus(on_drive / "tales.txt", tmp_path / "data")
    with pytest.raises(OSError, match="not mounted"):
        load_corpus(on_drive / "tales.txt")
    load_corpus(source, get_tokenizer(300), cache_dir=on_drive / "tokens")  # elsewhere
    assert list((tmp_path / "drive").iterdir()) == []
    on_drive.mkdir()
    assert fetch_corpus(source, on_drive / "data").read_text() == STORIES


def test_a_folder_is_brought_as_one_file_and_again_when_a_file_changes(tmp_path):
    source = tmp_path / "my tales"
    source.mkdir()
    (source / "b.txt").write_text("Second.")
    (source / "a.txt").write_text("First.")
    local = fetch_corpus(source, tmp_path / "data")
    expected = "<|start|>\n<|title|>a</|title|>\n\nFirst.\n<|end|>\n"
    assert local.read_text() == expected + expected.replace("a<", "b<").replace("First", "Second")
    (source / "a.txt").write_text("Changed.")
    later = local.stat().st_mtime + 10
    os.utime(source / "a.txt", (later, later))
    assert "Changed." in fetch_corpus(source, tmp_path / "data").read_text()
