"""Starting a training, and resuming it: what may change between the two and what may not."""

import contextlib
import itertools
import time
from dataclasses import fields
from pathlib import Path

import tiktoken
import torch

from golpo.adapter_training import ADAPTER_FOLDER, prepare_adapter, save_trained_adapter
from golpo.checkpoint import load_checkpoint, newest_checkpoint, read_checkpoint
from golpo.checkpoint_manager import CheckpointManager
from golpo.console import print_safely
from golpo.corpus import Corpus, load_corpus, read_options
from golpo.devices import pick_device, pick_precision
from golpo.distributed import process_group
from golpo.errors import CheckpointError
from golpo.files import as_path, list_folder
from golpo.finetuning import load_start_weights, settings_to_start
from golpo.initialization import SkipInitialization
from golpo.legacy import NEVER_SO, upgrade_settings
from golpo.metrics import METRICS_FILE
from golpo.optim import freeze_layers, make_optimizer
from golpo.paths import DEFAULT_CHECKPOINT_DIR
from golpo.plan import merge_settings, note_fresh_start, preset_settings, settings_to_resume
from golpo.settings import Settings, make_settings
from golpo.slots import check_not_replaced, slot_manifests
from golpo.step import memory_errors_explained
from golpo.trainer import TrainingState, train_model
from golpo.version import __version__
from golpo.vocabulary import pick_tokenizer
from golpo_utils import GPTModel, check_config, check_kind

# Settings that decide what a step computes: a resumed training must have the same.
FIXED_SETTINGS = (
    "config",
    "batch_size",
    "seed",
    "validation_fraction",
    "optimizer",
    "align_to_stories",
    "shift_windows",
    "pack_stories",
    "trim_windows",
    "input_noise",
    "requests",
    "corpus_version",
)
Losses = tuple[list[float], list[float], list[int]]


def start_fresh_training(**settings) -> Losses:
    """Train a new model; return (train_losses, val_losses, tokens_seen), an entry per evaluation.

    The keywords are the fields of `Settings`; without any, the preset for this machine trains on
    the bundled corpus. Checkpoints that are already in checkpoint_dir are moved to a folder
    beside them.
    """
    return run_training(make_settings(settings_to_start(settings)))


def resume_training_from_checkpoint(
    checkpoint_dir: str | Path | None = None, checkpoint_file: str | None = None, **settings
) -> Losses:
    """Continue a training exactly where its checkpoint is; return what start_fresh_training does.

    checkpoint_file: None means the newest good one. Keywords replace the checkpoint's settings;
    the device and the place of the corpus adapt to this machine. Raises FileNotFoundError if
    there is no checkpoint, CheckpointError if the config, corpus, vocabulary, batch size or seed
    changed, unless accept_changes=True.
    """
    folder = as_path("checkpoint_dir", checkpoint_dir or DEFAULT_CHECKPOINT_DIR)
    slots = slot_manifests(folder)
    if checkpoint_file:
        return resume(folder / checkpoint_file, None, folder, settings, slots)
    found = newest_checkpoint(folder, staging=settings.get("staging_dir"))
    if found is None:
        raise FileNotFoundError(
            f"there is no checkpoint in {str(folder)!r} to resume from; call start_fresh_training"
        )
    return resume(*found, folder, settings, slots)


def resume(
    path: Path,
    manifest: dict | None,
    folder: Path,
    settings: dict,
    slots: dict[str, dict] | None,
    preset: str = "auto",
) -> Losses:
    """Continue the training of the checkpoint at `path` in `folder`.

    manifest: that of the checkpoint, if it has just been verified. slots: what `slot_manifests`
    gave before the checkpoint was chosen. preset: as in `train_or_resume`.
    """
    checkpoint = read_checkpoint(path, manifest=manifest)
    saved = settings_to_resume(checkpoint.get("settings"))
    check_known("setting", saved, Settings, checkpoint, path.name)
    check_known("state", checkpoint.get("state") or {}, TrainingState, checkpoint, path.name)
    merged = merge_settings(preset, {**settings, "checkpoint_dir": str(folder)}, saved)
    return run_training(merged, checkpoint, path, slots)


