"""Training: each part against PyTorch or an independent recomputation, and several processes against one."""

import functools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import golpo_utils as golpo

CONFIG = {"vocab_size": 300, "context_length": 16, "emb_dim": 16, "n_heads": 2, "n_layers": 1, "drop_rate": 0.0, "qkv_bias": False}
PROJECT = Path(golpo.__file__).parent


@pytest.fixture(scope="module")
def corpus_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "stories.txt"
    story = "<|start|>\n<|title|>Day {0}</|title|>\n\nOn day {0} the fox went to the river and saw {1} fish.\n<|end|>\n"
    path.write_text("".join(story.format(i, i * i) for i in range(60)), encoding="utf-8")
    return path


@pytest.fixture
def settings(corpus_file, tmp_path):
    return dict(config=CONFIG, data_path=corpus_file, checkpoint_dir=tmp_path / "checkpoints", num_epochs=2, batch_size=8,
                precision="fp32", device="cpu", sample_tokens=0, seed=7)


def weights_after(folder):
    return torch.load(Path(folder) / golpo.newest_checkpoint(folder)[0].name, weights_only=True)["model_state_dict"]


def test_a_training_equals_a_plain_pytorch_loop(settings, corpus_file):
    """Same windows, counted off here, same rates and groups, but torch's own cross-entropy, AdamW and clipping, unscaled and in one piece."""
    settings["optimizer"] = "adamw"
    golpo.start_fresh_training(**settings, max_steps=40)
    one = golpo.make_settings(settings)
    ids = golpo.load_corpus(corpus_file, golpo.get_tokenizer(300), one.validation_fraction, one.seed).train_ids.long()
    torch.manual_seed(one.seed)
    model = golpo.GPTModel(CONFIG)
    decayed = [p for name, p in model.named_parameters() if p.dim() == 2 and "emb" not in name and "out_head" not in name]
    others = [p for p in model.parameters() if not any(p is d for d in decayed)]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": one.weight_decay}, {"params": others, "weight_decay": 0}],
                                  betas=(0.9, one.beta2))
    start = golpo.get_tokenizer(300).encode_single_token("<|start|>")
    begins = [position for position, token in enumerate(ids.tolist()) if token == start]
    windows = {}                                               # where it begins → by how much it may begin earlier
    for begin, end in zip(begins, [*begins[1:], len(ids)]):
        own = range(begin, end, 16)                            # every 16 tokens, counted from the story's start
        beyond = own[-1] + 16 - end if end < len(ids) else 0   # the last story has nothing behind it
        windows |= {min(window, len(ids) - 17): beyond * (window > begin) for window in own}
    windows = sorted(windows.items())
    steps_per_epoch = math.ceil(len(windows) / 8)
    warmup = max(1, round(one.warmup * 2 * steps_per_epoch))
    assert steps_per_epoch < 40
    for step in range(40):
        epoch, position = divmod(step, steps_per_epoch)
        chosen = np.random.default_rng([7, epoch]).permutation(len(windows))[position * 8:position * 8 + 8]
        share = np.random.default_rng([7, epoch, 1]).random() if epoch else 0
        rows = torch.stack([ids[(at := windows[i][0] - int(share * windows[i][1])):at + 17] for i in chosen])
        progress = (step - warmup) / (2 * steps_per_epoch - warmup)
        rate = (step + 1) / warmup if step < warmup else 0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2
        for group in optimizer.param_groups:
            group["lr"] = one.learning_rate * rate
        optimizer.zero_grad()
        F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), one.grad_clip)
        optimizer.step()
    for name, tensor in weights_after(settings["checkpoint_dir"]).items():
        torch.testing.assert_close(tensor, model.state_dict()[name], atol=2e-6, rtol=1e-4, msg=name)


