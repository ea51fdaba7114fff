"""What the model thinks of words that stand in a story: their probability, others, surprise."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import tiktoken
import torch
from torch import Tensor

from golpo.long_stories import Sight
from golpo.openings import Draft
from golpo.requests import Request
from golpo_utils import END, MARKERS, GPTModel, encode, story_opening


@dataclass(frozen=True)
class WordChoice:
    """One token of a story, text[start:end], and what else could stand there.

    Tokens that share a character count as one; `probability` is that of all of them.
    others: the likeliest other tokens, as pairs (text, probability), best first. The text of the
    story's end is <|end|>.
    """

    start: int
    end: int
    text: str
    probability: float
    others: list[tuple[str, float]]


def token_groups(text: str, tokenizer: tiktoken.Encoding) -> list[tuple[int, list[int]]]:
    """The ids of `text` as pairs (first character, ids); tokens that share a character are one.

    A character that the vocabulary does not have is two to four tokens.
    """
    ids = encode(text, tokenizer, markers=False)
    starts = tokenizer.decode_with_offsets(ids)[1] if ids else []
    groups: list[tuple[int, list[int]]] = []
    for token, start in zip(ids, starts, strict=True):
        first_byte = tokenizer.decode_single_token_bytes(token)[0]
        inside_a_character = 0x80 <= first_byte < 0xC0  # as UTF-8 has it
        if groups and inside_a_character:
            groups[-1][1].append(token)
        else:
            groups.append((start, [token]))
    return groups


def opening_before(draft: Draft, sight: Sight) -> list[int]:
    """The ids that the model sees before a word of the prose.

    `story_opening` leaves out the line break before a story that begins without a title.
    """
    opening = story_opening(draft.tokenizer, **draft.opening_of(sight))
    if sight.title or sight.prompt:
        return opening
    return opening + encode("\n", draft.tokenizer)


@torch.inference_mode()
def next_probabilities(model: GPTModel, opening: list[int]) -> Tensor:
    """The model's own probabilities (v,) of the token after the ids `opening`."""
    ids = torch.tensor([opening], device=model.tok_emb.weight.device)  # (1, t)
    logits = model.next_logits(ids)[0, : model.usable_ids]  # (v,)
    return torch.softmax(logits.float(), dim=-1)


def word_choice(
    model: GPTModel,
    tokenizer: tiktoken.Encoding,
    text: str,
    position: int,
    title: str = "",
    note: str = "",
    count: int = 10,
    request: Request | None = None,
) -> WordChoice:
    """The token at a character of `text`, its probability, and the `count` likeliest others.

    The model sees what it would see if it went on there. Raises ValueError outside of the text.
    """
    if not 0 <= position < len(text):
        raise ValueError(f"there is no word at position {position} of {len(text)} characters")
    groups = token_groups(text, tokenizer)
    start, tokens = max(group for group in groups if group[0] <= position)
    end = min((later for later, _ in groups if later > start), default=len(text))
    draft = Draft(model, tokenizer, text[:start], title, note, request or Request())
    opening = opening_before(draft, draft.sight())
    probabilities = next_probabilities(model, opening)
    others = []
    for token in probabilities.topk(min(4 * count, len(probabilities))).indices.tolist():
        word = token_text(token, tokenizer)
        if word is not None and token != tokens[0]:
            others.append((word, float(probabilities[token])))
    probability = float(probabilities[tokens[0]])
    for n in range(1, len(tokens)):
        window = (opening + tokens[:n])[-model.config["context_length"] :]
        probability *= float(next_probabilities(model, window)[tokens[n]])
    return WordChoice(start, end, text[start:end], probability, others[:count])


def token_text(token: int, tokenizer: tiktoken.Encoding) -> str | None:
    """A token as text; None for a marker within a story, and for a part of a character."""
    try:
        text = tokenizer.decode_single_token_bytes(token).decode()
    except (KeyError, UnicodeDecodeError):
        return None
    return text if text == END or text not in (*MARKERS, "<|endoftext|>") else None


class Stretch(NamedTuple):
    """Tokens of a text, [first, end), before which the model sees a head and the text from `seen`.

    head: ids.
    """

    head: list[int]
    seen: int
    first: int
    end: int


def stretches(draft: Draft, sizes: list[int]) -> Iterator[Stretch]:
    """What the model sees before each token of a draft's text, which has groups of such sizes."""
    model, title, note = draft.model, draft.title, draft.note
    capacity = model.config["context_length"]
    count = sum(sizes)
    first = 0
    empty = replace(draft, text="")
    if note.strip() and not title and count:  # the first word is written before the note is seen
        first = sizes[0]
        yield Stretch(opening_before(empty, empty.sight()), 0, 0, first)
    plain = replace(draft, request=Request())
    for one in (draft, plain):  # all fits: first with the request, then without it
        head = opening_before(one, Sight(title, note.strip(), "", 0))
        end = min(count, capacity - len(head) + 1)
        if end > first:
            yield Stretch(head, 0, first, end)
            first = end
    head = opening_before(plain, replace(plain.sight(), text=""))
    step = max(1, (capacity - len(head)) // 2)
    for start in range(first, count, step):
        yield Stretch(head, max(0, start - step), start, min(start + step, count))


@torch.inference_mode()
def token_bits(model: GPTModel, ids: list[int], stretch: Stretch) -> list[float]:
    """-log2 of the model's own probability of each token of a stretch of `ids`."""
    head, seen, first, end = stretch
    new = end - first
    window = torch.tensor([head + ids[seen:end]], device=model.tok_emb.weight.device)  # (1, t)
    logits = model(window[:, :-1])[0, -new:, : model.usable_ids]  # (new, v)
    losses = torch.nn.functional.cross_entropy(
        logits.float(), window[0, -new:], reduction="none"
    )  # (new,)
    return (losses / math.log(2)).tolist()


def surprise(
    model: GPTModel,
    tokenizer: tiktoken.Encoding,
    text: str,
    title: str = "",
    note: str = "",
    request: Request | None = None,
) -> list[tuple[int, float]]:
    """How surprising each token of `text` was → pairs (characters, bits), in order.

    Tokens that share a character count as one. Bits are -log2 of the model's own probability.
    As long as all fits into the context, the model sees what it would see if it went on there.
    Behind that it sees the title, the note, and half a window of the text before.
    """
    groups = token_groups(text, tokenizer)
    ids = [token for _, tokens in groups for token in tokens]
    draft = Draft(model, tokenizer, text, title, note, request or Request())
    bits: list[float] = []
    for stretch in stretches(draft, [len(tokens) for _, tokens in groups]):
        bits += token_bits(model, ids, stretch)
    ends = [*(start for start, _ in groups), len(text)][1:]
    left = iter(bits)
    return [
        (end - start, sum(itertools.islice(left, len(tokens))))
        for (start, tokens), end in zip(groups, ends, strict=True)
    ]
