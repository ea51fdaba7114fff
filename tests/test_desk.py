"""The writer's desk without a browser: what a page asks for, and what it is shown."""

import asyncio
import copy
import itertools
import json
import math
import os
import pathlib
import signal
import threading

import pytest
import torch
from desk_page import Page, authors, script_model
from helpers import WORDS_CONFIG
from safetensors.torch import load_file

import golpo.desk
import golpo.desk_writing
import golpo.shelf
import golpo_utils
from golpo.adapter_files import base_fingerprint
from golpo.beam_stories import beam_story
from golpo.choices import Choice, append_choice, read_choices
from golpo.desk import Desk
from golpo.desk_form import PRESETS
from golpo.desk_stream import StoryReader, stream_passage
from golpo.dpo import opening_ids
from golpo.lora import adapter_names
from golpo.requests import Request, request_opening
from golpo.shelf import Shelf
from golpo.stories import remove_markers
from golpo.word_choices import surprise, word_choice
from golpo_utils import GPTModel, get_tokenizer, story_opening, stream_story

HOSTILE = [
    "",
    "   ",
    "a" * 800,
    "😀" * 20,
    "<b>&amp;</b>",
    "$$x^2$$",
    "<|end|> <|title|>",
    "\x1b[2J",
]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return GPTModel(WORDS_CONFIG).eval(), get_tokenizer(4096)


@pytest.fixture
def desk(model, tmp_path):
    page = Page()
    desk = Desk(*model, tmp_path, "a model", page.take)
    desk.page = page
    desk.ask = lambda do, /, **values: desk.receive({"do": do, **values})
    desk.ask("hello")
    desk.ask("form", values={"max_new_tokens": 20})
    yield desk
    assert page.text == desk.manuscript.text == desk.shown
    assert page.authors == authors(desk) and page.facts == desk.facts()


@pytest.fixture
def writes(monkeypatch):
    """Let the model write from a script: writes(pieces, why) → the calls that were made."""
    return script_model(monkeypatch)


def on_a_loop(action):
    """Run an async function as a notebook would: on a loop that was running before."""
    return asyncio.run(asyncio.wait_for(action(), timeout=60))


def type_text(desk, text):
    """Change the story to `text` by hand, from the first character that differs."""
    old = desk.shown
    start = len(os.path.commonprefix([old, text]))
    desk.ask("edit", start=start, end=len(old), text=text[start:], length=len(old))


def test_the_page_shows_what_stream_story_generates(desk, model):
    type_text(desk, "Once upon a time")
    desk.ask("form", values={"seed": 5})
    desk.ask("go")
    settings = {**desk.form.settings()}
    told = "".join(stream_story(*model, "Once upon a time", **settings))
    assert desk.page.text == "Once upon a time" + remove_markers(told)
    assert desk.page.facts["state"][:2] == ["limit", desk.writing.tokens]
    assert desk.page.authors == [0] * 16 + [1] * (len(desk.page.text) - 16)
    assert desk.writing.tokens > 10


def test_a_title_and_no_marker_is_read_from_the_model(model):
    raw = "\n<|title|>Fish & <i>Chips</|title|>\n\nOne <b>day</b>.<|start|> x<"
    reader = StoryReader(at_start=True)
    pieces = [reader.feed(character) for character in raw]
    assert pieces[-1].title == "Fish & <i>Chips"
    assert "".join(piece.words for piece in pieces) == "One <b>day</b>. x"
    assert not any("|" in (piece.title or "") for piece in pieces)


LONG = "word " * 100
CUT = LONG[:199]  # the words of the first 200 characters


@pytest.mark.parametrize(
    ("written", "title", "prose"),
    [
        ("<|title|>The Fox\n\nA fox ran.\nIt slept.", "The Fox", "A fox ran.\nIt slept."),
        ("<|title|>\nThe Fox</|title|>\n\nA fox ran.", "The Fox", "A fox ran."),
        ("<|title|>The Fox<|title|>\nA fox ran.", "The Fox", "A fox ran."),
        ("<|title|>The Fox<|start|>A fox ran.", "The Fox", "A fox ran."),
        ("<|title|>The\nFox</|title|>\n\nA fox ran.", "The", "Fox\n\nA fox ran."),
        ("<|title|></|title|>\nA fox ran.", "", "A fox ran."),
        ("<|title|>" + LONG, CUT, LONG.removeprefix(CUT + " ")),
        ("<|title|>" + "x" * 300, "x" * 200, "x" * 100),
        ("<|title|>" + "x" * 200 + "</|title|>\nA fox.", "x" * 200, "A fox."),
        ("<|title|>" + "x" * 199 + "\nA fox.", "x" * 199, "A fox."),
        ("<|title|>" + "x" * 205 + "\nA fox.", "x" * 200, "xxxxx\nA fox."),
    ],
    ids=lambda text: text[:20],
)
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_title_that_is_never_ended_takes_no_story_with_it(written, title, prose, size):
    """Whatever pieces it comes in; and what was given out is never taken back."""
    reader = StoryReader(at_start=True)
    pieces = [reader.feed(written[n : n + size]) for n in range(0, len(written), size)]
    assert pieces[-1].title == title
    assert "".join(piece.words for piece in pieces) == prose


