"""A story that a person and the model write together: who wrote what, and every earlier version.

It knows no page and no model. Positions are counted in characters of Python's str.
"""

from dataclasses import dataclass, replace

PERSON = "person"
MODEL = "model"


@dataclass(frozen=True)
class Passage:
    """Text that one author wrote in one go. `run` counts the model's passages; 0 for a person."""

    author: str
    text: str
    run: int = 0


@dataclass(frozen=True)
class Version:
    """The whole story at one moment."""

    title: str = ""
    passages: tuple[Passage, ...] = ()
    ended: str = ""  # why the model stopped: "end", "limit" or "stopped"

    @property
    def text(self) -> str:
        return "".join(passage.text for passage in self.passages)


def joined(passages: list[Passage]) -> tuple[Passage, ...]:
    """The passages without empty ones; neighbours of one author and run become one."""
    result: list[Passage] = []
    for passage in passages:
        if not passage.text:
            continue
        if result and (result[-1].author, result[-1].run) == (passage.author, passage.run):
            result[-1] = replace(passage, text=result[-1].text + passage.text)
        else:
            result.append(passage)
    return tuple(result)


def part(passages: tuple[Passage, ...], start: int, end: int) -> list[Passage]:
    """What of the passages stands between two positions."""
    found = []
    position = 0
    for passage in passages:
        first = max(start - position, 0)
        last = max(end - position, 0)
        found.append(replace(passage, text=passage.text[first:last]))
        position += len(passage.text)
    return found


class Manuscript:
    """The versions of one story and which of them is shown.

    A change by hand makes a version. A passage by the model makes one, too, however many pieces
    it comes in. A new change drops the versions that `undo` went back over.
    """

    def __init__(self, title: str = "", text: str = "", author: str = PERSON):
        passages = joined([Passage(author, text, int(author == MODEL))])
        self.versions = [Version(title, passages)]
        self.shown = 0
        self.runs = int(author == MODEL)

    @property
    def now(self) -> Version:
        """The version that is shown."""
        return self.versions[self.shown]

    @property
    def title(self) -> str:
        return self.now.title

    @property
    def text(self) -> str:
        return self.now.text

    @property
    def can_undo(self) -> bool:
        return self.shown > 0

    @property
    def can_redo(self) -> bool:
        return self.shown < len(self.versions) - 1

    def undo(self) -> None:
        """Show the version before this one, if there is one."""
        self.shown = max(self.shown - 1, 0)

    def redo(self) -> None:
        """Show the version after this one, if there is one."""
        self.shown = min(self.shown + 1, len(self.versions) - 1)

    def add(self, version: Version) -> None:
        """Make `version` the newest one and show it; nothing happens if it changes nothing."""
        if version == self.now:
            return
        del self.versions[self.shown + 1 :]
        self.versions.append(version)
        self.shown += 1

    def set_title(self, title: str) -> None:
        """A person changes the title."""
        self.add(replace(self.now, title=title))

    def edit(self, start: int, end: int, text: str) -> None:
        """A person replaces what stands from `start` to `end` with `text`.

        Raises ValueError for positions that the text does not have.
        """
        length = len(self.text)
        if not 0 <= start <= end <= length:
            raise ValueError(f"the edit is from {start} to {end}; the text has {length} characters")
        if self.text[start:end] == text:
            return
        before = part(self.now.passages, 0, start)
        after = part(self.now.passages, end, length)
        self.add(
            Version(self.title, joined([*before, Passage(PERSON, text), *after]), self.now.ended)
        )

    def begin_passage(self, at: int | None = None, gap: str = "") -> None:
        """A passage by the model begins at position `at` (None: at the end), after `gap`.

        What stood behind is left out of the new version. It stays in the one before.
        """
        at = len(self.text) if at is None else min(max(at, 0), len(self.text))
        self.runs += 1
        passages = [*part(self.now.passages, 0, at), Passage(MODEL, gap, self.runs)]
        del self.versions[self.shown + 1 :]
        self.versions.append(Version(self.title, joined(passages)))
        self.shown += 1

    def append(self, text: str, title: str | None = None) -> None:
        """Add text, and a title if the model chose one, to the passage that was begun last."""
        passages = joined([*self.now.passages, Passage(MODEL, text, self.runs)])
        title = self.title if title is None else title
        self.versions[self.shown] = replace(self.now, title=title, passages=passages)

    def end_passage(self, why: str) -> None:
        """The model stopped. A passage that brought nothing leaves no version behind."""
        before = self.versions[self.shown - 1]
        same = (before.title, before.text) == (self.title, self.text)
        if same and self.can_undo:
            self.shown -= 1  # first: another thread may ask for `now` at any moment
            del self.versions[self.shown + 1]
        self.versions[self.shown] = replace(self.now, ended=why)

    def last_passage(self) -> int | None:
        """Where the newest passage by the model begins in this version; None if there is none."""
        newest = max((passage.run for passage in self.now.passages), default=0)
        position = 0
        for passage in self.now.passages:
            if newest and passage.run == newest:
                return position
            position += len(passage.text)
        return None
