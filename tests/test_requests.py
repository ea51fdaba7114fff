"""Requests: their text, what is derived from stories, the windows of training, what is measured."""

import itertools
import re
from functools import partial

import numpy as np
import pytest
import torch
from trainings import CONFIG, LEARNED, newest, same_bits, train

from golpo import evaluation
from golpo.commands import Generate
from golpo.dataset import GPTDataset
from golpo.loss import IGNORED
from golpo.request_dataset import RequestDataset
from golpo.request_facts import CorpusFacts, choose_lines, choose_words, ending_of, stem
from golpo.request_measures import (
    RequestMeasure,
    draw_requests,
    keeps_hero,
    measure_requests,
    recombine,
    share_used,
)
from golpo.requests import (
    Request,
    format_request,
    parse_request,
    request_opening,
    split_request,
)
from golpo_utils import encode, get_tokenizer, start_id_of, story_opening

HANNA = """<|start|>
<|title|>The Lamp</|title|>

On a hill lived Hanna. One night Hanna lost her lamp. An owl saw the lamp.

"Here it is," said the owl. "You found the lamp," said Hanna, and Hanna laughed.
<|end|>
"""
BEN = """<|start|>
In a town lived Ben. Every day Ben saw a boat, and one day the boat sank.

In the evening Ben cried alone.
<|end|>
"""


HEROES = ("Hanna", "Ben", "Zoe", "Leo", "Mei", "Raj", "Tara", "Owen", "Lin", "Sara", "Ken", "Ivan")
THINGS = (
    "lamp",
    "owl",
    "cat",
    "boat",
    "coat",
    "drum",
    "bell",
    "goat",
    "hill",
    "seed",
    "fish",
    "pot",
)


def tell(hero: str, thing: str, size: int) -> str:
    """A story of `size` words."""
    prose = f"There lived {hero} and {hero} had the {thing}s."
    filler = " they" * (size - len(prose.split()) - 4)
    text = f"{prose} So{filler} ended with {hero}."
    return f"<|start|>\n<|title|>Tale of {size}</|title|>\n\n{text}\n<|end|>\n"


def stories() -> list[str]:
    """Nine stories, three each of 20, 30 and 40 words; each thing is in three of them."""
    pairs = list(zip(HEROES, THINGS, strict=True))[:3]
    return [tell(*pair, size) for size in (20, 30, 40) for pair in pairs]


def library() -> list[str]:
    """36 stories: each hero has one thing, in three stories."""
    pairs = zip(HEROES, THINGS, strict=True)
    return [tell(*pair, size) for pair in pairs for size in (20, 30, 40)]


@pytest.fixture(scope="module")
def tokenizer():
    return get_tokenizer(4096)


# Format


def test_a_request_is_lines_of_keys_and_values():
    request = Request(hero="Hanna", words=("lamp", "owl"), length="short")
    assert format_request(request) == "Hero: Hanna\nWords: lamp, owl\nLength: short"
    assert format_request(Request()) == ""
    everything = Request("Hanna", ("lamp",), "long", "Ghost story", "no", "sad")
    assert parse_request(format_request(everything)) == everything


def test_lines_may_be_in_any_order_and_left_out():
    assert parse_request("length: Short\n\nWords: lamp,owl\n") == Request(
        words=("lamp", "owl"), length="short"
    )
    assert parse_request("") == Request()
    assert Request(words="lamp, owl").words == ("lamp", "owl")


@pytest.mark.parametrize(
    "text, parts",
    [
        ("Mood: dark", ["'Mood: dark'", "Hero, Words, Length, Genre, Dialogue, Ending"]),
        ("just a line", ["'just a line'", "Hero, Words, Length"]),
        ("Hero: Ben\nHero: Zoe", ["'Hero'", "two lines"]),
        ("Length: tiny", ["'tiny'", "short, medium, long"]),
        ("Ending: odd", ["'odd'", "happy, sad"]),
        ("Hero: <|end|>Ben", ["<|end|>Ben", "without markers"]),
    ],
)
def test_a_bad_request_is_refused_in_one_sentence(text, parts):
    with pytest.raises(ValueError) as caught:
        parse_request(text)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("bad", [{"words": 3}, {"words": (3,)}, {"hero": 3}, {"hero": "A\nB"}])
def test_a_request_of_wrong_kinds_is_refused(bad):
    with pytest.raises((ValueError, TypeError), match="request"):
        Request(**bad)


def test_peoples_own_lines_are_found_and_nothing_else():
    asked = HANNA.replace("<|start|>\n", "<|start|>\nHero: Hanna\nLength: short\n")
    assert split_request(asked) == (Request(hero="Hanna", length="short"), HANNA)
    assert split_request(HANNA) == (None, HANNA)
    untitled = BEN.replace("<|start|>\n", "<|start|>\nWords: boat\n\n")
    assert split_request(untitled) == (Request(words=("boat",)), BEN)
    assert split_request(BEN) == (None, BEN)
    foreign = BEN.replace("In a town", "Night: in a town")
    assert split_request(foreign) == (None, foreign)


