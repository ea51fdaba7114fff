"""A resumed training equals one that was never interrupted, whatever interrupted it."""

import json
import multiprocessing
import os
import shutil
import socket
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from trainings import (
    CONFIG,
    LEARNED,
    WatchedTraining,
    bits,
    newest,
    same_bits,
    train,
)

from golpo import checkpoint as checkpoint_module
from golpo.checkpoint import newest_checkpoint, read_checkpoint
from golpo.dataset import GPTDataset
from golpo.errors import CheckpointError
from golpo.inference import load_storyteller
from golpo.runs import resume_training_from_checkpoint

FIXTURES = Path(__file__).parent / "fixtures"
pytestmark = pytest.mark.usefixtures("one_thread", "silent")


def check_interruptions(corpus, tmp_path, uninterrupted, cuts):
    assert len(uninterrupted["val_losses"]) >= 9
    for stops in cuts:
        folder = tmp_path / "-".join(map(str, stops))
        for stop in [*stops, None]:
            train(corpus, folder, max_steps=stop)
        assert same_bits(newest(folder), uninterrupted), f"stopped at {stops}"


def test_a_resumed_training_equals_an_uninterrupted_one_to_the_last_bit(
    training_corpus, tmp_path, uninterrupted, epoch
):
    cuts = [[7], [epoch], [epoch + 7, 2 * epoch + 5]]
    check_interruptions(training_corpus, tmp_path, uninterrupted, cuts)


@pytest.mark.slow
def test_a_training_resumed_at_random_steps_equals_an_uninterrupted_one(
    training_corpus, tmp_path, uninterrupted, epoch, chance, record_figure
):
    edges = [[1], [epoch - 1], [epoch + 1], [2 * epoch], [3 * epoch - 1], [10, 11, 12]]
    steps = range(1, 3 * epoch)
    cuts = edges + [sorted(chance.sample(steps, chance.randint(1, 4))) for _ in range(20)]
    check_interruptions(training_corpus, tmp_path, uninterrupted, cuts)
    record_figure(
        f"{len(cuts)} trainings with dropout, interrupted and resumed at 1 to 4 steps",
        "0 bits differ from an uninterrupted one in weights, optimizer and losses",
    )


def test_the_number_of_evaluations_does_not_change_the_training(
    training_corpus, tmp_path, uninterrupted
):
    train(training_corpus, tmp_path, evals_per_epoch=9, max_steps=50)
    train(training_corpus, tmp_path, evals_per_epoch=1, sample_tokens=5)
    resumed = newest(tmp_path)
    assert same_bits(resumed, uninterrupted, LEARNED)
    one, other = (
        dict(zip(run["track_tokens_seen"], run["val_losses"], strict=True))
        for run in (resumed, uninterrupted)
    )
    shared = one.keys() & other.keys()
    assert len(shared) > 2
    assert all(one[tokens] == other[tokens] for tokens in shared)


