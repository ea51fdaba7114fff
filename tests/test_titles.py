"""Titles for stories that have none: hand-written stories whose hero and nouns can be seen."""

import pytest

from golpo.stories import split_story
from golpo.titles import NounCounts, add_titles, is_untitled, make_title, phrases

KITE = (
    "One day Mia got a big red kite. Mia ran with the kite over the hill. The kite flew high. "
    "At night Mia put the kite under the bed."
)
BOAT = (
    "An old man had a small boat. He loved his boat. The boat was on the hill, "
    "and the man slept in the boat."
)
LAMP = "A dog saw a lamp. The lamp shone on the hill. The dog took the lamp to the bed."
PROSES = (KITE, BOAT, LAMP)


def untitled(prose):
    return f"<|start|>\n{prose}\n<|end|>\n"


@pytest.fixture
def counts():
    counted = NounCounts()
    for prose in PROSES:
        counted.add(prose)
    return counted


def test_phrases_follow_a_determiner_and_end_before_function_words_names_and_marks():
    text = "The big red kite and his small boat, a Sunday. My old dog Rex ran."
    assert list(phrases(text)) == [["big", "red", "kite"], ["small", "boat"], ["old", "dog"]]


def test_a_title_names_the_hero_and_the_noun_that_tells_most(counts):
    """Each story has a hill, so a hill tells nothing; an adjective ends no phrase."""
    titles = [make_title(prose, counts) for prose in PROSES]
    assert titles == ["Mia and the Kite", "The Boat", "The Lamp"]
    assert make_title("Yes. No.", counts) is None


def test_adjectives_are_no_nouns(counts):
    assert counts.is_noun("kite") and counts.is_noun("boat")
    assert not counts.is_noun("red") and not counts.is_noun("small")


def test_stories_get_title_lines_and_those_that_have_one_keep_it():
    titled = "<|start|>\n<|title|>My Own</|title|>\n\nThe kite.\n<|end|>\n"
    stories = [untitled(KITE), titled, "text outside of stories"]
    made = list(add_titles(lambda: iter(stories)))
    assert made[0].startswith("<|start|>\n<|title|>Mia and the ")
    assert split_story(made[0])[1] == KITE
    assert made[0].endswith(f"</|title|>\n\n{KITE}\n<|end|>\n")
    assert made[1:] == stories[1:]


def test_a_corpus_is_untitled_if_most_of_its_stories_are():
    titled = "<|start|>\n<|title|>One</|title|>\n\nA kite.\n<|end|>\n"
    assert is_untitled([untitled(KITE)] * 2 + [titled])
    assert not is_untitled([untitled(KITE)] + [titled] * 2)
    assert not is_untitled(["text outside of stories"])