def test_muon_is_torchs(settings):
    """torch.optim.Muon for the matrices of the blocks (it rounds to bf16 on its way), torch's AdamW for the rest."""
    torch.manual_seed(0)
    ours, theirs = golpo.GPTModel({**CONFIG, "n_layers": 2}), golpo.GPTModel({**CONFIG, "n_layers": 2})
    theirs.load_state_dict(ours.state_dict())
    matrices = [p for p in theirs.trf_blocks.parameters() if p.dim() == 2]
    others = [p for p in theirs.parameters() if not any(p is matrix for matrix in matrices)]
    optimizers = (golpo.make_optimizer(ours, golpo.make_settings({**settings, "learning_rate": 1e-2, "weight_decay": 5.0})),
                  torch.optim.Muon(matrices, lr=1e-2, weight_decay=5.0, adjust_lr_fn="match_rms_adamw"),
                  torch.optim.AdamW(others, lr=1e-2, weight_decay=0, betas=(0.9, 0.95)))
    before = ours.state_dict() | {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    for _ in range(5):
        ids = torch.randint(0, 300, (4, 17))
        for model in (ours, theirs):
            model(ids[:, :-1], ids[:, 1:]).backward()
        for optimizer in optimizers:
            optimizer.step()
        ours.zero_grad()
        theirs.zero_grad()
    for (name, mine), other in zip(ours.state_dict().items(), theirs.state_dict().values()):
        moved = (mine - before[name]).norm()
        assert moved > 0.01 and (mine - other).norm() < 0.05 * moved, name


@pytest.mark.parametrize("shape", [(3, 24, 40), (2, 40, 24)])
def test_the_orthogonal_matrix_is_the_nearest(shape):
    """Against the singular value decomposition: the same directions, and all values drawn to about 1."""
    matrices = torch.randn(shape, dtype=torch.float64)
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    stretched = u.mT @ golpo.orthogonal(matrices) @ vh.mT                  # diagonal, if the directions are the same
    values = stretched.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(stretched, torch.diag_embed(values), atol=1e-9, rtol=0)
    assert values.min() > 0.5 and values.max() < 1.3


def test_a_step_that_the_gradient_scaler_refuses_changes_nothing():
    """fp16's way: gradients with an infinity in them are skipped, by Muon as by AdamW, and spoil no average."""
    model = golpo.GPTModel(CONFIG)
    optimizer = golpo.make_optimizer(model, golpo.make_settings({"config": CONFIG}))
    scaler, ids = torch.amp.GradScaler("cpu", init_scale=4.0), torch.randint(0, 300, (4, 17))
    for spoil in (False, True):
        scaler.scale(model(ids[:, :-1], ids[:, 1:])).backward()
        if spoil:
            model.trf_blocks[0].att.W_key.weight.grad[0, 0] = math.inf
            before = [tensor.clone() for tensor in (*model.parameters(), *optimizer.state_dict()["state"][0].values())]
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    after = [*model.parameters(), *optimizer.state_dict()["state"][0].values()]
    assert all(torch.equal(old, new) for old, new in zip(before, after)) and scaler.get_scale() == 2.0


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_what_single_precision_does(settings, tmp_path, precision):
    """The scaler, autocast and Muon together, on the CPU, which computes both."""
    settings["learning_rate"] = 1e-2
    _, single, _ = golpo.start_fresh_training(**settings)
    _, half, _ = golpo.start_fresh_training(**{**settings, "precision": precision, "checkpoint_dir": tmp_path / "half"})
    assert single[-1] < 0.8 * single[0] and half == pytest.approx(single, rel=0.01)


def test_a_compiled_training_is_the_same(settings, tmp_path, monkeypatch):
    """Traced as for a GPU, though not turned into kernels, which would need a C++ compiler: also where a window is
    shorter than the others, as in the evaluations."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    plain = golpo.start_fresh_training(**settings)[1]
    compiled = golpo.start_fresh_training(**{**settings, "checkpoint_dir": tmp_path / "compiled", "compile": "on"})[1]
    assert compiled == pytest.approx(plain, rel=1e-4)


def test_accumulated_gradients_are_those_of_the_whole_batch(settings, tmp_path):
    golpo.start_fresh_training(**settings, max_steps=10)
    small = {**settings, "checkpoint_dir": tmp_path / "small", "micro_batch_size": 3}
    golpo.start_fresh_training(**small, max_steps=10)
    whole = weights_after(settings["checkpoint_dir"])
    for name, tensor in weights_after(small["checkpoint_dir"]).items():
        torch.testing.assert_close(tensor, whole[name], atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("length", [2, 10, 17, 33, 200])
def test_validation_covers_every_token_once(length):
    torch.manual_seed(0)
    model = golpo.GPTModel(CONFIG)
    ids = torch.randint(0, 300, (length,))
    losses = []
    for start in range(0, length - 1, 16):
        piece = ids[start:start + 17]
        losses += F.cross_entropy(model(piece[None, :-1])[0], piece[1:], reduction="none").tolist()
    assert len(losses) == length - 1
    assert golpo.evaluate_loss(model, ids, 16, batch_size=3) == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def test_decay_falls_on_matrices_only():
    model = golpo.GPTModel({**CONFIG, "qkv_bias": True})
    decayed, spared = golpo.make_optimizer(model, golpo.make_settings({"config": CONFIG, "weight_decay": 0.3})).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert decayed["weight_decay"] == 0.3 and spared["weight_decay"] == 0
    assert all(name.split(".")[-2] in ("W_query", "W_key", "W_value", "out_proj", "0", "2") and name.endswith("weight")
               for name in (names[id(p)] for p in decayed["params"]))
    assert len(decayed["params"]) == 6 and len(decayed["params"]) + len(spared["params"]) == len(names)


def test_the_model_learns_and_the_metrics_file_tells(settings):
    train_losses, val_losses, tokens_seen = golpo.start_fresh_training(**{**settings, "num_epochs": 6, "learning_rate": 3e-2})
    assert len(train_losses) == len(val_losses) == len(tokens_seen)
    assert val_losses[-1] < 0.6 * math.log(300)
    lines = [json.loads(line) for line in (settings["checkpoint_dir"] / "metrics.jsonl").read_text().splitlines()]
    assert [line["val_loss"] for line in lines] == val_losses
    assert lines[-1]["tokens_seen"] == tokens_seen[-1] and lines[-1]["val_perplexity"] == pytest.approx(math.exp(val_losses[-1]))


def test_patience_stops_a_training_that_no_longer_gets_better(settings):
    impatient = {**settings, "num_epochs": 50, "learning_rate": 0.0, "weight_decay": 0.0, "patience": 3}
    assert len(golpo.start_fresh_training(**impatient)[1]) == 4


def test_unknown_and_impossible_settings_are_named():
    for wrong, words in (({"lerning_rate": 1}, "lerning_rate"), ({"num_epochs": 0}, "num_epochs is 0"),
                         ({"batch_size": 2.5}, "batch_size is 2.5"), ({"precision": "fp8"}, "precision is 'fp8'"),
                         ({"learning_rate": float("nan")}, "learning_rate is nan"), ({"warmup": 2}, "warmup is 2")):
        with pytest.raises(ValueError, match=words):
            golpo.start_fresh_training(**wrong)


def run_command(*arguments, processes=1):
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *launcher, str(PROJECT / "golpo_utils.py"), *map(str, arguments)],
                          capture_output=True, text=True, timeout=240, env=environment)


def flags(settings, **more):
    return [part for name, value in {**settings, **more}.items()
            for part in ("--" + name.replace("_", "-"), json.dumps(value) if isinstance(value, dict) else value)]


def test_two_processes_do_what_one_does_and_can_hand_over(settings, tmp_path):
    """20 steps: by one process; by two; and 10 by two, then 10 by one."""
    folders = {name: tmp_path / name for name in ("one", "two", "mixed")}
    golpo.start_fresh_training(**{**settings, "checkpoint_dir": folders["one"], "num_epochs": 3}, max_steps=20)
    plans = (("two", 2, 20), ("mixed", 2, 10), ("mixed", 1, 20))
    for name, processes, steps in plans:
        done = run_command("train", *flags({**settings, "checkpoint_dir": folders[name], "num_epochs": 3}, max_steps=steps), processes=processes)
        assert done.returncode == 0, done.stderr[-2000:]
    alone = weights_after(folders["one"])
    for name in ("two", "mixed"):
        for key, tensor in weights_after(folders[name]).items():
            torch.testing.assert_close(tensor, alone[key], atol=1e-5, rtol=1e-5, msg=f"{name}: {key}")


def test_the_command_line_trains_resumes_tells_and_measures(settings, tmp_path):
    first = run_command("train", *flags(settings, max_steps=3))
    assert "Starting fresh." in first.stdout, first.stderr[-2000:]
    second = run_command("train", *flags(settings))
    assert "Going on from checkpoint_" in second.stdout, second.stderr[-2000:]
    told = run_command("generate", "--checkpoint", settings["checkpoint_dir"], "--max-new-tokens", 20, "--seed", 1)
    assert told.returncode == 0 and told.stdout.strip()
    figures = tmp_path / "figures.json"
    run_command("evaluate", "--checkpoint", settings["checkpoint_dir"], "--stories", 3, "--max-new-tokens", 30, "--output", figures)
    assert json.loads(figures.read_text())["stories"] == 3
    beside = run_command("evaluate", "--checkpoint", settings["checkpoint_dir"], "--stories", 2, "--max-new-tokens", 9, "--beside", figures)
    assert beside.stdout.split("\n")[0].split() == ["told", "figures", "by", "people"]
    (tmp_path / "other.json").write_text("{}")
    wrong = run_command("evaluate", "--checkpoint", settings["checkpoint_dir"], "--beside", tmp_path / "other.json")
    assert wrong.returncode == 1 and "Traceback" not in wrong.stderr and "'other' holds no figures" in wrong.stderr
    wrong = run_command("generate", "--checkpoint", tmp_path / "nowhere")
    assert wrong.returncode == 1 and "Traceback" not in wrong.stderr and "nowhere" in wrong.stderr


def test_the_preset_original_trains_as_the_original_wrote_it(settings, corpus_file):
    """PyTorch's own initialisation, an untied head, AdamW over all parameters at one constant rate, windows side by side; no clipping."""
    config = {**golpo.PRESETS["original"]["config"], **CONFIG}
    golpo.start_fresh_training(**{**golpo.PRESETS["original"], **settings, "config": config}, max_steps=12)
    ids = golpo.load_corpus(corpus_file, golpo.get_tokenizer(300), 0.1, settings["seed"]).train_ids.long()
    torch.manual_seed(settings["seed"])
    model = golpo.GPTModel(config)
    assert model.tok_emb.weight.std() > 0.9 and model.out_head.weight is not model.tok_emb.weight         # nn.Embedding's N(0, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0004, weight_decay=0.1)
    windows = range(0, len(ids) - 16, 16)
    steps_per_epoch = math.ceil(len(windows) / 8)
    for step in range(12):
        epoch, position = divmod(step, steps_per_epoch)
        chosen = np.random.default_rng([settings["seed"], epoch]).permutation(len(windows))[position * 8:position * 8 + 8]
        rows = torch.stack([ids[windows[i]:windows[i] + 17] for i in chosen])
        optimizer.zero_grad()
        F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten()).backward()
        optimizer.step()
    for name, tensor in weights_after(settings["checkpoint_dir"]).items():
        torch.testing.assert_close(tensor, model.state_dict()[name], atol=2e-6, rtol=1e-4, msg=name)


