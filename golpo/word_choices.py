"""What the model thinks of words that stand in a story: their probability, others, surprise."""

import itertools
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
    groups = token_groups(text, tokenizer)
    start, tokens = max(group for group in groups if group[0] <= position)
    end = min((later for later, _ in groups if later > start), default=len(text))
    sight = sight_of(model, tokenizer, text[:start], title, note)
    opening = opening_before(tokenizer, sight.prompt, sight.title)
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


@torch.inference_mode()
def surprise(
    model: GPTModel, tokenizer: tiktoken.Encoding, text: str, title: str = "", note: str = ""
) -> list[tuple[int, float]]:
    """How surprising each token of `text` was → pairs (characters, bits), in order.

    Tokens that share a character count as one. Bits are -log2 of the model's own probability.
    Behind a window's end the model sees the head and half a window of the text before.
    """
    groups = token_groups(text, tokenizer)
    ids = [token for _, tokens in groups for token in tokens]
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
    ends = [*(start for start, _ in groups), len(text)][1:]
    left = iter(bits)
    return [
        (end - start, sum(itertools.islice(left, len(tokens))))
        for (start, tokens), end in zip(groups, ends, strict=True)
    ]
