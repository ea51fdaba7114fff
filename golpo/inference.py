"""Models ready to generate: loaded, and prepared for speed on the machine at hand."""

import functools
import warnings
from pathlib import Path

import tiktoken
import torch
import torch.nn as nn
from torch import Tensor

from golpo.checkpoint import BEST, load_checkpoint, newest_checkpoint, read_checkpoint
from golpo.cpu_decoding import CPUDecoder
from golpo.devices import cpu_has
from golpo.fast_linear import FastLinear, choose_products
from golpo.files import as_path
from golpo.initialization import SkipInitialization
from golpo.lora import (
    adapter_names,
    attach_adapters,
    load_adapter,
    restore_adapters,
    set_adapter_strength,
)
from golpo.paths import BUNDLED_MODEL, DEFAULT_CHECKPOINT_DIR
from golpo.projections import join_projections
from golpo.static_decoding import StaticSteps
from golpo.tokenizer import tokenizer_of
from golpo.watchdog import watched
from golpo_utils import GPT_CONFIG_124M, GPTModel, MultiHeadAttention

linear_dynamic = torch.ops.quantized.linear_dynamic.default
BUNDLED_NAMES = ("bundled", "voice")  # how people name the bundled model, in any folder


class Int8Linear(nn.Module):
    """A linear layer with 8-bit weights, for generation on a CPU: (..., d_in) → (..., d_out).

    Each row of the weights has its own scale; inputs are rounded to 8 bits as they come
    (PyTorch's dynamic quantization), or to 7 where the processor lacks VNNI and the sums of
    8-bit products would overflow.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        weight = weight.detach().float().cpu()
        bias = None if bias is None else bias.detach().float().cpu()
        scales = weight.abs().amax(dim=1).clamp(min=1e-12).double() / 127  # (d_out,)
        zeros = torch.zeros_like(scales, dtype=torch.long)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch plans to move these functions to torchao
            rounded = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
            self.packed = torch.ops.quantized.linear_prepack(rounded, bias)
        # Without these instructions, sums of 8-bit products overflow.
        self.seven_bits = not cpu_has("avx512_vnni", "avx_vnni")

    def forward(self, x: Tensor) -> Tensor:
        return linear_dynamic(x, self.packed, self.seven_bits)


class FusedProjection:
    """Queries, keys and values of an attention layer from one product: see `project` there."""

    def __init__(self, attention: MultiHeadAttention, quantize: bool):
        self.num_heads = attention.num_heads
        with torch.no_grad():
            weight, bias, self.widths = join_projections(attention)
        if quantize:
            self.linear = Int8Linear(weight, bias)
            return
        layers = (attention.W_query, attention.W_key, attention.W_value)
        for layer, part in zip(layers, weight.split(self.widths), strict=True):
            layer.weight = nn.Parameter(part)  # the same memory, so that it is held only once
        self.linear = FastLinear(weight, bias)

    def __call__(self, x: Tensor) -> list[Tensor]:
        projected = self.linear(x).split(self.widths, dim=-1)
        return [y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for y in projected]


def prepare_for_inference(model: GPTModel, quantize: bool = False) -> GPTModel:
    """Make `model` fast at generating on its device, in place, and return it.

    On a CPU, queries, keys and values become one product, and each product is computed in the
    way that is fastest there; with `quantize`, weights are 8-bit integers. On a GPU, single
    tokens go through a CUDA graph. The model is for generation only from then on.
    """
    model.eval()
    if model.tok_emb.weight.device.type == "cuda":
        model.make_decoder = StaticSteps(model).make_decoder
        return model
    parameters = model.parameter_count()
    model.parameter_count = lambda: parameters  # 8-bit weights are no longer parameters
    for block in model.trf_blocks:
        block.att.project = FusedProjection(block.att, quantize)
        block.att.out_proj = fast_layer(block.att.out_proj, quantize)
        block.ff.layers[0] = fast_layer(block.ff.layers[0], quantize)
        block.ff.layers[2] = fast_layer(block.ff.layers[2], quantize)
    model.out_head = fast_layer(model.out_head, quantize)
    choose_products(fast_linears(model))
    if len(set(model.trf_blocks[0].att.project.widths)) == 1:
        model.make_decoder = functools.partial(CPUDecoder, model)
    attach_adapters(model)  # to the new layers
    return model


def fast_layer(layer: nn.Linear, quantize: bool) -> nn.Module:
    if quantize:
        return Int8Linear(layer.weight, layer.bias)
    return FastLinear(layer.weight, layer.bias)


def fast_linears(model: GPTModel) -> list[FastLinear]:
    """All layers of `model` that are a FastLinear."""
    projections = [block.att.project.linear for block in model.trf_blocks]
    return [one for one in (*projections, *model.modules()) if isinstance(one, FastLinear)]


def load_storyteller(
    source: str | Path = DEFAULT_CHECKPOINT_DIR,
    device: str | torch.device = "cpu",
    which: str = "newest",
    staging: str | Path | None = None,
    *,
    quantize: bool = False,
    adapter: str | Path | None = None,
    adapter_strength: float = 1.0,
) -> tuple[GPTModel, tiktoken.Encoding, dict]:
    """A model that is ready to generate → (model, tokenizer, about).

    source: a checkpoint file, a folder of checkpoints (`newest_checkpoint` picks one), a folder
    with a GPT-2 in Hugging Face's format, or "bundled", the bundled model. about: the rest of the
    checkpoint, and its "path". quantize: 8-bit weights, faster on a CPU. adapter: the folder of an
    adapter to load beside the weights (golpo/lora.py); adapter_strength: of it, and of those that
    the checkpoint holds. The original project's checkpoints have no config: they are
    GPT_CONFIG_124M. Raises FileNotFoundError if there is no checkpoint.
    """
    path = as_path("the checkpoint", source)
    if str(source) in BUNDLED_NAMES and not path.exists():
        path = BUNDLED_MODEL
    if watched(path, (path / "config.json").is_file):
        from golpo.hf_folder import read_hf

        with SkipInitialization():
            about = read_hf(path)
        model = about.pop("model")
    else:
        path, manifest = find_checkpoint(path, which, staging)
        checkpoint = read_checkpoint(path, manifest=manifest)
        with SkipInitialization():
            model = GPTModel(checkpoint.get("config") or GPT_CONFIG_124M)
        restore_adapters(model, checkpoint["model_state_dict"])
        about = load_checkpoint(model, path, checkpoint=checkpoint)
    tokenizer = about.pop("encoding", None)
    if tokenizer is None:
        data = about.pop("tokenizer_data", None)
        tokenizer = tokenizer_of(model.config["vocab_size"], data, about.get("tokenizer"))
    model.usable_ids = min(tokenizer.n_vocab, model.config["vocab_size"])
    if adapter is not None:
        load_adapter(model, adapter)
    for name in adapter_names(model):
        set_adapter_strength(model, adapter_strength, name)
    model = prepare_for_inference(model.to("cpu" if quantize else device), quantize)
    return model, tokenizer, {**about, "path": path}


def find_checkpoint(path: Path, which: str, staging: str | Path | None) -> tuple[Path, dict | None]:
    """`path` itself if it is a file, else the newest (or the best) checkpoint in that folder.

    With it goes the manifest, if the checkpoint has been verified.
    """
    if path.is_file():
        return path, None
    found = newest_checkpoint(path, which, staging)
    if found is None:
        raise FileNotFoundError(
            f"there is no checkpoint in {str(path)!r}; train first (notebooks/train.ipynb), or "
            f"load the bundled model, named 'bundled'"
        )
    return found


def describe_checkpoint(about: dict) -> str:
    """What `load_storyteller` returns about a checkpoint, as one line."""
    losses = about.get("val_losses")
    if about["path"].name == BEST and "best_val_loss" in about:
        losses = [about["best_val_loss"]]  # the last of the history belongs to another step
    loss = f", validation loss {losses[-1]:.3f}" if losses else ""
    progress = f"step {about.get('global_step', 0):,}, {about.get('tokens_seen', 0):,} tokens seen"
    return f"{about['path'].name}, {progress}{loss}"
