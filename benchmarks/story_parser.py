"""Parses a story with the grammar that wrote the bundled corpus: its plot, choices and facts.

Each way to say a thing becomes a regular expression whose holes are groups. What a hole says
narrows down what is possible: "Ali" leaves one hero, "she" leaves the heroines. Where nothing is
left possible, the story contradicts itself.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

from machine import PROJECT

sys.path.insert(0, str(PROJECT / "data"))
from story_grammar import (  # noqa: E402
    CASES,
    PLOTS,
    Plot,
    capitalise,
    helpers_of,
    trades_of,
    with_article,
)
from story_world import (  # noqa: E402
    CHILDREN,
    FRIENDS,
    HELPERS,
    HEROES,
    MANNERS,
    OPENINGS,
    PLACES,
    TRADES,
)

SENTENCE_END = re.compile(r'(?<=[.!?])(?:"(?= |$))?(?: |$)')
HOLE = re.compile(r"\{([^}]*)\}")
PEOPLE = {"hero": HEROES, "friend": FRIENDS, "helper": HELPERS}
OTHER_SEX = {"he": "she", "she": "he"}
Bound = tuple[str, str, frozenset]  # kind of fact, variable, the values that remain possible


def heroes_who_are(pronoun: str) -> frozenset:
    return frozenset(person.name for person in HEROES if person.he == pronoun)


def person_words(role: str, plot: Plot) -> Iterator[tuple[str, list[Bound]]]:
    """The names of the hero, of friends or of helpers, and what each says."""
    for person in helpers_of(plot) if role == "helper" else PEOPLE[role]:
        bounds = [(role, role, frozenset([person.name]))]
        if role != "hero":
            bounds.append(("pronoun", "hero", heroes_who_are(OTHER_SEX[person.he])))
        yield person.name, bounds


def pronoun_words(role: str, case: str) -> Iterator[tuple[str, list[Bound]]]:
    """The pronouns of a person, and which heroes each leaves possible."""
    for pronoun in CASES:
        of_hero = pronoun if role == "hero" else OTHER_SEX[pronoun]
        yield CASES[pronoun][case], [("pronoun", "hero", heroes_who_are(of_hero))]


def trade_words(plot: Plot, hole: str) -> Iterator[tuple[str, list[Bound]]]:
    """The words for the holes {who}, {trade} and {trait}."""
    for trade in trades_of(plot):
        if trade == "child":
            yield from child_words(hole)
            continue
        bounds = [("trade", "trade", frozenset([trade]))]
        for text in {
            "who": [f"{manner} {trade}" for manner in MANNERS],
            "trade": [trade],
            "trait": TRADES[trade],
        }[hole]:
            yield text, bounds


def child_words(hole: str) -> Iterator[tuple[str, list[Bound]]]:
    """What those holes say of a child."""
    is_child = ("trade", "trade", frozenset(["child"]))
    for pronoun, cases in CASES.items():
        sex = ("pronoun", "hero", heroes_who_are(pronoun))
        if hole == "trade":
            yield cases["child"], [is_child, sex]
        elif hole == "who":
            for manner, _ in CHILDREN:
                kind = ("trade", "manner", frozenset([manner]))
                yield f"{manner} {cases['child']}", [is_child, sex, kind]
    if hole == "trait":
        for manner, trait in CHILDREN:
            yield trait, [is_child, ("trade", "manner", frozenset([manner]))]


def words_for(hole: str, plot: Plot) -> list[tuple[str, list[Bound]]]:
    """What may stand in a hole: words, which may hold holes, and what they say."""
    for columns, rows in plot.facts.items():
        if hole in columns.split():
            place = columns.split().index(hole)
            found = {}
            for number, row in enumerate(rows):
                found.setdefault(row[place], set()).add(number)
            return [(text, [("object", columns, frozenset(n))]) for text, n in found.items()]
    role, _, case = hole.rpartition("_")
    if hole in PEOPLE:
        return list(person_words(hole, plot))
    if hole in CASES["he"] or role in PEOPLE:
        return list(pronoun_words(role or "hero", case or hole))
    if hole in ("who", "trade", "trait"):
        return list(trade_words(plot, hole))
    if hole == "opening":
        return [(text, []) for text in OPENINGS]
    if hole == "place":
        return [(one.where, [("place", "place", frozenset([one.where]))]) for one in PLACES]
    things = sorted({getattr(place, hole) for place in PLACES})
    return [(text, [("object", hole, frozenset([text]))]) for text in things]


class Pattern:
    """A template as a regular expression, and what its groups say."""

    def __init__(self, template: str, plot: Plot):
        self.plot = plot
        self.says = []  # one a group: the words in lower case → bounds
        self.regex = re.compile(self.expand(template), re.IGNORECASE)

    def expand(self, template: str) -> str:
        parts = HOLE.split(template)
        holes = [self.expand_hole(hole) for hole in parts[1::2]]
        texts = map(re.escape, parts[::2])
        return "".join(text + hole for text, hole in zip(texts, [*holes, ""], strict=True))

    def expand_hole(self, hole: str) -> str:
        article = hole[:2].lower() == "a "
        words = words_for(hole.lower().removeprefix("a "), self.plot)
        if article:
            words = [(with_article(text), bounds) for text, bounds in words]
        whole = {}
        for text, bounds in words:
            if "{" not in text:
                whole.setdefault(text.lower(), []).append(bounds)
        choices = []
        if whole:
            self.says.append({text: merge(bounds) for text, bounds in whole.items()})
            longest_first = sorted(whole, key=len, reverse=True)
            choices.append(f"({'|'.join(map(re.escape, longest_first))})")
        for text, bounds in words:
            if "{" in text:
                self.says.append({None: bounds})
                choices.append(f"({self.expand(text)})")
        return f"(?:{'|'.join(choices)})"

    def bounds(self, match: re.Match) -> list[Bound]:
        """What a match says."""
        found = []
        for says, text in zip(self.says, match.groups(), strict=True):
            if text is not None:
                found += says[None] if None in says else says[text.lower()]
        return found


def merge(choices: list[list[Bound]]) -> list[Bound]:
    """Words that two choices share say that one of both holds."""
    if len(choices) == 1:
        return choices[0]
    common = {}
    for bounds in choices:
        for kind, variable, values in bounds:
            common.setdefault((kind, variable), []).append(values)
    return [
        (*key, frozenset().union(*values))
        for key, values in common.items()
        if len(values) == len(choices)
    ]


@dataclass
class Parsed:
    """A story as the grammar reads it."""

    plot: Plot
    sentences: int = 0
    of_plot: int = 0  # sentences that this plot can say
    of_grammar: int = 0  # sentences that any plot can say
    bounds: list = field(default_factory=list)
    slots: list = field(default_factory=list)  # paragraph, number of the slot in the plot

    def contradictions(self) -> set[str]:
        """The kinds of facts that do not agree: hero, pronoun, friend, helper, place, …"""
        kinds = set()
        left = {}
        for kind, variable, values in sorted(self.bounds, key=lambda bound: bound[0] == "pronoun"):
            left[variable] = left.get(variable, values) & values
            if not left[variable]:
                kinds.add(kind)
                left[variable] = values
        return kinds

    def facts_agree(self) -> bool:
        """No contradiction, and no sentence in which one could hide."""
        return self.of_plot == self.sentences and not self.contradictions()

    def choices(self) -> dict[str, list[str]]:
        """What is known at the end: variable → the values that remain possible."""
        left = {}
        for _, variable, values in self.bounds:
            left[variable] = left.get(variable, values) & values
        return {variable: sorted(map(str, values)) for variable, values in left.items()}

    def is_whole(self) -> bool:
        """Whether the grammar can write this story: each slot in its place, once."""
        needed = [
            (p, n)
            for p, slots in enumerate(numbered_slots(self.plot))
            for n, slot in slots
            if not slot.optional
        ]
        in_order = self.slots == sorted(set(self.slots))
        return self.facts_agree() and in_order and set(needed) <= set(self.slots)


def numbered_slots(plot: Plot) -> list[list]:
    """The plot's paragraphs of pairs: the slot's number in the plot, the slot."""
    numbers = iter(range(1000))
    return [[(next(numbers), slot) for slot in slots] for slots in plot.paragraphs]


@cache
def patterns_of(name: str) -> list[tuple[int, Pattern]]:
    """All ways of a plot: the slot's number, the pattern."""
    plot = next(plot for plot in PLOTS if plot.name == name)
    return [
        (number, Pattern(way, plot))
        for slots in numbered_slots(plot)
        for number, slot in slots
        for way in slot.ways
    ]