def test_a_request_is_what_the_model_sees(model):
    settings = {"seed": 3, "temperature": 1.0}
    request = Request(hero="Hanna")
    pieces = stream_passage(*model, "One day", "Fox", "", request, max_new_tokens=12, **settings)
    raw = "".join(piece.raw for piece in pieces)
    opening = request_opening(request, "Fox", "One day")
    assert raw == "".join(stream_story(*model, **opening, max_new_tokens=12, **settings))


def test_past_the_context_the_model_sees_title_and_note(desk):
    desk.ask("form", values={"note": "Mira is brave.", "max_new_tokens": 10})
    desk.ask("title", title="The Mill")
    for _ in range(10):
        desk.ask("go")
    assert desk.writing.sight > 0 and not desk.page.messages()
    assert desk.page.facts["sight"] == desk.writing.sight


@pytest.fixture
def prefills(desk, monkeypatch):
    """The ids that the model begins with, each time that it begins to write."""
    found = []
    real = golpo_utils.Decoder.prefill

    def prefill(decoder, token_ids):
        found.append(token_ids[0].tolist())
        return real(decoder, token_ids)

    monkeypatch.setattr(golpo_utils.Decoder, "prefill", prefill)
    return found


@pytest.mark.parametrize("hero", ["", "Hanna"])
@pytest.mark.parametrize("text", ["", "Once there was a mill."])
def test_with_a_request_too_title_and_note_are_seen_past_the_context(desk, prefills, hero, text):
    desk.ask("form", values={"note": "Mira is brave.", "hero": hero, "max_new_tokens": 150})
    desk.ask("title", title="Mill")
    type_text(desk, text)
    desk.ask("go")
    seen = [desk.tokenizer.decode(ids) for ids in prefills]
    assert len(seen) > 3 and not desk.page.messages()
    assert all("Mira is brave." in opening and "Mill" in opening for opening in seen)
    assert ["Hero: Hanna" in opening for opening in seen] == [bool(hero)] + [False] * len(seen[1:])
    assert desk.writing.sight > 0
    desk.ask("undo")
    desk.ask("form", values={"max_new_tokens": 10})
    desk.ask("go")
    assert desk.writing.sight == 0


def test_a_long_request_leaves_room_for_the_title_that_the_model_chooses(desk, prefills):
    words = "lamp, owl, mill, fox, moon, house, tree, river, stone, bread"
    desk.ask("form", values={"words": words, "max_new_tokens": 120})
    desk.ask("go")
    length = desk.model.config["context_length"]
    assert len(prefills[0]) > length // 2 and len(prefills) > 2
    assert all(len(ids) <= length for ids in prefills)
    marker = desk.tokenizer.encode("<|start|>", allowed_special="all")
    assert all(ids[: len(marker)] == marker for ids in prefills)


def test_the_inspector_shows_what_the_model_would_see(desk, monkeypatch, prefills):
    seen = []
    real = golpo.desk.inspect_next

    def inspect_next(model, tokenizer, prose, title, *values, **more):
        seen.append(story_opening(tokenizer, prose, title, **more))
        return real(model, tokenizer, prose, title, *values, **more)

    monkeypatch.setattr(golpo.desk, "inspect_next", inspect_next)
    desk.ask("form", values={"note": "Mira is brave.", "hero": "Hanna", "max_new_tokens": 10})
    for text in ("", "Once there ", "Once there was a mill. " * 20):
        type_text(desk, text)
        prefills.clear()
        desk.ask("inspect")
        desk.ask("go")
        assert seen[-1] == prefills[0]
        desk.ask("undo")
    assert not desk.page.messages()


def test_undo_and_redo_go_over_every_change(desk, writes):
    texts = [""]
    for number in range(3):
        type_text(desk, desk.page.text + f" I{number}")
        texts.append(desk.page.text)
        writes([f" it{number}"], "limit")
        desk.ask("go")
        texts.append(desk.page.text)
    for text in reversed(texts[:-1]):
        desk.ask("undo")
        assert desk.page.text == text
    assert not desk.page.facts["undo"]
    for text in texts[1:]:
        desk.ask("redo")
        assert desk.page.text == text
    runs = [author for author, _ in itertools.groupby(desk.page.authors)]
    assert runs == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("why, gap", [("end", "\n\n"), ("limit", "")])
def test_continue_goes_on_from_the_text_as_it_stands(desk, writes, why, gap):
    calls = writes(["<|title|>Two</|title|>", "\n\nA dog", " ran."], why)
    desk.ask("go")
    desk.ask("edit", start=2, end=5, text="cat", length=10)
    writes([" Away!"])
    desk.ask("go")
    assert calls[1][:2] == ("A cat ran." + gap, "Two")
    assert desk.page.text == f"A cat ran.{gap} Away!"


def test_words_that_a_person_adds_behind_the_end_are_gone_on_from(desk, writes):
    calls = writes(["A dog ran."])
    desk.ask("go")
    type_text(desk, "A dog ran. Then it")
    writes([" slept."])
    desk.ask("ways", count=1)
    desk.ask("go")
    assert [text for text, *_ in calls[1:]] == ["A dog ran. Then it"] * 2
    assert desk.page.text == "A dog ran. Then it slept."