def test_a_checkpoint_of_the_original_is_trained_on_at_its_own_rate(settings, capsys):
    """What the original wrote: no config, an untied head, masks, a step that counts from 0, and an optimizer of its own."""
    config = {**CONFIG, "tie_embeddings": False}
    torch.manual_seed(1)
    model = golpo.GPTModel(config)
    masks = {f"trf_blocks.{n}.att.mask": torch.ones(16, 16).triu(1) for n in range(CONFIG["n_layers"])}
    settings["checkpoint_dir"].mkdir()
    torch.save({"epoch": 0, "global_step": 4, "model_state_dict": model.state_dict() | masks,
                "optimizer_state_dict": torch.optim.AdamW(model.parameters()).state_dict(), "train_losses": [5.0],
                "val_losses": [5.5], "track_tokens_seen": [640], "tokens_seen": 640}, settings["checkpoint_dir"] / "theirs.pth")
    given = {name: value for name, value in settings.items() if name not in ("checkpoint_dir", "num_epochs", "batch_size")}
    with pytest.warns(UserWarning, match="no marker"):
        _, val_losses, seen = golpo.resume_training_from_checkpoint(settings["checkpoint_dir"], "theirs.pth", **{
            **given, "config": config, "max_steps": 60})
    assert "Going on from theirs.pth, step 5." in capsys.readouterr().out
    assert val_losses[0] == 5.5 and val_losses[-1] < val_losses[1] and seen[0] == 640
    lines = (settings["checkpoint_dir"] / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) > 1 and {json.loads(line)["learning_rate"] for line in lines} == {0.0004}


