"""The training loop: signals, gradients that are not finite, too little memory, side products."""

import contextlib
import itertools
import math
import os
import signal
import subprocess
import sys

import pytest
import torch
from trainings import CONFIG, LEARNED, StepProgress, newest, same_bits, train

from golpo import loss, runs, trainer
from golpo.checkpoint import SLOTS, read_checkpoint
from golpo.errors import TrainingError
from golpo.metrics import read_records
from golpo.paths import PROJECT_DIR
from golpo.plots import show_training
from golpo.trainer import MAX_SKIPPED_STEPS

pytestmark = pytest.mark.usefixtures("one_thread", "silent")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_after_the_current_step(
    training_corpus, tmp_path, after_step, uninterrupted, number
):
    after_step(lambda step: os.kill(os.getpid(), number) if step == 20 else None)
    exits = contextlib.nullcontext()
    if number == signal.SIGTERM:
        exits = pytest.raises(SystemExit, match="143")
    with exits:
        train(training_corpus, tmp_path)
    assert newest(tmp_path)["global_step"] in (20, 21)
    after_step(lambda step: None)
    train(training_corpus, tmp_path)
    assert same_bits(newest(tmp_path), uninterrupted)


def spoil_gradients(monkeypatch, factor, when):
    """Multiply the gradient by `factor` in the steps for which `when` holds; return those steps."""
    original = runs.make_optimizer
    steps = itertools.count()
    spoiled = []

    def spoil(gradient):
        step = next(steps)
        if not when(step):
            return gradient
        spoiled.append(step)
        return gradient * factor

    def make_optimizer(model, settings):
        model.final_norm.scale.register_hook(spoil)
        return original(model, settings)

    monkeypatch.setattr(runs, "make_optimizer", make_optimizer)
    return spoiled


def all_finite(checkpoint):
    states = checkpoint["optimizer_state_dict"]["state"].values()
    tensors = [
        *checkpoint["model_state_dict"].values(),
        *(value for state in states for value in state.values()),
        torch.tensor(checkpoint["train_losses"]),
    ]
    return all(torch.isfinite(tensor).all() for tensor in tensors)


@pytest.mark.parametrize("factor", [math.inf, math.nan])
def test_single_steps_with_infinite_gradients_are_skipped(
    training_corpus, tmp_path, monkeypatch, factor
):
    spoiled = spoil_gradients(monkeypatch, factor, lambda step: step % 5 == 2)
    train(training_corpus, tmp_path)
    checkpoint = newest(tmp_path)
    assert len(spoiled) > 15
    assert all_finite(checkpoint)
    assert checkpoint["val_losses"][-1] < checkpoint["val_losses"][0]


@pytest.mark.parametrize("factor", [math.inf, math.nan])
def test_too_many_infinite_gradients_end_the_training_with_advice(
    training_corpus, tmp_path, monkeypatch, factor
):
    spoil_gradients(monkeypatch, factor, lambda step: step >= 40)
    with pytest.raises(TrainingError, match="gave no finite gradient.*learning_rate.*precision"):
        train(training_corpus, tmp_path, save_every_minutes=0)
    for name in SLOTS:
        checkpoint = read_checkpoint(tmp_path / name)
        assert all_finite(checkpoint)
        assert checkpoint["global_step"] < 40 + 2 * MAX_SKIPPED_STEPS