def test_continue_from_the_cursor_keeps_the_rest_in_undo(desk, writes):
    type_text(desk, "A dog ran home.")
    writes([" slept."])
    desk.ask("go", at=5)
    assert desk.page.text == "A dog slept."
    desk.ask("undo")
    assert desk.page.text == "A dog ran home."


def test_retry_replaces_the_last_passage_with_the_next_seed(desk, writes):
    calls = writes(["<|title|>One</|title|>\n\nA dog ran."])
    desk.ask("go")
    writes(["<|title|>Two</|title|>\n\nA cat."])
    desk.ask("retry")
    assert (desk.page.text, desk.manuscript.title) == ("A cat.", "Two")
    assert [call[2]["seed"] for call in calls] == [1, 2] and calls[1][:2] == ("", "")
    desk.ask("go")
    writes([" It slept."])
    desk.ask("retry")
    assert calls[3][0] == "A cat.\n\n"
    for _ in range(3):
        desk.ask("undo")
    assert (desk.page.text, desk.manuscript.title) == ("A dog ran.", "One")


@pytest.mark.parametrize("text", ["", "x"])
def test_tokens_are_counted_where_a_character_is_several(tmp_path, monkeypatch, text):
    """As in Bengali with an English tokenizer: max tokens are tokens, not characters."""
    tokenizer = get_tokenizer(600)
    ids = tokenizer.encode("গল্প ")
    sampled = []

    def sample(probabilities, uniform):
        sampled.append(ids[len(sampled) % len(ids)])
        return torch.tensor([sampled[-1]])

    monkeypatch.setattr(golpo_utils, "sample_token", sample)
    page = Page()
    model = GPTModel(WORDS_CONFIG | {"vocab_size": 600}).eval()
    desk = Desk(model, tokenizer, tmp_path, "", page.take)
    desk.receive({"do": "hello"})
    desk.receive({"do": "edit", "start": 0, "end": 0, "text": text, "length": 0})
    desk.receive({"do": "form", "values": {"max_new_tokens": 100}})
    desk.receive({"do": "go"})
    assert not page.messages() and len(sampled) == 100
    assert 90 < page.facts["state"][1] <= 100


def test_stop_and_edit_while_the_model_writes(desk):
    async def play():
        desk.ask("form", values={"max_new_tokens": 2000})
        desk.ask("go")
        assert desk.page.state == "writing"
        while desk.writing.tokens < 5:
            await asyncio.sleep(0.001)
        desk.ask("edit", start=0, end=0, text="x", length=0)
        assert "press Stop" in desk.page.messages()[-1]
        desk.ask("stop")
        tokens = desk.writing.tokens
        while desk.runner.busy:
            await asyncio.sleep(0.001)
        return desk.writing.tokens - tokens

    assert on_a_loop(play) <= 1
    assert desk.page.state == "stopped" and desk.page.text


def test_interrupt_keeps_the_text_and_gives_the_signal_back(desk):
    before = signal.getsignal(signal.SIGINT)

    async def play():
        desk.ask("form", values={"max_new_tokens": 2000})
        desk.ask("go")
        handler = signal.getsignal(signal.SIGINT)  # asyncio.run has one of its own
        while desk.writing.tokens < 5:
            await asyncio.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)
        while desk.runner.busy:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        assert signal.getsignal(signal.SIGINT) is handler

    on_a_loop(play)
    assert desk.manuscript.now.ended == "stopped" and desk.page.text
    assert signal.getsignal(signal.SIGINT) is before


EXACT = {**PRESETS["exact"], "max_new_tokens": 12}


@pytest.mark.parametrize("num_beams", [1, 2, 4, 8])
def test_the_preset_exact_searches_with_beams(desk, model, num_beams):
    type_text(desk, "Once upon a time")
    desk.ask("form", values=EXACT | {"num_beams": num_beams})
    desk.page.events.clear()
    desk.ask("go")
    expected = beam_story(*model, "Once upon a time", num_beams=num_beams, max_new_tokens=12)
    assert desk.page.text == "Once upon a time" + remove_markers(expected)
    words = [event["+"] for event in desk.page.events if event.get("+")]
    # With beams nothing is shown before the end.
    assert num_beams == 1 or words in ([], [desk.page.text.removeprefix("Once upon a time")])
    assert desk.writing.tokens == 12 and not desk.page.messages()


def test_beams_belong_to_temperature_0_and_to_one_passage(desk, writes, tmp_path):
    calls = writes([" a"])
    desk.ask("form", values={"num_beams": 4})
    desk.ask("go")
    desk.ask("form", values=EXACT)
    desk.ask("ways", count=2)
    desk.ask("go")
    assert ["num_beams" in options for _, _, options in calls] == [False, False, False, True]
    desk.ask("save_preset", name="mine")
    assert desk.form.own["mine"]["num_beams"] == 4
    assert json.loads((tmp_path / "presets.json").read_text()) == desk.form.own


def test_with_beams_the_model_writes_a_title_and_past_its_context(desk, model):
    """The passage is searched for part by part; no piece of text is written twice."""
    length = model[0].config["context_length"]
    desk.ask("form", values=EXACT | {"num_beams": 2, "max_new_tokens": length, "note": "Mira."})
    desk.ask("go")
    first = desk.page.text
    desk.ask("go")
    assert not desk.page.messages()
    assert first and desk.page.text.startswith(first) and len(desk.page.text) > len(first)
    assert desk.writing.sight > 0


