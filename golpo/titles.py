"""Titles for a corpus that has none: the hero and its most typical noun, as "Mia and the Kite".

A noun is found without a dictionary: it is the last word of phrases that begin with an article or
a possessive ("a big red kite"). Its weight is tf-idf (Spärck Jones, 1972).
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from golpo.stories import split_story
from golpo.story_measures import hero_of
from golpo_utils import START, TITLE, TITLE_END

DETERMINERS = frozenset("a an the his her their its my your our this that".split())
# Words that end a phrase before them.
FUNCTION_WORDS = DETERMINERS | frozenset(
    "about after again all and are as at away back be because been before behind but by came can "
    "could day did do down each every felt for from gave go got had has have he hear here him how "
    "i if in inside into is it just like made me more much near not of off on once one or out over "
    "said saw she so some than them then there they to together too took under up us very wanted "
    "was we went were what when where which who will with would you".split()
)
LONGEST_PHRASE = 4  # words after the determiner
NOUN_SHARE = 0.6  # of a word's places in phrases, how many are the last
UNTITLED_SHARE = 0.5  # a corpus with more stories without a title is untitled


def phrases(prose: str) -> Iterator[list[str]]:
    """The words after each determiner, up to a function word, a name or a punctuation mark."""
    tokens = re.findall(r"[^\W\d_]+|[^\w\s]", prose)
    for place, token in enumerate(tokens):
        if token.lower() not in DETERMINERS:
            continue
        phrase = []
        for word in tokens[place + 1 : place + 1 + LONGEST_PHRASE]:
            if not word.isalpha() or not word.islower() or word in FUNCTION_WORDS:
                break
            phrase.append(word)
        if phrase:
            yield phrase


class NounCounts:
    """How often the words of a corpus end a phrase, and in how many stories they do."""

    def __init__(self) -> None:
        self.stories = 0
        self.places: Counter[str] = Counter()  # in phrases
        self.last: Counter[str] = Counter()  # at the end of phrases
        self.first: Counter[str] = Counter()  # right after a determiner
        self.documents: Counter[str] = Counter()  # stories in which the word ends a phrase

    def add(self, prose: str) -> None:
        """Count one story."""
        self.stories += 1
        found = list(phrases(prose))
        for phrase in found:
            self.places.update(phrase)
            self.last[phrase[-1]] += 1
            self.first[phrase[0]] += 1
        self.documents.update({phrase[-1] for phrase in found})

    def is_noun(self, word: str) -> bool:
        """Whether the word mostly ends phrases, and may stand right after a determiner."""
        is_last = self.last[word] >= NOUN_SHARE * self.places[word] > 0
        return is_last and self.first[word] > 0 and len(word) > 2

    def typical_noun(self, prose: str) -> str | None:
        """The noun with the highest tf-idf in the story; the first of equal ones."""
        counts = Counter(filter(None, map(self.noun_of, phrases(prose))))
        weights = {
            word: count * math.log((1 + self.stories) / self.documents[word])
            for word, count in counts.items()
        }
        return max(weights, key=weights.__getitem__, default=None)

    def noun_of(self, phrase: list[str]) -> str | None:
        """The last noun of a phrase: what follows it is a verb, as in "the lamp shone"."""
        return next((word for word in reversed(phrase) if self.is_noun(word)), None)


def make_title(prose: str, counts: NounCounts) -> str | None:
    """A title for a story; None if it has neither a named hero nor a noun."""
    hero = hero_of(prose)
    noun = counts.typical_noun(prose)
    thing = f"the {noun.title()}" if noun else None
    if hero and thing:
        return f"{hero} and {thing}"
    return hero or (thing and thing[0].upper() + thing[1:])


def is_untitled(stories: Iterable[str]) -> bool:
    """Whether most of the stories between markers lack a title line."""
    titled = [TITLE in story for story in stories if story.startswith(START)]
    return bool(titled) and sum(titled) < (1 - UNTITLED_SHARE) * len(titled)


def add_titles(read_stories: Callable[[], Iterable[str]]) -> Iterator[str]:
    """Yield the stories, each without a title line with one.

    read_stories gives the stories from the first on, each time that it is called.
    """
    counts = NounCounts()
    for story in read_stories():
        counts.add(split_story(story)[1])
    for story in read_stories():
        yield with_title(story, counts)


def with_title(story: str, counts: NounCounts) -> str:
    """The story with a title line, if it lacks one and something can be said of it."""
    if not story.startswith(START) or TITLE in story:
        return story
    title = make_title(split_story(story)[1], counts)
    if title is None:
        return story
    prose = story.removeprefix(START).lstrip("\n")
    return f"{START}\n{TITLE}{title}{TITLE_END}\n\n{prose}"
