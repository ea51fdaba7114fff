"""Run both notebooks from top to bottom, as a person would with Run all.

    python notebooks/run_all.py                 # train.ipynb, then test.ipynb
    python notebooks/run_all.py test            # only test.ipynb

What the cells print appears here as it comes, with a line below it that shows where things stand.
The executed copies, with everything that the cells printed and drew, are written to output/.
"""

import asyncio
import logging
import os
import re
import shutil
import sys
import threading
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from golpo.metrics import METRICS_FILE, read_records  # noqa: E402

METRICS = PROJECT / "gpt_checkpoints" / METRICS_FILE
OUTPUT = PROJECT / "output"


class LiveLine:
    """Text above, and below it one line that is written again and again.

    Where the output is no terminal, each new state of the line is printed once.
    """

    def __init__(self):
        self.is_terminal = sys.stdout.isatty()
        self.lock = threading.Lock()
        self.line = ""
        self.at_line_start = True

    def print(self, text: str) -> None:
        """Print the text of a cell; it may end in the middle of a line."""
        with self.lock:
            self.erase()
            sys.stdout.write(text)
            self.at_line_start = text.endswith("\n")
            self.draw()

    def show(self, line: str) -> None:
        """Replace the line."""
        with self.lock:
            self.erase()
            self.line = line
            self.draw()

    def erase(self) -> None:
        if self.is_terminal and self.line and self.at_line_start:
            sys.stdout.write("\r\x1b[K")

    def draw(self) -> None:
        if self.is_terminal and self.line and self.at_line_start:
            width = shutil.get_terminal_size().columns - 1
            sys.stdout.write(self.line[:width])
        sys.stdout.flush()


class Client(NotebookClient):
    """A notebook client that passes on what the cells print, when it comes."""

    def process_message(self, msg, cell, cell_index):
        content = msg["content"]
        if msg["msg_type"] == "stream" and "\r" not in content["text"]:
            self.live.print(content["text"])
        elif msg["msg_type"] == "update_display_data":
            self.watch.note_step(content["data"].get("text/html", ""))
        return super().process_message(msg, cell, cell_index)


def title_of(notebook, index: int) -> str:
    """The last heading above a cell."""
    lines = [line for cell in notebook.cells[:index] for line in cell.source.splitlines()]
    headings = [line.lstrip("#0123456789· ") for line in lines if line.startswith("## ")]
    return headings[-1] if headings else "start"


def newest_record(since: float) -> dict | None:
    """The newest record of the metrics file, if it was written after the time `since`."""
    try:
        if METRICS.stat().st_mtime < since:
            return None
        return read_records(METRICS)[-1]
    except (OSError, IndexError):
        return None


def describe(record: dict) -> str:
    """Step, time left and losses, as in a record of the metrics file."""
    left = f", {clock(record['seconds_left'])} left" if "seconds_left" in record else ""
    return f"step {record['step']:,}{left}, {describe_losses(record)}"


def describe_losses(record: dict) -> str:
    return f"loss {record['train_loss']:.3f}, val {record['val_loss']:.3f}"


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02}"


