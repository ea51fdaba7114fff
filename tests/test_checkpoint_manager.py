"""Disks and drives that refuse, and two trainings at once: training continues, nothing is lost."""

import contextlib
import errno
import math
import os
import shutil
import signal
import subprocess
import threading
import time

import pytest
import torch
from standin_drive import StandInDrive
from trainings import CONFIG, WatchedTraining, newest, same_bits, train

from golpo import files, remote_lock, runs
from golpo.checkpoint import BEST, SLOTS, newest_checkpoint
from golpo.checkpoint_manager import CheckpointManager
from golpo.errors import CheckpointError
from golpo.manifest import manifest_path
from golpo.metrics import METRICS_FILE, read_records
from golpo.remote_copy import RemoteCopy
from golpo.remote_lock import RemoteLock
from golpo_utils import GPTModel

pytestmark = pytest.mark.usefixtures("one_thread", "silent")


def save_step(manager, step, model=None, **more):
    """Save a training of a tiny model at `step`; return whether that worked."""
    return manager.save(model or GPTModel(CONFIG), None, **progress(step), **more)


def progress(step):
    """What a checkpoint says about a training at `step`."""
    lists = {name: [] for name in ("train_losses", "val_losses", "track_tokens_seen")}
    return {"epoch": 0, "global_step": step, "tokens_seen": 0, **lists}


# --- disks that refuse ---------------------------------------------------------------------


def mount_or_skip(*arguments):
    """Run mount; skip the test if this machine does not allow it."""
    allowed = shutil.which("mount") is not None
    if not allowed or subprocess.run(["mount", *arguments], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root on Linux, and a machine that allows it")


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount_or_skip("-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder))
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def train_on_a_full_disk(corpus, disk, share, after_step, capsys):
    """Fill the disk at step 20 but for `share` of what a save needs; return the step saved last."""
    folder = disk / "run"
    filler = disk / "filler"

    def fill(step):
        if step == 20:
            room = int(2 * (folder / SLOTS[0]).stat().st_size * share)
            filler.write_bytes(bytes(max(0, shutil.disk_usage(disk).free - room)))

    after_step(fill)
    train(corpus, folder, save_every_minutes=0, max_steps=60)
    output = capsys.readouterr().out
    step = newest(folder)["global_step"]
    assert 19 <= step <= 60
    if step < 60:
        assert f"Warning: no checkpoint was saved in '{folder}'" in output
        assert "No space left on device" in output
    assert list(folder.glob("*.part")) == []
    filler.unlink()
    train(corpus, folder, save_every_minutes=0, max_steps=62)
    assert newest(folder)["global_step"] == 62
    shutil.rmtree(folder)
    return step


def test_a_full_disk_does_not_end_training_and_keeps_the_last_checkpoint(
    training_corpus, small_disk, after_step, capsys
):
    steps = [
        train_on_a_full_disk(training_corpus, small_disk, share, after_step, capsys)
        for share in (0, 0.25, 0.5, 1)
    ]
    assert steps[0] < 60 and steps[-1] == 60


@pytest.mark.slow
def test_a_disk_that_is_full_to_random_levels_does_not_end_training(
    training_corpus, small_disk, after_step, capsys, chance, record_figure
):
    shares = [chance.uniform(0, 1.2) for _ in range(30)]
    steps = [
        train_on_a_full_disk(training_corpus, small_disk, share, after_step, capsys)
        for share in shares
    ]
    full = sum(step < 60 for step in steps)
    assert 0 < full < len(steps)
    record_figure(
        f"a disk filled to {len(steps)} random levels during training, {full} too full to save",
        f"{len(steps)} of {len(steps)}: the last checkpoint good, a warning, training continues",
    )


def test_a_disk_that_becomes_read_only_does_not_end_training(
    training_corpus, tmp_path, after_step, capsys
):
    folder = tmp_path / "run"

    def freeze(step):
        if step == 20:
            mount_or_skip("--bind", str(folder), str(folder))
            mount_or_skip("-o", "remount,bind,ro", str(folder))

    after_step(freeze)
    try:
        train(training_corpus, folder, save_every_minutes=0, max_steps=60)
        assert 19 <= newest(folder)["global_step"] <= 20
        output = capsys.readouterr().out
        assert f"no checkpoint was saved in '{folder}'" in output
        assert "Read-only file system" in output
        started = time.monotonic()
        with pytest.raises(OSError, match="Read-only"):
            train(training_corpus, folder)
        assert time.monotonic() - started < 5
    finally:
        subprocess.run(["umount", "-l", str(folder)], stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.ENOTCONN, errno.EDQUOT])
def test_a_save_that_fails_warns_and_is_tried_again_soon(
    training_corpus, tmp_path, monkeypatch, after_step, capsys, number
):
    fsync = os.fsync
    failing = []

    def refuse(file):
        if failing:
            raise OSError(number, os.strerror(number))
        fsync(file)

    def change(step):
        if step == 20:
            failing.append(1)
        if step == 50:
            failing.clear()

    monkeypatch.setattr(os, "fsync", refuse)
    after_step(change)
    train(training_corpus, tmp_path, save_every_minutes=0, max_steps=55)
    output = capsys.readouterr().out
    assert str(tmp_path) in output and os.strerror(number) in output
    assert "Training continues" in output
    assert newest(tmp_path)["global_step"] == 55


def test_too_little_room_is_refused_before_training(training_corpus, tmp_path, monkeypatch):
    asked = []

    def almost_full(folder):
        asked.append(folder)
        return shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000)

    monkeypatch.setattr(shutil, "disk_usage", almost_full)
    started = time.monotonic()
    with pytest.raises(OSError, match="0.00 GB free of the.*make room, or choose another"):
        train(training_corpus, tmp_path)
    assert asked and time.monotonic() - started < 5


