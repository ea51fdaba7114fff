"""Training windows, held against plain loops."""

import random

import numpy as np
import pytest
import torch

from golpo import dataset as dataset_module
from golpo.dataset import GPTDataset, create_dataloader, epoch_order, epoch_shift, story_bounds
from golpo_utils import get_tokenizer

TOKENIZER = get_tokenizer(300)


def story(number):
    words = random.Random(number).choices(["moon", "river", "fox", "and", "slept"], k=30)
    return f"<|start|>\n<|title|>Tale {number}</|title|>\n\n{' '.join(words)}.\n<|end|>"


@pytest.mark.parametrize("length, stride", [(16, 16), (16, 5), (7, 20), (1, 1)])
def test_windows_are_those_of_a_plain_loop(length, stride):
    text = " ".join(map(story, range(3)))
    ids = TOKENIZER.encode(text, allowed_special="all")
    expected = [
        (ids[i : i + length], ids[i + 1 : i + 1 + length])
        for i in range(0, len(ids) - length, stride)
    ]
    for source in (text, torch.tensor(ids).to(torch.uint16)):
        dataset = GPTDataset(source, TOKENIZER, length, stride)
        assert [(x.tolist(), y.tolist()) for x, y in dataset] == expected
        assert dataset[0][0].dtype == torch.long
        assert dataset[-1][1].tolist() == expected[-1][1]
    with pytest.raises(IndexError):
        dataset[len(expected)]


def test_adjacent_windows_predict_every_token_once():
    for extra in range(16):
        ids = torch.arange(160 + extra)
        targets = [target for _, target in GPTDataset(ids, None, 16, 16)]
        predicted = torch.cat(targets).tolist()
        assert predicted == list(range(1, 1 + len(predicted)))
        assert len(ids) - 1 - len(predicted) < 16


def test_windows_aligned_to_stories_are_those_of_a_plain_loop():
    """Counted story by story over hundreds of small corpora, with the largest shift of each."""
    rng = np.random.default_rng(1)
    for _ in range(300):
        lengths = rng.integers(1, 60, size=rng.integers(2, 7))
        lengths[-1] += 17  # the last story fills a window
        ids = [token for length in lengths for token in (1, *[9] * int(length))]
        begins = [position for position, token in enumerate(ids) if token == 1]
        expected = {}
        for begin, end in zip(begins, [*begins[1:], len(ids)], strict=True):
            own = range(begin, end, 16)
            beyond = own[-1] + 16 - end if end < len(ids) else 0
            for start in own:
                expected[min(start, len(ids) - 17)] = beyond if start > begin else 0
        dataset = GPTDataset(torch.tensor(ids), None, 16, 16, start_id=1)
        assert dataset.starts.tolist() == sorted(expected)
        movable = dataset.starts < len(ids) - 17  # the last one may stand for several
        found = dict(zip(dataset.starts[movable], dataset.max_shift[movable], strict=True))
        assert all(expected[start] == shift for start, shift in found.items())


def test_shifted_windows_still_cover_every_token_of_every_story():
    """Hundreds of small corpora, by a plain count: each token that can be predicted is, the first
    window of a story stays where it is, and most of the others move.
    """
    rng = np.random.default_rng(0)
    moved = 0
    still = 0
    for _ in range(300):
        lengths = rng.integers(1, 60, size=rng.integers(2, 7))
        ids = torch.tensor([token for length in lengths for token in (1, *[9] * int(length))])
        if len(ids) <= 16:
            continue
        dataset = GPTDataset(ids, None, 16, 16, start_id=1)
        dataset.ids = torch.arange(len(ids))  # now the ids of a window are its positions
        starts = torch.from_numpy(dataset.starts)
        for shift in (0.0, 0.4, 0.99):
            inputs, targets = dataset.batch(np.arange(len(dataset)), shift)
            assert set(targets.flatten().tolist()) == set(range(1, len(ids)))
            assert torch.equal(targets, inputs + 1)
            begins = ids[starts] == 1
            assert torch.equal(inputs[:, 0][begins], starts[begins])
            if shift > 0.9:
                moves = inputs[:, 0] != starts
                moved += int(moves.sum())
                still += int((~begins & ~moves).sum())
    assert moved > still > 0


def test_a_window_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="16 tokens, fewer than one window of 16"):
        GPTDataset(torch.arange(16), None, 16, 16)
    assert len(GPTDataset(torch.arange(17), None, 16, 16)) == 1
    for bad in ((0, 16), (16, 0), (16, -1), (1.5, 16)):
        with pytest.raises(ValueError, match="max_length|stride"):
            GPTDataset(torch.arange(100), None, *bad)


def test_the_dataloader_gives_batches_of_the_same_windows():
    text = " ".join(map(story, range(10)))
    windows = [x.tolist() for x, _ in GPTDataset(text, get_tokenizer(), 8, 8)]
    in_order = create_dataloader(text, 4, 8, 8, shuffle=False)
    rows = [row for inputs, _ in in_order for row in inputs.tolist()]
    assert rows == windows[: len(windows) // 4 * 4]
    assert all(x.shape == y.shape == (4, 8) for x, y in in_order)
    shuffled = create_dataloader(text, 4, 8, 8, drop_last=False)
    assert sorted(row for inputs, _ in shuffled for row in inputs.tolist()) == sorted(windows)


def test_story_bounds_are_the_positions_of_the_start_tokens(monkeypatch):
    ids = torch.tensor([9, 1, 5, 5, 1, 1, 7], dtype=torch.uint16)
    assert list(story_bounds(ids, 1)) == [0, 1, 4, 5, 7]
    assert list(story_bounds(ids, None)) == [0, 7]
    monkeypatch.setattr(dataset_module, "PART_SIZE", 2)
    assert list(story_bounds(ids, 1)) == [0, 1, 4, 5, 7]


def test_the_order_and_the_shift_of_an_epoch_depend_on_seed_and_epoch_alone():
    """Resuming relies on exactly these numbers, so they are written out."""
    assert epoch_order(3, 1, 8).tolist() == np.random.default_rng([3, 1]).permutation(8).tolist()
    assert sorted(epoch_order(3, 2, 50)) == list(range(50))
    assert epoch_order(3, 1, 50).tolist() != epoch_order(3, 2, 50).tolist()
    assert epoch_order(3, 1, 50).tolist() != epoch_order(4, 1, 50).tolist()
    assert epoch_shift(3, 0) == 0
    assert epoch_shift(3, 1) == np.random.default_rng([3, 1, 1]).random()
    shifts = {epoch_shift(seed, epoch) for seed in range(3) for epoch in range(1, 4)}
    assert len(shifts) == 9 and all(0 < shift < 1 for shift in shifts)
