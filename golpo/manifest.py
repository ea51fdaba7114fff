"""The manifest beside a checkpoint: a small .json file that proves the checkpoint whole."""

import hashlib
import json
import re
from pathlib import Path

from golpo.legacy import MANIFEST, upgrade_manifest

LARGEST_MANIFEST = 2**20  # bytes; a larger .json file is not one of ours


def manifest_path(path: str | Path) -> Path:
    """Where the manifest of the checkpoint at `path` is."""
    return Path(path).with_suffix(".json")


def manifest_digest(manifest: dict, key: str = "manifest_digest") -> str:
    """The manifest's own checksum, kept in it under `key`.

    Without it, a flipped digit of the step would pass for another step.
    """
    text = json.dumps({**manifest, key: None}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_manifest(path: Path) -> dict | None:
    """The manifest in the file at `path`, with today's names; None if it is damaged or foreign."""
    try:
        if path.stat().st_size > LARGEST_MANIFEST:
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    keys = ("manifest_digest", *MANIFEST)  # its digest has had other names
    if not any(key in found and found[key] == manifest_digest(found, key) for key in keys):
        return None
    return upgrade_manifest(found)


def was_interrupted(manifest: Path) -> bool:
    """Whether the manifest is missing or cut short, as after an interrupted save or copy."""
    try:
        return not manifest.read_bytes().rstrip().endswith(b"}")
    except FileNotFoundError:
        return True
    except OSError:
        return False


def original_name(path: Path) -> str:
    """The name of a file without the number that Drive adds to copies of it."""
    return re.sub(r" \(\d+\)\.", ".", path.name)