def test_stop_while_beams_search_leaves_the_text(desk):
    async def play():
        desk.ask("form", values=EXACT | {"num_beams": 8, "max_new_tokens": 2000})
        desk.ask("go")
        while desk.writing.tokens < 5:
            await asyncio.sleep(0.001)
        desk.ask("stop")
        tokens = desk.writing.tokens
        while desk.runner.busy:
            await asyncio.sleep(0.001)
        return desk.writing.tokens - tokens

    type_text(desk, "Once upon a time")
    assert on_a_loop(play) <= 1
    assert desk.page.state == "stopped"
    assert desk.page.text == "Once upon a time" and desk.writing.tokens < 2000


@pytest.mark.parametrize("loop", [True, False], ids=["in a notebook", "in plain Python"])
def test_an_error_is_one_sentence_on_the_page(tmp_path, loop):
    model = GPTModel(WORDS_CONFIG).eval()
    torch.nn.init.constant_(model.tok_emb.weight, math.nan)
    page = Page()
    desk = Desk(model, get_tokenizer(4096), tmp_path, "", page.take)
    desk.receive({"do": "hello"})

    async def play():
        desk.receive({"do": "go"})
        while desk.runner.busy or not page.messages():
            await asyncio.sleep(0.001)

    on_a_loop(play) if loop else desk.receive({"do": "go"})
    assert "damaged" in page.messages()[-1] and "Traceback" not in page.messages()[-1]
    assert page.state != "writing"


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_whatever_is_in_a_field_the_model_writes(desk, text):
    desk.ask("title", title=text)
    desk.ask("form", values={"note": text})
    type_text(desk, text)
    desk.ask("go")
    assert not desk.page.messages() and desk.writing.tokens > 0
    for kind in ("md", "html", "txt"):
        desk.ask("export", kind=kind)
    assert len(desk.page.files) == 3 or not desk.page.text.strip()


def test_two_pages_show_the_same_story(desk):
    type_text(desk, "One 😀 day")
    desk.ask("edit", start=4, end=5, text="two", length=9, source="a page")
    assert desk.page.text == "One two day"
    desk.ask("edit", start=0, end=1, text="x", length=3)
    assert "another page" in desk.page.messages()[-1] and desk.page.text == "One two day"


def test_a_request_is_done_when_its_action_is_over(desk, writes):
    """Even if the action fails: until then the page takes no typing."""
    type_text(desk, "One day")
    for number, name in enumerate(("new", "retry")):
        desk.page.events.clear()
        desk.ask(name, request=number)
        assert desk.page.events[-1] == {"done": number}
        assert len(desk.page.events) > 1


@pytest.mark.parametrize(
    "message",
    [
        {"do": "format the disk"},
        {},
        {"do": "edit"},
        {"do": "go", "at": "x"},
        {"do": "form", "values": {"temperature": "hot"}},
        {"do": "form", "values": {"top_k": True}},
        {"do": "form", "values": {"num_beams": 3}},
        {"do": "form", "values": {"num_beams": True}},
        {"do": "open", "name": "../../etc/passwd"},
        {"do": "take", "number": 1},
        {"do": "word", "at": 99},
        {"do": "export", "kind": "pdf"},
        {"do": "retry"},
        {"do": "learn"},
        {"do": "inspect", "layer": 99, "head": 0},
        {"do": "inspect", "layer": 0, "head": 2},
        {"do": "inspect", "layer": -1, "head": 0},
        {"do": "inspect", "layer": 0, "head": 0.5},
        {"do": "inspect", "layer": None, "head": 0},
    ],
    ids=str,
)
def test_a_message_that_makes_no_sense_is_a_sentence(desk, message):
    desk.receive(message)
    assert len(desk.page.messages()) == 1 and not desk.runner.busy


# Choices


def test_three_ways_on_one_is_taken(desk, writes):
    calls = writes([f" w{n}" for n in range(9)] + [" end.", " more"], "limit")
    type_text(desk, "A dog")
    desk.ask("ways")
    assert [call[2]["seed"] for call in calls] == [1, 2, 3]
    ways = desk.page.last("ways")["ways"]
    assert len(ways) == 3 and ways[1][2].endswith(" end.") and ways[1][3] == "limit"
    assert desk.page.text == "A dog"
    desk.ask("take", number=1)
    assert desk.page.text == "A dog" + ways[1][2] and desk.page.last("ways")["ways"] == []
    desk.ask("undo")
    assert desk.page.text == "A dog"


def test_ways_on_differ_where_every_seed_writes_the_same(desk):
    """At temperature 0 a page showed three equal ways."""
    desk.ask("form", values={"temperature": 0.0, "top_k": 0, "min_p": 0.0})
    desk.ask("ways", short=False)
    ways = desk.page.last("ways")["ways"]
    assert [way[0] for way in ways] == ["exact", "seed 2", "seed 3"]
    assert len({way[2] for way in ways}) == 3
    desk.ask("close")
    desk.ask("go")
    assert desk.page.text == ways[0][2].strip()


