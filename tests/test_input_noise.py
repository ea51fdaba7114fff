"""Input noise: what it replaces and what not, on what it depends, and trainings with it."""

import numpy as np
import pytest
import torch
from trainings import CONFIG, newest, same_bits, train, whole_and_resumed

from golpo.dataset import epoch_order
from golpo.input_noise import InputNoise
from golpo.loss import IGNORED
from golpo.optim import make_optimizer
from golpo.settings import Settings
from golpo.step import TrainingStep
from golpo_utils import GPTModel, encode, get_tokenizer, start_id_of

TOKENIZER = get_tokenizer(CONFIG["vocab_size"])
MARKERS = [TOKENIZER.encode_single_token(one) for one in sorted(TOKENIZER.special_tokens_set)]
STORY = "<|start|>\n<|title|>The Lamp</|title|>\n\nHanna of the hill lost her lamp.\n<|end|>\n"


def make_step(**changes) -> TrainingStep:
    """A step of a training on twenty stories, which notes its inputs and targets as `seen`."""
    settings = Settings(
        config={**CONFIG, "drop_rate": 0.0},
        device="cpu",
        precision="fp32",
        **{"batch_size": 6, "input_noise": 0.3, **changes},
    )
    torch.manual_seed(0)
    model = GPTModel(settings.config)
    ids = torch.tensor(encode(STORY * 20, TOKENIZER))
    optimizer = make_optimizer(model, settings)
    step = TrainingStep(model, optimizer, ids, start_id_of(TOKENIZER), settings, TOKENIZER)
    step.seen = []
    step.loss_of.register_forward_pre_hook(lambda _, batch: step.seen.append(batch))
    return step


def seen_by(step: TrainingStep, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The inputs and targets of a step, (b, t) each."""
    step.seen.clear()
    step.run(number)
    inputs, targets = zip(*step.seen, strict=True)
    return torch.cat(inputs), torch.cat(targets)


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_the_share_of_ordinary_tokens_is_replaced_and_no_marker(share):
    windows = np.arange(500)
    inputs = torch.randint(0, TOKENIZER.n_vocab, (500, 64))
    noise = InputNoise(share, TOKENIZER, 64, 7)
    noisy = noise.apply(inputs, inputs, windows, 0)
    is_marker = torch.isin(inputs, torch.tensor(MARKERS))
    assert is_marker.sum() > 100
    assert torch.equal(torch.isin(noisy, torch.tensor(MARKERS)), is_marker)
    assert torch.equal(noisy[is_marker], inputs[is_marker])
    changed = (noisy != inputs)[~is_marker].double()
    # One random token in so many is the one that it replaces.
    expected = share * (1 - 1 / (TOKENIZER.n_vocab - len(MARKERS)))
    spread = (expected * (1 - expected) / len(changed)) ** 0.5
    assert abs(changed.mean() - expected) < 4 * spread


def test_all_ordinary_tokens_are_put_in_alike():
    inputs = torch.full((2000, 64), TOKENIZER.encode_single_token("a"))
    noisy = InputNoise(1.0, TOKENIZER, 64, 7).apply(inputs, inputs, np.arange(2000), 0)
    counts = torch.bincount(noisy.flatten(), minlength=TOKENIZER.n_vocab).double()
    words = torch.ones(TOKENIZER.n_vocab, dtype=bool)
    words[MARKERS] = False
    assert counts[~words].sum() == 0
    expected = noisy.numel() / words.sum()
    assert ((counts[words] - expected).abs() < 6 * expected.sqrt()).all()


def test_a_step_predicts_the_clean_text_from_inputs_with_noise():
    step = make_step()
    noisy, targets = seen_by(step, 0)
    windows = epoch_order(step.settings.seed, 0, len(step.dataset))[:6]
    inputs, clean = step.dataset.batch(windows)
    assert torch.equal(targets, clean)
    assert 0.15 < (noisy != inputs).double().mean() < 0.35
    plain, same_targets = seen_by(make_step(input_noise=0.0), 0)
    assert torch.equal(plain, inputs)
    assert torch.equal(same_targets, clean)


def test_noise_depends_on_the_seed_and_the_step_alone():
    step = make_step()
    for number in range(4):
        step.run(number)
    noisy, _ = seen_by(step, 4)
    fresh, _ = seen_by(make_step(), 4)
    assert torch.equal(noisy, fresh)
    in_parts, _ = seen_by(make_step(micro_batch_size=1), 4)
    assert torch.equal(noisy, in_parts)
    other = InputNoise(0.3, TOKENIZER, 16, step.settings.seed + 1)
    assert not np.array_equal(other.noise(0, 0)[0], step.noise.noise(0, 0)[0])


def test_processes_and_shorter_windows_have_the_noise_of_the_whole():
    whole, _ = seen_by(make_step(), 2)
    for rank in range(2):
        step = make_step()
        step.rank = rank
        step.world_size = 2
        step.seen.clear()
        windows = epoch_order(step.settings.seed, 0, len(step.dataset))[12:18]
        # The exchange of gradients, which needs a second process, follows the last backward.
        step.loss_of.no_sync = torch.no_grad
        step.micro_batch_size = 6
        step.backward(2, windows)
        assert torch.equal(step.seen[0][0], whole[rank::2])
    noise = InputNoise(0.4, TOKENIZER, 16, 3)
    inputs = torch.full((5, 16), 7)
    windows = np.arange(5)
    short = inputs[:, :9]
    long = noise.apply(inputs, inputs, windows, 1)
    assert torch.equal(noise.apply(short, short, windows, 1), long[:, :9])


def test_each_epoch_and_window_has_noise_of_its_own():
    noise = InputNoise(0.5, TOKENIZER, 64, 3)
    found = {noise.noise(window, epoch)[0].tobytes() for window in range(9) for epoch in range(9)}
    assert len(found) == 81


def test_what_predicts_nothing_stays():
    inputs = torch.full((3, 40), 7)
    targets = inputs.clone()
    targets[:, :11] = IGNORED
    noisy = InputNoise(1.0, TOKENIZER, 40, 3).apply(inputs, targets, np.arange(3), 0)
    assert (noisy[:, :11] == 7).all()
    assert (noisy[:, 11:] != 7).double().mean() > 0.9


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_with_noise_resumes_in_mid_epoch_to_the_last_bit(
    training_corpus, tmp_path, precision
):
    more = {"input_noise": 0.1, "precision": precision}
    whole, resumed = whole_and_resumed(training_corpus, tmp_path, **more)
    assert same_bits(resumed, whole)
    train(training_corpus, tmp_path / "plain", precision=precision)
    assert not same_bits(newest(tmp_path / "plain"), whole)


def test_noise_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="input_noise is 1.5; it must be"):
        Settings(input_noise=1.5)
    with pytest.raises(
        ValueError, match="input_noise is 0.1, but no tokenizer says.*input_noise=0"
    ):
        InputNoise(0.1, None, 16, 3)


def test_trimmed_windows_have_noise_too():
    step, plain_step = (make_step(trim_windows=True, input_noise=share) for share in (0.3, 0.0))
    changed = []
    padding = 0
    for number in range(step.steps_per_epoch):
        noisy, targets = seen_by(step, number)
        plain, clean = seen_by(plain_step, number)
        assert torch.equal(targets, clean)
        padded = targets == IGNORED
        assert torch.equal(noisy[padded], plain[padded])
        padding += int(padded.sum())
        changed.append((noisy != plain)[~padded])
    assert padding > 0
    assert 0.15 < torch.cat(changed).double().mean() < 0.35
