"""One checkpoint: a .pt file with a training, and a .json manifest that proves it whole."""

import functools
import json
import os
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor

from golpo.console import print_safely
from golpo.errors import CheckpointError, UnfinishedCheckpoint
from golpo.files import (
    as_path,
    list_folder,
    make_folder,
    move_folder_aside,
    replace_file,
    sha256_of,
    sha256_of_recent,
    write_to_disk,
)
from golpo.legacy import rename_settings, upgrade_optimizer_state
from golpo.manifest import (
    manifest_digest,
    manifest_path,
    original_name,
    read_manifest,
    was_interrupted,
)
from golpo.version import __version__
from golpo.watchdog import read_watched, watched
from golpo.weight_checks import check_entries, check_finite, check_shapes
from golpo_utils import GPTModel

FORMAT_VERSION = 1
SLOTS = ("checkpoint_a.pt", "checkpoint_b.pt")  # written in turn
BEST = "checkpoint_best.pt"  # the weights with the lowest validation loss


def save_checkpoint(
    model: GPTModel,
    optimizer: torch.optim.Optimizer | None,
    epoch: int,
    global_step: int,
    train_losses: list[float],
    val_losses: list[float],
    track_tokens_seen: list[int],
    tokens_seen: int,
    checkpoint_dir: str | Path,
    checkpoint_file: str,
    *,
    weights: dict[str, Tensor] | None = None,
    **more,
) -> Path:
    """Save a training as checkpoint_dir/checkpoint_file, and its manifest; return the path.

    The manifest is a small .json file that is written last. It holds the size and the SHA-256 of
    the checkpoint: PyTorch itself does not notice flipped bits.
    optimizer: None for a model that is only to generate. weights: a state dict to save instead of
    the model's. more: further entries, tensors and plain values.
    Raises OSError if the disk refuses (files of other names are untouched), CheckpointError if a
    weight is not finite.
    """
    if weights is None:
        weights = model.state_dict()
    check_finite(weights, f"at step {global_step}")
    checkpoint = dict(
        format_version=FORMAT_VERSION,
        version=__version__,
        saved_at=time.strftime("%Y-%m-%d %H:%M:%S"),
        config=dict(model.config),
        **more,
        epoch=epoch,
        global_step=global_step,
        model_state_dict=weights,
        optimizer_state_dict=optimizer.state_dict() if optimizer else None,
        train_losses=list(train_losses),
        val_losses=list(val_losses),
        track_tokens_seen=list(track_tokens_seen),
        tokens_seen=tokens_seen,
    )
    path = as_path("checkpoint_dir", checkpoint_dir) / as_path("checkpoint_file", checkpoint_file)
    make_folder(path.parent)
    write_checkpoint(checkpoint, path)
    return path


def write_checkpoint(checkpoint: dict, path: Path) -> None:
    """Write `checkpoint` to `path`, and then its manifest. Raises OSError."""
    facts = ("format_version", "version", "saved_at", "settings", "config", "tokenizer", "corpus")
    part = path.with_suffix(".part")
    try:
        write_to_disk(part, lambda file: torch.save(checkpoint, file))
        manifest = {
            **{name: checkpoint.get(name) for name in facts},
            "file": path.name,
            "step": checkpoint["global_step"],
            "size": part.stat().st_size,
            "sha256": sha256_of(part),
            "torch_version": torch.__version__,
        }
        move_folder_aside(path)
        os.replace(part, path)
        manifest["manifest_digest"] = manifest_digest(manifest)
        text = json.dumps(manifest, indent=1)
        replace_file(manifest_path(path), lambda file: file.write(text.encode()))
    except BaseException as error:
        part.unlink(missing_ok=True)
        # If the disk refuses, torch.save raises a RuntimeError about its own state after the
        # OSError with the reason.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def verify_checkpoint(path: str | Path) -> dict:
    """Return the manifest of the checkpoint at `path`.

    A manifest belongs to the file whose hash it holds, whatever its name: Drive sometimes makes a
    "name (1).json". Raises CheckpointError that says what is wrong, OSError if the disk refuses.
    """
    path = Path(path)
    digest = sha256_of_recent(path)
    candidates = [file for file in list_folder(path.parent) if file.suffix == ".json"]
    for file in candidates:
        manifest = read_manifest(file)
        if manifest is None or manifest.get("sha256") != digest:
            continue
        version = manifest["format_version"]
        if version > FORMAT_VERSION:
            raise CheckpointError(
                f"{path.name} has format version {version}, newer than {FORMAT_VERSION}; "
                f"update this project"
            )
        return manifest
    problem = f"{path.name} has {path.stat().st_size:,} bytes, and no manifest fits them"
    if was_interrupted(manifest_path(path)):
        raise UnfinishedCheckpoint(f"{problem}: its saving was interrupted")
    raise CheckpointError(f"{problem}: it or its manifest is damaged or cut short")


def list_checkpoints(folder: str | Path, names: tuple[str, ...] = (BEST, *SLOTS)) -> list[Path]:
    """The files of these names in `folder`, good or damaged, and Drive's copies of them.

    Raises OSError if the folder cannot be read.
    """
    paths = [path for path in list_folder(folder) if original_name(path) in names]
    return [path for path in paths if not path.is_dir()]


