"""A passage by the model for the writer's desk: clean words and a title, piece by piece."""

import functools
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import tiktoken

from golpo.beam_stories import stream_beams
from golpo.console import plain_text
from golpo.long_stories import Sight, complete_pieces, is_broken_end, sight_of, stream_long_story
from golpo.requests import Request, request_opening
from golpo.stories import remove_markers
from golpo_utils import END, TITLE, TITLE_END, GPTModel, encode, story_opening, stream_story

INCOMPLETE = re.compile(r"<(/?(\|\w*\|?)?)?$")  # the beginning of a marker, or of a title's end

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
            title, _, prose = rest.partition(TITLE_END)
            title = " ".join(plain_text(remove_markers(title)).split())
        prose = plain_text(remove_markers(prose))
        if self.at_start:
            prose = prose.lstrip()
        words = prose[self.given :]
        self.given = max(self.given, len(prose))
        return Piece(words, title, raw)


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


def opening_with(
    request: Request, model: GPTModel, tokenizer: tiktoken.Encoding, sight: Sight
) -> dict:
    """Keywords of `story_opening`: with the request while all fits into the model's context."""
    if request.is_used() and sight.start == 0:
        opening = request_opening(request, sight.title, sight.prompt)
        if len(story_opening(tokenizer, **opening)) <= model.config["context_length"]:
            return opening
    return sight.opening()


def passage_opening(
    model: GPTModel,
    tokenizer: tiktoken.Encoding,
    text: str,
    title: str,
    note: str,
    request: Request,
) -> dict:
    """What the model sees when it begins a passage, as keywords of `story_opening`."""
    note = note if text.strip() or title else ""
    sight = sight_of(model, tokenizer, text.rstrip(" "), title, note)
    return opening_with(request, model, tokenizer, sight)


def most_at_first(model: GPTModel, tokenizer: tiktoken.Encoding, request: Request) -> int:
    """How many tokens a story without a title may have until it goes on with the one it chose."""
    capacity = model.config["context_length"]
    opening = passage_opening(model, tokenizer, "", "", "", request)
    return min(capacity // 2, capacity - len(story_opening(tokenizer, **opening)) + 1)


def raw_pieces(
    model: GPTModel,
    tokenizer: tiktoken.Encoding,
    text: str,
    title: str,
    note: str,
    request: Request,
    on_sight: Callable[[Sight], None] | None,
    *,
    num_beams: int = 1,
    **settings,
) -> Iterator[str]:
    """Yield what the model writes after `text`; return "end" or "limit".

    num_beams: above 1, it is searched for; then empty pieces come first, one a token.
    """
    write = stream_story
    if num_beams > 1:
        write = functools.partial(write_with_beams, num_beams)
    return (
        yield from stream_long_story(
            model,
            tokenizer,
            text,
            title=title,
            note=note,
            on_sight=on_sight,
            write=write,
            opening_of=functools.partial(opening_with, request, model, tokenizer),
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
    request = request or Request()
    left = settings.pop("max_new_tokens")
    if text.strip() or title:
        return (
            yield from continued(
                model, tokenizer, text, title, note, request, on_sight, left, settings
            )
        )
    reader = StoryReader(at_start=True)
    first = min(left, most_at_first(model, tokenizer, request))
    stream = raw_pieces(
        model, tokenizer, "", "", "", request, on_sight, max_new_tokens=first, **settings
    )
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
    return (
        yield from continued(
            model, tokenizer, prose, title, note, request, on_sight, left, settings
        )
    )


def continued(
    model, tokenizer, text, title, note, request, on_sight, count, settings
) -> Iterator[Piece]:
    """`stream_passage` for a story that has a title or text; count: its max_new_tokens."""
    reader = StoryReader(at_start=not text.strip())
    spaces = text.endswith(" ")  # a token brings its own space
    stream = raw_pieces(
        model,
        tokenizer,
        text.rstrip(" "),
        title,
        note,
        request,
        on_sight,
        max_new_tokens=count,
        **settings,
    )
    ended = None
    for raw, why in complete_pieces(stream):
        ended = why
        piece = reader.feed(raw)
        if spaces and piece.words:
            piece = piece._replace(words=piece.words.removeprefix(" "))
            spaces = False
        yield piece._replace(title=None)
    return ended
