"""A stand-in for Google Drive on Colab: it mounts, and it can fail in the ways that Drive does.

What is on Drive is in a folder of its own. While Drive is mounted, `mount_point/MyDrive` is a link
to that folder, so that everything behaves as on Colab: nothing but the mount makes MyDrive, an
unmounted mount point is an empty folder, and a mount is refused while there are files in it.
Faults are kept in a file, so that they hold for processes that share the stand-in.
"""

import builtins
import errno
import io
import json
import os
import shutil
import stat
import threading
import time
from pathlib import Path

REAL_OPEN = io.open
REAL_LISTDIR = os.listdir
REAL_LSTAT = os.lstat
REAL_UNLINK = os.unlink
NO_FAULTS = {
    "refused": 0,  # how many mounts to refuse
    "seconds": 0.0,  # how long each write takes
    "hangs": False,  # whether writes wait until this is over
    "silent": "",  # "all": whatever is asked waits until this is over; "reads": only reading a file
    "gone": 0,  # an errno with which everything below the mount point fails
    "unlistable": 0,  # an errno with which folders cannot be listed
    "room": None,  # how many bytes may still be written
    "flush_seconds": 0.0,  # how long the upload at the end takes
}


class StandInDrive:
    """One Drive in `folder`, mounted by one machine at `mount_point`."""

    def __init__(self, folder: str | Path, mount_point: str | Path):
        self.folder = Path(folder)
        self.mount_point = Path(os.path.abspath(mount_point))
        self.content = self.folder / "content"
        self.content.mkdir(parents=True, exist_ok=True)
        self.mounts = []  # force_remount of each call of mount
        if not self.faults_file.exists():
            self.set_faults()

    @property
    def faults_file(self) -> Path:
        return self.folder / "faults.json"

    @property
    def link(self) -> Path:
        return self.mount_point / "MyDrive"

    def set_faults(self, **faults) -> None:
        """From now on, exactly these faults (see NO_FAULTS)."""
        assert set(faults) <= set(NO_FAULTS), faults
        part = self.faults_file.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        with REAL_OPEN(part, "w") as file:
            json.dump(NO_FAULTS | faults, file)
        os.replace(part, self.faults_file)

    def faults(self) -> dict:
        with REAL_OPEN(self.faults_file) as file:
            return json.load(file)

    def is_mounted(self) -> bool:
        try:
            return stat.S_ISLNK(REAL_LSTAT(self.link).st_mode)
        except OSError:
            return False

    # --- what google.colab.drive offers ----------------------------------------------------

    def mount(self, mountpoint, force_remount=False, timeout_ms=120000, readonly=False):
        assert Path(os.path.abspath(mountpoint)) == self.mount_point
        self.mounts.append(force_remount)
        faults = self.faults()
        if faults["refused"]:
            self.set_faults(**faults | {"refused": faults["refused"] - 1})
            raise ValueError("mount failed")
        if self.is_mounted() and not force_remount:
            print(f"Drive already mounted at {mountpoint}.")
            return
        self.unmount()
        self.mount_point.mkdir(parents=True, exist_ok=True)
        if REAL_LISTDIR(self.mount_point):
            raise ValueError("Mountpoint must not already contain files")
        self.link.symlink_to(self.content, target_is_directory=True)
        print(f"Mounted at {mountpoint}")

    def flush_and_unmount(self, timeout_ms=24 * 60 * 60 * 1000):
        if not self.is_mounted():
            print("Drive not mounted, so nothing to flush and unmount.")
            return
        time.sleep(self.faults()["flush_seconds"])
        self.unmount()

    def unmount(self) -> None:
        """What happens when the connection breaks, or somebody unmounts Drive."""
        if self.is_mounted():
            REAL_UNLINK(self.link)

    # --- the machine -----------------------------------------------------------------------

    def is_below(self, path) -> bool:
        if not isinstance(path, str | os.PathLike):
            return False
        path = os.path.abspath(path)
        return path.startswith(f"{self.mount_point}{os.sep}") and self.is_mounted()

    def files_on_drive(self) -> dict[str, bytes]:
        """What Drive holds: path → content."""
        paths = [path for path in self.content.rglob("*") if path.is_file()]
        return {str(path.relative_to(self.content)): path.read_bytes() for path in paths}

    def is_clean(self) -> bool:
        """Whether nobody has made a folder or a file in the unmounted mount point."""
        return (
            self.is_mounted() or not self.mount_point.exists() or not REAL_LISTDIR(self.mount_point)
        )

    def install_faults(self, patch=setattr) -> None:
        """Make this process meet the faults. patch: monkeypatch.setattr, to undo it."""
        patch(builtins, "open", self.open)
        patch(io, "open", self.open)
        for name in ("stat", "lstat", "mkdir", "replace", "rename", "unlink", "scandir", "listdir"):
            patch(os, name, self.guarded(getattr(os, name), name in ("scandir", "listdir")))

    def check(self, path, listing=False) -> None:
        if not self.is_below(path):
            return
        while self.faults()["silent"] == "all":
            time.sleep(0.01)
        faults = self.faults()
        number = faults["gone"] or (listing and faults["unlistable"])
        if number:
            raise OSError(number, os.strerror(number), str(path))

    def guarded(self, function, listing):
        def call(path=".", *arguments, **more):
            self.check(path, listing)
            return function(path, *arguments, **more)

        return call

    def open(self, file, mode="r", *arguments, **more):
        if not self.is_below(file):
            return REAL_OPEN(file, mode, *arguments, **more)
        self.check(file)
        if not set(mode) & set("wa+x"):
            while self.faults()["silent"] == "reads":
                time.sleep(0.01)
            return REAL_OPEN(file, mode, *arguments, **more)
        raw = DriveFile(self, file, mode.replace("b", "").replace("t", ""))
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffered
        return io.TextIOWrapper(buffered, encoding=more.get("encoding") or "utf-8")


class DriveFile(io.FileIO):
    """A file that is open for writing on the stand-in Drive."""

    def __init__(self, drive: StandInDrive, path, mode: str):
        super().__init__(path, mode)
        self.drive = drive
        self.path = path

    def write(self, data):
        faults = self.drive.faults()
        time.sleep(faults["seconds"])
        while self.drive.faults()["hangs"]:
            time.sleep(0.01)
        self.drive.check(self.path)
        if faults["room"] is not None:
            left = faults["room"] - len(data)
            self.drive.set_faults(**faults | {"room": max(0, left)})
            if left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        return super().write(data)


def write_site_package(site: Path, drive: StandInDrive) -> None:
    """Make a folder for PYTHONPATH in which `google.colab` has this Drive: for notebooks."""
    package = site / "google" / "colab"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text("")
    shutil.copyfile(__file__, site / "standin_drive.py")
    code = (
        "from standin_drive import StandInDrive\n"
        f"DRIVE = StandInDrive({str(drive.folder)!r}, {str(drive.mount_point)!r})\n"
        "DRIVE.install_faults()\n"
        "mount = DRIVE.mount\n"
        "flush_and_unmount = DRIVE.flush_and_unmount\n"
    )
    (package / "drive.py").write_text(code)
