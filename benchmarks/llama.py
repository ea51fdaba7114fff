"""Asks llama.cpp, through node and the package node-llama-cpp, which brings it prebuilt."""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from machine import BENCHMARKS

# A folder node_modules with the package node-llama-cpp.
NODE_MODULES = Path(os.environ.get("GOLPO_NODE_MODULES", "node_modules")).resolve()


def has_llama() -> bool:
    """Whether node and node-llama-cpp are there."""
    return shutil.which("node") is not None and (NODE_MODULES / "node-llama-cpp").is_dir()


def ask_llama(gguf: Path, **asked) -> dict:
    """What benchmarks/llama.mjs answers about a GGUF file."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "node_modules").symlink_to(NODE_MODULES)
        shutil.copy(BENCHMARKS / "llama.mjs", folder)
        (folder / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
        command = ["node", "--preserve-symlinks-main", "llama.mjs", str(gguf), "asked.json"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"llama.cpp ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])
