"""Where checkpoints and stories are stored: Google Drive on Colab, else a local folder."""

import contextlib
import hashlib
import importlib.util
import io
import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import NamedTuple

from golpo.console import print_safely
from golpo.files import MOUNT_POINTS, as_path
from golpo.paths import PROJECT_DIR
from golpo.watchdog import watched

FOLDERS = ("gpt_checkpoints", "output")


class Storage(NamedTuple):
    """The folders of a training."""

    checkpoint_dir: Path
    output_dir: Path
    staging_dir: Path | None  # a local folder to write checkpoints in first, if on Drive
    persistent: bool  # whether the folders remain when the session ends


def open_storage(
    folder: str | Path | None = None,
    drive_folder: str = "Golpo-Kothok-GPT",
    mount_point: str | Path = "/content/drive",
) -> Storage:
    """Decide where checkpoints and stories are stored, and make the folders.

    That is `folder` if given, else Google Drive on Colab, else the project's folder. If Drive
    cannot be mounted in two tries, it is the project's folder, with a warning. Nothing is made
    below the mount point unless Drive is mounted: the next mount would be refused.
    """
    on_colab = all(importlib.util.find_spec(name) for name in ("google", "google.colab"))
    mount_point = Path(os.path.abspath(mount_point))
    home = Path(os.path.abspath(as_path("folder", folder or PROJECT_DIR)))
    if on_colab:
        MOUNT_POINTS.add(mount_point)
        if folder is None:
            home = mount_drive(mount_point, Path("MyDrive", drive_folder)) or home
        elif mount_point in home.parents:
            home = mount_drive(mount_point, home.relative_to(mount_point)) or PROJECT_DIR
    persistent = not on_colab or mount_point in home.parents
    staging = None
    if on_colab and persistent:
        digest = hashlib.sha256(str(home).encode()).hexdigest()[:8]
        staging = Path(tempfile.gettempdir()) / f"golpo-kothok-{digest}"
    if not persistent:
        line = "!" * 90
        print_safely(line)
        print_safely(
            f"NOTHING WILL REMAIN AFTER THIS SESSION: {str(home)!r} is not on Google Drive."
        )
        print_safely(line)
    if mount_point not in home.parents:
        for name in FOLDERS:
            (home / name).mkdir(parents=True, exist_ok=True)
    checkpoint_dir, output_dir = (home / name for name in FOLDERS)
    return Storage(checkpoint_dir, output_dir, staging, persistent)


def mount_drive(mount_point: Path, folder: Path) -> Path | None:
    """Mount Google Drive in at most two tries; return the project's folder on it, or None.

    folder: relative to the mount point; it and its two folders are made if they are missing.
    """
    from google.colab import drive

    for force in (False, True):
        try:
            drive.mount(str(mount_point), force_remount=force)
            watched(mount_point, lambda: make_drive_folders(mount_point, folder))
            return mount_point / folder
        except Exception as error:  # whatever Colab raises, training continues
            print_safely(f"Mounting Google Drive failed ({type(error).__name__}: {error}).")
    with contextlib.suppress(OSError):
        if os.listdir(mount_point):
            print_safely(
                f"Drive is never mounted over files of this machine: if {str(mount_point)!r} "
                f"holds such files, move them elsewhere and run this cell again."
            )
    return None


def make_drive_folders(mount_point: Path, folder: Path) -> None:
    """Make the folders of a training on Drive, and list one. Raises OSError."""
    for name in FOLDERS:
        make_drive_folder(mount_point, folder / name)
    # A Drive whose folders cannot be listed would look as if there were no checkpoints.
    os.listdir(mount_point / folder / FOLDERS[0])


def make_drive_folder(mount_point: Path, folder: Path) -> None:
    """Make `folder`, relative to the mount point, on a Drive that is mounted.

    Its first part (MyDrive or Shareddrives) is Drive's own and never made here. Raises OSError.
    """
    first, *others = folder.parts
    path = mount_point / first
    if not path.is_dir():
        raise FileNotFoundError(f"Drive is not mounted: there is no {str(path)!r}")
    for part in others:
        path = path / part
        path.mkdir(exist_ok=True)


def flush_drive(timeout: float = 120) -> None:
    """On Colab: wait at most `timeout` seconds while Drive uploads, and unmount it.

    Prints what Colab says, and claims nothing else: Colab only prints a line and returns when
    no Drive is mounted.
    """
    if "google.colab" not in sys.modules:
        return
    from google.colab import drive

    outcome: list[str] = []
    output = _ThreadOutput(sys.stdout)

    def flush() -> None:
        output.thread = threading.get_ident()
        try:
            drive.flush_and_unmount()
            outcome.append("")
        except Exception as error:
            outcome.append(f"Drive may not have uploaded everything ({error}).")

    thread = threading.Thread(target=flush, daemon=True)
    with contextlib.redirect_stdout(output):
        thread.start()
        thread.join(timeout)
    printed = " ".join(output.captured.getvalue().split())
    if not outcome:
        message = f"Drive is still uploading after {timeout} seconds; leave this tab open."
    elif outcome[0]:
        message = outcome[0]
    elif "not mounted" in printed.lower():
        message = "Nothing was uploaded, because Google Drive is not mounted."
    else:
        message = "Drive says that everything is uploaded; it is unmounted now."
    print_safely(f"{message} Colab's own words: {printed}" if printed else message)


class _ThreadOutput(io.TextIOBase):
    """A standard output that keeps what one thread prints and passes on what others print."""

    def __init__(self, output):
        self.output = output
        self.captured = io.StringIO()
        self.thread: int | None = None

    def write(self, text: str) -> int:
        is_captured = threading.get_ident() == self.thread
        return (self.captured if is_captured else self.output).write(text)

    def flush(self) -> None:
        self.output.flush()
