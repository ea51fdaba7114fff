"""Packed windows, held against plain loops and plain counts, and trainings with them."""

import copy

import numpy as np
import pytest
import torch
from trainings import CONFIG, same_bits, train, whole_and_resumed
from windows import START, gradients_of, make_corpus, small_corpora

from golpo.dataset import GPTDataset, epoch_order
from golpo.loss import IGNORED, NextTokenLoss
from golpo.optim import make_optimizer
from golpo.packing import PackedDataset, best_fit
from golpo.settings import Settings
from golpo.step import TrainingStep
from golpo_utils import GPTModel


def with_positions(ids: torch.Tensor, length: int = 16, seed: int = 5) -> PackedDataset:
    """A dataset whose inputs and targets are positions in `ids`."""
    dataset = PackedDataset(ids, length, START, seed)
    dataset.ids = torch.arange(len(ids))
    return dataset


@pytest.mark.parametrize("longest", [18, 70])
def test_each_token_but_a_windows_first_is_predicted_once_in_each_epoch(longest):
    for lengths in small_corpora(longest):
        ids = make_corpus(lengths)
        dataset = with_positions(ids)
        for epoch in (0, 3):
            inputs, targets = dataset.batch(np.arange(len(dataset)), 0.5, epoch)
            predicted = targets[targets != IGNORED].tolist()
            assert len(predicted) == len(set(predicted)) == dataset.predicted(range(len(dataset)))
            rest = set(range(len(ids))) - set(predicted)
            begins = inputs[:, 0][ids[inputs[:, 0]] == START]
            assert rest == set(begins.tolist())
            # Padding stands at the end alone.
            padded = (targets == IGNORED).long()
            assert torch.equal(padded, padded.cummax(dim=1).values)


def test_a_window_holds_whole_stories_and_a_longer_one_continues_at_the_beginning_of_windows():
    for lengths in small_corpora(70):
        ids = make_corpus(lengths)
        ends = set(np.cumsum(lengths).tolist())
        inputs, targets = (x := with_positions(ids)).batch(np.arange(len(x)))
        for tokens, following in zip(inputs, targets, strict=True):
            row = [int(tokens[0]), *following[following != IGNORED].tolist()]
            jumps = [b for a, b in zip(row, row[1:], strict=False) if b != a + 1]
            assert all(ids[position] == START for position in jumps)
            left_off = [a for a, b in zip(row, row[1:], strict=False) if b != a + 1]
            assert all(position + 1 in ends for position in left_off)
            assert row[-1] + 1 in ends or len(row) == 17


def test_best_fit_is_that_of_a_plain_loop():
    rng = np.random.default_rng(1)
    for _ in range(200):
        sizes = -np.sort(-rng.integers(1, 21, size=rng.integers(0, 40)))
        rooms = rng.integers(0, 20, size=rng.integers(0, 4)).tolist()
        found = best_fit(sizes, rooms, 20)
        left = list(rooms)
        for size, chosen in zip(sizes, found, strict=True):
            fitting = [room for room in left if room >= size]
            if not fitting:
                assert chosen == len(left)
                left.append(20)
            else:
                assert left[chosen] == min(fitting)
            left[chosen] -= size


def test_fewer_windows_than_windows_that_begin_at_each_story():
    ids = make_corpus(np.random.default_rng(2).integers(20, 60, size=400))
    packed = PackedDataset(ids, 128, START, 0)
    assert len(packed) < 0.6 * len(GPTDataset(ids, None, 128, 128, start_id=START))
    assert len(packed) * 129 < 1.06 * len(ids)


def test_what_shares_a_window_depends_on_seed_and_epoch_alone():
    ids = make_corpus(np.random.default_rng(3).integers(3, 12, size=200))
    one, same, other = (with_positions(ids, 24, seed) for seed in (7, 7, 8))
    windows = np.arange(len(one))
    same.batch(windows, 0.0, 5)
    first = one.batch(windows, 0.0, 2)[0]
    assert torch.equal(first, same.batch(windows, 0.9, 2)[0])
    assert not torch.equal(first, one.batch(windows, 0.0, 3)[0])
    assert not torch.equal(first, other.batch(windows, 0.0, 2)[0])
    again = torch.cat([one.batch(part, 0.0, 2)[0] for part in np.array_split(windows, 7)])
    assert torch.equal(first, again)