def test_out_of_memory_halves_the_micro_batch_and_changes_nothing_else(
    training_corpus, tmp_path, monkeypatch, capsys
):
    more = {"config": {**CONFIG, "drop_rate": 0.0}, "batch_size": 8}
    train(training_corpus, tmp_path / "roomy", **more)
    forward = loss.NextTokenLoss.forward
    sizes = []

    def cramped(self, token_ids, targets):
        if self.model.training:
            if token_ids.shape[0] > 2:
                raise torch.OutOfMemoryError("no room for that")
            sizes.append(token_ids.shape[0])
        return forward(self, token_ids, targets)

    capsys.readouterr()
    monkeypatch.setattr(loss.NextTokenLoss, "forward", cramped)
    train(training_corpus, tmp_path / "cramped", **more)
    output = capsys.readouterr().out
    lines = [line for line in output.splitlines() if "Out of memory" in line]
    assert set(sizes) == {1, 2}
    assert len(lines) == 2 and "2 windows" in lines[1]  # 8 → 4 → 2
    roomy = newest(tmp_path / "roomy")
    cramped = newest(tmp_path / "cramped")
    for name, weights in roomy["model_state_dict"].items():
        torch.testing.assert_close(cramped["model_state_dict"][name], weights, rtol=0, atol=1e-5)
    torch.testing.assert_close(cramped["val_losses"], roomy["val_losses"], rtol=0, atol=1e-6)


def test_out_of_memory_in_the_optimizer_halves_the_micro_batch(
    training_corpus, tmp_path, monkeypatch, capsys
):
    """A: AdamW allocates its averages in the first step, which may not fit beside the batch."""
    more = {"config": {**CONFIG, "drop_rate": 0.0}, "optimizer": "adamw"}
    train(training_corpus, tmp_path / "roomy", **more)
    update = torch.optim.AdamW.step
    refused = []

    def cramped(self, closure=None):
        if len(refused) < 2:
            refused.append(self)
            raise torch.OutOfMemoryError("no room for that")
        return update(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", cramped)
    capsys.readouterr()
    train(training_corpus, tmp_path / "cramped", **more)
    lines = [line for line in capsys.readouterr().out.splitlines() if "Out of memory" in line]
    assert len(refused) == 2
    assert len(lines) == 2 and "1 windows" in lines[1]  # 4 → 2 → 1
    roomy, cramped = newest(tmp_path / "roomy"), newest(tmp_path / "cramped")
    assert roomy["global_step"] == cramped["global_step"]
    for name, weights in roomy["model_state_dict"].items():
        torch.testing.assert_close(cramped["model_state_dict"][name], weights, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate"
                     " memory: you tried to allocate 9 bytes."),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
    ],
    ids=["GPU", "Python", "Linux", "Windows", "cuBLAS"],
)  # fmt: skip
def test_out_of_memory_in_an_evaluation_halves_its_batch(
    training_corpus, tmp_path, monkeypatch, capsys, uninterrupted, error
):
    """A: an evaluation has 32 windows at once, whatever the micro batch is."""
    evaluate = trainer.evaluate_loss
    sizes = []

    def cramped(*arguments, batch_size, **more):
        sizes.append(batch_size)
        if batch_size > 8:
            raise error
        return evaluate(*arguments, batch_size=batch_size, **more)

    monkeypatch.setattr(trainer, "evaluate_loss", cramped)
    train(training_corpus, tmp_path)
    assert sizes[:4] == [32, 16, 8, 8]
    assert capsys.readouterr().out.count("Out of memory") == 2
    checkpoint = newest(tmp_path)
    assert same_bits(checkpoint, uninterrupted, ["model_state_dict", "global_step"])
    losses = checkpoint["val_losses"], uninterrupted["val_losses"]
    torch.testing.assert_close(*losses, rtol=0, atol=1e-5)


def test_an_evaluation_for_which_no_memory_is_left_is_skipped(
    training_corpus, tmp_path, monkeypatch, capsys, uninterrupted
):
    """A: training needs no evaluation."""
    calls = []

    def refuse(*_, **__):
        calls.append(1)
        raise MemoryError

    monkeypatch.setattr(trainer, "evaluate_loss", refuse)
    train_losses, val_losses, tokens_seen = train(training_corpus, tmp_path)
    assert len(calls) > 9 and train_losses == val_losses == tokens_seen == []
    assert "Warning: out of memory in an evaluation" in capsys.readouterr().out
    assert same_bits(newest(tmp_path), uninterrupted, LEARNED)


