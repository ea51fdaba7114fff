"""Trains GPTModel on stories, keeps it, measures it and shows it.

The public names are loaded when they are first used, so that `import golpo` is quick.
"""

import importlib

from golpo.version import __version__

_MODULES = {
    "corpus": ("Corpus", "load_corpus"),
    "download": ("fetch_corpus",),
    "dataset": ("GPTDataset", "create_dataloader"),
    "settings": ("PRESETS", "Settings", "default_preset", "print_device"),
    "trainer": ("train_model",),
    "runs": (
        "resume_training_from_checkpoint",
        "start_fresh_training",
        "train_or_resume",
    ),
    "plan": ("auto_corpus", "has_checkpoint", "plan_training", "start_over_is_due"),
    "errors": ("CheckpointError", "TrainingError"),
    "plots": ("plot_losses", "show_training"),
    "checkpoint": ("load_checkpoint", "save_checkpoint"),
    "inference": ("describe_checkpoint", "load_storyteller"),
    "huggingface": ("export_hf", "load_gpt2_weights"),
    "evaluation": ("evaluate",),
    "before_after": ("compare_finetuning",),
    "lora": (
        "add_adapter",
        "load_adapter",
        "merge_adapter",
        "remove_adapter",
        "save_adapter",
        "set_adapter_strength",
    ),
    "stories": ("DEFAULT_SAMPLING", "generate_story"),
    "beam_stories": ("beam_story",),
    "tokenizer": ("load_tokenizer", "save_tokenizer", "train_tokenizer"),
    "vocabulary": ("pick_tokenizer",),
    "studio": ("story_studio",),
    "choices": ("Choice", "append_choice", "read_choices"),
    "preferences": ("learn_from_choices",),
    "translations": ("explain_form",),
    "storage": ("flush_drive", "open_storage"),
    "paths": ("BUNDLED_MODEL", "DEFAULT_CHECKPOINT_DIR", "DEFAULT_CORPUS", "DEFAULT_OUTPUT_DIR"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = ["__version__", *sorted(_MODULE_OF)]


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'golpo' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"golpo.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