def test_padding_changes_no_loss_and_no_gradient():
    torch.manual_seed(0)
    model = GPTModel({**CONFIG, "drop_rate": 0.0})
    dataset = PackedDataset(make_corpus([9, 4, 10, 12, 40]), 16, START, 0)
    inputs, targets = dataset.batch(np.arange(len(dataset)))
    # The last padding of a row has no effect on what is before it, so nor do its ids.
    other = inputs.where(targets != IGNORED, 77)
    assert not torch.equal(inputs, other)
    gradients = []
    for tokens in (inputs, other):
        model.zero_grad()
        NextTokenLoss(model)(tokens, targets).backward()
        gradients.append([weight.grad.clone() for weight in model.parameters()])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)


def make_step(**changes) -> TrainingStep:
    settings = Settings(
        config={**CONFIG, "drop_rate": 0.0},
        pack_stories=True,
        batch_size=5,
        device="cpu",
        precision="fp32",
        **changes,
    )
    torch.manual_seed(0)
    model = GPTModel(settings.config)
    ids = make_corpus([9, 4, 10, 12, 40, 3, 16])
    return TrainingStep(model, make_optimizer(model, settings), ids, START, settings)


def test_each_predicted_token_counts_alike_however_the_batch_is_divided():
    """In micro batches and over two processes: the windows predict different numbers of tokens."""
    step = make_step()
    assert len({step.dataset.predicted([window]) for window in range(5)}) > 1
    whole = gradients_of(step)
    inputs, targets = step.dataset.batch(np.arange(5))
    model = copy.deepcopy(step.model)
    model.zero_grad()
    logits = model(inputs)
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    plain = [weight.grad for weight in model.parameters()]
    ranks = [make_step() for _ in range(2)]
    for rank, of_rank in enumerate(ranks):
        of_rank.rank = rank
        of_rank.world_size = 2
    halves = [gradients_of(of_rank) for of_rank in ranks]
    averaged = [(one + two) / 2 for one, two in zip(*halves, strict=True)]
    for found in (whole, gradients_of(make_step(micro_batch_size=2)), averaged):
        for ours, theirs in zip(found, plain, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_tokens_seen_are_those_predicted():
    step = make_step()
    loss, _, tokens = step.run(0)
    assert loss > 0
    windows = epoch_order(step.settings.seed, 0, len(step.dataset))[:5]
    targets = step.dataset.batch(windows)[1]
    assert tokens == int((targets != IGNORED).sum()) < targets.numel()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_packed_training_resumes_in_mid_epoch_to_the_last_bit(
    training_corpus, tmp_path, precision
):
    more = {"pack_stories": True, "precision": precision}
    assert same_bits(*whole_and_resumed(training_corpus, tmp_path, **more))


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(ValueError, match="pack_stories is True, but the windows do not start at"):
        PackedDataset(make_corpus([5, 9]), 16, None, 0)
    with pytest.raises(ValueError, match="1 tokens and no story with a token to predict"):
        PackedDataset(torch.tensor([START]), 16, START, 0)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"pack_stories": True, "requests": True},
            "pack_stories and requests are True.*one of them",
        ),
        ({"pack_stories": True, "align_to_stories": False}, "pack_stories is True and align_to_"),
        ({"requests": True, "align_to_stories": False}, "requests is True and align_to_stories is"),
    ],
)
def test_windows_that_cannot_be_made_are_refused_before_anything_moves(
    training_corpus, tmp_path, settings, sentence
):
    """A fresh training puts earlier checkpoints aside; a refused one leaves them in their place."""
    train(training_corpus, tmp_path, max_steps=2)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ValueError, match=sentence):
        train(training_corpus, tmp_path, max_steps=2, **settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
