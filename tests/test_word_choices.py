"""Probabilities of words in a story, against the logits of a plain forward pass."""

import math

import pytest
import torch
from helpers import WORDS_CONFIG

from golpo.inference import load_storyteller
from golpo.word_choices import surprise, word_choice
from golpo_utils import GPTModel, get_tokenizer, story_opening

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


@pytest.mark.parametrize("position", [-1, 33])
def test_outside_of_the_text_is_one_sentence(storyteller, position):
    with pytest.raises(ValueError, match="no word at position"):
        word_choice(*storyteller, TEXT, position)


def test_an_empty_text_has_no_surprise(storyteller):
    assert surprise(*storyteller, "") == []
