"""Whether what a checkpoint holds can be used: entries of the right kinds, weights that fit.

A manifest proves that a file is what was written; a file from elsewhere has none.
"""

import torch
from torch import Tensor

from golpo.errors import CheckpointError

# The kinds of the entries. Those of earlier versions, or of the original project, lack some.
ENTRIES = {
    "model_state_dict": dict,
    "optimizer_state_dict": dict | None,
    "config": dict | None,
    "settings": dict | None,
    "state": dict | None,
    "tokenizer_data": dict | None,
    "random_states": dict | None,
    "train_losses": list,
    "val_losses": list,
    "track_tokens_seen": list,
    "global_step": int,
    "tokens_seen": int,
}


def check_entries(checkpoint: dict, name: str) -> None:
    """Raise CheckpointError unless the entries of a checkpoint are of the kinds that they have."""
    for key, kind in ENTRIES.items():
        if key in checkpoint and not isinstance(checkpoint[key], kind):
            found = type(checkpoint[key]).__name__
            raise CheckpointError(
                f"{name} is damaged, or not a checkpoint of this project: its {key!r} is a {found}"
            )
    for key, tensor in checkpoint["model_state_dict"].items():
        dense = isinstance(tensor, Tensor) and tensor.layout == torch.strided
        if not dense or not isinstance(key, str):
            raise CheckpointError(f"{name} is damaged: its weights {key!r} are no dense tensor")


def check_shapes(weights: dict[str, Tensor], expected: dict[str, Tensor], name: str) -> None:
    """Raise CheckpointError unless both state dicts have the same keys and shapes."""
    for key in [*expected, *weights]:
        saved = tuple(weights[key].shape) if key in weights else "missing"
        wanted = tuple(expected[key].shape) if key in expected else "missing"
        if saved != wanted:
            raise CheckpointError(
                f"{name} and the model differ in {key!r}: {saved} in the file, {wanted} in the "
                f"model; make the model from the checkpoint's own config"
            )


def check_finite(weights: dict[str, Tensor], where: str) -> None:
    """Raise CheckpointError if a weight is NaN or infinite."""
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"the weights {name!r} hold NaN or infinity {where}")