@pytest.mark.parametrize("changed", ["A dog", "A dog ran home. It", ""])
def test_a_way_is_for_the_text_that_it_was_written_for(desk, writes, changed):
    writes([" and slept."])
    type_text(desk, "A dog ran home.")
    desk.ask("ways", count=2)
    type_text(desk, changed)
    desk.ask("take", number=0)
    assert "has changed" in desk.page.messages()[-1] and desk.page.text == changed
    desk.ask("undo")
    desk.ask("take", number=0)
    assert desk.page.text == "A dog ran home. and slept."


@pytest.mark.parametrize("why, text, whole", [
    ("end", "", "A dog ran.\n\n It slept."),
    ("limit", " Then ", "A dog ran. Then It slept."),
])  # fmt: skip
def test_a_way_is_taken_after_what_it_was_written_after(desk, writes, why, text, whole):
    writes(["A dog ran."], why)
    desk.ask("go")
    type_text(desk, desk.page.text + text)
    writes(["It slept." if text else " It slept."])
    desk.ask("ways", count=2)
    desk.ask("take", number=1)
    assert desk.page.text == whole and not desk.page.messages()


def test_whole_stories_side_by_side_in_each_style(desk, writes, model, tmp_path):
    calls = writes(["<|title|>Two</|title|>\n\nA dog", " ran."])
    desk.ask("ways", count="styles", short=False)
    assert len({call[2]["temperature"] for call in calls}) == 4
    assert desk.page.messages() == []
    desk.ask("take", number=3)
    assert (desk.page.text, desk.manuscript.title) == ("A dog ran.", "Two")


def test_the_liked_way_is_noted(desk, model, tmp_path):
    type_text(desk, "A dog")
    desk.ask("ways", count=2, short=False)
    ways = [way[2] for way in desk.page.last("ways")["ways"]]
    desk.ask("like", number=1)
    (choice,) = read_choices(tmp_path).choices
    assert choice.liked == 1 and choice.opening == "A dog"
    assert [remove_markers(story) for story in choice.stories] == ways
    assert choice.checkpoint == base_fingerprint(model[0])
    assert desk.page.last("taste")["choices"] == 1 and not desk.page.last("ways")["can_like"]
    desk.ask("like", number=0)
    assert "already" in desk.page.messages()[-1]
    assert len(read_choices(tmp_path).choices) == 1


@pytest.mark.parametrize("hero", ["", "Hanna"])
@pytest.mark.parametrize("text", ["Once upon a ", "Once", ""])
@pytest.mark.parametrize("title", ["", "The Mill"])
def test_a_choice_begins_with_what_the_model_saw(desk, prefills, tmp_path, hero, text, title):
    desk.ask("form", values={"note": " Mira is brave. ", "hero": hero})
    desk.ask("title", title=title)
    type_text(desk, text)
    desk.ask("ways", count=2)
    desk.ask("like", number=0)
    assert not desk.page.messages()
    (choice,) = read_choices(tmp_path).choices
    assert opening_ids(choice, desk.tokenizer) == prefills[0]


def test_whoever_clicks_as_soon_as_the_ways_are_there_is_heard(desk, tmp_path):
    take = desk.send

    def click(event, buffers=None):
        take(event, buffers)
        ways = event.get("ways") if event.get("ev") == "ways" else None
        if ways and event["can_like"] and all(ended for *_, ended in ways):
            desk.ask("like", number=0)

    desk.send = click
    type_text(desk, "A dog")
    desk.ask("ways", count=2, short=False)
    assert len(read_choices(tmp_path).choices) == 1 and not desk.page.messages()


def test_the_streamed_ways_are_the_whole_ones(desk):
    """On a loop, where frames are sent: their words together are what is shown at the end."""

    async def play():
        desk.ask("ways", count=4, short=False)
        while desk.runner.busy:
            await asyncio.sleep(0.001)

    on_a_loop(play)
    added = ["", "", "", ""]
    for event in desk.page.events:
        for number, words in event.get("w", []):
            added[number] += words
    whole = [way[2] for way in desk.page.last("ways")["ways"]]
    assert all(text.startswith(part) for text, part in zip(whole, added, strict=True))


def test_another_word_is_taken_and_the_story_goes_on(desk, writes):
    type_text(desk, "Once upon a time")
    desk.ask("word", at=7)
    word = desk.page.last("word")
    assert word["text"] == " upon" and len(word["others"]) == 10 and 0 < word["p"] < 1
    writes([" more."])
    other = word["others"][0][0]
    desk.ask("take_word", start=word["start"], word=other, old=" upon")
    assert desk.page.text == "Once" + other + " more."
    desk.ask("take_word", start=4, word="<|end|>", old=other)
    assert desk.page.text == "Once" and desk.manuscript.now.ended == "end"
    assert not desk.page.messages()


@pytest.mark.parametrize("word", [" cat", "<|end|>"])
def test_another_word_for_one_that_is_no_longer_there_is_refused(desk, writes, word):
    type_text(desk, "Once upon a time")
    desk.ask("word", at=7)
    found = desk.page.last("word")
    desk.ask("edit", start=0, end=0, text="Long ago. ", length=16)
    desk.ask("take_word", start=found["start"], word=word, old=found["text"])
    assert "' upon'" in desk.page.messages()[-1]
    assert desk.page.text == "Long ago. Once upon a time" and not desk.runner.busy


