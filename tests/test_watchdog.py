"""A drive that does not answer is given up, and one that is only slow is not."""

import errno
import threading
import time

import pytest
from standin_drive import StandInDrive
from trainings import newest, same_bits, train

from golpo import files, watchdog
from golpo.checkpoint import newest_checkpoint
from golpo.errors import CheckpointError
from golpo.inference import load_storyteller
from golpo.plan import has_checkpoint, plan_training
from golpo.watchdog import WatchedReader, note_progress, read_watched, watched


@pytest.fixture(autouse=True)
def short_times(monkeypatch):
    """What takes minutes takes tenths of seconds."""
    monkeypatch.setattr(watchdog, "SECONDS_UNTIL_NOTE", 0.1)
    monkeypatch.setattr(watchdog, "SECONDS_UNTIL_GIVEN_UP", 0.4)
    monkeypatch.setattr(watchdog, "SECONDS_WHILE_OTHERS_HANG", 0.2)
    monkeypatch.setattr(watchdog, "SECONDS_BETWEEN_LOOKS", 0.02)
    monkeypatch.setattr(watchdog, "_left_behind", [])


def test_results_and_errors_are_those_of_the_work(tmp_path):
    assert watched(tmp_path, lambda: 5) == 5
    with pytest.raises(FileNotFoundError, match="missing"):
        watched(tmp_path, (tmp_path / "missing").read_bytes)
    with pytest.raises(KeyError):
        watched(tmp_path, lambda: {}["a"])


def test_work_without_progress_is_given_up_and_said_so(tmp_path, capsys):
    """H: the thread that hangs is left behind, and later work is given up sooner."""
    over = threading.Event()
    try:
        for limit in (0.4, 0.2):
            started = time.monotonic()
            with pytest.raises(TimeoutError, match="has not answered for") as found:
                watched(tmp_path, lambda: over.wait(30))
            assert limit <= time.monotonic() - started < limit + 1
            assert found.value.errno == errno.ETIMEDOUT
        assert f"Waiting for '{tmp_path}', which has not answered" in capsys.readouterr().out
    finally:
        over.set()


def test_slow_work_that_progresses_is_not_given_up(tmp_path):
    """H: a large checkpoint on a slow drive may take many minutes."""

    def slow():
        for _ in range(10):
            time.sleep(0.1)
            note_progress()
        return "done"

    assert watched(tmp_path, slow) == "done"


def test_each_part_that_is_read_is_progress(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(bytes(range(250)) * 100)
    slow = WatchedReader.readinto

    def readinto(self, buffer):
        time.sleep(0.1)
        return slow(self, buffer)

    monkeypatch.setattr(WatchedReader, "readinto", readinto)

    def read(file):
        part = bytearray(2500)
        return b"".join(bytes(part[: file.readinto(part)]) for _ in range(10))

    assert read_watched(tmp_path / "file", read) == bytes(range(250)) * 100


@pytest.fixture
def drive(tmp_path, monkeypatch):
    """A mounted stand-in Drive with folders for checkpoints, there and on this machine."""
    drive = StandInDrive(tmp_path / "google", tmp_path / "drive")
    monkeypatch.setattr(files, "MOUNT_POINTS", {drive.mount_point})
    drive.install_faults(monkeypatch.setattr)
    drive.mount(drive.mount_point)
    drive.checkpoints = drive.link / "Golpo" / "gpt_checkpoints"
    drive.staging = tmp_path / "staging"
    yield drive
    drive.set_faults()


@pytest.mark.usefixtures("one_thread", "silent")
class TestTraining:
    def train(self, drive, corpus, **more):
        started = time.monotonic()
        train(corpus, drive.checkpoints, staging_dir=drive.staging, **more)
        assert time.monotonic() - started < 30

    @pytest.mark.parametrize("silent", ["all", "reads"])
    def test_it_resumes_from_this_machine_and_says_so(
        self, drive, training_corpus, tmp_path, capsys, uninterrupted, silent
    ):
        """H: Drive hangs from the start, but this machine has the newest checkpoint."""
        self.train(drive, training_corpus, max_steps=50)
        drive.set_faults(silent=silent)
        capsys.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("golpo.runs.CheckpointManager", quick_manager)
            self.train(drive, training_corpus)
        printed = capsys.readouterr().out
        assert "has not answered for" in printed and "Resuming from" in printed
        assert "step 50" in printed and f"only in '{drive.staging}'" in printed
        assert same_bits(newest(drive.staging), uninterrupted)

    @pytest.mark.parametrize("silent", ["all", "reads"])
    def test_it_stops_with_a_sentence_if_only_drive_has_a_checkpoint(
        self, drive, training_corpus, tmp_path, silent
    ):
        """H: starting afresh beside good checkpoints would be wrong."""
        self.train(drive, training_corpus, max_steps=50)
        before = drive.files_on_drive()
        drive.set_faults(silent=silent)
        drive.staging = tmp_path / "another machine"
        with pytest.raises(CheckpointError, match="cannot be read .*has not answered for"):
            self.train(drive, training_corpus)
        with pytest.raises(CheckpointError, match="has not answered for|out of reach"):
            self.train(drive, training_corpus, fresh=True)
        drive.set_faults()
        lock = "Golpo/gpt_checkpoints/training.lock"
        after = drive.files_on_drive()
        assert {**after, lock: b""} == {**before, lock: b""}

    def test_it_waits_for_a_drive_that_answers_late(
        self, drive, training_corpus, tmp_path, capsys, uninterrupted
    ):
        """H: as a Drive with many files does at its first listing."""
        self.train(drive, training_corpus, max_steps=50)
        drive.staging = tmp_path / "another machine"
        drive.set_faults(silent="all")
        threading.Timer(0.25, drive.set_faults).start()
        capsys.readouterr()
        self.train(drive, training_corpus)
        printed = capsys.readouterr().out
        assert "Waiting for" in printed and ", step 50." in printed
        assert same_bits(newest(drive.checkpoints), uninterrupted)


def quick_manager(folder, staging):
    """A manager that waits only shortly for the last copy."""
    from golpo.checkpoint_manager import CheckpointManager

    manager = CheckpointManager(folder, staging, copy_timeout=0.3)
    manager.remote.PROBE_TIMEOUT = 0.3
    return manager


def test_forms_and_loading_are_answered_in_limited_time(drive):
    """H: the notebooks' first cells read Drive, too."""
    drive.checkpoints.mkdir(parents=True)
    drive.set_faults(silent="all")
    started = time.monotonic()
    plan_training(checkpoint_dir=drive.checkpoints / "of a fresh training", fresh=True)
    with pytest.raises(OSError, match="has not answered"):
        has_checkpoint(drive.checkpoints)
    with pytest.raises(CheckpointError, match="cannot be read"):
        newest_checkpoint(drive.checkpoints)
    with pytest.raises(OSError, match="has not answered"):
        load_storyteller(drive.checkpoints)
    assert time.monotonic() - started < 10
