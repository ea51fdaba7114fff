"""Small models, corpora and settings that several tests share."""

from pathlib import Path

import torch
import transformers

import golpo_utils

TINY_CONFIG = {
    "vocab_size": 97,
    "context_length": 24,
    "emb_dim": 32,
    "n_heads": 4,
    "n_layers": 3,
    "drop_rate": 0.1,
    "qkv_bias": True,
}
# For generation: its logits differ clearly.
SHARP_CONFIG = {**TINY_CONFIG, "context_length": 16, "n_layers": 2, "init_std": 0.3}
# With a tokenizer that has whole words, for tests of what a person reads.
WORDS_CONFIG = {
    "vocab_size": 4096,
    "context_length": 64,
    "emb_dim": 16,
    "n_heads": 2,
    "n_layers": 2,
    "drop_rate": 0.0,
    "qkv_bias": True,
}


def tiny_gpt2(**changes) -> transformers.GPT2LMHeadModel:
    """Hugging Face's GPT-2 of TINY_CONFIG's shape; random weights with clearly different logits."""
    torch.manual_seed(5)
    config = transformers.GPT2Config(
        vocab_size=97,
        n_positions=24,
        n_embd=32,
        n_head=4,
        n_layer=3,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
        **changes,
    )
    return transformers.GPT2LMHeadModel(config).eval()


def tell_these(monkeypatch, ids):
    """Whatever the model thinks, the next tokens are `ids`, and `ids` must suffice."""
    monkeypatch.setattr(
        golpo_utils, "next_tokens", lambda *_, **__: (torch.tensor([[token]]) for token in ids)
    )


def write_stories(path: Path, count: int = 80) -> Path:
    """A corpus of `count` short stories without titles, in the project's format."""
    stories = [
        f"<|start|>\nThe owl saw {n} mice and {n * 3} stars.\n<|end|>\n" for n in range(count)
    ]
    path.write_text("".join(stories), encoding="utf-8")
    return path


def tiny_settings(folder: Path, **changes) -> dict:
    """Keywords of `start_fresh_training` for a training of seconds on a CPU, in `folder`."""
    corpus = folder / "stories.txt"
    if not corpus.exists():
        write_stories(corpus)
    settings = {
        "config": {**TINY_CONFIG, "vocab_size": 300},
        "data_path": corpus,
        "checkpoint_dir": folder / "checkpoints",
        "device": "cpu",
        "precision": "fp32",
        "num_epochs": 2,
        "batch_size": 4,
        "sample_tokens": 0,
    }
    return settings | changes
