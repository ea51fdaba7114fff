"""Reading from a drive that may never answer: done in a thread, and given up without progress.

A system call on a remote drive can hang for ever, and no exception interrupts it. So the thread is
left behind, and the program continues without what it was to bring.
"""

import errno
import io
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

from golpo.console import print_safely

SECONDS_UNTIL_NOTE = 10.0
SECONDS_UNTIL_GIVEN_UP = 120.0  # without progress; Drive alone may take a minute to answer
SECONDS_WHILE_OTHERS_HANG = 10.0  # the same, while earlier work still hangs
SECONDS_BETWEEN_LOOKS = 0.5
Result = TypeVar("Result")


class _Work(threading.local):
    """In a thread that is watched: when it last made progress. In others: nothing."""

    progress: list[float] | None = None


_work = _Work()
_left_behind: list[threading.Thread] = []


def note_progress() -> None:
    """Say that the work of this thread moves on."""
    if _work.progress is not None:
        _work.progress[0] = time.monotonic()


def watched(path: str | Path, work: Callable[[], Result]) -> Result:
    """Return `work()`, which reads from a drive at `path`, and raise what it raises.

    Raises OSError if for SECONDS_UNTIL_GIVEN_UP it neither ends nor calls `note_progress`. After
    SECONDS_UNTIL_NOTE a line says what is waited for.
    """
    progress = [time.monotonic()]
    results = []
    errors = []

    def run() -> None:
        _work.progress = progress
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    wait_for(thread, progress, path)
    if errors:
        raise errors[0]
    return results[0]


def wait_for(thread: threading.Thread, progress: list[float], path: str | Path) -> None:
    """Wait until `thread` ends. Raises OSError if it stops making progress."""
    others_hang = any(other.is_alive() for other in _left_behind)
    limit = SECONDS_WHILE_OTHERS_HANG if others_hang else SECONDS_UNTIL_GIVEN_UP
    noted = False
    while True:
        thread.join(SECONDS_BETWEEN_LOOKS)
        if not thread.is_alive():
            break
        idle = time.monotonic() - progress[0]
        if idle > limit:
            _left_behind.append(thread)
            reason = f"the drive has not answered for {limit:.0f} seconds"
            raise OSError(errno.ETIMEDOUT, reason, str(path))
        if idle > min(limit, SECONDS_UNTIL_NOTE) and not noted:
            noted = True
            print_safely(
                f"Waiting for {str(path)!r}, which has not answered for {idle:.0f} seconds; it is "
                f"given up after {limit:.0f}."
            )


def read_watched(path: str | Path, read: Callable[[BinaryIO], Result]) -> Result:
    """Return `read(file)` of the file at `path`; each part that arrives counts as progress."""

    def work() -> Result:
        with WatchedReader(path) as file:
            return read(file)

    return watched(path, work)


class WatchedReader(io.BufferedReader):
    """A file to read of which each part that arrives counts as progress."""

    def __init__(self, path: str | Path):
        super().__init__(open(path, "rb", buffering=0))

    def read(self, size: int | None = -1) -> bytes:
        note_progress()
        return super().read(size)

    def readinto(self, buffer) -> int:
        note_progress()
        return super().readinto(buffer)
