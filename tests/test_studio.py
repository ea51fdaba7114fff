"""The studio and the training page without a browser: what stands on them, and what their buttons do."""

import asyncio
import html
import json
import math
import os
import re
import signal
import types
import urllib.parse

import pytest
import torch

import golpo_utils as golpo

CONFIG = {"vocab_size": 4096, "context_length": 64, "emb_dim": 16, "n_heads": 2, "n_layers": 2, "drop_rate": 0.0,
          "qkv_bias": True}


@pytest.fixture
def studio(tmp_path):
    torch.manual_seed(0)
    return golpo.Studio(golpo.GPTModel(CONFIG).eval(), golpo.get_tokenizer(4096), tmp_path, "somebody")


@pytest.fixture
def tells(monkeypatch):
    """Let stories be told from a script: tells(pieces, why) → the list of calls that were made."""
    def script(pieces, why="end"):
        def stream(model, tokenizer, prompt, **settings):
            calls.append((prompt, settings))
            yield from pieces
            return why
        monkeypatch.setattr(golpo, "stream_story", stream)
        return calls
    calls = []
    return script


def on_a_loop(action):
    """Run an async function as a notebook would: on a loop that was running before."""
    return asyncio.run(asyncio.wait_for(action(), timeout=60))


def widgets_of(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from widgets_of(child)


def prose_on(page):
    return html.unescape(re.sub(r"<[^>]*>", "", " ".join(re.findall("<p>(.*?)</p>", page.value))))


def test_the_page_holds_every_control(tmp_path):
    page = golpo.story_studio(golpo.GPTModel(CONFIG), golpo.get_tokenizer(4096), tmp_path)
    names = {getattr(widget, "description", None) for widget in widgets_of(page)}
    assert names >= {"title", "opening", "temperature", "top-k", "top-p", "min-p", "repetition penalty", "max tokens",
                     "seed", "careful", "balanced", "wild", "exact", "at once", "Tell", "Stop", "Tell more", "Another",
                     "Save", "shelf", "layer", "head"}


def test_the_page_says_who_speaks(tmp_path):
    about = {"path": tmp_path / "checkpoint_best.pt", "global_step": 1234, "tokens_seen": 56789,
             "val_losses": [2.0, 1.5]}
    page = golpo.story_studio(golpo.GPTModel(CONFIG), golpo.get_tokenizer(4096), tmp_path, about=about)
    for fact in ("checkpoint_best.pt", "1,234", "56,789", "1.500"):
        assert fact in page.children[0].value
    about["best_val_loss"] = 1.25                              # the best is older than the end of the history
    page = golpo.story_studio(golpo.GPTModel(CONFIG), golpo.get_tokenizer(4096), tmp_path, about=about)
    assert "1.250" in page.children[0].value


def test_the_page_shows_what_stream_story_tells(studio):
    studio.sliders["seed"].value, studio.sliders["max_new_tokens"].value = 5, 30
    studio.opening.value = "Once upon a time"
    studio.tell()
    told = "".join(golpo.stream_story(studio.model, studio.tokenizer, "Once upon a time", temperature=0.8, top_k=50,
                                      seed=5, max_new_tokens=30))
    assert prose_on(studio.page).split() == golpo.split_story("Once upon a time" + told)[1].split()
    assert "30 tokens" in studio.page.value and "the limit was reached" in studio.page.value


def test_no_marker_and_no_foreign_html_is_ever_seen(studio, tells):
    story, pieces = golpo.Story("", "", {}), list("<|title|>Fish & <i>Chips</|title|>\n\nOne <b>day</b>.")
    for piece in pieces:
        story.told += piece
        assert "|" not in story.as_html()
        assert "<i>" not in story.as_html() and "<b>" not in story.as_html()
    assert story.split() == ("Fish & <i>Chips", "One <b>day</b>.")
    tells(pieces)
    studio.tell()
    assert "<h2>Fish &amp; &lt;i&gt;Chips</h2><p>One &lt;b&gt;day&lt;/b&gt;.</p>" in studio.page.value


def test_tell_returns_at_once_and_stop_stops(studio):
    studio.sliders["max_new_tokens"].value = 2000

    async def play():
        studio.buttons["Tell"].click()
        assert studio.shown[0].told == "" and studio.buttons["Tell"].disabled
        while studio.shown[0].tokens < 5:
            await asyncio.sleep(0.001)
        studio.buttons["Stop"].click()
        pressed, tokens = asyncio.get_running_loop().time(), studio.shown[0].tokens
        while not studio.shown[0].ended:
            await asyncio.sleep(0.001)
        return asyncio.get_running_loop().time() - pressed, studio.shown[0].tokens - tokens

    seconds, tokens = on_a_loop(play)
    assert tokens <= 1 and seconds < 10
    assert studio.shown[0].ended == "stopped" and studio.shown[0].told
    assert not studio.buttons["Tell"].disabled and studio.buttons["Stop"].disabled


def test_interrupt_keeps_the_text_and_gives_the_signal_back(studio):
    studio.sliders["max_new_tokens"].value = 2000
    before = signal.getsignal(signal.SIGINT)

    async def play():
        studio.tell()
        handler = signal.getsignal(signal.SIGINT)          # asyncio.run has one of its own
        while studio.shown[0].tokens < 5:
            await asyncio.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)
        while not studio.shown[0].ended:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        assert signal.getsignal(signal.SIGINT) is handler

    on_a_loop(play)
    assert studio.shown[0].ended == "stopped" and studio.shown[0].told
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("loop", [True, False], ids=["in a notebook", "in plain Python"])
def test_an_error_is_one_sentence_on_the_page(studio, loop):
    torch.nn.init.constant_(studio.model.tok_emb.weight, math.nan)

    async def play():
        studio.buttons["Tell"].click()
        while not studio.message.value:
            await asyncio.sleep(0.001)

    on_a_loop(play) if loop else studio.buttons["Tell"].click()
    assert "damaged" in studio.message.value and "Traceback" not in studio.message.value
    assert not studio.buttons["Tell"].disabled