def test_surprise_covers_the_text(desk):
    type_text(desk, "Once upon a 😀 time")
    desk.ask("surprise")
    bits = desk.page.last("surprise")["bits"]
    assert sum(length for length, _ in bits) == len(desk.page.text)
    assert all(bit >= 0 for _, bit in bits)


def test_other_words_and_surprise_see_the_request(desk, model):
    text = "Once upon a time"
    type_text(desk, text)
    found = []
    for hero in ("", "Hanna"):
        desk.ask("form", values={"hero": hero, "note": "Mira is brave."})
        desk.ask("word", at=7)
        desk.ask("surprise")
        around = {"note": "Mira is brave.", "request": Request(hero=hero or None)}
        expected = word_choice(*model, text, 7, **around)
        assert desk.page.last("word")["p"] == expected.probability
        bits = [round(one, 1) for _, one in surprise(*model, text, **around)]
        assert [one for _, one in desk.page.last("surprise")["bits"]] == bits
        found.append(expected.probability)
    assert found[0] != found[1] and not desk.page.messages()


def test_learning_gives_a_taste_whose_strength_is_set(desk, tmp_path):
    for number in range(10):
        desk.ask("form", values={"seed": 10 * number})
        desk.ask("ways", count=2, short=False)
        desk.ask("like", number=0)
    desk.ask("learn")
    assert "Learned from 8 choices" in desk.page.messages()[-1], desk.page.messages()[-3:]
    assert (tmp_path / "taste-1").is_dir()
    assert desk.page.last("taste")["strength"] == 1.0
    desk.ask("strength", value=0)
    assert desk.learning.strength == 0
    desk.ask("strength", value=9)
    assert "9" in desk.page.messages()[-1]
    desk.ask("strength", value=0)


@pytest.fixture
def learner(desk, tmp_path):
    """A desk with a model of its own, and twelve choices."""
    desk.model = GPTModel(WORDS_CONFIG).eval()
    for number in range(12):
        append_choice(tmp_path, Choice([f" The owl saw {number} mice.", f" No {number}."], 0))
    return desk


def adapters_of(desk):
    """The strength of each adapter in the desk's model."""
    model = desk.model
    return {name: model.adapters[name].layers()[0].strength for name in adapter_names(model)}


def test_a_second_studio_has_the_taste_of_the_first(learner, tmp_path):
    """As when the cell is run again: the model is the same one."""
    learner.ask("learn")
    assert list(adapters_of(learner).values()) == [1.0]
    page = Page()
    other = Desk(learner.model, learner.tokenizer, tmp_path, "", page.take)
    other.receive({"do": "hello"})
    assert page.last("taste")["strength"] == 1.0
    other.receive({"do": "strength", "value": 0.5})
    assert not page.messages() and list(adapters_of(learner).values()) == [0.5]
    other.receive({"do": "learn"})
    assert list(adapters_of(learner).values()) == [1.0]
    # Learning began with the plain model, so the same choices teach the same.
    folders = (tmp_path / "taste-1", tmp_path / "taste-2")
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    assert first.keys() == second.keys()
    for name, weights in first.items():
        torch.testing.assert_close(second[name], weights)


def stop_at_once(desk):
    async def play():
        desk.ask("learn")
        await asyncio.sleep(0.02)
        desk.ask("stop")
        while desk.runner.busy:
            await asyncio.sleep(0.001)

    on_a_loop(play)


def forget_choices(desk):
    (desk.learning.folder / "choices.jsonl").unlink()
    desk.ask("learn")


@pytest.mark.parametrize("fail", [stop_at_once, forget_choices])
def test_learning_that_ends_early_leaves_the_taste_there_was(learner, fail):
    learner.ask("learn")
    learner.ask("strength", value=0.7)
    before = adapters_of(learner)
    learner.page.events.clear()
    fail(learner)
    assert learner.page.messages() and adapters_of(learner) == before
    assert learner.page.last("taste")["strength"] == 0.7
    assert not (learner.learning.folder / "taste-2").exists()


def test_a_strength_that_is_refused_loads_nothing(learner, tmp_path):
    fresh = copy.deepcopy(learner.model)
    learner.ask("learn")
    page = Page()
    other = Desk(fresh, learner.tokenizer, tmp_path, "", page.take)
    other.receive({"do": "strength", "value": 9})
    assert "9" in page.messages()[-1] and adapter_names(fresh) == []
    other.receive({"do": "strength", "value": 0.9})
    assert len(page.messages()) == 1 and adapters_of(other) == {"taste": 0.9}


# The shelf


def test_the_story_is_kept_while_it_is_written_and_found_by_another_desk(desk, model, tmp_path):
    async def play():
        desk.ask("form", values={"max_new_tokens": 2000})
        desk.ask("go")
        while not Shelf(tmp_path).stories():
            await asyncio.sleep(0.01)
        assert desk.runner.busy  # a kill now would lose a few seconds
        desk.ask("stop")
        while desk.runner.busy:
            await asyncio.sleep(0.001)

    golpo.desk_writing.SECONDS_BETWEEN_SAVES, usual = 0.05, golpo.desk_writing.SECONDS_BETWEEN_SAVES
    try:
        on_a_loop(play)
    finally:
        golpo.desk_writing.SECONDS_BETWEEN_SAVES = usual
    page = Page()
    other = Desk(*model, tmp_path, "", page.take)
    other.receive({"do": "hello"})
    (row,) = page.rows
    other.receive({"do": "open", "name": row["name"]})
    assert page.text == desk.page.text
    assert page.authors == desk.page.authors


