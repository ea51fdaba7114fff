"""Where files are stored, with a stand-in for Colab's module `google.colab.drive`."""

import errno
import os
import sys
import threading

import pytest
from standin_drive import StandInDrive

from golpo import files, storage
from golpo.storage import flush_drive, open_storage


@pytest.fixture
def colab(tmp_path, monkeypatch):
    """Make this machine look like Colab; return a function that installs a stand-in Drive."""
    package = tmp_path / "site" / "google" / "colab"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    for name in [one for one in sys.modules if one == "google" or one.startswith("google.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(storage, "PROJECT_DIR", tmp_path / "project")
    monkeypatch.setattr(files, "MOUNT_POINTS", set())
    monkeypatch.setattr(storage, "MOUNT_POINTS", files.MOUNT_POINTS)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def install(**faults):
        import google.colab

        drive = StandInDrive(tmp_path / "cloud", tmp_path / "drive")
        drive.set_faults(**faults)
        monkeypatch.setattr(google.colab, "drive", drive, raising=False)
        monkeypatch.setitem(sys.modules, "google.colab.drive", drive)
        return drive

    return install


def test_without_colab_everything_is_local(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(storage, "PROJECT_DIR", tmp_path / "project")
    found = open_storage()
    project = tmp_path / "project"
    assert found == (project / "gpt_checkpoints", project / "output", None, True)
    assert found.checkpoint_dir.is_dir() and found.output_dir.is_dir()
    assert open_storage(tmp_path / "mine").checkpoint_dir == tmp_path / "mine" / "gpt_checkpoints"
    flush_drive()
    assert capsys.readouterr().out == ""


def test_on_colab_everything_is_on_drive_and_staged_locally(tmp_path, colab):
    drive = colab()
    found = open_storage(mount_point=tmp_path / "drive")
    assert drive.mounts == [False]
    assert found.persistent
    project = tmp_path / "drive" / "MyDrive" / "Golpo-Kothok-GPT"
    assert found.checkpoint_dir == project / "gpt_checkpoints"
    assert found.output_dir == project / "output"
    assert found.staging_dir.parent == tmp_path
    content = drive.content / "Golpo-Kothok-GPT"
    assert (content / "gpt_checkpoints").is_dir() and (content / "output").is_dir()
    assert tmp_path / "drive" in files.MOUNT_POINTS


@pytest.mark.parametrize("refused, persistent", [(1, True), (99, False)])
def test_a_mount_is_tried_twice_and_then_the_local_folder_is_used(
    tmp_path, colab, capsys, refused, persistent
):
    drive = colab(refused=refused)
    found = open_storage(mount_point=tmp_path / "drive")
    assert drive.mounts == [False, True]
    assert found.persistent == persistent
    output = capsys.readouterr().out
    assert "Mounting Google Drive failed (ValueError: mount failed)" in output
    assert ("NOTHING WILL REMAIN AFTER THIS SESSION" in output) != persistent
    if not persistent:
        assert found.checkpoint_dir == tmp_path / "project" / "gpt_checkpoints"
        assert found.staging_dir is None
        assert drive.is_clean()


def test_a_folder_on_drive_is_mounted_first_and_never_made_without_drive(tmp_path, colab):
    """A folder made below the mount point makes the next mount fail, for ever."""
    drive = colab(refused=2)
    wanted = tmp_path / "drive" / "MyDrive" / "my" / "stories"
    found = open_storage(wanted, mount_point=tmp_path / "drive")
    assert not found.persistent
    assert found.checkpoint_dir == tmp_path / "project" / "gpt_checkpoints"
    assert drive.is_clean()
    found = open_storage(wanted, mount_point=tmp_path / "drive")
    assert found.persistent
    assert found.checkpoint_dir == wanted / "gpt_checkpoints"
    assert (drive.content / "my" / "stories" / "output").is_dir()


def test_a_mount_that_says_nothing_but_mounts_nothing_is_noticed(tmp_path, colab, capsys):
    drive = colab()
    drive.mount = lambda mount_point, force_remount=False: drive.mounts.append(force_remount)
    (tmp_path / "drive").mkdir()
    found = open_storage(mount_point=tmp_path / "drive")
    assert drive.mounts == [False, True]
    assert not found.persistent
    assert "Drive is not mounted" in capsys.readouterr().out
    assert os.listdir(tmp_path / "drive") == []


def test_files_of_this_machine_in_the_mount_point_are_named(tmp_path, colab, capsys):
    colab()
    (tmp_path / "drive" / "MyDrive").mkdir(parents=True)
    found = open_storage(mount_point=tmp_path / "drive")
    assert not found.persistent
    output = capsys.readouterr().out
    assert "Mountpoint must not already contain files" in output
    assert "move them elsewhere" in output


def test_a_drive_that_cannot_be_listed_is_not_taken_for_an_empty_one(
    tmp_path, colab, capsys, monkeypatch
):
    """A training that starts anew beside good checkpoints is worse than a local one."""
    drive = colab()
    open_storage(mount_point=tmp_path / "drive")
    drive.set_faults(unlistable=errno.EIO)
    drive.install_faults(monkeypatch.setattr)
    found = open_storage(mount_point=tmp_path / "drive")
    assert not found.persistent
    assert os.strerror(errno.EIO) in capsys.readouterr().out


def test_flushing_claims_an_upload_only_if_drive_was_mounted(tmp_path, colab, capsys):
    """colabtools prints a line and returns when nothing is mounted."""
    drive = colab()
    open_storage(mount_point=tmp_path / "drive")
    capsys.readouterr()
    flush_drive()
    assert "everything is uploaded" in capsys.readouterr().out
    assert not drive.is_mounted()
    flush_drive()
    output = capsys.readouterr().out
    assert "Nothing was uploaded, because Google Drive is not mounted" in output
    assert "Drive not mounted, so nothing to flush and unmount." in output
    assert "everything is uploaded" not in output


def test_flushing_waits_a_limited_time_and_repeats_an_error(colab, capsys):
    drive = colab()
    released = threading.Event()
    drive.flush_and_unmount = released.wait
    before = sys.stdout
    flush_drive(timeout=0.1)
    assert sys.stdout is before
    assert "still uploading after 0.1 seconds" in capsys.readouterr().out
    released.set()

    def fail():
        print("half of it")
        raise ValueError("no connection")

    drive.flush_and_unmount = fail
    flush_drive()
    output = capsys.readouterr().out
    assert "may not have uploaded everything (no connection)" in output
    assert "half of it" in output


def test_what_other_threads_print_during_a_flush_appears(colab, capsys):
    drive = colab()
    printed = threading.Event()

    def flush():
        print("from Drive")
        other = threading.Thread(target=print, args=("from a training",))
        other.start()
        other.join()
        printed.set()

    drive.flush_and_unmount = flush
    flush_drive()
    assert printed.is_set()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "from a training"
    assert lines[1].endswith("Colab's own words: from Drive")