def test_an_opening_has_the_tokens_of_the_training_text(tokenizer):
    request = Request(hero="Hanna", length="short")

    def opening(**more):
        return story_opening(tokenizer, **request_opening(request, **more))

    lines = "<|start|>\nHero: Hanna\nLength: short\n"
    titled = f"{lines}<|title|>The Lamp</|title|>\n\nOnce there was"
    assert opening(title="The Lamp", prompt="Once there was") == encode(titled, tokenizer)
    assert opening(prompt="Once there was") == encode(f"{lines}\nOnce there was", tokenizer)
    assert opening() == encode(lines, tokenizer)
    assert opening(prompt="Once<|end|>") == encode(f"{lines}\nOnce", tokenizer)
    genre = "<|start|>\n<|title|>Ghost story:"
    expected = encode(f"{lines}<|title|>Ghost story:", tokenizer)
    assert opening(prompt=genre, markers=True) == expected


def test_the_command_line_puts_a_request_before_title_and_words():
    asked = Generate(title="The Lamp", request=Request(words="lamp,owl", genre="Fable"))
    assert asked.request.is_used()
    assert not Generate(request=Request(genre="Fable")).request.is_used()
    prompt = request_opening(asked.request, **asked.opening())["prompt"]
    assert (
        prompt
        == "<|start|>\nWords: lamp, owl\nGenre: Fable\n<|title|>Fable: The Lamp</|title|>\n\n"
    )


# Facts


def test_facts_of_a_story_counted_by_hand():
    facts = CorpusFacts(stories())
    # The lengths are 20, 20, 20, 30, 30, 30, 40, 40, 40, whose thirds end between 20 and 30
    # (20 + 2/3 × 10) and between 30 and 40 (30 + 1/3 × 10).
    assert facts.thirds == pytest.approx([26.67, 33.33], abs=0.01)
    assert [facts.length_of(story) for story in ("a " * 26, "a " * 27, "a " * 34)] == [
        "short",
        "medium",
        "long",
    ]
    assert facts.frequency["lamp"] == facts.frequency["owl"] == 3
    assert facts.frequency["they"] == 9
    # Of Hanna's words only these are in three stories at least, and not in more; the lamp is
    # named three times and the owl twice.
    asked = facts.request_of(HANNA)
    assert asked == Request(
        hero="Hanna", words=("lamp", "owl"), length="medium", dialogue="yes", ending="happy"
    )
    assert facts.request_of(BEN) == Request(
        hero="Ben", words=(), length="short", dialogue="no", ending="sad"
    )


def test_genres_are_those_of_many_titles():
    many = [HANNA.replace("The Lamp", "Fable: The Lamp")] * 20
    few = [HANNA.replace("The Lamp", "Rhyme: The Lamp")] * 19
    facts = CorpusFacts(many + few)
    assert facts.request_of(many[0]).genre == "Fable"
    assert facts.request_of(few[0]).genre is None


@pytest.mark.parametrize(
    "one, other, same",
    [
        ("owl", "owls", True),
        ("fox", "foxes", True),
        ("witch", "witches", True),
        ("shoe", "shoes", True),
        ("glass", "glasses", True),
        ("giant", "Giants", True),
        ("laughed", "laughing", True),
        ("cat", "catch", False),
        ("lamp", "lamb", False),
    ],
)
def test_stems_join_the_forms_of_a_word(one, other, same):
    assert (stem(one) == stem(other)) == same


def test_an_ending_that_cannot_be_told_is_none():
    assert ending_of("He cried.\n\nShe laughed.") == "happy"
    assert ending_of("She laughed and cried.") is None
    assert ending_of("The end.") is None


def test_some_requests_are_empty_and_all_are_parts_of_the_whole():
    whole = Request("Zoe", ("lamp", "owl", "cat", "boat", "sea"), "short", None, "yes", "sad")
    lines = [choose_lines(whole, np.random.default_rng(n)) for n in range(400)]
    assert 0.2 < sum(not one for one in lines) / 400 < 0.4
    assert len({tuple(line.split(":")[0] for line in one) for one in lines}) > 15  # subsets
    for one in lines:
        request = parse_request("\n".join(one))
        assert set(request.words) <= set(whole.words) and len(request.words) <= 4
        assert request.hero in (None, "Zoe") and request.length in (None, "short")


# Windows


def dataset_of(texts: list[str], tokenizer, length: int = 48) -> RequestDataset:
    ids = torch.tensor(encode("".join(texts), tokenizer)).to(torch.uint16)
    return RequestDataset(ids, tokenizer, length, start_id_of(tokenizer), seed=3)


