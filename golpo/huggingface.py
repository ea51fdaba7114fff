"""GPT-2 in Hugging Face's format: weights in, a whole model out. `golpo/hf_folder.py` reads it."""

import json
from pathlib import Path

import tiktoken
import torch
from torch import Tensor

from golpo.files import as_path, write_text, write_together
from golpo.hf_config import fold_attention_scale, read_config
from golpo.hf_tokenizer import begin_end_pad, special_tokens, write_tokenizer
from golpo.hf_weights import name_weights, read_weights_file
from golpo.lora import check_merged
from golpo.model_card import write_model_card
from golpo.stories import DEFAULT_SAMPLING
from golpo_utils import GPTModel, check_config, check_kind

# GPT-2's names for the parts of our names. There, queries, keys and values are one matrix, and
# the matrices of the blocks (transformer.h) are transposed.
GPT2_NAMES = {
    "trf_blocks": "transformer.h",
    "norm1": "ln_1",
    "norm2": "ln_2",
    "final_norm": "transformer.ln_f",
    "att.W_query": "attn.c_attn",
    "att.W_key": "attn.c_attn",
    "att.W_value": "attn.c_attn",
    "att.out_proj": "attn.c_proj",
    "ff.layers.0": "mlp.c_fc",
    "ff.layers.2": "mlp.c_proj",
    "scale": "weight",
    "shift": "bias",
    "tok_emb": "transformer.wte",
    "pos_emb": "transformer.wpe",
    "out_head": "lm_head",
}


def gpt2_layout(model: GPTModel) -> dict[str, list[str]]:
    """GPT-2's name for each of its weights → our names for what is in it."""
    layout = {}
    for name in model.state_dict():
        theirs = name
        for part, renamed in GPT2_NAMES.items():
            theirs = theirs.replace(part, renamed)
        layout.setdefault(theirs, []).append(name)
    return layout


def download_gpt2(name: str) -> str:
    """The weights file of a model on the Hugging Face Hub, its config.json beside it.

    Raises ConnectionError.
    """
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(name, "config.json")
        return hf_hub_download(name, "model.safetensors")
    except Exception as error:
        raise ConnectionError(
            f"the weights of {name!r} could not be downloaded ({type(error).__name__}); go "
            f"online, check the name, or give the path of a .safetensors file"
        ) from error


def read_weights(source: str | Path | dict) -> dict[str, Tensor]:
    """GPT-2's state dict with its full names: from a dict, a weights file or the Hub."""
    if isinstance(source, dict):
        return name_weights(source)
    path = as_path("the weights' source", source)
    if path.suffix not in (".safetensors", ".bin"):
        if path.exists():
            raise ValueError(f"{str(source)!r} is no .safetensors or .bin file; give such a file")
        path = Path(download_gpt2(str(source)))
    weights = name_weights(read_weights_file(path))
    if (path.parent / "config.json").is_file():
        fold_attention_scale(weights, read_config(path.parent))
    return weights


def load_gpt2_weights(model: GPTModel, source: str | Path | dict) -> GPTModel:
    """Put GPT-2's weights into `model`, in place, and return it.

    source: a Hugging Face GPT-2 state dict, a .safetensors file of one, or a model's name on the
    Hub. The model may have a shorter context and more tokens (the story markers) than the source.
    Raises FileNotFoundError if the source is missing, and ValueError that names the first weight
    that does not fit.
    """
    theirs = read_weights(source)
    layout = gpt2_layout(model)
    state = model.state_dict()
    for name in (*layout, *theirs):
        # Biases of 0 may be missing from the model.
        if name not in theirs or (name not in layout and theirs[name].any()):
            owner = "model" if name in layout else "source"
            raise ValueError(
                f"{name!r} is only in the {owner}; is the source a GPT-2 of the model's config?"
            )
    for name, keys in layout.items():
        tensor = theirs[name].mT if is_transposed(theirs[name], name) else theirs[name]
        for key, part in zip(keys, tensor.chunk(len(keys)), strict=True):
            state[key] = fit_weight(key, part, state[key].shape)
    tied = model.out_head.weight is model.tok_emb.weight
    if tied and not state["out_head.weight"].equal(state["tok_emb.weight"]):
        model.untie_head()
    model.load_state_dict(state)
    return model


def is_transposed(tensor: Tensor, name: str) -> bool:
    """Whether GPT-2's files hold this weight as the transpose of ours."""
    return tensor.dim() >= 2 and name.startswith("transformer.h.")


def fit_weight(key: str, weight: Tensor, shape: torch.Size) -> Tensor:
    """`weight` with fewer positions or more tokens, as `shape` asks; raise ValueError otherwise."""
    if key == "pos_emb.weight":
        weight = weight[: shape[0]]
    if key in ("tok_emb.weight", "out_head.weight"):
        weight = add_tokens(weight, max(0, shape[0] - len(weight)))
    if weight.shape != shape:
        raise ValueError(
            f"{key!r} has shape {tuple(weight.shape)} in the source, {tuple(shape)} in the "
            f"model; give the model a config of the source's size"
        )
    return weight


