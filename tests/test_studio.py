"""The studio's widget, and the training page, without a browser: what they show."""

import json
import math
import types

import pytest
from helpers import WORDS_CONFIG

from golpo.plots import draw_losses, show_training
from golpo.progress import NotebookProgress, TerminalProgress
from golpo.studio import story_studio
from golpo.trainer import TrainingState
from golpo_utils import GPTModel, get_tokenizer


def test_the_page_says_which_model_writes(tmp_path):
    about = {
        "path": tmp_path / "checkpoint_best.pt",
        "global_step": 1234,
        "tokens_seen": 56789,
        "val_losses": [2.0, 1.5],
    }
    page = story_studio(GPTModel(WORDS_CONFIG), get_tokenizer(4096), tmp_path, about=about)
    for fact in ("checkpoint_best.pt", "1,234", "56,789", "1.500"):
        assert fact in page.desk.speaker
    about["best_val_loss"] = 1.25  # the best is older than the end of the history
    page = story_studio(GPTModel(WORDS_CONFIG), get_tokenizer(4096), tmp_path, about=about)
    assert "1.250" in page.desk.speaker


def test_the_page_is_in_bengali_if_asked(tmp_path):
    page = story_studio(GPTModel(WORDS_CONFIG), get_tokenizer(4096), tmp_path, language="bn")
    assert page.get_state("labels")["labels"]["Stop"] == "থামুন"
    with pytest.raises(ValueError, match="there is no language 'fr'"):
        story_studio(GPTModel(WORDS_CONFIG), get_tokenizer(4096), tmp_path, language="fr")


@pytest.mark.parametrize(
    "message",
    [
        {"do": "retry"},
        {"do": "strength", "value": 1},
        {"do": "take", "number": 1},
        {"do": "export", "kind": "md"},
        {"do": "form", "values": {"temperature": 9}},
        {"do": "edit", "start": 0, "end": 0, "text": "x", "length": 9},
        {"do": "save_preset", "name": "wild"},
    ],
    ids=str,
)
def test_in_the_bengali_studio_sentences_are_bengali(tmp_path, message):
    page = story_studio(GPTModel(WORDS_CONFIG).eval(), get_tokenizer(4096), tmp_path, language="bn")
    sent = []
    page.desk.send = lambda event, buffers=None: sent.append(event)
    page.desk.receive(message)
    (text,) = [event["text"] for event in sent if event.get("ev") == "message"]
    letters = [letter for letter in text if letter.isalpha()]
    assert sum("\u0980" <= letter <= "\u09ff" for letter in letters) > len(letters) / 2
    assert "মডেল" in page.desk.speaker


def test_messages_go_through_the_widget(tmp_path, monkeypatch):
    page = story_studio(GPTModel(WORDS_CONFIG).eval(), get_tokenizer(4096), tmp_path)
    sent = []
    monkeypatch.setattr(page, "_send", lambda message, buffers=None: sent.append(message))
    page._handle_custom_msg({"do": "hello"}, [])
    events = [message["content"] for message in sent]
    json.dumps(events)
    assert {"all", "shelf", "taste"} <= {event.get("ev") for event in events}
    assert page._esm and "render" in page._esm and ".golpo" in page._css


# The training page

RECORDS = [
    dict(
        step=10 * n,
        epoch=n / 4,
        tokens_seen=1000 * n,
        train_loss=loss,
        val_loss=loss,
        seconds=n,
        val_perplexity=math.exp(loss),
        learning_rate=1e-3,
        tokens_per_second=5000.0,
        seconds_left=60.0,
    )
    for n, loss in enumerate([5.0, 3.0, 2.0, 2.5], start=1)
]


def progress(view):
    """Let a view see the records, as a training would show them."""
    state = TrainingState()
    view.start(state, 40)
    for record in RECORDS:
        state.global_step = record["step"]
        state.track_tokens_seen.append(record["tokens_seen"])
        state.train_losses.append(record["train_loss"])
        state.val_losses.append(record["val_loss"])
        view.evaluated(record, state)
        view.step_done(state)
    view.sample("<|title|>Fox</|title|>\n\nA fox ran.<|end|>")
    view.finish(state, 40)


def test_the_terminal_shows_one_line_and_the_sample(capsys):
    progress(TerminalProgress())
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and "40/40" in err and "val 2.500" in err
    assert "A fox ran." in out


def test_the_notebook_renews_three_things_in_place(monkeypatch):
    import IPython.display

    shown = []

    def display(first, display_id):
        shown.append([first])
        return types.SimpleNamespace(update=shown[-1].append)

    monkeypatch.setattr(IPython.display, "display", display)
    progress(NotebookProgress())
    line, picture, sample = (outputs[-1] for outputs in shown)
    assert all(fact in line.data for fact in ("step 40 of 40", "2.500", "1.0 min left, done at"))
    assert picture.data.startswith(b"\x89PNG")
    assert sample.data == "<h4>Fox</h4><p>A fox ran.</p>"


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_the_picture_marks_the_best_point(scale):
    axes = draw_losses([1, 2, 3, 4], [5.0, 4.0, 3.0, 2.0], [5.0, 3.0, 2.0, 2.5], scale).axes[0]
    assert [list(line.get_ydata()) for line in axes.lines[:2]] == [
        [5.0, 4.0, 3.0, 2.0],
        [5.0, 3.0, 2.0, 2.5],
    ]
    assert [(line.get_xdata(), line.get_ydata()) for line in axes.lines[2:]] == [([3], [2.0])]
    assert axes.get_yscale() == scale


def test_after_a_reload_the_page_comes_from_the_metrics_file(tmp_path, capsys):
    lines = "".join(json.dumps(record) + "\n" for record in RECORDS)
    (tmp_path / "metrics.jsonl").write_text(
        lines + '{"step": 50, "val_l'
    )  # it is being written just now
    show_training(tmp_path)
    assert "2.500" in capsys.readouterr().out
    assert (tmp_path / "loss-plot.png").read_bytes().startswith(b"\x89PNG")


def test_without_metrics_the_page_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="metrics.jsonl"):
        show_training(tmp_path)
