"""A whole training against a plain PyTorch loop, and its variants against each other."""

import functools
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from trainings import PLAIN_CONFIG, weights_after

from golpo.corpus import load_corpus
from golpo.runs import start_fresh_training
from golpo.settings import make_settings
from golpo_utils import GPTModel, get_tokenizer


def test_a_training_equals_a_plain_pytorch_loop(settings, corpus_file):
    """The same windows and rates, with torch's cross-entropy, AdamW and clipping."""
    settings["optimizer"] = "adamw"
    start_fresh_training(**settings, max_steps=40)
    one = make_settings(settings)
    ids = load_corpus(
        corpus_file, get_tokenizer(300), one.validation_fraction, one.seed
    ).train_ids.long()
    torch.manual_seed(one.seed)
    model = GPTModel(PLAIN_CONFIG)
    decayed = [
        p
        for name, p in model.named_parameters()
        if p.dim() == 2 and "emb" not in name and "out_head" not in name
    ]
    others = [p for p in model.parameters() if not any(p is d for d in decayed)]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": one.weight_decay},
            {"params": others, "weight_decay": 0},
        ],
        betas=(0.9, one.beta2),
    )
    start = get_tokenizer(300).encode_single_token("<|start|>")
    begins = [position for position, token in enumerate(ids.tolist()) if token == start]
    windows = {}  # where it begins → by how much it may begin earlier
    for begin, end in zip(begins, [*begins[1:], len(ids)], strict=False):
        own = range(begin, end, 16)  # every 16 tokens, counted from the story's start
        beyond = own[-1] + 16 - end if end < len(ids) else 0  # the last story has nothing behind it
        windows |= {min(window, len(ids) - 17): beyond * (window > begin) for window in own}
    windows = sorted(windows.items())
    steps_per_epoch = math.ceil(len(windows) / 8)
    warmup = max(1, round(one.warmup * 2 * steps_per_epoch))
    assert steps_per_epoch < 40
    for step in range(40):
        epoch, position = divmod(step, steps_per_epoch)
        chosen = np.random.default_rng([7, epoch]).permutation(len(windows))[
            position * 8 : position * 8 + 8
        ]
        share = np.random.default_rng([7, epoch, 1]).random() if epoch else 0
        rows = torch.stack(
            [ids[(at := windows[i][0] - int(share * windows[i][1])) : at + 17] for i in chosen]
        )
        progress = (step - warmup) / (2 * steps_per_epoch - warmup)
        rate = (
            (step + 1) / warmup
            if step < warmup
            else 0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2
        )
        for group in optimizer.param_groups:
            group["lr"] = one.learning_rate * rate
        optimizer.zero_grad()
        F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), one.grad_clip)
        optimizer.step()
    for name, tensor in weights_after(settings["checkpoint_dir"]).items():
        torch.testing.assert_close(tensor, model.state_dict()[name], atol=2e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_what_single_precision_does(settings, tmp_path, precision):
    """The scaler, autocast and Muon together, on the CPU, which computes both."""
    settings["learning_rate"] = 1e-2
    _, single, _ = start_fresh_training(**settings)
    _, half, _ = start_fresh_training(
        **{**settings, "precision": precision, "checkpoint_dir": tmp_path / "half"}
    )
    assert single[-1] < 0.8 * single[0] and half == pytest.approx(single, rel=0.01)


def test_a_compiled_training_is_the_same(settings, tmp_path, monkeypatch):
    """Traced as for a GPU, but without kernels, which would need a C++ compiler."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    plain = start_fresh_training(**settings)[1]
    compiled = start_fresh_training(
        **{**settings, "checkpoint_dir": tmp_path / "compiled", "compile": "on"}
    )[1]
    assert compiled == pytest.approx(plain, rel=1e-4)


def test_accumulated_gradients_are_those_of_the_whole_batch(settings, tmp_path):
    start_fresh_training(**settings, max_steps=10)
    small = {**settings, "checkpoint_dir": tmp_path / "small", "micro_batch_size": 3}
    start_fresh_training(**small, max_steps=10)
    whole = weights_after(settings["checkpoint_dir"])
    for name, tensor in weights_after(small["checkpoint_dir"]).items():
        torch.testing.assert_close(tensor, whole[name], atol=1e-6, rtol=1e-5, msg=name)


def test_the_model_learns_and_the_metrics_file_tells(settings):
    train_losses, val_losses, tokens_seen = start_fresh_training(
        **{**settings, "num_epochs": 6, "learning_rate": 3e-2}
    )
    assert len(train_losses) == len(val_losses) == len(tokens_seen)
    assert val_losses[-1] < 0.6 * math.log(300)
    lines = [
        json.loads(line)
        for line in (settings["checkpoint_dir"] / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["val_loss"] for line in lines] == val_losses
    assert lines[-1]["tokens_seen"] == tokens_seen[-1] and lines[-1][
        "val_perplexity"
    ] == pytest.approx(math.exp(val_losses[-1]))


def test_patience_stops_a_training_that_no_longer_gets_better(settings):
    impatient = {
        **settings,
        "num_epochs": 50,
        "learning_rate": 0.0,
        "weight_decay": 0.0,
        "patience": 3,
    }
    assert len(start_fresh_training(**impatient)[1]) == 4
