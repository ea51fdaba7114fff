"""What two slots hold, so that a save by another machine is noticed.

A training reads its checkpoint before it holds the lock of the folder, because the lock is part of
what is set up for training. Between the two, another machine may save.
"""

from pathlib import Path

from golpo.checkpoint import SLOTS
from golpo.errors import CheckpointError
from golpo.manifest import manifest_path, read_manifest
from golpo.watchdog import watched


def slot_manifests(folder: str | Path) -> dict[str, dict] | None:
    """The manifest of each slot in `folder`, by name; a missing or damaged one is left out.

    None if the drive does not answer.
    """
    folder = Path(folder)
    try:
        found = watched(
            folder, lambda: {slot: read_manifest(manifest_path(folder / slot)) for slot in SLOTS}
        )
    except OSError:  # `newest_checkpoint` and `RemoteCopy.open` say so
        return None
    return {slot: manifest for slot, manifest in found.items() if manifest is not None}


def check_not_replaced(
    folder: str | Path, before: dict[str, dict] | None, staging: str | Path | None = None
) -> None:
    """Raise CheckpointError if another training has saved into `folder` since `before`.

    before: what `slot_manifests` gave; None: unknown, so nothing can be said. staging: this
    machine's own copies, which are known.
    """
    if before is None:
        return
    known = list(before.values())
    if staging is not None:
        known += (slot_manifests(staging) or {}).values()
    for slot, manifest in (slot_manifests(folder) or {}).items():
        if manifest not in known:
            raise CheckpointError(
                f"another training saved {slot} (step {manifest['step']:,}) in {str(folder)!r} "
                f"while this one was starting; run this again, and it resumes from there"
            )
