"""Never lose a step: what kills, full disks, rot, liars and other trainings do to checkpoints, and what they
must not do. `pytest tests/test_checkpoints.py --long` runs the long forms and prints a table of the figures."""

import contextlib
import errno
import itertools
import json
import math
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

import golpo_utils as golpo

CONFIG = {"vocab_size": 300, "context_length": 16, "emb_dim": 16, "n_heads": 2, "n_layers": 1, "drop_rate": 0.2,
          "qkv_bias": False}
FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny models are slower on several threads, and so is the machine they share."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    words = "the old moon told a fox how rivers sleep under snow".split()
    stories = [" ".join(random.Random(i).choices(words, k=30)) for i in range(22)]
    path = tmp_path_factory.mktemp("corpus") / "stories.txt"
    path.write_text("".join(f"<|start|>\n{story}.\n<|end|>\n" for story in stories))
    return path


def settings(corpus, folder, **more):
    return dict(data_path=corpus, checkpoint_dir=folder, config=CONFIG, num_epochs=3, batch_size=4, learning_rate=3e-3,
                evals_per_epoch=3, sample_tokens=0, device="cpu", precision="fp32", compile="off", **more)


def train(corpus, folder, **more):
    """Train on from the newest checkpoint in `folder`, or from the beginning."""
    return golpo.train_or_resume(**{**settings(corpus, folder), "max_steps": None, **more})


def newest(folder, **more):
    found = golpo.newest_checkpoint(folder, **more)
    return None if found is None else golpo.read_checkpoint(found[0])