def test_each_window_is_trained_on_once_an_epoch_over_five_interruptions(
    training_corpus, tmp_path, monkeypatch, epoch
):
    seen = []
    original = GPTDataset.batch

    def batch(self, windows, *more):
        seen.extend(int(window) for window in windows)
        return original(self, windows, *more)

    monkeypatch.setattr(GPTDataset, "batch", batch)
    for stop in (5, 20, epoch, 50, 2 * epoch + 20, None):
        train(training_corpus, tmp_path, max_steps=stop)
    windows = max(seen) + 1
    epochs = [Counter(seen[i : i + windows]) for i in range(0, len(seen), windows)]
    assert -(-windows // 4) == epoch
    assert epochs == [Counter(range(windows))] * 3


@pytest.mark.parametrize(
    "name, value",
    [
        ("config", {**CONFIG, "drop_rate": 0.1}),
        ("batch_size", 5),
        ("seed", 5),
        ("data_path", None),
        ("optimizer", "adamw"),
    ],
)
def test_a_changed_setting_is_refused_by_name_or_accepted(training_corpus, tmp_path, name, value):
    if name == "data_path":
        value = tmp_path / "other.txt"
        value.write_text(training_corpus.read_text().replace("moon", "sun"))
    folder = tmp_path / "run"
    train(training_corpus, folder, max_steps=3)
    with pytest.raises(CheckpointError, match={"data_path": "corpus"}.get(name, name)):
        train(training_corpus, folder, **{name: value})
    train(training_corpus, folder, **{name: value}, max_steps=5, accept_changes=True)
    assert newest(folder)["global_step"] == 5


def train_as_rank(rank, port, corpus, folder, more):
    """One of two processes, with the environment that torchrun gives it."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    train(corpus, folder, **more)


def train_with_two_processes(corpus, folder, **more):
    """Train with two processes that exchange their gradients; return the newest checkpoint."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    arguments = [(rank, port, corpus, folder, more) for rank in (0, 1)]
    processes = [context.Process(target=train_as_rank, args=given) for given in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
    assert [process.exitcode for process in processes] == [0, 0]
    return newest(folder)


def test_training_losses_are_the_same_when_two_processes_are_interrupted(training_corpus, tmp_path):
    """The first evaluation is at step 13: the mean before it spans the interruption at step 7."""
    uninterrupted = train_with_two_processes(training_corpus, tmp_path / "one", max_steps=20)
    stopped = train_with_two_processes(training_corpus, tmp_path / "two", max_steps=7)
    assert stopped["global_step"] == 7 and stopped["train_losses"] == []
    resumed = train_with_two_processes(training_corpus, tmp_path / "two", max_steps=20)
    assert len(resumed["train_losses"]) == 1
    assert same_bits(resumed, uninterrupted)
    assert resumed["state"]["sums"] == uninterrupted["state"]["sums"]


# --- killed --------------------------------------------------------------------------------


def check_kills(corpus, tmp_path, chance, kills, staging):
    """kill -9 at random moments, every second one during a save; resume each time."""
    training = WatchedTraining()
    during = 0
    lost = []
    for i in range(kills):
        before = training.saved.value
        training.start(corpus, tmp_path / "run", staging)
        saves = chance.randrange(1, 4)  # a few more saves, and then at any moment
        training.wait_for(
            lambda before=before, saves=saves: (
                training.saved.value > before
                and training.step.value > 0
                and training.step.value >= before + saves
            )
        )
        if i % 2:
            training.wait_for(lambda: training.writing.value)
        pause = 0.7 * training.seconds.value if i % 2 else 0.1
        time.sleep(chance.uniform(0, pause))
        during += training.kill()
        if staging:
            shutil.rmtree(staging)  # Colab's disk ends with the session
        found = newest_checkpoint(tmp_path / "run")[1]["step"]
        assert training.saved.value <= found <= training.step.value + 1
        lost.append(training.step.value - found)
    last = training.saved.value + 20
    more = {"num_epochs": 1000, "max_steps": last}
    train(corpus, tmp_path / "run", **more)
    train(corpus, tmp_path / "never killed", **more)
    assert same_bits(newest(tmp_path / "run"), newest(tmp_path / "never killed"))
    assert during >= 0.3 * kills
    return during, max(lost), last


@pytest.mark.parametrize("where", ["a local folder", "a remote folder"])
def test_kill_9_at_any_moment_leaves_a_good_checkpoint(training_corpus, tmp_path, chance, where):
    staging = tmp_path / "staging" if where == "a remote folder" else None
    check_kills(training_corpus, tmp_path, chance, 6, staging)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["a local folder", "a remote folder"])
def test_kill_9_a_hundred_times_leaves_a_good_checkpoint(
    training_corpus, tmp_path, chance, where, record_figure
):
    staging = tmp_path / "staging" if where == "a remote folder" else None
    during, lost, last = check_kills(training_corpus, tmp_path, chance, 100, staging)
    record_figure(
        f"kill -9 at 100 random moments, {during} of them while a save to {where} was under way",
        f"100 of 100 resume from a good checkpoint; no finished save lost (at most {lost} steps "
        f"since then); after {last} steps 0 bits differ from never killed",
    )


# --- earlier versions ----------------------------------------------------------------------


def test_a_version_1_checkpoint_with_adamw_loads_and_resumes(tmp_path, capsys):
    """tests/fixtures/checkpoint_v1.* is from the first release of the format.

    It was made by start_fresh_training on checkpoint_v1.txt with the config in it, batch_size=4,
    num_epochs=4, seed=123, paused by max_steps=6.
    """
    for ending in (".pt", ".json", ".txt"):
        shutil.copy(FIXTURES / f"checkpoint_v1{ending}", tmp_path)
    checkpoint = read_checkpoint(tmp_path / "checkpoint_v1.pt")
    manifest = json.loads((tmp_path / "checkpoint_v1.json").read_text())
    assert checkpoint["format_version"] == manifest["format_version"] == 1
    assert checkpoint["global_step"] == manifest["step"] == 6
    model, _, about = load_storyteller(tmp_path / "checkpoint_v1.pt")
    raw = torch.load(FIXTURES / "checkpoint_v1.pt", weights_only=True)
    assert bits(model.state_dict()) == bits(raw["model_state_dict"])
    assert about["val_losses"] == raw["val_losses"]

    resume_training_from_checkpoint(
        tmp_path, "checkpoint_v1.pt", data_path=tmp_path / "checkpoint_v1.txt", max_steps=None
    )
    resumed = newest(tmp_path)
    printed = capsys.readouterr().out
    assert resumed["global_step"] > 6
    assert "Resuming from checkpoint_v1.pt, step 6" in printed
    assert "another optimizer" not in printed
    # As it was then: AdamW, which continues to count its steps, and windows that do not shift.
    states = resumed["optimizer_state_dict"]["state"].values()
    assert {state["step"].item() for state in states} == {resumed["global_step"]}
    settings = resumed["settings"]
    assert (settings["optimizer"], settings["shift_windows"]) == ("adamw", False)


def test_a_version_1_checkpoint_with_muon_resumes_as_the_code_that_wrote_it(tmp_path):
    """tests/fixtures/checkpoint_v1_muon.* is from the last version before the package.

    The settings, the manifest and the optimizer state in it have the names of that version.
    *.resumed.json has what that version computed when it resumed from this file.
    """
    for ending in (".pt", ".json", ".txt"):
        shutil.copy(FIXTURES / f"checkpoint_v1_muon{ending}", tmp_path)
    raw = torch.load(tmp_path / "checkpoint_v1_muon.pt", weights_only=True)
    resume_training_from_checkpoint(
        tmp_path,
        "checkpoint_v1_muon.pt",
        data_path=tmp_path / "checkpoint_v1_muon.txt",
        max_steps=None,
    )
    resumed = newest(tmp_path)
    expected = json.loads((FIXTURES / "checkpoint_v1_muon.resumed.json").read_text())
    assert raw["global_step"] == 13
    assert resumed["global_step"] == expected["global_step"] == 38
    assert resumed["tokens_seen"] == expected["tokens_seen"]
    for name in ("train_losses", "val_losses"):
        torch.testing.assert_close(resumed[name], expected[name], rtol=1e-5, atol=1e-5)
    for name, weights in expected["weights"].items():
        ours = resumed["model_state_dict"][name]
        torch.testing.assert_close(ours, torch.tensor(weights), rtol=1e-4, atol=1e-5)
    settings = resumed["settings"]
    assert settings["align_to_stories"] is True and settings["shift_windows"] is True
    assert not set(raw["settings"]) <= set(settings), "the fixture has no old names"


def test_a_checkpoint_of_a_later_format_asks_for_an_update(training_corpus, tmp_path, monkeypatch):
    train(training_corpus, tmp_path, max_steps=2)
    monkeypatch.setattr(checkpoint_module, "FORMAT_VERSION", 0)
    with pytest.raises(CheckpointError, match="format version 1, newer than 0; update"):
        newest_checkpoint(tmp_path)
