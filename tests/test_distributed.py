"""Several processes, started by torchrun: the same result as one, and a clear end if one dies."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import tiny_settings

from golpo.checkpoint import newest_checkpoint
from golpo.runs import start_fresh_training

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture
def settings(tmp_path):
    changes = {"num_epochs": 3, "evals_per_epoch": 3}
    settings = tiny_settings(tmp_path, **changes)
    settings["config"] |= {"drop_rate": 0.0}
    return settings


def flags(settings: dict) -> list[str]:
    """Settings as the command line has them."""
    found = []
    for name, value in settings.items():
        if name == "config":
            for key, number in value.items():
                flag = f"--config.{key.replace('_', '-')}"
                found += [flag] if value[key] is True else [f"{flag}={number}"]
        else:
            found.append(f"--{name.replace('_', '-')}={value}")
    return found


def run(target: list[str], settings: dict, processes: int) -> subprocess.CompletedProcess:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), *target, "train"]
    return subprocess.run(
        [*command, *flags(settings)],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=PROJECT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def last_checkpoint(folder) -> dict:
    return torch.load(newest_checkpoint(folder)[0], weights_only=True)


def test_two_processes_compute_what_one_does_and_a_training_may_change_their_number(
    settings, tmp_path
):
    """20 steps: in one process, in two, and 10 in two and then 10 in one."""
    folders = {name: tmp_path / name for name in ("one", "two", "mixed")}
    start_fresh_training(**{**settings, "checkpoint_dir": folders["one"], "max_steps": 20})
    for name, processes, steps in (("two", 2, 20), ("mixed", 2, 10), ("mixed", 1, 20)):
        changed = {**settings, "checkpoint_dir": folders[name], "max_steps": steps}
        done = run(["-m", "golpo"], changed, processes)
        assert done.returncode == 0, done.stderr[-2000:]
    alone = last_checkpoint(folders["one"])
    for name in ("two", "mixed"):
        other = last_checkpoint(folders[name])
        assert other["global_step"] == alone["global_step"] == 20
        for key, tensor in other["model_state_dict"].items():
            expected = alone["model_state_dict"][key]
            torch.testing.assert_close(tensor, expected, atol=1e-5, rtol=1e-5, msg=key)
        assert other["train_losses"] == pytest.approx(alone["train_losses"], abs=1e-4)
        assert other["val_losses"] == pytest.approx(alone["val_losses"], abs=1e-4)


def test_the_training_loss_counts_no_process_twice_after_resuming(settings, tmp_path):
    """Two processes stop between two evaluations, and two resume: the losses stay the same."""
    settings["evals_per_epoch"] = 1
    whole = {**settings, "checkpoint_dir": tmp_path / "whole", "num_epochs": 1}
    start_fresh_training(**whole)
    parts = {**whole, "checkpoint_dir": tmp_path / "parts"}
    for steps in (7, None):
        changed = parts if steps is None else {**parts, "max_steps": steps}
        done = run(["-m", "golpo"], changed, 2)
        assert done.returncode == 0, done.stderr[-2000:]
    expected = last_checkpoint(tmp_path / "whole")["train_losses"]
    assert last_checkpoint(tmp_path / "parts")["train_losses"] == pytest.approx(expected, abs=1e-4)


def test_a_process_that_dies_ends_the_others_with_a_sentence(settings, tmp_path):
    """The second of two is killed; the first says so, although leaving takes it some time."""
    script = tmp_path / "die.py"
    script.write_text(
        """
import os
import signal
import sys
import time

from golpo.checkpoint_manager import CheckpointManager
from golpo.cli import main
from golpo.step import TrainingStep

step = TrainingStep.run
leave = CheckpointManager.__exit__


def leave_slowly(*about):
    time.sleep(2)
    leave(*about)


def die_at_step_5(self, number):
    if self.rank == 1 and number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, number)


CheckpointManager.__exit__ = leave_slowly
TrainingStep.run = die_at_step_5
main()
""",
        encoding="utf-8",
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(script), "train", *flags(settings)],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
    )
    assert done.returncode != 0
    assert "another process of this training died" in done.stderr, done.stderr[-3000:]