def bits(thing):
    """A nest of dicts, lists, tensors and numbers, down to its last bit, as something that == compares."""
    if isinstance(thing, torch.Tensor):
        return str(thing.dtype), tuple(thing.shape), thing.contiguous().numpy().tobytes()
    if isinstance(thing, dict):
        return {key: bits(value) for key, value in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [bits(value) for value in thing]
    return thing.hex() if isinstance(thing, float) else thing


LEARNED = ("model_state_dict", "optimizer_state_dict")
ALL = (*LEARNED, "train_losses", "val_losses", "track_tokens_seen", "tokens_seen", "global_step", "epoch")


def same_bits(one, other, keys=ALL):
    return all(bits(one[key]) == bits(other[key]) for key in keys)


class View:
    """What a training shows itself to: nothing but a call after each step."""

    def __init__(self, after_step):
        self.after_step = after_step

    def stepped(self, state):
        self.after_step(state.global_step)

    def start(self, *_):
        pass

    evaluated = sample = finish = start


@pytest.fixture
def after_step(monkeypatch):
    """Call a function with the number of steps done, after each."""
    return lambda call: monkeypatch.setattr(golpo, "pick_view", lambda: View(call))


@pytest.fixture(autouse=True)
def silent(after_step):
    after_step(lambda step: None)


@pytest.fixture(scope="module")
def uninterrupted(corpus, tmp_path_factory):
    """The last checkpoint of a training that nothing disturbed."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    train(corpus, folder)
    return newest(folder)


@pytest.fixture(scope="module")
def epoch(uninterrupted):
    """How many steps an epoch has, of the three."""
    assert 30 < uninterrupted["global_step"] // 3 < 40 and uninterrupted["global_step"] % 3 == 0
    return uninterrupted["global_step"] // 3


# --- exact resuming --------------------------------------------------------------------------

def test_resumed_equals_never_interrupted_to_the_last_bit(corpus, tmp_path, uninterrupted, epoch, long, record_figure):
    cuts = [[7], [epoch], [epoch + 7, 2 * epoch + 5]]
    if long:
        cuts += [[1], [epoch - 1], [epoch + 1], [2 * epoch], [3 * epoch - 1], [10, 11, 12], [epoch, 2 * epoch]]
    assert len(uninterrupted["val_losses"]) >= 9
    for stops in cuts:
        folder = tmp_path / "-".join(map(str, stops))
        for stop in [*stops, None]:
            train(corpus, folder, max_steps=stop)
        assert same_bits(newest(folder), uninterrupted), f"stopped at {stops}"
    record_figure("resumed against never interrupted, dropout on",
                  f"{len(cuts)} of {len(cuts)} cut points: 0 bits differ in weights, optimizer, losses")


def test_how_often_one_evaluates_changes_nothing(corpus, tmp_path, uninterrupted):
    train(corpus, tmp_path, evals_per_epoch=9, max_steps=50)
    train(corpus, tmp_path, evals_per_epoch=1, sample_tokens=5)
    resumed = newest(tmp_path)
    assert same_bits(resumed, uninterrupted, LEARNED)
    one, other = (dict(zip(run["track_tokens_seen"], run["val_losses"])) for run in (resumed, uninterrupted))
    shared = one.keys() & other.keys()
    assert len(shared) > 2 and all(one[tokens] == other[tokens] for tokens in shared)


def test_every_window_once_an_epoch_over_five_interruptions(corpus, tmp_path, monkeypatch, epoch, record_figure):
    seen, original = [], golpo.GPTDataset.batch

    def batch(self, windows, moved):
        seen.extend(int(window) for window in windows)
        return original(self, windows, moved)

    monkeypatch.setattr(golpo.GPTDataset, "batch", batch)
    for stop in (5, 20, epoch, 50, 2 * epoch + 20, None):
        train(corpus, tmp_path, max_steps=stop)
    windows = max(seen) + 1
    epochs = [Counter(seen[i:i + windows]) for i in range(0, len(seen), windows)]
    assert -(-windows // 4) == epoch
    assert epochs == [Counter(range(windows))] * 3
    record_figure("every window once an epoch, over 5 interruptions", "0 doubled, 0 missing")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_at_the_next_step(corpus, tmp_path, after_step, uninterrupted, number):
    after_step(lambda step: os.kill(os.getpid(), number) if step == 20 else None)
    with pytest.raises(SystemExit, match="143") if number == signal.SIGTERM else contextlib.nullcontext():
        train(corpus, tmp_path)
    assert newest(tmp_path)["global_step"] == 20
    after_step(lambda step: None)
    train(corpus, tmp_path)
    assert same_bits(newest(tmp_path), uninterrupted)


@pytest.mark.parametrize("name, value", [("config", {**CONFIG, "drop_rate": 0.1}), ("batch_size", 5), ("seed", 5),
                                         ("data_path", None), ("optimizer", "adamw")])
def test_what_changed_is_refused_by_name_or_accepted(corpus, tmp_path, name, value):
    if name == "data_path":
        value = tmp_path / "other.txt"
        value.write_text(corpus.read_text().replace("moon", "sun"))
    train(corpus, tmp_path / "run", max_steps=3)
    with pytest.raises(golpo.CheckpointError, match={"data_path": "corpus"}.get(name, name)):
        train(corpus, tmp_path / "run", **{name: value})
    train(corpus, tmp_path / "run", **{name: value}, max_steps=5, accept_changes=True)
    assert newest(tmp_path / "run")["global_step"] == 5


# --- killed ----------------------------------------------------------------------------------

def train_watched(corpus, folder, staging, writing, saved, step, seconds):
    """Train in a process of its own, which tells by shared numbers what it is doing: the step, the seconds that
    it takes to write a checkpoint where it is to last, whether that is going on, the last step so written."""
    torch.set_num_threads(1)
    golpo.pick_view = lambda: View(lambda number: setattr(step, "value", number))
    name = "copy_checkpoint" if staging else "save_checkpoint"
    original = getattr(golpo, name)

    def watched(*arguments, **more):
        writing.value, started = 1, time.monotonic()
        path = original(*arguments, **more) or arguments[0]
        seconds.value, writing.value = time.monotonic() - started, 0
        if path.name in golpo.SLOTS:
            saved.value = json.loads(golpo.marker_of(path).read_text())["step"]

    setattr(golpo, name, watched)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        train(corpus, folder, staging_dir=staging, num_epochs=1000, save_every_minutes=0.001)


def shared_numbers(processes):
    return [processes.Value(kind, 0, lock=False) for kind in "iiid"]


@pytest.fixture(scope="module")
def processes():
    return multiprocessing.get_context("fork")              # at once, for everything is imported already


def wait_for(condition, process):
    limit = time.monotonic() + 60
    while not condition():
        assert process.is_alive() and time.monotonic() < limit, "the training does not get on"
        time.sleep(0.0005)


@pytest.mark.parametrize("where", ["a local folder", "Drive"])
def test_kill_9_at_any_moment_leaves_a_whole_checkpoint(corpus, tmp_path, processes, long, record_figure, where):
    kills, during, lost, chance = (100 if long else 6), 0, [], random.Random(where)
    staging = tmp_path / "staging" if where == "Drive" else None
    writing, saved, step, seconds = numbers = shared_numbers(processes)
    for i in range(kills):
        before, step.value = saved.value, 0
        process = processes.Process(target=train_watched, args=(corpus, tmp_path, staging, *numbers))
        process.start()
        saves = chance.randrange(1, 4)                      # a few more of them, and then at any moment
        wait_for(lambda: saved.value > before and step.value and step.value >= before + saves, process)
        if i % 2:
            wait_for(lambda: writing.value, process)
        time.sleep(chance.uniform(0, 0.7 * seconds.value if i % 2 else 0.1))
        process.kill()
        process.join()
        during, writing.value = during + writing.value, 0
        if staging:
            shutil.rmtree(staging)                          # Colab's disk goes with the session
        found = golpo.newest_checkpoint(tmp_path)[1]["step"]
        assert saved.value <= found <= step.value + 1
        lost.append(step.value - found)
    last = saved.value + 20
    train(corpus, tmp_path, num_epochs=1000, max_steps=last)
    train(corpus, tmp_path / "never killed", num_epochs=1000, max_steps=last)
    assert same_bits(newest(tmp_path), newest(tmp_path / "never killed"))
    assert during >= 0.3 * kills
    record_figure(f"kill -9 at {kills} random moments, {during} of them while a checkpoint was written to {where}",
                  f"{kills} of {kills} go on from a whole checkpoint; no finished save lost (at most {max(lost)} steps "
                  f"since); after {last} steps 0 bits differ from never killed")


# --- damaged ---------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def two_slots(corpus, epoch, tmp_path_factory):
    """A folder with the checkpoints of an epoch's end (slot a) and of step 50 (slot b)."""
    folder = tmp_path_factory.mktemp("two slots")
    train(corpus, folder, max_steps=50)
    assert {golpo.verify_checkpoint(folder / name)["step"] for name in golpo.SLOTS} == {epoch, 50}
    return folder


DAMAGES = {
    "one bit flipped": lambda data, at, chance: data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1:],
    "a 4 KB hole": lambda data, at, chance: data[:at] + bytes(len(data[at:at + 4096])) + data[at + 4096:],
    "cut short": lambda data, at, chance: data[:at],
    "zeros at the end": lambda data, at, chance: data[:at] + bytes(len(data) - at),
}


