"""Stories: how they begin, stream and end, and what is kept of them."""

import json
import re

import pytest
import torch
from helpers import SHARP_CONFIG, tell_these

from golpo.paths import BUNDLED_MODEL, PROJECT_DIR
from golpo.stories import DEFAULT_SAMPLING, generate_story, split_story
from golpo_utils import (
    GPTModel,
    encode,
    generate,
    get_tokenizer,
    stream_story,
    token_ids_to_text,
)


def test_a_story_is_written_wrapped_and_without_markers(monkeypatch, storyteller, tmp_path):
    tokenizer = storyteller[1]
    told = (
        "<|title|>The Fox</|title|>\n\n" + "The fox ran on and on. " * 12 + "\n\nHe slept.<|end|>"
    )
    tell_these(monkeypatch, encode(told, tokenizer))
    text = generate_story(
        3, *storyteller, tmp_path / "new", max_new_tokens=400, temperature=0.7, top_k=9
    )
    written = (tmp_path / "new" / "output_no_3_0.7_9_400.txt").read_text(encoding="utf-8")
    assert written.rstrip("\n") == text
    assert all(len(line) <= 80 for line in text.split("\n"))
    assert (
        text.split()
        == told.replace("<|title|>", "").replace("</|title|>", "").replace("<|end|>", "").split()
    )


def test_a_story_can_be_printed_while_it_is_generated(monkeypatch, storyteller, tmp_path, capsys):
    story = "<|title|>The Fox</|title|>\n\nThe fox ran on and on.<|end|>"
    tell_these(monkeypatch, encode(story, storyteller[1]))
    text = generate_story(1, *storyteller, tmp_path, max_new_tokens=99)
    assert capsys.readouterr().out == ""
    tell_these(monkeypatch, encode(story, storyteller[1]))
    assert generate_story(1, *storyteller, tmp_path, max_new_tokens=99, stream=True) == text
    assert capsys.readouterr().out.strip() == text == "The Fox\n\nThe fox ran on and on."


def test_a_title_is_split_from_its_prose():
    assert split_story("<|start|>\n<|title|> The Fox </|title|>\n\nHe ran.\n<|end|>") == (
        "The Fox",
        "He ran.",
    )
    assert split_story("<|start|>\nHe ran.") == (None, "He ran.")


def test_a_story_cannot_send_commands_to_the_terminal(monkeypatch, storyteller, tmp_path, capsys):
    """A: neither while it is printed nor when its file is shown with `cat`."""
    story = "\x1b[2JThe fox\x1b]0;title\x07 ran.\r\n"
    story += "![](http://example.org/a.png) <b>$$</b>\x9b1m<|end|>"
    tell_these(monkeypatch, encode(story, storyteller[1]))
    text = generate_story(1, *storyteller, tmp_path, max_new_tokens=99, stream=True)
    printed = capsys.readouterr().out
    written = (tmp_path / "output_no_1_0.0_None_99.txt").read_text(encoding="utf-8")
    for shown in (text, printed, written):
        assert "fox" in shown and "![](http://example.org/a.png) <b>$$</b>" in shown
        assert not set(shown) & set(map(chr, [*range(10), *range(11, 32), *range(127, 160)]))


def test_ids_beyond_the_tokenizer_are_never_sampled(tmp_path):
    """A: of 50304 ids the last 43 are no token, even if they have by far the best logits."""
    model = GPTModel({**SHARP_CONFIG, "vocab_size": 50304, "tie_embeddings": False})
    tokenizer = get_tokenizer(50304)
    with torch.no_grad():
        model.out_head.weight[50261:] *= 1e4
    logits = model(torch.tensor([[1]]))[0, -1]
    assert logits.argmax() >= 50261
    for temperature in (0.0, 1.0):
        pieces = "".join(stream_story(model, tokenizer, max_new_tokens=20, temperature=temperature))
        assert pieces
        ids = generate(model, torch.tensor([[1]]), 20, 16, temperature)
        assert ids.max() < 50261
        token_ids_to_text(ids, tokenizer)
    assert generate_story(1, model, tokenizer, tmp_path, max_new_tokens=20)
    with pytest.raises(ValueError, match="the ids reach from 50300 to 50300; the last is 50260"):
        token_ids_to_text(torch.tensor([50300]), tokenizer)


def test_half_a_character_in_the_opening_costs_no_story(storyteller, tmp_path):
    """Half of an emoji, as some editors cut it, cannot be written: it becomes a question mark."""
    generate_story(1, *storyteller, tmp_path, start_context="A fox \ud83e", max_new_tokens=3)
    written = (tmp_path / "output_no_1_0.0_None_3.txt").read_text(encoding="utf-8")
    assert written.startswith("A fox ?")
    with pytest.raises(ValueError, match="output_dir is None; it must be a path"):
        generate_story(1, *storyteller, None)


def test_the_bundled_model_and_the_page_in_the_browser_have_the_default_settings():
    """They cannot read golpo/stories.py."""
    config = json.loads((BUNDLED_MODEL / "generation_config.json").read_text(encoding="utf-8"))
    names = ("temperature", "top_k", "top_p", "min_p")
    assert {name: config[name] for name in names} == {
        name: DEFAULT_SAMPLING[name] for name in names
    }
    page = (PROJECT_DIR / "docs/app/index.html").read_text(encoding="utf-8")
    for name in (*names, "max_new_tokens"):
        control = name.replace("max_new", "max").replace("_", "-")
        (value,) = re.findall(rf'id="{control}" [^>]*value="([\d.]+)"', page)
        assert float(value) == DEFAULT_SAMPLING[name], name
