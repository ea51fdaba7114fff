"""What a low-rank adapter computes, and the layers that it stands beside: see golpo/lora.py.

Shapes in comments: r rank, d_in and d_out the layer's widths.
"""

import functools

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from golpo_utils import GPTModel, TransformerBlock, check_config

# The linear layers of a block. Queries, keys and values share an A, as they share a matrix in
# GPT-2's files.
TARGETS = ("qkv", "out_proj", "up", "down")


class LowRank(nn.Module):
    """The two matrices beside one linear layer: (..., d_in) → (..., d_out)."""

    def __init__(self, a: Tensor, b: Tensor, scale: float):
        super().__init__()
        self.A = nn.Parameter(a)  # (r, d_in)
        self.B = nn.Parameter(b)  # (d_out, r)
        self.register_buffer("scale", torch.tensor(float(scale), device=a.device))  # alpha / r
        self.register_buffer("factor", self.scale.clone(), persistent=False)
        self.strength = 1.0
        self.handles = []

    def forward(self, x: Tensor, rows: slice = slice(None)) -> Tensor:
        """What is added to these rows of the layer's output."""
        if not torch.is_autocast_enabled(x.device.type):  # which converts by itself
            x = x.to(self.A.dtype)
        inner = F.linear(x, self.A)  # (..., r)
        return F.linear(inner, self.B[rows]) * self.factor  # (..., d_out)

    def add(self, layer: nn.Module, inputs: tuple, y: Tensor, *, rows: slice) -> Tensor:
        """PyTorch calls this after `layer`; what it returns is the layer's output."""
        # On a GPU a captured graph repeats what ran once: there a factor of 0 does the same.
        if self.strength == 0 and not y.is_cuda:
            return y
        return y + self.forward(inputs[0], rows).to(y.dtype)

    def attach(self, layers: list[nn.Module], widths: list[int]) -> None:
        """Add to the output of `layers`, which have these widths, side by side."""
        self.detach()
        end = 0
        for layer, width in zip(layers, widths, strict=True):
            rows = slice(end, end + width)
            end += width
            hook = functools.partial(self.add, rows=rows)
            self.handles.append(layer.register_forward_hook(hook))

    def detach(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def set_strength(self, strength: float) -> None:
        self.strength = strength
        self.factor.copy_(self.scale * strength)  # in place, for captured graphs

    @torch.no_grad()
    def product(self) -> Tensor:
        """What the layer's weights would have to change by: (d_out, d_in)."""
        return self.factor * (self.B.float() @ self.A.float())


class Adapter(nn.ModuleList):
    """One adapter: for each block, its LowRank by target."""

    def layers(self) -> list[LowRank]:
        return [low_rank for block in self for low_rank in block.values()]


class Adapters(nn.ModuleDict):
    """The adapters of a model by name."""

    def __init__(self):
        super().__init__()
        self.trainable = []  # what was to be trained before there was an adapter
        self.changes = 0  # a captured CUDA graph holds for one value of this


def adapter_changes(model: GPTModel) -> int:
    """A number that is another one after an adapter has been added or removed."""
    return getattr(getattr(model, "adapters", None), "changes", 0)


def target_widths(model: GPTModel) -> dict[str, tuple[int, list[int]]]:
    """For each target, the width of its input and those of its outputs."""
    config = check_config(model.config)
    d, key_dim, val_dim = (config[key] for key in ("emb_dim", "key_dim", "val_dim"))
    return {
        "qkv": (d, [key_dim, key_dim, val_dim]),
        "out_proj": (val_dim, [d]),
        "up": (d, [4 * d]),
        "down": (4 * d, [d]),
    }


def target_layers(block: TransformerBlock) -> dict[str, list[nn.Module]]:
    """The linear layers of each target, in a plain model and in one prepared for inference."""
    fused = getattr(block.att.project, "linear", None)
    apart = [block.att.W_query, block.att.W_key, block.att.W_value]
    return {
        "qkv": apart if fused is None else [fused],
        "out_proj": [block.att.out_proj],
        "up": [block.ff.layers[0]],
        "down": [block.ff.layers[2]],
    }
