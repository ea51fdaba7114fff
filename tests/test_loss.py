"""The loss in chunks against PyTorch's cross-entropy: values and gradients."""

import pytest
import torch
import torch.nn.functional as F

from golpo.loss import ChunkedCrossEntropy

TIGHT = dict(rtol=0, atol=1e-9)


@pytest.fixture(autouse=True)
def seed(path):
    torch.manual_seed(1)


@pytest.mark.parametrize("n", [1, 512, 1100])
def test_loss_equals_cross_entropy(n):
    hidden = torch.randn(n, 16, dtype=torch.float64)
    weight, targets = torch.randn(91, 16, dtype=torch.float64), torch.randint(0, 91, (n,))
    targets[2::7] = -100  # these do not count
    ours = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    twin = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    loss = ChunkedCrossEntropy.apply(*ours, targets, True)
    expected = F.cross_entropy(twin[0] @ twin[1].T, targets)
    torch.testing.assert_close(loss, expected, **TIGHT)
    (2 * loss).backward()
    (2 * expected).backward()
    for mine, theirs in zip(ours, twin, strict=False):
        torch.testing.assert_close(mine.grad, theirs.grad, **TIGHT)


def test_loss_in_mixed_precision_stays_near_full_precision():
    hidden, weight, targets = (
        torch.randn(700, 64),
        torch.randn(300, 64) / 8,
        torch.randint(0, 300, (700,)),
    )
    mixed, full = (
        [hidden.clone().requires_grad_(), weight.clone().requires_grad_()] for _ in range(2)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = ChunkedCrossEntropy.apply(*mixed, targets, True)
    expected = F.cross_entropy(full[0] @ full[1].T, targets)
    loss.backward()
    expected.backward()
    assert loss.dtype == torch.float32 and abs(loss - expected) < 2e-3
    for mine, theirs in zip(mixed, full, strict=False):
        assert mine.grad.dtype == torch.float32
        assert (mine.grad - theirs.grad).norm() < 0.01 * theirs.grad.norm()
