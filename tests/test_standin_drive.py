"""The stand-in for Google Drive behaves as colabtools and Drive do."""

import errno
import os
import subprocess
import sys
import time

import pytest
from standin_drive import StandInDrive, write_site_package


@pytest.fixture
def drive(tmp_path, monkeypatch):
    drive = StandInDrive(tmp_path / "google", tmp_path / "drive")
    drive.install_faults(monkeypatch.setattr)
    return drive


def test_what_is_written_remains_over_unmounts(drive, capsys):
    drive.mount(str(drive.mount_point))
    (drive.link / "file").write_text("kept")
    drive.mount(str(drive.mount_point))
    assert "Drive already mounted" in capsys.readouterr().out
    drive.flush_and_unmount()
    assert os.listdir(drive.mount_point) == [] and drive.is_clean()
    drive.flush_and_unmount()
    assert "Drive not mounted, so nothing to flush" in capsys.readouterr().out
    drive.mount(str(drive.mount_point))
    assert (drive.link / "file").read_text() == "kept"
    assert drive.files_on_drive() == {"file": b"kept"}


def test_a_mount_over_files_is_refused(drive):
    (drive.mount_point / "MyDrive").mkdir(parents=True)
    assert not drive.is_clean()
    with pytest.raises(ValueError, match="Mountpoint must not already contain files"):
        drive.mount(str(drive.mount_point))


def test_mounts_are_refused_as_often_as_asked(drive):
    drive.set_faults(refused=1)
    with pytest.raises(ValueError, match="mount failed"):
        drive.mount(str(drive.mount_point))
    drive.mount(str(drive.mount_point), force_remount=True)
    assert drive.is_mounted() and drive.mounts == [False, True]


def test_faults_concern_drive_and_nothing_else(drive, tmp_path):
    drive.mount(str(drive.mount_point))
    path = drive.link / "file"
    path.write_text("old")
    drive.set_faults(gone=errno.ENOTCONN)
    for action in (path.read_text, path.stat, path.unlink, lambda: os.listdir(drive.link)):
        with pytest.raises(OSError, match="Transport endpoint is not connected"):
            action()
    (tmp_path / "local").write_text("works")
    drive.set_faults(unlistable=errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        os.scandir(drive.link)
    assert path.read_text() == "old"
    drive.set_faults(room=3)
    with pytest.raises(OSError, match="No space left"):
        path.write_text("much longer")
    drive.set_faults(seconds=0.2)
    started = time.monotonic()
    path.write_text("slow")
    assert time.monotonic() - started >= 0.2
    drive.set_faults()
    assert path.read_text() == "slow"


def test_another_process_gets_it_as_google_colab(drive, tmp_path):
    write_site_package(tmp_path / "site", drive)
    drive.set_faults(unlistable=errno.EIO)
    code = (
        "import os; from google.colab import drive; "
        f"drive.mount({str(drive.mount_point)!r}); print(os.listdir({str(drive.link)!r}))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert "Input/output error" in done.stderr
    assert "Mounted at" in done.stdout and drive.is_mounted()
