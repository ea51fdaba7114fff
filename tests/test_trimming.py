"""Trimmed windows, held against plain loops and plain counts, and trainings with them."""

import numpy as np
import pytest
import torch
from trainings import CONFIG, same_bits, whole_and_resumed
from windows import START, gradients_of, make_corpus, small_corpora

from golpo.dataset import GPTDataset
from golpo.loss import IGNORED, evaluation_windows
from golpo.optim import make_optimizer
from golpo.settings import Settings
from golpo.step import TrainingStep
from golpo.trimming import POOL, TrimmedDataset
from golpo_utils import GPTModel

LENGTH = 16


def trim(ids: torch.Tensor, **more) -> TrimmedDataset:
    return TrimmedDataset(GPTDataset(ids, None, LENGTH, LENGTH, start_id=START), START, **more)


def predicted_positions(ids: torch.Tensor, shift: float) -> list[list[int]]:
    """The positions in `ids` that each window predicts."""
    dataset = trim(ids)
    _, targets = dataset.batch(np.arange(len(dataset)), shift)
    # Ids that are their own positions, but cut where the real ids say so.
    plain = dataset.dataset
    real = plain.ids
    plain.ids = torch.arange(len(ids))
    _, positions = plain.batch(dataset.used, shift)
    plain.ids = real
    width = targets.shape[1]
    return [
        places[:width][row != IGNORED].tolist()
        for places, row in zip(positions, targets, strict=True)
    ]


@pytest.mark.parametrize("longest", [12, 70])
def test_windows_predict_what_the_evaluation_predicts_and_the_last_window(longest):
    """A pass trains on each token of a story that fits a window once, and misses none."""
    for lengths in small_corpora(longest):
        if sum(lengths) <= LENGTH + 1 or len(lengths) == 1:
            continue
        ids = make_corpus(lengths)
        found = predicted_positions(ids, 0.0)
        windows = evaluation_windows(ids, LENGTH, START)
        expected = [list(range(start + 1, end + 1)) for start, end in windows]
        last = list(range(len(ids) - LENGTH, len(ids)))
        assert found[-1] == last
        assert all(row in expected for row in found[:-1])
        reached = {place for row in found for place in row}
        assert reached >= {place for row in expected for place in row}
        assert len({tuple(row) for row in found}) == len(found)


def test_later_windows_of_a_long_story_start_elsewhere_in_each_epoch():
    ids = make_corpus([40, 60, 9, 30])
    dataset = trim(ids)
    for shift in (0.0, 0.4, 1.0):
        rows = predicted_positions(ids, shift)
        assert sum(map(len, rows)) == dataset.predicted(np.arange(len(dataset)), shift)
        assert {place for row in rows for place in row} >= set(range(1, 40)) | set(range(41, 100))
    assert predicted_positions(ids, 0.4) != predicted_positions(ids, 0.0)


def test_an_epoch_visits_each_window_once_in_batches_of_similar_lengths():
    ids = make_corpus(np.random.default_rng(0).integers(2, 17, size=1003))
    dataset = trim(ids)
    order = dataset.order(3, 1, 8)
    assert sorted(order.tolist()) == list(range(len(dataset)))
    assert order.tolist() != dataset.order(3, 2, 8).tolist() != dataset.order(4, 1, 8).tolist()
    lengths = dataset.lengths(order)
    full = len(order) // 8 * 8
    spread = np.ptp(lengths[:full].reshape(-1, 8), axis=1)
    assert np.median(spread) <= 1
    at_random = dataset.lengths(np.random.default_rng(1).permutation(len(order)))
    assert np.median(np.ptp(at_random[:full].reshape(-1, 8), axis=1)) >= 8
    # No batch keeps its place or its windows from one epoch to the next.
    batches = {frozenset(batch) for batch in order[:full].reshape(-1, 8).tolist()}
    others = dataset.order(3, 2, 8)[:full].reshape(-1, 8).tolist()
    assert not any(frozenset(batch) in batches for batch in others)
    assert len(order) > POOL * 8


def test_the_smaller_batch_is_the_last_one_of_an_epoch():
    dataset = trim(make_corpus([9] * 20))
    for batch_size in (1, 3, 8, 64):
        order = dataset.order(0, 0, batch_size)
        assert sorted(order.tolist()) == list(range(20))


def test_a_batch_is_as_long_as_its_longest_window_unless_it_must_have_one_shape():
    ids = make_corpus([5, 9, 12, 7, 30])
    inputs, targets = trim(ids).batch([0, 2])
    assert inputs.shape == targets.shape == (2, 11)
    assert targets[0].tolist() == [2, 3, 4, 5] + [IGNORED] * 7
    assert targets[1].tolist() == list(range(2, 13))
    whole, whole_targets = trim(ids, one_shape=True).batch([0, 2])
    assert whole.shape == (2, LENGTH)
    assert torch.equal(whole[:, :11], inputs)
    assert torch.equal(whole_targets[:, :11], targets)
    assert (whole_targets[:, 11:] == IGNORED).all()


def test_a_story_of_one_token_has_no_window():
    dataset = trim(make_corpus([1, 9, 1, 1, 12, 20]))
    assert len(dataset) == 4
    assert all(dataset.predicted([window]) > 0 for window in range(len(dataset)))


def make_step(**changes) -> TrainingStep:
    settings = Settings(
        config={**CONFIG, "drop_rate": 0.0},
        batch_size=5,
        device="cpu",
        precision="fp32",
        **{"trim_windows": True, **changes},
    )
    torch.manual_seed(0)
    model = GPTModel(settings.config)
    ids = make_corpus([9, 4, 10, 12, 40, 3, 16])
    return TrainingStep(model, make_optimizer(model, settings), ids, START, settings)


def test_the_gradient_is_that_of_the_predicted_tokens_however_the_batch_is_divided():
    step = make_step()
    inputs, targets = step.dataset.batch(np.arange(5))
    logits = step.model(inputs)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    plain = torch.autograd.grad(loss, list(step.model.parameters()))
    for found in (gradients_of(step), gradients_of(make_step(micro_batch_size=2))):
        for ours, theirs in zip(found, plain, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_compiled_training_has_one_shape_and_the_same_loss():
    plain = make_step()
    compiled = make_step(compile="on")
    assert compiled.dataset.one_shape
    assert not plain.dataset.one_shape
    for number in range(2):
        loss, _, tokens = plain.run(number)
        same, _, as_many = compiled.run(number)
        assert tokens == as_many
        torch.testing.assert_close(same, loss, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("requests", [False, True])
def test_a_trimmed_training_resumes_in_mid_epoch_to_the_last_bit(
    training_corpus, tmp_path, requests
):
    more = {"trim_windows": True, "requests": requests}
    assert same_bits(*whole_and_resumed(training_corpus, tmp_path, **more))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"pack_stories": True}, "pack_stories and trim_windows are True.*one of them"),
        ({"align_to_stories": False}, "trim_windows is True and align_to_stories is False"),
    ],
)
def test_windows_that_cannot_be_trimmed_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Settings(trim_windows=True, **settings)
