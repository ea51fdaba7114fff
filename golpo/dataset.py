"""Training windows: where they begin, in which order an epoch visits them, and their batches."""

import functools

import numpy as np
import tiktoken
import torch
from torch import Tensor

from golpo_utils import check_kind, check_number, get_tokenizer, text_to_token_ids

PART_SIZE = 1 << 24  # ids that are searched at once


def find_story_bounds(ids: Tensor, start_id: int | None) -> np.ndarray:
    """Where stories begin in a row of tokens, and where the last one ends: 0, …, len(ids).

    Returns (stories + 1,) int64. The ids are read in parts, since they may be more than memory.
    """
    starts = [[0]]
    if start_id is not None:
        for begin in range(0, len(ids), PART_SIZE):
            part = ids[begin : begin + PART_SIZE].cpu().numpy()
            starts.append(np.flatnonzero(part == start_id) + begin)
    return np.unique(np.concatenate([*starts, [len(ids)]]).astype(np.int64))


def story_bounds(ids: Tensor, start_id: int | None) -> list[int]:
    """What `find_story_bounds` returns, as a list."""
    return find_story_bounds(ids, start_id).tolist()


class GPTDataset(torch.utils.data.Dataset):
    """Windows of `max_length` tokens of one text, one every `stride` tokens.

    Item i is (input_ids, target_ids), LongTensors (max_length,), the target one token later.

    txt: a text, or its ids, (t,). start_id: the id that stories start with; then the windows
    start anew at each story. Raises ValueError if the text is shorter than one window.
    """

    def __init__(
        self,
        txt: str | Tensor,
        tokenizer: tiktoken.Encoding | None,
        max_length: int,
        stride: int,
        *,
        start_id: int | None = None,
    ):
        check_number("max_length", max_length, 1, whole=True)
        check_number("stride", stride, 1, whole=True)
        check_kind("the text", txt, str | Tensor, "a str, or a tensor of ids")
        self.ids = txt if isinstance(txt, Tensor) else text_to_token_ids(txt, tokenizer)[0]
        self.max_length = max_length
        last = len(self.ids) - max_length - 1
        if last < 0:
            raise ValueError(
                f"the text has {len(self.ids)} tokens, fewer than one window of {max_length} and "
                f"one more; bring more text or lower context_length"
            )
        self.bounds = find_story_bounds(self.ids, start_id)  # (stories + 1,)
        windows = -(-np.diff(self.bounds) // stride)  # (stories,), how many each story has
        first = np.cumsum(windows) - windows  # (stories,), the number of its first window
        starts = np.repeat(self.bounds[:-1] - first * stride, windows)
        starts += stride * np.arange(len(starts))
        if len(self.bounds) == 2:
            self.starts = starts[starts <= last]  # (windows,)
        else:
            self.starts = np.unique(np.minimum(starts, last))  # (windows,)
        # The last window of a story reaches beyond the story's end. Each window of the story but
        # the first may start earlier by that many tokens, and the story is still covered. In the
        # last story no window reaches beyond, so none moves.
        story = np.searchsorted(self.bounds, self.starts, side="right")
        begins = np.take(self.bounds, story - 1)
        ends = np.take(self.bounds, story)
        can_move = (self.starts > begins) & (story < story[-1])
        self.max_shift = np.where(can_move, -(ends - begins) % stride, 0)  # (windows,)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        inputs, targets = self.batch([i])
        return inputs[0], targets[0]

    def predicted(self, windows: np.ndarray, shift: float = 0.0) -> int:
        """How many tokens the windows predict together. shift: as for `batch`."""
        return len(windows) * self.max_length

    def order(self, seed: int, epoch: int, batch_size: int) -> np.ndarray:
        """The order in which an epoch visits the windows, (windows,), a batch after the other."""
        return epoch_order(seed, epoch, len(self))

    def batch(self, windows, shift: float = 0.0, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Several windows at once: (b,) indices → inputs and targets, LongTensors (b, max_length).

        shift: 0..1, the share of its `max_shift` by which each window starts earlier. epoch: for
        datasets whose windows depend on it.
        """
        starts = self.starts[windows] - (shift * self.max_shift[windows]).astype(int)  # (b,)
        positions = starts[:, None] + np.arange(self.max_length + 1)  # (b, max_length + 1)
        ids = self.ids[torch.from_numpy(positions).to(self.ids.device)].long()
        return ids[:, :-1], ids[:, 1:]


@functools.lru_cache(maxsize=1)
def epoch_order(seed: int, epoch: int, windows: int) -> np.ndarray:
    """The order in which an epoch visits the windows, (windows,): it depends on nothing else."""
    return np.random.default_rng([seed, epoch]).permutation(windows)


def epoch_shift(seed: int, epoch: int) -> float:
    """The `shift` of an epoch's windows, 0..1, so that no two epochs split the stories alike."""
    if epoch == 0:
        return 0.0
    return np.random.default_rng([seed, epoch, 1]).random()


def create_dataloader(
    txt: str | Tensor,
    batch_size: int = 8,
    max_length: int = 512,
    stride: int = 512,
    shuffle: bool = True,
    drop_last: bool = True,
    num_workers: int = 0,
    *,
    tokenizer: tiktoken.Encoding | None = None,
) -> torch.utils.data.DataLoader:
    """A DataLoader of batches of (input_ids, target_ids), LongTensors (batch_size, max_length).

    The training does not use it: the order of its windows must be known to resume exactly.
    """
    dataset = GPTDataset(txt, tokenizer or get_tokenizer(), max_length, stride)
    return torch.utils.data.DataLoader(
        dataset, batch_size, shuffle, drop_last=drop_last, num_workers=num_workers
    )
