"""Training windows that hold whole stories, so that no token is trained on twice in a pass.

Best-fit decreasing: Johnson, Demers, Ullman, Garey and Graham, SIAM J. Comput. 3 (1974). Packing
whole documents: Ding et al., arXiv 2404.10830.

Shapes in comments: s stories that fit a window, p pieces of longer ones, w windows, b of a batch.
"""

import functools

import numpy as np
import torch
from torch import Tensor

from golpo.dataset import GPTDataset, find_story_bounds
from golpo.loss import IGNORED


def best_fit(sizes: np.ndarray, rooms: list[int], capacity: int) -> np.ndarray:
    """The bin of each item, (s,) int64: the fullest bin that has room for it.

    sizes: (s,), from the largest to the smallest, none above `capacity`. rooms: what is left in
    the bins that exist; new ones of `capacity` are added as they are needed.
    """
    with_room = [[] for _ in range(capacity + 1)]  # room → bins
    for number, room in enumerate(rooms):
        with_room[room].append(number)
    bins = len(rooms)
    chosen = np.empty(len(sizes), dtype=np.int64)
    last_size = None
    for item, size in enumerate(sizes.tolist()):
        if size != last_size:
            room = last_size = size
        while room < capacity and not with_room[room]:
            room += 1
        if not with_room[room]:  # not even an empty bin is left
            with_room[room].append(bins)
            bins += 1
        chosen[item] = with_room[room].pop()
        left = room - size
        with_room[left].append(chosen[item])
        # Below `room` no bin but this one can take an item of the same size.
        room = left if left >= size else room
    return chosen


class PackedDataset(GPTDataset):
    """Windows of whole stories by best fit; each token is predicted once in an epoch.

    A window predicts each of its tokens but the first. What is left of it is padding at its end,
    with targets that are `IGNORED`; attention looks back only, so nothing depends on padding. A
    story longer than a window continues at the beginning of the next ones, and whole stories may
    follow its end. There is nothing to shift.

    Which stories share a window is a function of seed and epoch alone: in each epoch, stories of
    the same length change places at random, and so does their order in a window. The number of
    windows stays the same. Raises ValueError without a start_id or without a token to predict.
    """

    def __init__(self, ids: Tensor, max_length: int, start_id: int | None, seed: int):
        if start_id is None:
            raise ValueError(
                "pack_stories is True, but the windows do not start at stories; train with "
                "align_to_stories=True and a vocabulary that has the markers, or "
                "pack_stories=False"
            )
        self.ids = ids
        self.max_length = max_length
        self.seed = seed
        bounds = find_story_bounds(ids, start_id)  # (stories + 1,)
        begins = bounds[:-1]
        sizes = np.diff(bounds)
        fits = sizes <= max_length + 1
        self.cut(begins[~fits], sizes[~fits])
        order = np.argsort(-sizes[fits], kind="stable")
        self.begins = begins[fits][order]  # (s,)
        self.sizes = sizes[fits][order]  # (s,), from the longest to the shortest
        rooms = max_length + 1 - self.piece_sizes
        self.bins = best_fit(self.sizes, rooms.tolist(), max_length + 1)  # (s,)
        # The number of tokens that each window predicts is the same in all epochs.
        places = np.concatenate([np.arange(len(rooms)), self.bins])
        tokens = np.bincount(places, np.concatenate([self.piece_sizes, self.sizes]))
        self.targets = tokens.astype(np.int64) - 1  # (w,)
        if not self.targets.any():
            raise ValueError(
                f"the text has {len(ids)} tokens and no story with a token to predict; bring more "
                f"text"
            )
        # A story of a single token alone in its window has nothing to predict.
        self.used = np.flatnonzero(self.targets)  # (used windows,)
        self.pieces_of = functools.lru_cache(maxsize=1)(self.arrange)

    def cut(self, begins: np.ndarray, sizes: np.ndarray) -> None:
        """Cut stories longer than a window into the pieces that windows begin with, (p,).

        A piece but a story's first starts with the token that the piece before predicts last.
        """
        counts = -(-(sizes - 1) // self.max_length)  # (long stories,)
        first = np.repeat(np.cumsum(counts) - counts, counts)
        offsets = (np.arange(len(first)) - first) * self.max_length
        self.piece_begins = np.repeat(begins, counts) + offsets
        rest = np.repeat(sizes, counts) - offsets
        self.piece_sizes = np.minimum(rest, self.max_length + 1)

    def __len__(self) -> int:
        return len(self.used)

    def arrange(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where the pieces and stories of an epoch begin, their sizes, and each window's first.

        The first two are (p + s,), window by window; the last is (w + 1,).
        """
        rng = np.random.default_rng([self.seed, epoch, 3])
        same_sizes = np.lexsort((rng.random(len(self.sizes)), -self.sizes))
        begins = np.concatenate([self.piece_begins, self.begins[same_sizes]])
        sizes = np.concatenate([self.piece_sizes, self.sizes])
        windows = np.concatenate([np.arange(len(self.piece_begins)), self.bins])
        # A piece of a longer story comes before all else.
        ranks = np.concatenate([np.full(len(self.piece_begins), -1.0), rng.random(len(self.bins))])
        order = np.lexsort((ranks, windows))
        first = np.searchsorted(windows[order], np.arange(len(self.targets) + 1))
        return begins[order], sizes[order], first

    def predicted(self, windows: np.ndarray, shift: float = 0.0) -> int:
        """How many tokens the windows predict together. shift: there is nothing to shift."""
        return int(self.targets[self.used[windows]].sum())

    def batch(self, windows, shift: float = 0.0, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Several windows at once: (b,) indices → inputs and targets, LongTensors (b, max_length).

        shift: there is nothing to shift. Targets that do not count are `IGNORED`.
        """
        begins, sizes, first = self.pieces_of(epoch)
        positions = np.full((len(windows), self.max_length + 1), -1)
        for row, window in zip(positions, self.used[windows], strict=True):
            inside = slice(first[window], first[window + 1])
            parts = zip(begins[inside], sizes[inside], strict=True)
            filled = np.concatenate([np.arange(begin, begin + size) for begin, size in parts])
            row[: len(filled)] = filled
        places = torch.from_numpy(positions).to(self.ids.device)  # (b, max_length + 1)
        ids = self.ids[places.clamp(min=0)].long()
        return ids[:, :-1], ids[:, 1:].masked_fill(places[:, 1:] < 0, IGNORED)
