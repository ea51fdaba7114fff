"""Settings of a wrong kind or size are named in one sentence, before anything is written."""

import math
import os
from pathlib import Path

import pytest
import torch
from trainings import CONFIG, training_settings

from golpo.cli import main
from golpo.errors import TrainingError
from golpo.runs import resume_training_from_checkpoint, start_fresh_training, train_or_resume
from golpo.settings import Settings, make_settings


@pytest.mark.parametrize(
    "name, value",
    [
        ("data_path", 5),
        ("data_path", None),
        ("data_path", ""),
        ("data_path", b"stories.txt"),
        ("data_path", "a\0b"),
        ("checkpoint_dir", 5),
        ("checkpoint_dir", ""),
        ("checkpoint_dir", ["a"]),
        ("staging_dir", 5),
        ("start_from", 5),
        ("tokenizer", None),
        ("tokenizer", ""),
        ("fix_markers", "yes"),
        ("align_to_stories", None),
        ("accept_changes", 1),
        ("seed", 2**64),
        ("seed", -1),
        ("seed", "x"),
        ("beta2", 1),
        ("num_epochs", "3"),
        ("num_epochs", True),
        ("batch_size", math.nan),
        ("learning_rate", math.inf),
        ("sample_tokens", None),
        ("config", None),
        ("config", "laptop"),
    ],
)
def test_values_of_a_wrong_kind_are_named(tmp_path, training_corpus, name, value):
    """A form's empty field, a number for a path, a text for a switch."""
    settings = training_settings(training_corpus, tmp_path / "new")
    with pytest.raises(ValueError) as found:
        start_fresh_training(**{**settings, name: value})
    text = str(found.value)
    assert name in text and repr(value)[:20] in text and "\n" not in text
    assert not (tmp_path / "new").exists()


def test_empty_fields_of_optional_paths_count_as_none(tmp_path):
    settings = make_settings({"staging_dir": "", "start_from": "", "data_path": Path("a.txt")})
    assert (settings.staging_dir, settings.start_from) == (None, None)
    assert settings.data_path == "a.txt"
    assert Settings(seed=2**64 - 1).seed == 2**64 - 1


@pytest.mark.parametrize(
    "sizes",
    [{"vocab_size": 10**13}, {"emb_dim": 2 * 10**9}, {"context_length": 10**8}],
    ids=lambda sizes: next(iter(sizes)),
)
def test_a_model_that_no_memory_holds_is_refused_with_advice(tmp_path, training_corpus, sizes):
    """A: one sentence, and not PyTorch's words about its allocator."""
    settings = training_settings(training_corpus, tmp_path / "new", config={**CONFIG, **sizes})
    with pytest.raises(TrainingError, match="out of memory; choose a smaller model") as found:
        start_fresh_training(**settings)
    assert str(next(iter(sizes.values()))) in str(found.value)


def test_other_runtime_errors_keep_their_traceback(tmp_path, training_corpus, monkeypatch):
    def broken(*_):
        raise RuntimeError("a fault of the program")

    monkeypatch.setattr("golpo.runs.make_optimizer", broken)
    with pytest.raises(RuntimeError, match="a fault of the program"):
        start_fresh_training(**training_settings(training_corpus, tmp_path))


def test_the_command_line_names_used_up_memory(monkeypatch, capsys):
    """A: also where a person only generates."""

    def refuse(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.\nMore.")

    monkeypatch.setattr("golpo.inference.load_storyteller", refuse)
    with pytest.raises(SystemExit) as end:
        main(["generate", "--checkpoint", "bundled"])
    assert end.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("golpo: out of memory; choose a smaller model")


def test_a_folder_with_the_name_of_a_file_is_named(tmp_path, training_corpus):
    settings = training_settings(training_corpus, training_corpus)
    with pytest.raises(OSError, match="a file has the name of this folder") as found:
        start_fresh_training(**settings)
    assert found.value.filename == str(training_corpus)
    assert os.path.isfile(training_corpus)


def test_to_resume_or_not_is_said_in_the_right_kind(tmp_path, training_corpus):
    """fresh="no" is true, and would discard a training."""
    with pytest.raises(ValueError, match="fresh is 'no'; it must be True or False"):
        train_or_resume("no", **training_settings(training_corpus, tmp_path))
    with pytest.raises(ValueError, match="checkpoint_dir is 5; it must be a path"):
        resume_training_from_checkpoint(5)
    with pytest.raises(ValueError, match="checkpoint_dir is 5; it must be a path"):
        train_or_resume(checkpoint_dir=5)
