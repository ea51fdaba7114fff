"""Files that are whole at every moment, and folders that cannot be read."""

import os
from pathlib import Path

import pytest

from golpo import files
from golpo.files import (
    as_path,
    list_folder,
    replace_file,
    sha256_of,
    sha256_of_recent,
    write_text,
)


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    replace_file(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"new")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        replace_file(path, fail)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_an_empty_folder_and_one_that_cannot_be_read_differ(tmp_path, monkeypatch):
    assert list_folder(tmp_path) == list_folder(tmp_path / "missing") == []
    (tmp_path / "file").touch()
    assert list_folder(tmp_path) == [tmp_path / "file"]
    with pytest.raises(NotADirectoryError):
        list_folder(tmp_path / "file")
    calls = []

    def refuse(folder):
        calls.append(folder)
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError):
        list_folder(tmp_path)
    assert calls == [tmp_path]


def test_a_file_is_hashed_again_only_if_it_may_have_changed(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"one")
    hashed = []

    def count(path):
        hashed.append(path)
        return sha256_of(path)

    monkeypatch.setattr(files, "sha256_of", count)
    digests = {sha256_of_recent(path) for _ in range(3)}
    assert digests == {sha256_of(path)} and len(hashed) == 3  # it has just been written
    monkeypatch.setattr(files, "SECONDS_UNTIL_TIMES_DIFFER", -1)
    assert {sha256_of_recent(path) for _ in range(3)} == digests
    assert len(hashed) == 4
    path.write_bytes(b"three")
    assert sha256_of_recent(path) == sha256_of(path) and len(hashed) == 5
    monkeypatch.setattr(files, "SECONDS_TO_REMEMBER", 0)
    assert sha256_of_recent(path) == sha256_of(path) and len(hashed) == 6


@pytest.mark.parametrize("value", [None, 5, 1.5, b"a", ["a"], "", "a\0b", "\ud800"])
def test_what_can_be_no_path_is_named(value):
    """An empty field of a form, or a number."""
    with pytest.raises(ValueError, match="the corpus is .*; it must be a path") as found:
        as_path("the corpus", value)
    assert repr(value) in str(found.value)
    assert as_path("the corpus", "a b") == as_path("the corpus", Path("a b")) == Path("a b")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_a_text_that_a_full_disk_refuses_is_named(tmp_path):
    with pytest.raises(OSError, match="No space left on device; it was not written") as found:
        write_text(Path("/dev/full"), "A fox." * 10_000)
    assert found.value.filename == "/dev/full"
    write_text(tmp_path / "a.txt", "half \ud83e, whole 🦊")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "half ?, whole 🦊"