def test_weights_that_are_not_finite_are_not_saved(tmp_path, capsys):
    model = GPTModel(CONFIG)
    with CheckpointManager(tmp_path) as manager:
        assert save_step(manager, 1, model)
        model.pos_emb.weight.data[3, 2] = math.nan
        assert not save_step(manager, 2, model)
    assert "'pos_emb.weight' hold NaN or infinity at step 2" in capsys.readouterr().out
    assert newest_checkpoint(tmp_path)[1]["step"] == 1


def test_slots_take_turns_and_the_best_is_beside_them(tmp_path):
    model = GPTModel(CONFIG)
    zeros = {name: torch.zeros_like(weight) for name, weight in model.state_dict().items()}
    best = {"weights": zeros, **progress(2)}
    with CheckpointManager(tmp_path) as manager:
        for step in (1, 2, 3):
            assert save_step(manager, step, model, best=best if step == 3 else None)
    steps = [newest_checkpoint(tmp_path)[1]["step"]]
    (tmp_path / SLOTS[0]).unlink()
    steps.append(newest_checkpoint(tmp_path)[1]["step"])
    assert steps == [3, 2]
    path, manifest = newest_checkpoint(tmp_path, "best")
    assert (path.name, manifest["step"]) == (BEST, 2)


# --- two at once ---------------------------------------------------------------------------


def test_a_second_training_is_refused_and_the_lock_of_a_dead_one_is_taken_over(
    training_corpus, tmp_path
):
    first = WatchedTraining()
    first.start(training_corpus, tmp_path)
    first.wait_for(lambda: first.saved.value > 0)
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=f"another training is writing to '{tmp_path}'"):
        train(training_corpus, tmp_path, num_epochs=1000)
    assert first.process.is_alive() and time.monotonic() - started < 5
    first.kill()
    assert (tmp_path / ".lock").exists()
    last = newest(tmp_path)["global_step"] + 1
    train(training_corpus, tmp_path, num_epochs=1000, max_steps=last)
    assert newest(tmp_path)["global_step"] == last


# --- a remote folder -----------------------------------------------------------------------


