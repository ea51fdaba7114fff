"""The command learn, from a file of choices to an adapter that `golpo generate` uses."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import write_stories

from golpo.choices import CHOICES_FILE, Choice, append_choice
from golpo.cli import main
from golpo.huggingface import export_hf
from golpo.inference import load_storyteller
from golpo.learn_command import validation_stories
from golpo_utils import GPTModel, get_tokenizer

PROJECT = Path(__file__).resolve().parent.parent
CONFIG = {
    "vocab_size": 300,
    "context_length": 64,
    "emb_dim": 32,
    "n_heads": 2,
    "n_layers": 1,
    "drop_rate": 0.1,
    "qkv_bias": False,
}


@pytest.fixture
def checkpoint(tmp_path) -> str:
    """The folder of a tiny model."""
    torch.manual_seed(3)
    export_hf(GPTModel(CONFIG), get_tokenizer(300), tmp_path / "model")
    return str(tmp_path / "model")


def choose(folder: Path, number: int) -> None:
    for n in range(number):
        append_choice(folder, Choice([f"an owl {n}<|end|>", f"mud {n}<|end|>"], liked=0))


def test_from_choices_to_a_story(checkpoint, tmp_path, capsys):
    choose(tmp_path, 12)
    with open(tmp_path / CHOICES_FILE, "a") as file:
        file.write('{"stories": ["torn')
    corpus = write_stories(tmp_path / "stories.txt")
    folder = ["--folder", str(tmp_path), "--data-path", str(corpus)]
    main(["learn", "--checkpoint", checkpoint, *folder])
    said = capsys.readouterr().out
    assert "12 choices in choices.jsonl; 1 line skipped" in said
    assert "learning: 50%" in said or "learning: 51%" in said or "learning: 52%" in said
    assert "Learned from 10 choices" in said and "Of 2 choices kept aside" in said
    losses = re.search(r"Loss on stories of the corpus: (\S+) before, (\S+) after", said)
    assert 5 < float(losses[1]) < 6.5
    assert float(losses[2]) < 6.5
    assert f"--adapter '{tmp_path / 'taste-1'}'" in said
    flags = ["--checkpoint", checkpoint, "--max-new-tokens", "20", "--seed", "1"]
    main(["generate", *flags, "--adapter", str(tmp_path / "taste-1")])
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("number", [0, 9])
def test_too_few_choices_get_one_sentence(checkpoint, tmp_path, capsys, number):
    choose(tmp_path / "output", number)
    with pytest.raises(SystemExit) as ended:
        main(["learn", "--checkpoint", checkpoint, "--folder", str(tmp_path / "output")])
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.count("\n") == 1 and f"{number} choices" in error and "at least 10" in error
    assert not list(tmp_path.glob("output/taste*"))


def test_the_stories_for_the_loss_are_validation_stories(checkpoint, tmp_path, capsys):
    _, tokenizer, about = load_storyteller(checkpoint)
    corpus = write_stories(tmp_path / "stories.txt", count=80)
    stories = validation_stories(about, tokenizer, str(corpus))
    assert len(stories) == 8 and all(story in corpus.read_text() for story in stories)
    about["settings"] = {"data_path": str(tmp_path / "gone.txt")}
    assert validation_stories(about, tokenizer) == []
    assert "gone.txt" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError):
        validation_stories(about, tokenizer, str(tmp_path / "gone.txt"))


def test_ctrl_c_ends_with_one_sentence_and_without_an_adapter(checkpoint, tmp_path):
    choose(tmp_path, 300)
    command = [sys.executable, "-m", "golpo", "learn", "--checkpoint", checkpoint]
    process = subprocess.Popen(
        [*command, "--folder", tmp_path], cwd=PROJECT, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for line in process.stdout:
        if line.startswith("learning:"):
            break
    process.send_signal(2)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.strip().splitlines()[-1] == "golpo: interrupted"
    assert not list(tmp_path.glob("taste*"))
