"""Probabilities of words in a story, against the logits of a plain forward pass."""

import math

import pytest
import torch
from helpers import WORDS_CONFIG

from golpo.desk_stream import stream_passage
from golpo.inference import load_storyteller
from golpo.requests import Request
from golpo.word_choices import surprise, token_groups, word_choice
from golpo_utils import Decoder, GPTModel, get_tokenizer, story_opening

TEXT = "Once upon a time there was a fox."


@pytest.fixture(scope="module")
def storyteller():
    torch.manual_seed(0)
    return GPTModel(WORDS_CONFIG).eval(), get_tokenizer(4096)


def test_a_word_has_the_probability_of_the_forward_pass(storyteller):
    model, tokenizer = storyteller
    choice = word_choice(model, tokenizer, TEXT, TEXT.index("time") + 2, "Mill")
    assert (choice.text, TEXT[choice.start : choice.end]) == (" time", " time")
    ids = story_opening(tokenizer, "Once upon a", "Mill")
    shares = model(torch.tensor([ids]))[0, -1].detach().softmax(0)
    [token] = tokenizer.encode(" time")
    assert choice.probability == pytest.approx(float(shares[token]), rel=1e-4)
    assert len(choice.others) == 10 and " time" not in dict(choice.others)
    figures = [share for _, share in choice.others]
    assert figures == sorted(figures, reverse=True)
    for word, share in choice.others:
        [token] = tokenizer.encode(word, allowed_special="all")
        assert share == pytest.approx(float(shares[token]), rel=1e-4)


def test_the_bundled_model_knows_how_stories_begin():
    model, tokenizer, _ = load_storyteller("bundled")
    choice = word_choice(model, tokenizer, TEXT, TEXT.index("time"))
    assert choice.probability > 0.5
    odd = word_choice(model, tokenizer, "Once upon a stone", 15)
    assert odd.others[0][0] == " time"


def test_surprise_is_minus_the_logarithm_of_each_probability(storyteller):
    model, tokenizer = storyteller
    for title in ("", "The Mill"):
        found = surprise(model, tokenizer, TEXT, title)
        assert sum(length for length, _ in found) == len(TEXT)
        position = 0
        for length, bits in found:
            share = word_choice(model, tokenizer, TEXT, position, title).probability
            assert bits == pytest.approx(-math.log2(share), abs=1e-3)
            position += length


def test_a_text_past_the_context_is_measured_to_its_end(storyteller):
    model, tokenizer = storyteller
    text = "The 🦊 ran home, and the moon rose. " * 20
    found = surprise(model, tokenizer, text, "Mill", "Mira lives here.")
    assert sum(length for length, _ in found) == len(text)
    assert all(math.isfinite(bits) and bits > 0 for _, bits in found)
    assert word_choice(model, tokenizer, text, len(text) - 3).others


def test_the_inside_of_a_character_is_the_character(storyteller):
    model, tokenizer = storyteller
    choice = word_choice(model, tokenizer, "a 🦊 ran", 2)
    assert choice.end > choice.start and "\ufffd" not in "".join(word for word, _ in choice.others)


def probability_after(model, ids, following):
    """The product of the shares of `following`, one forward pass each."""
    share = 1.0
    for token in following:
        share *= float(model(torch.tensor([ids]))[0, -1].detach().softmax(0)[token])
        ids = [*ids, token]
    return share


@pytest.mark.parametrize(
    ("text", "position", "group"),
    [("a 🦊 ran", 2, "🦊"), ("a 🦊🦊 ran", 3, "🦊"), ("দিন", 1, "ি"), ("naïve", 2, "ï")],
)
def test_a_character_of_several_tokens_has_the_probability_of_all_of_them(
    storyteller, text, position, group
):
    model, tokenizer = storyteller
    choice = word_choice(model, tokenizer, text, position, "Mill")
    assert choice.text == group
    tokens = tokenizer.encode(group)
    assert len(tokens) > 1
    ids = story_opening(tokenizer, text[:position], "Mill")
    expected = probability_after(model, ids, tokens)
    assert choice.probability == pytest.approx(expected, rel=1e-3)
    shares = model(torch.tensor([ids]))[0, -1].detach().softmax(0)
    for word, share in choice.others:
        [token] = tokenizer.encode(word, allowed_special="all")
        assert share == pytest.approx(float(shares[token]), rel=1e-4)


