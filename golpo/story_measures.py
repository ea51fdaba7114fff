"""Measures of story texts: endings, titles, repetition, copying, names that last."""

import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import regex

from golpo.stories import split_story
from golpo_utils import END

NAME = re.compile(r"[A-Z][a-z]+$")
SENTENCE_ENDS = (".", "!", "?", '"', "”", ":")
# Letters with the marks of scripts such as Bengali, whose vowel signs are marks.
WORD = regex.compile(r"\p{L}[\p{L}\p{M}]*")
LONG_WORD = regex.compile(r"\p{L}[\p{L}\p{M}]{3,}")
PART_LENGTH = 2**18  # characters whose words are in memory at once


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """All runs of n words of `text`, split at white space, in order."""
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def run_hashes(text: str, n: int) -> Iterator[int]:
    """The hash of each of the `ngrams` of a text of any length."""
    before = []  # the last words of the part before
    for part in cut_at_spaces(text, PART_LENGTH):
        words = before + part.split()
        yield from map(hash, zip(*(words[i:] for i in range(n)), strict=False))
        before = words[max(0, len(words) - n + 1) :]


def cut_at_spaces(text: str, length: int) -> Iterator[str]:
    """`text` in parts of at least `length` characters that end before white space."""
    start = 0
    while start < len(text):
        space = re.compile(r"\s").search(text, start + length)
        end = space.start() if space else len(text)
        yield text[start:end]
        start = end


def names_in(prose: str) -> list[str]:
    """The capitalized words that stand inside a sentence at least twice, in order."""
    words = prose.split()
    inside = Counter(
        name
        for before, word in itertools.pairwise(words)
        if not word.islower() and not before.endswith(SENTENCE_ENDS)
        if NAME.match(name := bare_word(word))
    )
    return [name for name, count in inside.items() if count > 1]


def bare_word(word: str) -> str:
    """A word without punctuation and without a final 's."""
    return re.sub(r"['’]s$|\W", "", word)


def hero_of(prose: str) -> str | None:
    """The first-named character. None without one."""
    return next(iter(names_in(prose)), None)


def name_persistence(prose: str) -> float | None:
    """Where the hero is mentioned last, as a share of the story, 0..1. None without a hero."""
    hero = hero_of(prose)
    if hero is None:
        return None
    words = [bare_word(word) for word in prose.split()]
    return (len(words) - words[::-1].index(hero)) / len(words)


def repeated_share(prose: str, n: int = 4) -> float | None:
    """1 - distinct / all runs of n words. None for a text shorter than n words."""
    runs = ngrams(prose, n)
    return 1 - len(set(runs)) / len(runs) if runs else None


class TrainingText:
    """What of some texts is in a training text, which may be larger than the memory.

    stories: the training text's. Only what one of the stories in `sought` has is kept.
    """

    RUN = 8  # words

    def __init__(self, stories: Iterable[str] = (), sought: Iterable[str] = ()):
        proses = [split_story(story)[1] for story in sought]
        sought_runs = {run for prose in proses for run in run_hashes(prose, self.RUN)}
        sought_stories = {hash_words(prose) for prose in proses}
        self.runs: set[int] = set()
        self.stories: set[int] = set()
        for story in stories:
            prose = split_story(story)[1]
            self.runs |= sought_runs.intersection(run_hashes(prose, self.RUN))
            self.stories.update(sought_stories.intersection([hash_words(prose)]))

    def copied_runs(self, prose: str) -> tuple[int, int]:
        """How many of the runs of eight words are in the training text, and how many there are."""
        runs = list(run_hashes(prose, self.RUN))
        return sum(run in self.runs for run in runs), len(runs)

    def holds(self, prose: str) -> bool:
        """Whether a whole story of the training text is this one."""
        return hash_words(prose) in self.stories


def hash_words(prose: str) -> int:
    """The same for two texts whose words are the same, however they are spaced."""
    return hash(" ".join(prose.split()))


