"""The token cache: damage, other users, kills, several processes, and its size."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from golpo import token_cache
from golpo.corpus import load_corpus
from golpo.token_cache import cached_tokens, default_folders
from golpo_utils import get_tokenizer

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER = get_tokenizer(300)
KEYS = [f"{number:024x}" for number in range(9)]


def write_story_file(path, count=40):
    stories = [f"<|start|>\nThe owl saw {n} mice, {n * n} stars.\n<|end|>\n" for n in range(count)]
    path.write_text("".join(stories))
    return path


@pytest.fixture
def corpus_file(tmp_path):
    return write_story_file(tmp_path / "stories.txt")


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "tokens"


def ids_of(corpus):
    return corpus.train_ids.tolist(), corpus.val_ids.tolist()


def cut(data):
    return data[: len(data) // 4 * 2]


def flip(data):
    return bytes([data[0] ^ 1]) + data[1:]


DAMAGES = {
    "cut": cut,
    "a flipped bit": flip,
    "odd": lambda data: data + b"\0",
    "empty": lambda data: b"",
    "longer": lambda data: data + b"\0\0",
    "missing": None,
    "a folder": "folder",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("part", ["train.u16", "val.u16", "json"])
def test_damaged_tokens_are_made_again(corpus_file, cache, capsys, part, damage):
    expected = ids_of(load_corpus(corpus_file, TOKENIZER, cache_dir=cache))
    file = next(path for path in cache.iterdir() if path.name.endswith(part))
    change = DAMAGES[damage]
    data = file.read_bytes()
    file.unlink()
    if change == "folder":
        file.mkdir()
    elif change is not None:
        file.write_bytes(change(data))
    capsys.readouterr()
    assert ids_of(load_corpus(corpus_file, TOKENIZER, cache_dir=cache)) == expected
    output = capsys.readouterr().out
    assert ("damaged" in output) == (damage != "missing")
    assert "cannot be in" not in output


def test_whole_tokens_are_read_and_not_made_again(corpus_file, cache, monkeypatch):
    first = load_corpus(corpus_file, TOKENIZER, cache_dir=cache)
    calls = []
    monkeypatch.setattr(token_cache, "write_entry", lambda *_: calls.append(1))
    again = load_corpus(corpus_file, TOKENIZER, cache_dir=cache)
    assert ids_of(again) == ids_of(first)
    assert again.notes == first.notes
    assert calls == []
    with pytest.raises(OSError):  # the patch above is reached by another key
        token_cache._tokens_in(cache, KEYS[0], lambda train, val: {})
    assert calls == [1]


def test_the_folder_is_the_users_own(tmp_path, monkeypatch, corpus_file):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home-cache"))
    load_corpus(corpus_file, TOKENIZER)
    folder = default_folders()[0]
    assert folder.parent.parent == tmp_path / "home-cache"
    assert len([path for path in folder.iterdir() if path.suffix == ".u16"]) == 2
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("obstacle", ["a file", "another user's", "a link", "read-only"])
def test_a_folder_that_cannot_be_used_is_replaced_by_a_private_one(
    tmp_path, monkeypatch, corpus_file, capsys, obstacle
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home-cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = default_folders()[0]
    folder.parent.mkdir(parents=True)
    if obstacle == "a file":
        folder.write_text("")
    elif obstacle == "a link":
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.mkdir()
        if obstacle == "another user's" and os.getuid() == 0:
            os.chown(folder, 12345, 12345)
        elif os.getuid() == 0:
            pytest.skip("root can write everywhere")
        else:
            folder.chmod(0o500)
    corpus = load_corpus(corpus_file, TOKENIZER)
    assert corpus.stories == 40 and len(corpus.train_ids) > 100
    assert f"cannot be in {str(folder)!r}" in capsys.readouterr().out
    private = default_folders()[1]
    assert private.stat().st_mode & 0o777 == 0o700
    assert any(path.suffix == ".u16" for path in private.iterdir())


def test_if_no_folder_can_be_used_the_tokens_last_as_long_as_the_program(tmp_path, corpus_file):
    """Both folders of the user belong to somebody else."""
    if os.getuid() != 0:
        pytest.skip("needs root to give folders away")
    code = f"""
        import os, sys, tempfile
        sys.path.insert(0, {str(ROOT)!r})
        from golpo.corpus import load_corpus
        from golpo.token_cache import default_folders
        from golpo_utils import get_tokenizer
        for folder in default_folders():
            folder.mkdir(parents=True)
            os.chown(folder, 12345, 12345)
        print(len(load_corpus({str(corpus_file)!r}, get_tokenizer(300)).train_ids))
    """
    folder = tmp_path / "temporary"
    folder.mkdir()
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "home"), "TMPDIR": str(folder)}
    result = run_python(code, environment)
    assert int(result.stdout.splitlines()[-1]) > 100
    assert "until this program ends" in result.stdout
    assert not list(folder.glob("golpo-tokens-*"))


def run_python(code, environment=None):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


def test_a_disk_that_is_full_moves_the_cache_elsewhere(tmp_path, monkeypatch, corpus_file, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home-cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    full = default_folders()[0]
    write_entry = token_cache.write_entry
    tried = []

    def fail(folder, key, write):
        tried.append(folder)
        if folder == full:
            raise OSError(28, "No space left on device")
        write_entry(folder, key, write)

    monkeypatch.setattr(token_cache, "write_entry", fail)
    assert len(load_corpus(corpus_file, TOKENIZER).train_ids) > 100
    assert tried == default_folders()
    assert "No space left on device" in capsys.readouterr().out


SLOW_LOAD = """
    import sys, time
    sys.path.insert(0, {root!r})
    from golpo import corpus
    from golpo_utils import get_tokenizer
    encode = corpus.encode

    def slow_encode(*arguments):
        time.sleep({seconds})
        print("encoding", flush=True)
        return encode(*arguments)

    corpus.encode = slow_encode
    found = corpus.load_corpus({path!r}, get_tokenizer(300), cache_dir={cache!r})
    print("tokens", len(found.train_ids))
