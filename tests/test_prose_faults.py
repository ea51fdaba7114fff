"""The simple means are checked against sentences that were labelled by hand."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from golpo.paths import PROJECT_DIR

sys.path.append(str(PROJECT_DIR / "benchmarks"))
from prose_faults import (  # noqa: E402
    find_faults,
    is_broken,
    measure_faults,
    pronoun_slips,
    split_sentences,
)

FIXTURE = Path(__file__).parent / "fixtures" / "prose_faults.txt"
LABELS = {"b": "broken", "d": "doubled", "p": "pronoun slip"}


def labelled_stories() -> list[list[tuple[str, str]]]:
    """The fixture: stories of pairs, label and sentence."""
    lines = [line for line in FIXTURE.read_text(encoding="utf-8").split("\n") if line[:1] != "#"]
    blocks = "\n".join(lines).strip().split("\n\n")
    return [[(line[0], line[2:]) for line in block.split("\n")] for block in blocks]


def count_right(kind: str) -> tuple[int, int, int]:
    """How many faults of a kind are found rightly, found in all, and labelled."""
    rightly = found = labelled = 0
    for story in labelled_stories():
        prose = "\n".join(sentence for _, sentence in story)
        marks = find_faults(prose)[kind]
        truth = [LABELS.get(label) == kind for label, _ in story]
        assert len(marks) == len(truth), story
        rightly += sum(a and b for a, b in zip(marks, truth, strict=True))
        found += sum(marks)
        labelled += sum(truth)
    return rightly, found, labelled


@pytest.mark.parametrize(
    ("kind", "precision", "recall"),
    [("broken", 0.9, 0.75), ("doubled", 1.0, 1.0), ("pronoun slip", 1.0, 0.4)],
)
def test_precision_and_recall_on_sentences_labelled_by_hand(kind, precision, recall):
    rightly, found, labelled = count_right(kind)
    assert labelled >= 4
    assert rightly / found >= precision
    assert rightly / labelled >= recall


def test_the_fixture_has_fifty_sentences_and_more():
    sentences = [pair for story in labelled_stories() for pair in story]
    assert len(sentences) >= 50
    assert {label for label, _ in sentences} == {".", *LABELS}


@pytest.mark.parametrize(
    ("sentence", "broken"),
    [
        ("She saw the the moon.", True),
        ("He had had enough.", False),
        ("He gave it to a an old man.", True),
        ("It took an hour.", False),
        ("It was a useful thing.", False),
        ("Then he went to the", True),
        ('"Come in," she said.', False),
        ("it rained.", True),
    ],
)
def test_marks_of_a_broken_sentence(sentence, broken):
    assert is_broken(sentence) is broken


def test_what_somebody_says_is_one_sentence():
    expected = ['"Stop!" he said.', "It rained."]
    assert split_sentences('"Stop!" he said. It rained.') == expected


def test_no_slip_is_found_where_another_person_may_be_meant():
    sentences = ["Ann fed her hens.", "Ann loved her hat.", "Ann met Tom, and he sang."]
    assert pronoun_slips(sentences, "Ann") == [False, False, False]
    sentences[2] = "Ann smiled, and he sang."
    assert pronoun_slips(sentences, "Ann") == [False, False, True]


def test_figures_of_a_file(tmp_path):
    prose = "One day Ann fed her cat. Then Ann fed her cat. Then Ann fed her cat."
    figures = measure_faults([prose])
    assert figures["sentences: doubled"] == 1
    assert figures["hero named in the last third"] == figures["with a named hero"] == 1
    stories = tmp_path / "stories.txt"
    stories.write_text(f"<|start|>\n{prose}\n<|end|>\n", encoding="utf-8")
    report = tmp_path / "report.json"
    script = PROJECT_DIR / "benchmarks" / "prose_faults.py"
    command = [sys.executable, script, stories, "--output", report]
    subprocess.run(command, check=True, capture_output=True)
    assert json.loads(report.read_text(encoding="utf-8"))["figures"] == figures
