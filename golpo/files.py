"""Files that a kill, a full disk or an unmounted drive cannot leave half written or misread."""

import contextlib
import errno
import hashlib
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from golpo.console import print_safely
from golpo.watchdog import note_progress

SECONDS_TO_REMEMBER = 300
SECONDS_UNTIL_TIMES_DIFFER = 5
BLOCK = 2**20  # bytes that are read or written at once
# Where remote drives are mounted; `open_storage` adds its own. A mount point is an empty folder
# while nothing is mounted, and the next mount is refused if anybody has put a file into it.
MOUNT_POINTS = {Path("/content/drive")}


def as_path(name: str, value: str | os.PathLike) -> Path:
    """`value` as a path. Raises ValueError that calls it `name` if it can be none."""
    try:
        encoded = os.fsencode(value)
    except (TypeError, UnicodeEncodeError):  # half of a character is in no file's name
        encoded = b""
    if not encoded or b"\0" in encoded or isinstance(value, bytes):
        raise ValueError(f"{name} is {value!r}; it must be a path")
    return Path(value)


def write_text(path: Path, text: str) -> None:
    """Write a text file as UTF-8; half a character becomes a question mark.

    Raises OSError that names the file, which Python's own does not if the disk is full.
    """
    try:
        path.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; it was not written", str(path)) from None


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits. Raises OSError."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            note_progress()
    return digest.hexdigest()


_hashes = {}  # path → (identity, time, SHA-256), of files hashed lately by this process


def sha256_of_recent(path: str | Path) -> str:
    """Like `sha256_of`, but a file that was hashed in the last minutes is not read again.

    That it is unchanged is judged by its size and times. A file that was written within the last
    seconds is always read: its times may be those of an earlier write.
    """
    path = Path(path)
    about = path.stat()
    identity = (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
    now = time.time()
    found = _hashes.get(path)
    if found is not None and found[0] == identity and 0 <= now - found[1] < SECONDS_TO_REMEMBER:
        return found[2]
    digest = sha256_of(path)
    _hashes.pop(path, None)
    if max(about.st_mtime, about.st_ctime) < now - SECONDS_UNTIL_TIMES_DIFFER:
        _hashes[path] = (identity, now, digest)
    return digest


def move_folder_aside(path: Path) -> None:
    """Rename a folder that has the name of a file that is to be written."""
    if not path.is_dir() or path.is_symlink():
        return
    names = (path.with_name(f"{path.name}.folder{n}") for n in itertools.count(1))
    free = next(name for name in names if not name.exists())
    path.rename(free)
    print_safely(
        f"Note: the folder {str(path)!r} is in the way of a file; it is now {free.name!r}."
    )


def try_to_write(folder: Path) -> None:
    """Write a small file into `folder`. Raises OSError if the disk refuses."""
    probe = folder / ".probe"
    move_folder_aside(probe)
    probe.write_bytes(b"golpo")


def write_to_disk(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill the file at `path`, and wait until it is on the disk."""
    move_folder_aside(path)
    with open(path, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Like `write_to_disk`, but at every moment the file is the old or the new one, whole."""
    part = path.with_name(path.name + ".part")
    move_folder_aside(path)
    try:
        write_to_disk(part, write)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def write_together(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files go into `folder` once all of them are written.

    Each replaces an earlier file of its name; all other files of `folder` stay. If writing fails,
    `folder` stays as it was. Raises OSError.
    """
    make_folder(folder)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as new:
        yield Path(new)
        for path in sorted(Path(new).rglob("*")):
            target = folder / path.relative_to(new)
            if path.is_dir():
                make_folder(target)
            else:
                move_folder_aside(target)
                os.replace(path, target)


def is_unmounted(path: str | Path) -> bool:
    """Whether `path` lies below a mount point on which nothing is mounted."""
    path = Path(os.path.abspath(path))
    for mount_point in MOUNT_POINTS:
        if mount_point in path.parents:
            # A mounted Google Drive always has its own first folder, MyDrive.
            first = mount_point / path.relative_to(mount_point).parts[0]
            return not first.is_dir()
    return False


def not_mounted(path: str | Path) -> OSError:
    """The exception for a path below a mount point on which nothing is mounted."""
    return OSError(errno.ENODEV, "the drive is not mounted; mount it again", str(path))


def make_folder(path: Path) -> None:
    """Make a folder and its parents, except below a mount point on which nothing is mounted.

    Raises OSError if the disk refuses or the drive is not mounted.
    """
    if is_unmounted(path):
        raise not_mounted(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        reason = "a file has the name of this folder; choose another one"
        raise NotADirectoryError(errno.ENOTDIR, reason, str(path)) from None


def list_folder(folder: str | Path) -> list[Path]:
    """The entries of `folder`, sorted; an empty list if there is no such folder.

    Raises OSError if it cannot be read: `Path.glob` would call it empty from Python 3.12 on.
    """
    if is_unmounted(folder):
        raise not_mounted(folder)
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(folder, entry.name) for entry in entries)
    except FileNotFoundError:
        return []