@pytest.fixture
def drive(tmp_path, monkeypatch):
    """A mounted stand-in for Google Drive, whose faults this process meets."""
    drive = StandInDrive(tmp_path / "google", tmp_path / "drive")
    drive.install_faults(monkeypatch.setattr)
    drive.mount(drive.mount_point)
    drive.checkpoints = drive.mount_point / "MyDrive" / "Golpo" / "gpt_checkpoints"
    drive.checkpoints.mkdir(parents=True)
    drive.staging = tmp_path / "staging"
    return drive


def train_on(drive, corpus, **more):
    return train(corpus, drive.checkpoints, staging_dir=drive.staging, **more)


def start_new_session(drive):
    """Colab's disk ends with the session."""
    shutil.rmtree(drive.staging)


def test_drive_has_everything_for_the_next_session(training_corpus, drive, uninterrupted):
    train_on(drive, training_corpus, max_steps=40)
    start_new_session(drive)
    train_on(drive, training_corpus)
    assert same_bits(newest(drive.checkpoints), uninterrupted)
    records = read_records(drive.checkpoints / METRICS_FILE)
    assert [record["val_loss"] for record in records] == uninterrupted["val_losses"]
    names = {path.name for path in drive.checkpoints.iterdir()}
    slots = {f"checkpoint_{slot}.{end}" for slot in ("a", "b", "best") for end in ("pt", "json")}
    assert slots | {METRICS_FILE} <= names


@pytest.mark.parametrize("returns", [False, True])
def test_a_drive_that_fails_during_training_does_not_end_it(
    training_corpus, epoch, drive, after_step, capsys, returns
):
    def change(step):
        if step == 20:
            drive.set_faults(gone=errno.ENOTCONN)
        if step == 80 and returns:
            drive.set_faults()

    after_step(change)
    train_on(drive, training_corpus, save_every_minutes=0)
    output = capsys.readouterr().out
    assert "Transport endpoint is not connected" in output
    assert str(drive.checkpoints) in output
    found = newest(drive.checkpoints, staging=drive.staging)
    assert found["global_step"] == 3 * epoch
    drive.set_faults()
    on_drive = newest(drive.checkpoints)["global_step"]
    assert on_drive == 3 * epoch if returns else 0 < on_drive <= 21


def test_a_copy_that_fails_never_costs_the_last_good_checkpoint_on_drive(training_corpus, drive):
    train_on(drive, training_corpus, max_steps=15)
    good = newest(drive.checkpoints)["global_step"]
    assert good == 15
    with CheckpointManager(drive.checkpoints, drive.staging) as manager:
        manager.resume_from(newest_checkpoint(drive.checkpoints)[0])
        for step in range(16, 21):
            drive.set_faults(room=1000)
            assert save_step(manager, step)
            assert manager.remote.copy_idle.wait(60)
            assert manager.remote.failed
            drive.set_faults()
            assert newest(drive.checkpoints)["global_step"] == good
    assert newest(drive.checkpoints)["global_step"] == 20


