"""The settings of a training, and the presets."""

import math
import os
from dataclasses import dataclass, field, fields

import torch

from golpo.corpus import CORPUS_VERSION
from golpo.paths import DEFAULT_CHECKPOINT_DIR, DEFAULT_CORPUS
from golpo.tokenizer import load_tokenizer
from golpo_utils import GPT_CONFIG_124M, check_config, check_kind, check_number

# Two CPU cores train this in minutes. The vocabulary is small: with 50,000 tokens, nine tenths of a
# small model's work would score tokens that hardly ever occur.
GPT_CONFIG_LAPTOP = {
    "vocab_size": 2048,
    "context_length": 272,
    "emb_dim": 256,
    "n_heads": 4,
    "n_layers": 2,
    "drop_rate": 0.0,
    "qkv_bias": False,
}
# For a free Colab T4 and a few million tokens of stories.
GPT_CONFIG_T4 = {
    "vocab_size": 8192,
    "context_length": 512,
    "emb_dim": 512,
    "n_heads": 8,
    "n_layers": 8,
    "drop_rate": 0.2,
    "qkv_bias": False,
}
# GPT-2 medium's shape, for more text and a larger GPU.
GPT_CONFIG_350M = {
    "vocab_size": 50261,
    "context_length": 1024,
    "emb_dim": 1024,
    "n_heads": 16,
    "n_layers": 24,
    "drop_rate": 0.1,
    "qkv_bias": False,
}
# GPT-2 small with half of its context, to start from its published weights.
GPT_CONFIG_GPT2 = {
    "vocab_size": 50261,
    "context_length": 512,
    "emb_dim": 768,
    "n_heads": 12,
    "n_layers": 12,
    "drop_rate": 0.1,
    "qkv_bias": True,
}

PRESETS = {
    "laptop": {
        "config": GPT_CONFIG_LAPTOP,
        "tokenizer": "own",
        "num_epochs": 3,
        "batch_size": 8,
        "learning_rate": 4e-3,
        "final_learning_rate": 0.05,
        "trim_windows": True,
        "validation_fraction": 0.05,
        "evals_per_epoch": 3,
    },
    "t4": {
        "config": GPT_CONFIG_T4,
        "tokenizer": "own",
        "num_epochs": 8,
        "batch_size": 32,
        "learning_rate": 1e-3,
    },
    "124M": {
        "config": GPT_CONFIG_124M,
        "num_epochs": 4,
        "batch_size": 16,
        "learning_rate": 1e-3,
    },
    # The original project's recipe, to resume its checkpoints and to measure against.
    "original": {
        "config": {**GPT_CONFIG_124M, "tie_embeddings": False, "init_std": None},
        "num_epochs": 12,
        "batch_size": 8,
        "learning_rate": 4e-4,
        "warmup": 0.0,
        "final_learning_rate": 1.0,
        "weight_decay": 0.1,
        "decay_all": True,
        "optimizer": "adamw",
        "beta2": 0.999,
        "grad_clip": 0.0,
        "align_to_stories": False,
        "shift_windows": False,
    },
    "350M": {
        "config": GPT_CONFIG_350M,
        "num_epochs": 4,
        "batch_size": 32,
        "learning_rate": 3e-4,
    },
    # Finetuning soon overwrites what GPT-2 knows: a low rate and few epochs keep more of it.
    "gpt2": {
        "config": GPT_CONFIG_GPT2,
        "start_from": "openai-community/gpt2",
        "num_epochs": 2,
        "batch_size": 16,
        "learning_rate": 1e-4,
        "optimizer": "adamw",
    },
}

# Tokens of the presets that learn a tokenizer, if GPT-2's is asked for. Its merges were learned
# from other text, so stories need more of them.
GPT2_VOCAB_SIZES = {"laptop": 4096, "t4": 50261}
LARGEST_OWN_VOCAB_SIZE = 8192  # unless vocab_size is given

