"""What a form shows before a training begins, and its field `start_over`."""

import json

import pytest
from helpers import TINY_CONFIG, tiny_settings
from trainings import newest

from golpo import checkpoint, plan
from golpo.errors import CheckpointError
from golpo.plan import (
    START_OVER_FILE,
    auto_corpus,
    has_checkpoint,
    plan_training,
    start_over_is_due,
)
from golpo.runs import train_or_resume
from golpo.settings import PRESETS, default_preset
from golpo.tokenizer import save_tokenizer, train_tokenizer
from golpo.vocabulary import pick_tokenizer


@pytest.fixture
def given(tmp_path):
    """Keywords of a training of one step; the form gives only some of them."""
    return tiny_settings(tmp_path, num_epochs=1, max_steps=1)


@pytest.fixture
def form(given):
    """What the form gives, besides the preset `auto`."""
    names = ("checkpoint_dir", "data_path")
    return {name: given[name] for name in names}


def test_without_a_checkpoint_the_plan_is_the_preset_of_this_machine(form):
    planned = plan_training(False, "auto", **form)
    assert planned.config == PRESETS[default_preset()]["config"]
    assert planned.checkpoint_dir == str(form["checkpoint_dir"])
    assert plan_training(False, "t4", **form).config == PRESETS["t4"]["config"]


def test_with_a_checkpoint_the_plan_is_what_training_then_uses(given, form, monkeypatch):
    """Nobody chose a preset by hand, so that of this machine yields to the checkpoint's."""
    train_or_resume(**given)
    planned = plan_training(False, "auto", **form, num_epochs=2)
    assert planned.config == given["config"]
    assert planned.batch_size == given["batch_size"]
    used = []
    real = plan.make_settings
    monkeypatch.setattr(plan, "make_settings", lambda *a: used.append(real(*a)) or used[-1])
    train_or_resume(False, "auto", **form, num_epochs=2)
    assert len(used) == 1
    differences = {
        name: (value, getattr(used[0], name))
        for name, value in vars(planned).items()
        if value != getattr(used[0], name)
    }
    assert not differences


def test_planning_reads_manifests_and_no_checkpoint(given, form, monkeypatch):
    train_or_resume(**given)

    def refuse(*_, **__):
        raise AssertionError("a checkpoint was read")

    monkeypatch.setattr(plan, "read_checkpoint", refuse)
    monkeypatch.setattr(plan, "newest_checkpoint", refuse)
    assert plan_training(False, "auto", **form).config == given["config"]
    with pytest.raises(AssertionError, match="was read"):  # the patch is reached without manifests
        next(form["checkpoint_dir"].glob("checkpoint_?.json")).unlink()
        plan_training(False, "auto", **form)


def test_a_checkpoint_whose_manifest_has_no_settings_is_read(given, form):
    train_or_resume(**given)
    path = form["checkpoint_dir"] / "checkpoint_a.json"
    manifest = json.loads(path.read_text())
    del manifest["settings"]
    manifest["manifest_digest"] = checkpoint.manifest_digest(manifest)
    path.write_text(json.dumps(manifest))
    assert plan_training(False, "auto", **form).config == given["config"]


def test_a_fresh_start_is_planned_with_the_preset(given, form):
    train_or_resume(**given)
    assert plan_training(True, "laptop", **form).config == PRESETS["laptop"]["config"]


def test_a_folder_that_cannot_be_read_is_named(given, form, monkeypatch):
    train_or_resume(**given)

    def unreadable(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(checkpoint, "list_folder", unreadable)
    with pytest.raises(CheckpointError, match="cannot be read"):
        plan_training(False, "auto", **form)


def test_a_checkpoint_is_found_in_both_folders_and_by_drives_names(tmp_path):
    assert not has_checkpoint(tmp_path / "nowhere", None)
    (tmp_path / "notes.txt").write_text("none")
    assert not has_checkpoint(tmp_path, tmp_path / "nowhere")
    (tmp_path / "checkpoint_a.pt").mkdir()  # no checkpoint: a save moves it aside
    assert not has_checkpoint(tmp_path)
    (tmp_path / "checkpoint_a (1).pt").write_bytes(b"")
    assert has_checkpoint(tmp_path)
    assert has_checkpoint(tmp_path / "nowhere", tmp_path)


def run_form(ticked: bool, given: dict, capsys) -> str:
    """The form and then the training, as Run all runs them; return what they print."""
    fresh = start_over_is_due(ticked, given["checkpoint_dir"])
    train_or_resume(fresh, "auto", **given)
    return capsys.readouterr().out


def test_a_ticked_start_over_starts_over_once_per_tick(given, capsys):
    assert "Starting a fresh" in run_form(False, given, capsys)
    printed = run_form(True, given, capsys)
    assert "Starting a fresh" in printed and "were moved" in printed

    for _ in range(2):  # still ticked, in this session and the next
        printed = run_form(True, given, capsys)
        assert "Resuming from" in printed
        assert "start_over is still ticked" in printed

    assert "Resuming from" in run_form(False, given, capsys)
    assert "Starting a fresh" in run_form(True, given, capsys)
    archives = [path for path in given["checkpoint_dir"].iterdir() if path.is_dir()]
    assert len(archives) == 2


def test_a_start_that_fails_before_it_begins_stays_due(given, capsys):
    run_form(False, given, capsys)
    with pytest.raises(FileNotFoundError):
        run_form(True, given | {"data_path": "nowhere.txt"}, capsys)
    assert "Starting a fresh" in run_form(True, given, capsys)


def test_a_form_that_is_run_twice_before_the_training_asks_once(given, capsys):
    run_form(False, given, capsys)
    assert start_over_is_due(True, given["checkpoint_dir"])
    assert "Starting a fresh" in run_form(True, given, capsys)
    assert not start_over_is_due(True, given["checkpoint_dir"])


def test_a_tick_before_the_first_training_starts_it_once(given, capsys):
    assert "Starting a fresh" in run_form(True, given, capsys)
    assert "Resuming from" in run_form(True, given, capsys)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"done": 1}'])
