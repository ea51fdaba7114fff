"""Training windows that end with their story, so that no step computes what another computes.

A window that begins at a short story reaches beyond its end, into stories that have windows of
their own. Here that part is cut off, and stories of similar length share a batch, so that little
of a batch is padding.

Shapes in comments: w windows, b of a batch, t tokens of the longest one in a batch.
"""

import functools

import numpy as np
from torch import Tensor

from golpo.dataset import GPTDataset, epoch_order
from golpo.loss import IGNORED

POOL = 32  # batches that are sorted by length together


class TrimmedDataset:
    """The windows of a `GPTDataset` that starts anew at each story, without what follows them.

    The last window of the corpus stays whole, because it may begin before its story.
    one_shape: keep the length of the windows, for compiled code; what is cut off is not predicted.
    """

    def __init__(self, dataset: GPTDataset, start_id: int, one_shape: bool = False):
        self.dataset = dataset
        self.start_id = start_id
        self.one_shape = one_shape
        story = np.searchsorted(dataset.bounds, dataset.starts, side="right")
        self.rest = np.take(dataset.bounds, story) - dataset.starts - 1  # of the story, (all,)
        self.rest[-1] = dataset.max_length
        # A story of a single token has nothing to predict.
        self.used = np.flatnonzero(self.rest)  # (w,)
        self.order = functools.lru_cache(maxsize=1)(self.arrange)

    def __len__(self) -> int:
        return len(self.used)

    def lengths(self, windows: np.ndarray, shift: float = 0.0) -> np.ndarray:
        """How many tokens of their story windows (b,) predict, (b,). shift: as for `batch`."""
        chosen = self.used[windows]
        earlier = (shift * self.dataset.max_shift[chosen]).astype(int)
        return np.minimum(self.rest[chosen] + earlier, self.dataset.max_length)

    def predicted(self, windows: np.ndarray, shift: float = 0.0) -> int:
        """How many tokens the windows predict together."""
        return int(self.lengths(windows, shift).sum())

    def arrange(self, seed: int, epoch: int, batch_size: int) -> np.ndarray:
        """The order in which an epoch visits the windows, (w,): similar lengths side by side.

        Windows in random order are sorted by length within pools of some batches, and then the
        batches are in random order (Khomenko et al., arXiv 1708.05604).
        """
        order = epoch_order(seed, epoch, len(self))
        rest = len(order) % batch_size
        full, last = np.split(order, [len(order) - rest])
        size = POOL * batch_size
        pools = [full[begin : begin + size] for begin in range(0, len(full), size)]
        pools = [pool[np.argsort(self.lengths(pool), kind="stable")] for pool in pools]
        batches = np.concatenate([full[:0], *pools]).reshape(-1, batch_size)
        np.random.default_rng([seed, epoch, 4]).shuffle(batches)
        return np.concatenate([batches.ravel(), last])

    def batch(self, windows, shift: float = 0.0, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Several windows at once: (b,) indices → inputs and targets, LongTensors (b, t).

        shift, epoch: as for `GPTDataset.batch`. Targets that do not count are `IGNORED`.
        """
        chosen = self.used[windows]
        inputs, targets = self.dataset.batch(chosen, shift, epoch)  # (b, max_length) each
        is_over = (targets == self.start_id).cumsum(dim=1) > 0  # (b, max_length)
        is_over[chosen == len(self.rest) - 1] = False
        targets = targets.masked_fill(is_over, IGNORED)
        if self.one_shape:
            return inputs, targets
        longest = int((~is_over).sum(dim=1).max())
        return inputs[:, :longest], targets[:, :longest]
