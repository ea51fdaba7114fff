"""The writer's desk: what its pages have, so that they are sent only what is new.

Several pages may show one desk. Each message reaches all of them, in one order; so what one page
has, all have that were once sent everything. A page that opens asks for that, and ignores what
comes before it.
"""

import itertools
import os
import threading
from collections.abc import Callable

from golpo.manuscript import MODEL, Version

PERSONS = "0"
MODELS = "1"


class Pages:
    """The story, the facts about it and the shelf, as the pages have them.

    authors: a digit for each character of the text, PERSONS or MODELS. lock: whoever compares and
    sends holds it, for the model writes on one thread and the pages' messages come on another.
    """

    def __init__(self, send: Callable[[dict], object]):
        self.send = send
        self.lock = threading.RLock()
        self.text = ""
        self.authors = ""
        self.facts: dict = {}
        self.rows: list[dict] = []  # of the shelf
        self.shelf: dict = {}  # what is shown with the rows

    def show(self, version: Version, facts: dict, source: str = "") -> None:
        """Send what is new, if anything is: of the text, and of the facts, of which one is "state".

        source: the page that changed the text itself.
        """
        with self.lock:
            text, authors = version.text, authors_of(version)
            event = text_change((self.text, self.authors), (text, authors))
            if source and "at" in event:
                event["source"] = source
            news = changed(self.facts, facts)
            if "+" in event:
                news = with_words(news, self.facts, facts)
            self.text, self.authors, self.facts = text, authors, facts
            if event or news:
                self.send((event or {"ev": "state"}) | news)

    def show_all(self, version: Version, facts: dict, rest: dict) -> None:
        """Send the story and the facts whole, and the rest of what a page needs to begin.

        The shelf that is shown next is sent whole, too.
        """
        with self.lock:
            self.text, self.authors, self.facts = version.text, authors_of(version), facts
            self.rows, self.shelf = [], {}
            story = {"text": self.text, "marks": marks(self.authors)}
            self.send({"ev": "all"} | rest | story | facts)

    def show_shelf(self, rows: list[dict], figures: dict) -> None:
        """Send what of the shelf is new, if anything is. figures: what is shown with its rows."""
        with self.lock:
            event = changed(self.shelf, figures)
            if rows != self.rows:
                event["rows"] = row_parts(self.rows, rows)
            self.rows, self.shelf = rows, figures
            if event:
                self.send({"ev": "shelf"} | event)


def changed(old: dict, new: dict) -> dict:
    """The items of `new` that `old` has not, or has otherwise."""
    return {name: value for name, value in new.items() if name not in old or old[name] != value}


def with_words(news: dict, old: dict, new: dict) -> dict:
    """The new facts as they go with the model's words: such words alone say that it writes."""
    if new["state"][0] != "writing":
        return news | {"state": new["state"]}
    has_just_begun = new["state"] == ["writing"] and old.get("state", [""])[0] != "writing"
    return {name: v for name, v in news.items() if name != "state" or not has_just_begun}


def authors_of(version: Version) -> str:
    """Who wrote each character, as a digit each."""
    return "".join(
        (MODELS if passage.author == MODEL else PERSONS) * len(passage.text)
        for passage in version.passages
    )


def marks(authors: str) -> list[list[int]]:
    """Runs of one author: [author, characters] each."""
    return [[int(author), len(list(run))] for author, run in itertools.groupby(authors)]


def common_start(one: str, other: str) -> int:
    """How many characters two texts have in common, from their first on."""
    if other.startswith(one):  # as while the model writes; the loop below is slower
        return len(one)
    return len(os.path.commonprefix([one, other]))


def text_change(old: tuple[str, str], new: tuple[str, str]) -> dict:
    """What makes the story `new` of `old`, each a pair (text, authors), as an event; {} for none.

    {"+": words} are the model's words at the end. Otherwise `cut` characters at `at` give way to
    the text "new", whose authors are its "marks".
    """
    start = min(map(common_start, old, new))
    old_rest = [part[start:][::-1] for part in old]
    new_rest = [part[start:][::-1] for part in new]
    tail = min(map(common_start, old_rest, new_rest))
    cut = len(old_rest[0]) - tail
    words, authors = (part[start : len(part) - tail] for part in new)
    if not cut and not words:
        return {}
    if not cut and not tail and PERSONS not in authors:
        return {"+": words}
    return {"ev": "text", "at": start, "cut": cut, "new": words, "marks": marks(authors)}


def row_parts(old: list[dict], new: list[dict]) -> list[dict | list[int]]:
    """The rows `new`, those that stand in `old` as slices of it: [start, end]."""
    places = {row["name"]: place for place, row in enumerate(old)}
    parts: list[dict | list[int]] = []
    for row in new:
        place = places.get(row["name"])
        if place is None or old[place] != row:
            parts.append(row)
        elif parts and isinstance(parts[-1], list) and parts[-1][1] == place:
            parts[-1][1] += 1
        else:
            parts.append([place, place + 1])
    return parts