def measure_stories(stories: list[str], training: TrainingText | None = None) -> dict:
    """Figures over stories, each a text from <|start|> on → a dict.

    ended: share that reached <|end|>. titled: share with a title. distinct_titles and
    distinct_openings (first five words): counts. repeated_4grams: see `repeated_share`, median
    and worst. verbatim_8grams: share of all runs of eight words that are in the training text.
    verbatim_stories: how many are in it as a whole. names_last: median of `name_persistence`; it
    is left out for a script without capital letters, by which names are known.
    """
    training = training or TrainingText()
    parts = [split_story(text) for text in stories]
    titles = [title for title, _ in parts if title]
    proses = [prose for _, prose in parts]
    repeated = [share for prose in proses if (share := repeated_share(prose)) is not None]
    copied = [training.copied_runs(prose) for prose in proses]
    names = [place for prose in proses if (place := name_persistence(prose)) is not None]
    figures = {
        "stories": len(stories),
        "ended": sum(END in text for text in stories) / len(stories),
        "titled": len(titles) / len(stories),
        "distinct_titles": len(set(titles)),
        "distinct_openings": len({tuple(prose.split()[:5]) for prose in proses}),
        "repeated_4grams_median": float(np.median(repeated or [0])),
        "repeated_4grams_worst": max(repeated, default=0.0),
        "verbatim_8grams": sum(n for n, _ in copied) / max(1, sum(n for _, n in copied)),
        "verbatim_stories": sum(training.holds(prose) for prose in proses if prose),
    }
    if any(map(has_capitals, proses)):
        figures["names_last"] = float(np.median(names or [0]))
    return figures


def has_capitals(text: str) -> bool:
    """Whether the script of a text has capital letters: Latin does, Bengali does not."""
    return text.lower() != text.upper()


def stems(text: str) -> set[str]:
    """The words of four letters and more, by their first five letters: "Giants" as "giant's"."""
    return {word[:5] for word in LONG_WORD.findall(text.lower())}


def genre_of(story: str) -> str | None:
    """The genre in a story's title line, as in "Ghost story: The Mill"."""
    genre, colon, _ = (split_story(story)[0] or "").partition(":")
    return genre if colon else None


def genres_of(
    read_stories: Callable[[], Iterable[str]],
    at_least: int = 20,
    most_genres: int = 50,
    most_characters: int = 500_000,
) -> dict[str, str]:
    """The genres of a corpus with `at_least` stories → genre → the text of its stories.

    read_stories gives the stories from the first on, each time that it is called. Of the texts,
    the first `most_characters` of the most frequent genres are kept.
    """
    counts = Counter(filter(None, map(genre_of, read_stories())))
    frequent = {genre for genre, n in counts.most_common(most_genres) if n >= at_least}
    texts = defaultdict(list)
    room = dict.fromkeys(frequent, most_characters)
    for story in read_stories() if frequent else ():
        genre = genre_of(story)
        if room.get(genre, 0) > 0:
            prose = split_story(story)[1]
            texts[genre].append(prose)
            room[genre] -= len(prose)
    return {genre: "\n".join(parts) for genre, parts in texts.items()}


class GenreClassifier:
    """Says which genre a text is most likely of: naive Bayes over words, add-one smoothing."""

    def __init__(self, genres: dict[str, str]):
        self.counts = {genre: Counter(self.words(text)) for genre, text in genres.items()}
        self.vocabulary = len(set().union(*self.counts.values()))

    @staticmethod
    def words(text: str) -> list[str]:
        return WORD.findall(text.lower())

    def classify(self, text: str) -> str:
        words = self.words(text)

        def log_likelihood(genre: str) -> float:
            counts = self.counts[genre]
            total = counts.total() + self.vocabulary
            return sum(math.log((counts[word] + 1) / total) for word in words)

        return max(self.counts, key=log_likelihood)
