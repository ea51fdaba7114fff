"""A folder on a drive that can be unmounted at any time."""

import errno
import json
import os
import threading
from pathlib import Path

from golpo.files import (
    is_unmounted,
    make_folder,
    move_folder_aside,
    not_mounted,
    try_to_write,
)

RECORD = ".remote"  # in the local folder: what is known about the remote one


class RemoteFolder:
    """The folder `path`, which is made once and never again.

    After an unmount, a folder of the same path would be made on this machine's disk: it would be
    lost with the session, and it would be in the way of the next mount. `local` is a folder on
    this machine's disk, which remembers for later trainings that the remote one existed.
    """

    def __init__(self, path: Path, local: Path):
        self.path = path
        self.local = local

    def known(self) -> dict:
        """What was seen of the folder before; empty if it was never seen."""
        try:
            found = json.loads((self.local / RECORD).read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        ours = isinstance(found, dict) and found.get("folder") == str(self.path)
        return found if ours else {}

    def device(self) -> int | None:
        """The number of the disk that the folder is on; None if there is no such folder."""
        try:
            return os.stat(self.path).st_dev
        except FileNotFoundError:
            return None

    def check(self) -> None:
        """Raise OSError unless the folder is there, on its drive. The first time, make it."""
        if is_unmounted(self.path):
            raise not_mounted(self.path)
        known = self.known()
        if self.device() is None:
            if known:
                raise OSError(
                    errno.ENOENT,
                    "the folder has disappeared; mount its drive again, or make it yourself",
                    str(self.path),
                )
            make_folder(self.path)
        separate_disk = self.device() != os.stat(self.local).st_dev
        if known.get("separate_disk") and not separate_disk:
            raise OSError(
                errno.ENODEV,
                "this is no longer the folder on the drive, but one on this machine's own disk; "
                "move it away and mount the drive again",
                str(self.path),
            )
        if not known:
            about = {"folder": str(self.path), "separate_disk": separate_disk}
            move_folder_aside(self.local / RECORD)
            (self.local / RECORD).write_text(json.dumps(about))

    def probe(self, timeout: float) -> None:
        """Write a small file. Raises OSError if that fails or takes over `timeout` seconds."""
        done = threading.Event()
        errors = []

        def write():
            try:
                try_to_write(self.path)
            except OSError as error:
                errors.append(error)
            done.set()

        threading.Thread(target=write, daemon=True).start()
        if not done.wait(timeout):
            raise OSError(errno.ETIMEDOUT, "the drive does not answer", str(self.path))
        if errors:
            raise errors[0]
