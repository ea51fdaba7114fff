"""A model for ONNX Runtime and transformers.js: one file with a key/value cache, and a tokenizer.

torch.onnx writes it, so that the export needs no particular version of transformers.
"""

import contextlib
import io
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import tiktoken
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from golpo.eight_bits import use_8_bits
from golpo.files import as_path, make_folder, write_together
from golpo.hf_folder import read_hf
from golpo.huggingface import check_exportable, export_hf
from golpo.packages import import_optional
from golpo_utils import GPTModel

# transformers.js looks for the model there, in a folder like those on the Hugging Face Hub.
MODEL_FILES = {"float32": "onnx/model.onnx", "int8": "onnx/model_quantized.onnx"}
CLIENT_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
# A larger ONNX file is impossible; its weights lie beside it then.
LARGEST_FILE = 2**31 - 2**20
OPSET = 18  # old enough for every ONNX Runtime that is still in use


class OnnxModel(nn.Module):
    """A GPTModel whose cache goes in and out as plain tensors, as clients of ONNX files expect."""

    def __init__(self, model: GPTModel):
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: list[Tensor]
    ) -> tuple[Tensor, ...]:
        """Logits (b, t, v), then the keys and values of each block, (b, h, p + t, width / h).

        input_ids, position_ids: (b, t). attention_mask: (b, p + t), 0 where a batch is padded.
        past: keys and values of the p tokens before, those of the first block first.
        """
        model = self.model
        x = model.tok_emb(input_ids) + model.pos_emb(position_ids)  # (b, t, d)
        mask = visible_positions(attention_mask, input_ids.shape[1], past[0].shape[2])
        present = []
        for block, old_keys, old_values in zip(
            model.trf_blocks, past[::2], past[1::2], strict=True
        ):
            queries, keys, values = block.att.project(block.norm1(x))  # (b, h, t, width / h)
            keys = torch.cat([old_keys, keys], dim=2)
            values = torch.cat([old_values, values], dim=2)
            context = F.scaled_dot_product_attention(queries, keys, values, mask)
            x = x + block.att.out_proj(context.transpose(1, 2).flatten(2))
            x = x + block.ff(block.norm2(x))
            present += [keys, values]
        return model.out_head(model.final_norm(x)), *present


def visible_positions(attention_mask: Tensor, new: int, past: int) -> Tensor:
    """What is added to the scores of `new` tokens after `past` ones: (b, 1, new, past + new)."""
    keys = torch.arange(past + new)
    queries = torch.arange(new)[:, None] + past
    visible = (keys <= queries) & attention_mask.bool()[:, None, None]  # (b, 1, new, past + new)
    # Not minus infinity: a padded token sees nothing, and its softmax must not become NaN.
    return torch.where(visible, 0.0, torch.finfo(torch.float32).min)


def export_onnx(
    model: GPTModel,
    tokenizer: tiktoken.Encoding,
    folder: str | Path,
    precision: str = "float32",
) -> None:
    """Write `folder` for ONNX Runtime and transformers.js: onnx/model.onnx and the tokenizer.

    The model has the inputs and outputs that optimum gives a GPT-2 with a key/value cache.
    precision: "float32", or "int8" for matrices in 8 bits (golpo/eight_bits.py), which are a
    quarter of the size, in onnx/model_quantized.onnx. Raises MissingPackageError without
    onnxscript, ValueError for another precision, and what `check_exportable` raises.
    """
    if precision not in MODEL_FILES:
        raise ValueError(f"precision is {precision!r}; it must be 'float32' or 'int8'")
    check_exportable(model, tokenizer)
    import_optional("onnxscript", "the ONNX format")
    folder = as_path("the export's folder", folder)
    with tempfile.TemporaryDirectory() as source, write_together(folder) as new:
        export_hf(model, tokenizer, source)
        for name in CLIENT_FILES:
            shutil.copy(Path(source) / name, new / name)
        # What was written, read again: in fp32, on the CPU, without what makes generation faster.
        plain = read_hf(source)["model"].eval()
        if precision == "int8":
            use_8_bits(plain)
        file = new / MODEL_FILES[precision]
        make_folder(file.parent)
        write_model(plain, file)


def write_model(model: GPTModel, path: Path) -> None:
    """Write the ONNX file of a model on the CPU that computes in fp32."""
    caches = [f"{n}.{kind}" for n in range(len(model.trf_blocks)) for kind in ("key", "value")]
    size = 4 * model.parameter_count()
    with quiet(), torch.no_grad():
        torch.onnx.export(
            OnnxModel(model),
            example_inputs(model),
            path,
            input_names=["input_ids", "attention_mask", "position_ids"]
            + [f"past_key_values.{name}" for name in caches],
            output_names=["logits"] + [f"present.{name}" for name in caches],
            dynamic_shapes=dynamic_shapes(len(caches)),
            opset_version=OPSET,
            dynamo=True,
            external_data=size > LARGEST_FILE,
            verbose=False,
        )


def example_inputs(model: GPTModel) -> tuple:
    """Inputs to trace the model with, each a tensor of its own: one tensor would be one input."""
    b, t, p = 2, 3, 4  # sizes of 0 and 1 would be taken for fixed ones
    past = []
    for block in model.trf_blocks:
        for layer in (block.att.W_key, block.att.W_value):
            heads = block.att.num_heads
            past.append(torch.zeros(b, heads, p, layer.out_features // heads))
    ids = torch.zeros(b, t, dtype=torch.long)
    return ids, ids.new_ones(b, p + t), ids.clone(), past


def dynamic_shapes(caches: int) -> tuple:
    """The dimensions of the inputs that may differ from one call to the next, by name."""
    tokens = {0: "batch_size", 1: "sequence_length"}
    mask = {0: "batch_size", 1: "past_sequence_length + sequence_length"}
    return tokens, mask, tokens, [{0: "batch_size", 2: "past_sequence_length"}] * caches


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's notes on its own progress, deprecations and missing packages."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