def test_a_token_that_begins_before_a_character_belongs_to_it():
    """In GPT-2's own vocabulary a space and half a fox are one token."""
    torch.manual_seed(0)
    tokenizer = get_tokenizer(50257)
    model = GPTModel({**WORDS_CONFIG, "vocab_size": 50257}).eval()
    tokens = tokenizer.encode(" 🦊")
    assert len(tokenizer.encode("a 🦊")) == 1 + len(tokens)
    expected = probability_after(model, story_opening(tokenizer, "a"), tokens)
    for position in (1, 2):
        choice = word_choice(model, tokenizer, "a 🦊 ran", position)
        assert (choice.start, choice.end, choice.text) == (1, 3, " 🦊")
        assert choice.probability == pytest.approx(expected, rel=1e-3)


def test_surprise_of_a_character_is_that_of_all_its_tokens(storyteller):
    model, tokenizer = storyteller
    text = "a 🦊🦊 ran, ‘naïve’ দিন"
    position = 0
    for length, bits in surprise(model, tokenizer, text):
        choice = word_choice(model, tokenizer, text, position)
        assert (choice.start, choice.end) == (position, position + length)
        assert bits == pytest.approx(-math.log2(choice.probability), rel=1e-4)
        position += length
    assert position == len(text)


def test_a_character_at_the_end_of_a_full_context(storyteller):
    """Its later tokens no longer fit behind the opening."""
    model, tokenizer = storyteller
    for count in range(model.config["context_length"] - 8, model.config["context_length"] + 2):
        text = "a" + " a" * count + "🦊"
        assert 0 < word_choice(model, tokenizer, text, len(text) - 1).probability < 1e-6


@pytest.mark.parametrize("position", [-1, 33])
def test_outside_of_the_text_is_one_sentence(storyteller, position):
    with pytest.raises(ValueError, match="no word at position"):
        word_choice(*storyteller, TEXT, position)


def test_an_empty_text_has_no_surprise(storyteller):
    assert surprise(*storyteller, "") == []


def seen_when_writing(storyteller, monkeypatch, text, **around):
    """The ids that the model begins with when it goes on from `text`."""
    found = []
    real = Decoder.prefill

    def prefill(decoder, token_ids):
        found.append(token_ids[0].tolist())
        return real(decoder, token_ids)

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "prefill", prefill)
        next(stream_passage(*storyteller, text, max_new_tokens=1, temperature=0.0, **around))
    return found[0]


REQUEST = Request(hero="Hanna", words=("lamp", "owl"), length="short")
AROUND = [
    {"title": "The Mill", "note": "Mira is brave.", "request": REQUEST},
    {"title": "The Mill", "note": "", "request": REQUEST},
    {"title": "", "note": "Mira is brave.", "request": REQUEST},
    {"title": "", "note": "Mira is brave.", "request": Request()},
    {"title": "", "note": "", "request": Request()},
]


@pytest.mark.parametrize("around", AROUND, ids=str)
def test_a_word_is_seen_after_what_the_model_sees_when_it_goes_on_there(
    storyteller, monkeypatch, around
):
    model, tokenizer = storyteller
    text = "Once upon a time there was a fox. He ran home. " * 3
    groups = token_groups(text.strip(), tokenizer)
    bits = surprise(model, tokenizer, text.strip(), **around)
    with_request = 0
    compared = 0
    for (start, tokens), (_, found) in zip(groups, bits, strict=True):
        ids = seen_when_writing(storyteller, monkeypatch, text[:start], **around)
        fits = tokenizer.decode(ids).endswith(text[:start])
        # A story without a title begins with an empty line, which is left to the model.
        ids += tokenizer.encode("\n") if not start and not around["title"] else []
        with_request += "Hero: Hanna" in tokenizer.decode(ids)
        expected = probability_after(model, ids, tokens)
        choice = word_choice(model, tokenizer, text, start, **around)
        assert choice.probability == pytest.approx(expected, rel=1e-3)
        if fits:  # behind that, surprise has other windows
            assert found == pytest.approx(-math.log2(expected), abs=1e-3)
            compared += 1
    assert compared > 30
    assert (with_request > 10) == around["request"].is_used()


def test_past_the_context_the_request_is_seen_no_longer(storyteller):
    model, tokenizer = storyteller
    text = "The fox ran home, and the moon rose. " * 20
    plain = surprise(model, tokenizer, text, "Mill")
    asked = surprise(model, tokenizer, text, "Mill", request=REQUEST)
    assert len(plain) == len(asked)
    assert sum(length for length, _ in asked) == len(text)
    assert plain[0][1] != pytest.approx(asked[0][1], rel=1e-4)
    at = len(text) - 5
    choices = [
        word_choice(model, tokenizer, text, at, "Mill", request=request)
        for request in (None, REQUEST)
    ]
    assert choices[0] == choices[1]