def test_opening_one_story_changes_no_other(desk, tmp_path):
    shelf = Shelf(tmp_path)
    for number in range(3):
        desk.ask("new")
        desk.ask("form", values={"note": f"note {number}"})
        type_text(desk, f"story {number}")
    before = {story.text: story.note for story in shelf.stories()}
    assert before == {f"story {n}": f"note {n}" for n in range(3)}
    for story in shelf.stories():
        desk.ask("open", name=story.name)
        assert desk.page.text == story.text and desk.form.values["note"] == story.note
    desk.ask("new")
    assert {story.text: story.note for story in shelf.stories()} == before


def test_a_story_that_two_studios_change_is_there_twice(desk, model, tmp_path):
    type_text(desk, "One day")
    page = Page()
    other = Desk(*model, tmp_path, "", page.take)
    other.receive({"do": "open", "name": desk.shelf.story.name})
    desk.ask("star", name=desk.shelf.story.name, starred=True)
    desk.ask("title", title="The Fox")
    other.receive({"do": "new"})  # it has changed nothing, and so writes nothing
    assert [story.title for story in Shelf(tmp_path).stories()] == ["The Fox"]
    other.receive({"do": "open", "name": desk.shelf.story.name})
    type_text(desk, "One day, a fox")
    other.receive({"do": "edit", "start": 7, "end": 7, "text": ", an owl", "length": 7})
    type_text(desk, "One day, a fox ran")
    assert "Another studio" in page.messages()[-1] and not desk.page.messages()
    other.receive({"do": "edit", "start": 15, "end": 15, "text": " slept", "length": 15})
    texts = {story.text for story in Shelf(tmp_path).stories()}
    assert texts == {"One day, a fox ran", "One day, an owl slept"}


def test_search_star_and_delete(desk, tmp_path):
    for text in ("the lamp", "the owl"):
        desk.ask("new")
        type_text(desk, text)
    desk.ask("search", words="LAMP")
    (row,) = desk.page.rows
    assert row["title"] == "the lamp" and row["words"] == 2
    desk.ask("star", name=row["name"], starred=True)
    assert desk.page.rows[0]["starred"]
    desk.ask("search")
    open_name = desk.page.shelf["open"]
    desk.ask("delete", name=open_name)
    assert desk.page.text == "" and len(desk.page.rows) == 1
    type_text(desk, "after it")
    assert len(Shelf(tmp_path).stories()) == 2


def test_a_folder_that_refuses_is_said_once(model, tmp_path):
    (tmp_path / "stories").write_text("in the way")
    page = Page()
    desk = Desk(*model, tmp_path, "", page.take)
    desk.receive({"do": "hello"})
    desk.receive({"do": "form", "values": {"max_new_tokens": 10}})
    desk.receive({"do": "edit", "start": 0, "end": 0, "text": "One day", "length": 0})
    desk.receive({"do": "go"})
    said = [text for text in page.messages() if "not kept" in text]
    assert len(said) == 1 and "stories" in said[0] and len(page.text) > 7


@pytest.fixture
def full_disk(monkeypatch):
    """Call it, and nothing can be written any more; call the answer, and it can."""
    replace = golpo.shelf.replace_file

    def refuse(path, write):
        raise OSError(28, "No space left on device", str(path))

    def fill():
        monkeypatch.setattr(golpo.shelf, "replace_file", refuse)
        return lambda: monkeypatch.setattr(golpo.shelf, "replace_file", replace)

    return fill


@pytest.mark.parametrize("action", ["new", "open"])
def test_a_story_that_is_not_kept_makes_room_for_no_other(desk, tmp_path, full_disk, action):
    type_text(desk, "another story")
    values = {"name": desk.shelf.story.name} if action == "open" else {}
    desk.ask("new")
    type_text(desk, "One day")
    make_room = full_disk()
    type_text(desk, "One day, a fox")
    desk.page.events.clear()
    desk.ask(action, **values)
    assert "not kept" in desk.page.messages()[0] and "No space left" in desk.page.messages()[0]
    assert desk.page.text == "One day, a fox" and desk.manuscript.can_undo
    make_room()
    desk.ask(action, **values)
    assert "One day, a fox" in {story.text for story in Shelf(tmp_path).stories()}
    assert desk.page.text != "One day, a fox"


def test_on_a_full_disk_an_empty_page_may_follow_an_empty_one(desk, full_disk):
    """Whoever has copied the story and cleared the page can begin another one."""
    type_text(desk, "One day")
    full_disk()
    type_text(desk, "One day, a fox")
    type_text(desk, "")
    desk.page.events.clear()
    desk.ask("new")
    assert not desk.page.messages() and not desk.manuscript.can_undo


