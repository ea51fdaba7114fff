"""Copies of a story are found, against a plain comparison of shingles, and split together."""

import random
import re

import numpy as np
import pytest

from golpo.copies import Copies, choose_validation, find_copies
from golpo.corpus import load_corpus, read_stories
from golpo.paths import DEFAULT_CORPUS
from golpo_utils import get_tokenizer

TOKENIZER = get_tokenizer(300)
WORDS = (
    "the old moon showed a fox how rivers sleep under snow while nobody heard many small birds go "
    "home across cold hills and then some morning light came over every quiet field again"
).split()


def text_of(seed, words=60):
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def with_changes(text, count, seed=0):
    words = text.split()
    for place in random.Random(seed).sample(range(len(words)), count):
        words[place] = f"other{place}"
    return " ".join(words)


def similarity(first, second):
    """The share of common three-word shingles, counted plainly."""
    sets = []
    for text in (first, second):
        words = re.findall(r"\w+", text.casefold())
        sets.append({tuple(words[i : i + 3]) for i in range(len(words) - 2)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def story(title, text):
    return f"<|start|>\n<|title|>{title}</|title|>\n\n{text}\n<|end|>\n"


def test_texts_that_differ_in_white_space_case_and_title_are_equal():
    texts = [text_of(seed) for seed in range(20)]
    copies = find_copies([*texts, *(story("Other", text.upper()) for text in texts[:5])])
    assert copies.groups.tolist() == [*range(20), *range(5)]
    assert (copies.equal, copies.near) == (5, 0)
    spread = texts[0].replace(" ", "\n  ")
    assert find_copies([texts[0], spread]).groups.tolist() == [0, 0]
    assert find_copies(["Hm.", "No.", "hm. "]).groups.tolist() == [0, 1, 0]


def test_near_copies_are_those_with_most_shingles_in_common():
    """For hundreds of pairs: found if 9 of 10 shingles are common, not if fewer than 6 of 10."""
    found = {True: [], False: []}
    for seed in range(100):
        text = text_of(seed, words=80)
        for changes in (1, 2, 4, 8):
            other = with_changes(text, changes, seed)
            is_near = bool(find_copies([text_of(999), text, other]).near)
            found[is_near].append(similarity(text, other))
    assert min(found[True]) > 0.6
    assert max(found[False]) < 0.9
    assert len(found[True]) > 100 and len(found[False]) > 100


def test_a_text_with_an_added_sentence_is_a_near_copy():
    texts = [text_of(seed, words=100) for seed in range(30)]
    longer = [f"{text} And that was the end of it." for text in texts]
    copies = find_copies([*texts, *longer])
    assert copies.groups.tolist() == [*range(30), *range(30)]
    assert (copies.equal, copies.near) == (0, 30)


def test_scripts_without_spaces_have_near_copies_too():
    rng = random.Random(0)
    letters = [chr(0x4E00 + rng.randrange(3000)) for _ in range(60)]
    text = "".join(rng.choices(letters, k=200))
    other = text[:100] + "狐" + text[101:]
    unrelated = "".join(rng.choices(letters, k=200))
    assert find_copies([text, unrelated, other]).groups.tolist() == [0, 1, 0]


def test_similar_stories_from_one_grammar_are_no_copies():
    """The bundled corpus keeps the split that it always had."""
    copies = find_copies(read_stories(DEFAULT_CORPUS))
    assert not copies.any()
    assert len(copies.groups) == 5700


# --- the split -------------------------------------------------------------------------------


def copies_of(groups):
    groups = np.array(groups)
    return Copies(groups, int((groups != np.arange(len(groups))).sum()), 0)


def test_without_copies_the_split_is_the_start_of_a_permutation():
    for count in (2, 3, 10, 57):
        for fraction in (0.0, 0.1, 0.5, 0.9):
            order = np.random.default_rng(5).permutation(count)
            wanted = min(max(1, round(fraction * count)), count - 1)
            chosen = choose_validation(copies_of(range(count)), 5, fraction)
            assert set(np.flatnonzero(chosen)) == set(order[:wanted])


def test_copies_are_on_one_side_and_the_share_is_kept():
    """Hundreds of random corpora: no group is divided, and neither side is empty."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        count = int(rng.integers(4, 60))
        labels = rng.integers(0, rng.integers(2, count), count)
        groups = [int(np.flatnonzero(labels == label)[0]) for label in labels]
        if len(set(groups)) == 1:
            continue
        fraction = rng.uniform(0.1, 0.5)
        chosen = choose_validation(copies_of(groups), 3, fraction)
        assert 0 < chosen.sum() < count
        for group in set(groups):
            members = chosen[np.array(groups) == group]
            assert members.all() or not members.any()
        smallest = min(np.bincount(groups)[groups])
        assert chosen.sum() <= max(smallest, round(fraction * count), 1)


def test_a_corpus_of_one_story_only_is_split_all_the_same():
    chosen = choose_validation(copies_of([0] * 10), 3, 0.2)
    assert chosen.sum() == 2


@pytest.mark.parametrize("times", [2, 30])
def test_a_story_that_stands_several_times_is_never_on_both_sides(tmp_path, times):
    stories = [story(f"Tale {seed}", text_of(seed)) for seed in range(40)]
    repeated = stories[:10] * (times - 1)
    near = [story("Near", with_changes(text_of(seed), 1)) for seed in range(20, 25)]
    mixed = [*stories, *repeated, *near]
    random.Random(1).shuffle(mixed)
    path = tmp_path / "corpus.txt"
    path.write_text("".join(mixed), encoding="utf-8")
    for seed in range(5):
        corpus = load_corpus(path, TOKENIZER, seed=seed, cache_dir=tmp_path / "tokens")
        sides = [TOKENIZER.decode(ids.tolist()) for ids in (corpus.train_ids, corpus.val_ids)]
        for text in map(text_of, range(10)):
            assert sorted(side.count(text) for side in sides) == [0, times]
        for number in range(20, 25):
            part = " ".join(with_changes(text_of(number), 1).split()[-10:])
            original = " ".join(text_of(number).split()[-10:])
            assert [part in side for side in sides] == [original in side for side in sides]
        assert corpus.copies == 10 * (times - 1) + 5
        note = next(note for note in corpus.notes if "copies of others" in note)
        assert f"({10 * (times - 1)} equal but for white space and case, 5 nearly equal)" in note
        assert "stay on one side of the split" in note


def test_a_training_of_the_first_version_keeps_its_split(tmp_path):
    """Its checkpoints resume exactly, so the stories must stay where they were."""
    texts = [story(f"Tale {seed}", text_of(seed)) for seed in range(10)] * 2
    path = tmp_path / "corpus.txt"
    path.write_text("".join(texts), encoding="utf-8")
    order = np.random.default_rng(0).permutation(20)
    expected = "".join(texts[i] for i in sorted(order[:2]))
    corpus = load_corpus(path, TOKENIZER, cache_dir=tmp_path, corpus_version=1)
    assert TOKENIZER.decode(corpus.val_ids.tolist()) == expected
    assert "read as by version 1" in corpus.notes[-1]
