"""The writer's desk: what its page can ask for. The page itself is desk.js; this knows no widget.

A page sends messages {"do": name, …}; `receive` calls the action of that name with the rest as
keywords. Answers go to `send`: {"ev": name, …}, and {"+": words} for words that the model adds.
Once a message's action is over, it is answered by {"done": its "request", or None}.
"""

import tiktoken

from golpo.console import clean_text
from golpo.desk_choices import Alternatives
from golpo.desk_form import DeskForm
from golpo.desk_learning import Learning
from golpo.desk_pages import Pages
from golpo.desk_runner import Runner
from golpo.desk_sentences import Refusal, error_in, say_in
from golpo.desk_shelf import DeskShelf
from golpo.desk_writing import Writing
from golpo.inspector import inspect_next
from golpo.manuscript import Manuscript
from golpo.openings import Draft
from golpo_utils import GPTModel, check_kind

WHILE_WRITING = ("hello", "stop", "form", "search", "star", "export", "strength")


class Desk:
    """One story being written, and everything that a page shows beside it.

    Positions are counted in characters of Python's str. language: of the sentences that it sends.
    """

    def __init__(
        self,
        model: GPTModel,
        tokenizer: tiktoken.Encoding,
        output_dir,
        speaker,
        send,
        language: str = "en",
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.speaker = speaker
        self.send = send
        self.language = language
        self.manuscript = Manuscript()
        self.pages = Pages(lambda event: self.send(event))
        self.runner = Runner(self.report)
        self.writing = Writing(self)
        self.form = DeskForm(self, output_dir)
        self.shelf = DeskShelf(self, output_dir)
        self.alternatives = Alternatives(self, output_dir)
        self.learning = Learning(self, output_dir)
        self.actions = {
            "hello": self.hello,
            "edit": self.edit,
            "title": self.set_title,
            "undo": self.undo,
            "redo": self.redo,
            "inspect": self.inspect,
        }
        for part in (self.writing, self.form, self.shelf, self.alternatives, self.learning):
            self.actions |= part.actions

    def receive(self, message: dict) -> None:
        """Do what a page asks for; an error becomes one sentence on the page."""
        request = None
        try:
            values = dict(message)
            name = values.pop("do", None)
            request = values.pop("request", None)
            if name not in self.actions:
                raise Refusal("the page asks for {name!r}, which the desk does not know", name=name)
            if self.runner.busy and name not in WHILE_WRITING:
                raise Refusal("the model is at work; press Stop first")
            self.actions[name](**values)
        except Exception as error:
            self.report(error)
        self.send({"done": request})

    def report(self, error: Exception | None) -> None:
        """Show an exception as one sentence, and the state after it."""
        if error is not None:
            self.send({"ev": "message", "text": error_in(self.language, error)})
        self.show()

    def sentence(self, sentence: str, **values) -> str:
        """A sentence of `SENTENCES` with its values, in the language of the pages."""
        return say_in(self.language, sentence, **values)

    def say(self, sentence: str, **values) -> None:
        """Show a sentence of `SENTENCES` to the person."""
        self.send({"ev": "message", "text": self.sentence(sentence, **values)})

    def hello(self) -> None:
        """A page has opened: it gets all there is."""
        rest = self.form.event() | {
            "speaker": self.speaker,
            "layers": len(self.model.trf_blocks),
            "heads": self.model.config["n_heads"],
        }
        with self.pages.lock:
            self.pages.show_all(self.manuscript.now, self.facts(), rest)
        self.alternatives.show()
        self.learning.show()
        self.shelf.search()

    def facts(self) -> dict:
        """What a page shows of the story beside its text, as each change may have altered it.

        state: "writing", or why the model stopped, or "ready"; and the passage's tokens and rate.
        """
        now = self.manuscript.now
        state = "writing" if self.runner.busy else now.ended or "ready"
        return {
            "title": now.title,
            "state": [state, *self.writing.speed],
            "sight": min(self.writing.sight, len(now.text)),
            "undo": self.manuscript.can_undo,
            "redo": self.manuscript.can_redo,
            "retry": self.manuscript.last_passage() is not None,
        }

    @property
    def shown(self) -> str:
        """The text as the pages have it."""
        return self.pages.text

    def show(self, source: str = "") -> None:
        """Send what differs from what the pages have. source: the page that made the change."""
        with self.pages.lock:
            self.pages.show(self.manuscript.now, self.facts(), source)

    def edit(self, start: int, end: int, text: str, length: int, source: str = "") -> None:
        """A person replaced what stood from `start` to `end`. length: of the text before that."""
        for value in (start, end, length):
            check_kind("a position", value, int, "a whole number")
        clean = typed_text("the new text", text)
        if length != len(self.manuscript.text):
            self.hello()
            raise Refusal("another page has changed the story; this page now shows that")
        self.manuscript.edit(start, end, clean)
        self.show(source)
        self.shelf.keep()

    def set_title(self, title: str) -> None:
        """A person changed the title."""
        self.manuscript.set_title(" ".join(typed_text("the title", title).split()))
        self.show()
        self.shelf.keep()

    def change(self, manuscript: Manuscript) -> None:
        """Show another story."""
        self.manuscript = manuscript
        self.writing.forget()
        self.alternatives.close()
        self.show()

    def undo(self) -> None:
        self.manuscript.undo()
        self.show()
        self.shelf.keep()

    def redo(self) -> None:
        self.manuscript.redo()
        self.show()
        self.shelf.keep()

    def draft(self) -> Draft:
        """The story as the model sees it when it goes on. Raises ValueError for a bad request."""
        now = self.manuscript.now
        text = now.text.rstrip(" ")  # a token brings its own space
        note = self.form.values["note"]
        return Draft(self.model, self.tokenizer, text, now.title, note, self.form.request())

    def inspect(self, layer: int = 0, head: int = 0) -> None:
        """Show the likeliest next tokens, and where a head looks."""
        opening = self.draft().opening()
        bars, picture = inspect_next(
            self.model,
            self.tokenizer,
            opening.pop("prompt"),
            opening.pop("title", ""),
            self.form.sampling(),
            layer,
            head,
            **opening,
        )
        self.send({"ev": "inspect", "bars": bars}, [picture])


def typed_text(name: str, text: str) -> str:
    """What a page sends as text, without control characters and half characters."""
    check_kind(name, text, str, "text")
    return clean_text(text)