@cache
def title_patterns_of(name: str) -> list[Pattern]:
    plot = next(plot for plot in PLOTS if plot.name == name)
    return [Pattern(title, plot) for title in plot.titles]


def longest_match(paragraph: str, start: int, name: str):
    """The longest way of a plot at `start` → (end, slot, pattern, match), or None."""
    best = None
    for number, pattern in patterns_of(name):
        match = pattern.regex.match(paragraph, start)
        if match and (match.end() == len(paragraph) or paragraph[match.end()] == " "):
            said = match[0]
            well_written = said[:1] == capitalise(said)[:1] and said[:2] == capitalise(said)[:2]
            if well_written and (best is None or match.end() > best[0]):
                best = (match.end(), number, pattern, match)
    return best


def next_sentence(paragraph: str, start: int) -> int:
    found = SENTENCE_END.search(paragraph, start)
    return max(found.end(), start + 1) if found else len(paragraph)


def count_sentences(text: str) -> int:
    return sum(1 for part in SENTENCE_END.split(text) if part.strip())


def parse_as(plot: Plot, paragraphs: list[str]) -> tuple[Parsed, list[str]]:
    """Read a story as one of a plot → what it says, and the sentences that are not of the plot."""
    parsed = Parsed(plot)
    strange = []
    for p, paragraph in enumerate(paragraphs):
        parsed.sentences += count_sentences(paragraph)
        start = 0
        while start < len(paragraph):
            found = longest_match(paragraph, start, plot.name)
            if found is None:
                end = next_sentence(paragraph, start)
                strange.append(paragraph[start:end].strip())
                start = end
                continue
            end, number, pattern, match = found
            parsed.of_plot += count_sentences(paragraph[start:end])
            parsed.bounds += pattern.bounds(match)
            parsed.slots.append((p, number))
            start = end + 1
    return parsed, strange


def parse_story(title: str | None, prose: str) -> Parsed:
    """The reading of a story in which most of its sentences are of one plot."""
    paragraphs = [" ".join(part.split()) for part in prose.split("\n\n") if part.strip()]
    readings = [parse_as(plot, paragraphs) for plot in PLOTS]
    parsed, strange = max(readings, key=lambda reading: reading[0].of_plot)
    elsewhere = [text for text in strange if any(is_way(text, plot.name) for plot in PLOTS)]
    parsed.of_grammar = parsed.of_plot + sum(map(count_sentences, elsewhere))
    for pattern in title_patterns_of(parsed.plot.name):
        if title and (match := pattern.regex.fullmatch(title)):
            parsed.bounds += pattern.bounds(match)
            break
    return parsed


def is_way(text: str, name: str) -> bool:
    """Whether a plot can say this sentence."""
    found = longest_match(text, 0, name)
    return found is not None and found[0] == len(text)
