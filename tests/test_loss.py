"""The loss in chunks against PyTorch's cross-entropy: values and gradients."""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from golpo.loss import ChunkedCrossEntropy
from golpo_utils import GELU, FeedForward, FusedModule, LayerNorm, Softmax

TIGHT = dict(rtol=0, atol=1e-9)
TWINS = {
    "softmax": (lambda: Softmax(dim=-1), lambda: nn.Softmax(dim=-1)),
    "softmax over the middle": (lambda: Softmax(dim=1), lambda: nn.Softmax(dim=1)),
    "layer norm": (lambda: LayerNorm(24), lambda: nn.LayerNorm(24)),
    "gelu": (GELU, lambda: nn.GELU(approximate="tanh")),
    "feed-forward": (
        lambda: FeedForward({"emb_dim": 24}),
        lambda: nn.Sequential(nn.Linear(24, 96), nn.GELU(approximate="tanh"), nn.Linear(96, 24)),
    ),
}


@pytest.fixture(autouse=True, params=[False, True], ids=["reference", "fused"])
def path(request, monkeypatch):
    monkeypatch.setattr(FusedModule, "use_fused", request.param)
    torch.manual_seed(1)


def assert_twins(ours, theirs, x):
    """Same outputs, and same gradients of input and parameters."""
    results = []
    for module in (ours, theirs):
        given = x.clone().requires_grad_()
        output = module(given)
        weights = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output)
        gradients = torch.autograd.grad((output * weights).sum(), [given, *module.parameters()])
        results.append([output, *gradients])
    for mine, twin in zip(*results, strict=True):
        torch.testing.assert_close(mine, twin, **TIGHT)


def attention_twin(ours, d, heads, bias):
    """torch's attention, with our weights."""
    twin = nn.MultiheadAttention(d, heads, bias=True, batch_first=True).double()
    with torch.no_grad():
        projections = (ours.W_query, ours.W_key, ours.W_value)
        twin.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
        twin.in_proj_bias.copy_(
            torch.cat([p.bias for p in projections]) if bias else torch.zeros(3 * d)
        )
        twin.out_proj.load_state_dict(ours.out_proj.state_dict())
    return twin


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
