"""Beam search: the likeliest continuation that can be found by keeping several at once.

It finds texts of higher probability than taking the best token each time. It is good where one
answer is right, as in translation, and bad for stories, where the likeliest text repeats itself
(Holtzman et al., 2020; docs/beam_search.md has figures). It samples nothing: the same opening
gives the same text.

Candidates, scores and the end of the search are those of Hugging Face's beam search with its
default `early_stopping=False`; tests hold them equal.

Shapes in comments: b rows, n beams, k candidates, t tokens so far, v vocabulary.
"""

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from golpo_utils import Decoder, GPTModel, check_number, generate


@dataclass(frozen=True)
class BeamSettings:
    """Beam search instead of sampling: good where one answer is right, bad for stories."""

    # How many continuations to keep at once; above 1, the sampling settings do not count.
    num_beams: int = 1
    # With beams: above 0, longer stories are preferred, the more the higher it is.
    length_penalty: float = 1.0
    # With beams: no run of so many tokens occurs twice; 0: any may.
    no_repeat_ngram_size: int = 0

    def check_use(self) -> None:
        """Raise ValueError if beam search is set up but not asked for."""
        for item in fields(self)[1:]:
            value = getattr(self, item.name)
            if self.num_beams == 1 and value != item.default:
                raise ValueError(f"{item.name} is {value}, which needs num_beams of 2 or more")


class Beams(NamedTuple):
    """What beam search found for each row, the best first."""

    ids: Tensor  # (b, n, t + new), as `generate` returns them: without eos_id, filled up
    scores: Tensor  # (b, n): log-probability of what is new / its length ** length_penalty


class FinishedBeams:
    """The best finished sequences of one row."""

    def __init__(self, num_beams: int, length_penalty: float):
        self.num_beams = num_beams
        self.length_penalty = length_penalty
        self.best: list[tuple[float, list[int]]] = []  # (score, ids), the best first
        self.complete = False  # nothing better can be expected

    def score(self, total: float, new: int) -> float:
        """The score of `new` tokens with the log-probability `total`."""
        return total / new**self.length_penalty

    def add(self, total: float, ids: list[int], new: int) -> None:
        self.best.append((self.score(total, new), ids))
        self.best.sort(key=lambda found: -found[0])
        del self.best[self.num_beams :]

    def check_complete(self, best_total: float, new: int) -> None:
        """Note whether the best unfinished beam, at its present length, can still improve these.

        One beam is greedy: it is complete when it ends.
        """
        if len(self.best) == self.num_beams:
            hopeless = self.score(best_total, new) <= self.best[-1][0]
            self.complete = self.complete or hopeless or self.num_beams == 1


