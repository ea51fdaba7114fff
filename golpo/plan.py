"""What a training will do, before it begins: for a form that shows the settings first."""

import contextlib
import json
from functools import partial
from pathlib import Path

import torch

from golpo.checkpoint import SLOTS, list_checkpoints, newest_checkpoint, read_checkpoint
from golpo.console import print_safely
from golpo.download import fetch_corpus
from golpo.files import make_folder, replace_file
from golpo.finetuning import preset_for_adapter, settings_to_start
from golpo.legacy import upgrade_settings
from golpo.manifest import manifest_path, read_manifest
from golpo.paths import DEFAULT_CHECKPOINT_DIR, DEFAULT_CORPUS, DEFAULT_DATA_DIR
from golpo.settings import PRESETS, Settings, find_preset, make_settings
from golpo.watchdog import watched

START_OVER_FILE = "start_over.json"


def plan_training(fresh: bool = False, preset: str = "auto", **settings) -> Settings:
    """The settings that `train_or_resume` trains with, given the same arguments.

    Without a checkpoint they are the preset's, else the checkpoint's; `settings` replace single
    ones. Only small files are read, so this is quick on a slow drive too; checkpoints are verified
    when the training begins. Raises ValueError for an invalid setting.
    """
    saved = None if fresh else find_saved_settings(settings)
    return merge_settings(preset, settings, saved)


def merge_settings(preset: str, settings: dict, saved: dict | None) -> Settings:
    """`settings` over the preset's, over those `saved` in a checkpoint (None: there is none).

    Folders and the step to pause at are never a checkpoint's. Raises ValueError.
    """
    here = {"checkpoint_dir": DEFAULT_CHECKPOINT_DIR, "staging_dir": None, "max_steps": None}
    given = {**here, **preset_settings(preset, settings, saved), **settings}
    return make_settings(given if saved else settings_to_start(given), saved)


def preset_settings(preset: str, settings: dict, saved: dict | None = None) -> dict:
    """What a preset adds to `settings`; nothing for "auto". saved: a checkpoint's settings.

    A tokenizer learned from a small corpus has made the preset's vocabulary smaller; it stays.
    """
    if preset == "auto":
        return {}
    chosen = preset_for_adapter(find_preset(preset, settings.get("tokenizer")), settings)
    is_own = (saved or {}).get("tokenizer") == chosen.get("tokenizer") == "own"
    if is_own and saved["config"]["vocab_size"] < chosen["config"]["vocab_size"]:
        config = {**chosen["config"], "vocab_size": saved["config"]["vocab_size"]}
        chosen = {**chosen, "config": config}
    return chosen


def has_checkpoint(checkpoint_dir: str | Path, staging_dir: str | Path | None = None) -> bool:
    """Whether a training has left a checkpoint in one of the folders, good or damaged.

    Raises OSError if a folder cannot be read.
    """
    places = filter(None, (checkpoint_dir, staging_dir))
    return any(watched(place, partial(list_checkpoints, place)) for place in places)


def find_saved_settings(settings: dict) -> dict | None:
    """The settings of the newest checkpoint, by its manifest; None if there is no checkpoint."""
    folder = settings.get("checkpoint_dir", DEFAULT_CHECKPOINT_DIR)
    manifests = []
    with contextlib.suppress(OSError):  # `newest_checkpoint` then finds the words for it
        for place in filter(None, (folder, settings.get("staging_dir"))):
            manifests += watched(place, partial(read_manifests, place))
    newest = max(manifests, key=lambda manifest: manifest.get("step", -1), default={})
    if newest.get("settings"):
        return settings_to_resume(newest["settings"])
    # Manifests before version 2.0 hold no settings.
    found = newest_checkpoint(folder, staging=settings.get("staging_dir"))
    if found is None:
        return None
    path, manifest = found
    return settings_to_resume(read_checkpoint(path, manifest=manifest).get("settings"))


def read_manifests(folder: str | Path) -> list[dict]:
    """The manifests of the slots in `folder`; empty for a damaged one. Raises OSError."""
    paths = list_checkpoints(folder, SLOTS)
    return [read_manifest(manifest_path(path)) or {} for path in paths]


def settings_to_resume(saved: dict | None) -> dict:
    """A checkpoint's settings with today's names, and with what this machine and folder have.

    saved: None for a checkpoint of the original project.
    """
    settings = upgrade_settings(saved or PRESETS["original"])
    if settings.get("device") == "cuda" and not torch.cuda.is_available():
        settings["device"] = "auto"
    if "data_path" in settings:
        settings["data_path"] = find_corpus(settings["data_path"])
    return settings


def find_corpus(saved_path: str) -> str:
    """Where a checkpoint's corpus is now: its old path, or a file of that name in this project.

    The path is only a hint; `check_resumable` compares the corpus itself.
    """
    name = Path(saved_path).name
    candidates = (Path(saved_path), DEFAULT_DATA_DIR / name, Path(name), DEFAULT_CORPUS)
    for path in candidates:
        if path.exists() and path.name == name:
            return str(path)
    return saved_path


def auto_corpus(
    fresh: bool, checkpoint_dir: str | Path, staging_dir: str | Path | None = None
) -> Path | None:
    """The corpus that fits this machine; None: that of the checkpoint, or the bundled one.

    With a GPU, a new training learns from TinyStories, if they can be downloaded.
    """
    is_begun = not fresh and has_checkpoint(checkpoint_dir, staging_dir)
    if is_begun or not torch.cuda.is_available():
        return None
    try:
        return fetch_corpus("tinystories-small")
    except (ConnectionError, ValueError) as error:
        print_safely(f"{error}. The bundled corpus is used instead.")
        return None


def start_over_is_due(ticked: bool, checkpoint_dir: str | Path) -> bool:
    """Whether a form's field `start_over` asks for a new training now: once per tick.

    The field stays ticked when Run all runs again, in this session or the next, and must not
    discard what the first run has begun. A small file in `checkpoint_dir` keeps track; unticking
    the field and running the form again removes it.
    """
    path = Path(checkpoint_dir) / START_OVER_FILE
    if not ticked:
        with contextlib.suppress(OSError):
            watched(path, partial(path.unlink, missing_ok=True))
        return False
    try:
        is_done = json.loads(watched(path, path.read_bytes))["done"]
    except FileNotFoundError:
        write_start_over(path, done=False)
        return True
    except (OSError, ValueError, KeyError, TypeError):
        is_done = True  # not clear: resuming loses nothing
    if is_done:
        print_safely(
            "start_over is still ticked, but it was done already, so the training resumes. To "
            "start over again, untick it, run this cell, and tick it again."
        )
    return not is_done


def note_fresh_start(checkpoint_dir: str | Path) -> None:
    """Note that a new training has begun, if a form has asked for it."""
    path = Path(checkpoint_dir) / START_OVER_FILE
    if watched(path, path.is_file):
        write_start_over(path, done=True)


def write_start_over(path: Path, done: bool) -> None:
    def write() -> None:
        make_folder(path.parent)
        replace_file(path, lambda file: file.write(json.dumps({"done": done}).encode()))

    with contextlib.suppress(OSError):
        watched(path, write)
