"""The weights of a GPT-2 in Hugging Face's format: found, read, and given one form."""

import json
import re
from pathlib import Path

import torch
from torch import Tensor

from golpo.errors import CheckpointError

# Weights come as one file or as several with an index. safetensors cannot hold code; the others
# are read with weights_only.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# What wrappers put before all names: DistributedDataParallel, torch.compile.
WRAPPERS = ("module.", "_orig_mod.")
OLD_MASKS = (".attn.bias", ".attn.masked_bias")  # buffers that old files contain
OLD_NAMES = {"gamma": "weight", "beta": "bias"}  # of layer normalization
OTHER_HEADS = (
    "score.",
    "classifier.",
    "multiple_choice_head.",
    "qa_outputs.",
    "transformer.score.",
)


def find_weights(folder: Path) -> Path:
    """The weights file of a folder, or the index of several. Raises FileNotFoundError."""
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    others = ("flax_model.msgpack", "tf_model.h5", "model.onnx", "onnx/model.onnx")
    found = [name for name in others if (folder / name).is_file()]
    instead = f"; {found[0]} is of another library" if found else ""
    raise FileNotFoundError(
        f"there are no weights in {str(folder)!r}; it must have one of {', '.join(WEIGHT_FILES)}"
        f"{instead}"
    )


def read_weights_file(path: Path) -> dict[str, Tensor]:
    """All tensors of a weights file, or of the files that an index names.

    Raises FileNotFoundError, and CheckpointError for a damaged file.
    """
    if path.name.endswith(".index.json"):
        return read_shards(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # each library raises errors of its own
        raise CheckpointError(
            f"the weights in {str(path)!r} cannot be read ({type(error).__name__}); the file is "
            f"damaged or of another kind, get it anew"
        ) from None


def read_shards(index: Path) -> dict[str, Tensor]:
    """The tensors of all files that an index names."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        paths = [index.parent / Path(name).name for name in sorted(names)]
    except (LookupError, ValueError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{str(index)!r} is not an index of weights; get it anew") from None
    weights = {}
    for path in paths:
        weights |= read_weights_file(path)
    return weights


def name_weights(source: dict[str, Tensor]) -> dict[str, Tensor]:
    """GPT-2's weights with their full names, whichever of their names the source uses.

    Raises ValueError for weights that are not numbers, or not finite.
    """
    weights = {}
    for name, tensor in source.items():
        for wrapper in WRAPPERS:
            name = name.removeprefix(wrapper)
        if name.endswith(OLD_MASKS) or name.startswith(OTHER_HEADS):
            continue
        end = name.rpartition(".")[2]
        if re.search(r"\bln_\w+\.(gamma|beta)$", name):
            name = name.removesuffix(end) + OLD_NAMES[end]
        is_full = name.startswith(("transformer.", "lm_head."))
        name = name if is_full else f"transformer.{name}"
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            kind = getattr(tensor, "dtype", type(tensor).__name__)
            raise ValueError(f"{name!r} holds {kind}; quantized weights cannot be read")
        if not tensor.isfinite().all():
            raise ValueError(f"{name!r} holds NaN or infinite numbers; the weights are damaged")
        weights[name] = tensor
    if "lm_head.weight" not in weights and "transformer.wte.weight" in weights:
        weights["lm_head.weight"] = weights["transformer.wte.weight"]
    return weights
