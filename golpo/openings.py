"""What the model sees when it goes on with a story: request, title, note, and the newest text."""

from dataclasses import dataclass, field

import tiktoken

from golpo.long_stories import Sight, sight_of
from golpo.requests import Request, request_opening
from golpo_utils import GPTModel, story_opening


@dataclass(frozen=True)
class Draft:
    """A story as far as it is written, with what the model is asked for.

    note: what the model always sees. request: what it sees while all fits into its context.
    """

    model: GPTModel
    tokenizer: tiktoken.Encoding
    text: str = ""
    title: str = ""
    note: str = ""
    request: Request = field(default_factory=Request)

    def has_begun(self) -> bool:
        """Whether there is a title or text. Without them the model writes a title first."""
        return bool(self.text.strip() or self.title)

    def sight(self) -> Sight:
        """What of the story is seen; a note would stand where the title stands, so it waits."""
        note = self.note if self.has_begun() else ""
        return sight_of(self.model, self.tokenizer, self.text, self.title, note)

    def opening_of(self, sight: Sight) -> dict:
        """Keywords of `story_opening` for what is seen, with the request while all fits."""
        if self.request.is_used() and sight.start == 0:
            opening = request_opening(self.request, sight.title, sight.prompt)
            size = len(story_opening(self.tokenizer, **opening))
            if size <= self.model.config["context_length"]:
                return opening
        return sight.opening()

    def opening(self) -> dict:
        """Keywords of `story_opening` for the story."""
        return self.opening_of(self.sight())

    def size(self) -> int:
        """The tokens that the model sees of the story."""
        return len(story_opening(self.tokenizer, **self.opening()))
