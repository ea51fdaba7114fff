"""The writer's desk: several ways on side by side, other words at a place, and surprise."""

import asyncio
import re
import time
from dataclasses import dataclass, field

from golpo.adapter_files import base_fingerprint
from golpo.choices import MOST_STORIES, Choice, append_choice
from golpo.desk_form import PRESETS
from golpo.desk_sentences import Refusal
from golpo.desk_stream import Piece, stream_passage
from golpo.desk_writing import SECONDS_BETWEEN_FRAMES
from golpo.files import as_path
from golpo.requests import format_request
from golpo.word_choices import surprise, word_choice
from golpo_utils import END, check_number

SHORT = 40  # tokens of a short way on
LEAST = 8  # tokens before a sentence's end may end it
SENTENCE = re.compile(r"(?<!\bMr)(?<!\bMrs)(?<!\bDr)[.!?…][\"”’']?\s*$")
FOUR_STYLES = "styles"


@dataclass
class Way:
    """One of several continuations of the same text."""

    label: str
    settings: dict  # keywords of `stream_story`
    short: bool  # ends with a sentence
    words: str = ""
    new: str = ""  # words that no page has seen yet
    title: str | None = None
    raw: str = ""
    tokens: int = 0
    ended: str = ""

    def add(self, piece: Piece) -> None:
        """Take in a piece; a short way ends with its first sentence."""
        self.words += piece.words
        self.new += piece.words
        self.raw += piece.raw
        self.title = piece.title or self.title
        self.tokens += 1
        if self.short and self.tokens >= LEAST and SENTENCE.search(self.words):
            self.ended = "limit"

    def story(self) -> str:
        """As `Choice` wants it."""
        return self.raw + (END if self.ended == "end" else "")


@dataclass
class Offer:
    """The ways that are shown, and the story that they continue.

    text, gap: they were written for this text, after this gap.
    """

    text: str
    gap: str
    title: str
    note: str
    request: str
    ways: list[Way] = field(default_factory=list)
    can_like: bool = True

    def choice(self, liked: int, checkpoint: str) -> Choice:
        """What learning needs: the opening as the model saw it, and what it wrote."""
        text = self.text + self.gap
        # A story without a title and text begins with a title, before the model sees the note.
        has_begun = bool(text.strip() or self.title)
        return Choice(
            [way.story() for way in self.ways],
            liked,
            opening=text.rstrip(" ") if has_begun else "",
            title=self.title,
            note=self.note.strip() if has_begun else "",
            request=self.request or None,
            settings=[as_record(way.settings) for way in self.ways],
            checkpoint=checkpoint,
        )


