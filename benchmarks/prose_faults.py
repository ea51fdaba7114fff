"""Faults of stories of any corpus, by simple means: names, pronouns, broken and doubled sentences.

    python benchmarks/prose_faults.py FILE [--output FILE.json]

A broken sentence has a word twice in a row, words that never follow each other in English ("the
a", "to was"), a wrong article, an odd quotation mark, no capital letter or no end. A doubled
sentence is in its story before. A pronoun slips where a sentence names the hero alone and goes on
with "he" although the hero is usually "she", or the other way round.

Of the faults labelled by hand in tests/fixtures/prose_faults.txt (86 sentences) this finds 11 of 14
broken sentences, all 7 doubled ones and 4 of 10 slips, and marks nothing that is right. So slips
are a lower bound. Only for English.
"""

import argparse
import itertools
import json
import re
from collections import Counter
from pathlib import Path

from machine import print_machine

from golpo.corpus import read_stories
from golpo.stories import split_story
from golpo.story_measures import hero_of, name_persistence

SENTENCE = re.compile(r'\S.*?(?:[.!?]+["”’]?(?=\s+[^a-z\s]|\s*$)|$)', re.DOTALL)
WORD = re.compile(r"[A-Za-z’']+")
HE = {"he", "him", "his", "himself"}
SHE = {"she", "her", "hers", "herself"}
OTHERS = set(
    "girl boy man woman mother father mom dad mommy daddy sister brother grandmother grandfather "
    "grandma grandpa aunt uncle king queen prince princess lady friend child baby teacher doctor "
    "witch wizard dog cat bird bear lion fox wolf fish frog rabbit merchant mayor everyone "
    "they".split()
)
DETERMINERS = {"a", "an", "the", "my", "your", "its", "our", "their", "every"}
PREPOSITIONS = {"of", "from", "into", "with", "at"}
AUXILIARIES = {"is", "was", "were", "are", "had", "has", "did", "does"}
TAKES_A_PERSON = set("told gave give asked showed thanked to with for heard saw made".split())
NOT_NAMES = HE | SHE | set("i it the a an one once then so but and they there what you we".split())
MAY_DOUBLE = set("had that very so no yes tap tick knock ha bye there now please long far".split())


def split_sentences(prose: str) -> list[str]:
    """The sentences of a text, with their quotation marks."""
    return [match[0] for part in prose.split("\n") for match in SENTENCE.finditer(part)]


def is_broken(sentence: str) -> bool:
    """Whether a sentence has one of the marks of a broken one."""
    text = sentence.strip()
    words = [word.lower() for word in WORD.findall(text)]
    parts = [WORD.findall(part.lower()) for part in re.split(r'[.,;:!?"“”—-]', text)]
    pairs = [pair for part in parts for pair in itertools.pairwise(part)]
    return (
        not words
        or text.lstrip("\"“'‘(")[:1].islower()
        or not re.search(r'[.!?:…]["”’\')]*$', text)
        or bool(re.search(r"\b(?:a|an|the)\s*[.,!?]", text, re.IGNORECASE))
        or bool(re.search(r"\ba [aeiou]", text) and not re.search(r"\ba (?:uni|use|one|eu)", text))
        or bool(re.search(r"\ban [bcdfgjklmnpqrstvwxyz]", text))
        or any(is_impossible(*pair) for pair in pairs)
    )


def is_impossible(first: str, second: str) -> bool:
    """Whether two words in a row are a mistake."""
    if first == second:
        return first not in MAY_DOUBLE
    if first in DETERMINERS:
        return second in DETERMINERS | PREPOSITIONS | AUXILIARIES | {"to", "and", "he", "she"}
    if first == "to":
        return second in AUXILIARIES or second.endswith("ed") and second not in ("bed", "need")
    return first in ("did", "didn't", "couldn't") and second in ("was", "went", "said", "had")


def doubled_sentences(sentences: list[str]) -> list[bool]:
    """Which sentences of four words and more are in the story before."""
    seen = set()
    found = []
    for sentence in sentences:
        words = tuple(WORD.findall(sentence.lower()))
        found.append(len(words) >= 4 and words in seen)
        seen.add(words)
    return found


def pronouns_after(name: str, sentence: str) -> list[str]:
    """[he or she] of the first pronoun after the name, if only the hero can be meant."""
    outside = re.sub(r'["“][^"”]*["”]', " ", sentence)
    words = WORD.findall(outside)
    bare = [re.sub(r"['’]s$", "", word) for word in words]
    if name not in bare or OTHERS & {word.lower() for word in bare}:
        return []
    start = bare.index(name)
    if any(word[:1].isupper() and word not in (name, "I") for word in bare[1:]):
        return []
    lower = [word.lower() for word in words]
    places = [place for place in range(start + 1, len(lower)) if lower[place] in HE | SHE]
    if not places or "him" in lower or lower[places[0] - 1] in TAKES_A_PERSON:
        return []  # somebody else is spoken of, too
    return ["he" if lower[places[0]] in HE else "she"]


def pronoun_slips(sentences: list[str], hero: str | None) -> list[bool]:
    """Which sentences speak of the hero with the pronoun that is not the usual one."""
    found = [pronouns_after(hero, sentence) if hero else [] for sentence in sentences]
    counts = Counter(pronoun for pronouns in found for pronoun in pronouns)
    usual, often = (counts.most_common(1) or [("", 0)])[0]
    if often * 2 <= counts.total():  # no usual one
        return [False] * len(sentences)
    return [any(pronoun != usual for pronoun in pronouns) for pronouns in found]


def find_hero(prose: str) -> str | None:
    """The first-named character, also where the name always begins a sentence."""
    words = WORD.findall(prose)
    bare = Counter(re.sub(r"['’]s$", "", word) for word in words if word[0].isupper())
    common = {word for word in words if word.islower()} | NOT_NAMES
    often = [name for name, count in bare.items() if count > 2 and name.lower() not in common]
    return hero_of(prose) or next(iter(often), None)


def find_faults(prose: str) -> dict[str, list[bool]]:
    """Kind of fault → for each sentence of a story whether it has it."""
    sentences = split_sentences(prose)
    return {
        "broken": [is_broken(sentence) for sentence in sentences],
        "doubled": doubled_sentences(sentences),
        "pronoun slip": pronoun_slips(sentences, find_hero(prose)),
    }


def measure_faults(proses: list[str]) -> dict[str, float]:
    """Figures over stories without markers."""
    faults = [find_faults(prose) for prose in proses]
    count = sum(len(one["broken"]) for one in faults)
    places = [place for prose in proses if (place := name_persistence(prose)) is not None]
    figures = {"stories": len(proses), "sentences": count, "with a named hero": len(places)}
    figures["hero named in the last third"] = sum(place > 2 / 3 for place in places)
    for kind in ("broken", "doubled", "pronoun slip"):
        figures[f"sentences: {kind}"] = sum(sum(one[kind]) for one in faults)
        figures[f"stories: {kind}"] = sum(any(one[kind]) for one in faults)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("stories", type=Path, help="a file of stories, see docs/corpus.md")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    options = parser.parse_args()
    machine = print_machine()
    proses = [split_story(text)[1] for text in read_stories(options.stories)]
    figures = measure_faults(proses)
    for name, figure in figures.items():
        print(f"{name:32}{figure:8,}")
    if options.output:
        report = {"machine": machine, "figures": figures}
        options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