def add_tokens(embedding: Tensor, count: int) -> Tensor:
    """Append rows for new tokens: near the mean of all, with a tenth of their spread.

    So none is more likely than the known tokens, and no two are equal.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, embedding.shape[1], generator=generator).to(embedding)
    return torch.cat([embedding, embedding.mean(0) + 0.1 * embedding.std(0) * noise])


def export_hf(
    model: GPTModel,
    tokenizer: tiktoken.Encoding,
    folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    about: dict | None = None,
    language: str | None = None,
    license: str = "mit",
) -> None:
    """Write `folder` in Hugging Face's format for GPT-2; ids and logits are the same there.

    dtype: of the weights in the file. about: facts to store with them, as `public_facts` gives
    them. language (None: not known, or in `about`) and license: for the model card.
    `load_storyteller` reads the folder. Raises what `check_exportable` raises.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    config = check_exportable(model, tokenizer)
    folder = as_path("the export's folder", folder)
    weights = gpt2_weights(model, dtype)
    specials = special_tokens(tokenizer)
    files = {
        "config.json": gpt2_config(model, specials, about or {}),
        "generation_config.json": generation_config(config, specials),
    }
    with write_together(folder) as new:
        try:
            save_file(weights, new / "model.safetensors", metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"the weights were not written to {str(folder)!r} ({error})") from None
        for name, content in files.items():
            text = json.dumps(content, indent=1, ensure_ascii=False)
            write_text(new / name, text)
        write_tokenizer(tokenizer, new, config["context_length"])
    write_model_card(folder, model, specials, about or {}, language=language, license=license)


def check_exportable(model: GPTModel, tokenizer: tiktoken.Encoding) -> dict:
    """The model's full config, if the formats can hold the model.

    Raises ValueError for an adapter, 8-bit weights, and widths that GPT-2 cannot have.
    """
    check_kind("the model", model, GPTModel, "a GPTModel")
    check_kind("the tokenizer", tokenizer, tiktoken.Encoding, "what get_tokenizer returns")
    check_merged(model)
    if not hasattr(model.out_head, "weight"):
        raise ValueError(
            "the model has 8-bit weights, and an export rounds the weights by itself; load the "
            "model without quantize"
        )
    config = check_config(model.config)
    if not config["key_dim"] == config["val_dim"] == config["emb_dim"]:
        raise ValueError(
            f"GPT-2 cannot have 'key_dim' {config['key_dim']} or 'val_dim' {config['val_dim']} "
            f"that differ from 'emb_dim' {config['emb_dim']}; such a model cannot be exported"
        )
    return config


def gpt2_weights(model: GPTModel, dtype: torch.dtype) -> dict[str, Tensor]:
    """The model's weights with GPT-2's names and layout."""
    state = model.state_dict()
    width = model.config["emb_dim"]
    weights = {}
    for number in range(model.config["n_layers"]):
        # GPT-2 always has this bias; ours may have none.
        weights[f"transformer.h.{number}.attn.c_attn.bias"] = torch.zeros(3 * width, dtype=dtype)
    for name, keys in gpt2_layout(model).items():
        tensor = torch.cat([state[key].cpu() for key in keys]).to(dtype)
        weights[name] = tensor.mT.contiguous() if is_transposed(tensor, name) else tensor
    if model.out_head.weight is model.tok_emb.weight:
        del weights["lm_head.weight"]
    return weights


def gpt2_config(model: GPTModel, specials: dict[str, int], about: dict) -> dict:
    """The content of config.json."""
    config = check_config(model.config)
    rate = config["drop_rate"]
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config["vocab_size"],
        "n_embd": config["emb_dim"],
        "n_positions": config["context_length"],
        "n_ctx": config["context_length"],
        "n_head": config["n_heads"],
        "n_layer": config["n_layers"],
        "tie_word_embeddings": model.out_head.weight is model.tok_emb.weight,
        "layer_norm_epsilon": 1e-5,
        "resid_pdrop": rate,
        "embd_pdrop": rate,
        "attn_pdrop": rate,
        **token_ids(specials),
        "golpo_kothok": {"config": model.config, **about},
    }


def token_ids(specials: dict[str, int]) -> dict[str, int]:
    """The ids that begin a text, end it, and fill up a batch, under transformers' names."""
    roles = begin_end_pad(specials)
    return {f"{role}_token_id": specials[token] for role, token in roles.items()}


def generation_config(config: dict, specials: dict[str, int]) -> dict:
    """The content of generation_config.json: how transformers generates unless it is asked."""
    return {
        **token_ids(specials),
        "do_sample": True,
        "temperature": DEFAULT_SAMPLING["temperature"],
        "top_k": DEFAULT_SAMPLING["top_k"],
        "top_p": DEFAULT_SAMPLING["top_p"],
        "min_p": DEFAULT_SAMPLING["min_p"],
        "max_length": config["context_length"],  # transformers cannot continue past the context
    }