class BeamDecoder:
    """Next-token logits of beams that change places, from one key/value cache for all.

    When the context window is full, its newest half is encoded again, as in `generate`.
    """

    def __init__(self, model: GPTModel, context_size: int):
        self.model = model
        self.capacity = min(context_size, model.config["context_length"])
        self.decoder = model.make_decoder(self.capacity)
        self.length = 0  # of the window; 0 before the first call

    def next_logits(self, ids: Tensor, parents: Tensor) -> Tensor:
        """Logits (b n, v) after ids (b n, t). parents: (b n,), the row that each one continues."""
        if 0 < self.length < self.capacity:
            self.length += 1
            reorder_caches(self.decoder, parents)
            return self.decoder.advance(ids[:, -1:])
        is_full = self.length == self.capacity or ids.shape[1] > self.capacity
        window = ids[:, -max(1, self.capacity // 2) :] if is_full else ids
        self.length = window.shape[1]
        return self.decoder.prefill(window)


def reorder_caches(decoder: Decoder, parents: Tensor) -> None:
    """Let row i of the decoder's caches continue row parents[i], in the same memory."""
    if torch.equal(parents, torch.arange(len(parents), device=parents.device)):
        return
    for cache in decoder.caches:
        cache.keys[:, :, : cache.length] = cache.keys[parents, :, : cache.length]
        cache.values[:, :, : cache.length] = cache.values[parents, :, : cache.length]


def beam_search(
    model: GPTModel,
    idx: Tensor,
    max_new_tokens: int,
    context_size: int,
    *,
    num_beams: int,
    length_penalty: float = 1.0,
    eos_id: int | None = None,
    eos_sequence: list | None = None,
    no_repeat_ngram_size: int = 0,
) -> Beams:
    """The likeliest continuations of each row of ids, idx (b, t), that `num_beams` beams find.

    A beam ends before eos_id, or after the ids of eos_sequence (or of one of several sequences).
    length_penalty: above 0, longer texts are preferred, the more the higher it is.
    no_repeat_ngram_size: no run of so many tokens occurs twice in a row's text (0: any may).
    Raises ValueError for invalid ids and settings.
    """
    settings = {
        "num_beams": num_beams,
        "length_penalty": length_penalty,
        "eos_id": eos_id,
        "eos_sequence": eos_sequence,
        "no_repeat_ngram_size": no_repeat_ngram_size,
    }
    steps = beam_search_steps(model, idx, max_new_tokens, context_size, **settings)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def beam_search_steps(
    model: GPTModel,
    idx: Tensor,
    max_new_tokens: int,
    context_size: int,
    *,
    num_beams: int,
    length_penalty: float,
    eos_id: int | None,
    eos_sequence: list | None,
    no_repeat_ngram_size: int,
) -> Generator[None, None, Beams]:
    """`beam_search` that yields after each token but the last, and returns what it found."""
    generate(model, idx, 0, context_size, eos_id=eos_id, eos_sequence=eos_sequence)  # checks them
    check_number("max_new_tokens", max_new_tokens, 1, whole=True)
    check_number("num_beams", num_beams, 1, model.usable_ids // 2, whole=True)
    check_number("length_penalty", length_penalty, -10, 10)
    check_number("no_repeat_ngram_size", no_repeat_ngram_size, 0, whole=True)
    rows = [FinishedBeams(num_beams, length_penalty) for _ in range(len(idx))]
    stops = list_stops(eos_id, eos_sequence)
    was_training = model.training
    model.eval()
    try:
        decoder = BeamDecoder(model, context_size)
        yield from search(decoder, idx.long(), max_new_tokens, rows, stops, no_repeat_ngram_size)
    finally:
        model.train(was_training)
    return join_rows(rows, eos_id, idx.device)


@torch.inference_mode()
def search(
    decoder: BeamDecoder,
    idx: Tensor,
    max_new_tokens: int,
    rows: list[FinishedBeams],
    stops: list[list[int]],
    no_repeat_ngram_size: int,
) -> Iterator[None]:
    """Continue idx (b, t) until all rows are complete, and collect in them what has ended.

    It yields after each token but the last.
    """
    num_beams = rows[0].num_beams
    usable = decoder.model.usable_ids
    ids = idx.repeat_interleave(num_beams, dim=0)  # (b n, t)
    parents = torch.arange(len(ids), device=idx.device)
    totals = torch.full((len(idx), num_beams), -math.inf, device=idx.device)  # (b, n)
    totals[:, 0] = 0.0  # all beams are equal at first, so only one of them is continued
    for new in range(1, max_new_tokens + 1):
        scores = log_probabilities(decoder.next_logits(ids, parents)[:, :usable])
        forbid_repetitions(scores, ids, no_repeat_ngram_size)
        found = best_continuations(scores, totals, max(2, 1 + len(stops)))
        ended = find_ended(ids, *found[1:], stops) | (new == max_new_tokens)
        collect_ended(rows, ids, found, ended, new)
        ids, totals, parents = continue_beams(ids, found, ended, num_beams)
        for row, best in zip(rows, totals[:, 0].tolist(), strict=True):
            row.check_complete(best, new)
        if all(row.complete for row in rows):
            break
        yield


def list_stops(eos_id: int | None, eos_sequence: list | None) -> list[list[int]]:
    """The ids of all sequences that end a text."""
    stops = [] if eos_id is None else [[eos_id]]
    if eos_sequence:
        is_one = not isinstance(eos_sequence[0], list | tuple)
        stops += [list(eos_sequence)] if is_one else [list(one) for one in eos_sequence]
    return stops


def log_probabilities(logits: Tensor) -> Tensor:
    """Logits (b n, v) → log-probabilities. Raises ValueError if a row has no finite maximum."""
    logits = logits.float()
    if not logits.amax(dim=-1).isfinite().all():
        raise ValueError("the model's logits are NaN; its weights are damaged, load others")
    return torch.log_softmax(logits, dim=-1)


def forbid_repetitions(scores: Tensor, ids: Tensor, size: int) -> None:
    """Set scores (b n, v) to -inf where a token would complete a run of `size` tokens again."""
    t = ids.shape[1]
    if not 0 < size <= t:
        return
    runs = ids.unfold(1, size, 1)  # (b n, t - size + 1, size)
    newest = ids[:, t - size + 1 :]  # (b n, size - 1)
    begins_so = (runs[:, :, :-1] == newest[:, None]).all(dim=-1)  # (b n, t - size + 1)
    beam, place = begins_so.nonzero(as_tuple=True)
    scores[beam, runs[beam, place, -1]] = -math.inf


def best_continuations(
    scores: Tensor, totals: Tensor, for_each: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The k = n · for_each best continuations of each row, the best first, all (b, k).

    Their log-probability, the index of the beam that they continue (0..b n), and the new token.
    """
    b, n = totals.shape
    v = scores.shape[1]
    all_totals = (scores.view(b, n, v) + totals[:, :, None]).flatten(1)  # (b, n v)
    best, places = all_totals.topk(min(n * for_each, n * v))
    first_beam = torch.arange(b, device=places.device)[:, None] * n
    return best, first_beam + places // v, places % v


def find_ended(ids: Tensor, parents: Tensor, tokens: Tensor, stops: list[list[int]]) -> Tensor:
    """Which candidates end in one of the sequences, (b, k): ids[parents], then tokens."""
    ended = torch.zeros_like(tokens, dtype=torch.bool)
    for stop in stops:
        if len(stop) - 1 <= ids.shape[1]:
            before = ids[:, ids.shape[1] - len(stop) + 1 :]  # (b n, len(stop) - 1)
            fits = (before == torch.tensor(stop[:-1], device=ids.device)).all(dim=-1)  # (b n,)
            ended |= (tokens == stop[-1]) & fits[parents]
    return ended


def collect_ended(
    rows: list[FinishedBeams], ids: Tensor, found: tuple, ended: Tensor, new: int
) -> None:
    """Add the candidates that have ended to their row, if they are among its n best."""
    totals, parents, tokens = (one.tolist() for one in found)
    for row, finished in enumerate(rows):
        places = [k for k in range(finished.num_beams) if ended[row, k]]
        for k in [] if finished.complete else places:
            text = [*ids[parents[row][k]].tolist(), tokens[row][k]]
            finished.add(totals[row][k], text, new)


def continue_beams(
    ids: Tensor, found: tuple, ended: Tensor, num_beams: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The n best candidates that have not ended → ids (b n, t + 1), totals (b, n), parents."""
    totals, parents, tokens = found
    totals, chosen = totals.masked_fill(ended, -math.inf).topk(num_beams)  # (b, n)
    parents = parents.gather(1, chosen).flatten()  # (b n,)
    tokens = tokens.gather(1, chosen).view(-1, 1)  # (b n, 1)
    return torch.cat([ids[parents], tokens], dim=1), totals, parents


def join_rows(rows: list[FinishedBeams], eos_id: int | None, device: torch.device) -> Beams:
    """Finished sequences as tensors; as in `generate`, without eos_id, filled up at the end."""
    scores = [[score for score, _ in row.best] for row in rows]
    texts = [[ids[:-1] if ids[-1] == eos_id else ids for _, ids in row.best] for row in rows]
    longest = max(len(text) for row in texts for text in row)
    for text in (text for row in texts for text in row):
        text += [text[-1] if eos_id is None else eos_id] * (longest - len(text))
    return Beams(torch.tensor(texts, device=device), torch.tensor(scores, device=device))
