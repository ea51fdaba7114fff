"""Keeps a corpus's tokens on disk, so that it is tokenized once. What is kept is checked.

A pair of files of uint16, for training and validation, lies beside a .json with their sizes and
SHA-256. Whatever does not fit is made anew. The folder is the user's own and its size is bounded.
"""

import atexit
import contextlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from golpo.console import print_safely
from golpo.files import is_unmounted, not_mounted, sha256_of

MAX_CACHE_SIZE = 8 << 30  # bytes; the entries that were not used for the longest time go first
PARTS = ("train", "val")
ENTRY = re.compile(r"([0-9a-f]{24})\.(train\.u16|val\.u16|json|lock)")
WORK_PREFIX = "work-"  # a folder in which a process makes an entry

# Fills the two files and returns what else the entry shall hold (JSON).
WriteTokens = Callable[[BinaryIO, BinaryIO], dict]


@dataclass
class CachedTokens:
    """An entry of the cache."""

    train_ids: Tensor  # (tokens,) uint16, memory-mapped
    val_ids: Tensor  # (tokens,) uint16, memory-mapped
    about: dict  # what WriteTokens returned


def cached_tokens(key: str, write: WriteTokens, cache_dir: str | Path | None) -> CachedTokens:
    """The tokens that are kept under `key`; if there are none, or damaged ones, `write` makes them.

    key: 24 hexadecimal digits. cache_dir: None means the user's cache folder, or a private
    temporary one if that cannot be used. Of several processes, one writes and the others wait.
    Raises OSError if no folder can be written.
    """
    folders = [Path(cache_dir)] if cache_dir is not None else default_folders()
    for folder in folders:
        try:
            prepare_folder(folder, private=cache_dir is None)
            return _tokens_in(folder, key, write)
        except OSError as error:
            print_safely(f"The token cache cannot be in {str(folder)!r} ({error}).")
    folder = Path(tempfile.mkdtemp(prefix="golpo-tokens-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    print_safely(f"The tokens are in {str(folder)!r} until this program ends.")
    return _tokens_in(folder, key, write)


def default_folders() -> list[Path]:
    """Where the cache may be, best first: each is one user's own."""
    import platformdirs

    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    return [
        platformdirs.user_cache_path("golpo-kothok-gpt", appauthor=False) / "tokens",
        Path(tempfile.gettempdir()) / f"golpo-kothok-gpt-{user}",
    ]


def prepare_folder(folder: Path, private: bool) -> None:
    """Make the folder if needed. Raises OSError if it cannot be written.

    private: it must also belong to this user, and nobody else may write to it.
    """
    if is_unmounted(folder):
        raise not_mounted(folder)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if private and hasattr(os, "getuid"):
        about = folder.stat()
        if folder.is_symlink() or about.st_uid != os.getuid():
            raise PermissionError("it belongs to another user")
        if about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            folder.chmod(0o700)
    with os.scandir(folder), tempfile.TemporaryFile(dir=folder):
        pass


def _tokens_in(folder: Path, key: str, write: WriteTokens) -> CachedTokens:
    found = read_entry(folder, key)
    if found is None:
        with entry_lock(folder, key):
            found = read_entry(folder, key)  # another process may have made it
            if found is None:
                remove_leftovers(folder, key)
                write_entry(folder, key, write)
                found = read_entry(folder, key)
    if found is None:
        raise OSError("what was written could not be read again")
    remove_old_entries(folder, key)
    return found


def read_entry(folder: Path, key: str) -> CachedTokens | None:
    """The entry under `key`, or None if it is missing or damaged, which is printed."""
    about_file = folder / f"{key}.json"
    try:
        about = json.loads(about_file.read_text(encoding="utf-8"))
        tensors = []
        for part in PARTS:
            file = folder / f"{key}.{part}.u16"
            if file.stat().st_size != about[part]["bytes"]:
                raise ValueError(f"{file.name} has another size than it had")
            if sha256_of(file) != about[part]["sha256"]:
                raise ValueError(f"{file.name} is not what was written")
            tensors.append(map_tokens(file))
        os.utime(about_file)  # it was used
        return CachedTokens(*tensors, about["about"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        print_safely(f"The token cache was damaged ({error}); the corpus is tokenized again.")
        return None


def map_tokens(file: Path) -> Tensor:
    """A file of uint16 as a tensor, (tokens,), which is read from the disk where it is used."""
    return torch.from_numpy(np.memmap(file, dtype=np.uint16, mode="c"))


def write_entry(folder: Path, key: str, write: WriteTokens) -> None:
    """Make the entry under `key`: each file appears whole, the .json last."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=f"{WORK_PREFIX}{key}-") as work:
        files = [Path(work) / f"{key}.{part}.u16" for part in PARTS]
        with open(files[0], "wb") as train, open(files[1], "wb") as val:
            about = {"about": write(train, val)}
            for part, file in zip(PARTS, (train, val), strict=True):
                file.flush()
                os.fsync(file.fileno())
                about[part] = {"bytes": file.tell()}
        for part, file in zip(PARTS, files, strict=True):
            about[part]["sha256"] = sha256_of(file)
        about_file = Path(work) / f"{key}.json"
        about_file.write_text(json.dumps(about), encoding="utf-8")
        for file in (*files, about_file):
            target = folder / file.name
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(file, target)


@contextlib.contextmanager
def entry_lock(folder: Path, key: str, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of an entry; yield whether it is held. The system frees a killed one's lock."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / f"{key}.lock")
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        yield False
        return
    except NotImplementedError:  # a file system without locks: two processes may do the same work
        yield True
        return
    try:
        yield True
    finally:
        lock.release()


def remove_leftovers(folder: Path, held_key: str) -> None:
    """Remove the work folders of processes that were killed. held_key: this process's own lock."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(WORK_PREFIX)]
    for name in names:
        key = name.removeprefix(WORK_PREFIX).partition("-")[0]
        if key == held_key:
            lock = contextlib.nullcontext(True)
        else:
            lock = entry_lock(folder, key, wait=False)
        with lock as is_free:
            if is_free:
                shutil.rmtree(folder / name, ignore_errors=True)


def remove_old_entries(folder: Path, key: str) -> None:
    """Remove entries other than `key`, those unused for longest first, down to MAX_CACHE_SIZE."""
    entries: dict[str, list] = {}
    with os.scandir(folder) as files:
        for file in files:
            if match := ENTRY.fullmatch(file.name):
                with contextlib.suppress(OSError):
                    entries.setdefault(match[1], []).append((file.path, file.stat()))
    total = sum(about.st_size for files in entries.values() for _, about in files)
    used = {one: max(about.st_mtime for _, about in files) for one, files in entries.items()}
    for one in sorted(entries, key=used.get):
        if total <= MAX_CACHE_SIZE:
            return
        if one == key:
            continue
        with entry_lock(folder, one, wait=False) as is_free:
            if is_free:
                for path, about in entries[one]:
                    with contextlib.suppress(OSError):
                        os.unlink(path)
                        total -= about.st_size
