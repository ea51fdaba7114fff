"""For tests of the writer's desk: a page that knows only what it is sent, a model with a script."""

import json

import golpo.desk_choices
import golpo.desk_writing
from golpo.desk_stream import StoryReader

FACTS = ("title", "state", "sight", "undo", "redo", "retry")


class Page:
    """What a page shows, by what it is sent alone: golpo/desk.js does the same.

    authors: a number for each character of the text, 1 for the model's.
    """

    def __init__(self):
        self.text = ""
        self.authors = []
        self.facts = {}
        self.shelf = {"rows": []}
        self.is_complete = False
        self.events = []
        self.files = []

    def take(self, event, buffers=None):
        event = json.loads(json.dumps(event))
        self.events.append(event)
        self.files += buffers or []
        if event.get("ev") == "all":
            self.is_complete = True
            self.text = ""
            self.authors = []
            self.shelf = {"rows": []}
            self.replace(0, 0, event["text"], event["marks"])
        elif not self.is_complete:
            return
        elif "+" in event:
            self.replace(len(self.text), 0, event["+"], [[1, len(event["+"])]])
        elif event.get("ev") == "text":
            self.replace(event["at"], event["cut"], event["new"], event["marks"])
        elif event.get("ev") == "shelf":
            old = self.shelf["rows"]
            parts = event.get("rows", [[0, len(old)]])
            rows = [old[slice(*part)] if isinstance(part, list) else [part] for part in parts]
            self.shelf |= event | {"rows": sum(rows, [])}
        if "+" in event and self.state != "writing":
            self.facts["state"] = ["writing"]
        self.facts |= {name: event[name] for name in FACTS if name in event}

    def replace(self, at, cut, new, marks):
        assert at + cut <= len(self.text) and sum(length for _, length in marks) == len(new)
        self.text = self.text[:at] + new + self.text[at + cut :]
        self.authors[at : at + cut] = sum(([author] * length for author, length in marks), [])

    @property
    def state(self):
        return self.facts["state"][0]

    @property
    def rows(self):
        return self.shelf["rows"]

    def last(self, name):
        return next((event for event in reversed(self.events) if event.get("ev") == name), None)

    def messages(self):
        return [event["text"] for event in self.events if event.get("ev") == "message"]


def authors(desk):
    """Who wrote each character of the desk's story."""
    passages = desk.manuscript.now.passages
    return sum(([int(one.author == "model")] * len(one.text) for one in passages), [])


def script_model(monkeypatch):
    """Let the model write from a script → script(pieces, why) → the calls that were made.

    A piece may be a function, to be called at that moment.
    """
    calls = []

    def script(pieces, why="end"):
        def stream(model, tokenizer, text, title, on_sight=None, **options):
            calls.append((text, title, options))
            reader = StoryReader(not text.strip())
            for piece in pieces:
                if callable(piece):
                    piece()
                else:
                    yield reader.feed(piece)
            return why

        for module in (golpo.desk_writing, golpo.desk_choices):
            monkeypatch.setattr(module, "stream_passage", stream)
        return calls

    return script
