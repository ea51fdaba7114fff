"""The command line: what it understands, prints, refuses and returns; mostly as a process."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import torch
from helpers import TINY_CONFIG, write_stories

from golpo import commands
from golpo.cli import COMMANDS, error_sentence, main
from golpo.commands import ModelFlags, comments_of, complete_config
from golpo.settings import PRESETS, Settings
from golpo_utils import GPT_CONFIG_124M, check_config

PROJECT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(PROJECT),
    "PYTHONIOENCODING": "utf-8",
}
GOLPO = [sys.executable, "-m", "golpo"]


def golpo(*arguments, cwd=PROJECT, launcher=GOLPO, **environment):
    """Run the command line and wait for its end."""
    return subprocess.run(
        [*launcher, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=240,
        env=ENVIRONMENT | environment,
    )


@pytest.fixture
def flags(tmp_path):
    """Flags of a training that takes seconds."""
    corpus = write_stories(tmp_path / "stories.txt")
    model = {**TINY_CONFIG, "vocab_size": 300}
    texts = [f"--config.{name.replace('_', '-')}={value}" for name, value in model.items()]
    texts = [text for text in texts if "qkv-bias" not in text] + ["--config.qkv-bias"]
    return [
        *texts,
        f"--data-path={corpus}",
        f"--checkpoint-dir={tmp_path / 'checkpoints'}",
        "--device=cpu",
        "--precision=fp32",
        "--batch-size=4",
        "--num-epochs=2",
        "--sample-tokens=0",
    ]


def call(capsys, *arguments):
    """Run the command line in this process."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return subprocess.CompletedProcess(arguments, end.value.code or 0, printed.out, printed.err)


def assert_one_sentence(done, code: int, *words: str) -> None:
    """The process ended with this code, and stderr is one line with these words."""
    assert done.returncode == code, done.stderr[-2000:]
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr[-2000:]
    assert lines[0].startswith("golpo: ")
    for word in words:
        assert word in lines[0], lines[0]


def test_it_trains_resumes_generates_measures_and_exports(flags, tmp_path):
    checkpoints = tmp_path / "checkpoints"
    first = golpo("train", *flags, "--max-steps=3")
    assert "Starting a fresh training." in first.stdout, first.stderr[-2000:]
    second = golpo("train", "--checkpoint-dir", checkpoints)
    assert "Resuming from checkpoint_" in second.stdout, second.stderr[-2000:]
    assert second.returncode == 0

    generated = golpo("generate", "--checkpoint", checkpoints, "--max-new-tokens=20", "--seed=1")
    assert generated.returncode == 0, generated.stderr[-2000:]
    assert generated.stdout.strip()
    again = golpo("generate", "--checkpoint", checkpoints, "--max-new-tokens=20", "--seed=1")
    assert again.stdout == generated.stdout

    figures = tmp_path / "figures.json"
    few = ["--stories=3", "--max-new-tokens=30"]
    measured = golpo("evaluate", "--checkpoint", checkpoints, *few, "--output", figures)
    assert measured.returncode == 0, measured.stderr[-2000:]
    assert json.loads(figures.read_text(encoding="utf-8"))["stories"] == 3
    compared = golpo("evaluate", "--checkpoint", checkpoints, *few, "--compare-with", figures)
    assert compared.stdout.split("\n")[0].split() == ["generated", "figures", "reference"]

    exported = golpo("export", "--checkpoint", checkpoints, "--output", tmp_path / "exported")
    assert exported.returncode == 0, exported.stderr[-2000:]
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    assert model.config.n_embd == TINY_CONFIG["emb_dim"]


