"""A model for CTranslate2, through an export in Hugging Face's format."""

import contextlib
import io
import tempfile
from pathlib import Path
from typing import Literal

import tiktoken

from golpo.files import as_path, write_together
from golpo.huggingface import check_exportable, export_hf
from golpo.packages import import_optional
from golpo_utils import GPTModel

# What the tokenizer and the sampling of an export consist of; clients read these files, too.
CLIENT_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


def export_ctranslate2(
    model: GPTModel,
    tokenizer: tiktoken.Encoding,
    folder: str | Path,
    precision: Literal["int8", "float32"] = "int8",
) -> None:
    """Write `folder` for ctranslate2.Generator, with tokenizer.json beside the weights.

    Raises MissingPackageError without ctranslate2 and transformers, ValueError for another
    precision, and what `check_exportable` raises.
    """
    if precision not in ("int8", "float32"):
        raise ValueError(f"precision is {precision!r}; it must be 'int8' or 'float32'")
    check_exportable(model, tokenizer)
    import_optional("transformers", "the CTranslate2 format")
    converters = import_optional("ctranslate2.converters", "the CTranslate2 format")
    folder = as_path("the export's folder", folder)
    with tempfile.TemporaryDirectory() as source, write_together(folder) as new:
        export_hf(model, tokenizer, source)
        converter = converters.TransformersConverter(source, copy_files=list(CLIENT_FILES))
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar for a moment's work
            # With `force`, it deletes what is in its folder: here nothing.
            converter.convert(str(new), quantization=precision, force=True)