class Faulty(StepProgress):
    """A view one of whose methods raises."""

    def __init__(self, method):
        super().__init__(lambda step: None)
        self.calls = 0
        setattr(self, method, self.fail)

    def fail(self, *_):
        self.calls += 1
        raise RuntimeError("the page is gone\nfor good")


@pytest.mark.parametrize("method", ["start", "step_done", "evaluated", "sample", "finish"])
def test_a_view_that_fails_ends_no_training(
    training_corpus, tmp_path, monkeypatch, capsys, uninterrupted, method
):
    """A: it is warned of once, on one line, and not at each of a hundred steps."""
    view = Faulty(method)
    monkeypatch.setattr(trainer, "pick_progress", lambda: view)
    train(training_corpus, tmp_path, sample_tokens=2)
    assert view.calls == {"step_done": 111, "evaluated": 9, "sample": 3}.get(method, 1)
    warnings = [line for line in capsys.readouterr().out.splitlines() if "Warning" in line]
    assert len(warnings) == 1
    assert "RuntimeError: the page is gone for good" in warnings[0]
    assert same_bits(newest(tmp_path), uninterrupted)


class Witness(StepProgress):
    """A view that notes which step is saved whenever it is called at an epoch's end."""

    def __init__(self, folder, epoch):
        super().__init__(self.note)
        self.folder = folder
        self.epoch = epoch
        self.notes = []

    def note(self, step):
        if step % self.epoch == 0:
            self.notes.append(("step_done", step, newest(self.folder)["global_step"]))

    def evaluated(self, record, state):
        if state.global_step % self.epoch == 0:
            saved = newest(self.folder)["global_step"]
            self.notes.append(("evaluated", state.global_step, saved))

    def sample(self, text):
        self.notes.append(("sample", None, newest(self.folder)["global_step"]))


def test_the_epochs_checkpoint_is_on_disk_before_anything_is_shown(
    training_corpus, tmp_path, monkeypatch, epoch
):
    """A: whatever showing does, resuming does not meet it again at the same place."""
    view = Witness(tmp_path, epoch)
    monkeypatch.setattr(trainer, "pick_progress", lambda: view)
    train(training_corpus, tmp_path, sample_tokens=2)
    expected = [
        (call, None if call == "sample" else end, end)
        for end in (epoch, 2 * epoch, 3 * epoch)
        for call in ("evaluated", "step_done", "sample")
    ]
    assert view.notes == expected


@pytest.mark.parametrize("failing", ["torch.save", "state_dict", "best"])
def test_too_little_memory_to_save_ends_no_training(
    training_corpus, tmp_path, monkeypatch, capsys, uninterrupted, failing
):
    """A: the saves of the first two epochs fail; the third is good."""
    calls = []

    def fail_twice(function):
        def call(*arguments, **more):
            calls.append(1)
            if len(calls) <= 2:
                raise MemoryError
            return function(*arguments, **more)

        return call

    if failing == "torch.save":
        monkeypatch.setattr(torch, "save", fail_twice(torch.save))
    elif failing == "state_dict":
        patched = fail_twice(trainer.describe_state)
        monkeypatch.setattr(trainer, "describe_state", patched)
    else:
        monkeypatch.setattr(torch.Tensor, "clone", fail_twice(torch.Tensor.clone))
    train(training_corpus, tmp_path)
    assert len(calls) > 2
    assert "Warning" in capsys.readouterr().out
    assert same_bits(newest(tmp_path), uninterrupted)


def test_a_metrics_file_that_refuses_ends_no_training(
    training_corpus, tmp_path, monkeypatch, capsys, uninterrupted
):
    """A: a record is a side product."""
    calls = []

    def refuse(path, record):
        calls.append(record["step"])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer, "append_record", refuse)
    train(training_corpus, tmp_path)
    assert len(calls) == 9
    assert capsys.readouterr().out.count("writing the metrics file failed (OSError") == 1
    assert same_bits(newest(tmp_path), uninterrupted)


