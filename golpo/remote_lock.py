"""A lock in a folder that several machines see, such as one on Google Drive.

The lock is a small file with its owner and a heartbeat, the time of the owner's last sign of life.
An owner without a heartbeat for some minutes is dead, and the next training takes over.
"""

import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path

from golpo.console import print_safely
from golpo.errors import CheckpointError
from golpo.files import move_folder_aside
from golpo.remote_folder import RemoteFolder
from golpo.watchdog import watched

LOCK_FILE = "training.lock"


def this_machine() -> str | None:
    """Names this machine and its space of process ids; None where that is unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def process_start(pid: int) -> str | None:
    """When a process of this machine started, in the kernel's clock; None if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]  # Z: it has been killed
    except (OSError, IndexError):
        return None


class RemoteLock:
    """Marks `folder` as used by one training. Raises CheckpointError if another one uses it."""

    HEARTBEAT = 30.0  # seconds between signs of life
    DEAD_AFTER = 180.0  # seconds without one after which the owner is dead

    left = set()  # owners in this process whose training has ended

    def __init__(self, folder: RemoteFolder):
        self.folder = folder
        self.file = folder.path / LOCK_FILE
        self.owner = uuid.uuid4().hex
        self.held = False
        self.lost = False  # whether another training has taken over
        self.mutex = threading.Lock()
        self.released = threading.Event()

    def read(self) -> dict:
        """What the lock file says; empty if there is none, or if it is damaged. Raises OSError."""
        try:
            found = json.loads(watched(self.file, self.file.read_bytes))
        except (FileNotFoundError, IsADirectoryError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def write(self, **more) -> None:
        about = {
            "owner": self.owner,
            "machine": this_machine(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process_start": process_start(os.getpid()),
            "heartbeat": time.time(),
        }
        move_folder_aside(self.file)
        watched(self.file, lambda: self.file.write_text(json.dumps(about | more)))

    def acquire(self, wait: bool = False) -> None:
        """Take the lock, from a dead owner too.

        wait: if the owner is on another machine, watch whether it is still alive. Raises
        CheckpointError if it is, OSError if the folder cannot be read or written.
        """
        found = self.read()
        if self.is_used(found):
            if not wait or self.is_here(found):
                raise self.refusal(found)
            self.watch(found)
        elif found and not found.get("released") and found.get("owner") not in self.left:
            self.say_taken_over(found)
        with self.mutex:
            self.write()
            self.held = True
        threading.Thread(target=self.beat, daemon=True).start()

    def is_here(self, found: dict) -> bool:
        """Whether the owner is a process of this machine."""
        machine = this_machine()
        return machine is not None and found.get("machine") == machine

    def is_used(self, found: dict) -> bool:
        """Whether the owner of the lock may be alive."""
        if not found or found.get("released") or found.get("owner") in self.left:
            return False
        if self.is_here(found):
            start = process_start(found.get("pid", -1))
            return start is not None and start == found.get("process_start")
        return self.age(found) < self.DEAD_AFTER

    def age(self, found: dict) -> float:
        """Seconds since the owner's last sign of life."""
        heartbeat = found.get("heartbeat")
        return time.time() - heartbeat if isinstance(heartbeat, int | float) else self.DEAD_AFTER

    def watch(self, found: dict) -> None:
        """Wait until the owner has given no sign of life for long; raise if it gives one."""
        print_safely(
            f"Another session wrote to {str(self.file.parent)!r} {max(0, self.age(found)):.0f} "
            f"seconds ago. This one starts after {self.DEAD_AFTER:.0f} seconds without a sign of "
            f"life from it."
        )
        started = time.monotonic()
        while time.monotonic() - started < self.DEAD_AFTER and self.is_used(found):
            time.sleep(min(5.0, self.DEAD_AFTER / 10))
            now = self.read()
            if now.get("released"):
                return
            if now and now.get("heartbeat") != found.get("heartbeat"):
                raise self.refusal(now)
        self.say_taken_over(found)

    def say_taken_over(self, found: dict) -> None:
        print_safely(
            f"The training that used {str(self.file.parent)!r} before (on {found.get('host')}) has "
            f"ended without releasing it: its last sign of life is {self.age(found):.0f} seconds "
            f"old. This one takes over."
        )

    def refusal(self, found: dict) -> CheckpointError:
        return CheckpointError(
            f"another training is writing to {str(self.file.parent)!r} (on {found.get('host')}, "
            f"last sign of life {max(0, self.age(found)):.0f} seconds ago); stop it, or choose "
            f"another checkpoint_dir"
        )

    def check(self) -> None:
        """Take the lock if it is free; raise CheckpointError if another training has it."""
        if self.held and not self.lost:
            owner = self.present_owner()
            self.lost = self.is_taken_by(owner)
            if owner != self.owner and not self.lost:
                with self.mutex:
                    self.write()
        if self.lost:
            raise CheckpointError(
                "another training has taken over this folder; stop one of the two"
            )
        if not self.held:
            self.acquire()

    def present_owner(self) -> str:
        """The owner that the lock file names; this lock's own if it names none."""
        return self.read().get("owner", self.owner)

    def is_taken_by(self, owner: str) -> bool:
        """Whether this owner in the lock file is another training, which has taken over.

        One of this process that has ended has not: on a slow drive its last word came late.
        """
        return owner != self.owner and owner not in self.left

    def beat(self) -> None:
        """Give signs of life until the lock is released or lost."""
        while not self.released.wait(self.HEARTBEAT):
            try:
                self.folder.check()
                with self.mutex:
                    if self.released.is_set():
                        return
                    if self.is_taken_by(self.present_owner()):
                        self.lost = True
                        return
                    self.write()
            except OSError:
                continue  # the drive may come back

    def leave(self) -> None:
        """Let another training of this process take over; other machines stay away."""
        self.left.add(self.owner)

    def release(self) -> None:
        """Give the lock back. The file stays: on Drive a deleted file goes to the trash."""
        self.leave()
        self.released.set()
        if not self.held or self.lost:
            return
        try:
            self.folder.check()
            with self.mutex:
                if self.read().get("owner") == self.owner:
                    self.write(released=True)
        except OSError:
            pass  # others find it dead after some minutes
