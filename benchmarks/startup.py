"""How long a person waits before anything happens: from Run all to the first step, and the rest.

    python benchmarks/startup.py                  # all of it: about five minutes on two cores
    python benchmarks/startup.py import resume    # only lines whose name holds one of these words
    python benchmarks/startup.py --json startup.json

Each line is a process of its own, timed from its start to the moment that the person waits for, so
nothing is warm but the disk. Installing and training are not in it. The median of three runs is
shown, and the slowest.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from machine import PROJECT, print_machine

LIMIT = 5.0  # seconds; what is slower is to be mended, except for installing and training

# What every program below ends with: it notes the moment, and stops without any work at the end.
DONE = """
def done():
    import os, time
    with open(os.environ["GOLPO_MOMENT"], "w") as file:
        file.write(str(time.time()))
        file.flush()
        os._exit(0)
"""
HELP = """
from golpo.cli import main
try:
    main({arguments})
except SystemExit:
    pass
"""
# The moment at which the first step begins: from then on it is training.
FIRST_STEP = """
from golpo import trainer
def train_step(self):
    done()
trainer.Trainer.train_step = train_step
"""
TRAIN = FIRST_STEP + "import golpo\ngolpo.train_or_resume(checkpoint_dir={folder!r})"
# A checkpoint after one step, for the lines that resume it.
MAKE_CHECKPOINT = """
from pathlib import Path
from golpo.runs import start_fresh_training
from golpo.settings import find_preset
settings = find_preset({preset!r}) | {{"batch_size": 2, "sample_tokens": 0, "max_steps": 1}}
if not Path({folder!r}).exists():
    start_fresh_training(**settings | {{"checkpoint_dir": {folder!r}}})
"""
FIRST_WORD = """
from golpo.inference import load_storyteller
from golpo_utils import stream_story
model, tokenizer, about = load_storyteller({source!r})
next(stream_story(model, tokenizer, seed=1))
"""
FIRST_PIECE = """
from golpo import stories
def stream_story(*arguments, real=stories.stream_story, **settings):
    next(real(*arguments, **settings))
    done()
stories.stream_story = stream_story
"""
# A notebook's cells up to the one that holds the given words, as Run all runs them.
NOTEBOOK = """
import nbformat
from nbclient import NotebookClient
notebook = nbformat.read({path!r}, as_version=4)
code = [cell for cell in notebook.cells if cell.cell_type == "code"]
last = next(n for n, cell in enumerate(code) if {words!r} in cell.source)
notebook.cells = code[: last + 1]
for cell in notebook.cells:
    cell.source = cell.source.replace("open_storage()", "open_storage({folder!r})")
last = notebook.cells[last]
last.source = {done!r} + {before!r} + last.source + "\\ndone()"
resources = {{"metadata": {{"path": {notebooks!r}}}}}
NotebookClient(notebook, timeout=600, resources=resources).execute()
"""


@dataclass
class Wait:
    """One thing that a person waits for."""

    name: str
    code: str  # a Python program
    prepare: str = ""  # another one, which runs before and is not timed


def make_waits(folder: str) -> list[Wait]:
    """All lines of the table; `folder` is theirs to write in."""
    laptop, large = f"{folder}/laptop", f"{folder}/124M"
    load = "import golpo\ngolpo.load_corpus()"
    forget = f"import shutil\nshutil.rmtree({folder + '/cache'!r}, ignore_errors=True)\n"
    return [
        Wait("import golpo", "import golpo"),
        Wait("import golpo_utils, with PyTorch", "import golpo_utils"),
        Wait("golpo --help", HELP.format(arguments=["--help"])),
        Wait("golpo train --help", HELP.format(arguments=["train", "--help"])),
        Wait("bundled corpus, first time", load, prepare=forget),
        Wait("bundled corpus, again", load, prepare=load),
        Wait("a new model, preset laptop", new_model("laptop")),
        Wait("a new model, preset 124M", new_model("124M")),
        Wait(
            "a new training: first step",
            TRAIN.format(folder=f"{folder}/new"),
            prepare=forget,
        ),
        Wait(
            "resume, preset laptop: first step",
            TRAIN.format(folder=laptop),
            prepare=MAKE_CHECKPOINT.format(preset="laptop", folder=laptop),
        ),
        Wait(
            "resume, preset 124M: first step",
            TRAIN.format(folder=large),
            prepare=MAKE_CHECKPOINT.format(preset="124M", folder=large),
        ),
        Wait("bundled model: first word", FIRST_WORD.format(source="bundled")),
        Wait(
            "124M checkpoint: first word",
            FIRST_WORD.format(source=large),
            prepare=MAKE_CHECKPOINT.format(preset="124M", folder=large),
        ),
        Wait(
            "train.ipynb: Run all to the first step",
            run_notebook("train", "train_or_resume", f"{folder}/train notebook", FIRST_STEP),
            prepare=forget,
        ),
        Wait(
            "test.ipynb: Run all to the first word",
            run_notebook("test", "generate_story", f"{folder}/test notebook", FIRST_PIECE),
        ),
        Wait(
            "test.ipynb: Run all to the studio, after three stories",
            run_notebook("test", "story_studio", f"{folder}/test notebook"),
        ),
    ]


def new_model(preset: str) -> str:
    return (
        "from golpo.settings import PRESETS\nfrom golpo_utils import GPTModel\n"
        f"GPTModel(PRESETS[{preset!r}]['config'])"
    )


def run_notebook(name: str, words: str, folder: str, before: str = "") -> str:
    """The code that runs a notebook up to the cell with these words, its files in `folder`."""
    notebooks = PROJECT / "notebooks"
    return NOTEBOOK.format(
        path=str(notebooks / f"{name}.ipynb"),
        words=words,
        folder=folder,
        done=DONE,
        before=before,
        notebooks=str(notebooks),
    )


def run_program(code: str, environment: dict) -> None:
    """Run Python code in a process of its own. Exits with its errors if it fails."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode and not Path(environment["GOLPO_MOMENT"]).exists():
        sys.exit(f"this failed:\n{code}\n{done.stderr[-3000:]}")


def measure(wait: Wait, folder: str, rounds: int) -> list[float]:
    """The seconds of each round, from the start of the process."""
    moment = Path(folder) / "moment"
    environment = os.environ | {
        "GOLPO_MOMENT": str(moment),
        "PYTHONPATH": str(PROJECT),
        "XDG_CACHE_HOME": f"{folder}/cache",
        "PYTHONWARNINGS": "ignore",
    }
    times = []
    for _ in range(rounds):
        moment.unlink(missing_ok=True)
        if wait.prepare:
            run_program(wait.prepare, environment)
        started = time.time()
        run_program(f"{DONE}{wait.code}\ndone()", environment)
        times.append(float(moment.read_text()) - started)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="only lines whose name holds one of these")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="a file for the figures")
    options = parser.parse_args()
    figures = {"machine": print_machine()}
    print("| what a person waits for | seconds | slowest |\n| --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for wait in make_waits(folder):
            if options.words and not any(word in wait.name for word in options.words):
                continue
            times = measure(wait, folder, options.rounds)
            figures[wait.name] = times
            flag = " (above the limit)" if statistics.median(times) > LIMIT else ""
            print(f"| {wait.name} | {statistics.median(times):.1f}{flag} | {max(times):.1f} |")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