def test_a_mood_sets_the_sliders(studio):
    studio.buttons["exact"].click()
    assert studio.sliders["temperature"].value == 0
    studio.buttons["wild"].click()
    assert studio.sliders["temperature"].value > 1


def test_several_at_once_differ_in_seed_or_mood(studio, tells):
    calls = tells(["Yes."])
    studio.count.value = "3"
    studio.tell()
    assert [settings["seed"] for _, settings in calls] == [1, 2, 3]
    assert studio.page.value.count("<article>") == 3
    calls.clear()
    studio.count.value = "4 moods"
    studio.tell()
    assert len({settings["temperature"] for _, settings in calls}) == 4
    assert {settings["seed"] for _, settings in calls} == {1}


def test_another_takes_the_next_unused_seed(studio, tells):
    calls = tells(["Yes."])
    studio.count.value = "2"
    studio.tell()
    studio.another()
    assert [settings["seed"] for _, settings in calls] == [1, 2, 3, 4]


@pytest.mark.parametrize("why, gap", [("end", "\n\n"), ("limit", "")])
def test_tell_more_goes_on_where_the_story_stands(studio, tells, why, gap):
    calls = tells(["<|title|>Two</|title|>", "\n\nA dog", " ran."], why)
    studio.tell()
    tells([" Away!"])
    studio.more()
    assert calls[1][0] == "A dog ran." + gap and calls[1][1]["title"] == "Two"
    assert studio.shown[0].split() == ("Two", f"A dog ran.{gap} Away!")
    assert len(studio.books.options) == 2


def test_saved_and_downloaded_stories_carry_their_settings(studio, tells, tmp_path):
    tells(["<|title|>Two</|title|>\n\n" + "word " * 40])
    studio.tell()
    studio.save()
    studio.save()
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["output_no_1_0.8_50_400.txt", "output_no_2_0.8_50_400.txt"]
    text = (tmp_path / "output_no_1_0.8_50_400.txt").read_text(encoding="utf-8")
    header, title, prose = text.split("\n\n")
    assert all(word in header for word in ("temperature 0.8", "top-k 50", "top-p 1", "seed 1", "max tokens 400"))
    assert title == "Two" and prose.split() == ["word"] * 40
    assert max(map(len, prose.split("\n"))) <= 80
    assert urllib.parse.unquote(re.search(r"href='data:[^,]*,(.*?)'", studio.page.value)[1]) == text


def test_a_folder_that_refuses_is_told_on_the_page(studio, tells, tmp_path):
    tells(["Yes."])
    studio.tell()
    studio.folder = tmp_path / "a file"
    studio.folder.write_text("in the way")
    studio.buttons["Save"].click()
    assert "a file" in studio.message.value


def test_the_shelf_gives_stories_back(studio, tells):
    tells(["The first."])
    studio.tell()
    tells(["The second."])
    studio.tell()
    assert prose_on(studio.page) == "The second."
    studio.books.index = 1
    assert prose_on(studio.page) == "The first."


