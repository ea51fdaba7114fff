"""One checkpoint: damage is noticed, the manifest cannot be confused, and no file runs code."""

import contextlib
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from trainings import CONFIG, same_bits, train

from golpo import files, runs
from golpo.checkpoint import (
    SLOTS,
    load_checkpoint,
    newest_checkpoint,
    read_checkpoint,
    save_checkpoint,
    verify_checkpoint,
)
from golpo.errors import CheckpointError
from golpo.files import sha256_of
from golpo.manifest import manifest_digest, manifest_path
from golpo.remote_copy import copy_checkpoint
from golpo.runs import resume_training_from_checkpoint
from golpo.version import __version__
from golpo_utils import GPTModel

pytestmark = pytest.mark.usefixtures("one_thread", "silent")


def save(folder, step=1, name="checkpoint_a.pt", model=None, **more):
    """A checkpoint of a new model, or of `model`, at `step`."""
    model = model or GPTModel(CONFIG)
    return save_checkpoint(model, None, 0, step, [], [], [], 0, folder, name, **more)


@pytest.fixture
def two_slots(tmp_path):
    """A folder with checkpoints of step 35 (slot a) and of step 50 (slot b)."""
    folder = tmp_path / "two slots"
    save(folder, 35, SLOTS[0])
    save(folder, 50, SLOTS[1])
    return folder


def flip_bit(data, at, chance):
    return data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]


def cut_a_hole(data, at, chance):
    return data[:at] + bytes(len(data[at : at + 4096])) + data[at + 4096 :]


def cut_short(data, at, chance):
    return data[:at]


def end_with_zeros(data, at, chance):
    return data[:at] + bytes(len(data) - at)


DAMAGES = (flip_bit, cut_a_hole, cut_short, end_with_zeros)


def check_damages(folder, chance, capsys, places):
    """Damage the newer checkpoint at random places; return how often that was noticed."""
    target = folder / SLOTS[1]
    whole = target.read_bytes()
    noticed = 0
    for damage in DAMAGES:
        for _ in range(places):
            damaged = whole
            while damaged == whole:  # zeros over zeros are no damage
                damaged = damage(whole, chance.randrange(len(whole)), chance)
            target.write_bytes(damaged)
            path, manifest = newest_checkpoint(folder)
            assert (path.name, manifest["step"]) == ("checkpoint_a.pt", 35)
            assert "Skipped: checkpoint_b.pt has" in capsys.readouterr().out
            with pytest.raises(CheckpointError, match="checkpoint_b.pt"):
                read_checkpoint(target)
            noticed += 1
    return noticed


def test_damage_is_noticed_and_named_and_the_older_slot_is_used(two_slots, chance, capsys):
    assert check_damages(two_slots, chance, capsys, 12) == 48


@pytest.mark.slow
def test_damage_at_many_random_places_is_noticed(two_slots, chance, capsys, record_figure):
    noticed = check_damages(two_slots, chance, capsys, 200)
    record_figure(
        "a flipped bit, a hole of 4 KB, a file cut short, zeros at the end",
        f"{noticed} of 800 noticed, the file named, the older slot used",
    )


def check_damaged_manifests(folder, chance, places):
    for name in ("checkpoint_a.json", "checkpoint_b.json"):
        whole = (folder / name).read_bytes()
        for _ in range(places):
            at = chance.randrange(len(whole))
            flipped = bytes([whole[at] ^ 1 << chance.randrange(8)])
            (folder / name).write_bytes(whole[:at] + flipped + whole[at + 1 :])
            path, manifest = newest_checkpoint(folder)
            assert manifest["step"] == (35 if path.stem == "checkpoint_a" else 50)
            assert path.stem == "checkpoint_b" or name == "checkpoint_b.json"
        (folder / name).write_bytes(whole)


def test_a_damaged_manifest_never_passes_for_another(two_slots, chance):
    check_damaged_manifests(two_slots, chance, 60)


