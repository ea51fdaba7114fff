"""The checkpoints of one training: two slots in turn, the best, the lock and the free space."""

import errno
import shutil
import time
from pathlib import Path

import torch

from golpo.checkpoint import BEST, SLOTS, list_checkpoints, original_name, save_checkpoint
from golpo.console import print_safely
from golpo.errors import CheckpointError
from golpo.files import make_folder, move_folder_aside, try_to_write
from golpo.remote_copy import RemoteCopy
from golpo.watchdog import watched
from golpo_utils import GPTModel


class CheckpointManager:
    """Keeps one training's checkpoints in `folder`. A context manager.

    staging: if `folder` is remote, such as Google Drive, a local folder that is written first; a
    thread then copies, and training continues meanwhile. A save that fails warns, and training
    continues too. copy_timeout: how many seconds the end of the `with` block waits for the last
    copy. Raises CheckpointError if another training uses the folder.
    """

    def __init__(
        self,
        folder: str | Path,
        staging: str | Path | None = None,
        copy_timeout: float = 600,
    ):
        self.folder = Path(folder)
        self.write_dir = Path(staging or folder)
        self.copy_timeout = copy_timeout
        self.next_slot = 0  # index into SLOTS
        self.saved_step = -1
        self.tried_at = time.monotonic()  # when a save was last tried
        self.failed = False  # whether the last save failed
        self.remote = None
        if self.write_dir != self.folder:
            self.remote = RemoteCopy(self.write_dir, self.folder)

    def __enter__(self) -> "CheckpointManager":
        from filelock import FileLock, Timeout

        make_folder(self.write_dir)
        move_folder_aside(self.write_dir / ".lock")
        self.lock = FileLock(self.write_dir / ".lock")  # it ends with the process
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            raise CheckpointError(
                f"another training is writing to {str(self.folder)!r}; stop it, or choose "
                f"another checkpoint_dir"
            ) from None
        if self.remote is not None:
            try:
                self.remote.open()
            except BaseException:
                self.lock.release()
                raise
        return self

    def __exit__(self, *_) -> None:
        try:
            if self.remote is not None:
                last_slot = SLOTS[1 - self.next_slot] if self.saved_step >= 0 else None
                self.remote.close(last_slot, self.saved_step, self.copy_timeout)
        finally:
            self.lock.release()

    def check_room(self, model: GPTModel) -> None:
        """Raise OSError unless the folders are writable and hold two slots and the best.

        A remote folder that is out of reach is left out: `RemoteCopy.open` has warned.
        """
        # A slot holds the weights and two averages of AdamW. There are two slots, and a third
        # while one is written; the best holds weights only. A fourth slot is replaced while it is
        # being copied.
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        self.check_folder(self.write_dir, weights * (10 if self.remote is None else 13))
        if self.remote is not None and (self.remote.refused or not self.remote.failed):
            try:
                watched(self.folder, lambda: self.check_folder(self.folder, weights * 10))
            except TimeoutError as error:
                self.remote.give_up(error)

    def check_folder(self, folder: Path, needed: int) -> None:
        """Raise OSError unless `folder` can be written and has `needed` bytes for checkpoints."""
        try:
            make_folder(folder)
            try_to_write(folder)
        except OSError as error:
            reason = f"{error.strerror}; choose another checkpoint_dir"
            raise OSError(error.errno, reason, str(folder)) from None
        ours = sum(size_of(path) for path in list_checkpoints(folder))
        free = shutil.disk_usage(folder).free + ours
        if free < needed:
            raise OSError(
                errno.ENOSPC,
                f"{free / 1e9:.2f} GB free of the {needed / 1e9:.2f} GB needed; make room, or "
                f"choose another checkpoint_dir",
                str(folder),
            )

    def require_remote(self) -> None:
        """Raise CheckpointError if the remote folder is out of reach: it may hold a training."""
        if self.remote is not None and self.remote.failed:
            raise CheckpointError(
                f"{self.remote.warning}; a fresh training could overwrite what is there: mount "
                f"the drive again, or choose another checkpoint_dir"
            )

    def resume_from(self, path: Path) -> None:
        """Let the next save spare the slot of the checkpoint at `path`.

        If it is in the staging folder, it is first copied to the remote one.
        """
        slot = int(original_name(path) == SLOTS[1])
        self.next_slot = 1 - slot
        if self.remote is None:
            return
        if path.parent == self.write_dir:
            self.remote.start_copy(SLOTS[slot])
        else:
            self.remote.last_good = SLOTS[slot]

    def save_due(self, minutes: float) -> bool:
        """Whether to save now: every so many minutes, and within one after a failure.

        Prints what has happened to the copies.
        """
        if self.remote is not None:
            self.remote.print_news()
        failed = self.failed or (self.remote is not None and self.remote.failed)
        minutes = min(minutes, 1) if failed else minutes
        return time.monotonic() - self.tried_at > 60 * minutes

    def save(
        self,
        model: GPTModel,
        optimizer: torch.optim.Optimizer | None,
        *,
        best: dict | None = None,
        **entries,
    ) -> bool:
        """Save a training into the next slot, and its best weights; return whether that worked.

        entries: keywords of `save_checkpoint`, such as global_step. best: the same for the best
        weights, which may be of an earlier step. The copy to a remote folder follows in a thread.
        """
        self.tried_at = time.monotonic()
        step = entries["global_step"]
        self.failed = best is not None and not self.try_to_save(BEST, model, None, best)
        if step != self.saved_step:
            slot = SLOTS[self.next_slot]
            if not self.try_to_save(slot, model, optimizer, entries):
                self.failed = True
                return False
            self.saved_step = step
            self.next_slot = 1 - self.next_slot
            if self.remote is not None:
                self.remote.start_copy(slot)
        return not self.failed

    def try_to_save(self, name: str, model: GPTModel, optimizer, entries: dict) -> bool:
        """Save one file; print a warning if that fails, for whatever reason."""
        try:
            save_checkpoint(
                model, optimizer, checkpoint_dir=self.write_dir, checkpoint_file=name, **entries
            )
        except Exception as error:  # a disk, memory, a weight that is not finite
            self.warn(error)
            return False
        return True

    def warn(self, error: Exception) -> None:
        """Print that a save failed."""
        reason = str(error) or type(error).__name__
        print_safely(
            f"Warning: no checkpoint was saved in {str(self.write_dir)!r} ({reason}). Training "
            f"continues, and saving is tried again soon."
        )


def size_of(path: Path) -> int:
    """The size of a file in bytes; 0 if it cannot be read."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
