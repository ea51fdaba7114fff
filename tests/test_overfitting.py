"""The tools of the ablations of a text that is overfit, held against PyTorch's own."""

import copy
import sys

import pytest
import torch
import torch.nn.functional as F
from helpers import TINY_CONFIG
from torch.optim.swa_utils import AveragedModel

from golpo.loss import IGNORED, evaluate_loss
from golpo.paths import PROJECT_DIR
from golpo_utils import GPTModel

sys.path.append(str(PROJECT_DIR / "benchmarks"))

from overfitting import DistillationLoss, WeightAverages, ensemble_loss  # noqa: E402

CONFIG = {**TINY_CONFIG, "drop_rate": 0.0, "n_layers": 1}


def make_model(seed: int) -> GPTModel:
    torch.manual_seed(seed)
    return GPTModel({**CONFIG, "init_std": 0.3}).train()


def weights_of(model) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in model.parameters()]


def test_averages_of_the_weights_are_those_of_pytorch():
    model = make_model(0)
    averages = WeightAverages(model, (0.5,), (2, 3))
    # The rate is 0.5 from the tenth step on; PyTorch's average begins there.
    moving = AveragedModel(model, avg_fn=lambda average, new, _: 0.5 * average + 0.5 * new)
    ends = {count: AveragedModel(model) for count in (2, 3)}
    for step in range(1, 41):
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight))
        averages.note_step(step, epoch_has_ended=step % 8 == 0)
        if step == 10:
            averages.put(averages.moving[0.5])
            moving.update_parameters(model)
        elif step > 10:
            moving.update_parameters(model)
        for count, mean in ends.items():
            if step % 8 == 0 and step > 8 * (5 - count):
                mean.update_parameters(model)
    own = weights_of(model)
    found = averages.by_name()
    expected = {"EMA 0.5": moving, "last 2 epochs": ends[2], "last 3 epochs": ends[3]}
    assert found.keys() == expected.keys()
    for name, average in found.items():
        torch.testing.assert_close(average, weights_of(expected[name]))
    seen = averages.losses(lambda: weights_of(model))
    for name, average in found.items():
        torch.testing.assert_close(seen[name], average, rtol=0, atol=0)
    torch.testing.assert_close(weights_of(model), own, rtol=0, atol=0)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_student_learns_from_the_text_and_from_its_teachers_mean(share):
    student, one, two = (make_model(seed) for seed in range(3))
    ids = torch.randint(0, 97, (3, 12))
    targets = torch.randint(0, 97, (3, 12))
    targets[1, 7:] = IGNORED
    clean = torch.cat([ids[:, :1], targets[:, :-1]], dim=1)
    clean[1, 8:] = ids[1, 8:]
    loss = DistillationLoss(student, [one, two], share)(ids, targets)
    counted = targets != IGNORED
    logits = student(ids)[counted]
    mean = (one(clean).softmax(dim=-1) + two(clean).softmax(dim=-1))[counted].detach() / 2
    entropy = -(mean * mean.log()).sum(dim=-1).mean()
    kl = F.cross_entropy(logits, mean) - entropy
    expected = (1 - share) * F.cross_entropy(logits, targets[counted]) + share * kl
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert student.tok_emb.weight.grad is not None
    assert one.tok_emb.weight.grad is None
    assert len(list(DistillationLoss(student, [one], share).parameters())) == len(
        list(student.parameters())
    )


def test_the_loss_of_an_ensemble():
    """Of one model or its copies it is that model's; of two, it is below the mean of theirs."""
    one, two = make_model(3), make_model(4)
    ids = torch.randint(0, 97, (150,))
    alone = [evaluate_loss(model, ids, 24, 5)[0] for model in (one, two)]
    copies = ensemble_loss([one, copy.deepcopy(one)], ids, 5)
    assert copies == pytest.approx(alone[0], rel=1e-5)
    assert ensemble_loss([one, two], ids, 5) < sum(alone) / 2
