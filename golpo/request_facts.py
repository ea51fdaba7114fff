"""What a story could have been requested by: facts of its text, against its corpus."""

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice

import numpy as np

from golpo.requests import LENGTHS, Request, split_request
from golpo.stories import split_story
from golpo.story_measures import WORD, genre_of, hero_of

STORIES_COUNTED = 20_000  # the first of a corpus
MOST_WORDS = 5  # keywords of a story
WORDS_ASKED = (2, 4)  # so many of them are asked for
FEWEST_STORIES = 3  # that a keyword is in; a model can learn nothing from fewer
LARGEST_SHARE = 0.15  # of the stories that a keyword may be in
USED_ONCE = 0.3  # what a word that a story has once counts; each further time counts 1
STORIES_OF_A_GENRE = 20  # with fewer, a colon in a title is no genre
SHORTEST_WORD = 3  # letters
STEM_LENGTH = 5  # letters
PLURAL = re.compile(r"(?<=[sxz])es$|(?<=[cs]h)es$|(?<!s)s$")
QUOTES = re.compile(r'["“”„«»「」]|^[—–-] ', re.MULTILINE)
# English words by which a last paragraph shows how a story ends.
HAPPY = set("happy happily glad joy laugh laughed smile smiled proud merry cheer danced".split())
SAD = set("sad sadly cried wept tears died dead alone lonely grief sorrow sobbed mourned".split())
# How often a line is in a training request, if the request has any lines.
LINE_SHARES = {
    "hero": 0.9,
    "words": 0.9,
    "length": 0.8,
    "genre": 0.7,
    "dialogue": 0.3,
    "ending": 0.3,
}
PLAIN_SHARE = 0.3  # of stories that are trained on without a request


def stem(word: str) -> str:
    """A word without a plural's ending, of at most five letters: equal for "owl" and "owls"."""
    return PLURAL.sub("", word.lower())[:STEM_LENGTH]


def stems_of(prose: str) -> set[str]:
    """The stems of all the words of a text."""
    return {stem(word) for word in WORD.findall(prose)}


def count_words(prose: str) -> int:
    """How many words a text has, split at white space."""
    return len(prose.split())


def ending_of(prose: str) -> str | None:
    """ "happy" or "sad", if words of the last paragraph say one and not the other, else None."""
    words = set(WORD.findall(prose.rsplit("\n\n", 1)[-1].lower()))
    happy, sad = bool(words & HAPPY), bool(words & SAD)
    if happy == sad:
        return None
    return "happy" if happy else "sad"


class CorpusFacts:
    """What a corpus's requests depend on: in how many stories words are, its lengths, its genres.

    stories: texts from <|start|> on; the first STORIES_COUNTED are read. Raises ValueError
    without any.
    """

    def __init__(self, stories: Iterable[str]):
        self.frequency = Counter()  # stem → stories that have it
        lengths = []
        genres = Counter()
        for story in islice(stories, STORIES_COUNTED):
            story = split_request(story)[1]
            prose = split_story(story)[1]
            self.frequency.update(stems_of(prose))
            lengths.append(count_words(prose))
            genres[genre_of(story)] += 1
        if not lengths:
            raise ValueError("there is no story to derive requests from; bring a corpus of some")
        self.stories = len(lengths)
        self.thirds = np.quantile(lengths, [1 / 3, 2 / 3])  # (2,), in words
        self.genres = {
            genre for genre, count in genres.items() if genre and count >= STORIES_OF_A_GENRE
        }

    def length_of(self, prose: str) -> str:
        """ "short", "medium" or "long": the third of the corpus that has stories of this length."""
        return LENGTHS[int(np.searchsorted(self.thirds, count_words(prose)))]

    def keywords(self, prose: str) -> list[str]:
        """The words typical of this story, most typical first; names are none.

        They are ordered by their count here times the logarithm of the inverse of their share of
        stories (tf-idf; Spärck Jones, 1972). What a story is about occurs in it more than once, so
        the first time counts less.
        """
        counts = Counter()
        spelled = {}
        for word in WORD.findall(prose):
            # A name is never in small letters. Scripts without capitals pass, too.
            if word == word.lower() and len(word) >= SHORTEST_WORD:
                counts[stem(word)] += 1
                spelled.setdefault(stem(word), word)
        most = max(FEWEST_STORIES, LARGEST_SHARE * self.stories)
        scores = {
            one: (count - 1 + USED_ONCE) * math.log(self.stories / self.frequency[one])
            for one, count in counts.items()
            if FEWEST_STORIES <= self.frequency[one] <= most
        }
        best = sorted(scores, key=lambda one: (-scores[one], one))
        return [spelled[one] for one in best[:MOST_WORDS]]

    def request_of(self, story: str) -> Request:
        """All that a story's text could have been asked by, with up to MOST_WORDS words."""
        prose = split_story(story)[1]
        genre = genre_of(story)
        return Request(
            hero=hero_of(prose),
            words=tuple(self.keywords(prose)),
            length=self.length_of(prose),
            genre=genre if genre in self.genres else None,
            dialogue="yes" if QUOTES.search(prose) else "no",
            ending=ending_of(prose),
        )


def choose_words(request: Request, rng: np.random.Generator) -> Request:
    """The request with two to four of its words, in any order."""
    count = min(len(request.words), int(rng.integers(*WORDS_ASKED, endpoint=True)))
    chosen = rng.permutation(len(request.words))[:count]
    return replace(request, words=tuple(request.words[i] for i in chosen))


def choose_lines(request: Request, rng: np.random.Generator) -> list[str]:
    """A random part of a request's lines, in their usual order; often none of them.

    `format_request` always writes that order. A small model, which knows places by number, copies
    a name sooner from where it always stands.
    """
    if rng.random() < PLAIN_SHARE:
        return []
    kept = {name: rng.random() < share for name, share in LINE_SHARES.items()}
    empty = {name: () if name == "words" else None for name, keep in kept.items() if not keep}
    return replace(choose_words(request, rng), **empty).lines()
