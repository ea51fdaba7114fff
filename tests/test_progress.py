"""How a training shows itself, whatever its samples and losses are."""

import io
import sys
import types

import pytest

from golpo.console import plain_text
from golpo.progress import NotebookProgress, TerminalProgress
from golpo.trainer import TrainingState

SAMPLE = (
    "<|start|>\n<|title|>A \x1b[31m<b>fox</b>\x07</|title|>\n\n"
    "![](http://example.org/a.png) [a](b) $$ \x1b]0;title\x07\x9b2J<script>alert(1)</script>\r\n"
    "The 🦊 said “গল্প”.\n<|end|>"
)


@pytest.fixture
def displays(monkeypatch):
    """Everything that a notebook page shows: a list for each of its places."""
    import IPython.display

    shown = []

    def display(first, display_id):
        shown.append([first])
        return types.SimpleNamespace(update=shown[-1].append)

    monkeypatch.setattr(IPython.display, "display", display)
    return shown


def show_loud_training(view):
    """A training whose loss is 750 at each of two evaluations, and the sample."""
    state = TrainingState()
    view.start(state, 20)
    for step in (10, 20):
        state.global_step = step
        state.track_tokens_seen.append(step)
        state.train_losses.append(750.0)
        state.val_losses.append(750.0)
        record = {
            "epoch": 1.0,
            "train_loss": 750.0,
            "val_loss": 750.0,
            "tokens_per_second": 5.0,
            "seconds_left": 6.0,
        }
        view.evaluated(record, state)
        view.step_done(state)
    view.sample(SAMPLE)
    view.finish(state, 20)


def test_a_terminal_receives_no_control_characters(capsys):
    """A: a sample may clear the screen, or worse; HTML and Markdown are only text there."""
    show_loud_training(TerminalProgress())
    printed = capsys.readouterr().out
    assert "<b>fox</b>" in printed and "🦊" in printed and "![](http" in printed
    assert not set(printed) & set(map(chr, [*range(10), *range(11, 32), *range(127, 160)]))


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "shift_jis"])
def test_a_terminal_of_any_encoding_shows_a_sample(monkeypatch, encoding):
    """A: the letters that it lacks become question marks."""
    output = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", output)
    show_loud_training(TerminalProgress())
    output.flush()
    assert b"The ? said " in output.buffer.getvalue()


def test_a_page_shows_a_sample_as_text(displays):
    """A: no HTML, no Markdown and no control character of a sample reaches the page as such."""
    show_loud_training(NotebookProgress())
    line, picture, story = (place[-1] for place in displays)
    assert "validation loss 750.000" in line.data
    assert picture.data.startswith(b"\x89PNG")
    assert story.data.startswith("<h4>A &lt;b&gt;fox&lt;/b&gt;</h4><p>![](http://example.org")
    assert "<script" not in story.data and "&lt;script&gt;" in story.data
    assert not set(story.data) & set(map(chr, [*range(32), *range(127, 160)]))


def test_plain_text_keeps_lines_and_letters():
    assert plain_text("a\tb\nগল্প 🦊\u200d") == "a\tb\nগল্প 🦊\u200d"
    assert (
        plain_text("\x1b[1;31mred\x1b[0m \x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\ \x1b")
        == "red link "
    )