@pytest.mark.slow
def test_a_manifest_damaged_in_many_ways_never_passes_for_another(two_slots, chance, record_figure):
    check_damaged_manifests(two_slots, chance, 1000)
    record_figure("a flipped bit in a manifest", "2000 of 2000 noticed, the other slot used")


def test_bad_checkpoints_alone_are_an_error_and_not_a_fresh_start(two_slots, training_corpus):
    for name in SLOTS:
        (two_slots / name).write_bytes(b"rot")
    with pytest.raises(CheckpointError, match="a.pt has 3 bytes.*b.pt has 3 bytes.*move them away"):
        train(training_corpus, two_slots)


def test_a_checkpoint_without_its_manifest_was_never_finished(two_slots, capsys):
    (two_slots / "checkpoint_b.json").unlink()
    assert newest_checkpoint(two_slots)[1]["step"] == 35
    assert "no manifest fits them: its saving was interrupted" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="no manifest"):
        assert read_checkpoint(two_slots / "checkpoint_b.pt")["global_step"] == 50


def test_drives_copies_of_a_file_count_too(two_slots):
    for path in (two_slots / SLOTS[1], manifest_path(two_slots / SLOTS[1])):
        path.rename(path.with_stem(path.stem + " (1)"))
    path, manifest = newest_checkpoint(two_slots)
    assert (path.name, manifest["step"]) == ("checkpoint_b (1).pt", 50)


def test_the_best_is_preferred_only_when_asked_for(two_slots):
    save(two_slots, 20, "checkpoint_best.pt")
    assert newest_checkpoint(two_slots)[0].name == "checkpoint_b.pt"
    assert newest_checkpoint(two_slots, "best")[0].name == "checkpoint_best.pt"
    manifest_path(two_slots / "checkpoint_best.pt").unlink()
    assert newest_checkpoint(two_slots, "best")[0].name == "checkpoint_b.pt"


def test_the_manifest_says_which_version_wrote_it(tmp_path):
    path = save(tmp_path, tokenizer="gpt2", corpus="abc")
    manifest = json.loads(manifest_path(path).read_text())
    assert manifest["version"] == __version__
    assert manifest["sha256"] == sha256_of(path)
    assert (manifest["tokenizer"], manifest["corpus"]) == ("gpt2", "abc")
    assert verify_checkpoint(path) == manifest


