"""Measures of stories: parts in which long texts are read change no figure."""

import random

import pytest

from golpo import story_measures
from golpo.story_measures import ngrams, run_hashes


@pytest.mark.parametrize("length", [1, 7, 40, 2**18])
def test_runs_of_words_are_the_same_in_parts_of_any_length(monkeypatch, length):
    """H: a story may be longer than the memory for its words."""
    monkeypatch.setattr(story_measures, "PART_LENGTH", length)
    chance = random.Random(length)
    for size in range(200):
        text = "".join(chance.choices("abé \n\t\u3000\u2028", k=size))
        assert list(run_hashes(text, 8)) == [hash(run) for run in ngrams(text, 8)]
    assert len(list(run_hashes("one two three four " * 3, 8))) == 5
