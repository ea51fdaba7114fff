"""Training by an adapter: the model's weights stay as they are, beside them a small part learns."""

from pathlib import Path

from golpo.checkpoint import newest_checkpoint, read_checkpoint
from golpo.console import describe_error, print_safely
from golpo.errors import CheckpointError
from golpo.lora import adapter_names, add_adapter, restore_adapters, save_adapter
from golpo.settings import Settings
from golpo_utils import GPTModel

ADAPTER_FOLDER = "adapter"  # in the folder of the checkpoints
ALPHA = 2  # alpha is this times the rank, so that the learning rate suits every rank


def prepare_adapter(model: GPTModel, settings: Settings, checkpoint: dict | None) -> None:
    """Give `model` a new adapter, if the settings ask for one, or those of `checkpoint`.

    Raises ValueError for settings that contradict each other, CheckpointError if the checkpoint
    has an adapter of another rank.
    """
    rank = settings.adapter_rank
    if checkpoint is not None:
        check_same_rank(rank, checkpoint)
        # The new head would otherwise be taken for something to train.
        if rank and model.out_head.weight is model.tok_emb.weight and not is_tied(checkpoint):
            model.untie_head()
        restore_adapters(model, checkpoint["model_state_dict"])
        return
    if rank == 0:
        return
    if settings.start_from is None:
        raise ValueError(
            f"adapter_rank is {rank}, but there are no weights to adapt; give start_from, such as "
            f"'bundled', or leave adapter_rank out to train a new model"
        )
    if settings.frozen_layers:
        raise ValueError(
            f"adapter_rank is {rank} and frozen_layers {settings.frozen_layers}; beside an "
            f"adapter all layers are frozen, so give one of the two"
        )
    add_adapter(model, rank=rank, alpha=ALPHA * rank, seed=settings.seed)


def is_tied(checkpoint: dict) -> bool:
    """Whether the checkpoint's model has one matrix for its embeddings and its head."""
    return (checkpoint.get("config") or {}).get("tie_embeddings", True)


def check_same_rank(rank: int, checkpoint: dict) -> None:
    """Raise CheckpointError unless the checkpoint was trained with an adapter of this rank."""
    before = (checkpoint.get("settings") or {}).get("adapter_rank", 0)
    if rank != before:
        raise CheckpointError(
            f"the checkpoint was trained with adapter_rank = {before}, and now it is {rank}; "
            f"resume with the same, or start a new training in another checkpoint_dir"
        )


def save_trained_adapter(model: GPTModel, settings: Settings) -> None:
    """Save the adapter of the best checkpoint beside it, as peft does; `model` gets it, too.

    A disk that refuses becomes a warning: the checkpoint holds the adapter as well.
    """
    if not adapter_names(model):
        return
    folder = Path(settings.checkpoint_dir, ADAPTER_FOLDER)
    try:
        found = newest_checkpoint(settings.checkpoint_dir, "best", settings.staging_dir)
        if found is None:
            return
        weights = read_checkpoint(found[0], manifest=found[1])["model_state_dict"]
        learned = {name: one for name, one in weights.items() if name.startswith("adapters.")}
        model.load_state_dict(learned, strict=False)
        (name,) = adapter_names(model)
        save_adapter(model, folder, name, base=settings.start_from)
        size = sum(file.stat().st_size for file in folder.iterdir())
        print_safely(f"The adapter was saved in {str(folder)!r} ({size / 2**20:.1f} MB).")
    except (OSError, CheckpointError) as error:
        print_safely(f"Warning: the adapter was not saved ({describe_error(error)}).")
