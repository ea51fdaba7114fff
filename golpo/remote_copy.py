"""Copies checkpoints from a fast local folder to a slow remote one, while training continues."""

import contextlib
import errno
import hashlib
import json
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

from golpo.checkpoint import BEST, SLOTS
from golpo.console import print_safely
from golpo.files import BLOCK, replace_file, sha256_of, write_to_disk
from golpo.manifest import manifest_path, read_manifest
from golpo.metrics import METRICS_FILE, merge_records, read_records, write_records
from golpo.remote_folder import RemoteFolder
from golpo.remote_lock import RemoteLock
from golpo.watchdog import watched

# Errors that do not pass by themselves.
REFUSALS = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT)


def copy_checkpoint(
    source: Path,
    destination: Path,
    cancelled: threading.Event | None = None,
    before_manifest: Callable[[], object] = lambda: None,
) -> None:
    """Copy a finished checkpoint and, last, its manifest, unless the copy exists; verify both.

    The destination is overwritten in place: Google Drive moves a replaced or deleted file to the
    trash, where it still counts towards the quota. `source` may be replaced meanwhile: the file
    that was opened is copied. Once `cancelled` is set, it stops. before_manifest: called before
    the copy counts as a checkpoint. Raises OSError.
    """
    manifest = manifest_path(source).read_bytes()
    target = manifest_path(destination)
    if target.is_file() and target.read_bytes() == manifest:
        return
    digest = hashlib.sha256()

    def write(writer):
        while block := reader.read(BLOCK):
            if cancelled is not None and cancelled.is_set():
                raise InterruptedError(errno.EINTR, "copying was cancelled", str(destination))
            digest.update(block)
            writer.write(block)

    with open(source, "rb") as reader:
        write_to_disk(destination, write)
    if cancelled is not None and cancelled.is_set():
        raise InterruptedError(errno.EINTR, "copying was cancelled", str(destination))
    if json.loads(manifest)["sha256"] != digest.hexdigest():
        raise OSError(errno.EIO, "it was replaced while it was copied, or damaged", str(source))
    if sha256_of(destination) != digest.hexdigest():
        raise OSError(errno.EIO, "the copy differs from what was written", str(destination))
    before_manifest()
    write_to_disk(target, lambda writer: writer.write(manifest))
    if target.read_bytes() != manifest:
        raise OSError(errno.EIO, "the copy differs from what was written", str(target))


