"""What the tests of training windows share: corpora of ids, and the gradients of a step."""

from collections.abc import Iterator

import numpy as np
import torch

from golpo.step import TrainingStep

START = 1


def make_corpus(lengths) -> torch.Tensor:
    """Stories of so many tokens, each START and then numbers that are not."""
    return torch.tensor([token for n in lengths for token in (START, *range(2, n + 1))])


def small_corpora(longest: int, count: int = 200) -> Iterator[np.ndarray]:
    """The lengths of up to 29 stories, of fewer than `longest` tokens each, `count` times."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield rng.integers(2, longest, size=rng.integers(1, 30))


def gradients_of(step: TrainingStep) -> list[torch.Tensor]:
    """The gradients of a training step over the first five windows."""
    step.backward(0, np.arange(5))
    return [weight.grad.clone() for weight in step.model.parameters()]
