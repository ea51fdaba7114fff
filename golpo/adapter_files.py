"""Adapters in files, in the format of the library peft, which loads them beside our exports.

GPT-2 in Hugging Face's format has one matrix for queries, keys and values (c_attn), and holds its
matrices transposed (peft's `fan_in_fan_out`); the matrices of an adapter are the same in both.
"""

import hashlib
import json
import math
import re
from pathlib import Path

import torch
from torch import Tensor

from golpo.files import make_folder, replace_file
from golpo.low_rank import Adapter, target_widths
from golpo_utils import GPTModel

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
BASE_KEY = "golpo_kothok_base"  # in the weights file's metadata: the model it was trained on
PEFT_NAMES = {
    "qkv": "attn.c_attn",
    "out_proj": "attn.c_proj",
    "up": "mlp.c_fc",
    "down": "mlp.c_proj",
}
TARGETS_BY_NAME = {theirs: target for target, theirs in PEFT_NAMES.items()}
# base_model.model.transformer.h.3.attn.c_attn.lora_A.weight
KEY = re.compile(r"(?:.*\.)?h\.(\d+)\.(\w+\.\w+)\.lora_([AB])(?:\.\w+)?\.weight")
# What peft can do beside the plain product, with the values that mean that it does not.
NOT_SUPPORTED = {
    "use_dora": (False, None),
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "alpha_pattern": ({}, None),
    "alora_invocation_tokens": (None, []),
    # Others, such as "pissa", change the weights that the adapter stands beside.
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
    "layer_replication": (None, []),
    "use_qalora": (False, None),
    "use_bdlora": (False, None),
    "arrow_config": (None,),
    "kasa_config": (None,),
}


def write_adapter(
    adapter: Adapter, folder: Path, fingerprint: str, base: str | None = None
) -> None:
    """Write an adapter's weights and its config. fingerprint and base: of the model beside it."""
    from safetensors.torch import save

    weights = {}
    for number, block in enumerate(adapter):
        for target, low_rank in block.items():
            prefix = f"base_model.model.transformer.h.{number}.{PEFT_NAMES[target]}"
            for part in "AB":
                tensor = getattr(low_rank, part).detach().cpu().contiguous()
                weights[f"{prefix}.lora_{part}.weight"] = tensor
    content = save(weights, metadata={"format": "pt", BASE_KEY: fingerprint})
    config = json.dumps(peft_config(adapter, base), indent=1)
    make_folder(folder)
    replace_file(folder / WEIGHTS_FILE, lambda file: file.write(content))
    replace_file(folder / CONFIG_FILE, lambda file: file.write(config.encode()))


def peft_config(adapter: Adapter, base: str | None) -> dict:
    """The content of adapter_config.json."""
    ranks = {len(one.A): float(one.scale) for one in adapter.layers()}
    if len(ranks) > 1:
        raise ValueError(f"the adapter has ranks {sorted(ranks)}; one rank can be saved")
    rank, scale = ranks.popitem()
    targets = dict.fromkeys(target for block in adapter for target in block)
    chosen = [number for number, block in enumerate(adapter) if len(block)]
    some = {"layers_to_transform": chosen, "layers_pattern": "h"}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": scale * rank,
        "lora_dropout": 0.0,
        "target_modules": [PEFT_NAMES[target] for target in targets],
        **(some if len(chosen) < len(adapter) else {}),
        "fan_in_fan_out": True,
        "bias": "none",
        "inference_mode": True,
    }


def base_fingerprint(model: GPTModel) -> str:
    """A short digest of the model that an adapter belongs to.

    Of its token embeddings, which neither an adapter nor 8-bit weights change, in 16 bits, as an
    export may hold them.
    """
    embeddings = model.tok_emb.weight.detach().cpu().to(torch.float16).contiguous()
    return hashlib.sha256(embeddings.numpy().tobytes()).hexdigest()[:16]


def read_adapter(folder: Path) -> tuple[dict, dict[str, Tensor], str | None]:
    """The config, the weights, and the fingerprint of the base model, if there is one."""
    from safetensors import safe_open

    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"there is no {name} in {str(folder)!r}; give the folder of an adapter"
            )
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            base = (file.metadata() or {}).get(BASE_KEY)
    except Exception as error:  # each library raises errors of its own
        raise ValueError(
            f"the adapter in {str(folder)!r} cannot be read ({type(error).__name__}); its files "
            f"are damaged, get them anew"
        ) from None
    if not isinstance(config, dict):
        raise ValueError(f"{CONFIG_FILE} in {str(folder)!r} is not a peft config; get it anew")
    return config, weights, base


def check_kind_of_adapter(config: dict, place: str) -> None:
    """Raise ValueError unless the adapter is a plain LoRA."""
    if config.get("peft_type") != "LORA":
        kind = config.get("peft_type")
        raise ValueError(f"the adapter in {place} is of the kind {kind!r}; only LORA can be read")
    for key, plain in NOT_SUPPORTED.items():
        value = config.get(key, plain[0])
        if value not in plain:
            raise ValueError(
                f"the adapter in {place} has {key} = {value!r}; only plain LoRA can be read"
            )
    alpha = config.get("lora_alpha")
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ValueError(f"the adapter in {place} has lora_alpha = {alpha!r}; it must be a number")


def arrange(
    model: GPTModel, weights: dict[str, Tensor], config: dict, place: str
) -> list[dict[str, tuple]]:
    """The weights as `insert_adapter` wants them. Raises ValueError if they do not fit `model`."""
    pairs = {}
    for key, tensor in weights.items():
        match = KEY.fullmatch(key)
        if not match or match[2] not in TARGETS_BY_NAME:
            raise ValueError(
                f"the adapter in {place} has {key!r}, which belongs to no linear layer of a GPT-2"
            )
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise ValueError(f"{key!r} in {place} does not hold finite numbers; get it anew")
        pairs.setdefault((int(match[1]), TARGETS_BY_NAME[match[2]]), {})[match[3]] = tensor
    layers = 1 + max((number for number, _ in pairs), default=-1)
    own = len(model.trf_blocks)
    last = config.get("layers_to_transform")
    if layers > own or not layers or (last is None and layers < own):
        raise ValueError(
            f"the adapter in {place} is for a model of {layers} layers, and this one has {own}"
        )
    blocks = [{} for _ in model.trf_blocks]
    widths = target_widths(model)
    for (number, target), pair in sorted(pairs.items()):
        blocks[number][target] = check_pair(pair, target, widths[target], config, place)
    return blocks


def check_pair(
    pair: dict[str, Tensor], target: str, widths: tuple, config: dict, place: str
) -> tuple[Tensor, Tensor, float]:
    """(A, B, scale) of one layer. Raises ValueError that names the width that differs."""
    missing = [part for part in "AB" if part not in pair]
    if missing:
        raise ValueError(f"the adapter in {place} lacks lora_{missing[0]} of {PEFT_NAMES[target]}")
    a, b = pair["A"], pair["B"]
    expected = (widths[0], sum(widths[1]))
    there = (a.shape[-1], b.shape[0])
    if there != expected:
        raise ValueError(
            f"the adapter in {place} is for another model: its {PEFT_NAMES[target]} is "
            f"{there[0]} → {there[1]} wide, and this model's is {expected[0]} → {expected[1]}"
        )
    rank = len(a)
    if a.dim() != 2 or b.shape != (expected[1], rank):
        raise ValueError(f"the adapter in {place} has a lora_B of shape {tuple(b.shape)}")
    divisor = math.sqrt(rank) if config.get("use_rslora") else rank
    return a, b, config["lora_alpha"] / divisor