def check_known(kind: str, saved: dict, known: type, checkpoint: dict, name: str) -> None:
    """Raise CheckpointError if `saved` has a name that is not a field of the dataclass `known`."""
    unknown = sorted(set(saved) - {field.name for field in fields(known)})
    if unknown:
        raise CheckpointError(
            f"{name} has the {kind} {unknown[0]!r}, which this version ({__version__}) does not "
            f"know; version {checkpoint.get('version', 'unknown')} wrote it: update the project"
        )


def train_or_resume(fresh: bool = False, preset: str = "auto", **settings) -> Losses:
    """Resume from the newest good checkpoint in checkpoint_dir, or start if there is none.

    preset: "auto" resumes whatever was begun, on any machine, and starts with the preset for this
    machine. A preset that is named must be the checkpoint's. Keywords replace single settings.
    """
    check_kind("fresh", fresh, bool, "True or False")
    new = {**preset_settings(preset, settings), **settings}
    folder = as_path("checkpoint_dir", settings.get("checkpoint_dir", DEFAULT_CHECKPOINT_DIR))
    if fresh:
        return start_fresh_training(**new)
    slots = slot_manifests(folder)
    found = newest_checkpoint(folder, staging=settings.get("staging_dir"))
    if found is None:
        return run_training(make_settings(settings_to_start(new)), slots=slots)
    return resume(*found, folder, settings, slots, preset)


def check_resumable(
    settings: Settings,
    corpus: Corpus,
    tokenizer: tiktoken.Encoding,
    checkpoint: dict,
    name: str,
) -> None:
    """Raise CheckpointError that names what differs between a checkpoint and the settings."""
    before = NEVER_SO | (checkpoint.get("settings") or {})
    before |= {key: checkpoint.get(key) for key in ("corpus", "tokenizer")}
    now = {key: getattr(settings, key) for key in FIXED_SETTINGS}
    now |= {"corpus": corpus.fingerprint, "tokenizer": tokenizer.name}
    config = now.pop("config")
    if before.get("config"):
        check_same_shapes(before["config"], config, name)
        before["config's drop_rate"] = before["config"]["drop_rate"]
        now["config's drop_rate"] = config["drop_rate"]
    if settings.accept_changes:
        return
    for key, value in now.items():
        if before.get(key) not in (None, value):
            raise CheckpointError(
                f"{name} was trained with {key} = {before[key]!r}, and now it is {value!r}; "
                f"restore it, or resume all the same with accept_changes, or start over (the "
                f"form of train.ipynb has a field for each)"
            )


def check_same_shapes(before: dict, now: dict, name: str) -> None:
    """Raise CheckpointError unless two model configs have weights of the same shapes."""
    before, now = check_config(before), check_config(now)
    for key in before:
        if key not in ("drop_rate", "init_std") and before[key] != now[key]:
            raise CheckpointError(
                f"{name} was trained with the config's {key!r} = {before[key]!r}, and now it is "
                f"{now[key]!r}; choose the preset 'auto', which keeps the checkpoint's model, or "
                f"start over"
            )


def archive_checkpoints(folder: str | Path) -> None:
    """Move the checkpoints of an earlier training in `folder` to a new folder inside it."""
    folder = Path(folder)
    files = [
        path
        for path in list_folder(folder)
        if path.name.startswith("checkpoint_") or path.name in (METRICS_FILE, ADAPTER_FOLDER)
    ]
    if not files:
        return
    archive = make_archive(folder)
    for file in files:
        file.rename(archive / file.name)
    print_safely(f"The checkpoints of an earlier training were moved to {str(archive)!r}.")


def make_archive(folder: Path) -> Path:
    """A new folder in `folder`, named after the time."""
    stamp = time.strftime("earlier-%Y%m%d-%H%M%S")
    for name in itertools.chain([stamp], (f"{stamp}-{n}" for n in itertools.count(2))):
        try:
            (folder / name).mkdir()
        except FileExistsError:
            continue
        return folder / name


