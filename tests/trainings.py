"""Small trainings, and how to compare, watch and interrupt them.

conftest.py exports the fixtures.
"""

import contextlib
import json
import multiprocessing
import os
import random
import time
from pathlib import Path

import pytest
import torch

from golpo import trainer
from golpo.checkpoint import SLOTS, newest_checkpoint, read_checkpoint
from golpo.manifest import manifest_path
from golpo.runs import train_or_resume

CONFIG = {
    "vocab_size": 300,
    "context_length": 16,
    "emb_dim": 16,
    "n_heads": 2,
    "n_layers": 1,
    "drop_rate": 0.2,
    "qkv_bias": False,
}
PLAIN_CONFIG = {**CONFIG, "drop_rate": 0.0}
LEARNED = ("model_state_dict", "optimizer_state_dict")
HISTORY = (
    "train_losses",
    "val_losses",
    "track_tokens_seen",
    "tokens_seen",
    "global_step",
    "epoch",
)


def training_settings(corpus: Path, folder: Path, **more) -> dict:
    """Keywords of a training of 3 epochs and about 100 steps, which takes a second."""
    settings = {
        "data_path": corpus,
        "checkpoint_dir": folder,
        "config": CONFIG,
        "num_epochs": 3,
        "batch_size": 4,
        "learning_rate": 3e-3,
        "evals_per_epoch": 3,
        "sample_tokens": 0,
        "device": "cpu",
        "precision": "fp32",
        "compile": "off",
        "max_steps": None,
    }
    return settings | more


def train(corpus: Path, folder: Path, **more):
    """Resume from the newest checkpoint in `folder`, or start."""
    return train_or_resume(**training_settings(corpus, folder, **more))


def newest(folder: Path, **more) -> dict | None:
    """The newest checkpoint in `folder`, read."""
    found = newest_checkpoint(folder, **more)
    return None if found is None else read_checkpoint(found[0])


def bits(value):
    """Nested dicts, lists, tensors and numbers as something that == compares to the last bit."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [bits(item) for item in value]
    return value.hex() if isinstance(value, float) else value


def same_bits(one: dict, other: dict, keys=(*LEARNED, *HISTORY)) -> bool:
    """Whether two checkpoints are equal in `keys`, to the last bit."""
    return all(bits(one[key]) == bits(other[key]) for key in keys)


def whole_and_resumed(corpus: Path, folder: Path, **more) -> tuple[dict, dict]:
    """The last checkpoints of a training and of the same one, interrupted twice in mid epoch."""
    train(corpus, folder / "whole", **more)
    for steps in (5, 29, None):
        train(corpus, folder / "parts", **more, max_steps=steps)
    return newest(folder / "whole"), newest(folder / "parts")


class StepProgress:
    """A progress display that only calls a function with the number of steps done."""

    def __init__(self, call):
        self.call = call

    def step_done(self, state):
        self.call(state.global_step)

    def start(self, *_):
        pass

    evaluated = sample = finish = start


@pytest.fixture(scope="module")
def corpus_file(tmp_path_factory):
    """60 stories with titles."""
    path = tmp_path_factory.mktemp("corpus") / "stories.txt"
    story = (
        "<|start|>\n<|title|>Day {0}</|title|>\n\n"
        "On day {0} the fox went to the river and saw {1} fish.\n<|end|>\n"
    )
    path.write_text("".join(story.format(i, i * i) for i in range(60)), encoding="utf-8")
    return path


@pytest.fixture
def settings(corpus_file, tmp_path):
    """Keywords of a training without dropout, two epochs long."""
    return dict(
        config=PLAIN_CONFIG,
        data_path=corpus_file,
        checkpoint_dir=tmp_path / "checkpoints",
        num_epochs=2,
        batch_size=8,
        precision="fp32",
        device="cpu",
        sample_tokens=0,
        seed=7,
    )


def weights_after(folder: Path) -> dict:
    """The weights of the newest checkpoint in `folder`."""
    return newest(folder)["model_state_dict"]


@pytest.fixture
def after_step(monkeypatch):
    """A function that arranges for a call with the number of steps done, after each step."""
    return lambda call: monkeypatch.setattr(trainer, "pick_progress", lambda: StepProgress(call))


@pytest.fixture
def silent(after_step):
    """Trainings show no progress."""
    after_step(lambda step: None)


@pytest.fixture(scope="module")
def one_thread():
    """Tiny models are slower on several threads, and so is the machine that tests share."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def training_corpus(tmp_path_factory):
    """22 stories of 30 words."""
    words = "the old moon showed a fox how rivers sleep under snow".split()
    stories = [" ".join(random.Random(i).choices(words, k=30)) for i in range(22)]
    path = tmp_path_factory.mktemp("corpus") / "stories.txt"
    path.write_text("".join(f"<|start|>\n{story}.\n<|end|>\n" for story in stories))
    return path