def test_two_threads_keep_one_story_as_one_file(desk, tmp_path):
    """A kernel writes on its loop, and takes in what pages send on another thread."""
    type_text(desk, "A fox ran.")

    def write():
        for number in range(150):
            desk.manuscript.begin_passage()
            desk.manuscript.append(f" w{number}")
            desk.manuscript.end_passage("limit")
            desk.shelf.keep()

    thread = threading.Thread(target=write)
    thread.start()
    for number in range(150):
        desk.ask("form", values={"note": f"note {number}"})
    thread.join()
    desk.show()
    assert desk.page.messages() == []
    (story,) = Shelf(tmp_path).stories()
    assert story.text.endswith(" w149") and story.note == "note 149"
    assert os.listdir(tmp_path / "stories") == [f"{story.name}.json"]


def test_a_star_of_another_studio_lasts(desk, model, tmp_path):
    type_text(desk, "A fox ran.")
    other = Desk(*model, tmp_path, "", Page().take)
    other.receive({"do": "star", "name": desk.shelf.story.name, "starred": True})
    type_text(desk, "A fox ran home.")
    (story,) = Shelf(tmp_path).stories()
    assert story.starred and story.text == "A fox ran home."
    desk.ask("star", name=story.name, starred=False)
    type_text(desk, "A fox slept.")
    assert not Shelf(tmp_path).read(story.name).starred


def test_the_row_of_the_story_that_is_shown_changes_nothing(desk, model, tmp_path):
    type_text(desk, "A fox.")
    type_text(desk, "A fox ran.")
    name = desk.shelf.story.name
    desk.ask("open", name=name)
    assert desk.page.text == "A fox ran." and desk.manuscript.can_undo
    other = Desk(*model, tmp_path, "", Page().take)
    other.receive({"do": "open", "name": name})
    other.receive({"do": "title", "title": "The Fox"})
    desk.ask("open", name=name)  # another studio has changed it
    assert desk.manuscript.title == "The Fox"


def test_presets_of_ones_own_last(desk, model, tmp_path):
    desk.ask("form", values={"temperature": 1.7, "seed": 4})
    desk.ask("save_preset", name="  my own ")
    desk.ask("save_preset", name="wild")
    assert "'wild'" in desk.page.messages()[-1]
    other = Desk(*model, tmp_path, "", Page().take)
    assert other.form.own["my own"]["temperature"] == 1.7 and "seed" not in other.form.own["my own"]
    desk.ask("delete_preset", name="my own")
    assert json.loads((tmp_path / "presets.json").read_text()) == {}


def test_a_bad_preset_is_named_and_takes_no_other_with_it(model, tmp_path):
    path = tmp_path / "presets.json"
    content = {"mine": {"temperature": 0.7}, "old": {"top_k": 500}, "odd": 3, "wild": {}}
    path.write_text(json.dumps(content))
    page = Page()
    desk = Desk(*model, tmp_path, "", page.take)
    desk.receive({"do": "hello"})
    assert list(page.last("all")["own"]) == ["mine"]
    (said,) = page.messages()
    assert "'old'" in said and "500" in said and "'odd'" in said and "'mine'" not in said
    desk.receive({"do": "save_preset", "name": "new"})
    kept = json.loads(path.read_text())
    assert kept.pop("new")["temperature"] == desk.form.values["temperature"]
    assert kept == content, "what cannot be used here stays in the file"


@pytest.mark.parametrize("content", [b'{"x": {"top_k": 5}', b"[]", b"\xff", b"[" * 100_000, b""])
def test_a_damaged_file_of_presets_is_moved_aside(model, tmp_path, content):
    for number in (1, 2):
        (tmp_path / "presets.json").write_bytes(content)
        page = Page()
        desk = Desk(*model, tmp_path, "", page.take)
        desk.receive({"do": "hello"})
        name = f"presets.damaged{number}.json"
        assert len(page.messages()) == 1 and name in page.messages()[0]
        assert (tmp_path / name).read_bytes() == content
        desk.receive({"do": "save_preset", "name": "mine"})
        assert list(json.loads((tmp_path / "presets.json").read_text())) == ["mine"]


def test_presets_that_cannot_be_read_are_not_replaced(model, tmp_path, monkeypatch):
    path = tmp_path / "presets.json"
    path.write_text('{"mine": {"top_k": 5}}')
    real = pathlib.Path.read_bytes

    def refuse(self):
        if self == path:
            raise OSError(5, "Input/output error", str(self))
        return real(self)

    monkeypatch.setattr(pathlib.Path, "read_bytes", refuse)
    page = Page()
    desk = Desk(*model, tmp_path, "", page.take)
    desk.receive({"do": "hello"})
    desk.receive({"do": "save_preset", "name": "new"})
    assert ["presets.json" in said for said in page.messages()] == [True, True]
    monkeypatch.undo()
    desk.receive({"do": "save_preset", "name": "new"})
    assert list(json.loads(path.read_text())) == ["mine", "new"]


def test_two_studios_keep_the_presets_of_both(model, tmp_path):
    page = Page()
    one, other = (Desk(*model, tmp_path, "", page.take) for _ in range(2))
    one.receive({"do": "save_preset", "name": "one"})
    other.receive({"do": "save_preset", "name": "other"})
    one.receive({"do": "save_preset", "name": "third"})
    assert page.last("presets")["own"] == ["one", "other", "third"]
    other.receive({"do": "delete_preset", "name": "third"})
    assert page.last("presets")["own"] == ["one", "other"]
    assert list(json.loads((tmp_path / "presets.json").read_text())) == ["one", "other"]
