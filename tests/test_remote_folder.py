"""A remote folder is made once, and never again on this machine's own disk."""

import os

import pytest
from standin_drive import StandInDrive

from golpo import files
from golpo.files import is_unmounted, list_folder, make_folder
from golpo.remote_folder import RECORD, RemoteFolder


@pytest.fixture
def local(tmp_path):
    (tmp_path / "local").mkdir()
    return tmp_path / "local"


@pytest.fixture
def mount_point(tmp_path, monkeypatch):
    """An empty mount point, such as /content/drive before the mount."""
    monkeypatch.setattr(files, "MOUNT_POINTS", {tmp_path / "drive"})
    (tmp_path / "drive").mkdir()
    return tmp_path / "drive"


def test_a_folder_is_made_the_first_time_only(tmp_path, local):
    remote = tmp_path / "a" / "b"
    RemoteFolder(remote, local).check()
    assert remote.is_dir()
    remote.rmdir()
    remote.parent.rmdir()
    for _ in range(2):  # a later training knows it too
        with pytest.raises(OSError, match="has disappeared; mount its drive again"):
            RemoteFolder(remote, local).check()
    assert not remote.parent.exists()
    RemoteFolder(tmp_path / "other", local).check()


def test_nothing_is_made_below_an_unmounted_mount_point(mount_point, local):
    path = mount_point / "MyDrive" / "Golpo"
    assert is_unmounted(path)
    with pytest.raises(OSError, match="not mounted"):
        RemoteFolder(path, local).check()
    with pytest.raises(OSError, match="not mounted"):
        make_folder(path)
    with pytest.raises(OSError, match="not mounted"):
        list_folder(path)
    assert os.listdir(mount_point) == []


def test_below_a_mounted_drive_folders_are_made(mount_point, local):
    (mount_point / "MyDrive").mkdir()
    path = mount_point / "MyDrive" / "Golpo"
    RemoteFolder(path, local).check()
    assert path.is_dir() and list_folder(path) == []


def test_a_folder_that_is_now_on_this_machines_disk_is_not_the_drive(tmp_path, local, monkeypatch):
    remote = tmp_path / "remote"
    monkeypatch.setattr(RemoteFolder, "device", lambda self: 999 if remote.exists() else None)
    RemoteFolder(remote, local).check()
    monkeypatch.undo()
    with pytest.raises(OSError, match="this machine's own disk"):
        RemoteFolder(remote, local).check()


def test_a_folder_that_cannot_be_written_is_noticed_in_limited_time(tmp_path, local):
    drive = StandInDrive(tmp_path / "google", tmp_path / "drive")
    with pytest.MonkeyPatch.context() as patch:
        drive.install_faults(patch.setattr)
        drive.mount(drive.mount_point)
        remote = RemoteFolder(drive.link, local)
        remote.probe(10)
        for faults, reason in (({"hangs": True}, "does not answer"), ({"gone": 107}, "Transport")):
            drive.set_faults(**faults)
            with pytest.raises(OSError, match=reason):
                remote.probe(0.3)
        drive.set_faults()


@pytest.mark.parametrize("record", [b"", b"\xff", b"[]", b"[" * 100_000])
def test_a_damaged_record_counts_as_none(tmp_path, local, record):
    (local / RECORD).write_bytes(record)
    RemoteFolder(tmp_path / "remote", local).check()
    assert (tmp_path / "remote").is_dir()