@pytest.fixture(scope="session")
def uninterrupted(training_corpus, tmp_path_factory):
    """The last checkpoint of a training of 3 epochs that nothing disturbed."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the tests that compare with it: sums depend on the number
    try:
        with contextlib.redirect_stdout(None):
            train(training_corpus, folder)
    finally:
        torch.set_num_threads(threads)
    return newest(folder)


@pytest.fixture(scope="session")
def epoch(uninterrupted):
    """How many steps an epoch of these trainings has."""
    steps = uninterrupted["global_step"] // 3
    assert 30 < steps < 40 and uninterrupted["global_step"] == 3 * steps
    return steps


class WatchedTraining:
    """A training in a process of its own, which can be killed; numbers say what it is doing."""

    processes = multiprocessing.get_context("fork")  # starts at once: everything is imported

    def __init__(self):
        self.step = self.processes.Value("i", 0, lock=False)  # the last step done
        self.saved = self.processes.Value("i", 0, lock=False)  # the last step saved where it stays
        self.writing = self.processes.Value("i", 0, lock=False)  # whether it is being saved
        self.seconds = self.processes.Value("d", 0, lock=False)  # how long that takes
        self.process = None

    def start(self, corpus: Path, folder: Path, staging: Path | None = None) -> None:
        self.step.value = 0
        self.process = self.processes.Process(target=self.run, args=(corpus, folder, staging))
        self.process.start()

    def run(self, corpus: Path, folder: Path, staging: Path | None) -> None:
        from golpo import checkpoint_manager, remote_copy

        torch.set_num_threads(1)
        note = StepProgress(lambda step: setattr(self.step, "value", step))
        trainer.pick_progress = lambda: note
        if staging:
            remote_copy.copy_checkpoint = self.watch(remote_copy.copy_checkpoint)
        else:
            checkpoint_manager.save_checkpoint = self.watch(checkpoint_manager.save_checkpoint)
        more = {"staging_dir": staging, "num_epochs": 1000, "save_every_minutes": 0.001}
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            train(corpus, folder, **more)

    def watch(self, save):
        def watched(*arguments, **more):
            self.writing.value = 1
            started = time.monotonic()
            path = save(*arguments, **more) or arguments[1]
            self.seconds.value = time.monotonic() - started
            self.writing.value = 0
            if path.name in SLOTS:
                self.saved.value = json.loads(manifest_path(path).read_text())["step"]

        return watched

    def wait_for(self, condition) -> None:
        limit = time.monotonic() + 60
        while not condition():
            assert self.process.is_alive() and time.monotonic() < limit, "the training is stuck"
            time.sleep(0.0005)

    def kill(self) -> bool:
        """kill -9; return whether a checkpoint was being written."""
        self.process.kill()
        self.process.join()
        was_writing = bool(self.writing.value)
        self.writing.value = 0
        return was_writing


FIGURES = []  # (what was tried, what was measured)


@pytest.fixture
def record_figure():
    """Adds a row to the table at the end of the tests: what was tried, what was measured."""
    return lambda tried, measured: FIGURES.append((tried, measured))


def pytest_terminal_summary(terminalreporter):
    for tried, measured in FIGURES:
        terminalreporter.write_line(f"| {tried} | {measured} |")


@pytest.fixture
def chance(request):
    """Random numbers; a slow test prints its seed, and GOLPO_SEED repeats it."""
    slow = request.node.get_closest_marker("slow") is not None
    seed = int(os.environ.get("GOLPO_SEED", time.time_ns() % 10**6 if slow else 1))
    print(f"GOLPO_SEED={seed}")
    return random.Random(seed)
