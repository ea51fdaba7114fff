"""Generation on a CPU without the overhead of modules: one token at a time, in few calls.

A small model computes a token in about a millisecond, and calling modules takes a third of it.
`CPUDecoder` computes what `Decoder` does, from the same layers and caches; tests hold them equal.

Shapes in comments: b rows, d embedding size, h heads, t tokens so far, v vocabulary.
"""

from typing import NamedTuple

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from golpo_utils import Decoder, GPTModel, KeyValueCache, LayerNorm, TransformerBlock


class FlatBlock(NamedTuple):
    """What one block computes with, without modules around it."""

    norm1: LayerNorm
    qkv: nn.Module  # queries, keys and values, side by side
    out_proj: nn.Module
    norm2: LayerNorm
    up: nn.Module
    down: nn.Module
    cache: KeyValueCache


def flatten_block(block: TransformerBlock, cache: KeyValueCache) -> FlatBlock:
    """The parts of a block that `prepare_for_inference` has prepared."""
    up, _, down = block.ff.layers
    return FlatBlock(
        norm1=block.norm1,
        qkv=block.att.project.linear,
        out_proj=block.att.out_proj,
        norm2=block.norm2,
        up=up,
        down=down,
        cache=cache,
    )


class CPUDecoder(Decoder):
    """`Decoder` for a prepared model on a CPU, whose keys and values have one width."""

    def __init__(self, model: GPTModel, capacity: int):
        super().__init__(model, capacity)
        self.heads = model.trf_blocks[0].att.num_heads

    def prefill(self, token_ids: Tensor) -> Tensor:
        logits = super().prefill(token_ids)
        pairs = zip(self.model.trf_blocks, self.caches, strict=True)
        self.blocks = [flatten_block(block, cache) for block, cache in pairs]
        return logits

    def advance(self, tokens: Tensor) -> Tensor:
        model = self.model
        position = self.caches[0].length
        x = F.embedding(tokens[:, 0], model.tok_emb.weight)  # (b, d)
        x = x + model.pos_emb.weight[position]
        for block in self.blocks:
            x = x + self.attend(block, block.norm1.fused(x))
            hidden = block.up(block.norm2.fused(x))  # (b, 4 d)
            x = x + block.down(F.gelu(hidden, approximate="tanh"))
        return model.out_head(model.final_norm.fused(x))  # (b, v)

    def attend(self, block: FlatBlock, x: Tensor) -> Tensor:
        """Attention of the new token (b, d) to itself and those before it: (b, d)."""
        rows = len(x)
        qkv = block.qkv(x).view(rows, 3, self.heads, 1, -1)
        queries, keys, values = qkv.unbind(1)  # (b, h, 1, d / h) each
        keys, values = block.cache.append(keys, values)  # (b, h, t, d / h)
        context = F.scaled_dot_product_attention(queries, keys, values)  # (b, h, 1, d / h)
        return block.out_proj(context.view(rows, -1))
