"""Write a storyteller for the page docs/app/: an ONNX model in 8 bits and its tokenizer.

    python docs/app/make_model.py --checkpoint bundled --output docs/app/model

It needs: pip install onnxscript. The page reads the folder when it is dropped on
it; the one in docs/app/model is its default.
"""

import argparse
import gzip
import shutil
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

# The project need not be installed.
from golpo.export_onnx import MODEL_FILES, export_onnx  # noqa: E402
from golpo.files import write_together  # noqa: E402
from golpo.inference import load_storyteller  # noqa: E402
from golpo.lora import merge_adapters  # noqa: E402

PAGE_FILES = ("config.json", "tokenizer.json")


def make_page_model(checkpoint: str, folder: Path) -> None:
    """Export a checkpoint as ONNX with a key/value cache and its matrices in 8 bits, compressed.

    Adapters are merged. Raises MissingPackageError without onnxscript, FileNotFoundError without a
    checkpoint, and ValueError for one that cannot be exported.
    """
    model, tokenizer, *_ = load_storyteller(checkpoint)
    merge_adapters(model)
    with tempfile.TemporaryDirectory() as source, write_together(folder) as new:
        export_onnx(model, tokenizer, source, "int8")
        packed = gzip.compress(Path(source, MODEL_FILES["int8"]).read_bytes(), mtime=0)
        (new / "model.onnx.gz").write_bytes(packed)
        for name in PAGE_FILES:
            shutil.copy(Path(source) / name, new / name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a storyteller for the page docs/app/.")
    parser.add_argument("--checkpoint", default="bundled", help="as for `golpo generate`")
    parser.add_argument("--output", type=Path, default=PROJECT / "docs" / "app" / "model")
    options = parser.parse_args()
    try:
        make_page_model(options.checkpoint, options.output)
    except (ValueError, OSError) as error:
        sys.exit(f"make_model.py: {error}")