def test_two_processes_of_torchrun_train_one_model(flags, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = golpo("train", *flags, launcher=[*torchrun, "--nproc-per-node=2", "-m", "golpo"])
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("Starting a fresh training.") == 1
    checkpoint = torch.load(tmp_path / "checkpoints" / "checkpoint_best.pt", weights_only=True)
    assert checkpoint["global_step"] > 0


def test_values_have_the_type_of_their_setting(flags, tmp_path):
    """1.10 is a folder's name, not the number 1.1; booleans have a flag for yes and one for no."""
    flags = [flag for flag in flags if not flag.startswith("--checkpoint-dir")]
    more = ["--checkpoint-dir", "1.10", "--no-align-to-stories", "--max-steps", "1"]
    done = golpo("train", *flags, *more, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    checkpoint = torch.load(tmp_path / "1.10" / "checkpoint_a.pt", weights_only=True)
    settings = checkpoint["settings"]
    assert settings["align_to_stories"] is False
    assert settings["shift_windows"] is True
    assert settings["max_steps"] == 1
    assert checkpoint["config"]["qkv_bias"] is True
    assert checkpoint["config"]["emb_dim"] == TINY_CONFIG["emb_dim"]


def test_single_parts_of_the_model_replace_those_of_the_preset_or_the_checkpoint(tmp_path):
    corpus = write_stories(tmp_path / "stories.txt")
    place = ["--data-path", corpus, "--checkpoint-dir", tmp_path / "new", "--sample-tokens=0"]
    small = ["--config.emb-dim=64", "--config.n-layers=1", "--config.vocab-size=300"]
    done = golpo("train", "--preset=laptop", *place, *small, "--max-steps=1")
    assert done.returncode == 0, done.stderr[-2000:]
    done = golpo("train", *place, "--config.drop-rate=0.3", "--max-steps=2", "--accept-changes")
    assert "Resuming from" in done.stdout, done.stderr[-2000:]
    checkpoint = torch.load(tmp_path / "new" / "checkpoint_b.pt", weights_only=True)
    expected = {**PRESETS["laptop"]["config"], "emb_dim": 64, "n_layers": 1, "vocab_size": 300}
    for key, value in expected.items():
        assert checkpoint["config"][key] == (0.3 if key == "drop_rate" else value)


def test_widths_of_a_preset_that_equal_its_embedding_follow_it():
    narrow = complete_config({"emb_dim": 96}, GPT_CONFIG_124M)
    assert narrow["key_dim"] == narrow["val_dim"] == 96
    own = complete_config({"emb_dim": 96, "key_dim": 48}, GPT_CONFIG_124M)
    assert own["key_dim"] == 48 and own["val_dim"] == 96


def test_the_help_explains_every_setting_in_the_words_of_its_comment():
    shown = golpo("train", "--help", COLUMNS="300")
    assert shown.returncode == 0
    text = " ".join(re.sub(r"[│╭╰─╮╯]", " ", shown.stdout).split())
    comments = comments_of(Settings)
    for one in fields(Settings):
        if one.name != "config":
            assert f"--{one.name.replace('_', '-')}" in text, one.name
            assert comments[one.name] in text, one.name
    for key in check_config(GPT_CONFIG_124M):
        assert f"--config.{key.replace('_', '-')}" in text
    assert set(ModelFlags.__annotations__) == set(check_config(GPT_CONFIG_124M))


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_a_help(command, capsys):
    done = call(capsys, command, "--help")
    assert done.returncode == 0
    assert f"usage: golpo {command}" in done.stdout
    assert not done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--num-epochs", "many"], ["--num-epochs", "many", "golpo train --help"]),
        (["train", "--num-epochs", "0"], ["num_epochs is 0"]),
        (["train", "--num-epoch", "3"], ["--num-epoch", "perhaps you meant --num-epochs"]),
        (["train", "--precision", "fp8"], ["fp8", "bf16"]),
        (["train", "--config.emb-dim", "7"], ["emb_dim", "7"]),
        (["train", "--preset", "huge"], ["huge", "laptop"]),
        (["generate", "--checkpoint", "bundled", "--temperature", "-1"], ["temperature is -1"]),
        (["generate", "--genre", "Ghost story", "--prompt", "Once"], ["--genre", "--title"]),
        (["generate", "--checkpoint=bundled", "--num-beams=0"], ["num_beams is 0"]),
        (["generate", "--length-penalty=2"], ["length_penalty is 2.0", "num_beams"]),
        (["export"], ["--output"]),
        (["trian"], ["trian", "golpo --help"]),
    ],
    ids=" ".join,
)
def test_wrong_input_is_answered_in_one_sentence(arguments, words, capsys):
    assert_one_sentence(call(capsys, *arguments), 2, *words)


def test_a_missing_checkpoint_is_named_and_so_is_the_way_out(tmp_path, capsys):
    done = call(capsys, "generate", "--checkpoint", tmp_path / "nowhere")
    assert_one_sentence(done, 1, "nowhere", "bundled")


def test_figures_that_are_none_are_named(flags, tmp_path):
    golpo("train", *flags, "--max-steps=1")
    (tmp_path / "other.json").write_text("{}", encoding="utf-8")
    checkpoint = ["--checkpoint", tmp_path / "checkpoints"]
    done = golpo("evaluate", *checkpoint, "--compare-with", tmp_path / "other.json")
    assert_one_sentence(done, 2, "other")


def test_the_bundled_model_is_known_in_every_folder(tmp_path):
    done = golpo("generate", "--checkpoint=bundled", "--max-new-tokens=30", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.split()) > 5
    assert not list(tmp_path.iterdir())


def test_a_title_and_a_genre_begin_the_story():
    flags = ["--checkpoint=bundled", "--max-new-tokens=10", "--seed=1", "--title=The Mill"]
    done = golpo("generate", *flags)
    assert done.stdout.startswith("The Mill\n\n"), done.stdout
    done = golpo("generate", *flags, "--genre=Ghost story")
    assert done.stdout.startswith("Ghost story: The Mill\n\n"), done.stdout