class Evil:
    """Unpickling this calls a function."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def pickles_that_run_code(folder):
    """Five files that make the file `canary` when a reader that runs code unpickles them."""
    canary = str(folder / "canary")
    state = {"model_state_dict": {}, "optimizer_state_dict": Evil(os.system, f"touch {canary}")}
    torch.save(state, folder / "inside.pt")
    torch.save(state, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    (folder / "raw.pt").write_bytes(pickle.dumps(Evil(exec, f"open({canary!r}, 'w')")))
    weights = {"weight": Evil(Path.touch, Path(canary))}
    torch.save({"model_state_dict": weights}, folder / "method.pt")
    code = f"__import__('pathlib').Path({canary!r}).touch()"
    torch.save(Evil(eval, code), folder / "whole.pt")
    return sorted(folder.glob("*.pt")), Path(canary)


def write_manifest_for(file):
    """A valid manifest for any file."""
    save(file.parent, name="good.pt")
    manifest = json.loads((file.parent / "good.json").read_text())
    manifest |= {"size": file.stat().st_size, "sha256": sha256_of(file)}
    manifest["manifest_digest"] = manifest_digest(manifest)
    file.with_suffix(".json").write_text(json.dumps(manifest))


def test_no_file_ever_runs_code(tmp_path):
    files, canary = pickles_that_run_code(tmp_path)
    assert len(files) == 5
    for file in files:  # they do run code elsewhere
        with contextlib.suppress(Exception):
            torch.load(file, weights_only=False)
        assert canary.exists(), file
        canary.unlink()
    model = GPTModel(CONFIG)
    for file in files:
        for with_manifest in (False, True):
            if with_manifest:
                write_manifest_for(file)
                warns = contextlib.nullcontext()
            else:
                warns = pytest.warns(UserWarning, match="no manifest")
            with pytest.raises(CheckpointError, match="code, which never runs"), warns:
                load_checkpoint(model, file)
            assert not canary.exists()


def test_a_checkpoint_that_does_not_fit_the_model_is_refused_by_name(tmp_path):
    path = save(tmp_path)
    other = GPTModel({**CONFIG, "emb_dim": 32})
    with pytest.raises(CheckpointError, match="checkpoint_a.pt and the model differ in 'tok_emb"):
        load_checkpoint(other, path)


def test_a_missing_checkpoint_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no checkpoint at .*none.pt"):
        read_checkpoint(tmp_path / "none.pt")
    assert newest_checkpoint(tmp_path / "no folder") is None


def test_a_file_that_is_not_a_checkpoint_is_refused_by_name(tmp_path):
    torch.save({"weights": torch.ones(2)}, tmp_path / "foreign.pt")
    with (
        pytest.warns(UserWarning),
        pytest.raises(CheckpointError, match="has no 'model_state_dict"),
    ):
        read_checkpoint(tmp_path / "foreign.pt")


def test_a_head_of_its_own_is_loaded_untied(tmp_path):
    model = GPTModel(CONFIG)
    model.untie_head()
    with torch.no_grad():
        model.out_head.weight.add_(1.0)
    path = save(tmp_path, model=model)
    restored = GPTModel(CONFIG)
    load_checkpoint(restored, path)
    assert restored.out_head.weight is not restored.tok_emb.weight
    torch.testing.assert_close(restored.out_head.weight, model.out_head.weight, rtol=0, atol=0)


def test_an_optimizer_of_another_kind_is_refused(tmp_path):
    model = GPTModel(CONFIG)
    sgd = torch.optim.SGD(list(model.parameters())[:3], lr=0.1)
    path = save_checkpoint(model, sgd, 0, 1, [], [], [], 0, tmp_path, "checkpoint_a.pt")
    adamw = torch.optim.AdamW(model.parameters())
    with pytest.raises(CheckpointError, match="no optimizer of this kind"):
        load_checkpoint(model, path, adamw)


def test_a_full_save_leaves_the_old_checkpoint_and_no_part_file(two_slots, monkeypatch):
    before = {file.name: file.read_bytes() for file in two_slots.iterdir()}
    calls = []

    def refuse(file):
        calls.append(file)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space left"):
        save(two_slots, 60, SLOTS[0])
    assert calls
    assert {file.name: file.read_bytes() for file in two_slots.iterdir()} == before


def test_a_copy_that_mixes_two_checkpoints_is_noticed(two_slots, tmp_path):
    """As when the source is replaced after its manifest was read."""
    shutil.copy(manifest_path(two_slots / SLOTS[1]), manifest_path(two_slots / SLOTS[0]))
    with pytest.raises(OSError, match="replaced while it was copied"):
        copy_checkpoint(two_slots / SLOTS[0], tmp_path / "copy.pt")
    assert not (tmp_path / "copy.json").exists()
    copy_checkpoint(two_slots / SLOTS[1], tmp_path / "copy.pt")
    assert verify_checkpoint(tmp_path / "copy.pt")["step"] == 50


def test_a_copy_counts_only_after_what_has_to_come_before_it(two_slots, tmp_path):
    """A kill between a copy and its metrics lost the record of an evaluation."""
    copy = tmp_path / "copy.pt"
    seen = []

    def look():
        seen.append((copy.read_bytes(), manifest_path(copy).exists()))

    copy_checkpoint(two_slots / SLOTS[1], copy, before_manifest=look)
    assert seen == [((two_slots / SLOTS[1]).read_bytes(), False)]
    assert manifest_path(copy).exists()


def test_a_copy_of_a_folder_still_verifies(two_slots, tmp_path):
    copy = shutil.copytree(two_slots, tmp_path / "copy")
    assert newest_checkpoint(copy)[1] == newest_checkpoint(two_slots)[1]


# --- files beside the good checkpoint ------------------------------------------------------


def make_folder_named_json(folder):
    (folder / "notes.json").mkdir()


def make_many_brackets(folder):
    (folder / "notes.json").write_text("[" * 100_000)


def make_symlink_loops(folder):
    for name in ("loop.json", "checkpoint_a (1).pt", "checkpoint_a (1).json"):
        (folder / name).symlink_to(name)


def make_a_broken_link(folder):
    (folder / "checkpoint_b (2).pt").symlink_to("nowhere")


def make_a_folder_named_checkpoint(folder):
    (folder / "checkpoint_a (3).pt").mkdir()


def make_foreign_manifests(folder):
    (folder / "list.json").write_text("[1, 2]")
    (folder / "text.json").write_bytes(b"\xff\xfe\x00")
    (folder / "empty.json").write_text("")
    (folder / "odd.json").write_text('{"manifest_digest": [], "sha256": 3}')


@pytest.mark.parametrize(
    "make",
    [
        make_folder_named_json,
        make_many_brackets,
        make_symlink_loops,
        make_a_broken_link,
        make_a_folder_named_checkpoint,
        make_foreign_manifests,
    ],
)
def test_foreign_files_do_not_hide_the_newest_checkpoint(two_slots, make):
    make(two_slots)
    path, manifest = newest_checkpoint(two_slots)
    assert (path.name, manifest["step"]) == ("checkpoint_b.pt", 50)
    assert read_checkpoint(path)["global_step"] == 50


def test_an_older_slot_that_cannot_be_read_does_not_hide_the_newest(two_slots, monkeypatch, capsys):
    original = files.sha256_of

    def refuse(path):
        if path.name == "checkpoint_a.pt":
            raise OSError(5, "Input/output error", str(path))
        return original(path)

    monkeypatch.setattr(files, "sha256_of", refuse)
    assert newest_checkpoint(two_slots)[1]["step"] == 50
    assert "Skipped: checkpoint_a.pt cannot be read (Input/output error)" in capsys.readouterr().out


def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(two_slots, monkeypatch):
    def refuse(folder):
        raise OSError(107, "Transport endpoint is not connected", str(folder))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(CheckpointError, match="cannot be read .Transport endpoint"):
        newest_checkpoint(two_slots)


@pytest.mark.parametrize("manifest", [None, b"", b'{\n "format_version": 1,\n "ver'])
def test_a_first_save_that_was_interrupted_is_moved_aside(
    training_corpus, tmp_path, capsys, manifest
):
    folder = tmp_path / "run"
    path = save(folder)
    manifest_path(path).unlink()
    if manifest is not None:
        manifest_path(path).write_bytes(manifest)
    path.write_bytes(path.read_bytes()[:1000])
    train(training_corpus, folder, max_steps=2)
    assert newest_checkpoint(folder)[1]["step"] == 2
    assert "Skipped: checkpoint_a.pt has 1,000 bytes" in capsys.readouterr().out
    moved = [file.name for file in folder.glob("earlier-*/*.pt")]
    assert moved == ["checkpoint_a.pt"]


def test_one_damaged_checkpoint_with_a_whole_manifest_is_not_moved_aside(training_corpus, tmp_path):
    path = save(tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        train(training_corpus, tmp_path)


# --- what other versions and other files hold ----------------------------------------------


def rewrite(path, change):
    """Change a checkpoint's entries, and give it a manifest that fits."""
    entries = torch.load(path, weights_only=True)
    change(entries)
    torch.save(entries, path)
    manifest = json.loads(manifest_path(path).read_text())
    manifest |= {"size": path.stat().st_size, "sha256": sha256_of(path)}
    manifest["manifest_digest"] = manifest_digest(manifest)
    manifest_path(path).write_text(json.dumps(manifest))


