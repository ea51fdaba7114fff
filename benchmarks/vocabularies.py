"""A tokenizer learned from the corpus beside GPT-2's first merges, at several sizes.

    python benchmarks/vocabularies.py --corpus simple_stories.txt [--sizes 2048 4096] [--steps 300]

For each size: bytes per token on the validation stories (one in ten, not seen by the tokenizer
either), and bits per byte of a small model (4 layers x 128, context 128, 16 windows a step) after
equally many steps. Both models of a size have the same shape, so a step costs the same.
"""

import argparse
import math
import random

import numpy as np
import tiktoken
import torch
from machine import print_machine
from torch import Tensor

from golpo.corpus import read_stories
from golpo.loss import NextTokenLoss, evaluate_loss
from golpo.optim import learning_rate_at, make_optimizer
from golpo.settings import Settings
from golpo.tokenizer import train_tokenizer
from golpo_utils import GPTModel, encode, get_tokenizer, start_id_of

SHAPE = {"context_length": 128, "emb_dim": 128, "n_heads": 4, "n_layers": 4, "drop_rate": 0.0}
VALIDATION_BYTES = 300_000  # of stories that the small models are evaluated on


def split(path: str, seed: int) -> tuple[list[str], list[str]]:
    """The corpus's stories for training and for validation."""
    stories = list(read_stories(path))
    order = np.random.default_rng(seed).permutation(len(stories))
    held_out = max(1, len(stories) // 10)
    return [stories[i] for i in order[held_out:]], [stories[i] for i in order[:held_out]]


def to_ids(stories: list[str], tokenizer: tiktoken.Encoding) -> Tensor:
    return torch.tensor([number for story in stories for number in encode(story, tokenizer)])


def train(ids: Tensor, vocab_size: int, steps: int, seed: int) -> GPTModel:
    """A small model after `steps` steps on random windows of ids (n,)."""
    settings = Settings(config={**SHAPE, "vocab_size": vocab_size, "qkv_bias": False})
    torch.manual_seed(seed)
    model = GPTModel(settings.config)
    optimizer = make_optimizer(model, settings)
    base_rates = [group["lr"] for group in optimizer.param_groups]
    loss_of = NextTokenLoss(model)
    length = SHAPE["context_length"]
    for step in range(steps):
        share = learning_rate_at(step, steps, settings) / settings.learning_rate
        for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
            group["lr"] = rate * share
        starts = torch.randint(len(ids) - length, (16,)).tolist()
        windows = torch.stack([ids[start : start + length + 1] for start in starts])
        loss_of(windows[:, :-1], windows[:, 1:]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
    return model


def bits_per_byte(model: GPTModel, stories: list[str], tokenizer: tiktoken.Encoding) -> float:
    """The loss on whole stories, in bits per byte of their text."""
    size = 0
    chosen = []
    for story in stories:
        if size < VALIDATION_BYTES:
            chosen.append(story)
            size += len(story.encode())
    ids = to_ids(chosen, tokenizer)
    loss, tokens = evaluate_loss(model, ids, SHAPE["context_length"], start_id_of(tokenizer))
    return loss * tokens / math.log(2) / size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2048, 4096, 8192, 16384])
    parser.add_argument("--steps", type=int, default=300, help="0: bytes per token alone")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    print_machine()
    print("| vocabulary | size | bytes per token | bits per byte |\n| --- | --- | --- | --- |")
    training, validation = split(given.corpus, given.seed)
    size_of_text = sum(len(story.encode()) for story in validation)
    part = random.Random(given.seed).sample(training, min(len(training), 5000))
    for size in given.sizes:
        for name, tokenizer in (
            ("own", train_tokenizer(training, size)),
            ("GPT-2's first merges", get_tokenizer(size)),
        ):
            bytes_per_token = size_of_text / len(to_ids(validation, tokenizer))
            result = "-"
            if given.steps:
                model = train(to_ids(part, tokenizer), size, given.steps, given.seed)
                result = f"{bits_per_byte(model, validation, tokenizer):.3f}"
            print(f"| {name} | {size} | {bytes_per_token:.2f} | {result} |", flush=True)


if __name__ == "__main__":
    main()