def test_a_window_has_the_tokens_of_a_text_with_a_request(tokenizer):
    texts = [*stories(), HANNA, BEN] * 4
    dataset = dataset_of(texts, tokenizer, 128)
    seen = 0
    for story in range(len(texts) - 3):
        inputs, targets = dataset.batch([story], epoch=1)
        text = tokenizer.decode(inputs[0].tolist())
        request, rest = split_request(text.partition("<|end|>")[0])
        assert texts[story].startswith(rest)
        ignored = int((targets == IGNORED).sum())
        plain = len(encode(text.partition("<|end|>")[0], tokenizer)) - len(encode(rest, tokenizer))
        assert ignored == plain
        assert torch.equal(inputs[0, 1 + ignored :], targets[0, ignored:-1])
        exact = encode(text.partition("<|end|>")[0], tokenizer)
        assert inputs[0, : len(exact)].tolist() == exact
        seen += request is not None
    assert 0.4 < seen / len(texts) < 0.9


def numbered_stories() -> list[str]:
    """60 stories of 20 to 79 different numbers, so that no run of tokens is there twice."""
    numbers = iter(range(100, 5000))
    return [
        f"<|start|>\n{' '.join(str(next(numbers)) for _ in range(size))}\n<|end|>\n"
        for size in range(20, 80)
    ]


def test_windows_stay_as_many_and_cover_every_story_in_each_epoch(tokenizer):
    dataset = dataset_of(numbered_stories(), tokenizer)
    plain = GPTDataset(dataset.ids, None, 48, 48, start_id=start_id_of(tokenizer))
    assert np.array_equal(dataset.starts, plain.starts)
    assert len(dataset) > 2 * 60, "no story has several windows"
    place_of = {
        tuple(dataset.ids[place : place + 9].tolist()): place for place in range(len(dataset.ids))
    }
    requests = 0
    for epoch, shift in ((0, 0.0), (1, 0.3), (2, 1.0)):
        missing = set(range(1, len(dataset.ids)))
        for window in range(len(dataset)):
            row, size = dataset.row(window, shift, epoch)
            requests += size > 0
            tail = row[1 + size :]
            first = place_of[tuple(tail[:9].tolist())]
            assert torch.equal(tail, dataset.ids[first : first + len(tail)].long())
            missing -= set(range(first, first + len(tail)))
        assert not missing
    assert requests > 60


def test_a_request_depends_on_seed_epoch_and_story_alone(tokenizer):
    texts = [*stories(), HANNA, BEN] * 2
    one, other = dataset_of(texts, tokenizer), dataset_of(texts, tokenizer)
    first = [one.request_ids(story, 0) for story in range(20)]
    assert [other.request_ids(story, 0) for story in reversed(range(20))] == first[::-1]
    assert [one.request_ids(story, 1) for story in range(20)] != first
    other.seed = 4
    assert [other.request_ids(story, 0) for story in range(20)] != first


def test_peoples_own_requests_stay_the_only_ones(tokenizer):
    asked = HANNA.replace("<|start|>\n", "<|start|>\nHero: Hanna\nLength: long\n")
    dataset = dataset_of([asked, BEN, *stories()] * 3, tokenizer, 128)
    for epoch in range(10):
        assert dataset.request_ids(0, epoch) == []
    inputs, targets = dataset.batch([0])
    assert tokenizer.decode(inputs[0].tolist()).startswith(asked)
    assert not (targets == IGNORED).any()


def test_windows_that_do_not_start_at_stories_are_refused(tokenizer):
    ids = torch.tensor(encode(HANNA * 5, tokenizer))
    with pytest.raises(ValueError, match="align_to_stories=True"):
        RequestDataset(ids, tokenizer, 16, None, 0)


# Training


@pytest.mark.usefixtures("one_thread", "silent")
def test_a_resumed_training_with_requests_equals_an_uninterrupted_one(training_corpus, tmp_path):
    options = {"requests": True, "config": CONFIG | {"context_length": 64}}
    train(training_corpus, tmp_path / "whole", **options)
    whole = newest(tmp_path / "whole")
    epoch = whole["global_step"] // 3
    for stop in (3, epoch, epoch + 4, 2 * epoch + 5):
        train(training_corpus, tmp_path / "cut", **options, max_steps=stop)
        assert newest(tmp_path / "cut")["global_step"] == stop
    train(training_corpus, tmp_path / "cut", **options)
    assert same_bits(newest(tmp_path / "cut"), whole)
    train(training_corpus, tmp_path / "plain", **options | {"requests": False})
    plain = newest(tmp_path / "plain")
    assert plain["global_step"] == whole["global_step"]
    assert not same_bits(plain, whole, LEARNED)