@pytest.mark.parametrize("part", ["settings", "state"])
def test_a_name_that_a_later_version_wrote_is_refused_with_that_version(
    training_corpus, tmp_path, part
):
    train(training_corpus, tmp_path, max_steps=2)

    def change(entries):
        entries["version"] = "9.4.0"
        entries[part]["new_name"] = 3

    rewrite(tmp_path / "checkpoint_a.pt", change)
    with pytest.raises(CheckpointError, match="'new_name'.*version 9.4.0 wrote it: update"):
        train(training_corpus, tmp_path)


def test_resuming_from_the_best_weights_says_that_they_have_no_optimizer(training_corpus, tmp_path):
    train(training_corpus, tmp_path, max_steps=20)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("checkpoint_*")}
    with pytest.raises(CheckpointError, match="checkpoint_best.pt holds weights without an opt"):
        resume_training_from_checkpoint(tmp_path, "checkpoint_best.pt", device="cpu")
    assert {path.name: path.read_bytes() for path in tmp_path.glob("checkpoint_*")} == before


def test_the_best_has_its_own_step_losses_and_weights(training_corpus, tmp_path):
    """Steps 14 to 20 follow the first evaluation, so that the best is older than the save."""
    train(training_corpus, tmp_path / "one", max_steps=20, num_epochs=1)
    train(training_corpus, tmp_path / "two", max_steps=13, num_epochs=1)
    best = read_checkpoint(tmp_path / "one" / "checkpoint_best.pt")
    at_evaluation = read_checkpoint(tmp_path / "two" / "checkpoint_a.pt")
    assert best["global_step"] == best["state"]["global_step"] == 13
    assert best["tokens_seen"] == at_evaluation["tokens_seen"] == best["track_tokens_seen"][-1]
    assert best["val_losses"][-1] == best["best_val_loss"]
    assert same_bits(best, at_evaluation, ("model_state_dict", "val_losses", "train_losses"))
    assert newest_checkpoint(tmp_path / "one", "best")[1]["step"] == 13


