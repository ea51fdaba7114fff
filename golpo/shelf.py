"""The shelf: stories as files in the output folder, one JSON file each, that outlast the kernel.

A file is replaced whole, so at every moment it holds the story as it was or as it is.
"""

import json
import os
import re
import secrets
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from golpo.choices import current_time
from golpo.files import as_path, list_folder, make_folder, replace_file
from golpo.manuscript import MODEL, PERSON, Passage, Version, joined
from golpo_utils import check_kind

SHELF_FOLDER = "stories"
NAME = re.compile(r"[\w-]{1,80}")


def new_name() -> str:
    """A name that no other story has: the time and eight random hexadecimal digits."""
    return time.strftime("%Y-%m-%d-%H%M%S-", time.gmtime()) + secrets.token_hex(4)


@dataclass
class ShelfStory:
    """A story as its file holds it. Raises ValueError for a field of another kind."""

    name: str = field(default_factory=new_name)  # the file's, without .json
    title: str = ""
    passages: list[list] = field(default_factory=list)  # [author, text, run] of `Passage`
    note: str = ""
    starred: bool = False
    ended: str = ""  # as `Version.ended`
    created: str = field(default_factory=current_time)  # UTC, ISO 8601
    changed: str = field(default_factory=current_time)

    def __post_init__(self):
        for each in fields(self):
            value = getattr(self, each.name)
            kind = each.type if isinstance(each.type, type) else list
            kind = list if each.name == "passages" else kind
            check_kind(f"the story's {each.name}", value, kind, f"a {kind.__name__}")
        if not NAME.fullmatch(self.name):
            raise ValueError(f"the story's name is {self.name!r}; letters, digits and - make one")
        for passage in self.passages:
            author, text, run = passage
            if author not in (PERSON, MODEL) or not isinstance(text, str) or type(run) is not int:
                raise ValueError(f"a passage is {passage!r}; it must be [author, text, run]")

    @property
    def text(self) -> str:
        return "".join(text for _, text, _ in self.passages)

    def version(self) -> Version:
        """The story as a version of a `Manuscript`."""
        return Version(self.title, joined([Passage(*p) for p in self.passages]), self.ended)

    def keep(self, version: Version, note: str = "") -> None:
        """Take over what a `Manuscript` shows now."""
        self.title = version.title
        self.passages = [[p.author, p.text, p.run] for p in version.passages]
        self.note = note
        self.ended = version.ended
        self.changed = current_time()

    def summary(self) -> dict:
        """What a list of stories shows: name, title, length in words, date, star."""
        text = self.text
        return {
            "name": self.name,
            "title": self.title.strip() or first_words(text),
            "words": len(text.split()),
            "date": self.changed,
            "starred": self.starred,
        }


def first_words(text: str, most: int = 48) -> str:
    """The beginning of a text that has no title; "Untitled" for an empty one."""
    words = " ".join(text.split())
    if len(words) > most:
        words = words[:most].rsplit(" ", 1)[0] + " …"
    return words or "Untitled"


def check_name(name: str) -> None:
    """Raise ValueError unless `name` can be a story's, and so leads to no other folder."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no story's name; take one from the shelf")


class Shelf:
    """The stories in the folder `stories` of an output folder.

    skipped: how many files the last `stories()` could not read: torn, or not ours.
    """

    def __init__(self, output_dir: str | os.PathLike):
        self.folder = as_path("output_dir", output_dir) / SHELF_FOLDER
        self.skipped = 0

    def path(self, name: str) -> Path:
        """The file of the story `name`. Raises ValueError for a name with other characters."""
        check_name(name)
        return self.folder / f"{name}.json"

    def save(self, story: ShelfStory) -> Path:
        """Write a story whole, in place of an earlier version; return the file.

        Raises OSError if the disk refuses or the drive is not mounted.
        """
        path = self.path(story.name)
        make_folder(self.folder)
        content = json.dumps(asdict(story), ensure_ascii=False).encode("utf-8", "replace")
        replace_file(path, lambda file: file.write(content))
        return path

    def read(self, name: str) -> ShelfStory:
        """The story `name`. Raises OSError if there is none, ValueError for a damaged file."""
        path = self.path(name)
        try:
            record = json.loads(path.read_bytes())
            if "passages" not in record:
                raise ValueError("the file is none of ours")
            known = {each.name for each in fields(ShelfStory)}
            values = {key: value for key, value in record.items() if key in known}
            return ShelfStory(**values | {"name": name})
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise ValueError(
                f"the story in {str(path)!r} cannot be read; the file is damaged, or no story"
            ) from None

    def stories(self) -> list[ShelfStory]:
        """All stories, the one that was changed last first; none without a folder.

        Raises OSError if the folder cannot be read.
        """
        found = []
        self.skipped = 0
        for path in list_folder(self.folder):
            if path.suffix != ".json":
                continue
            try:
                found.append(self.read(path.stem))
            except (ValueError, OSError):
                self.skipped += 1
        return sorted(found, key=lambda story: (story.changed, story.name), reverse=True)

    def search(self, words: str) -> list[ShelfStory]:
        """The stories that have each of `words` in title, text or note, whatever their case."""
        wanted = words.casefold().split()

        def fits(story: ShelfStory) -> bool:
            content = f"{story.title}\n{story.text}\n{story.note}".casefold()
            return all(word in content for word in wanted)

        return [story for story in self.stories() if fits(story)]

    def star(self, name: str, starred: bool) -> None:
        """Give a story a star, or take it away."""
        story = self.read(name)
        story.starred = bool(starred)
        self.save(story)

    def delete(self, name: str) -> None:
        """Delete a story's file. It is emptied first: a drive's bin would still count its size."""
        path = self.path(name)
        os.truncate(path, 0)
        path.unlink()
