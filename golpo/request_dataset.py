"""Training windows whose stories are preceded by requests, other ones in each epoch."""

import numpy as np
import tiktoken
import torch
from torch import Tensor

from golpo.dataset import GPTDataset
from golpo.loss import IGNORED
from golpo.request_facts import CorpusFacts, choose_lines
from golpo.requests import split_request
from golpo_utils import TITLE, encode


class RequestDataset(GPTDataset):
    """The windows of a `GPTDataset` that starts anew at each story, and requests before stories.

    A request is a function of seed, epoch and story alone. It takes no more than the room that
    the story's last window has beyond the story's end: a request that is longer loses lines. So
    the windows stay as many as without requests, and each story is still covered. Tokens of a
    request are no targets: requests are given, never predicted.
    """

    def __init__(
        self,
        ids: Tensor,
        tokenizer: tiktoken.Encoding,
        max_length: int,
        start_id: int | None,
        seed: int,
    ):
        if start_id is None:
            raise ValueError(
                "requests is True, but the windows do not start at stories; train with "
                "align_to_stories=True and a vocabulary that has the markers, or requests=False"
            )
        super().__init__(ids, tokenizer, max_length, max_length, start_id=start_id)
        self.tokenizer = tokenizer
        self.seed = seed
        self.room = -np.diff(self.bounds) % max_length  # (stories,), in tokens
        # The windows at the end of the corpus cannot move: the text ends there.
        last_starts = self.bounds[1:] + self.room - max_length  # (stories,)
        self.room[last_starts >= self.starts[-1]] = 0
        self.facts = CorpusFacts(map(self.text, range(len(self.room))))

    def text(self, story: int) -> str:
        begin, end = self.bounds[story : story + 2]
        return self.tokenizer.decode(self.ids[begin:end].tolist())

    def batch(self, windows, shift: float = 0.0, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Several windows at once: (b,) indices → inputs and targets, LongTensors (b, max_length).

        shift: as for `GPTDataset.batch`. Targets that do not count are `IGNORED`.
        """
        rows, sizes = zip(*(self.row(window, shift, epoch) for window in windows), strict=True)
        ids = torch.stack(rows)  # (b, max_length + 1)
        targets = ids[:, 1:].clone()  # (b, max_length)
        for target, size in zip(targets, sizes, strict=True):
            target[:size] = IGNORED
        return ids[:, :-1], targets

    def row(self, window: int, shift: float, epoch: int) -> tuple[Tensor, int]:
        """The tokens of a window, (max_length + 1,), and how many of them are a request's."""
        start = int(self.starts[window])
        story = int(np.searchsorted(self.bounds, start, side="right")) - 1
        request = self.request_ids(story, epoch)
        size = self.max_length + 1
        if start == self.bounds[story]:
            text = self.ids[start : start + size - len(request)].long()
            return torch.cat([text[:1], torch.tensor(request).long(), text[1:]]), len(request)
        # The story's tokens are later by those of its request.
        if self.max_shift[window] and (start - self.bounds[story]) % self.max_length == 0:
            start -= len(request) + int(shift * (self.max_shift[window] - len(request)))
        return self.ids[start : start + size].long(), 0

    def request_ids(self, story: int, epoch: int) -> list[int]:
        """The tokens that follow a story's <|start|> in an epoch; [] for none."""
        rng = np.random.default_rng([self.seed, epoch, 2, story])
        if self.room[story] == 0:
            return []
        text = self.text(story)
        if split_request(text)[0] is not None:
            return []  # what people have written is kept as it is
        lines = choose_lines(self.facts.request_of(text), rng)
        last = "" if TITLE in text else "\n"
        while lines:
            ids = encode("".join(f"\n{line}" for line in lines) + last, self.tokenizer)
            if len(ids) <= self.room[story]:
                return ids
            lines.pop()
        return []
