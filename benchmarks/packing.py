"""Windows that run on, windows that end with their story, and whole stories packed into windows.

    python benchmarks/packing.py [--corpus FILE] [--stories N] [--contexts 272 448] [--tokens N]

For each context length and each kind of windows: the same small model (2 layers x 128, a
vocabulary of 2,048 learned from the corpus) with the schedule of the preset `laptop`, until it has
predicted `--tokens` tokens. One story in twenty is for validation. Seconds are those of the processor, on
one thread, so that other programs matter little; those of the evaluation are left out. With
`--seconds` a training takes that long instead: the steps are calculated from the first ones. With
`--tokens 0` nothing is trained: the windows alone are counted.
"""

import argparse
import time

import numpy as np
import tiktoken
import torch
from machine import print_machine
from torch import Tensor

from golpo.corpus import read_stories
from golpo.loss import evaluate_loss
from golpo.optim import make_optimizer
from golpo.settings import PRESETS, Settings
from golpo.step import TrainingStep
from golpo.stories import DEFAULT_SAMPLING
from golpo.tokenizer import train_tokenizer
from golpo_utils import GPTModel, encode, start_id_of, stream_story

SHAPE = {"vocab_size": 2048, "emb_dim": 128, "n_heads": 4, "n_layers": 2, "drop_rate": 0.0}
SCHEDULE = ("batch_size", "learning_rate", "final_learning_rate")
TIMED_STEPS = 20
WINDOWS = {
    "at each story": {},
    "trimmed": {"trim_windows": True},
    "packed": {"pack_stories": True},
}


def split(stories: list[str], seed: int) -> tuple[list[str], list[str]]:
    """The stories for training and for validation."""
    order = np.random.default_rng(seed).permutation(len(stories))
    held_out = len(stories) // 20
    return [stories[i] for i in order[held_out:]], [stories[i] for i in order[:held_out]]


def make_step(ids: Tensor, start_id: int, context: int, windows: str, seed: int) -> TrainingStep:
    """A new model, ready to be trained on ids (n,)."""
    preset = {name: PRESETS["laptop"][name] for name in SCHEDULE}
    config = {**SHAPE, "context_length": context, "qkv_bias": False}
    given = {**preset, **WINDOWS[windows], "seed": seed}
    settings = Settings(config=config, device="cpu", **given)
    torch.manual_seed(seed)
    model = GPTModel(config)
    return TrainingStep(model, make_optimizer(model, settings), ids, start_id, settings)


def seconds_of(step: TrainingStep) -> float:
    """The processor's seconds of a step, from the first ones; the model is spoilt by them."""
    step.total_steps = 10 * TIMED_STEPS
    step.run(0)
    started = time.process_time()
    for number in range(1, TIMED_STEPS + 1):
        step.run(number)
    return (time.process_time() - started) / TIMED_STEPS


def count_endings(model: GPTModel, tokenizer: tiktoken.Encoding, count: int) -> int:
    """How many of `count` stories end within the default length, 400 tokens."""
    return sum(story_ends(model, tokenizer, seed) for seed in range(count))


def story_ends(model: GPTModel, tokenizer: tiktoken.Encoding, seed: int) -> bool:
    pieces = stream_story(model, tokenizer, seed=seed, **DEFAULT_SAMPLING)
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            return end.value == "end"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", default="data/training_data.txt")
    parser.add_argument("--stories", type=int, help="the first ones of the corpus (all)")
    parser.add_argument("--contexts", type=int, nargs="+", default=[272, 448])
    parser.add_argument("--windows", nargs="+", choices=list(WINDOWS), default=list(WINDOWS))
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, help="of each training, instead of --tokens")
    parser.add_argument("--generated", type=int, default=50)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    given = parser.parse_args()
    torch.set_num_threads(1)
    print_machine()
    stories = list(read_stories(given.corpus))[: given.stories]
    print(
        "| context | windows | seed | steps a pass | tokens a pass | steps | tokens predicted | "
        "tokens/s | seconds | validation loss | ended |\n" + "| --- " * 11 + "|"
    )
    for seed in given.seeds:
        training, validation = split(stories, seed)
        tokenizer = train_tokenizer(training, SHAPE["vocab_size"])
        start_id = start_id_of(tokenizer)
        ids, val_ids = (
            torch.tensor([number for story in part for number in encode(story, tokenizer)])
            for part in (training, validation)
        )
        for context in given.contexts:
            for windows in given.windows:
                row = measure(ids, val_ids, tokenizer, start_id, context, windows, seed, given)
                print("| " + " | ".join(row) + " |", flush=True)


def measure(ids, val_ids, tokenizer, start_id, context, windows, seed, given) -> list[str]:
    """Train a model; return a row of the table."""
    step = make_step(ids, start_id, context, windows, seed)
    # A window that begins at a story predicts the beginning of the next ones too.
    a_pass = step.dataset.predicted(np.arange(len(step.dataset)))
    row = [
        str(context),
        windows,
        str(seed),
        str(step.steps_per_epoch),
        f"{a_pass:,}",
    ]
    if given.seconds:
        steps = round(given.seconds / seconds_of(step))
        step = make_step(ids, start_id, context, windows, seed)
    else:
        steps = round(given.tokens / a_pass * step.steps_per_epoch)
    if steps == 0:
        return [*row, *["-"] * 6]
    step.total_steps = steps
    predicted = 0
    started = time.process_time()
    for number in range(steps):
        predicted += step.run(number)[2]
    spent = time.process_time() - started
    loss, _ = evaluate_loss(step.model, val_ids, context, start_id)
    ended = count_endings(step.model, tokenizer, given.generated)
    return [
        *row,
        str(steps),
        f"{predicted:,}",
        f"{predicted / spent:,.0f}",
        f"{spent:.0f}",
        f"{loss:.3f}",
        f"{ended}/{given.generated}",
    ]


if __name__ == "__main__":
    main()