def test_windows_side_by_side_are_those_of_a_plain_cut(settings, monkeypatch):
    seen, backward = [], golpo.Training.backward

    def noting(training, number, windows):
        seen.extend(training.train_set.starts[windows])
        return backward(training, number, windows)
    monkeypatch.setattr(golpo.Training, "backward", noting)
    golpo.start_fresh_training(**{**settings, "num_epochs": 1, "story_windows": False})
    assert sorted(seen) == list(range(0, len(seen) * 16, 16))


def test_a_process_that_dies_ends_the_others_with_a_sentence(settings, tmp_path):
    """Two processes; the second is killed; the first says so, though leaving takes it longer than torchrun waits before it
    ends the others, and torchrun fails."""
    script = tmp_path / "die.py"
    script.write_text(f"""
import os, signal, sys, time
sys.path.insert(0, {str(PROJECT)!r})
import golpo_utils as golpo
step, leave = golpo.Training.step, golpo.CheckpointKeeper.__exit__
def leaving(*about):
    time.sleep(2)
    leave(*about)
golpo.CheckpointKeeper.__exit__ = leaving
def dying(self):
    if self.rank == 1 and self.state.global_step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    step(self)
golpo.Training.step = dying
golpo.main()
""")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), "train"]
    done = subprocess.run([*command, *map(str, flags(settings))], capture_output=True, text=True, timeout=240,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode != 0
    assert "another process of this training died" in done.stderr, done.stderr[-3000:]