"""


def start_slow_load(corpus_file, cache, seconds):
    code = SLOW_LOAD.format(
        root=str(ROOT), path=str(corpus_file), cache=str(cache), seconds=seconds
    )
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("same_corpus", [True, False])
def test_what_a_killed_process_leaves_is_removed(tmp_path, corpus_file, cache, same_corpus):
    process = start_slow_load(corpus_file, cache, 0.5)
    assert process.stdout.readline() == "encoding\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [path for path in cache.iterdir() if path.is_dir()]
    other = corpus_file if same_corpus else write_story_file(tmp_path / "other.txt", 50)
    load_corpus(other, TOKENIZER, cache_dir=cache)
    assert not [path for path in cache.iterdir() if path.is_dir()]
    assert len([path for path in cache.iterdir() if path.suffix == ".u16"]) == 2


def test_a_process_at_work_is_not_disturbed_by_another_corpus(tmp_path, corpus_file, cache):
    process = start_slow_load(corpus_file, cache, 0.1)
    assert process.stdout.readline() == "encoding\n"
    other = write_story_file(tmp_path / "other.txt", 50)
    load_corpus(other, TOKENIZER, cache_dir=cache)
    assert process.poll() is None
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "tokens" in output


def test_of_several_processes_one_tokenizes_and_the_others_wait(corpus_file, cache):
    """As torchrun starts them. Each prints a line for every story that it tokenizes."""
    processes = [start_slow_load(corpus_file, cache, 0.03) for _ in range(3)]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    counts = sorted(output.count("encoding") for output in outputs)
    assert counts == [0, 0, 40]
    assert len({output.splitlines()[-1] for output in outputs}) == 1


def test_old_entries_are_removed_when_there_are_too_many(cache, monkeypatch):
    monkeypatch.setattr(token_cache, "MAX_CACHE_SIZE", 25_000)

    def write(train, val):
        train.write(b"\1\0" * 3000)
        val.write(b"\2\0" * 1000)
        return {}

    def kept():
        return [key for key in KEYS if (cache / f"{key}.train.u16").exists()]

    for key in KEYS[:3]:
        cached_tokens(key, write, cache)
        time.sleep(0.02)
    assert kept() == KEYS[:3]
    cached_tokens(KEYS[0], write, cache)  # used again, so it is no longer the oldest
    time.sleep(0.02)
    (cache / "notes.txt").write_text("somebody's own " * 2000)
    cached_tokens(KEYS[3], write, cache)
    assert kept() == [KEYS[0], KEYS[2], KEYS[3]]
    assert (cache / "notes.txt").exists()
    assert sorted(path.name for path in cache.iterdir() if path.name.startswith(KEYS[1])) == []


def test_the_tokens_are_the_stories(corpus_file, cache):
    """Through the cache, the first time and the second."""
    text = corpus_file.read_text()
    for _ in range(2):
        corpus = load_corpus(corpus_file, TOKENIZER, cache_dir=cache, validation_fraction=0.5)
        parts = "".join(TOKENIZER.decode(ids) for ids in ids_of(corpus))
        assert sorted(parts.split("<|end|>\n")) == sorted(text.split("<|end|>\n"))
