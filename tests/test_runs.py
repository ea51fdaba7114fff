"""Starting and resuming: the original project's recipe and checkpoints, and bad settings."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from trainings import PLAIN_CONFIG, newest, train, weights_after

from golpo import runs
from golpo.corpus import load_corpus
from golpo.errors import CheckpointError
from golpo.runs import resume_training_from_checkpoint, start_fresh_training
from golpo.settings import PRESETS
from golpo.step import TrainingStep
from golpo_utils import GPTModel, get_tokenizer


def test_unknown_and_impossible_settings_are_named():
    for wrong, words in (
        ({"lerning_rate": 1}, "lerning_rate"),
        ({"num_epochs": 0}, "num_epochs is 0"),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"warmup": 2}, "warmup is 2"),
    ):
        with pytest.raises(ValueError, match=words):
            start_fresh_training(**wrong)


def test_the_preset_original_trains_as_the_original_wrote_it(settings, corpus_file):
    """PyTorch's initialization, an untied head, AdamW at a constant rate, no clipping."""
    config = {**PRESETS["original"]["config"], **PLAIN_CONFIG}
    start_fresh_training(**{**PRESETS["original"], **settings, "config": config}, max_steps=12)
    ids = load_corpus(corpus_file, get_tokenizer(300), 0.1, settings["seed"]).train_ids.long()
    torch.manual_seed(settings["seed"])
    model = GPTModel(config)
    assert (
        model.tok_emb.weight.std() > 0.9 and model.out_head.weight is not model.tok_emb.weight
    )  # nn.Embedding's N(0, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0004, weight_decay=0.1)
    windows = range(0, len(ids) - 16, 16)
    steps_per_epoch = math.ceil(len(windows) / 8)
    for step in range(12):
        epoch, position = divmod(step, steps_per_epoch)
        chosen = np.random.default_rng([settings["seed"], epoch]).permutation(len(windows))[
            position * 8 : position * 8 + 8
        ]
        rows = torch.stack([ids[windows[i] : windows[i] + 17] for i in chosen])
        optimizer.zero_grad()
        F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten()).backward()
        optimizer.step()
    for name, tensor in weights_after(settings["checkpoint_dir"]).items():
        torch.testing.assert_close(tensor, model.state_dict()[name], atol=2e-6, rtol=1e-4, msg=name)


def test_a_checkpoint_of_the_original_is_trained_on_at_its_own_rate(settings, capsys):
    """The original wrote no config, an untied head, masks, and steps counted from 0."""
    config = {**PLAIN_CONFIG, "tie_embeddings": False}
    torch.manual_seed(1)
    model = GPTModel(config)
    masks = {
        f"trf_blocks.{n}.att.mask": torch.ones(16, 16).triu(1)
        for n in range(PLAIN_CONFIG["n_layers"])
    }
    settings["checkpoint_dir"].mkdir()
    torch.save(
        {
            "epoch": 0,
            "global_step": 4,
            "model_state_dict": model.state_dict() | masks,
            "optimizer_state_dict": torch.optim.AdamW(model.parameters()).state_dict(),
            "train_losses": [5.0],
            "val_losses": [5.5],
            "track_tokens_seen": [640],
            "tokens_seen": 640,
        },
        settings["checkpoint_dir"] / "theirs.pth",
    )
    given = {
        name: value
        for name, value in settings.items()
        if name not in ("checkpoint_dir", "num_epochs", "batch_size")
    }
    with pytest.warns(UserWarning, match="no manifest"):
        _, val_losses, seen = resume_training_from_checkpoint(
            settings["checkpoint_dir"], "theirs.pth", **{**given, "config": config, "max_steps": 60}
        )
    assert "Resuming from theirs.pth, step 5." in capsys.readouterr().out
    assert val_losses[0] == 5.5 and val_losses[-1] < val_losses[1] and seen[0] == 640
    lines = (settings["checkpoint_dir"] / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) > 1 and {json.loads(line)["learning_rate"] for line in lines} == {0.0004}


def test_windows_side_by_side_are_those_of_a_plain_cut(settings, monkeypatch):
    seen, backward = [], TrainingStep.backward

    def noting(training, number, windows):
        seen.extend(training.dataset.starts[windows])
        return backward(training, number, windows)

    monkeypatch.setattr(TrainingStep, "backward", noting)
    start_fresh_training(**{**settings, "num_epochs": 1, "align_to_stories": False})
    assert sorted(seen) == list(range(0, len(seen) * 16, 16))


@pytest.mark.parametrize(
    ("name", "before", "now"),
    [
        ("pack_stories", False, True),
        ("trim_windows", False, True),
        ("input_noise", 0.0, 0.1),
    ],
)
def test_a_training_keeps_what_decides_a_step(
    training_corpus, tmp_path, monkeypatch, name, before, now
):
    """Also one whose checkpoint was written before the setting existed."""
    train(training_corpus, tmp_path, max_steps=3)
    read = runs.read_checkpoint
    reads = []

    def read_old(*arguments, **more):
        checkpoint = read(*arguments, **more)
        del checkpoint["settings"][name]
        reads.append(checkpoint)
        return checkpoint

    monkeypatch.setattr(runs, "read_checkpoint", read_old)
    with pytest.raises(CheckpointError, match=f"with {name} = {before}, and now it is {now}"):
        train(training_corpus, tmp_path, max_steps=4, **{name: now})
    train(training_corpus, tmp_path, max_steps=4)
    assert newest(tmp_path)["global_step"] == 4
    assert len(reads) == 2
