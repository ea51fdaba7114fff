"""What the model thinks of words that stand in a story: their probability, others, surprise."""

import math
from dataclasses import dataclass

import tiktoken
import torch
from torch import Tensor

from golpo.long_stories import sight_of
from golpo_utils import END, MARKERS, GPTModel, encode, story_opening


@dataclass(frozen=True)
class WordChoice:
    """One token of a story, text[start:end], and what else could stand there.

    others: the likeliest other tokens, as pairs (text, probability), best first. The text of the
    story's end is <|end|>.
    """

    start: int
    end: int
    text: str
    probability: float
    others: list[tuple[str, float]]


def token_starts(text: str, tokenizer: tiktoken.Encoding) -> tuple[list[int], list[int]]:
    """The ids of `text`, and the character at which each of them begins."""
    ids = encode(text, tokenizer, markers=False)
    return ids, tokenizer.decode_with_offsets(ids)[1] if ids else []


def opening_before(tokenizer: tiktoken.Encoding, prompt: str, title: str) -> list[int]:
    """The ids before a word of the prose; `story_opening` leaves the first line break out."""
    opening = story_opening(tokenizer, prompt, title)
    return opening if title or prompt else opening + encode("\n", tokenizer)


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
) -> WordChoice:
    """The token at a character of `text`, its probability, and the `count` likeliest others.

    The model sees what `sight_of` says of the text before. Raises ValueError outside of the text.
    """
    if not 0 <= position < len(text):
        raise ValueError(f"there is no word at position {position} of {len(text)} characters")
    ids, starts = token_starts(text, tokenizer)
    index = max(i for i, start in enumerate(starts) if start <= position)
    start = starts[index]
    end = next((later for later in starts[index + 1 :] if later > start), len(text))
    sight = sight_of(model, tokenizer, text[:start], title, note)
    opening = opening_before(tokenizer, sight.prompt, sight.title)
    probabilities = next_probabilities(model, opening)
    others = []
    for token in probabilities.topk(min(4 * count, len(probabilities))).indices.tolist():
        word = token_text(token, tokenizer)
        if word is not None and token != ids[index]:
            others.append((word, float(probabilities[token])))
    return WordChoice(start, end, text[start:end], float(probabilities[ids[index]]), others[:count])


def token_text(token: int, tokenizer: tiktoken.Encoding) -> str | None:
    """A token as text; None for a marker within a story, and for a part of a character."""
    try:
        text = tokenizer.decode_single_token_bytes(token).decode()
    except (KeyError, UnicodeDecodeError):
        return None
    return text if text == END or text not in (*MARKERS, "<|endoftext|>") else None


@torch.inference_mode()
def surprise(
    model: GPTModel, tokenizer: tiktoken.Encoding, text: str, title: str = "", note: str = ""
) -> list[tuple[int, float]]:
    """How surprising each token of `text` was → pairs (characters, bits), in order.

    Bits are -log2 of the model's own probability. Behind a window's end the model sees the head
    and half a window of the text before.
    """
    ids, starts = token_starts(text, tokenizer)
    sight = sight_of(model, tokenizer, text, title, note)
    head = opening_before(tokenizer, f"{sight.note}\n\n" if sight.note else "", sight.title)
    step = max(1, (model.config["context_length"] - len(head)) // 2)
    bits: list[float] = []
    for first in range(0, len(ids), step):
        seen = ids[max(0, first - step) : first]
        new = ids[first : first + step]
        window = torch.tensor([head + seen + new], device=model.tok_emb.weight.device)  # (1, t)
        logits = model(window[:, :-1])[0, -len(new) :, : model.usable_ids]  # (new, v)
        losses = torch.nn.functional.cross_entropy(
            logits.float(), window[0, -len(new) :], reduction="none"
        )  # (new,)
        bits += (losses / math.log(2)).tolist()
    ends = [*starts, len(text)][1:]
    return [(end - start, b) for start, end, b in zip(starts, ends, bits, strict=True)]