def test_the_bars_are_the_probabilities_of_the_next_token(studio):
    studio.opening.value = "Once upon"
    studio.curious.selected_index = 0
    ids = torch.tensor([golpo.story_opening(studio.tokenizer, "Once upon")])
    expected = torch.softmax(studio.model(ids)[0, -1] / 0.8, dim=-1).topk(50).values
    shown = [float(share) for share in re.findall(r"<span>([\d.]+)% \(", studio.bars.value)]
    assert shown == pytest.approx((100 * expected / expected.sum())[:10].tolist(), abs=0.051)
    studio.buttons["exact"].click()
    assert sorted(re.findall(r"<span>([\d.]+)% \(", studio.bars.value)) == ["0.0"] * 9 + ["100.0"]


def test_attention_is_what_the_formula_gives(studio):
    ids = torch.arange(7)[None]
    block, inputs = studio.model.trf_blocks[1], []
    with block.att.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0])), torch.no_grad():
        studio.model(ids)
    query, key = (projection(inputs[0])[0, :, 8:].detach()                                         # head 1
                  for projection in (block.att.W_query, block.att.W_key))
    weights = golpo.attention_weights(studio.model, ids, layer=1, head=1)
    for i in range(7):
        scores = torch.tensor([float(query[i] @ key[j]) / math.sqrt(8) for j in range(i + 1)])
        torch.testing.assert_close(weights[i, :i + 1], scores.softmax(0), atol=1e-6, rtol=0)
        assert not weights[i, i + 1:].any()
    assert golpo.Block.use_fused


def test_the_attention_picture_follows_the_head(studio):
    studio.opening.value = "Once upon a time there was a fox"
    studio.curious.selected_index = 0
    first = bytes(studio.picture.value)
    studio.head.value = 1
    second = bytes(studio.picture.value)
    assert first.startswith(b"\x89PNG") and second.startswith(b"\x89PNG") and first != second


# The training page

RECORDS = [dict(step=10 * n, epoch=n / 4, tokens_seen=1000 * n, train_loss=loss, val_loss=loss, seconds=n,
                val_perplexity=math.exp(loss), learning_rate=1e-3, tokens_per_second=5000.0, seconds_left=60.0)
           for n, loss in enumerate([5.0, 3.0, 2.0, 2.5], start=1)]


def progress(view):
    """Let a view see the records, as a training would show them."""
    state = golpo.TrainingState()
    view.start(state, 40)
    for record in RECORDS:
        state.global_step = record["step"]
        state.track_tokens_seen.append(record["tokens_seen"])
        state.train_losses.append(record["train_loss"])
        state.val_losses.append(record["val_loss"])
        view.evaluated(record, state)
        view.stepped(state)
    view.sample("<|title|>Fox</|title|>\n\nA fox ran.<|end|>")
    view.finish(state, 40)


def test_the_terminal_shows_one_line_and_the_sample(capsys):
    progress(golpo.TerminalView())
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
    progress(golpo.NotebookView())
    line, picture, sample = (outputs[-1] for outputs in shown)
    assert all(fact in line.data for fact in ("step 40 of 40", "2.500", "1.0e-03", "1.0 min left"))
    assert picture.data.startswith(b"\x89PNG")
    assert sample.data == "**Fox**\n\nA fox ran."


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_the_picture_marks_the_best_point(scale):
    axes = golpo.draw_losses([1, 2, 3, 4], [5.0, 4.0, 3.0, 2.0], [5.0, 3.0, 2.0, 2.5], scale).axes[0]
    assert [list(line.get_ydata()) for line in axes.lines[:2]] == [[5.0, 4.0, 3.0, 2.0], [5.0, 3.0, 2.0, 2.5]]
    assert [(line.get_xdata(), line.get_ydata()) for line in axes.lines[2:]] == [([3], [2.0])]
    assert axes.get_yscale() == scale


def test_after_a_reload_the_page_comes_from_the_metrics_file(tmp_path, capsys):
    lines = "".join(json.dumps(record) + "\n" for record in RECORDS)
    (tmp_path / "metrics.jsonl").write_text(lines + '{"step": 50, "val_l')         # it is being written just now
    golpo.show_training(tmp_path)
    assert "2.500" in capsys.readouterr().out
    assert (tmp_path / "loss-plot.png").read_bytes().startswith(b"\x89PNG")


def test_without_metrics_the_page_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="metrics.jsonl"):
        golpo.show_training(tmp_path)