@pytest.mark.parametrize("error", [KeyError(50300), UnicodeError("no"), MemoryError()])
def test_a_sample_that_fails_ends_no_training(
    training_corpus, tmp_path, monkeypatch, capsys, uninterrupted, error
):
    """A: and the model trains on afterwards, with dropout."""
    calls = []

    def stream(model, *_, **__):
        calls.append(model.training)
        model.eval()
        try:
            yield "A fox"
            raise error
        finally:
            model.train(calls[-1])

    monkeypatch.setattr(trainer, "stream_story", stream)
    train(training_corpus, tmp_path, sample_tokens=9)
    assert calls == [True, True, True]
    assert capsys.readouterr().out.count("showing a sample failed") == 1
    assert same_bits(newest(tmp_path), uninterrupted)


SAMPLE = """
import sys
sys.path.insert(0, "tests")
import torch
from golpo import trainer
from trainings import train
torch.set_num_threads(1)
trainer.stream_story = lambda *_, **__: iter(["<|title|>A 🦊</|title|>", "\\n\\n“গল্প” \\x1b[2J"])
train(sys.argv[1], sys.argv[2], sample_tokens=9, num_epochs=1)
print("the end")
"""


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_sample_on_a_console_without_its_letters_has_question_marks(
    training_corpus, tmp_path, encoding
):
    """A: the sample after the first epoch ended trainings on Windows."""
    command = [sys.executable, "-c", SAMPLE, str(training_corpus), str(tmp_path)]
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run(
        command, cwd=PROJECT_DIR, env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")[-2000:]
    printed = done.stdout.decode(encoding)
    quotes = ("“", "”") if encoding == "cp1252" else ("?", "?")
    assert "A ?" in printed and "????".join(quotes) in printed and "\x1b" not in printed
    assert printed.rstrip().endswith("the end")
    assert newest(tmp_path)["global_step"] > 30


def test_a_loss_whose_perplexity_overflows_is_recorded_and_shown(
    training_corpus, tmp_path, monkeypatch, capsys
):
    """A: math.exp overflows above 709."""
    calls = []

    def loud(*_, **__):
        calls.append(1)
        return 750.0, 1

    monkeypatch.setattr(trainer, "evaluate_loss", loud)
    _, val_losses, _ = train(training_corpus, tmp_path, num_epochs=1)
    assert val_losses == [750.0] * len(calls) and calls
    records = read_records(tmp_path / "metrics.jsonl")
    assert [record["val_perplexity"] for record in records] == [math.exp(700)] * len(calls)
    capsys.readouterr()
    show_training(tmp_path, "log")
    assert "validation loss 750.000 (perplexity 1.0e+304)" in capsys.readouterr().out
    assert (tmp_path / "loss-plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_padded_vocabulary_trains_samples_and_resumes(training_corpus, tmp_path, monkeypatch):
    """A: of 50304 ids, as nanoGPT has them, 43 belong to no token and are never sampled."""
    samples = []
    view = StepProgress(lambda step: None)
    view.sample = samples.append
    monkeypatch.setattr(trainer, "pick_progress", lambda: view)
    more = {"config": {**CONFIG, "vocab_size": 50304}, "sample_tokens": 60, "num_epochs": 2}
    train(training_corpus, tmp_path, **more, max_steps=25)
    train(training_corpus, tmp_path, **more)
    assert len(samples) == 2 and all(samples)
    assert newest(tmp_path)["model_state_dict"]["tok_emb.weight"].shape[0] == 50304


def test_a_vocabulary_smaller_than_every_tokenizer_is_refused(training_corpus, tmp_path):
    """A: one sentence that names the smallest, before anything is written."""
    with pytest.raises(ValueError, match="vocab_size is 200; .* of 261 or more"):
        train(training_corpus, tmp_path / "new", config={**CONFIG, "vocab_size": 200})
    assert not (tmp_path / "new").exists()
