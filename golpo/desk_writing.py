"""The writer's desk: the model writes a passage, shown as it comes and kept every few seconds."""

import asyncio
import time

from golpo.desk_sentences import Refusal
from golpo.desk_stream import Piece, stream_passage
from golpo.long_stories import Sight
from golpo.manuscript import MODEL
from golpo_utils import check_kind, encode

SECONDS_BETWEEN_FRAMES = 0.1
WORTH_A_FRAME = 48  # characters: a frame costs nine bytes more than its words
MOST_SECONDS_BETWEEN_FRAMES = 0.4  # with fewer characters
SECONDS_BETWEEN_SPEEDS = 2.0
SECONDS_BETWEEN_SAVES = 3.0


class Writing:
    """The passage that the model writes into the desk's manuscript.

    model_title: the title that the model chose last. sight: the character of the text at which
    what the model sees begins. speed: the passage's tokens and how many of them a second brought,
    as they are shown; nothing before there is a figure.
    """

    def __init__(self, desk):
        self.desk = desk
        self.model_title = ""
        self.forget()
        self.actions = {"go": self.go, "retry": self.retry, "stop": desk.runner.stop}

    def forget(self) -> None:
        """Another story is shown."""
        self.sight = 0
        self.begin_count()

    def begin_count(self) -> None:
        """Nothing of a passage is written yet."""
        self.tokens = 0
        self.seconds = 0.0
        self.speed: list[int] = []

    def note_speed(self) -> None:
        """Let the pages show how many tokens there are now."""
        if self.seconds:
            self.speed = [self.tokens, round(self.tokens / self.seconds)]

    def go(self, at: int | None = None) -> None:
        """Write on from the text as it stands, or from position `at`; the rest stays in undo."""
        end = len(self.desk.manuscript.text)
        at = end if at is None else at
        self.begin(at, self.gap() if at == end else "")

    def gap(self) -> str:
        """What comes before more of a story that had come to its end: an empty line.

        Words that a person added behind the end are gone on from as they stand.
        """
        now = self.desk.manuscript.now
        if now.ended != "end" or not now.text.strip() or now.passages[-1].author != MODEL:
            return ""
        breaks = len(now.text) - len(now.text.rstrip("\n"))
        return "\n" * max(0, 2 - breaks)

    def retry(self) -> None:
        """Write the newest passage again, with the next seed."""
        at = self.desk.manuscript.last_passage()
        if at is None:
            raise Refusal("the model has written nothing yet that could be written again")
        text = self.desk.manuscript.text
        passage = text[at:]
        gap = passage[: len(passage) - len(passage.lstrip("\n"))] if at else ""
        again = not text[:at].strip() and self.desk.manuscript.title == self.model_title
        self.desk.form.next_seed()
        self.begin(at, gap, title="" if again else None)

    def begin(self, at: int, gap: str = "", first: str = "", title: str | None = None) -> None:
        """Begin a passage at a position, with `gap` and the words `first`, and write it."""
        check_kind("the position", at, int, "a whole number")
        options = self.desk.form.options()
        self.desk.manuscript.begin_passage(at, gap)
        self.desk.manuscript.append(first, title)
        self.desk.alternatives.close()
        self.begin_count()
        self.desk.runner.busy = True
        self.desk.show()
        self.desk.runner.start(self.write(options), self.end)

    def note_sight(self, sight: Sight) -> None:
        """Remember where the model's sight begins, to show a line there."""
        self.sight = sight.start

    async def write(self, options: dict) -> None:
        """Write a passage, token by token, until it ends or a stop is asked for."""
        before = (self.desk.manuscript.text, self.desk.manuscript.title.strip())
        stream = stream_passage(
            self.desk.model, self.desk.tokenizer, *before, on_sight=self.note_sight, **options
        )
        started = time.monotonic()
        self.with_beams = "num_beams" in options
        self.most = options["max_new_tokens"]
        self.frame_at = 0.0
        self.speed_at = self.saved_at = started
        why = "stopped"
        try:
            while not self.desk.runner.stops:
                try:
                    piece = next(stream)
                except StopIteration as end:
                    why = end.value
                    break
                self.seconds = time.monotonic() - started
                self.add(piece)
                await asyncio.sleep(0.001)  # Stop, the page and other cells get their turn
        finally:
            self.note_speed()
            self.desk.manuscript.end_passage(why)

    def end(self) -> None:
        """Show and keep the passage, which is complete."""
        self.desk.show()
        self.desk.shelf.keep(list_again=True)

    def count(self, piece: Piece) -> int:
        """About how many tokens a piece is; a character may be several."""
        if self.with_beams:  # they give an empty piece for each token
            return 1
        return max(1, len(encode(piece.raw, self.desk.tokenizer)))

    def is_frame_due(self, seconds: float) -> bool:
        """Whether the pages shall have the new words, so many seconds after the last ones."""
        new = len(self.desk.manuscript.text) - len(self.desk.shown)
        is_worth_it = new >= WORTH_A_FRAME or seconds > MOST_SECONDS_BETWEEN_FRAMES
        return seconds > SECONDS_BETWEEN_FRAMES and is_worth_it

    def add(self, piece: Piece) -> None:
        """Take in a piece; show and keep what is new when it is time to."""
        manuscript = self.desk.manuscript
        self.model_title = piece.title or self.model_title
        manuscript.append(piece.words, piece.title)
        self.tokens = min(self.tokens + self.count(piece), self.most)
        now = time.monotonic()
        if now - self.speed_at > SECONDS_BETWEEN_SPEEDS:
            self.speed_at = now
            self.note_speed()
        if self.is_frame_due(now - self.frame_at):
            self.frame_at = now
            self.desk.show()
        if now - self.saved_at > SECONDS_BETWEEN_SAVES:
            self.desk.shelf.keep()
            self.saved_at = time.monotonic()
