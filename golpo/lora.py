"""Low-rank adapters (LoRA: Hu et al., 2021): finetuning with one or two percent of the parameters.

The weights W (d_out, d_in) of a linear layer stay as they are. Beside them stand two small
matrices, A (r, d_in) and B (d_out, r), and the layer computes

    y = W x + strength * (alpha / r) * B A x.

B is zero at first, so that a new adapter changes nothing. Only A and B are trained and saved. The
strength can be moved at any time; at 0 the model is exactly what it was. Adapters stand in the
model under `model.adapters`, by name, and work on a model prepared for inference, too. They are
saved in the format of the library peft: see golpo/adapter_files.py.

Shapes in comments: r rank, d_in and d_out the layer's widths.
"""

import math
from pathlib import Path

import torch
import torch.nn as nn
from torch import Tensor

from golpo.adapter_files import (
    arrange,
    base_fingerprint,
    check_kind_of_adapter,
    read_adapter,
    write_adapter,
)
from golpo.low_rank import TARGETS, Adapter, Adapters, LowRank, target_layers, target_widths
from golpo_utils import GPTModel, check_number

MAX_STRENGTH = 1.5


def adapter_names(model: GPTModel) -> list[str]:
    """The names of the adapters that are loaded."""
    return list(getattr(model, "adapters", ()))


def find_adapter(model: GPTModel, name: str) -> Adapter:
    """The adapter of this name. Raises ValueError that names those there are."""
    names = adapter_names(model)
    if name not in names:
        there = f"it has {', '.join(map(repr, names))}" if names else "it has none"
        raise ValueError(f"the model has no adapter {name!r}; {there}")
    return model.adapters[name]


def add_adapter(
    model: GPTModel,
    name: str = "default",
    rank: int = 8,
    alpha: float = 16,
    targets: tuple[str, ...] = TARGETS,
    seed: int = 0,
) -> None:
    """Give `model` a new adapter, in place; its logits stay, and only adapters are trained.

    rank and alpha: see above. targets: which linear layers, of TARGETS. seed: of A's values.
    Raises ValueError for a name that is taken, another target, or a rank that is not smaller
    than the layer.
    """
    smallest = min(width for width, _ in target_widths(model).values())
    check_number("the adapter's rank", rank, 1, smallest - 1, whole=True)
    check_number("the adapter's alpha", alpha, 0)
    unknown = [target for target in targets if target not in TARGETS]
    if unknown or not targets or isinstance(targets, str):
        raise ValueError(f"the adapter's targets are {targets!r}; choose of {', '.join(TARGETS)}")
    generator = torch.Generator().manual_seed(seed)
    blocks = []
    for _ in model.trf_blocks:
        block = {}
        for target in targets:
            d_in, widths = target_widths(model)[target]
            bound = 1 / math.sqrt(d_in)  # nn.Linear's own initialization, as in peft
            a = torch.empty(rank, d_in).uniform_(-bound, bound, generator=generator)
            block[target] = (a, torch.zeros(sum(widths), rank), alpha / rank)
        blocks.append(block)
    insert_adapter(model, name, blocks)


def insert_adapter(model: GPTModel, name: str, blocks: list[dict[str, tuple]]) -> None:
    """Put an adapter into `model`: for each block, (A, B, scale) by target."""
    if not isinstance(name, str) or not name or "." in name:
        raise ValueError(f"the adapter's name is {name!r}; it must be text without a dot")
    if is_reserved(name):
        raise ValueError(f"the adapter's name is {name!r}, which PyTorch uses; choose another one")
    if name in adapter_names(model):
        raise ValueError(f"the model has an adapter {name!r} already; remove it, or rename one")
    if not hasattr(model, "adapters"):
        model.adapters = Adapters()
    if not len(model.adapters):
        model.adapters.trainable = [p for p in model.parameters() if p.requires_grad]
    device = model.tok_emb.weight.device
    adapter = Adapter()
    for block in blocks:
        parts = {
            target: LowRank(a.float().to(device), b.float().to(device), scale)
            for target, (a, b, scale) in block.items()
        }
        adapter.append(nn.ModuleDict(parts))
    adapter.train(model.training)
    for parameter in model.adapters.trainable:
        parameter.requires_grad_(False)
    model.adapters[name] = adapter
    attach_adapters(model)


def is_reserved(name: str) -> bool:
    """Whether the module that holds the adapters has an attribute of this name, such as "eval"."""
    return hasattr(Adapters(), name)


def attach_adapters(model: GPTModel) -> None:
    """Let the adapters work on the model's layers, also after these have been replaced."""
    widths = target_widths(model)
    for name in adapter_names(model):
        for block, parts in zip(model.trf_blocks, model.adapters[name], strict=True):
            layers = target_layers(block)
            for target, low_rank in parts.items():
                is_fused = len(layers[target]) == 1
                outputs = widths[target][1]
                outputs = [sum(outputs)] if is_fused else outputs
                low_rank.attach(layers[target], outputs)
    if hasattr(model, "adapters"):
        model.adapters.changes += 1