def test_resuming_hashes_each_slot_once(training_corpus, tmp_path, monkeypatch):
    train(training_corpus, tmp_path, max_steps=40)
    hashed = []
    original = files.sha256_of

    def count(path):
        hashed.append(path.name)
        return original(path)

    monkeypatch.setattr(files, "sha256_of", count)
    train(training_corpus, tmp_path, max_steps=40)
    assert sorted(hashed) == ["checkpoint_a.pt", "checkpoint_b.pt"]


def test_fresh_starts_within_a_second_do_not_share_a_folder(training_corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(runs.time, "strftime", lambda *_: "earlier-20300101-000000")
    for steps in (1, 2, 3):
        train(training_corpus, tmp_path, max_steps=steps, fresh=True)
    found = {folder.name: newest_checkpoint(folder)[1]["step"] for folder in archives(tmp_path)}
    assert found == {"earlier-20300101-000000": 1, "earlier-20300101-000000-2": 2}
    assert newest_checkpoint(tmp_path)[1]["step"] == 3


def archives(folder):
    return sorted(folder.glob("earlier-*"))


@pytest.mark.parametrize("name", ["", None, 5])
def test_a_checkpoint_needs_a_name(tmp_path, name):
    """Without one, its file would take the place of the folder with all others."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious.txt").write_text("here")
    with pytest.raises(ValueError, match=f"checkpoint_file is {name!r}; it must be a path"):
        save_checkpoint(GPTModel(CONFIG), None, 0, 1, [], [], [], 0, tmp_path / "folder", name)
    assert (tmp_path / "folder" / "precious.txt").read_text() == "here"
