"""Weights to start a training from: GPT-2's, the bundled model's, or those of a checkpoint."""

from pathlib import Path

import tiktoken

from golpo.huggingface import load_gpt2_weights
from golpo.inference import BUNDLED_NAMES, load_storyteller
from golpo.lora import merge_adapters
from golpo_utils import GPTModel, get_tokenizer

# What a model knows is soon overwritten, so its learning rate is lower than that of a new one.
FULL_DEFAULTS = {"num_epochs": 3, "learning_rate": 3e-4, "evals_per_epoch": 2}
# An adapter's two matrices start from nothing, and leave the model as it is: they learn faster.
# 0.01 was the best of three rates at width 384 (docs/finetuning.md); wider models usually want
# lower ones (Yang et al., 2022).
ADAPTER_RATE_TIMES_WIDTH = 4


def is_own_model(source: str) -> bool:
    """Whether `source` names a whole model here, and not weights in GPT-2's format alone."""
    path = Path(source)
    return source in BUNDLED_NAMES or path.is_dir() or path.suffix in (".pt", ".pth")


def settings_to_start(given: dict) -> dict:
    """The settings `given`, and what start_from implies: its model's config and tokenizer.

    Learning rate and epochs are those for finetuning. A config that is given stays.
    """
    source = given.get("start_from")
    if not source or "config" in given or not is_own_model(str(source)):
        return given
    model, tokenizer, _ = load_storyteller(source, which="best")
    implied = {"config": dict(model.config)}
    if tokenizer.name != get_tokenizer(model.config["vocab_size"]).name:
        implied["tokenizer"] = "start"
    start = {**FULL_DEFAULTS, **implied}
    return {**preset_for_adapter(start, given), **given}


def preset_for_adapter(preset: dict, given: dict) -> dict:
    """The settings of a preset, with an adapter's learning rate if `given` asks for an adapter."""
    if not preset or not given.get("adapter_rank"):
        return preset
    return {**preset, "learning_rate": ADAPTER_RATE_TIMES_WIDTH / preset["config"]["emb_dim"]}


def start_tokenizer(source: str | None) -> tiktoken.Encoding:
    """The tokenizer of the model that a training starts from. Raises ValueError without one."""
    if source is None or not is_own_model(source):
        raise ValueError(
            f"tokenizer is 'start', but start_from is {source!r}; name a checkpoint or a folder"
        )
    return load_storyteller(source, which="best")[1]


def load_start_weights(model: GPTModel, source: str, tokenizer: tiktoken.Encoding) -> None:
    """Copy the weights of `source` into `model`, in place.

    source: "bundled", a checkpoint file or a folder with checkpoints (the best one is taken), a
    folder or a .safetensors file with a GPT-2, or the name of one on the Hugging Face Hub.
    Raises FileNotFoundError, or ValueError that names what does not fit.
    """
    if is_own_model(source):
        copy_weights(model, source, tokenizer)
    else:
        load_gpt2_weights(model, source)


def copy_weights(model: GPTModel, source: str, tokenizer: tiktoken.Encoding) -> None:
    """Copy the weights of another model of this project; its context may be longer.

    Adapters that the other has are merged.
    """
    other, other_tokenizer, _ = load_storyteller(source, which="best")
    merge_adapters(other)
    if other_tokenizer.name != tokenizer.name:
        raise ValueError(
            f"start_from {source!r} has the tokenizer {other_tokenizer.name!r}, and this training "
            f"has {tokenizer.name!r}; choose the same 'vocab_size' and tokenizer, or leave out "
            f"preset and config to take them from there"
        )
    weights = {name: weight.float() for name, weight in other.state_dict().items()}
    positions = model.config["context_length"]
    weights["pos_emb.weight"] = weights["pos_emb.weight"][:positions]
    for name, parameter in model.state_dict().items():
        there = tuple(weights[name].shape) if name in weights else "missing"
        if there != tuple(parameter.shape):
            raise ValueError(
                f"start_from {source!r} does not fit: {name!r} has shape {there} there and "
                f"{tuple(parameter.shape)} here; use a config of the same size"
            )
    if model.out_head.weight is model.tok_emb.weight:
        if not weights["out_head.weight"].equal(weights["tok_emb.weight"]):
            model.untie_head()
    model.load_state_dict(weights)
