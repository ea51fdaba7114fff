"""Requests: what a story shall have, as lines of text between <|start|> and its title line.

    <|start|>
    Hero: Hanna
    Words: lamp, owl
    Length: short
    <|title|>…

Each line may be left out, and their order is free. Before a story without a title stands an empty
line. The lines are made of ordinary tokens, so any vocabulary has them.
"""

import re
from dataclasses import dataclass, fields
from typing import Literal

from golpo.stories import remove_markers
from golpo_utils import START, TITLE, TITLE_END, check_kind

LENGTHS = ("short", "medium", "long")
ANSWERS = ("yes", "no")
ENDINGS = ("happy", "sad")
CHOICES = {"length": LENGTHS, "dialogue": ANSWERS, "ending": ENDINGS}
LINE = re.compile(r"([^\W\d_]+): *(\S.*)")


@dataclass(frozen=True)
class Request:
    """What a story shall have; None and () ask for nothing. Raises ValueError for a bad value."""

    # The hero's name, for a model that was trained with requests.
    hero: str | None = None
    # Words that the story shall use, as in lamp,owl, for such a model.
    words: tuple[str, ...] = ()
    # As the shortest, middle or longest third of the corpus's stories, for such a model.
    length: Literal[LENGTHS] | None = None
    # A word that titles of the corpus begin with, as in "Ghost story: The Mill".
    genre: str | None = None
    # Whether people talk, for such a model.
    dialogue: Literal[ANSWERS] | None = None
    # How the story ends, for such a model.
    ending: Literal[ENDINGS] | None = None

    def __post_init__(self):
        words = [self.words] if isinstance(self.words, str) else self.words
        check_kind("the request's words", words, tuple | list, "words, as in ('lamp', 'owl')")
        for word in words:
            check_kind("a word of the request", word, str, "a str")
        split = [word.strip() for part in words for word in part.split(",")]
        object.__setattr__(self, "words", tuple(filter(None, split)))
        for name in ("hero", "genre"):
            check_kind(f"the request's {name}", getattr(self, name), str | None, "a str, or None")
        for text in (self.hero or "", self.genre or "", *self.words):
            if remove_markers(text) != text or "\n" in text:
                raise ValueError(
                    f"the request has {text!r}; a value is text in one line, without markers"
                )
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise ValueError(
                    f"the request's {name} is {value!r}; it must be one of {', '.join(choices)}"
                )

    def is_used(self) -> bool:
        """Whether more is asked for than a genre, which a title's first words can ask for."""
        return self != Request(genre=self.genre)

    def lines(self) -> list[str]:
        """A line for each thing that is asked for."""
        found = []
        for name in NAMES:
            value = getattr(self, name)
            value = ", ".join(value) if name == "words" else (value or "").strip()
            if value:
                found.append(f"{name.capitalize()}: {value}")
        return found


NAMES = tuple(field.name for field in fields(Request))


def format_request(request: Request) -> str:
    """The request as text, a line for each thing that is asked for; "" if nothing is."""
    return "\n".join(request.lines())


def parse_request(text: str) -> Request:
    """The request that lines of text make; empty lines are skipped.

    Raises ValueError for a line without a key, an unknown or repeated key, and a bad value.
    """
    check_kind("the request", text, str, "text, as in 'Hero: Hanna'")
    found = {}
    for line in filter(str.strip, text.splitlines()):
        match = LINE.fullmatch(line.strip())
        name = match[1].lower() if match else None
        if name not in NAMES:
            keys = ", ".join(known.capitalize() for known in NAMES)
            raise ValueError(
                f"the request has the line {line.strip()!r}; write a key and a value, as in "
                f"'Hero: Hanna' (the keys are {keys})"
            )
        if name in found:
            raise ValueError(f"the request has two lines {name.capitalize()!r}; keep one of them")
        found[name] = match[2].strip()
        if name in CHOICES:
            found[name] = found[name].lower()
    return Request(**found)


def split_request(story: str) -> tuple[Request | None, str]:
    """A story's text from <|start|> on → its own request (None without one), and the rest.

    Lines that are no request are part of the story, whatever they look like.
    """
    head, start, body = story.partition(START)
    before, title, after = body.lstrip("\n").partition(TITLE)
    if not title:
        before, title, after = body.lstrip("\n").partition("\n\n")
    if not start or not title or not before.strip():
        return None, story
    try:
        request = parse_request(before)
    except ValueError:
        return None, story
    title = TITLE if title == TITLE else ""
    return request, f"{head}{start}\n{title}{after}"


def request_opening(
    request: Request, title: str | None = None, prompt: str = "", markers: bool = False
) -> dict:
    """Keywords of `stream_story` and `story_opening` for a story that follows `request`.

    title, prompt and markers are theirs. Without markers, those in title and prompt are removed.
    """
    check_kind("the request", request, Request, "what parse_request returns")
    lines = "".join(f"\n{line}" for line in request.lines())
    if markers and prompt.startswith(START):
        return {"prompt": f"{START}{lines}{prompt.removeprefix(START)}", "markers": True}
    prompt = prompt if markers else remove_markers(prompt)
    if title:
        title = f"{TITLE}{remove_markers(title).strip()}{TITLE_END}\n\n"
    elif prompt and lines:
        title = "\n"
    return {"prompt": f"{START}{lines}\n{title or ''}{prompt}", "markers": True}
