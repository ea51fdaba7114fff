"""What its owner likes: choices between stories, one JSON record a line, in a file of their own.

A line is appended whole and waited for until it is on the disk. A line that a kill or a full disk
cut short, or that is none of ours, is skipped when the file is read, and counted.
"""

import json
import os
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from golpo.files import is_unmounted, make_folder, not_mounted
from golpo_utils import check_kind, check_number

CHOICES_FILE = "choices.jsonl"
MOST_STORIES = 4


def current_time() -> str:
    """The time in UTC, to the second, as ISO 8601 has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Choice:
    """One choice: several stories with the same opening, and which of them is liked.

    Raises ValueError unless there are two to four different stories and `liked` is one of them.
    """

    stories: list[str]  # what the model wrote after the opening, with <|end|> if it came to an end
    liked: int  # the place of the liked story in `stories`, from 0 on
    opening: str = ""  # the words that the stories begin with
    title: str = ""
    note: str = ""  # that the model saw before the opening
    request: str | None = None  # lines as golpo/requests.py formats them; None: nothing
    settings: list[dict] = field(default_factory=list)  # of each story
    checkpoint: str = ""  # the model that wrote them: `base_fingerprint` of golpo/adapter_files.py
    time: str = field(default_factory=current_time)

    def __post_init__(self):
        check_kind("the stories", self.stories, list, "a list of texts")
        check_number("the number of stories", len(self.stories), 2, MOST_STORIES, whole=True)
        for story in self.stories:
            check_kind("a story", story, str, "a text")
        check_number("the place of the liked story", self.liked, 0, len(self.stories) - 1, True)
        if self.stories.count(self.stories[self.liked]) > 1:
            raise ValueError("the liked story stands there twice; let the model write others")
        for name in ("opening", "title", "note", "checkpoint", "time"):
            check_kind(f"the choice's {name}", getattr(self, name), str, "a text")
        check_kind("the choice's request", self.request, str | None, "a text, or None")
        check_kind("the choice's settings", self.settings, list, "a list with a dict for each")


class ChoicesRead(NamedTuple):
    """What a file of choices holds."""

    choices: list[Choice]
    skipped: int  # lines that are no choice

    def describe(self) -> str:
        """How many choices there are, and how many lines were skipped, as one sentence."""
        text = f"{count(len(self.choices), 'choice')} in {CHOICES_FILE}"
        if self.skipped:
            text += f"; {count(self.skipped, 'line')} skipped: torn, or not a choice"
        return text + "."


def count(number: int, noun: str) -> str:
    """A number with its noun: "1 choice", "3 choices"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def append_choice(folder: str | Path, choice: Choice) -> Path:
    """Add `choice` to the file of choices in `folder`; return the file. It is then on the disk.

    Raises OSError if the disk refuses or the drive is not mounted.
    """
    path = Path(folder, CHOICES_FILE)
    make_folder(path.parent)
    line = json.dumps(asdict(choice), ensure_ascii=False).encode("utf-8", "replace") + b"\n"
    is_new = not path.exists()
    with open(path, "ab+", buffering=0) as file:
        # A line that an interruption cut short must not be joined with this one.
        if file.seek(0, os.SEEK_END) > 0:
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        rest = memoryview(line)
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
    if is_new:
        sync_folder(path.parent)
    return path


def sync_folder(folder: Path) -> None:
    """Wait until the names in `folder` are on the disk, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some drives cannot
        pass
    finally:
        os.close(descriptor)


def read_choices(folder: str | Path) -> ChoicesRead:
    """The choices in `folder`, oldest first, and how many lines were skipped.

    Without a file there are none. Raises OSError if it cannot be read.
    """
    path = Path(folder, CHOICES_FILE)
    if is_unmounted(path):
        raise not_mounted(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return ChoicesRead([], 0)
    lines = [line for line in content.split(b"\n") if line.strip()]
    choices = [choice for line in lines if (choice := parse_choice(line)) is not None]
    return ChoicesRead(choices, len(lines) - len(choices))


def parse_choice(line: bytes) -> Choice | None:
    """The choice in a line of the file; None if it holds none. Unknown fields are left out."""
    known = Choice.__dataclass_fields__
    try:
        record = json.loads(line)
        return Choice(**{name: value for name, value in record.items() if name in known})
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