def run_training(
    settings: Settings,
    checkpoint: dict | None = None,
    path: Path | None = None,
    slots: dict[str, dict] | None = None,
) -> Losses:
    """Make everything that a training needs, new or from a checkpoint, and train.

    slots: what `slot_manifests` gave before: another machine must not have saved since.
    """
    device = pick_device(settings.device)
    tokenizer = pick_tokenizer(settings, checkpoint)
    torch.manual_seed(settings.seed)
    explained = memory_errors_explained(settings.config)
    with explained, process_group() as rank, contextlib.ExitStack() as stack:
        model = make_model(settings.config, checkpoint)
        if settings.start_from and checkpoint is None:
            load_start_weights(model, settings.start_from, tokenizer)
        prepare_adapter(model, settings, checkpoint)
        freeze_layers(model.to(device), settings.frozen_layers)
        optimizer = make_optimizer(model, settings)
        state = TrainingState()
        manager = None
        if rank == 0:
            manager = CheckpointManager(settings.checkpoint_dir, settings.staging_dir)
            stack.enter_context(manager)
            check_not_replaced(settings.checkpoint_dir, slots, settings.staging_dir)
            manager.check_room(model)
        corpus = load_corpus(
            settings.data_path,
            tokenizer,
            settings.validation_fraction,
            settings.seed,
            **read_options(vars(settings)),
        )
        if checkpoint is not None:
            check_resumable(settings, corpus, tokenizer, checkpoint, path.name)
            state = restore(model, optimizer, settings, checkpoint, path.name)
        if rank == 0:
            prepare_folders(manager, settings, path)
            print_training(model, device, settings, corpus, state, path)
        losses = train_model(model, optimizer, corpus, tokenizer, settings, state, manager)
        if rank == 0:
            save_trained_adapter(model, settings)
        return losses


def make_model(config: dict, checkpoint: dict | None) -> GPTModel:
    """A model with initial weights, or with none if a checkpoint's are loaded later."""
    # A checkpoint of the original project holds no random state: the one after making the
    # initial weights is then the one that training begins with.
    if checkpoint is None or "state" not in checkpoint:
        return GPTModel(config)
    with SkipInitialization():
        return GPTModel(config)


def prepare_folders(manager: CheckpointManager, settings: Settings, path: Path | None) -> None:
    """Continue after the checkpoint at `path`, or make room for a fresh training."""
    if path is not None:
        manager.resume_from(path)
        return
    manager.require_remote()
    for folder in (settings.checkpoint_dir, settings.staging_dir):
        if folder is not None:
            archive_checkpoints(folder)
    note_fresh_start(settings.checkpoint_dir)


def print_training(
    model: GPTModel,
    device: torch.device,
    settings: Settings,
    corpus: Corpus,
    state: TrainingState,
    path: Path | None,
) -> None:
    """Print the corpus's notes, the sizes, and where the training starts."""
    for note in corpus.notes:
        print_safely(f"Note: {note}")
    precision = pick_precision(settings.precision, device)
    print_safely(
        f"{model.parameter_count() / 1e6:.1f} M parameters on {device} in {precision}; "
        f"{corpus.stories:,} stories, {len(corpus.train_ids):,} tokens for training and "
        f"{len(corpus.val_ids):,} for validation."
    )
    if path is None:
        print_safely("Starting a fresh training.")
    else:
        print_safely(f"Resuming from {path.name}, step {state.global_step:,}.")


def restore(
    model: GPTModel,
    optimizer: torch.optim.Optimizer,
    settings: Settings,
    checkpoint: dict,
    name: str,
) -> TrainingState:
    """Load model, optimizer and random state from a checkpoint; return its TrainingState."""
    saved = upgrade_settings(checkpoint.get("settings") or {})
    same_optimizer = "state" in checkpoint and saved["optimizer"] == settings.optimizer
    load_checkpoint(model, name, optimizer if same_optimizer else None, checkpoint=checkpoint)
    if not same_optimizer:
        print_safely(f"{name} was trained with another optimizer; this one's averages start at 0.")
    if "state" in checkpoint:
        restore_random_state(checkpoint, name)
        return TrainingState(**checkpoint["state"])
    # The original project's checkpoints count steps from 0.
    return TrainingState(
        global_step=checkpoint["global_step"] + 1,
        tokens_seen=checkpoint["tokens_seen"],
        train_losses=list(checkpoint["train_losses"]),
        val_losses=list(checkpoint["val_losses"]),
        track_tokens_seen=list(checkpoint["track_tokens_seen"]),
    )


def restore_random_state(checkpoint: dict, name: str) -> None:
    """Let PyTorch's random numbers continue as in the checkpoint. Raises CheckpointError."""
    try:
        state = torch.tensor(checkpoint["random_states"]["torch"], dtype=torch.uint8)
        torch.set_rng_state(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the random state in {name} is damaged ({error!r:.80})") from None
