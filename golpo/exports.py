"""All formats that other programs read, by name."""

import tiktoken
import torch

from golpo.export_ctranslate2 import export_ctranslate2
from golpo.export_gguf import export_gguf
from golpo.export_onnx import MODEL_FILES, export_onnx
from golpo.huggingface import export_hf
from golpo.model_card import public_facts
from golpo_utils import GPTModel

DTYPES = {None: torch.float32, "float32": torch.float32, "float16": torch.float16}


def export(
    model: GPTModel,
    tokenizer: tiktoken.Encoding,
    output: str,
    format: str,
    precision: str | None = None,
    about: dict | None = None,
) -> None:
    """Write `model` to `output` in `format`: hf, gguf, ctranslate2 or onnx.

    precision: of the weights; None is the format's own default. about: what `load_storyteller`
    returns about the model. Raises ValueError for another format or precision.
    """
    if format == "hf" and precision in DTYPES:
        facts = public_facts(about or {})
        export_hf(model, tokenizer, output, dtype=DTYPES[precision], about=facts)
    elif format == "gguf":
        export_gguf(model, tokenizer, output, precision or "f16")
    elif format == "ctranslate2":
        export_ctranslate2(model, tokenizer, output, precision or "int8")
    elif format == "onnx" and precision in (None, *MODEL_FILES):
        export_onnx(model, tokenizer, output, precision or "float32")
    else:
        raise ValueError(f"there is no export in format {format!r} with precision {precision!r}")
