"""Whether stories follow their requests, against chance: the request of another story."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from golpo.console import print_safely
from golpo.request_facts import STORIES_COUNTED, CorpusFacts, choose_words, stem, stems_of
from golpo.requests import Request, split_request
from golpo.stories import split_story
from golpo.story_measures import GenreClassifier, bare_word, genres_of
from golpo_utils import check_number

REQUESTS = 100
Stories = Callable[[], Iterable[str]]  # gives a corpus's stories, each time from the first on


def keeps_hero(hero: str, prose: str) -> bool:
    """Whether the hero is named in the first paragraph and in the last."""
    paragraphs = prose.split("\n\n")
    ends = (paragraphs[0], paragraphs[-1])
    return all(hero in map(bare_word, paragraph.split()) for paragraph in ends)


def share_used(words: tuple[str, ...], prose: str) -> float:
    """The share of `words` that a text uses, also in the plural or with another ending."""
    used = stems_of(prose)
    return sum(stem(word) in used for word in words) / len(words)


class RequestMeasure:
    """How much of a request a story fulfils. genres: genre → the text of its stories."""

    def __init__(self, facts: CorpusFacts, genres: dict[str, str]):
        self.facts = facts
        self.classifier = GenreClassifier(genres) if len(genres) > 1 else None

    def follow(self, request: Request, prose: str) -> dict[str, float]:
        """What is asked for → 0..1. What is not asked for, or cannot be known, is left out."""
        found = {}
        if request.words:
            found["words"] = share_used(request.words, prose)
        if request.hero:
            found["hero"] = float(keeps_hero(request.hero, prose))
        if request.length:
            found["length"] = float(self.facts.length_of(prose) == request.length)
        if request.genre and self.classifier and request.genre in self.classifier.counts:
            found["genre"] = float(self.classifier.classify(prose) == request.genre)
        return found

    def table(self, name: str, requests: list[Request], proses: list[str]) -> dict[str, float]:
        """The mean of each of the `follow`, and the same against the request before."""
        shares = defaultdict(list)
        for number, (request, prose) in enumerate(zip(requests, proses, strict=True)):
            for what, share in self.follow(request, prose).items():
                shares[f"{name}_{what}"].append(share)
            for what, share in self.follow(requests[number - 1], prose).items():
                shares[f"{name}_{what}_by_chance"].append(share)
        return {what: float(np.mean(all_shares)) for what, all_shares in shares.items()}


def draw_requests(
    facts: CorpusFacts, stories: list[str], count: int = REQUESTS, seed: int = 0
) -> list[Request]:
    """`count` requests for hero, words, length and genre, each that of one of `stories`.

    With fewer stories than `count`, a story gives several, with words of its own each. Stories
    without keywords give none; [] if there are no others.
    """
    check_number("count", count, 1, whole=True)
    found = [facts.request_of(split_request(story)[1]) for story in stories]
    found = [one for one in found if one.words]
    drawn = []
    for number in range(count if found else 0):
        rng = np.random.default_rng([seed, number])
        request = replace(found[number % len(found)], dialogue=None, ending=None)
        drawn.append(choose_words(request, rng))
    return drawn


def recombine(requests: list[Request], stories: Iterable[str]) -> list[Request]:
    """Each request with the words of a later one, so that no story has its hero and its words.

    A request without a hero, or for which there are no such words, is left out. Of the stories,
    as many are read as `CorpusFacts` reads.
    """
    requests = [request for request in requests if request.hero]
    known = defaultdict(list)  # hero → the stems of each story that names him or her
    heroes = {request.hero for request in requests}
    for story in itertools.islice(stories, STORIES_COUNTED):
        prose = split_story(split_request(story)[1])[1]
        for hero in heroes.intersection(map(bare_word, prose.split())):
            known[hero].append(stems_of(prose))

    def is_new(request: Request) -> bool:
        asked = set(map(stem, request.words))
        return not any(asked <= stems for stems in known[request.hero])

    found = []
    for number, request in enumerate(requests):
        others = (requests[(number + step) % len(requests)] for step in range(1, len(requests)))
        mixed = (replace(request, words=other.words) for other in others)
        new = next(filter(is_new, mixed), None)
        if new is not None:
            found.append(new)
    return found


def measure_requests(
    write: Callable[[list[Request]], list[str]],
    validation: list[str],
    training: Stories,
    count: int = REQUESTS,
    seed: int = 0,
) -> dict[str, float]:
    """How well stories follow requests → shares, each also by chance.

    write: requests → the prose of a story for each. request_…: `count` requests of validation
    stories. recombined_…: the hero of one with the words of another, which no story has. words:
    share of the words that are used. hero: named in the first paragraph and the last. length: in
    its third of the corpus. genre: as `GenreClassifier` has it. {} if nothing can be measured.
    """
    facts = CorpusFacts(training())
    measure = RequestMeasure(facts, genres_of(training))
    requests = draw_requests(facts, validation, count, seed)
    if not requests:
        print_safely("Requests are not measured: no validation story has keywords.")
        return {}
    mixed = recombine(requests, itertools.chain(validation, training()))
    figures = measure.table("request", requests, write(requests))
    return figures | measure.table("recombined", mixed, write(mixed))
