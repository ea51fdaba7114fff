"""The judge finds no fault in stories of the grammar, and each fault made by hand."""

import json
import re
import subprocess
import sys

import pytest

from golpo.paths import PROJECT_DIR

sys.path.append(str(PROJECT_DIR / "benchmarks"))
from story_judge import judge_stories  # noqa: E402
from story_parser import parse_story  # noqa: E402

sys.path.append(str(PROJECT_DIR / "data"))
from story_grammar import format_corpus, write_stories  # noqa: E402

TITLE = "Ali and the Blackbird"
STORY = """Ali was a clever boy in a market town. He wanted to sing, but his voice was like an old \
door.

In the apple tree lived a blackbird, which sang every evening about the rain. "Please teach me \
your song," said Ali. "Come each day," said the blackbird.

First Ali had to learn to breathe. Ali sang every day, and after the first note all the dogs went \
home. "It will be better tomorrow," said the blackbird.

Then came the spring feast, and nobody could sing. "I can try," said Ali. Ali stood up and sang \
about the rain. Outside in the dark, the blackbird sang along.

Everyone clapped, and Ali thanked the blackbird."""


def as_text(prose: str) -> str:
    return f"<|start|>\n<|title|>{TITLE}</|title|>\n\n{prose}\n<|end|>"


def test_the_story_is_read_with_its_choices():
    parsed = parse_story(TITLE, STORY)
    choices = parsed.choices()
    assert parsed.plot.name == "a song to learn"
    assert parsed.is_whole()
    assert choices["hero"] == ["Ali"]
    assert choices["place"] == ["in a market town"]
    assert choices["trade"] == ["child"]
    assert parsed.plot.facts["bird about"][int(choices["bird about"][0])] == [
        "blackbird",
        "the rain",
    ]


def test_every_story_of_the_grammar_is_read_as_the_plot_that_wrote_it():
    for plot, title, _, prose in write_stories(80, seed=77):
        parsed = parse_story(title, prose)
        assert (parsed.plot.name, parsed.is_whole()) == (plot, True), prose
        assert parsed.of_grammar == parsed.sentences


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        ("hero", "First Ali had to learn", "First Ben had to learn"),
        ("pronoun", "He wanted to sing, but his", "She wanted to sing, but her"),
        ("pronoun", "but his voice", "but her voice"),
        ("pronoun", "a clever boy", "a clever girl"),
        ("object", "Outside in the dark, the blackbird", "Outside in the dark, the old crow"),
        ("object", "sang about the rain", "sang about the moon"),
    ],
)
def test_a_contradiction_is_noticed_by_its_kind(kind, right, wrong):
    assert STORY.count(right) == 1
    parsed = parse_story(TITLE, STORY.replace(right, wrong))
    assert parsed.contradictions() == {kind}
    assert parsed.of_plot == parsed.sentences
    assert not parsed.facts_agree()


@pytest.mark.parametrize(
    ("kind", "plot", "right", "wrong"),
    [
        (
            "trade",
            "mistaken identity",
            "I am only {hero}, an? [a-z ]+",
            "I am only {hero}, a fisher",
        ),
        ("friend", "the haunted house", "{hero} and [A-Z][a-z]+", "{hero} and Vera"),
    ],
)
def test_trade_and_friend_are_noticed(kind, plot, right, wrong):
    seen = 0
    for name, title, hero, prose in write_stories(3000, seed=5):
        changed = re.sub(right.format(hero=hero), wrong.format(hero=hero), prose)
        if name == plot and changed != prose:
            seen += 1
            assert kind in parse_story(title, changed).contradictions()
    assert seen > 10


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("Ali had to learn to breathe.", "Ali had to learn to the breathe."),
        ("the blackbird sang along.", "the robin sang along."),
        ("Then came the spring feast", "then came the spring feast"),
    ],
)
def test_a_broken_sentence_is_not_of_the_grammar(right, wrong):
    parsed = parse_story(TITLE, STORY.replace(right, wrong))
    assert parsed.of_plot == parsed.of_grammar < parsed.sentences
    assert not parsed.facts_agree()


def test_a_sentence_of_another_plot_is_of_the_grammar_but_not_of_the_story():
    strange = "Being brave is being afraid and taking one more step."
    parsed = parse_story(TITLE, STORY + " " + strange)
    assert parsed.of_grammar == parsed.sentences == parsed.of_plot + 1
    assert not parsed.facts_agree()


def test_a_doubled_or_missing_or_moved_sentence_makes_the_story_not_whole():
    sentence = "Ali stood up and sang about the rain."
    paragraphs = STORY.split("\n\n")
    wrong = {
        "doubled": STORY.replace(sentence, f"{sentence} {sentence}"),
        "missing": STORY.replace(f"{sentence} ", ""),
        "moved": "\n\n".join([*paragraphs[:2], paragraphs[3], paragraphs[2], paragraphs[4]]),
    }
    for prose in wrong.values():
        parsed = parse_story(TITLE, prose)
        assert parsed.facts_agree()
        assert not parsed.is_whole()


def test_figures_over_stories():
    wrong = STORY.replace("First Ali", "First Ben")
    unfinished = as_text(STORY).replace("<|end|>", "")
    known = {" ".join(STORY.split())}
    figures = judge_stories([as_text(STORY), as_text(wrong), unfinished], known)
    assert (figures["ended"], figures["titled"], figures["distinct titles"]) == (2, 3, 1)
    assert figures["facts agree throughout"] == 2
    assert figures["contradiction: hero"] == 1
    assert figures["not in the corpus"] == 1
    assert figures["sentences of the grammar, %"] == 100


def test_the_command_judges_a_file(tmp_path):
    stories = tmp_path / "stories.txt"
    stories.write_text(format_corpus(write_stories(40, seed=9)), encoding="utf-8")
    report = tmp_path / "report.json"
    script = PROJECT_DIR / "benchmarks" / "story_judge.py"
    command = [sys.executable, script, "--stories", stories, "--output", report]
    subprocess.run(command, check=True, capture_output=True)
    figures = json.loads(report.read_text(encoding="utf-8"))["figures"]
    assert figures["facts agree throughout"] == figures["stories"] == 40
    assert figures["not in the corpus"] == 40
