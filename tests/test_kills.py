"""kill -9 at each file operation of a training, from an empty folder on."""

import contextlib
import multiprocessing
import os
import shutil
import signal

import pytest
import torch
from kill_points import KillPoint
from trainings import newest, same_bits, train

from golpo.metrics import METRICS_FILE, read_records
from golpo.remote_copy import RemoteCopy

pytestmark = pytest.mark.usefixtures("one_thread", "silent")
MORE = {"save_every_minutes": 0, "max_steps": 16, "evals_per_epoch": 12}


def train_until_killed(corpus, folder, staging, number):
    """Train and save each step; kill -9 at file operation `number` in the folder that stays."""
    torch.set_num_threads(1)
    start_copy = RemoteCopy.start_copy

    def copy_at_once(self, slot):
        """Otherwise the copies depend on how long each takes."""
        start_copy(self, slot)
        self.copy_idle.wait()

    RemoteCopy.start_copy = copy_at_once
    KillPoint(folder, number).install()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        train(corpus, folder, staging_dir=staging, **MORE)


@pytest.fixture(scope="module")
def never_killed(training_corpus, one_thread, tmp_path_factory):
    folder = tmp_path_factory.mktemp("never killed")
    train(training_corpus, folder, **MORE)
    return newest(folder), read_records(folder / METRICS_FILE)


def losses(records):
    """The steps and losses of metrics records, without the times."""
    return [(record["step"], record["train_loss"], record["val_loss"]) for record in records]


def check_kill(corpus, folder, staging, number, never_killed):
    """Kill at operation `number`, resume without the staging folder, and compare.

    Returns False if there were fewer operations.
    """
    context = multiprocessing.get_context("fork")
    arguments = (corpus, folder, staging, number)
    process = context.Process(target=train_until_killed, args=arguments)
    process.start()
    process.join()
    if staging is not None:
        shutil.rmtree(staging, ignore_errors=True)
    if process.exitcode == 0:
        return False
    assert process.exitcode == -signal.SIGKILL
    train(corpus, folder, staging_dir=staging, **MORE)
    checkpoint, records = never_killed
    assert same_bits(newest(folder), checkpoint)
    assert losses(read_records(folder / METRICS_FILE)) == losses(records)
    return True


@pytest.mark.parametrize("where", ["a local folder", "a remote folder"])
def test_a_training_killed_early_resumes_by_itself(
    training_corpus, tmp_path, capsys, never_killed, where
):
    """The numbers lie in the first save, or on a remote folder in the first upload."""
    assert len(never_killed[1]) >= 2
    for number in (1, 2, 5, 8, 10, 12, 13, 15, 16, 18, 20, 22, 25, 30):
        staging = tmp_path / f"staging {number}" if where == "a remote folder" else None
        folder = tmp_path / f"run {number}"
        assert check_kill(training_corpus, folder, staging, number, never_killed), number


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("where", ["a local folder", "a remote folder"])
def test_a_training_killed_at_each_of_160_file_operations_resumes_by_itself(
    training_corpus, tmp_path, never_killed, where, record_figure
):
    reached = 0
    for number in range(1, 161):
        staging = tmp_path / "staging" if where == "a remote folder" else None
        folder = tmp_path / "run"
        reached += check_kill(training_corpus, folder, staging, number, never_killed)
        shutil.rmtree(folder)
        shutil.rmtree(tmp_path / "staging", ignore_errors=True)
    assert reached == 160
    record_figure(
        f"kill -9 at each of 160 file operations in {where}, from an empty one on",
        f"{reached} of 160 resume by themselves; 0 bits differ from never killed, all metrics",
    )
