"""`notebooks/run_all.py`: what a person sees while both notebooks run."""

import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

PROJECT = Path(__file__).resolve().parent.parent

CELLS = [
    "print('first')",
    "import time\nfor n in range(3):\n    print('number', n)\n    time.sleep(0.7)",
    """import json
record = {"step": 120, "train_loss": 3.25, "val_loss": 3.5, "seconds_left": 61.2}
folder = project / "gpt_checkpoints"
folder.mkdir(exist_ok=True)
(folder / "metrics.jsonl").write_text(json.dumps(record) + "\\\\n")
time.sleep(2.5)
from IPython.display import HTML, display
line = display(HTML(""), display_id=True)
for step in (130, 140):
    line.update(HTML(f"<progress></progress> step {step} of 1,140 · not evaluated yet"))
    time.sleep(1.5)""",
    """(project / "output").mkdir(exist_ok=True)
(project / "output" / "loss-plot.png").write_bytes(b"a picture")
(project / "output" / "output_no_1_0.7_40_400.txt").write_text("a story")
import warnings
warnings.warn("of a cell")""",
]


@pytest.fixture
def project(tmp_path):
    """A project with a short train.ipynb, whose cells do what its real ones do."""
    shutil.copy(PROJECT / "golpo_utils.py", tmp_path)
    shutil.copytree(PROJECT / "golpo", tmp_path / "golpo")
    (tmp_path / "notebooks").mkdir()
    shutil.copy(PROJECT / "notebooks" / "run_all.py", tmp_path / "notebooks")
    write_notebook(tmp_path, CELLS)
    return tmp_path


def write_notebook(project: Path, cells: list[str]) -> None:
    notebook = nbformat.v4.new_notebook()
    start = "from pathlib import Path\nproject = Path.cwd().parent"
    for number, source in enumerate([start, *cells], start=1):
        notebook.cells.append(nbformat.v4.new_markdown_cell(f"## {number} · Part {number}"))
        notebook.cells.append(nbformat.v4.new_code_cell(source.replace("\\\\n", "\\n")))
    nbformat.write(notebook, project / "notebooks" / "train.ipynb")


def run_all(project, *arguments):
    return subprocess.run(
        [sys.executable, project / "notebooks" / "run_all.py", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_it_shows_the_cell_what_it_prints_the_progress_and_where_the_results_are(project):
    done = run_all(project, "train")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    at = {words: next(n for n, line in enumerate(lines) if words in line) for words in (
        "[train.ipynb, cell 2/5, Part 2]",
        "first",
        "[train.ipynb, cell 3/5, Part 3]",
        "[step 120, 1:01 left, loss 3.250, val 3.500]",
        "=== train.ipynb ran in",
        "Notebook with its outputs: ",
        "Loss curve: ",
        "Story: ",
    )}  # fmt: skip
    assert list(at.values()) == sorted(at.values()), done.stdout
    assert (project / "output" / "train.executed.ipynb").exists()


def test_the_kernel_prints_no_warnings_but_those_of_the_cells(project):
    done = run_all(project, "train")
    assert done.stderr == ""
    assert done.stdout.count("Warning") == 1
    assert "UserWarning: of a cell" in done.stdout


def test_a_terminal_sees_one_line_that_changes_and_text_as_it_comes(project):
    """In a pseudo-terminal: numbers appear one by one, and the live line is written over."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, project / "notebooks" / "run_all.py", "train"],
        stdout=follower,
        stderr=follower,
        env={**os.environ, "COLUMNS": "100"},
    )
    os.close(follower)
    pieces = []
    try:
        while piece := os.read(leader, 10_000):
            pieces.append(piece.decode())
    except OSError:  # the other end is closed
        pass
    assert process.wait(60) == 0
    text = "".join(pieces)
    arrivals = [
        next(n for n, piece in enumerate(pieces) if f"number {digit}" in piece) for digit in "012"
    ]
    assert len(set(arrivals)) == 3, "the three numbers came at once"
    states = re.findall(r"train · cell \d/5, Part \d · \d:\d\d[^\r\x1b]*", text)
    assert len(states) > 4
    assert any("step 120, 1:01 left, loss 3.250" in state for state in states)
    assert any("step 130/1,140, loss 3.250" in state for state in states)
    left = re.search(r"step 140/1,140, (\d+):(\d\d) left, loss 3.250, val 3.500", text)
    assert 145 <= int(left[1]) * 60 + int(left[2]) <= 1000, "10 steps took 1.5 s, 1,000 are left"
    assert text.count("\r\x1b[K") >= len(states), "a state of the line was not erased"


def test_a_cell_that_fails_is_named_and_the_exit_code_says_so(project):
    write_notebook(project, ["print('so far so good')", "1 / 0"])
    done = run_all(project, "train")
    assert done.returncode == 1
    assert "so far so good" in done.stdout
    assert "train.ipynb failed: ZeroDivisionError: division by zero" in done.stderr
    assert "Traceback" not in done.stderr
    assert str(project / "output" / "train.executed.ipynb") in done.stderr


def test_control_c_ends_it_with_one_sentence(project):
    write_notebook(project, ["print('begun')\nimport time\ntime.sleep(60)"])
    process = subprocess.Popen(
        [sys.executable, project / "notebooks" / "run_all.py", "train"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while "begun" not in (line := process.stdout.readline()):
        assert line, process.stderr.read()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines() == ["Interrupted. A training saves first; run this again to resume."]


def test_an_unknown_notebook_is_named(project):
    done = run_all(project, "trian")
    assert done.returncode == 1
    assert "'trian'" in done.stderr