def test_a_damaged_note_resumes_for_that_loses_nothing(content, given, capsys):
    run_form(False, given, capsys)
    (given["checkpoint_dir"] / START_OVER_FILE).write_bytes(content)
    assert "Resuming from" in run_form(True, given, capsys)


def test_a_changed_corpus_is_refused_until_the_form_accepts_it(given, capsys):
    run_form(False, given, capsys)
    corpus = given["data_path"]
    corpus.write_text(corpus.read_text() + "<|start|>\nOne more.\n<|end|>\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match="accept_changes"):
        run_form(False, given, capsys)
    printed = run_form(False, given | {"accept_changes": True, "max_steps": 2}, capsys)
    assert "Resuming from" in printed


def test_a_training_of_a_gpu_resumes_on_a_machine_without_one(given, capsys):
    """The preset that fits a GPU began it; the one for a CPU must not replace it."""
    config = {**TINY_CONFIG, "vocab_size": 300, "n_layers": 2}
    run_form(False, given | {"config": config}, capsys)
    form = {name: given[name] for name in ("checkpoint_dir", "data_path")}
    printed = run_form(False, form | {"max_steps": 2}, capsys)
    assert "Resuming from" in printed
    assert plan_training(False, "auto", **form).config == config


def test_the_vocabulary_of_a_preset_fits_a_tokenizer_of_ones_own(tmp_path):
    """A size that is given by hand stands."""
    sizes = {
        (name, tokenizer): plan_training(True, name, tokenizer=tokenizer).config["vocab_size"]
        for name in ("laptop", "t4", "124M")
        for tokenizer in ("own", "gpt2")
    }
    assert sizes == {
        ("laptop", "own"): 2048,
        ("laptop", "gpt2"): 4096,
        ("t4", "own"): 8192,
        ("t4", "gpt2"): 50261,
        ("124M", "own"): 8192,
        ("124M", "gpt2"): 50257,
    }
    learned = train_tokenizer(["a lamp, a lamb, a lane"] * 3, 263)
    save_tokenizer(learned, tmp_path / "own.json")
    planned = plan_training(True, "laptop", tokenizer=str(tmp_path / "own.json"))
    assert planned.config["vocab_size"] == 263
    assert pick_tokenizer(planned).name == learned.name
    by_hand = {**PRESETS["laptop"]["config"], "vocab_size": 300}
    planned = plan_training(True, "laptop", tokenizer="own", config=by_hand)
    assert planned.config["vocab_size"] == 300
    assert pick_tokenizer(planned).n_vocab == 300


def test_a_small_corpus_makes_the_vocabulary_of_a_preset_smaller(given, capsys):
    """And the training resumes with the preset's name, although its vocabulary is larger."""
    form = {name: given[name] for name in ("checkpoint_dir", "data_path", "sample_tokens")}
    form |= {"num_epochs": 1, "batch_size": 2, "max_steps": 2}
    train_or_resume(True, "laptop", **form)
    assert "Note: the corpus is small; its vocabulary has" in capsys.readouterr().out
    checkpoint = newest(given["checkpoint_dir"])
    size = checkpoint["config"]["vocab_size"]
    assert 261 < size < 2048
    assert checkpoint["model_state_dict"]["tok_emb.weight"].shape[0] == size
    train_or_resume(False, "laptop", **form | {"max_steps": 3})
    assert "Resuming from checkpoint_a.pt, step 2." in capsys.readouterr().out
    assert plan_training(False, "laptop", **form).config["vocab_size"] == size
    by_hand = {**PRESETS["laptop"]["config"], "vocab_size": size + 1}
    with pytest.raises(ValueError, match=f"choose at most {size}"):
        train_or_resume(True, "laptop", **form, config=by_hand)


def test_the_corpus_auto_is_tinystories_on_a_gpu_with_a_network(form, monkeypatch):
    """Not once a training has begun, whatever machine it then lands on."""
    asked = []

    def fetch(source):
        asked.append(source)
        return "tinystories.txt"

    monkeypatch.setattr(plan, "fetch_corpus", fetch)
    folder = form["checkpoint_dir"]
    monkeypatch.setattr(plan.torch.cuda, "is_available", lambda: False)
    assert auto_corpus(False, folder) is None and not asked
    monkeypatch.setattr(plan.torch.cuda, "is_available", lambda: True)
    assert auto_corpus(False, folder) == "tinystories.txt"
    assert asked == ["tinystories-small"]


def test_the_corpus_auto_is_the_checkpoints_own_once_a_training_has_begun(given, monkeypatch):
    train_or_resume(**given)
    monkeypatch.setattr(plan.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(plan, "fetch_corpus", lambda source: "tinystories.txt")
    folder = given["checkpoint_dir"]
    assert auto_corpus(False, folder) is None
    assert auto_corpus(True, folder) == "tinystories.txt"


def test_the_corpus_auto_is_the_bundled_one_without_a_network(form, monkeypatch, capsys):
    def fail(source):
        raise ConnectionError(f"downloading {source} failed")

    monkeypatch.setattr(plan, "fetch_corpus", fail)
    monkeypatch.setattr(plan.torch.cuda, "is_available", lambda: True)
    assert auto_corpus(False, form["checkpoint_dir"]) is None
    assert "tinystories-small failed. The bundled corpus is used" in capsys.readouterr().out
