"""Many sessions on one Drive that fails in random ways, each ended by kill -9."""

import contextlib
import errno
import multiprocessing
import os
import shutil
import time

import pytest
import torch
from standin_drive import StandInDrive
from trainings import newest, same_bits, train

from golpo import files
from golpo.errors import CheckpointError
from golpo.metrics import METRICS_FILE, read_records

pytestmark = pytest.mark.usefixtures("one_thread", "silent")
FAULTS = (
    {},
    {"seconds": 0.02},
    {"hangs": True},
    {"gone": errno.ENOTCONN},
    {"gone": errno.EIO},
    {"unlistable": errno.EIO},
    {"room": 50_000},
    {"room": 300_000},
)
MORE = {"save_every_minutes": 0, "evals_per_epoch": 6}


class Sessions:
    """Trains on a Drive, each time on a new machine or again on the same one."""

    processes = multiprocessing.get_context("fork")

    def __init__(self, corpus, tmp_path, chance):
        self.corpus = corpus
        self.chance = chance
        self.drive = StandInDrive(tmp_path / "google", tmp_path / "drive")
        self.folder = self.drive.link / "Golpo" / "gpt_checkpoints"
        self.staging = tmp_path / "staging"
        files.MOUNT_POINTS.add(self.drive.mount_point)
        self.drive.mount(self.drive.mount_point)
        self.folder.mkdir(parents=True)

    def train(self, **more):
        train(self.corpus, self.folder, staging_dir=self.staging, **MORE, **more)

    def run(self):
        """In a process of its own: one session that meets the faults."""
        torch.set_num_threads(1)
        self.drive.install_faults()
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            with contextlib.suppress(CheckpointError):  # Drive may hold a training
                self.train()

    def session(self) -> None:
        """Train while Drive fails in two or three ways; kill; sometimes lose the machine."""
        chance = self.chance
        process = self.processes.Process(target=self.run)
        process.start()
        for _ in range(chance.randint(1, 3)):
            time.sleep(chance.uniform(0, 0.4))
            self.drive.set_faults(**chance.choice(FAULTS))
            if chance.random() < 0.2:
                self.drive.unmount()
        time.sleep(chance.uniform(0, 0.4))
        process.kill()
        process.join()
        self.drive.set_faults()
        if not self.drive.is_mounted():
            assert self.drive.is_clean()
            self.drive.mount(self.drive.mount_point)
        if chance.random() < 0.6:
            shutil.rmtree(self.staging, ignore_errors=True)


def check_sessions(corpus, tmp_path, chance, count):
    """Return the step that was on Drive after each session."""
    train(corpus, tmp_path / "never disturbed", **MORE)
    expected = newest(tmp_path / "never disturbed")
    sessions = Sessions(corpus, tmp_path, chance)
    steps = []
    for _ in range(count):
        sessions.session()
        checkpoint = newest(sessions.folder, staging=sessions.staging)
        on_drive = newest(sessions.folder)
        steps.append(on_drive["global_step"] if on_drive else 0)
        assert checkpoint is None or checkpoint["global_step"] >= steps[-1]
        assert steps == sorted(steps), "Drive lost a checkpoint"
    sessions.train()
    assert same_bits(newest(sessions.folder), expected)
    records = read_records(sessions.folder / METRICS_FILE)
    assert [record["val_loss"] for record in records] == expected["val_losses"]
    assert steps[-1] > 0
    return steps


def test_sessions_on_a_failing_drive_end_in_the_same_bits(training_corpus, tmp_path, chance):
    check_sessions(training_corpus, tmp_path, chance, 4)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(5))
def test_many_sessions_on_a_failing_drive_end_in_the_same_bits(
    training_corpus, tmp_path, chance, record_figure, number
):
    steps = check_sessions(training_corpus, tmp_path, chance, 12)
    record_figure(
        f"12 sessions, each ended by kill -9, on a Drive with random faults ({number + 1} of 5)",
        f"steps on Drive {steps}: none lost; 0 bits differ from never disturbed",
    )