def restore_adapters(model: GPTModel, weights: dict[str, Tensor]) -> None:
    """Give `model` the adapters that stand in a checkpoint's `weights`, before these are loaded."""
    found = {}
    for key in weights:
        parts = key.split(".")
        if parts[0] == "adapters" and parts[-1] == "A":
            _, name, block, target, _ = parts
            tensors = [weights[f"adapters.{name}.{block}.{target}.{part}"] for part in "AB"]
            scale = float(weights[f"adapters.{name}.{block}.{target}.scale"])
            blocks = found.setdefault(name, [{} for _ in model.trf_blocks])
            blocks[int(block)][target] = (*(one.clone() for one in tensors), scale)
    for name, blocks in found.items():
        if name not in adapter_names(model):
            insert_adapter(model, name, blocks)


def adapter_parameters(model: GPTModel, name: str = "default") -> list[nn.Parameter]:
    """What is trained of an adapter: the As and Bs."""
    return list(find_adapter(model, name).parameters())


def set_adapter_strength(model: GPTModel, strength: float, name: str = "default") -> None:
    """Let an adapter count this much, from 0 (not at all, exactly) to 1.5; 1 is as trained.

    It may be called while the model generates; the next token is the first that it concerns.
    """
    check_number("the adapter's strength", strength, 0, MAX_STRENGTH)
    for low_rank in find_adapter(model, name).layers():
        low_rank.set_strength(float(strength))


def save_adapter(
    model: GPTModel, folder: str | Path, name: str = "default", base: str | None = None
) -> Path:
    """Write an adapter of `model` as peft does: its weights and its config; return the folder.

    base: the name or the folder of the model it belongs to, for peft. The strength is not saved.
    """
    write_adapter(find_adapter(model, name), Path(folder), base_fingerprint(model), base)
    return Path(folder)


def load_adapter(model: GPTModel, folder: str | Path, name: str | None = None) -> str:
    """Load an adapter that this project or peft wrote into `model`, in place; return its name.

    name: the folder's, unless it is given; "eval_" for a folder "eval". Raises FileNotFoundError,
    and ValueError that names what differs for an adapter of another model or kind.
    """
    folder = Path(folder)
    config, weights, base = read_adapter(folder)
    place = repr(str(folder))
    check_kind_of_adapter(config, place)
    blocks = arrange(model, weights, config, place)
    own = base_fingerprint(model)
    if base not in (None, own):
        trained_on = config.get("base_model_name_or_path")
        which = f" ({trained_on!r})" if trained_on else ""
        raise ValueError(
            f"the adapter in {place} was trained on another model{which}: the fingerprint of its "
            f"token embeddings is {base}, and this model's is {own}; load it with its own model"
        )
    if name is None:
        name = folder.resolve().name.replace(".", "_")
        name += "_" if is_reserved(name) else ""
    insert_adapter(model, name, blocks)
    return name


def remove_adapter(model: GPTModel, name: str = "default") -> None:
    """Take an adapter out of `model`; after the last one, all is trained again that was before."""
    for low_rank in find_adapter(model, name).layers():
        low_rank.detach()
    del model.adapters[name]
    model.adapters.changes += 1
    if not adapter_names(model):
        for parameter in model.adapters.trainable:
            parameter.requires_grad_(True)


@torch.no_grad()
def merge_adapter(model: GPTModel, name: str = "default") -> None:
    """Add an adapter at its strength to the weights, and remove it; the logits stay.

    Raises ValueError for 8-bit weights, to which nothing can be added.
    """
    adapter = find_adapter(model, name)
    for block, parts in zip(model.trf_blocks, adapter, strict=True):
        layers = target_layers(block)
        for target, low_rank in parts.items():
            if not all(hasattr(layer, "weight") for layer in layers[target]):
                raise ValueError("a model with 8-bit weights cannot take in an adapter; load it "
                                 "without quantize")  # fmt: skip
            changes = low_rank.product().split([len(one.weight) for one in layers[target]])
            for layer, change in zip(layers[target], changes, strict=True):
                layer.weight += change.to(layer.weight.dtype)
    remove_adapter(model, name)


def merge_adapters(model: GPTModel) -> None:
    """Merge all adapters of `model`."""
    for name in adapter_names(model):
        merge_adapter(model, name)


def check_merged(model: GPTModel) -> None:
    """Raise ValueError if `model` has an adapter, which a format for whole models cannot hold."""
    for name in adapter_names(model):
        raise ValueError(
            f"the model has the adapter {name!r}; call merge_adapters(model) before the export, "
            f"or remove it"
        )
