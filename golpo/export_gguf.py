"""A model as one GGUF file, for llama.cpp and the programs that are built on it."""

import re
from pathlib import Path
from typing import Literal

import tiktoken
import torch
from torch import Tensor

from golpo.files import as_path, write_together
from golpo.hf_tokenizer import begin_end_pad, merge_rules, special_tokens, token_pieces
from golpo.huggingface import check_exportable
from golpo.packages import import_optional
from golpo.tokenizer import FIRST_PATTERN, PATTERN
from golpo_utils import GPTModel

Precision = Literal["f32", "f16", "q8_0"]
FEW_VALUES = 32  # Q8_0 rounds so many values of a row at once
# llama.cpp's names for the parts of ours.
GGUF_NAMES = {
    "tok_emb.weight": "token_embd.weight",
    "pos_emb.weight": "position_embd.weight",
    "final_norm.scale": "output_norm.weight",
    "final_norm.shift": "output_norm.bias",
    "norm1.scale": "attn_norm.weight",
    "norm1.shift": "attn_norm.bias",
    "att.out_proj": "attn_output",
    "norm2.scale": "ffn_norm.weight",
    "norm2.shift": "ffn_norm.bias",
    "ff.layers.0": "ffn_up",
    "ff.layers.2": "ffn_down",
}
# GPT-2's tokenizer joins the line breaks at the end of a prompt, and not before more text, as in a
# story. Without these merges, llama.cpp finds the tokens of a story in both places.
LINE_BREAKS = re.compile("Ċ+ Ċ+")


def export_gguf(
    model: GPTModel, tokenizer: tiktoken.Encoding, path: str | Path, precision: Precision = "f16"
) -> None:
    """Write `path`, a GGUF file with weights and tokenizer.

    precision: of the matrices, "f32", "f16" or "q8_0" (8 bits). Raises MissingPackageError without
    the package gguf, what `check_exportable` raises, and ValueError for another precision, a
    folder, or a tokenizer whose pattern llama.cpp does not have.
    """
    if precision not in ("f32", "f16", "q8_0"):
        raise ValueError(f"precision is {precision!r}; it must be 'f32', 'f16' or 'q8_0'")
    check_exportable(model, tokenizer)
    check_words(tokenizer)
    path = as_path("the export's file", path)
    if path.is_dir():
        raise ValueError(
            f"the output {str(path)!r} is a folder, and the GGUF format is one file; give a name "
            f"such as {str(path / 'model.gguf')!r}"
        )
    gguf = import_optional("gguf", "the GGUF format")
    with write_together(path.parent) as new:
        writer = gguf.GGUFWriter(new / path.name, "gpt2")
        file_type = getattr(gguf.LlamaFileType, FILE_TYPES[precision])
        write_sizes(writer, model, path.stem, file_type)
        write_vocabulary(writer, gguf, tokenizer, model.config["vocab_size"])
        for name, tensor in gguf_weights(model).items():
            kind = pick_kind(gguf, name, tensor, precision)
            values = gguf.quants.quantize(tensor.float().numpy(), kind)
            writer.add_tensor(name, values, raw_dtype=kind)
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()


FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}


def check_words(tokenizer: tiktoken.Encoding) -> None:
    """Raise ValueError unless GPT-2's pattern, which llama.cpp uses, leads to the same ids."""
    from tiktoken_ext.openai_public import r50k_pat_str

    pattern = getattr(tokenizer, "pattern", r50k_pat_str)
    if pattern not in (r50k_pat_str, PATTERN, FIRST_PATTERN):
        raise ValueError(
            f"the tokenizer {tokenizer.name!r} splits texts into other words than GPT-2's, so "
            f"llama.cpp would find other tokens; choose another format"
        )


def write_sizes(writer, model: GPTModel, name: str, file_type: int) -> None:
    """The model's sizes, under llama.cpp's names."""
    width = model.config["emb_dim"]
    writer.add_name(name)
    writer.add_block_count(model.config["n_layers"])
    writer.add_context_length(model.config["context_length"])
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(4 * width)
    writer.add_head_count(model.config["n_heads"])
    writer.add_layer_norm_eps(model.final_norm.eps)
    writer.add_file_type(file_type)


def write_vocabulary(writer, gguf, tokenizer: tiktoken.Encoding, vocab_size: int) -> None:
    """The tokenizer, as a byte-level BPE whose words are split as GPT-2's."""
    pieces = token_pieces(tokenizer)
    specials = special_tokens(tokenizer)
    by_id = {number: piece for piece, number in (pieces | specials).items()}
    tokens = [by_id.get(number, f"[PAD{number}]") for number in range(vocab_size)]
    control = set(specials.values())
    types = []
    for number in range(vocab_size):
        if number in control:
            types.append(gguf.TokenType.CONTROL)
        else:
            types.append(gguf.TokenType.NORMAL if number in by_id else gguf.TokenType.UNUSED)
    merges = [rule for rule in merge_rules(pieces) if not LINE_BREAKS.fullmatch(rule)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    for role, token in begin_end_pad(specials).items():
        getattr(writer, f"add_{role}_token_id")(specials[token])
    writer.add_add_bos_token(False)  # the prompt itself begins with <|start|>


def gguf_weights(model: GPTModel) -> dict[str, Tensor]:
    """The model's weights under llama.cpp's names; queries, keys and values are one matrix."""
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    width = model.config["emb_dim"]
    weights = {}
    if model.out_head.weight is not model.tok_emb.weight:
        weights["output.weight"] = state["out_head.weight"]
    for name, tensor in state.items():
        if name == "out_head.weight" or ".W_" in name:
            continue
        theirs = name.replace("trf_blocks.", "blk.")
        for part, renamed in GGUF_NAMES.items():
            theirs = theirs.replace(part, renamed)
        weights[theirs] = tensor
    for number in range(model.config["n_layers"]):
        ours = [f"trf_blocks.{number}.att.W_{part}" for part in ("query", "key", "value")]
        weights[f"blk.{number}.attn_qkv.weight"] = torch.cat([state[f"{o}.weight"] for o in ours])
        biases = [state.get(f"{one}.bias", torch.zeros(width)) for one in ours]
        weights[f"blk.{number}.attn_qkv.bias"] = torch.cat(biases)
    return weights


def pick_kind(gguf, name: str, tensor: Tensor, precision: Precision):
    """How a tensor is stored: biases, norms and positions always as they are."""
    kinds = gguf.GGMLQuantizationType
    if tensor.dim() == 1 or name == "position_embd.weight" or precision == "f32":
        return kinds.F32
    if precision == "q8_0" and tensor.shape[-1] % FEW_VALUES == 0:
        return kinds.Q8_0
    return kinds.F16