class Watch(threading.Thread):
    """Keeps the live line true: the cell, its time, and the newest record of the training."""

    def __init__(self, live: LiveLine, name: str):
        super().__init__(daemon=True)
        self.live = live
        self.name = name
        self.cell = ""
        self.started = time.time()
        self.record = None
        self.steps = []  # (time, step, all steps): what the notebook's own progress has shown
        self.ended = threading.Event()

    def start_cell(self, cell: str) -> None:
        self.cell = cell
        self.started = time.time()
        self.record = None
        self.steps = []
        if not self.live.is_terminal:
            self.live.print(f"[{self.name}.ipynb, {cell}]\n")
        self.show_state()

    def run(self) -> None:
        while not self.ended.wait(1):
            record = newest_record(self.started)
            if record is not None and record != self.record and not self.live.is_terminal:
                self.live.print(f"[{describe(record)}]\n")
            self.record = record
            self.show_state()
        self.live.show("")

    def note_step(self, page: str) -> None:
        """Keep the step that the page of a training shows, between two records."""
        if found := re.search(r"step ([\d,]+) of ([\d,]+)", page):
            step, total = (int(number.replace(",", "")) for number in found.groups())
            self.steps.append((time.time(), step, total))

    def show_state(self) -> None:
        parts = [self.name, self.cell, clock(time.time() - self.started)]
        if self.steps:
            parts.append(self.describe_steps())
        elif self.record is not None:
            parts.append(describe(self.record))
        self.live.show(" · ".join(parts))

    def describe_steps(self) -> str:
        """The newest step, the time left at this pace, and the losses of the newest record."""
        first_time, first_step, _ = self.steps[0]
        now, step, total = self.steps[-1]
        text = f"step {step:,}/{total:,}"
        if step > first_step:
            seconds_per_step = (now - first_time) / (step - first_step)
            text += f", {clock(seconds_per_step * (total - step))} left"
        if self.record is not None:
            text += f", {describe_losses(self.record)}"
        return text


def run(name: str) -> Path:
    """Execute a notebook and return the path of its executed copy."""
    notebook = nbformat.read(PROJECT / "notebooks" / f"{name}.ipynb", as_version=4)
    code = [n for n, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    live = LiveLine()
    watch = Watch(live, name)

    def show_cell(cell, cell_index):
        number = code.index(cell_index) + 1
        watch.start_cell(f"cell {number}/{len(code)}, {title_of(notebook, cell_index)}")

    client = Client(
        notebook,
        timeout=None,
        kernel_name="python3",
        resources={"metadata": {"path": str(PROJECT / "notebooks")}},
        on_cell_execute=lambda cell, cell_index: show_cell(cell, cell_index),
    )
    client.live = live
    client.watch = watch
    executed = OUTPUT / f"{name}.executed.ipynb"
    started = time.monotonic()
    watch.start()
    try:
        with open(os.devnull, "wb") as nowhere:
            client.execute(stderr=nowhere)  # what the kernel itself warns of is not ours
    except (AssertionError, asyncio.CancelledError):
        # At Ctrl-C, nbclient ends the kernel (a training saves first) and then misses it.
        raise KeyboardInterrupt from None
    finally:
        watch.ended.set()
        watch.join()
        OUTPUT.mkdir(exist_ok=True)
        nbformat.write(notebook, executed)
    print(f"\n=== {name}.ipynb ran in {clock(time.monotonic() - started)}\n")
    return executed


def print_results(executed: list[Path]) -> None:
    """Print where the notebooks, the curve and the stories are."""
    for path in executed:
        print("Notebook with its outputs:", path)
    if (OUTPUT / "loss-plot.png").exists():
        print("Loss curve:", OUTPUT / "loss-plot.png")
    for story in sorted(OUTPUT.glob("output_no_*.txt")):
        print("Story:", story)


def main(names: list[str]) -> None:
    """Run the notebooks of these names. Exits with a sentence if a cell fails."""
    for name in names:
        if not (PROJECT / "notebooks" / f"{name}.ipynb").is_file():
            sys.exit(f"there is no notebook {name!r}; they are train and test")
    logging.getLogger("traitlets").setLevel(logging.ERROR)
    executed = []
    try:
        for name in names:
            executed.append(run(name))
    except CellExecutionError as error:
        copy = OUTPUT / f"{name}.executed.ipynb"
        sys.exit(f"{name}.ipynb failed: {error.ename}: {error.evalue}\nThe rest is in {copy}")
    except KeyboardInterrupt:
        print("Interrupted. A training saves first; run this again to resume.", file=sys.stderr)
        sys.exit(130)
    print_results(executed)


if __name__ == "__main__":
    main(sys.argv[1:] or ["train", "test"])
