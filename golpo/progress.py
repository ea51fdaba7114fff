"""How a training shows itself: in a terminal, or on a notebook page."""

import html
import sys
import textwrap
import time

import torch

from golpo.console import in_notebook, plain_text, print_safely, printable
from golpo.plots import draw_losses, png_bytes
from golpo.stories import split_story

SECONDS_BETWEEN_LINES = 3
SECONDS_BETWEEN_PICTURES = 5


def pick_progress() -> "TerminalProgress":
    """The progress that fits: on a notebook page, or in a terminal."""
    return NotebookProgress() if in_notebook() else TerminalProgress()


def describe_time(seconds: float) -> str:
    """Time left, and the time on the clock when it will be over."""
    end = time.strftime("%H:%M", time.localtime(time.time() + seconds))
    return f"{seconds / 60:.1f} min left, done at {end}"


def describe_memory() -> str:
    """The GPU memory that the training needs at most; empty on a CPU."""
    if not torch.cuda.is_available():
        return ""
    used = torch.cuda.max_memory_allocated() / 2**30
    total = torch.cuda.get_device_properties(0).total_memory / 2**30
    return f"{used:.1f} of {total:.0f} GB of GPU memory"


class TerminalProgress:
    """One line that is written again and again, and the samples above it."""

    def start(self, state, total_steps: int, show: bool = True) -> None:
        """Begin with a state of `total_steps` steps. show: whether to draw the line."""
        from tqdm import tqdm

        interval = 1 if sys.stderr.isatty() else 60  # a log file keeps each version of the line
        self.total_steps = total_steps
        self.bar = tqdm(
            total=total_steps,
            initial=state.global_step,
            unit="step",
            mininterval=interval,
            disable=not show,
        )

    def step_done(self, state) -> None:
        self.bar.update(state.global_step - self.bar.n)

    def evaluated(self, record: dict, state) -> None:
        losses = f"train {record['train_loss']:.3f}, val {record['val_loss']:.3f}"
        pace = f"{record['tokens_per_second']:,.0f} tokens/s, done at "
        pace += describe_time(record["seconds_left"]).rpartition(" ")[2]
        self.bar.set_postfix_str(f"{losses}, {pace}", refresh=False)

    def sample(self, text: str) -> None:
        story = textwrap.indent(plain_text(text).strip(), "    ")
        encoding = getattr(sys.stdout, "encoding", None)
        self.bar.write("\n" + printable(story, encoding) + "\n")

    def finish(self, state, total_steps: int) -> None:
        self.bar.close()
        if state.global_step < total_steps:
            print_safely(
                f"Stopped at step {state.global_step:,} of {total_steps:,}, and saved; start again "
                f"to resume."
            )


class NotebookProgress(TerminalProgress):
    """A bar, a line, one picture and the newest sample, renewed in place."""

    def start(self, state, total_steps: int, show: bool = True) -> None:
        from IPython.display import HTML, display

        super().start(state, total_steps, show=False)
        self.line, self.picture, self.story = (display(HTML(""), display_id=True) for _ in range(3))
        self.line_at = 0.0
        self.latest = "not evaluated yet"
        self.finished_at = None
        self.draw(state)  # a resumed training shows what it did before

    def step_done(self, state) -> None:
        if time.monotonic() - self.line_at > SECONDS_BETWEEN_LINES:
            self.write_line(state)

    def write_line(self, state) -> None:
        from IPython.display import HTML

        self.line_at = time.monotonic()
        left = ""
        if self.finished_at is not None:
            left = describe_time(max(0.0, self.finished_at - self.line_at))
        facts = [
            f"step {state.global_step:,} of {self.total_steps:,}",
            self.latest,
            left,
            describe_memory(),
            "<i>Stop</i> (or Interrupt) saves first; <i>Run all</i> then resumes",
        ]
        bar = f"<progress value={state.global_step} max={self.total_steps}></progress>"
        self.line.update(HTML(f"{bar} {' · '.join(fact for fact in facts if fact)}"))

    def evaluated(self, record: dict, state) -> None:
        self.latest = (
            f"epoch {record['epoch']:.2f} · training loss {record['train_loss']:.3f} · validation "
            f"loss {record['val_loss']:.3f} · {record['tokens_per_second']:,.0f} tokens/s"
        )
        self.finished_at = time.monotonic() + record["seconds_left"]
        if time.monotonic() - self.drawn_at > SECONDS_BETWEEN_PICTURES:
            self.draw(state)

    def draw(self, state) -> None:
        from IPython.display import Image

        self.drawn_at = time.monotonic()
        if state.val_losses:
            losses = (state.track_tokens_seen, state.train_losses, state.val_losses)
            self.picture.update(Image(png_bytes(draw_losses(*losses))))

    def sample(self, text: str) -> None:
        from IPython.display import HTML

        title, prose = split_story(plain_text(text))
        heading = f"<h4>{html.escape(title or 'Untitled')}</h4>"
        paragraphs = [f"<p>{html.escape(line)}</p>" for line in prose.split("\n") if line.strip()]
        self.story.update(HTML(heading + "".join(paragraphs)))

    def finish(self, state, total_steps: int) -> None:
        self.write_line(state)
        self.draw(state)
        super().finish(state, total_steps)
