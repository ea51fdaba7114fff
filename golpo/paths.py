"""Where the project's files are, in a checkout and after `pip install`."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_INSIDE = _PACKAGE / "bundled"  # only `pip install` makes this folder
_INSTALLED = _INSIDE.is_dir()

# An installed package has no project folder: files that a training leaves behind go to the
# current one, and the bundled corpus and model lie inside the package.
PROJECT_DIR = Path.cwd() if _INSTALLED else _PACKAGE.parent
_BUNDLED = _INSIDE if _INSTALLED else _PACKAGE.parent

DEFAULT_CORPUS = _BUNDLED / "data" / "training_data.txt"
BUNDLED_MODEL = _BUNDLED / "voice"
LICENSE = _BUNDLED / "LICENSE"
DEFAULT_DATA_DIR = PROJECT_DIR / "data"
DEFAULT_CHECKPOINT_DIR = PROJECT_DIR / "gpt_checkpoints"
DEFAULT_OUTPUT_DIR = PROJECT_DIR / "output"