@pytest.mark.parametrize("what", ["cut short", "without manifest", "renamed"])
def test_drive_that_returns_something_else_than_was_written(
    training_corpus, epoch, drive, capsys, uninterrupted, what
):
    train_on(drive, training_corpus, max_steps=50)
    start_new_session(drive)
    newer = newest_checkpoint(drive.checkpoints)[0]
    capsys.readouterr()
    if what == "cut short":
        os.truncate(newer, newer.stat().st_size // 2)
    elif what == "without manifest":
        manifest_path(newer).unlink()
    else:
        for file in (newer, manifest_path(newer)):
            file.rename(file.with_stem(file.stem + " (1)"))
    train_on(drive, training_corpus)
    output = capsys.readouterr().out
    assert (f"Skipped: {newer.name}" in output) == (what != "renamed")
    resumed = 50 if what == "renamed" else epoch
    assert "Resuming from checkpoint_" in output and f", step {resumed}." in output
    assert same_bits(newest(drive.checkpoints), uninterrupted)


@pytest.fixture
def managers(monkeypatch):
    """The managers that trainings make. timeout: for how long they wait for the last copy."""

    def make(folder, staging):
        made.append(CheckpointManager(folder, staging, copy_timeout=made.timeout))
        return made[-1]

    class Managers(list):
        timeout = 600

    made = Managers()
    monkeypatch.setattr(runs, "CheckpointManager", make)
    return made


def test_a_slow_drive_does_not_delay_training(training_corpus, epoch, drive, after_step, managers):
    steps_during_copies = []

    def note(step):
        if not managers[-1].remote.copy_idle.is_set():
            steps_during_copies.append(step)

    drive.set_faults(seconds=0.1)
    after_step(note)
    train_on(drive, training_corpus, save_every_minutes=0)
    assert len(steps_during_copies) > 20
    assert newest(drive.checkpoints)["global_step"] == 3 * epoch


def test_a_drive_that_hangs_does_not_delay_the_end_and_costs_no_step(
    training_corpus, epoch, drive, managers, after_step, capsys
):
    managers.timeout = 0.5
    after_step(lambda step: drive.set_faults(hangs=True) if step == 5 else None)
    started = time.monotonic()
    train_on(drive, training_corpus)
    assert time.monotonic() - started < 30
    copies = managers[-1].remote
    assert not copies.copy_idle.is_set()
    assert "is slow" in capsys.readouterr().out
    assert newest(drive.staging)["global_step"] == 3 * epoch
    drive.set_faults()
    assert copies.copy_idle.wait(60)
    assert newest(drive.checkpoints)["global_step"] == 3 * epoch


def test_a_fresh_start_does_not_resume_what_an_earlier_training_left(training_corpus, drive):
    train_on(drive, training_corpus, max_steps=50)
    train_on(drive, training_corpus, max_steps=5, fresh=True)
    found = newest(drive.checkpoints, staging=drive.staging)
    assert found["global_step"] == 5


# --- a drive that goes and returns ---------------------------------------------------------


@pytest.fixture(autouse=True)
def mount_points(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MOUNT_POINTS", {tmp_path / "drive"})


def test_after_an_unmount_nothing_is_made_in_its_place_and_training_continues(
    training_corpus, epoch, drive, after_step, capsys
):
    after_step(lambda step: drive.unmount() if step == 20 else None)
    train_on(drive, training_corpus, save_every_minutes=0)
    output = capsys.readouterr().out
    assert "the drive is not mounted; mount it again" in output
    assert f"step {3 * epoch} is only in '{drive.staging}'" in output
    assert drive.is_clean()
    assert newest(drive.staging)["global_step"] == 3 * epoch

    drive.mount(drive.mount_point)  # the next mount is not refused
    assert 0 < newest(drive.checkpoints)["global_step"] <= 21
    train_on(drive, training_corpus)
    assert newest(drive.checkpoints)["global_step"] == 3 * epoch


def test_a_drive_that_is_mounted_again_gets_what_it_missed(
    training_corpus, epoch, drive, after_step, uninterrupted
):
    def change(step):
        if step == 20:
            drive.unmount()
        if step == 60:
            drive.mount(drive.mount_point)

    after_step(change)
    train_on(drive, training_corpus, save_every_minutes=0)
    assert drive.is_mounted()
    assert same_bits(newest(drive.checkpoints), uninterrupted)
    records = read_records(drive.checkpoints / METRICS_FILE)
    assert [record["val_loss"] for record in records] == uninterrupted["val_losses"]


def test_training_again_after_the_notebooks_last_cell_resumes_from_the_staging_folder(
    training_corpus, drive, capsys
):
    train_on(drive, training_corpus, max_steps=40)
    drive.flush_and_unmount()
    train_on(drive, training_corpus, max_steps=50)
    output = capsys.readouterr().out
    assert "is out of reach (the drive is not mounted; mount it again)" in output
    assert newest(drive.staging)["global_step"] == 50
    assert drive.is_clean()


def test_a_fresh_training_is_refused_while_the_drive_is_out_of_reach(
    training_corpus, drive, tmp_path
):
    train_on(drive, training_corpus, max_steps=40)
    before = drive.files_on_drive()
    drive.unmount()
    with pytest.raises(CheckpointError, match="not mounted.*mount the drive again"):
        train_on(drive, training_corpus, fresh=True)
    shutil.rmtree(drive.staging)
    with pytest.raises(CheckpointError, match="not mounted; mount it again"):
        train_on(drive, training_corpus)
    assert drive.is_clean()
    drive.mount(drive.mount_point)
    assert drive.files_on_drive() == before


def test_a_drive_that_cannot_be_listed_is_not_taken_for_an_empty_one(training_corpus, drive):
    train_on(drive, training_corpus, max_steps=40)
    before = drive.files_on_drive()
    start_new_session(drive)
    drive.set_faults(unlistable=errno.EIO)
    with pytest.raises(CheckpointError, match="cannot be read .Input/output error"):
        train_on(drive, training_corpus)
    drive.set_faults()
    assert drive.files_on_drive() == before
    train_on(drive, training_corpus, max_steps=41)
    assert newest(drive.checkpoints)["global_step"] == 41


def test_a_last_checkpoint_whose_earlier_copy_is_slow_still_reaches_the_drive(
    training_corpus, epoch, drive, managers, after_step, capsys
):
    managers.timeout = 0.2
    after_step(lambda step: drive.set_faults(hangs=True) if step == epoch - 1 else None)
    train_on(drive, training_corpus, max_steps=epoch + 5)  # the epoch's end is being copied
    copies = managers[-1].remote
    assert not copies.copy_idle.is_set()
    assert f"until it ends, step {epoch + 5} is only in" in capsys.readouterr().out
    drive.set_faults()
    assert copies.copy_idle.wait(60)
    assert newest(drive.checkpoints)["global_step"] == epoch + 5
    assert "The last checkpoint has now been copied" in capsys.readouterr().out


def test_three_interrupts_while_the_drive_is_slow_do_not_leave_the_folder_locked(
    training_corpus, drive, managers, after_step, monkeypatch
):
    ended = threading.Event()

    def interrupt():
        """The first ends the training, the others the waiting for the copy."""
        os.kill(os.getpid(), signal.SIGINT)
        while not ended.wait(0.6):
            os.kill(os.getpid(), signal.SIGINT)

    def stop(step):
        if step == 20:
            drive.set_faults(hangs=True)
            threading.Thread(target=interrupt, daemon=True).start()

    after_step(stop)
    with pytest.raises(KeyboardInterrupt):
        train_on(drive, training_corpus, save_every_minutes=0)
        time.sleep(3)
    ended.set()
    with contextlib.suppress(KeyboardInterrupt):
        time.sleep(1)
    managers.timeout = 0.2
    monkeypatch.setattr(RemoteCopy, "PROBE_TIMEOUT", 0.3)
    after_step(lambda step: None)
    train_on(drive, training_corpus, max_steps=30)
    assert newest(drive.staging)["global_step"] == 30
    drive.set_faults()
    assert managers[-1].remote.copy_idle.wait(60)
    assert newest(drive.checkpoints)["global_step"] == 30


def test_a_drive_that_hangs_from_the_start_does_not_hang_the_training(
    training_corpus, drive, managers, monkeypatch, capsys
):
    train_on(drive, training_corpus, max_steps=10)
    monkeypatch.setattr(RemoteCopy, "PROBE_TIMEOUT", 0.3)
    drive.set_faults(hangs=True)
    managers.timeout = 0.3
    train_on(drive, training_corpus, max_steps=20)
    assert "the drive does not answer" in capsys.readouterr().out
    assert newest(drive.staging)["global_step"] == 20
    drive.set_faults()
    assert managers[-1].remote.copy_idle.wait(60)
    assert newest(drive.checkpoints)["global_step"] == 20


def test_copies_of_an_earlier_training_do_not_reach_a_fresh_one(
    training_corpus, drive, managers, after_step
):
    managers.timeout = 0.2
    after_step(lambda step: drive.set_faults(hangs=True) if step == 20 else None)
    train_on(drive, training_corpus, max_steps=50, save_every_minutes=0)
    assert not managers[-1].remote.copy_idle.is_set()
    drive.set_faults(seconds=0.01)
    managers.timeout = 60
    train_on(drive, training_corpus, max_steps=5, fresh=True)
    assert managers[0].remote.copy_idle.wait(60)
    assert newest(drive.checkpoints)["global_step"] == 5


def test_two_machines_on_one_drive_do_not_overwrite_each_other(
    training_corpus, drive, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(RemoteLock, "HEARTBEAT", 0.1)
    monkeypatch.setattr(RemoteLock, "DEAD_AFTER", 1.0)
    first = WatchedTraining()
    with monkeypatch.context() as patch:
        patch.setattr(remote_lock, "this_machine", lambda: "another machine")
        first.start(training_corpus, drive.checkpoints, tmp_path / "staging of the first")
    first.wait_for(lambda: first.saved.value > 0)
    with pytest.raises(CheckpointError, match="another training is writing to"):
        train_on(drive, training_corpus, num_epochs=1000)
    assert first.process.is_alive()
    first.kill()
    capsys.readouterr()
    last = newest(drive.checkpoints)["global_step"] + 5
    train_on(drive, training_corpus, num_epochs=1000, max_steps=last)
    assert "This one takes over" in capsys.readouterr().out
    assert newest(drive.checkpoints)["global_step"] == last


def test_a_machine_that_was_taken_for_dead_stops_copying(drive, monkeypatch, capsys):
    with CheckpointManager(drive.checkpoints, drive.staging) as manager:
        assert save_step(manager, 1) and manager.remote.copy_idle.wait(60)
        other = RemoteLock(manager.remote.folder)
        monkeypatch.setattr(RemoteLock, "DEAD_AFTER", -1000.0)
        monkeypatch.setattr(remote_lock, "this_machine", lambda: "another machine")
        other.acquire()
        before = drive.files_on_drive()
        assert save_step(manager, 2) and manager.remote.copy_idle.wait(60)
        assert manager.remote.failed
    assert "another training has taken over this folder" in capsys.readouterr().out
    assert drive.files_on_drive() == before
    assert newest(drive.staging)["global_step"] == 2
    other.release()


@pytest.mark.parametrize("error", [MemoryError, RuntimeError, KeyError, RecursionError])
def test_whatever_goes_wrong_in_a_save_does_not_end_the_training(
    training_corpus, tmp_path, monkeypatch, after_step, capsys, error
):
    raised = []
    original = torch.save

    def refuse(*arguments):
        if len(raised) < 30:
            raised.append(1)
            raise error("no room")
        return original(*arguments)

    monkeypatch.setattr(torch, "save", refuse)
    train(training_corpus, tmp_path, save_every_minutes=0, max_steps=50)
    assert len(raised) == 30
    assert "no checkpoint was saved" in capsys.readouterr().out
    assert newest(tmp_path)["global_step"] == 50


def test_a_best_that_cannot_be_saved_does_not_cost_the_slot(tmp_path, capsys):
    model = GPTModel(CONFIG)
    bad = {"weights": {"weight": torch.tensor([math.nan])}, **progress(1)}
    best = {"weights": model.state_dict(), **progress(1)}
    with CheckpointManager(tmp_path) as manager:
        assert not save_step(manager, 1, model, best=bad)
        assert "no checkpoint was saved" in capsys.readouterr().out
        assert newest_checkpoint(tmp_path)[1]["step"] == 1
        assert save_step(manager, 1, model, best=best)
    assert newest_checkpoint(tmp_path, "best")[0].name == BEST


def test_folders_with_the_names_of_our_files_block_nothing(training_corpus, drive, epoch):
    drive.staging.mkdir()
    names = [METRICS_FILE, ".lock", ".probe", ".remote", "training.lock"]
    names += [f"checkpoint_{slot}.json" for slot in ("a", "b", "best")]
    names += [*SLOTS, BEST, "checkpoint_a.part", "checkpoint_b.json.part"]
    for folder in (drive.staging, drive.checkpoints):
        for name in names:
            (folder / name).mkdir()
    train_on(drive, training_corpus, max_steps=20)
    train_on(drive, training_corpus)
    assert newest(drive.checkpoints)["global_step"] == 3 * epoch
