"""Another machine saves while a training is being set up: noticed, and nothing is lost."""

import shutil

import pytest
from trainings import newest, same_bits, train

from golpo import runs, slots
from golpo.checkpoint import SLOTS
from golpo.errors import CheckpointError
from golpo.files import list_folder

pytestmark = pytest.mark.usefixtures("one_thread", "silent")


def save_from_elsewhere(source, folder):
    """What another machine's copying does."""
    for path in list_folder(source):
        if path.stem in {slot.removesuffix(".pt") for slot in SLOTS}:
            shutil.copy(path, folder / path.name)


@pytest.fixture
def elsewhere(training_corpus, tmp_path):
    """A folder with the same training's next 30 steps."""
    folder = tmp_path / "checkpoints"
    train(training_corpus, folder, max_steps=20)
    shutil.copytree(folder, tmp_path / "elsewhere")
    train(training_corpus, tmp_path / "elsewhere", max_steps=50)
    return tmp_path / "elsewhere"


@pytest.mark.parametrize("staged", [False, True], ids=["local", "staged"])
def test_a_save_between_reading_and_locking_is_noticed(
    training_corpus, tmp_path, elsewhere, monkeypatch, staged
):
    folder = tmp_path / "checkpoints"
    more = {"staging_dir": tmp_path / "staging"} if staged else {}
    read = runs.read_checkpoint
    seen = []

    def read_then_save(path, **keywords):
        checkpoint = read(path, **keywords)
        seen.append(path)
        save_from_elsewhere(elsewhere, folder)
        return checkpoint

    monkeypatch.setattr(runs, "read_checkpoint", read_then_save)
    with pytest.raises(CheckpointError, match="another training saved checkpoint_.* run this"):
        train(training_corpus, folder, **more)
    assert seen
    assert same_bits(newest(folder), newest(elsewhere))
    monkeypatch.undo()
    train(training_corpus, folder, max_steps=60, **more)
    assert newest(folder, staging=more.get("staging_dir"))["global_step"] == 60


def test_a_first_save_while_a_fresh_training_starts_is_noticed(
    training_corpus, tmp_path, elsewhere, monkeypatch
):
    folder = tmp_path / "new"
    folder.mkdir()
    look = runs.newest_checkpoint
    seen = []

    def look_then_save(*arguments, **keywords):
        found = look(*arguments, **keywords)
        seen.append(found)
        save_from_elsewhere(elsewhere, folder)
        return found

    monkeypatch.setattr(runs, "newest_checkpoint", look_then_save)
    with pytest.raises(CheckpointError, match="another training saved"):
        train(training_corpus, folder)
    assert seen == [None]
    assert same_bits(newest(folder), newest(elsewhere))


def test_a_drive_that_did_not_answer_at_first_is_no_other_machine(
    training_corpus, tmp_path, elsewhere, monkeypatch
):
    """What stood on it before is unknown, so nobody else is blamed for it."""
    read = slots.watched
    refused = []

    def refuse_once(path, work):
        if not refused:
            refused.append(path)
            raise TimeoutError(5, "the drive does not answer", str(path))
        return read(path, work)

    monkeypatch.setattr(slots, "watched", refuse_once)
    train(training_corpus, elsewhere, max_steps=60)
    assert refused == [elsewhere]
    assert newest(elsewhere)["global_step"] == 60
