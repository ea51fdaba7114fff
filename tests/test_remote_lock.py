"""The lock in a folder that several machines see."""

import json
import multiprocessing
import time

import pytest

from golpo import remote_lock
from golpo.errors import CheckpointError
from golpo.remote_folder import RemoteFolder
from golpo.remote_lock import LOCK_FILE, RemoteLock


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "remote").mkdir()
    (tmp_path / "local").mkdir()
    return RemoteFolder(tmp_path / "remote", tmp_path / "local")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Seconds instead of minutes."""
    monkeypatch.setattr(RemoteLock, "HEARTBEAT", 0.05)
    monkeypatch.setattr(RemoteLock, "DEAD_AFTER", 0.5)


def lock_file(folder):
    return folder.path / LOCK_FILE


def written_by_another_machine(folder, age=0.0, **more):
    about = {
        "owner": "somebody",
        "machine": "elsewhere",
        "host": "colab-2",
        "pid": 1,
        "heartbeat": time.time() - age,
    }
    lock_file(folder).write_text(json.dumps(about | more))


def test_a_free_lock_is_taken_and_given_back(folder):
    lock = RemoteLock(folder)
    lock.acquire()
    assert json.loads(lock_file(folder).read_text())["owner"] == lock.owner
    with pytest.raises(CheckpointError, match="another training is writing to"):
        RemoteLock(folder).acquire()
    lock.release()
    other = RemoteLock(folder)
    other.acquire()
    other.release()


def test_the_owner_gives_signs_of_life_until_the_release(folder):
    lock = RemoteLock(folder)
    lock.acquire()
    heartbeats = set()
    limit = time.monotonic() + 20
    while len(heartbeats) < 3 and time.monotonic() < limit:
        heartbeats.add(lock.read().get("heartbeat"))
        time.sleep(0.01)
    assert len(heartbeats) >= 3
    lock.release()
    content = lock_file(folder).read_text()
    time.sleep(0.2)
    assert lock_file(folder).read_text() == content
    assert json.loads(content)["released"] is True


def test_a_living_owner_on_another_machine_is_noticed_within_a_heartbeat(folder, capsys):
    context = multiprocessing.get_context("fork")
    process = context.Process(target=live_elsewhere, args=(folder,))
    process.start()
    while not lock_file(folder).exists():
        time.sleep(0.01)
    time.sleep(0.1)
    started = time.monotonic()
    with pytest.raises(CheckpointError, match="another training is writing to .* last sign of"):
        RemoteLock(folder).acquire(wait=True)
    assert time.monotonic() - started < 10
    assert "Another session wrote to" in capsys.readouterr().out

    process.kill()
    process.join()
    lock = RemoteLock(folder)
    started = time.monotonic()
    lock.acquire(wait=True)
    assert time.monotonic() - started < 10
    assert "This one takes over" in capsys.readouterr().out
    assert lock.read()["owner"] == lock.owner
    lock.release()


def live_elsewhere(folder):
    remote_lock.this_machine = lambda: "elsewhere"
    RemoteLock(folder).acquire()
    time.sleep(100)


def test_a_dead_owner_on_another_machine_is_replaced_at_once_and_said(folder, capsys):
    written_by_another_machine(folder, age=200)
    lock = RemoteLock(folder)
    lock.acquire()
    output = capsys.readouterr().out
    assert "(on colab-2) has ended" in output and "This one takes over" in output
    assert lock.read()["owner"] == lock.owner
    lock.release()


def hold(folder, ready):
    RemoteLock(folder).acquire()
    ready.set()
    time.sleep(100)


def test_a_killed_owner_on_this_machine_is_replaced_at_once(folder, capsys, monkeypatch):
    monkeypatch.setattr(RemoteLock, "DEAD_AFTER", 1000)
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold, args=(folder, ready))
    process.start()
    assert ready.wait(30)
    with pytest.raises(CheckpointError, match="another training is writing"):
        RemoteLock(folder).acquire()
    process.kill()
    process.join()
    lock = RemoteLock(folder)
    lock.acquire()
    assert "This one takes over" in capsys.readouterr().out
    lock.release()


def test_a_lock_that_another_machine_has_taken_over_is_lost(folder):
    lock = RemoteLock(folder)
    lock.acquire()
    lock.check()
    written_by_another_machine(folder)
    with pytest.raises(CheckpointError, match="another training has taken over"):
        lock.check()
    lock.release()
    assert lock.read()["owner"] == "somebody"


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"[1]", b"{", b"{}", b"[" * 100_000])
def test_a_damaged_lock_file_is_replaced(folder, content):
    lock_file(folder).write_bytes(content)
    lock = RemoteLock(folder)
    lock.acquire()
    assert lock.read()["owner"] == lock.owner
    lock.release()


def test_clocks_that_differ_do_not_matter(folder, capsys):
    """The other machine's clock is an hour ahead, and it is dead."""
    written_by_another_machine(folder, age=-3600)
    lock = RemoteLock(folder)
    lock.acquire(wait=True)
    assert "This one takes over" in capsys.readouterr().out
    lock.release()


def test_the_late_word_of_a_training_that_has_ended_does_not_count(folder):
    """On a slow drive it may reach the lock file after the next training of this process did."""
    first, second = RemoteLock(folder), RemoteLock(folder)
    first.acquire()
    first.leave()
    second.acquire()
    first.write(released=True)
    second.check()
    assert second.read()["owner"] == second.owner
    second.release()
    first.release()