def newest_checkpoint(
    folder: str | Path, which: str = "newest", staging: str | Path | None = None
) -> tuple[Path, dict] | None:
    """The path and manifest of the newest good checkpoint in `folder` and `staging`.

    staging: the local folder that is written first. which: "best" means the best one, or else
    the newest. Copies that Drive calls "name (1).pt" count too. Prints which bad ones are skipped,
    and why. Returns None if there is none yet. Raises CheckpointError if all are bad, or if a
    folder that cannot be read may hold some.
    """
    names = (BEST, *SLOTS) if which == "best" else SLOTS
    good = []
    problems = []
    for place in (folder, staging):
        if place is not None:
            verified, bad = verify_folder(Path(place), names)
            good += verified
            problems += bad
    for problem in problems:
        print_safely(f"Skipped: {problem}.")
    # Nothing is there but one slot whose saving was interrupted: the training's first save.
    first_save = len(problems) == 1 and isinstance(problems[0], UnfinishedCheckpoint)
    if problems and not good and not first_save:
        reasons = "; ".join(str(problem) for problem in problems)
        raise CheckpointError(
            f"no checkpoint in {str(folder)!r} can be used ({reasons}); restore one, move them "
            f"away, or choose another checkpoint_dir"
        )

    def order(found):
        path, manifest = found
        return which == "best" and original_name(path) == BEST, manifest["step"]

    return max(good, key=order, default=None)


def verify_folder(
    folder: Path, names: tuple[str, ...]
) -> tuple[list[tuple[Path, dict]], list[CheckpointError]]:
    """The good checkpoints of these names in `folder`, and what is wrong with the others.

    Each file is judged by itself. A drive that does not answer is given up after some time.
    """
    try:
        return watched(folder, lambda: verify_files(folder, names))
    except OSError as error:
        return [], [CheckpointError(f"{str(folder)!r} cannot be read ({error.strerror})")]


def verify_files(
    folder: Path, names: tuple[str, ...]
) -> tuple[list[tuple[Path, dict]], list[CheckpointError]]:
    """What `verify_folder` returns. Raises OSError if the folder cannot be listed."""
    good = []
    problems = []
    for path in list_checkpoints(folder, names):
        try:
            good.append((path, verify_checkpoint(path)))
        except CheckpointError as error:
            problems.append(error)
        except OSError as error:
            problems.append(CheckpointError(f"{path.name} cannot be read ({error.strerror})"))
    return good, problems


def read_checkpoint(path: str | Path, *, manifest: dict | None = None) -> dict:
    """Verify and read a checkpoint as a dict, on the CPU, with today's names.

    manifest: what `newest_checkpoint` or `verify_checkpoint` returned, if the file has just been
    verified. A file without a manifest, from elsewhere, is read with a warning. Code in a file
    never runs: PyTorch's weights-only reader refuses it. Raises FileNotFoundError, CheckpointError.
    """
    path = as_path("the checkpoint", path)
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no checkpoint at {str(path)!r}; look into its folder, or train first"
        )
    if manifest is None and manifest_path(path).exists():
        verify_checkpoint(path)
    elif manifest is None:
        warnings.warn(
            f"{path.name} has no manifest beside it, so it cannot be verified; it is read as it is",
            stacklevel=3,
        )
    try:
        load = functools.partial(torch.load, map_location="cpu", weights_only=True)
        checkpoint = read_watched(path, load)
    except TimeoutError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{path.name} cannot be read ({type(error).__name__}); it is damaged, not a PyTorch "
            f"file, or it holds code, which never runs"
        ) from None
    if not isinstance(checkpoint, dict) or "model_state_dict" not in checkpoint:
        raise CheckpointError(
            f"{path.name} is not a checkpoint of this project: it has no 'model_state_dict'"
        )
    check_entries(checkpoint, path.name)
    if isinstance(checkpoint.get("settings"), dict):
        checkpoint["settings"] = rename_settings(checkpoint["settings"])
    if isinstance(checkpoint.get("optimizer_state_dict"), dict):
        state = upgrade_optimizer_state(checkpoint["optimizer_state_dict"])
        checkpoint["optimizer_state_dict"] = state
    return checkpoint


def load_checkpoint(
    model: GPTModel,
    checkpoint_path: str | Path,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    checkpoint: dict | None = None,
) -> dict:
    """Restore `model` (and `optimizer`) in place; return the rest of the checkpoint as a dict.

    Reads the original project's checkpoints too: their head has weights of its own, and then so
    has the model's. checkpoint: what `read_checkpoint` returned, if it has been read already.
    Raises FileNotFoundError, or CheckpointError that names what does not fit.
    """
    name = as_path("the checkpoint", checkpoint_path).name
    if checkpoint is None:
        checkpoint = read_checkpoint(checkpoint_path)
    weights = {
        key: tensor
        for key, tensor in checkpoint["model_state_dict"].items()
        if not key.endswith(".att.mask")  # the original project saved the causal mask
    }
    check_shapes(weights, model.state_dict(), name)
    check_finite(weights, f"in {name}; load another checkpoint")
    tied = model.out_head.weight is model.tok_emb.weight
    if tied and not torch.equal(weights["out_head.weight"], weights["tok_emb.weight"]):
        model.untie_head()
        if optimizer is not None:
            optimizer.param_groups[-1]["params"].append(model.out_head.weight)
    model.load_state_dict(weights)
    if optimizer is not None:
        load_optimizer(optimizer, checkpoint["optimizer_state_dict"], name)
    without = ("model_state_dict", "optimizer_state_dict")
    return {key: value for key, value in checkpoint.items() if key not in without}


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict | None, name: str) -> None:
    """Restore the optimizer; raise CheckpointError if the file has none of this kind."""
    if state is None:
        raise CheckpointError(
            f"{name} holds weights without an optimizer, so a training cannot resume from it; "
            f"resume from the newest checkpoint instead"
        )
    try:
        optimizer.load_state_dict(state)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{name} has no optimizer of this kind ({error!r}); load it without one"
        ) from None