CHOICES = {
    "device": ("auto", "cuda", "cpu"),
    "precision": ("auto", "bf16", "fp16", "fp32"),
    "compile": ("auto", "on", "off"),
    "optimizer": ("muon", "adamw"),
}
# name → the lowest and the highest value
WHOLE_NUMBERS = {
    "num_epochs": (1, math.inf),
    "batch_size": (1, math.inf),
    "evals_per_epoch": (1, math.inf),
    "micro_batch_size": (1, math.inf),
    "patience": (1, math.inf),
    "max_steps": (1, math.inf),
    "corpus_version": (1, CORPUS_VERSION),
    "seed": (0, 2**64 - 1),  # as PyTorch's generators have it
    "sample_tokens": (0, math.inf),
    "frozen_layers": (0, math.inf),
    "adapter_rank": (0, math.inf),
}
NUMBERS = {
    "learning_rate": (0, math.inf),
    "weight_decay": (0, math.inf),
    "grad_clip": (0, math.inf),
    "save_every_minutes": (0, math.inf),
    "warmup": (0, 1),
    "final_learning_rate": (0, 1),
    "beta2": (0, 0.999999),
    "validation_fraction": (0, 1),
    "input_noise": (0, 1),
}
OPTIONAL = ("micro_batch_size", "patience", "max_steps")  # None leaves them out
OPTIONAL_PATHS = ("staging_dir", "start_from")
PATHS = ("data_path", "checkpoint_dir", "tokenizer", *OPTIONAL_PATHS)
KINDS = {bool: "True or False", str: "a text", str | None: "a text, or None"}


@dataclass
class Settings:
    """Every setting of a training. Raises ValueError that names an invalid one and its value."""

    # The model: see GPT_CONFIG_124M.
    config: dict = field(default_factory=lambda: dict(GPT_CONFIG_LAPTOP))
    # The corpus: a file or a folder, see docs/corpus.md.
    data_path: str = str(DEFAULT_CORPUS)
    # The encoding of the corpus's text files, such as "cp1252"; None means UTF-8.
    encoding: str | None = None
    # Whether misspelt markers in the corpus are repaired.
    fix_markers: bool = False
    # How the corpus is read; a training stays with the version that it was started with.
    corpus_version: int = CORPUS_VERSION
    # "gpt2" (its first merges), "own" (learned from the corpus), "start" (that of start_from), or
    # the path of a saved one.
    tokenizer: str = "gpt2"
    # The folder of the checkpoints.
    checkpoint_dir: str = str(DEFAULT_CHECKPOINT_DIR)
    # A local folder to write first, if checkpoint_dir is on Google Drive.
    staging_dir: str | None = None
    # Weights to start from: a checkpoint, "bundled", a .safetensors file, or a name on the Hub.
    start_from: str | None = None
    # How many of the first blocks (with the positions) are not trained.
    frozen_layers: int = 0
    # Train a low-rank adapter of this rank beside the weights of start_from, which stay as they
    # are; 0: train the weights.
    adapter_rank: int = 0
    # Passes over the training stories.
    num_epochs: int = 4
    # Windows in a step.
    batch_size: int = 8
    # Windows computed at once; their gradients are accumulated (None: the whole batch).
    micro_batch_size: int | None = None
    # The highest learning rate of the schedule.
    learning_rate: float = 1e-3
    # Share of the steps in which the learning rate rises.
    warmup: float = 0.05
    # The last learning rate as a share of the highest; 1 keeps it constant.
    final_learning_rate: float = 0.1
    # "muon" for the matrices of the blocks and AdamW for the rest, or "adamw" for all.
    optimizer: str = "muon"
    # Weight decay, on matrices only.
    weight_decay: float = 0.1
    # Weight decay on biases, norms and embeddings too.
    decay_all: bool = False
    # AdamW's average of squared gradients.
    beta2: float = 0.95
    # The largest norm of a gradient; longer ones are scaled down. 0: no limit.
    grad_clip: float = 1.0
    # Share of the stories kept for validation.
    validation_fraction: float = 0.1
    # Evaluations in an epoch, each over the whole validation set.
    evals_per_epoch: int = 10
    # Stop after this many evaluations without a better one.
    patience: int | None = None
    # Minutes between checkpoints; one more is saved at the end of each epoch.
    save_every_minutes: float = 20
    # Length of the sample after each epoch, in tokens; 0: no sample.
    sample_tokens: int = 200
    # Pause (and save) after this step of the schedule.
    max_steps: int | None = None
    # Whether training windows start anew at each story.
    align_to_stories: bool = True
    # Whether windows inside a story start elsewhere in each epoch.
    shift_windows: bool = True
    # Whether windows hold whole stories side by side, so that a pass trains on no token twice.
    pack_stories: bool = False
    # Whether windows end with their story, so that short stories are trained on once a pass.
    trim_windows: bool = False
    # Share of the input tokens that random ones replace, so that few stories bear more passes.
    input_noise: float = 0.0
    # Whether stories are preceded by requests, so that one can ask for a story: docs/requests.md.
    requests: bool = False
    # The seed of the split, the order of the windows, dropout and the initial weights.
    seed: int = 123
    # "auto", "cuda" or "cpu".
    device: str = "auto"
    # "auto", "bf16", "fp16" or "fp32".
    precision: str = "auto"
    # "auto", "on" or "off": torch.compile.
    compile: str = "auto"
    # Resume although the corpus, the config, the batch size or the seed changed.
    accept_changes: bool = False

    def __post_init__(self):
        check_config(self.config)
        for one in fields(self):
            value = getattr(self, one.name)
            if one.type in KINDS:
                check_kind(one.name, value, one.type | os.PathLike, KINDS[one.type])
            if one.name in PATHS and (value == "" or "\0" in str(value)):
                raise ValueError(
                    f"{one.name} is {value!r}, which is no path; give one, or leave it out"
                )
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                value = getattr(self, name)
                raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(choices)}")
        for name, (low, high) in (WHOLE_NUMBERS | NUMBERS).items():
            value = getattr(self, name)
            if value is not None or name not in OPTIONAL:
                check_number(name, value, low, high, whole=name in WHOLE_NUMBERS)
        if self.frozen_layers > self.config["n_layers"]:
            most = self.config["n_layers"]
            raise ValueError(f"frozen_layers is {self.frozen_layers}; the model has {most} layers")
        self.check_windows()
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError(
                "device is 'cuda', but PyTorch sees no GPU; choose a GPU runtime, or device='cpu'"
            )

    def check_windows(self) -> None:
        """Raise ValueError if the settings ask for training windows that cannot be made."""
        if self.pack_stories and self.requests:
            raise ValueError(
                "pack_stories and requests are True, but packed windows leave requests no room; "
                "set one of them to False"
            )
        if self.pack_stories and self.trim_windows:
            raise ValueError(
                "pack_stories and trim_windows are True, but packed windows hold several stories; "
                "set one of them to False"
            )
        for name in ("pack_stories", "trim_windows", "requests"):
            if getattr(self, name) and not self.align_to_stories:
                raise ValueError(
                    f"{name} is True and align_to_stories is False, but {name} needs windows "
                    f"that start at stories; set align_to_stories=True or {name}=False"
                )


