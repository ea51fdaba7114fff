"""A passage by the model for the writer's desk: clean words and a title, piece by piece."""

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import tiktoken

from golpo.beam_stories import stream_beams
from golpo.console import plain_text
from golpo.long_stories import Sight, complete_pieces, is_broken_end, stream_long_story
from golpo.openings import Draft
from golpo.requests import Request
from golpo.stories import remove_markers
from golpo_utils import END, MARKERS, TITLE, TITLE_END, GPTModel, encode, stream_story

INCOMPLETE = re.compile(r"<(/?(\|\w*\|?)?)?$")  # the beginning of a marker, or of a title's end

TITLE_STOP = re.compile("|".join(map(re.escape, ("\n", *MARKERS))))
LONGEST_TITLE = 200  # characters, if nothing ends it

MOST_BEFORE_NOTE = 60  # characters in which a title must begin and end


class Piece(NamedTuple):
    """What the model wrote since the last piece."""

    words: str  # of the prose, without markers and control characters
    title: str | None  # that the model chose, as far as it is known; None without one
    raw: str  # as the model wrote it


class StoryReader:
    """Parts what the model writes into a title and prose. at_start: a title may come first."""

    def __init__(self, at_start: bool):
        self.raw = ""
        self.given = 0  # characters of the prose that were given out
        self.at_start = at_start

    def feed(self, raw: str) -> Piece:
        """Take in a piece; return what is new. What may be the beginning of a marker waits."""
        self.raw += raw
        written = INCOMPLETE.sub("", self.raw)
        head, begun, rest = written.partition(TITLE)
        title = None
        prose = written
        if begun and self.at_start and not head.strip():
            title, prose = split_title(rest)
            title = " ".join(plain_text(remove_markers(title)).split())
        prose = plain_text(remove_markers(prose))
        if self.at_start:
            prose = prose.lstrip()
        words = prose[self.given :]
        self.given = max(self.given, len(prose))
        return Piece(words, title, raw)


def split_title(rest: str) -> tuple[str, str]:
    """What follows <|title|> → the title, and what follows that, without the marker between them.

    A title that the model does not end, ends with its line or at another marker, as `fix_markers`
    has it for a corpus; at the latest with the last whole word of its first 200 characters.
    """
    rest = rest.lstrip()
    found = TITLE_STOP.search(rest)
    if found and found.start() <= LONGEST_TITLE:
        return rest[: found.start()], rest[found.end() :]
    if len(rest) <= LONGEST_TITLE:
        return rest, ""
    end = max(rest.rfind(" ", 0, LONGEST_TITLE), 0) or LONGEST_TITLE
    return rest[:end], rest[end:]


def write_with_beams(
    num_beams: int,
    model: GPTModel,
    tokenizer: tiktoken.Encoding,
    prompt: str = "",
    *,
    max_new_tokens: int,
    title: str | None = None,
    markers: bool = False,
    **sampling: float | None,
) -> Iterator[str]:
    """`stream_beams` with the keywords of `stream_story`; those of sampling have no effect."""
    return stream_beams(
        model,
        tokenizer,
        prompt,
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
        title=title,
        markers=markers,
    )


def most_at_first(draft: Draft) -> int:
    """How many tokens a story without a title may have until it goes on with the one it chose."""
    capacity = draft.model.config["context_length"]
    return min(capacity // 2, capacity - draft.size() + 1)


def raw_pieces(
    draft: Draft, on_sight: Callable[[Sight], None] | None, *, num_beams: int = 1, **settings
) -> Iterator[str]:
    """Yield what the model writes after a draft's text; return "end" or "limit".

    num_beams: above 1, it is searched for; then empty pieces come first, one a token.
    """
    write = stream_story
    if num_beams > 1:
        write = functools.partial(write_with_beams, num_beams)
    return (
        yield from stream_long_story(
            draft.model,
            draft.tokenizer,
            draft.text,
            title=draft.title,
            note=draft.note,
            on_sight=on_sight,
            write=write,
            opening_of=draft.opening_of,
            **settings,
        )
    )


def stream_passage(
    model: GPTModel,
    tokenizer: tiktoken.Encoding,
    text: str = "",
    title: str = "",
    note: str = "",
    request: Request | None = None,
    on_sight: Callable[[Sight], None] | None = None,
    **settings,
) -> Iterator[Piece]:
    """Yield a passage that continues `text`; return "end" or "limit".

    settings: of `stream_story`, and num_beams: above 1, the passage comes as a whole at its end.
    Without title and text the model chooses a title, which it sees behind a full context, too.
    """
    draft = Draft(model, tokenizer, text, title, note, request or Request())
    left = settings.pop("max_new_tokens")
    if draft.has_begun():
        return (yield from continued(draft, on_sight, left, settings))
    reader = StoryReader(at_start=True)
    bare = replace(draft, text="", note="")
    first = min(left, most_at_first(bare))
    stream = raw_pieces(bare, on_sight, max_new_tokens=first, **settings)
    prose = ""
    for raw, ended in complete_pieces(stream):
        cut = ended == "limit" and is_broken_end(raw, (END,))
        piece = reader.feed("" if cut else raw)
        prose += piece.words
        title = piece.title or title
        yield piece
        if ended == "end":
            return ended
        # The note would stand where a title stands; so the model sees it once there is a title.
        if note.strip() and (TITLE_END in reader.raw or len(reader.raw) > MOST_BEFORE_NOTE):
            break
    left -= first if ended else len(encode(reader.raw, tokenizer))
    if left <= 0:
        return "limit"
    settings["seed"] = None if settings.get("seed") is None else settings["seed"] + 1
    draft = replace(draft, text=prose, title=title)
    return (yield from continued(draft, on_sight, left, settings))


def continued(
    draft: Draft, on_sight: Callable[[Sight], None] | None, count: int, settings: dict
) -> Iterator[Piece]:
    """`stream_passage` for a draft that has begun; count: its max_new_tokens."""
    reader = StoryReader(at_start=not draft.text.strip())
    spaces = draft.text.endswith(" ")  # a token brings its own space
    draft = replace(draft, text=draft.text.rstrip(" "))
    ended = None
    for raw, why in complete_pieces(raw_pieces(draft, on_sight, max_new_tokens=count, **settings)):
        ended = why
        piece = reader.feed(raw)
        if spaces and piece.words:
            piece = piece._replace(words=piece.words.removeprefix(" "))
            spaces = False
        yield piece._replace(title=None)
    return ended
