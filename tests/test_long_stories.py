"""What the model sees of a story that is longer than its context."""

import pytest
import torch
from helpers import WORDS_CONFIG

import golpo.long_stories
from golpo.long_stories import sight_of, stream_long_story
from golpo_utils import GPTModel, get_tokenizer, story_opening, stream_story

LONG = "The fox ran home. She was tired, and the moon was high. " * 12


@pytest.fixture(scope="module")
def storyteller():
    torch.manual_seed(0)
    return GPTModel(WORDS_CONFIG).eval(), get_tokenizer(4096)


def opening_of(sight, tokenizer):
    return story_opening(tokenizer, sight.prompt, sight.title)


def test_all_of_a_short_story_is_seen(storyteller):
    model, tokenizer = storyteller
    sight = sight_of(model, tokenizer, "Once upon a time", "The Mill", " Mira lives here. ")
    assert (sight.start, sight.prompt) == (0, "Mira lives here.\n\nOnce upon a time")
    assert sight_of(model, tokenizer, "Once upon", "Mill").prompt == "Once upon"


def test_title_note_and_newest_text_are_seen_of_a_long_one(storyteller):
    model, tokenizer = storyteller
    sight = sight_of(model, tokenizer, LONG, "The Mill", "Mira lives here.")
    assert sight.text == LONG[sight.start :] and 0 < sight.start < len(LONG)
    assert sight.text.startswith(("The fox", "She was")), "it begins with a sentence"
    assert sight.prompt.startswith("Mira lives here.\n\n") and sight.title == "The Mill"
    assert len(opening_of(sight, tokenizer)) <= WORDS_CONFIG["context_length"]


@pytest.mark.parametrize("text", ["x" * 3000, "🦊" * 400, "", " " * 900, "\n" * 900])
@pytest.mark.parametrize("title", ["", "T" * 800, "🦊" * 800])
@pytest.mark.parametrize("note", ["", "word " * 500])
def test_whatever_is_given_leaves_room_to_write(storyteller, text, title, note):
    model, tokenizer = storyteller
    sight = sight_of(model, tokenizer, text, title, note)
    assert len(opening_of(sight, tokenizer)) <= WORDS_CONFIG["context_length"]
    assert text.endswith(sight.text) and len(text) - len(sight.text) == sight.start
    pieces = list(
        stream_long_story(model, tokenizer, text, title=title, note=note, max_new_tokens=3, seed=1)
    )
    assert "".join(pieces)


def test_within_the_context_it_is_what_stream_story_generates(storyteller):
    model, tokenizer = storyteller
    settings = {"title": "The Mill", "seed": 3, "max_new_tokens": 40, "temperature": 1.0}
    expected = "".join(stream_story(model, tokenizer, "Once", **settings))
    assert "".join(stream_long_story(model, tokenizer, "Once", **settings)) == expected


def test_past_the_context_each_part_sees_title_note_and_what_was_written(storyteller, monkeypatch):
    model, tokenizer = storyteller
    prompts = []
    real = golpo.long_stories.stream_story

    def listen(model, tokenizer, prompt, **settings):
        prompts.append((prompt, settings["title"], settings["max_new_tokens"]))
        return real(model, tokenizer, prompt, **settings)

    monkeypatch.setattr(golpo.long_stories, "stream_story", listen)
    sights = []
    settings = {"title": "The Mill", "note": "Mira lives here.", "max_new_tokens": 200, "seed": 3}
    stream = stream_long_story(model, tokenizer, LONG, on_sight=sights.append, **settings)
    text = LONG + "".join(stream)
    assert len(prompts) > 4 and sum(count for *_, count in prompts) == 200
    assert [sight.prompt for sight in sights] == [prompt for prompt, *_ in prompts]
    for prompt, title, _ in prompts:
        assert title == "The Mill"
        note, newest = prompt.split("\n\n", 1)
        assert note == "Mira lives here." and newest in text
    starts = [sight.start for sight in sights]
    assert starts == sorted(starts)


def test_half_a_character_at_a_seam_is_dropped(storyteller, monkeypatch):
    model, tokenizer = storyteller

    def script(model, tokenizer, prompt, *, max_new_tokens, **settings):
        yield from ["a fox", "\ufffd"]
        return "limit"

    monkeypatch.setattr(golpo.long_stories, "stream_story", script)
    text = "".join(stream_long_story(model, tokenizer, LONG, max_new_tokens=100))
    assert text.count("a fox") > 1
    assert text.count("\ufffd") == 1 and text.endswith("\ufffd"), "only the very end may keep it"


def test_a_story_may_end_in_any_part(storyteller, monkeypatch):
    model, tokenizer = storyteller
    script = iter([(["One."], "limit"), ([" Two."], "end")])

    def stream(*arguments, **settings):
        pieces, why = next(script)
        yield from pieces
        return why

    monkeypatch.setattr(golpo.long_stories, "stream_story", stream)
    pieces = stream_long_story(model, tokenizer, LONG, max_new_tokens=500)
    found = []
    with pytest.raises(StopIteration) as stop:
        while True:
            found.append(next(pieces))
    assert found == ["One.", " Two."] and stop.value.value == "end"