# Measures


def test_use_of_words_and_heroes():
    prose = "Hanna saw foxes.\n\nThe fox laughed at Hanna's lamp."
    assert share_used(("fox", "lamps", "owl", "laughing"), prose) == 0.75
    assert keeps_hero("Hanna", prose)
    assert not keeps_hero("Hanna", "Hanna slept.\n\nBen woke.")
    assert not keeps_hero("Han", prose)


def test_a_requests_share_is_measured_against_the_request_before():
    measure = RequestMeasure(CorpusFacts(stories()), {})
    requests = [Request("Hanna", ("lamp", "owl"), "short"), Request("Ben", ("cat",), "long")]
    proses = ["Hanna has a lamp.", "Ben has an owl."]
    assert measure.table("request", requests, proses) == {
        "request_words": 0.25,  # the lamp of two, and no cat
        "request_hero": 1.0,
        "request_length": 0.5,  # both are short
        "request_words_by_chance": 0.25,  # the first has no cat, the second has one of two
        "request_hero_by_chance": 0.0,
        "request_length_by_chance": 0.5,
    }


def test_recombined_requests_are_those_of_no_story():
    requests = draw_requests(CorpusFacts(library()), library(), 40)
    assert len(requests) == 40
    assert all(one.hero and one.words and one.dialogue is None for one in requests)
    mixed = recombine(requests, library())
    assert [one.hero for one in mixed] == [one.hero for one in requests]
    thing_of = dict(zip(HEROES, THINGS, strict=True))
    for before, after in zip(requests, mixed, strict=True):
        assert list(map(stem, before.words)) == [thing_of[before.hero]]
        assert list(map(stem, after.words)) != [thing_of[after.hero]]
    everything = [f"<|start|>\n{' '.join(HEROES)} had {' '.join(THINGS)}\n<|end|>\n"]
    assert recombine(requests, everything) == []


def test_stories_that_do_as_asked_measure_one_and_others_less():
    def write(requests: list[Request]) -> list[str]:
        return [f"{one.hero} had {' '.join(one.words)}.\n\n{one.hero} slept." for one in requests]

    figures = measure_requests(write, library(), library, count=36)
    for name in ("request", "recombined"):
        assert figures[f"{name}_words"] == figures[f"{name}_hero"] == 1.0
        # Each hero has three requests in a row, of which the first follows another hero's.
        assert figures[f"{name}_hero_by_chance"] == pytest.approx(2 / 3)
        assert figures[f"{name}_length"] == pytest.approx(1 / 3)  # all that is written is short


def test_stories_without_keywords_are_not_measured_and_without_heroes_not_recombined(capsys):
    def write(requests: list[Request]) -> list[str]:
        return ["They had a lamp."] * len(requests)

    plain = "<|start|>\nThere lived they.\n<|end|>\n"
    assert measure_requests(write, [plain], library) == {}
    assert "no validation story has keywords" in capsys.readouterr().out
    nameless = plain.replace("they", "two lamps")
    figures = measure_requests(write, [nameless], library, count=2)
    assert figures["request_words"] == figures["request_words_by_chance"] == 1.0
    assert not any("hero" in name or "recombined" in name for name in figures)


def test_two_to_four_words_are_asked_for():
    whole = Request(words=tuple("abcdefgh"))
    sizes = {len(choose_words(whole, np.random.default_rng(n)).words) for n in range(60)}
    assert sizes == {2, 3, 4}


@pytest.mark.usefixtures("one_thread", "silent")
def test_the_commands_evaluate_and_generate_know_requests(tmp_path, capsys, monkeypatch):
    corpus = tmp_path / "library.txt"
    numbers = itertools.count(100)  # instead of "they", so that no story is a copy of another
    texts = [re.sub("they", lambda _: str(next(numbers)), story) for story in library() * 2]
    corpus.write_text("".join(texts), encoding="utf-8")
    options = {"config": CONFIG | {"context_length": 64}, "num_epochs": 1}
    for requests in (True, False):
        train(corpus, tmp_path / str(requests), **options, requests=requests)
    lengths = {"max_new_tokens": 4}
    monkeypatch.setattr(evaluation, "measure_requests", partial(measure_requests, count=4))
    figures = evaluation.evaluate(tmp_path / "True", stories=1, requests=True, **lengths)
    assert {"request_words", "request_hero_by_chance", "recombined_length"} <= set(figures)
    for requests in (True, False):
        capsys.readouterr()
        request = Request(hero="Hanna", length="short")
        Generate(checkpoint=str(tmp_path / str(requests)), request=request, **lengths).run()
        shown, noted = capsys.readouterr()
        assert "Hero" not in shown
        assert ("was not trained with requests" in noted) == (not requests)
