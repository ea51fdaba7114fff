"""The script that makes the bundled corpus makes exactly the bundled corpus, from sound plots."""

import random
import re
import subprocess
import sys

import pytest

from golpo.corpus import read_stories
from golpo.paths import DEFAULT_CORPUS, PROJECT_DIR
from golpo.stories import split_story
from golpo_utils import TITLE

sys.path.insert(0, str(PROJECT_DIR / "data"))
from story_grammar import PLOTS, read_plot, write_story  # noqa: E402

BARE_PRONOUN = re.compile(r"\b(he|she|him|his|her|hers|himself|herself)\b", re.IGNORECASE)


def test_the_bundled_corpus_is_what_its_script_makes(tmp_path):
    """Byte for byte. Most stories have a title; some do not, so that a model also learns to start
    with a person's words.
    """
    made = tmp_path / "made.txt"
    script = PROJECT_DIR / "data" / "make_training_data.py"
    subprocess.run([sys.executable, script, "--output", made], check=True, capture_output=True)
    assert made.read_bytes() == DEFAULT_CORPUS.read_bytes()
    stories = list(read_stories(made))
    untitled = [text for text in stories if split_story(text)[0] is None]
    assert len(set(stories)) == len(stories)
    assert 0.05 < len(untitled) / len(stories) < 0.1
    assert not any(TITLE in text for text in untitled)


def test_there_are_many_plots_and_titles():
    titles = [split_story(text)[0] for text in read_stories(DEFAULT_CORPUS)]
    sample = random.Random(0).sample([title for title in titles if title], 100)
    assert len(PLOTS) >= 36
    assert len(set(sample)) >= 60


def test_a_plot_has_no_pronoun_that_is_not_a_hole():
    """Others than the hero are of the other sex or have no pronoun: nobody can be mixed up."""
    for plot in PLOTS:
        rows = [cell for table in plot.facts.values() for row in table for cell in row]
        for line in [*plot.titles, *plot.script.split("\n"), *rows]:
            assert not BARE_PRONOUN.search(re.sub(r"\{[^}]*\}", "", line)), f"{plot.name}: {line}"


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.name)
def test_a_pronoun_follows_the_name_that_it_stands_for(plot):
    """After the first paragraph, in which only the hero is known, each sentence names the hero."""
    for slots in plot.paragraphs[1:]:
        for way in [way for slot in slots for way in slot.ways]:
            for role, hole in (("{hero}", r"\{(he|him|his|himself)\}"), ("{friend}", r"\{friend_")):
                found = re.search(hole, way, re.IGNORECASE)
                named = [way.find(role), way.find(role.replace("{", "{a "))]
                assert not found or -1 < max(named) < found.start(), f"{plot.name}: {way}"


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.name)
def test_a_story_has_no_open_hole_and_ends_with_its_hero(plot):
    rng = random.Random(3)
    for _ in range(20):
        _, hero, text = write_story(plot, rng)
        assert text.count("{") == 0
        assert hero in text.split("\n\n")[-1]


def test_a_plot_with_a_wrong_line_is_refused(tmp_path):
    path = tmp_path / "wrong.txt"
    path.write_text("titles:\n- A\n\nstory:\n* {hero} slept.\n", encoding="utf-8")
    with pytest.raises(ValueError, match="a dash, a wave or a slash"):
        read_plot(path)
    path.write_text("titles:\n- A\n\nfact a b:\n- one\n\nstory:\n- x\n", encoding="utf-8")
    with pytest.raises(ValueError, match="too many or too few columns"):
        read_plot(path)


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.name)
def test_each_fact_belongs_to_one_row(plot):
    """One table a plot, and no value twice in a column: a small model mixes up other facts."""
    assert len(plot.facts) == 1
    for rows in plot.facts.values():
        for column in zip(*rows, strict=True):
            assert len(set(column)) == len(rows), column
