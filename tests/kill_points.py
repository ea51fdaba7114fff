"""Ends this process with kill -9 at a chosen file operation below a folder."""

import builtins
import io
import os
import signal
from pathlib import Path

REAL_OPEN = io.open


class KillPoint:
    """Counts the operations that change something below `folder`; at number `last`, kills.

    A write is interrupted when half of its bytes are in the file.
    """

    def __init__(self, folder: Path, last: int):
        self.folder = os.path.abspath(folder)
        self.last = last
        self.count = 0
        self.files = {}  # file descriptor → path, of the files that are open for writing

    def install(self) -> None:
        builtins.open = io.open = self.open
        for name in ("replace", "rename", "unlink", "remove", "mkdir", "truncate"):
            setattr(os, name, self.counted(getattr(os, name)))
        fsync = os.fsync

        def counted_fsync(file):
            if self.files.get(file):
                self.operate()
            fsync(file)

        os.fsync = counted_fsync

    def is_below(self, path) -> bool:
        if not isinstance(path, str | os.PathLike):
            return False
        return os.path.abspath(path).startswith(self.folder)

    def operate(self, first_half=None) -> None:
        self.count += 1
        if self.count == self.last:
            if first_half is not None:
                first_half()
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(self, function):
        def call(path, *arguments, **more):
            if self.is_below(path):
                self.operate()
            return function(path, *arguments, **more)

        return call

    def open(self, file, mode="r", *arguments, **more):
        if not self.is_below(file) or not set(mode) & set("wa+x"):
            return REAL_OPEN(file, mode, *arguments, **more)
        self.operate()
        raw = CountedFile(file, mode.replace("b", "").replace("t", ""))
        raw.point = self
        self.files[raw.fileno()] = file
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffered
        return io.TextIOWrapper(buffered, encoding=more.get("encoding") or "utf-8")


class CountedFile(io.FileIO):
    """A file whose writes count as operations."""

    point: KillPoint

    def write(self, data):
        half = bytes(data[: len(data) // 2])
        self.point.operate(lambda: io.FileIO.write(self, half))
        return super().write(data)
