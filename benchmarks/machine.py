"""What all benchmarks share: the project on the import path, the machine's description, timing.

A benchmark imports this module before `golpo`, which need not be installed then.
"""

import importlib.util
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch

BENCHMARKS = Path(__file__).resolve().parent
PROJECT = BENCHMARKS.parent
sys.path.insert(0, str(PROJECT))

# What decides how fast matrix products are.
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx_vnni", "avx512_vnni", "amx_bf16", "amx_int8")


def read_line(path: str, name: str) -> str:
    """The value of a line "name : value" of a file in /proc; empty where there is none."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(rf"^{re.escape(name)}\s*:\s*(.*)$", text, re.MULTILINE)
    return found[1].strip() if found else ""


def current_commit() -> str:
    """The short hash of the checkout's commit, with a + if files have changed since."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=PROJECT, capture_output=True, text=True)
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "--short", "HEAD")
        return commit + ("+" if git("status", "--porcelain", "-uno") else "") or "unknown"
    except OSError:
        return "unknown"


def describe_machine() -> dict[str, str]:
    """Processor, flags, GPU, PyTorch, threads, date and commit of a measurement."""
    present = read_line("/proc/cpuinfo", "flags").split()
    facts = {
        "processor": read_line("/proc/cpuinfo", "model name") or platform.processor(),
        "flags": " ".join(flag for flag in FLAGS if flag in present),
        "PyTorch": torch.__version__,
        "threads": str(torch.get_num_threads()),
        "date": time.strftime("%Y-%m-%d"),
        "commit": current_commit(),
    }
    if torch.cuda.is_available():
        facts["GPU"] = torch.cuda.get_device_name()
    return facts


def print_machine() -> dict[str, str]:
    """Print `describe_machine`, a fact a line, at the top of a benchmark; return it."""
    facts = describe_machine()
    for name, value in facts.items():
        print(f"{name:10} {value}")
    print(flush=True)
    return facts


def seconds(run: Callable[[], object]) -> float:
    """How long `run()` takes, on a GPU until it has computed everything."""
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def own_peak_memory() -> int:
    """MiB that this process has held at most. Not ru_maxrss, which is inherited from the parent."""
    return int(read_line("/proc/self/status", "VmHWM").split()[0]) // 1024


def load_module(path: Path) -> ModuleType:
    """A module of another project's checkout, from its file."""
    name = f"{path.parent.name}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
