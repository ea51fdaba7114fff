"""config.json of a GPT-2 in Hugging Face's format: what this project computes alike, and sizes."""

import json
import math
from pathlib import Path
from typing import Any

from torch import Tensor

from golpo.errors import CheckpointError

# What GPT2Config calls a size, and what other programs call it.
SIZES = {
    "vocab_size": ("vocab_size",),
    "context_length": ("n_positions", "max_position_embeddings", "n_ctx"),
    "emb_dim": ("n_embd", "hidden_size"),
    "n_heads": ("n_head", "num_attention_heads"),
    "n_layers": ("n_layer", "num_hidden_layers"),
}
# Three names of the tanh approximation of GELU, which GPT-2 has.
TANH_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
LAYER_NORM_EPSILON = 1e-5
LARGEST_SIZE = 2**24


def read_config(folder: Path) -> dict:
    """config.json, if it describes a GPT-2 that this project computes in the same way."""
    path = folder / "config.json"
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{str(path)!r} cannot be read ({type(error).__name__}); get it anew"
        ) from None
    if not isinstance(theirs, dict) or theirs.get("model_type", "gpt2") != "gpt2":
        kind = theirs.get("model_type") if isinstance(theirs, dict) else type(theirs).__name__
        raise CheckpointError(
            f"{str(folder)!r} has no GPT-2 in Hugging Face's format: 'model_type' in its "
            f"config.json is {kind!r}"
        )
    activation = theirs.get("activation_function", TANH_GELU[0])
    if activation not in TANH_GELU:
        raise unlike_gpt2(folder, "activation_function", activation, TANH_GELU[0])
    epsilon = theirs.get("layer_norm_epsilon", LAYER_NORM_EPSILON)
    if not is_number(epsilon) or not math.isclose(epsilon, LAYER_NORM_EPSILON, rel_tol=1e-6):
        raise unlike_gpt2(folder, "layer_norm_epsilon", epsilon, LAYER_NORM_EPSILON)
    if theirs.get("add_cross_attention"):
        raise unlike_gpt2(folder, "add_cross_attention", True, False)
    if "quantization_config" in theirs:
        raise unlike_gpt2(folder, "quantization_config", "set", "absent")
    return theirs


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def unlike_gpt2(folder: Path, key: str, value: Any, expected: Any) -> CheckpointError:
    return CheckpointError(
        f"the model in {str(folder)!r} differs from GPT-2: {key!r} in its config.json is "
        f"{value!r}, and this project has {expected!r}; its logits would be wrong"
    )


def read_facts(theirs: dict) -> dict:
    """What our export noted about the model: its config, step, losses; nothing for others."""
    facts = theirs.get("golpo_kothok")
    if not isinstance(facts, dict):
        return {}
    facts = {key: value for key, value in facts.items() if key not in ("model", "encoding")}
    config = facts.get("config")
    if not isinstance(config, dict) or not isinstance(config.get("vocab_size"), int):
        facts.pop("config", None)
    return facts


def find_size(theirs: dict, name: str) -> int:
    """A size of the model, under any of its names. Raises ValueError."""
    names = SIZES[name]
    value = next((theirs[key] for key in names if theirs.get(key) is not None), None)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST_SIZE:
        raise ValueError(f"{names[0]!r} in its config.json is {value!r}, not a size")
    return value


def model_config(theirs: dict, facts: dict, weights: dict[str, Tensor]) -> dict:
    """The config of our model. Raises ValueError if config.json and the weights disagree."""
    sizes = {name: find_size(theirs, name) for name in SIZES}
    inner = theirs.get("n_inner") or 4 * sizes["emb_dim"]
    if inner != 4 * sizes["emb_dim"]:
        raise ValueError(f"'n_inner' in its config.json is {inner}; it must be 4 times 'n_embd'")
    check_shape(weights, "wte", (sizes["vocab_size"], sizes["emb_dim"]))
    check_shape(weights, "wpe", (sizes["context_length"], sizes["emb_dim"]))
    layers = {name.split(".")[2] for name in weights if name.startswith("transformer.h.")}
    if len(layers) != sizes["n_layers"]:
        raise ValueError(
            f"'n_layer' in its config.json is {sizes['n_layers']}, and its weights have "
            f"{len(layers)} layers"
        )
    rate = theirs.get("resid_pdrop", 0.1)
    own = facts.get("config") or {"drop_rate": rate, "qkv_bias": True}
    config = {**own, **sizes}
    # Finetuning in another program teaches the biases that our model may not have.
    biases = [value for name, value in weights.items() if name.endswith("attn.c_attn.bias")]
    if any(bias.any() for bias in biases):
        config["qkv_bias"] = True
    for width in ("key_dim", "val_dim"):
        if width in config:
            config[width] = sizes["emb_dim"]
    return config


def check_shape(weights: dict[str, Tensor], name: str, expected: tuple[int, int]) -> None:
    full = f"transformer.{name}.weight"
    if full not in weights:
        raise ValueError(f"its weights lack {full!r}")
    shape = tuple(weights[full].shape)
    if shape != expected:
        raise ValueError(f"{full!r} has shape {shape}; its config.json says {expected}")


def fold_attention_scale(weights: dict[str, Tensor], theirs: dict) -> None:
    """Give the queries another length where a GPT-2 scales its attention scores differently.

    Ours divides scores by the root of the head's width. `scale_attn_weights` False leaves that
    out, and `scale_attn_by_inverse_layer_idx` also divides by the layer's number, from 1.
    """
    is_scaled = theirs.get("scale_attn_weights", True)
    by_layer = theirs.get("scale_attn_by_inverse_layer_idx", False)
    if is_scaled and not by_layer:
        return
    width = find_size(theirs, "emb_dim")
    head_width = width / find_size(theirs, "n_heads")
    for number in range(find_size(theirs, "n_layers")):
        factor = (1 if is_scaled else math.sqrt(head_width)) / (number + 1 if by_layer else 1)
        for part in ("weight", "bias"):
            name = f"transformer.h.{number}.attn.c_attn.{part}"
            if name in weights:
                scaled = weights[name].float().clone()
                scaled[..., :width] *= factor  # queries come first
                weights[name] = scaled