def test_damage_is_noticed_and_named_and_the_older_slot_used(two_slots, epoch, tmp_path, capsys, long, record_figure):
    chance, places, noticed = random.Random(1), (200 if long else 12), 0
    folder = shutil.copytree(two_slots, tmp_path / "copy")
    target = folder / "checkpoint_b.pt"
    whole = target.read_bytes()
    for damage in DAMAGES.values():
        done = 0
        while done < places:
            damaged = damage(whole, chance.randrange(len(whole)), chance)
            if damaged != whole:                            # zeros over zeros are no damage
                target.write_bytes(damaged)
                path, marker = golpo.newest_checkpoint(folder)
                assert (path.name, marker["step"]) == ("checkpoint_a.pt", epoch)
                assert "Passed over: checkpoint_b.pt" in capsys.readouterr().out
                with pytest.raises(golpo.CheckpointError, match="checkpoint_b.pt"):
                    golpo.read_checkpoint(target)
                done, noticed = done + 1, noticed + 1
    record_figure("one bit flipped, a 4 KB hole, cut short, zeros at the end",
                  f"{noticed} of {4 * places} noticed, the older slot used, the file named")


def test_a_damaged_marker_never_passes_for_another(two_slots, epoch, tmp_path, long):
    chance = random.Random(2)
    folder = shutil.copytree(two_slots, tmp_path / "copy")
    for name in ("checkpoint_a.json", "checkpoint_b.json"):
        whole = (folder / name).read_bytes()
        for _ in range(300 if long else 60):
            at = chance.randrange(len(whole))
            (folder / name).write_bytes(whole[:at] + bytes([whole[at] ^ 1 << chance.randrange(8)]) + whole[at + 1:])
            path, marker = golpo.newest_checkpoint(folder)
            assert marker["step"] == (epoch if path.stem == "checkpoint_a" else 50)
            assert path.stem == "checkpoint_b" or name == "checkpoint_b.json"
        (folder / name).write_bytes(whole)


def test_when_all_are_bad_it_says_so_and_does_not_begin_anew(two_slots, tmp_path, corpus):
    folder = shutil.copytree(two_slots, tmp_path / "copy")
    for name in golpo.SLOTS:
        (folder / name).write_bytes(b"rot")
    with pytest.raises(golpo.CheckpointError, match="a.pt has 3 bytes.*b.pt has 3 bytes.*move them away"):
        train(corpus, folder)