def test_verbose_speaks_on_stderr_only():
    flags = ["--checkpoint=bundled", "--max-new-tokens=20", "--seed=3"]
    quiet = golpo("generate", *flags)
    verbose = golpo("generate", *flags, "--verbose")
    assert quiet.stderr == ""
    assert verbose.stdout == quiet.stdout
    for words in ("seed 3", "temperature 0.9", "parameters on", "tokens/s"):
        assert words in verbose.stderr
    # How each product is computed here: the output head's, for one story and for several.
    for rows in ("1 row", "8 rows"):
        assert re.search(rf"{rows} × 384 → 4096: (plain|chunked)", verbose.stderr), verbose.stderr
    assert "matrix products: 8-bit" in golpo("generate", *flags, "--verbose", "--quantize").stderr


def test_beams_give_one_story_whatever_the_seed():
    flags = ["--checkpoint=bundled", "--max-new-tokens=20", "--title=The Mill", "--num-beams=2"]
    done = golpo("generate", *flags, "--seed=1", "--verbose")
    assert done.stdout.startswith("The Mill\n\n"), done.stdout + done.stderr
    assert len(done.stdout.split()) > 8
    assert "num_beams 2" in done.stderr
    assert "temperature" not in done.stderr
    assert golpo("generate", *flags, "--seed=2").stdout == done.stdout


def test_a_closed_pipe_ends_it_quietly():
    command = [*GOLPO, "generate", "--checkpoint=bundled", "--max-new-tokens=400", "--seed=1"]
    process = subprocess.Popen(
        command, cwd=PROJECT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.read(5)
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(60) in (0, 141)
    assert errors == b""


def interrupt(process, ready) -> tuple[str, str]:
    """Send Ctrl-C to a process when `ready()`, and wait for its end."""
    deadline = time.monotonic() + 60
    while not ready():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    return process.communicate(timeout=60)


def start(*arguments) -> subprocess.Popen:
    return subprocess.Popen(
        [*GOLPO, *map(str, arguments)],
        cwd=PROJECT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_control_c_while_generating_ends_it_with_one_sentence():
    process = start("generate", "--checkpoint=bundled", "--max-new-tokens=100000", "--seed=1")
    assert process.stdout.read(5)
    _, errors = interrupt(process, lambda: True)
    assert process.returncode == 130
    assert errors.strip() == "golpo: interrupted"


def test_control_c_while_training_saves_first(flags, tmp_path):
    process = start("train", *flags, "--num-epochs=10000")
    metrics = tmp_path / "checkpoints" / "metrics.jsonl"
    printed, errors = interrupt(process, metrics.exists)
    assert process.returncode == 130, errors[-2000:]
    assert "and saved" in printed
    assert "Traceback" not in errors
    assert "Resuming from" in golpo("train", *flags, "--max-steps=1").stdout


def test_a_console_without_the_letters_shows_question_marks():
    flags = ["generate", "--checkpoint=bundled", "--max-new-tokens=5", "--prompt=মিরা said “yes”"]
    done = golpo(*flags, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("???? said ?yes?")


def test_a_model_cannot_send_commands_to_the_terminal(monkeypatch, capsys):
    """It may have learned escape sequences, which clear the screen or worse."""
    pieces = ["The \x1b[2J", "owl\x07", " saw\x1b", "]0;title\x07 it.\n"]
    monkeypatch.setattr(commands, "stream_story", lambda *_, **__: iter(pieces))
    main(["generate", "--checkpoint=bundled"])
    printed = capsys.readouterr().out
    assert printed.startswith("The owl saw")
    assert not {"\x1b", "\x07"} & set(printed)


def test_a_warning_is_one_line_like_an_error(tmp_path):
    (tmp_path / "junk.pt").write_bytes(b"no checkpoint")
    done = golpo("generate", "--checkpoint", tmp_path / "junk.pt")
    warning, error = done.stderr.splitlines()
    assert warning.startswith("golpo: junk.pt has no manifest beside it")
    assert error.startswith("golpo: junk.pt cannot be read") and done.returncode == 1


def test_the_old_command_answers_with_the_new_one():
    done = golpo("train", launcher=[sys.executable, "golpo_utils.py"])
    assert done.returncode == 1
    assert "python -m golpo train" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "box",
    [
        "╭─ Value error ─╮\n│ Error parsing --a:  │\n│ no number │\n│ ───── │\n│ more │\n╰──╯",
        " Value error \n ------- \n  Error parsing --a:\n  no number \n ------\n  more \n\n",
    ],
    ids=["UTF-8", "ASCII"],
)
def test_boxes_of_the_parser_become_sentences(box):
    sentence = error_sentence(box, ["train", "--a"])
    assert sentence == "Error parsing --a: no number; see `golpo train --help`"


def test_defaults_in_the_help_are_those_of_the_settings():
    shown = golpo("train", "--help", COLUMNS="300").stdout
    settings = asdict(Settings())
    line = next(line for line in shown.splitlines() if "--grad-clip" in line)
    assert f"(default: {settings['grad_clip']})" in line
