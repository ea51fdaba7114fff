"""The script that makes the bundled corpus makes exactly the bundled corpus, from sound plots."""

import random
import re
import subprocess
import sys

import pytest

from golpo.corpus import read_stories
from golpo.paths import DEFAULT_CORPUS, PROJECT_DIR
from golpo.request_facts import CorpusFacts
from golpo.settings import GPT_CONFIG_LAPTOP
from golpo.stories import split_story
from golpo.tokenizer import train_tokenizer
from golpo_utils import TITLE

sys.path.insert(0, str(PROJECT_DIR / "data"))
from story_grammar import LENGTHS, PLOTS, read_plot, write_stories, write_story  # noqa: E402

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


def test_each_plot_has_short_medium_and_long_stories():
    """As many of each; a request for one of them is a request that a reader can see fulfilled."""
    written = write_stories(len(PLOTS) * len(LENGTHS), seed=2)
    found = {plot.name: [] for plot in PLOTS}
    for plot, _, _, prose in written:
        found[plot].append(len(prose.split()))
    for plot, words in found.items():
        short, medium, long = sorted(words)
        assert short <= 95, f"{plot}: {words}"
        assert 102 <= medium <= 127, f"{plot}: {words}"
        assert long >= 134, f"{plot}: {words}"


def test_the_thirds_of_the_corpus_lie_in_its_gaps():
    """No story is so near to a third's end that one word more would make it a longer one."""
    stories = list(read_stories(DEFAULT_CORPUS))
    shorter, longer = CorpusFacts(stories).thirds
    assert 95 <= shorter <= 102
    assert 127 <= longer <= 134


def test_every_story_fits_into_the_smallest_presets_window():
    """With its markers and its title, in the vocabulary that the preset learns from it."""
    stories = list(read_stories(DEFAULT_CORPUS))
    tokenizer = train_tokenizer(stories, GPT_CONFIG_LAPTOP["vocab_size"])
    tokens = [len(tokenizer.encode(story, allowed_special="all")) for story in stories]
    assert max(tokens) <= GPT_CONFIG_LAPTOP["context_length"]


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


def holes_in(way: str) -> set[str]:
    """The names of the holes, without the article that a hole may ask for."""
    return set(re.findall(r"\{(?:a )?(\w+)\}", way.lower()))


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.name)
def test_no_paragraph_can_be_left_out(plot):
    for slots in plot.paragraphs:
        assert not all(slot.optional for slot in slots), f"{plot.name}: {slots[0].ways[0]}"


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.name)
def test_no_line_leans_on_a_line_that_may_be_left_out(plot):
    """What comes as "a lamp" in a plot is "the lamp" only after a line that is always said."""
    new = set(re.findall(r"\{a (\w+)\}", plot.script, re.IGNORECASE))
    known = set()
    for slot in [slot for slots in plot.paragraphs for slot in slots]:
        for way in slot.ways:
            for found in re.finditer(r"\bthe \{(\w+)\}", way, re.IGNORECASE):
                before = known | holes_in(way[: found.start()])
                assert found[1] not in new - before, f"{plot.name}: {way}"
        if not slot.optional:
            known |= set.intersection(*map(holes_in, slot.ways))


@pytest.mark.parametrize("share", [0, 0.5, 1])
@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.name)
def test_a_story_has_no_open_hole_and_ends_with_its_hero(plot, share):
    rng = random.Random(3)
    for _ in range(20):
        _, hero, text = write_story(plot, rng, share)
        assert text.count("{") == 0
        assert hero in text.split("\n\n")[-1]


@pytest.mark.parametrize(
    ("share", "said"),
    [(0, "slept."), (0.5, "slept. One. Three."), (1, "slept. One. Two. Three.")],
)
def test_the_length_alone_decides_what_is_said(tmp_path, share, said):
    path = tmp_path / "plot.txt"
    story = "- {hero} slept.\n~ One.\n~ Two.\n~ Three.\n"
    path.write_text(f"titles:\n- A\n\nstory:\n{story}", encoding="utf-8")
    for seed in range(10):
        _, hero, text = write_story(read_plot(path), random.Random(seed), share)
        assert text == f"{hero} {said}"


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


def test_a_share_of_optional_lines_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="is 0.3; it must be 0, 0.5 or 1"):
        write_story(PLOTS[0], random.Random(3), 0.3)