def test_a_checkpoint_without_its_marker_was_never_finished(two_slots, epoch, tmp_path, capsys):
    folder = shutil.copytree(two_slots, tmp_path / "copy")
    (folder / "checkpoint_b.json").unlink()
    assert golpo.newest_checkpoint(folder)[1]["step"] == epoch
    assert "to which no marker fits: it was never finished" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="no marker"):
        assert golpo.read_checkpoint(folder / "checkpoint_b.pt")["global_step"] == 50


class Evil:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def pickles_that_run_code(folder):
    """Five files, each of which makes the file `canary` when it is unpickled by a reader that runs code."""
    canary = str(folder / "canary")
    state = {"model_state_dict": {}, "optimizer_state_dict": Evil(os.system, f"touch {canary}")}
    torch.save(state, folder / "inside.pt")
    torch.save(state, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    (folder / "raw.pt").write_bytes(pickle.dumps(Evil(exec, f"open({canary!r}, 'w')")))
    torch.save({"model_state_dict": {"weight": Evil(Path.touch, Path(canary))}}, folder / "method.pt")
    torch.save(Evil(eval, f"__import__('pathlib').Path({canary!r}).touch()"), folder / "whole.pt")
    return sorted(folder.glob("*.pt")), Path(canary)


def test_nothing_in_a_file_is_ever_run(tmp_path, record_figure):
    files, canary = pickles_that_run_code(tmp_path)
    for file in files:                                      # they do bite
        with contextlib.suppress(Exception):
            torch.load(file, weights_only=False)
        assert canary.exists(), file
        canary.unlink()
    model, ran = golpo.GPTModel(CONFIG), 0
    for file in files:
        for marked in (False, True):
            if marked:
                golpo.save_checkpoint(model, None, 0, 1, [], [], [], 0, tmp_path, "good.pt")
                marker = json.loads((tmp_path / "good.json").read_text())
                marker |= {"size": file.stat().st_size, "sha256": golpo.sha256_of(file)}
                file.with_suffix(".json").write_text(json.dumps({**marker, "seal": golpo.seal(marker)}))
            with pytest.raises(golpo.CheckpointError, match="code, which is never run"), \
                    pytest.warns(UserWarning) if not marked else contextlib.nullcontext():
                golpo.load_checkpoint(model, file)
            ran += canary.exists()
    assert ran == 0
    record_figure(f"pickles that would run code, {len(files)} kinds", f"{ran} run")


# --- disks that refuse -----------------------------------------------------------------------

def mounted(*arguments):
    """Run mount; skip if this machine does not let us."""
    if not shutil.which("mount") or subprocess.run(["mount", *arguments], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root on Linux, and a machine that lets it mount")


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 2 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted("-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place))
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_does_not_end_training_and_spares_the_last_checkpoint(corpus, small_disk, after_step, capsys, long,
                                                                           record_figure):
    levels, whole, failures = (20 if long else 5), 0, 0
    for level in range(levels):
        folder, filler = small_disk / f"run {level}", small_disk / "filler"

        def fill(step):
            if step == 20:
                room = 2 * (folder / golpo.SLOTS[0]).stat().st_size * level // (levels - 1)
                filler.write_bytes(bytes(max(0, shutil.disk_usage(small_disk).free - room)))

        after_step(fill)
        train(corpus, folder, save_every_minutes=0, max_steps=60)
        output = capsys.readouterr().out
        step = newest(folder)["global_step"]
        assert 19 <= step <= 60
        if step < 60:
            failures += 1
            assert f"Warning: no checkpoint was saved in '{folder}'" in output and "No space left on device" in output
        assert list(folder.glob("*.part")) == []
        whole += 1
        filler.unlink()
        train(corpus, folder, save_every_minutes=0, max_steps=62)
        assert newest(folder)["global_step"] == 62
        shutil.rmtree(folder)
    assert 0 < failures < levels
    record_figure(f"a disk filled to {levels} levels in mid-training ({failures} of them too full to save)",
                  f"{whole} of {levels}: the last checkpoint whole, training goes on, the warning names the folder")


def test_a_disk_that_turns_read_only_does_not_end_training(corpus, tmp_path, after_step, capsys):
    folder = tmp_path / "run"

    def freeze(step):
        if step == 20:
            mounted("--bind", str(folder), str(folder))
            mounted("-o", "remount,bind,ro", str(folder))

    after_step(freeze)
    try:
        train(corpus, folder, save_every_minutes=0, max_steps=60)
        assert 19 <= newest(folder)["global_step"] <= 20
        output = capsys.readouterr().out
        assert f"no checkpoint was saved in '{folder}'" in output and "Read-only file system" in output
        started = time.monotonic()
        with pytest.raises(OSError, match="can't be written|Read-only"):
            train(corpus, folder)
        assert time.monotonic() - started < 5
    finally:
        subprocess.run(["umount", "-l", str(folder)], stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.ENOTCONN, errno.EDQUOT])
def test_a_save_that_fails_warns_and_is_tried_again_soon(corpus, tmp_path, monkeypatch, after_step, capsys, number):
    fsync, failing = os.fsync, []

    def refuse(file):
        if failing:
            raise OSError(number, os.strerror(number))
        fsync(file)

    monkeypatch.setattr(os, "fsync", refuse)
    after_step(lambda step: failing.append(1) if step == 20 else failing.clear() if step == 50 else None)
    train(corpus, tmp_path, save_every_minutes=0, max_steps=55)
    output = capsys.readouterr().out
    assert str(tmp_path) in output and os.strerror(number) in output and "Training goes on" in output
    assert newest(tmp_path)["global_step"] == 55


def test_too_little_room_is_refused_before_training(corpus, tmp_path, monkeypatch):
    usage = shutil._ntuple_diskusage(10 ** 9, 10 ** 9 - 1000, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    started = time.monotonic()
    with pytest.raises(OSError, match="0.00 GB free of the.*make room, or choose another checkpoint_dir"):
        train(corpus, tmp_path)
    assert time.monotonic() - started < 5


# --- two at once -----------------------------------------------------------------------------

def test_a_second_training_is_refused_and_a_dead_one_s_lock_taken_over(corpus, tmp_path, processes, record_figure):
    numbers = shared_numbers(processes)
    first = processes.Process(target=train_watched, args=(corpus, tmp_path, None, *numbers))
    first.start()
    wait_for(lambda: numbers[1].value > 0, first)
    started = time.monotonic()
    with pytest.raises(golpo.CheckpointError, match=f"another training is writing to '{tmp_path}'"):
        train(corpus, tmp_path, num_epochs=1000)
    seconds = time.monotonic() - started
    assert first.is_alive() and seconds < 5
    first.kill()
    first.join()
    assert (tmp_path / ".lock").exists()
    train(corpus, tmp_path, num_epochs=1000, max_steps=numbers[0].value + newest(tmp_path)["global_step"] + 1)
    record_figure("two trainings in one folder",
                  f"the second refused after {seconds:.1f} s, a dead one's lock taken over")


# --- numbers that are none -------------------------------------------------------------------

def spoil(monkeypatch, when, by):
    """Multiply the gradient by `by` in the steps for which `when` holds."""
    original, steps = golpo.make_optimizer, itertools.count()

    def make_optimizer(model, settings):
        model.final_norm.scale.register_hook(lambda grad: grad * by if when(next(steps)) else grad)
        return original(model, settings)

    monkeypatch.setattr(golpo, "make_optimizer", make_optimizer)


def all_finite(checkpoint):
    tensors = [*checkpoint["model_state_dict"].values(),
               *(value for state in checkpoint["optimizer_state_dict"]["state"].values() for value in state.values())]
    return all(torch.isfinite(tensor).all() for tensor in [*tensors, torch.tensor(checkpoint["train_losses"])])


@pytest.mark.parametrize("by", [math.inf, math.nan])
def test_single_bad_gradients_are_skipped(corpus, tmp_path, monkeypatch, by):
    spoil(monkeypatch, lambda step: step % 5 == 2, by)
    train(corpus, tmp_path)
    checkpoint = newest(tmp_path)
    assert all_finite(checkpoint) and checkpoint["val_losses"][-1] < checkpoint["val_losses"][0]


@pytest.mark.parametrize("by", [math.inf, math.nan])
def test_too_many_bad_gradients_stop_it_and_say_what_to_change(corpus, tmp_path, monkeypatch, by, record_figure):
    spoil(monkeypatch, lambda step: step >= 40, by)
    with pytest.raises(golpo.TrainingError, match="learning_rate.*precision") as caught:
        train(corpus, tmp_path, save_every_minutes=0)
    assert "gave no finite gradient" in str(caught.value)
    for name in golpo.SLOTS:
        checkpoint = golpo.read_checkpoint(tmp_path / name)
        assert all_finite(checkpoint) and checkpoint["global_step"] < 40 + 2 * golpo.MOST_SKIPS
    record_figure(f"gradients that are {by} from step 40 on", f"stopped at the first check after {golpo.MOST_SKIPS} skipped "
                  f"steps, saying what to change; no checkpoint holds a NaN")


def test_weights_that_are_no_numbers_are_not_saved(tmp_path, capsys):
    model = golpo.GPTModel(CONFIG)
    with golpo.CheckpointKeeper(tmp_path) as keeper:
        assert keeper.save(model, None, 0, 1, [], [], [], 0)
        model.pos_emb.weight.data[3, 2] = math.nan
        assert not keeper.save(model, None, 0, 2, [], [], [], 0)
    assert "'pos_emb.weight' hold NaN or infinity at step 2" in capsys.readouterr().out
    assert golpo.newest_checkpoint(tmp_path)[1]["step"] == 1


def test_out_of_memory_halves_the_micro_batch_and_nothing_else(corpus, tmp_path, monkeypatch, capsys, record_figure):
    config = {**CONFIG, "drop_rate": 0.0}
    train(corpus, tmp_path / "roomy", config=config, batch_size=8)
    forward, sizes = golpo.GPTModel.forward, []

    def cramped(self, idx, *more, **named):
        if self.training:
            if idx.shape[0] > 2:
                raise torch.OutOfMemoryError("no room for that")
            sizes.append(idx.shape[0])
        return forward(self, idx, *more, **named)

    capsys.readouterr()
    monkeypatch.setattr(golpo.GPTModel, "forward", cramped)
    train(corpus, tmp_path / "cramped", config=config, batch_size=8)
    lines = [line for line in capsys.readouterr().out.splitlines() if "Out of memory" in line]
    assert set(sizes) <= {1, 2} and len(lines) == 2 and "2 windows at once" in lines[1]     # 8 → 4 → 2
    roomy, cramped = newest(tmp_path / "roomy"), newest(tmp_path / "cramped")
    weights = zip(roomy["model_state_dict"].values(), cramped["model_state_dict"].values())
    apart = max((one - other).abs().max() for one, other in weights)
    losses = max(abs(one - other) for one, other in zip(roomy["val_losses"], cramped["val_losses"]))
    assert losses < 1e-6 and apart < 1e-5
    record_figure("out of memory (raised by hand)",
                  f"micro-batch 8 → 2, losses within {losses:.0e}, one line for each halving")


# --- Drive -----------------------------------------------------------------------------------

class Drive:
    """What stands in for google.colab.drive; `fails` tells how many mounts are refused."""

    def __init__(self, mount_point, fails=0):
        self.mount_point, self.fails, self.mounts = mount_point, fails, []

    def mount(self, mount_point, force_remount=False):
        self.mounts.append(force_remount)
        if len(self.mounts) <= self.fails:
            raise ValueError("mount failed")
        (Path(mount_point) / "MyDrive").mkdir(parents=True, exist_ok=True)

    def flush_and_unmount(self):
        pass


@pytest.fixture
def colab(tmp_path, monkeypatch):
    """Make this machine look like Colab; return what opens a storage there."""
    package = tmp_path / "site" / "google" / "colab"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    for name in [name for name in sys.modules if name == "google" or name.startswith("google.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(golpo, "PROJECT", tmp_path / "project")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def colab(fails=0):
        import google.colab
        drive = Drive(tmp_path / "drive", fails)
        monkeypatch.setattr(google.colab, "drive", drive, raising=False)
        monkeypatch.setitem(sys.modules, "google.colab.drive", drive)
        colab.drive = drive
        return golpo.open_storage(mount_point=str(tmp_path / "drive"))
    return colab


def train_there(corpus, storage, **more):
    """Train in a storage and end as the notebook does: with the best model, and Drive flushed."""
    train(corpus, storage.checkpoint_dir, staging_dir=storage.staging_dir, **more)
    model, _, about = golpo.load_storyteller(storage.checkpoint_dir, which="best", staging=storage.staging_dir)
    golpo.flush_drive()
    return about


def new_session(storage):
    shutil.rmtree(storage.staging_dir)


def test_drive_that_works_holds_everything_for_the_next_session(corpus, tmp_path, colab, uninterrupted):
    storage = colab()
    assert storage.lasting and tmp_path / "drive" in storage.checkpoint_dir.parents
    assert storage.staging_dir.parent == tmp_path
    train_there(corpus, storage, max_steps=40)
    new_session(storage)
    train_there(corpus, storage)
    assert same_bits(newest(storage.checkpoint_dir), uninterrupted)
    metrics = [json.loads(line) for line in (storage.checkpoint_dir / "metrics.jsonl").read_text().splitlines()]
    assert [record["val_loss"] for record in metrics] == uninterrupted["val_losses"]
    names = {file.name for file in storage.checkpoint_dir.iterdir()}
    whole = {f"checkpoint_{slot}.{ending}" for slot in ("a", "b", "best") for ending in ("pt", "json")}
    assert names == {*whole, "metrics.jsonl", ".probe"}


@pytest.mark.parametrize("fails, lasting", [(1, True), (99, False)])
def test_drive_that_refuses_to_mount_is_asked_twice_and_then_done_without(corpus, epoch, colab, capsys, fails, lasting):
    storage = colab(fails)
    assert colab.drive.mounts == [False, True] and storage.lasting == lasting
    assert ("NOTHING WILL OUTLIVE THIS SESSION" in capsys.readouterr().out) != lasting
    train_there(corpus, storage)
    assert newest(storage.checkpoint_dir)["global_step"] == 3 * epoch


@pytest.mark.parametrize("comes_back", [False, True])
def test_drive_that_fails_after_a_while_does_not_end_training(corpus, epoch, tmp_path, colab, monkeypatch, after_step,
                                                              capsys, comes_back):
    storage, now = colab(), [0]

    def flaky_open(path, mode="r", **more):
        gone = 20 <= now[0] and not (comes_back and now[0] >= 80)
        if gone and str(path).startswith(str(tmp_path / "drive")):
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected", str(path))
        return open(path, mode, **more)

    monkeypatch.setattr(golpo, "open", flaky_open, raising=False)
    after_step(lambda step: (now.append(step), now.pop(0)))
    about = train_there(corpus, storage, save_every_minutes=0)
    output = capsys.readouterr().out
    assert "Transport endpoint is not connected" in output and str(storage.checkpoint_dir) in output
    assert newest(storage.checkpoint_dir, staging=storage.staging_dir)["global_step"] == 3 * epoch
    assert about["path"].exists()
    monkeypatch.undo()
    on_drive = newest(storage.checkpoint_dir)["global_step"]
    assert on_drive == 3 * epoch if comes_back else 0 < on_drive <= 21


def test_a_failed_copy_never_costs_the_last_good_one_on_drive(corpus, tmp_path, colab, monkeypatch):
    storage = colab()
    train_there(corpus, storage, max_steps=15)
    good = newest(storage.checkpoint_dir)["global_step"]
    copy = shutil.copyfileobj

    def half_a_copy(reader, writer, length=0):
        writer.write(reader.read(1000))
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(shutil, "copyfileobj", half_a_copy)
    model = golpo.GPTModel(CONFIG)
    with golpo.CheckpointKeeper(storage.checkpoint_dir, storage.staging_dir) as keeper:
        keeper.go_on_after(golpo.newest_checkpoint(storage.checkpoint_dir)[0])
        for step in range(16, 21):
            assert keeper.save(model, None, 0, step, [], [], [], 0) and keeper.at_rest.wait(60)
            assert newest(storage.checkpoint_dir)["global_step"] == good
        monkeypatch.setattr(shutil, "copyfileobj", copy)
    assert newest(storage.checkpoint_dir)["global_step"] == 20


@pytest.mark.parametrize("what", ["truncated", "unmarked", "twins"])
def test_drive_that_holds_something_else_than_was_written(corpus, epoch, colab, capsys, uninterrupted, what):
    storage = colab()
    train_there(corpus, storage, max_steps=50)
    new_session(storage)
    newer = golpo.newest_checkpoint(storage.checkpoint_dir)[0]
    capsys.readouterr()
    if what == "truncated":
        os.truncate(newer, newer.stat().st_size // 2)
    elif what == "unmarked":
        golpo.marker_of(newer).unlink()
    else:
        for file in (newer, golpo.marker_of(newer)):
            file.rename(file.with_stem(file.stem + " (1)"))
    train_there(corpus, storage)
    output = capsys.readouterr().out
    assert (f"Passed over: {newer.name}" in output) == (what != "twins")
    assert ("Going on from" in output) and (f"step {epoch}." in output) == (what != "twins")
    assert same_bits(newest(storage.checkpoint_dir), uninterrupted)


def test_slow_drive_does_not_hold_up_training(corpus, epoch, colab, monkeypatch, after_step, record_figure):
    storage, copy, steps_during_copies, copying = colab(), shutil.copyfileobj, [], []

    def slow_copy(reader, writer, length=0):
        copying.append(1)
        time.sleep(0.3)
        copy(reader, writer)
        copying.pop()

    monkeypatch.setattr(shutil, "copyfileobj", slow_copy)
    after_step(lambda step: steps_during_copies.append(step) if copying else None)
    train_there(corpus, storage, save_every_minutes=0)
    assert len(steps_during_copies) > 20
    assert newest(storage.checkpoint_dir)["global_step"] == 3 * epoch
    record_figure("stand-in Drive: slow",
                  f"{len(steps_during_copies)} of {3 * epoch} steps done while a copy was under way")


def test_drive_that_hangs_is_not_waited_for_forever_and_costs_no_step(corpus, epoch, colab, monkeypatch, capsys):
    storage, original = colab(), golpo.CheckpointKeeper.__init__
    monkeypatch.setattr(golpo.CheckpointKeeper, "__init__", lambda self, *places: original(self, *places, patience=0.5))
    released = threading.Event()
    monkeypatch.setattr(shutil, "copyfileobj", lambda *files: released.wait(120))
    about = train_there(corpus, storage)
    assert not released.is_set() and "is slow" in capsys.readouterr().out
    assert about["global_step"] == newest(storage.staging_dir)["global_step"] == 3 * epoch
    released.set()


def test_a_fresh_start_does_not_resume_what_an_earlier_training_left_behind(corpus, tmp_path, colab):
    storage = colab()
    train_there(corpus, storage, max_steps=50)
    train(corpus, storage.checkpoint_dir, staging_dir=storage.staging_dir, max_steps=5, fresh=True)
    assert newest(storage.checkpoint_dir, staging=storage.staging_dir)["global_step"] == 5


def test_flushing_drive_takes_bounded_time_and_tells_the_truth(colab, capsys):
    colab()
    golpo.flush_drive()
    assert "everything is uploaded" in capsys.readouterr().out
    colab.drive.flush_and_unmount = lambda: time.sleep(3)
    golpo.flush_drive(timeout=0.1)
    assert "still uploading after 0.1 seconds" in capsys.readouterr().out

    def refuse():
        raise ValueError("no Drive")

    colab.drive.flush_and_unmount = refuse
    golpo.flush_drive()
    assert "may not have uploaded everything (no Drive)" in capsys.readouterr().out


# --- formats ---------------------------------------------------------------------------------

def test_a_version_1_checkpoint_loads_and_trains_on(tmp_path, capsys):
    """tests/fixtures/checkpoint_v1.* was written by the first release of the format: start_fresh_training on
    checkpoint_v1.txt with the config it holds, batch_size=4, num_epochs=4, seed=123, paused by max_steps=6; slot a."""
    for file in FIXTURES.glob("checkpoint_v1.*"):
        shutil.copy(file, tmp_path)
    checkpoint = golpo.read_checkpoint(tmp_path / "checkpoint_v1.pt")
    marker = json.loads((tmp_path / "checkpoint_v1.json").read_text())
    assert checkpoint["format_version"] == marker["format_version"] == 1
    assert checkpoint["global_step"] == marker["step"] == 6
    model, _, about = golpo.load_storyteller(tmp_path / "checkpoint_v1.pt")
    raw = torch.load(FIXTURES / "checkpoint_v1.pt", weights_only=True)
    assert bits(model.state_dict()) == bits(raw["model_state_dict"]) and about["val_losses"] == raw["val_losses"]
    golpo.resume_training_from_checkpoint(tmp_path, "checkpoint_v1.pt", data_path=tmp_path / "checkpoint_v1.txt",
                                          max_steps=None)
    gone_on, printed = newest(tmp_path), capsys.readouterr().out
    assert gone_on["global_step"] > 6 and "Going on from checkpoint_v1.pt, step 6" in printed and "anew" not in printed
    # By the rules of its day: AdamW, whose count of steps goes on, and windows that stay where they are.
    assert {state["step"].item() for state in gone_on["optimizer_state_dict"]["state"].values()} == {gone_on["global_step"]}
    assert (gone_on["settings"]["optimizer"], gone_on["settings"]["moving_windows"]) == ("adamw", False)


def test_a_later_format_asks_for_a_later_program(two_slots, tmp_path, monkeypatch):
    folder = shutil.copytree(two_slots, tmp_path / "copy")
    monkeypatch.setattr(golpo, "FORMAT_VERSION", 0)
    with pytest.raises(golpo.CheckpointError, match="format version 1, newer than 0; update golpo_utils.py"):
        golpo.newest_checkpoint(folder)
