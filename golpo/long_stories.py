"""Stories longer than the context: the model sees the title, a note, and the newest text.

`stream_story` encodes the newest half of a full window again, and the title is lost with the rest.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import tiktoken

from golpo_utils import END, GPTModel, encode, story_opening, stream_story

SENTENCE_END = re.compile(r"[.!?…][\"”’']?\s+|\n+")


@dataclass(frozen=True)
class Sight:
    """What the model sees of a story: the text from the character `start` on, after a head."""

    title: str
    note: str
    text: str
    start: int

    @property
    def prompt(self) -> str:
        """The note, as a paragraph of its own, and the visible text."""
        return f"{self.note}\n\n{self.text}" if self.note else self.text

    def opening(self) -> dict:
        """Keywords of `story_opening`."""
        return {"prompt": self.prompt, "title": self.title}


def first_tokens(text: str, tokenizer: tiktoken.Encoding, count: int) -> str:
    """`text` up to its first `count` tokens, without a half character at the end."""
    ids = encode(text, tokenizer, markers=False)
    return text if len(ids) <= count else tokenizer.decode(ids[:count]).rstrip("\ufffd")


def newest_text(text: str, tokenizer: tiktoken.Encoding, count: int) -> str:
    """The end of `text`, at most `count` tokens; it begins with a sentence if it can."""
    ids = encode(text, tokenizer, markers=False)
    if len(ids) <= count:
        return text
    newest = tokenizer.decode(ids[-count:]).lstrip("\ufffd")
    boundary = SENTENCE_END.search(newest)
    if boundary and boundary.end() < len(newest) / 2:
        return newest[boundary.end() :]
    return newest


def sight_of(
    model: GPTModel, tokenizer: tiktoken.Encoding, text: str, title: str = "", note: str = ""
) -> Sight:
    """What the model sees when it continues `text`.

    All of it if it fits into the context. Otherwise the first quarter of a window of the title
    and of the note, and as much of the newest text as fills half of what they leave.
    """
    capacity = model.config["context_length"]
    note = note.strip()
    title = (title or "").strip()
    whole = Sight(title, note, text, 0)
    if len(story_opening(tokenizer, whole.prompt, title)) <= capacity:
        return whole
    title = first_tokens(title, tokenizer, capacity // 4)
    note = first_tokens(note, tokenizer, capacity // 4)
    head = story_opening(tokenizer, f"{note}\n\n" if note else "", title)
    newest = newest_text(text, tokenizer, max(1, (capacity - len(head)) // 2))
    return Sight(title, note, newest, len(text) - len(newest))


def is_broken_end(piece: str, stops: tuple[str, ...]) -> bool:
    """Whether a piece is half a character, or the beginning of a stop text, that was cut off."""
    return piece.endswith("\ufffd") or any(stop.startswith(piece) for stop in stops)


def complete_pieces(stream: Iterator[str]) -> Iterator[tuple[str, str | None]]:
    """Each piece of a stream with None; the last one with how the stream ended.

    A stream without a piece gives one empty piece. Empty pieces pass at once: beam search gives
    one a token, so that whoever reads the stream can stop it.
    """
    piece = ""
    while True:
        try:
            following = next(stream)
        except StopIteration as stop:
            yield piece, stop.value
            return
        if not following:
            yield "", None
            continue
        if piece:
            yield piece, None
        piece = following


def stream_long_story(
    model: GPTModel,
    tokenizer: tiktoken.Encoding,
    prompt: str = "",
    *,
    title: str | None = None,
    note: str = "",
    max_new_tokens: int = 400,
    seed: int | None = None,
    on_sight: Callable[[Sight], None] | None = None,
    write: Callable[..., Iterator[str]] | None = None,
    opening_of: Callable[[Sight], dict] | None = None,
    **sampling: float | None,
) -> Iterator[str]:
    """Yield a story in pieces of text, as `stream_story` does; return "end" or "limit".

    note: a line or two that the model always sees: who, where, what must not be forgotten.
    on_sight: called with what the model sees, first and whenever that becomes less.
    write: what writes each part, with the keywords of `stream_story`, which is the default.
    opening_of: what of them gives the model its opening; by default that is the sight's own.
    Without a note, a story that fits into the context is the one that `stream_story` generates.
    """
    write = write or stream_story
    capacity = model.config["context_length"]
    text = prompt
    left = max_new_tokens
    part = 0
    while True:
        sight = sight_of(model, tokenizer, text, title or "", note)
        if on_sight:
            on_sight(sight)
        opening = opening_of(sight) if opening_of else sight.opening()
        size = len(story_opening(tokenizer, **opening))
        count = min(left, max(1, capacity - size + 1))
        left -= count
        part_seed = None if seed is None else seed + part
        stream = write(
            model, tokenizer, max_new_tokens=count, seed=part_seed, **opening, **sampling
        )
        for piece, ended in complete_pieces(stream):
            last = ended == "end" or (ended is not None and left <= 0)
            whole = ended is None or last or not is_broken_end(piece, (END,))
            if whole and (piece or ended is None):
                yield piece
                text += piece
        if last:
            return ended
        part += 1