class Alternatives:
    """Several continuations, of which a person takes one, and other words for one word."""

    def __init__(self, desk, output_dir):
        self.desk = desk
        self.folder = as_path("output_dir", output_dir)
        self.offer: Offer | None = None
        self.actions = {
            "ways": self.start,
            "take": self.take,
            "like": self.like,
            "close": self.close,
            "word": self.word,
            "take_word": self.take_word,
            "surprise": self.surprise,
        }

    def show(self) -> None:
        """Send all of the ways, as a page that opens needs them."""
        if self.offer:
            ways = [[w.label, w.title or "", w.words, w.ended] for w in self.offer.ways]
            for way in self.offer.ways:
                way.new = ""
            self.desk.send({"ev": "ways", "ways": ways, "can_like": self.offer.can_like})
        else:
            self.desk.send({"ev": "ways", "ways": []})

    def close(self) -> None:
        """Put the ways away."""
        if self.offer:
            self.offer = None
            self.show()

    def start(self, count: int | str = 3, short: bool = True) -> None:
        """Write several ways on: short ones, or whole passages; one for each style, or by seed."""
        desk = self.desk
        options = desk.form.options()
        options.pop("num_beams", None)  # beams find one way only
        if short:
            options["max_new_tokens"] = SHORT
        if count == FOUR_STYLES:
            changes = list(PRESETS.items())
        else:
            check_number("the number of ways", count, 1, MOST_STORIES, whole=True)
            changes = differences(options, count)
            desk.form.next_seed(count)
        now = desk.manuscript.now
        self.offer = Offer(
            now.text,
            desk.writing.gap(),
            now.title.strip(),
            options["note"],
            format_request(options["request"]),
        )
        self.offer.ways = [Way(label, options | change, bool(short)) for label, change in changes]
        self.show()
        desk.runner.start(self.write(self.offer), self.show)
        desk.show()

    async def write(self, offer: Offer) -> None:
        """Write the ways in turn, a token each, until they end or a stop is asked for."""
        before = (offer.text + offer.gap, offer.title)
        streams = [
            (way, stream_passage(*self.model(), *before, **way.settings)) for way in offer.ways
        ]
        frame_at = 0.0
        try:
            while any(not way.ended for way in offer.ways) and not self.desk.runner.stops:
                for way, stream in streams:
                    if not way.ended and not self.desk.runner.stops:
                        advance(way, stream)
                        await asyncio.sleep(0.001)
                if time.monotonic() - frame_at > SECONDS_BETWEEN_FRAMES:
                    frame_at = time.monotonic()
                    self.show_new(offer)
        finally:
            for way in offer.ways:
                way.ended = way.ended or "stopped"

    def model(self) -> tuple:
        return self.desk.model, self.desk.tokenizer

    def show_new(self, offer: Offer) -> None:
        """Send the words that are new."""
        added = [[number, way.new] for number, way in enumerate(offer.ways) if way.new]
        for way in offer.ways:
            way.new = ""
        self.desk.send({"w": added})

    def chosen(self, number: int) -> tuple[Offer, Way]:
        """The offer, and one of its ways. Raises ValueError if there is none."""
        ways = self.offer.ways if self.offer else []
        if type(number) is not int or not 0 <= number < len(ways):
            raise Refusal("there is no way {number!r} to take; press Three ways on", number=number)
        return self.offer, ways[number]

    def take(self, number: int) -> None:
        """Add one of the ways to the story."""
        offer, way = self.chosen(number)
        manuscript = self.desk.manuscript
        if manuscript.text != offer.text:
            raise Refusal(
                "the text has changed since these ways on were written; undo that, or write others"
            )
        manuscript.begin_passage(gap=offer.gap)
        manuscript.append(way.words, way.title or None)
        self.desk.writing.model_title = way.title or self.desk.writing.model_title
        manuscript.end_passage(way.ended)
        self.offer = None
        self.desk.show()
        self.show()
        self.desk.shelf.keep(list_again=True)

    def like(self, number: int) -> None:
        """Note that one of the ways is liked most, to learn from it later."""
        offer, _ = self.chosen(number)
        if not offer.can_like:
            raise Refusal("one of these ways is noted as liked already; write others to choose")
        append_choice(self.folder, offer.choice(number, base_fingerprint(self.desk.model)))
        offer.can_like = False
        self.show()
        self.desk.learning.show()

    def around(self) -> dict:
        """What the model sees beside the text. Raises ValueError for a bad request."""
        form = self.desk.form
        title = self.desk.manuscript.title.strip()
        return {"title": title, "note": form.values["note"], "request": form.request()}

    def word(self, at: int) -> None:
        """Show how likely a word was, and the ten likeliest others."""
        found = word_choice(*self.model(), self.desk.manuscript.text, at, **self.around())
        event = {"start": found.start, "end": found.end, "text": found.text}
        others = [[word, round(share, 5)] for word, share in found.others]
        self.desk.send({"ev": "word", **event, "p": found.probability, "others": others})

    def take_word(self, start: int, word: str, old: str) -> None:
        """Put another word in place of `old`; the story goes on from there."""
        manuscript = self.desk.manuscript
        check_number("the word's position", start, 0, whole=True)
        if not manuscript.text.startswith(old, start):
            raise Refusal("{old!r} no longer stands there; click the word once more", old=old)
        if word == END:
            manuscript.begin_passage(start)
            manuscript.end_passage("end")
            self.desk.show()
            self.desk.shelf.keep()
        else:
            self.desk.writing.begin(start, first=word)

    def surprise(self) -> None:
        """Show how surprising each token of the story was, in bits."""
        pairs = surprise(*self.model(), self.desk.manuscript.text, **self.around())
        self.desk.send({"ev": "surprise", "bits": [[n, round(b, 1)] for n, b in pairs]})


def differences(options: dict, count: int) -> list[tuple[str, dict]]:
    """What makes `count` ways differ, as pairs (label, settings): their seeds.

    At temperature 0 every seed writes the same; so only the first way is exact then.
    """
    seeds = range(options["seed"], options["seed"] + count)
    changes = [(f"seed {seed}", {"seed": seed}) for seed in seeds]
    if options["temperature"] > 0:
        return changes
    others = [(label, PRESETS["careful"] | change) for label, change in changes[1:]]
    return [("exact", {}), *others]


def advance(way: Way, stream) -> None:
    """Write one more token of a way."""
    try:
        way.add(next(stream))
    except StopIteration as end:
        way.ended = end.value


def as_record(settings: dict) -> dict:
    """The settings that JSON can hold."""
    return {k: v for k, v in settings.items() if isinstance(v, int | float | str)}