def make_settings(given: dict, base: dict | None = None) -> Settings:
    """Settings from the keywords `given`, over `base` (None: the preset for this machine).

    Raises ValueError for an unknown name.
    """
    known = [one.name for one in fields(Settings)]
    for name, value in given.items():
        if name not in known:
            names = ", ".join(known)
            raise ValueError(f"there is no setting {name!r} (value {value!r}); they are {names}")
    if base is None:
        base = {} if "config" in given else find_preset("auto", given.get("tokenizer"))
    paths = {name: str(given[name]) for name in PATHS if isinstance(given.get(name), os.PathLike)}
    empty = {name: None for name in OPTIONAL_PATHS if given.get(name) == ""}  # an empty form field
    return Settings(**{**base, **given, **paths, **empty})


def find_preset(name: str, tokenizer: str | None = None) -> dict:
    """The settings of a preset; "auto" is the one for this machine. Raises ValueError.

    tokenizer: the setting of that name, None for the preset's. The model's vocabulary fits it.
    """
    name = default_preset() if name == "auto" else name
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}; they are {', '.join(PRESETS)}")
    preset = PRESETS[name]
    if tokenizer in (None, "", preset.get("tokenizer", "gpt2")):
        return preset
    config = {**preset["config"], "vocab_size": fitting_vocab_size(name, tokenizer)}
    return {**preset, "config": config, "tokenizer": tokenizer}


def fitting_vocab_size(name: str, tokenizer: str) -> int:
    """The vocabulary of the preset `name` with a tokenizer that is not the preset's.

    A learned vocabulary needs half as many tokens as GPT-2's first merges, or fewer, for the same
    text (benchmarks/README.md), and a small corpus has no more merges.
    """
    preset_size = PRESETS[name]["config"]["vocab_size"]
    if tokenizer == "own":
        return min(preset_size // 2, LARGEST_OWN_VOCAB_SIZE)
    if tokenizer == "gpt2":
        return GPT2_VOCAB_SIZES[name]
    return load_tokenizer(tokenizer).n_vocab


def default_preset() -> str:
    """The name of the preset that fits this machine."""
    return "t4" if torch.cuda.is_available() else "laptop"


def print_device() -> None:
    """Print what the training will run on, and what that means."""
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        name = torch.cuda.get_device_name()
        print(f"GPU: {name} with {memory:.0f} GB; the {default_preset()!r} preset fits it.")
    else:
        line = "=" * 90
        print(line)
        print("NO GPU: a small model is trained on the processor, with the 'laptop' preset.")
        print("On Colab, Runtime -> Change runtime type -> T4 GPU gives you one for free.")
        print(line)