class RemoteCopy:
    """Copies finished checkpoints from `source` to `target`, one after another, in a thread.

    The target has two slots of its own: the last good one there is never overwritten, even if a
    copy fails. A copy that fails prints a warning. `lock` keeps trainings on other machines away.
    """

    PROBE_TIMEOUT = 60.0  # seconds

    under_way = {}  # target → the RemoteCopy of this process that may still be copying to it

    def __init__(self, source: Path, target: Path):
        self.source = source
        self.target = target
        self.folder = RemoteFolder(target, source)
        self.lock = RemoteLock(self.folder)
        self.copy_idle = threading.Event()  # no copy is under way
        self.copy_idle.set()
        self.cancelled = threading.Event()
        self.failed = False  # whether the last copy did not arrive
        self.refused = False  # whether the drive answers, but refuses
        self.warning = ""  # the last one
        self.news = deque()  # lines that the copying thread leaves to the main one to print
        self.last_good = None  # the target's slot that must not be overwritten
        self.waiting = None  # the source's slot to copy next
        self.finishing = False  # whether the training has ended, and only copies remain
        self.mutex = threading.Lock()
        self.earlier = None

    def open(self) -> None:
        """Take the lock, and end the copies of an earlier training of this process.

        Prints a warning if the folder is out of reach. Raises CheckpointError if another training
        uses it.
        """
        self.earlier = self.under_way.get(self.target)
        if self.earlier is not None:
            self.earlier.cancel()
        self.under_way[self.target] = self
        try:
            watched(self.target, self.folder.check)
            self.folder.probe(self.PROBE_TIMEOUT)
            self.lock.acquire(wait=True)
            with contextlib.suppress(OSError):
                self.fetch_metrics()
        except OSError as error:
            self.give_up(error)

    def give_up(self, error: OSError) -> None:
        """Print that the target is out of reach; copies try it again."""
        self.failed = True
        self.refused = error.errno in REFUSALS
        self.warn(f"{str(self.target)!r} is out of reach ({error.strerror or error})")
        self.print_news()

    def fetch_metrics(self) -> None:
        """Add the remote folder's records to the local ones, to which the training appends."""
        remote = watched(self.target, lambda: read_records(self.target / METRICS_FILE))
        if remote:
            local = self.source / METRICS_FILE
            write_records(local, merge_records(remote, read_records(local)))

    def start_copy(self, slot: str) -> None:
        """Copy the source's `slot`, after a copy that is under way."""
        with self.mutex:
            self.waiting = slot
            if not self.copy_idle.is_set():
                return
            self.copy_idle.clear()
        try:
            threading.Thread(target=self.copy_waiting, daemon=True).start()
        except (RuntimeError, MemoryError) as error:  # too many threads, too little memory
            self.failed = True
            self.warn(f"a checkpoint was not copied to {str(self.target)!r} ({error})")
            self.copy_idle.set()

    def copy_waiting(self) -> None:
        """Copy until no slot waits any more. Runs in a thread of its own."""
        if self.earlier is not None:
            self.earlier.copy_idle.wait(5 * self.PROBE_TIMEOUT)
        while True:
            with self.mutex:
                slot = None if self.cancelled.is_set() else self.waiting
                self.waiting = None
                if slot is None:
                    self.end_of_copies()
                    return
            try:
                self.copy(slot)
                self.failed = False
                self.warning = ""
            except Exception as error:  # whatever a drive raises, training continues
                self.failed = True
                self.warn(f"a checkpoint was not copied to {str(self.target)!r} ({error})")

    def end_of_copies(self) -> None:
        if self.finishing:
            self.lock.release()
            self.print_news()
            if not self.failed and not self.cancelled.is_set():
                print_safely(f"The last checkpoint has now been copied to {str(self.target)!r}.")
        self.copy_idle.set()

    def copy(self, slot: str) -> None:
        """Copy the metrics, the source's `slot` and the best.

        Raises OSError, or CheckpointError if another training has taken over the target.
        """
        self.folder.check()
        self.lock.check()
        self.try_to_copy_metrics()
        manifest = read_manifest(manifest_path(self.source / slot))
        arrived = [name for name in SLOTS if self.manifest_of(name) == manifest]
        target_slot = arrived[0] if arrived else self.pick_slot()
        paths = (self.source / slot, self.target / target_slot)
        # By now the slot may be newer than those metrics; its own come before its manifest.
        copy_checkpoint(*paths, self.cancelled, self.try_to_copy_metrics)
        self.last_good = target_slot
        if manifest_path(self.source / BEST).is_file():
            copy_checkpoint(self.source / BEST, self.target / BEST, self.cancelled)

    def try_to_copy_metrics(self) -> None:
        """Copy the metrics, unless the drive refuses: a checkpoint does not depend on them."""
        with contextlib.suppress(OSError):
            self.copy_metrics()

    def copy_metrics(self) -> None:
        """Copy the metrics, and keep what only the target has from before them."""
        records = read_records(self.source / METRICS_FILE)
        remote = self.target / METRICS_FILE
        if not records:
            return
        first = records[0]["step"]
        earlier = [record for record in read_records(remote) if record["step"] < first]
        if earlier:
            write_records(remote, earlier + records)
        else:
            content = (self.source / METRICS_FILE).read_bytes()
            replace_file(remote, lambda file: file.write(content))

    def pick_slot(self) -> str:
        """The target's slot to overwrite: never the last good one, else the older one."""
        others = [slot for slot in SLOTS if slot != self.last_good]
        return min(others, key=lambda slot: self.manifest_of(slot).get("step", -1))

    def manifest_of(self, slot: str) -> dict:
        """The manifest of the target's slot; empty if the slot is missing or cut short."""
        path = self.target / slot
        manifest = read_manifest(manifest_path(path))
        if manifest is None or not path.is_file() or path.stat().st_size != manifest["size"]:
            return {}
        return manifest

    def close(self, last_slot: str | None, step: int, timeout: float) -> None:
        """Wait at most `timeout` seconds for the last copy, and try once more if it failed."""
        try:
            arrived = self.copy_idle.wait(timeout)
            if arrived and self.failed and last_slot is not None:
                self.start_copy(last_slot)
                self.copy_idle.wait(timeout)
        finally:
            with self.mutex:
                self.finishing = True
                idle = self.copy_idle.is_set()
            self.print_news()
            self.lock.leave()
            if idle:
                release = threading.Thread(target=self.lock.release, daemon=True)
                release.start()
                release.join(self.PROBE_TIMEOUT)
            self.say_what_is_missing(idle, step)

    def say_what_is_missing(self, idle: bool, step: int) -> None:
        where = f"step {step} is only in {str(self.source)!r}"
        if not idle:
            print_safely(
                f"Warning: {str(self.target)!r} is slow, and copying continues in the background; "
                f"until it ends, {where}."
            )
        elif self.failed and step >= 0:
            print_safely(f"Warning: {str(self.target)!r} is out of reach; {where}.")

    def cancel(self) -> None:
        """End all copying as soon as possible."""
        self.cancelled.set()

    def warn(self, problem: str) -> None:
        """Add a warning to the news, unless it is the last one again."""
        if problem != self.warning:
            self.news.append(
                f"Warning: {problem}. Training continues; checkpoints are in "
                f"{str(self.source)!r}, and copying is tried again soon."
            )
        self.warning = problem

    def print_news(self) -> None:
        """Print what has happened. Colab does not show all that another thread prints."""
        while self.news:
            print_safely(self.news.popleft())
