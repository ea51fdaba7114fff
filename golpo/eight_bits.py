"""Matrices in 8 bits for ONNX Runtime and the page docs/app/.

Each block of 32 weights of a row shares a scale. Only the weights are rounded. The sums are in
fp32, so the loss stays nearly the same, and every runtime computes the same sums but for their
order.

Shapes in comments: n blocks a row, s weights a block.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from golpo_utils import GPTModel

BLOCK = 32  # weights that share a scale
LARGEST_CODE = 127
ZERO_CODE = 128  # codes are unsigned: 128 stands for 0
SCALE_STEPS = 16  # scales have 4 bits, so a scale times a code fits into fp16 without rounding


def round_to_8_bits(model: GPTModel) -> None:
    """Round all matrices of `model` in place to what 8 bits hold. A second call changes nothing.

    The learned positions and the vectors stay as they are. Raises ValueError for a model that is
    prepared for inference: its matrices are copies in other shapes.
    """
    matrices = {model.tok_emb.weight} | {layer.weight for _, _, layer in linear_layers(model)}
    with torch.no_grad():
        for weight in matrices:
            weight.copy_(from_8_bits(*to_8_bits(weight), weight.shape[1]))


def linear_layers(model: GPTModel) -> list[tuple[nn.Module, str, nn.Linear]]:
    """Each linear layer, after the module that it belongs to and its name there."""
    if not isinstance(model.out_head, nn.Linear):
        raise ValueError("the model is prepared for inference; round it to 8 bits before that")
    return [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if isinstance(layer, nn.Linear)
    ]


def to_8_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (rows, d_in) → codes (rows, n, s) in uint8, and scales (rows, n).

    A weight is nearly (code - 128) * scale. Each row is filled up with zeros to whole blocks.
    """
    missing = -weight.shape[1] % BLOCK
    blocks = F.pad(weight.detach().float(), (0, missing)).unflatten(1, (-1, BLOCK))  # (rows, n, s)
    largest = blocks.abs().amax(dim=2)  # (rows, n)
    scales = scale_above(largest / LARGEST_CODE)
    # Rounding may make the largest weight smaller. Its scale is then that of the rounded weight,
    # so that rounding twice is the same as rounding once.
    scales = scale_above(torch.round(largest / scales) * scales / LARGEST_CODE)
    codes = torch.round(blocks / scales[:, :, None]).clamp(-LARGEST_CODE, LARGEST_CODE)
    return (codes + ZERO_CODE).to(torch.uint8), scales


def scale_above(value: Tensor) -> Tensor:
    """The next number of 4 bits that is not smaller; 1 for 0."""
    mantissa, exponent = torch.frexp(value)  # value = mantissa * 2 ** exponent
    scales = torch.ldexp(torch.ceil(mantissa * SCALE_STEPS) / SCALE_STEPS, exponent)
    return torch.where(value > 0, scales, 1.0)


def from_8_bits(codes: Tensor, scales: Tensor, d_in: int) -> Tensor:
    """Codes (..., n, s) and scales (..., n) → weights (..., d_in)."""
    blocks = (codes.float() - ZERO_CODE) * scales[..., None]  # (..., n, s)
    return blocks.flatten(-2)[..., :d_in]


class EightBitLinear(nn.Module):
    """A linear layer that an ONNX file holds in 8 bits: (..., d_in) → (..., d_out)."""

    def __init__(self, layer: nn.Linear, codes: Tensor, scales: Tensor):
        super().__init__()
        self.in_features = layer.in_features
        self.out_features = layer.out_features
        self.bias = layer.bias
        self.register_buffer("codes", codes)  # (d_out, n, s)
        self.register_buffer("scales", scales)  # (d_out, n)

    def forward(self, x: Tensor) -> Tensor:
        # A runtime computes the weights once, while it loads the file: they depend on no input.
        weight = from_8_bits(self.codes, self.scales, self.in_features)  # (d_out, d_in)
        return F.linear(x, weight, self.bias)


class EightBitEmbedding(nn.Module):
    """An embedding that an ONNX file holds in 8 bits: ids (b, t) → (b, t, d)."""

    def __init__(self, width: int, codes: Tensor, scales: Tensor):
        super().__init__()
        self.width = width
        self.register_buffer("codes", codes)  # (v, n, s)
        self.register_buffer("scales", scales)  # (v, n)

    def forward(self, ids: Tensor) -> Tensor:
        return from_8_bits(self.codes[ids], self.scales[ids], self.width)


def use_8_bits(model: GPTModel) -> None:
    """Replace the linear layers and the token embedding of `model` by those above.

    Raises ValueError for a model that is prepared for inference.
    """
    layers = linear_layers(model)
    embedding = model.tok_emb.weight
    stored = {
        weight: to_8_bits(weight) for weight in {embedding, *(one.weight for *_, one in layers)}
    }
    for parent, name, layer in layers:
        # A head that is tied to the embedding has its codes, and the file holds them once.
        setattr(parent, name, EightBitLinear(layer, *stored[layer.weight]))
    model.tok_emb = EightBitEmbedding(embedding.shape[1], *stored[embedding])
