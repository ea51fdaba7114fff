"""Each block of golpo_utils against its torch.nn twin: outputs and gradients."""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from golpo_utils import (
    GELU,
    Dropout,
    FeedForward,
    LayerNorm,
    MultiHeadAttention,
    Softmax,
)

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


@pytest.fixture(autouse=True)
def seed(path):
    torch.manual_seed(1)


@pytest.mark.parametrize("name", TWINS)
def test_block_equals_its_torch_twin(name):
    ours, theirs = (make().double() for make in TWINS[name])
    for parameter, twin in zip(ours.parameters(), theirs.parameters(), strict=True):
        nn.init.normal_(parameter)
        twin.data.copy_(parameter.data)
    assert_twins(ours, theirs, 3 * torch.randn(2, 5, 24, dtype=torch.float64))


def test_softmax_survives_scores_that_exp_does_not():
    scores = torch.tensor([1000.0, 999.0, -1000.0])
    torch.testing.assert_close(Softmax()(scores), F.softmax(scores, dim=0))


def test_dropout_drops_its_share_scales_the_rest_and_rests_when_told():
    dropout, x = Dropout(0.3), torch.ones(200_000)
    dropped = dropout(x)
    kept = dropped[dropped != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / 0.7))
    assert abs((dropped == 0).float().mean() - 0.3) < 0.01
    assert torch.equal(dropout.eval()(x), x)
    assert not Dropout(1.0)(x).any()
    with pytest.raises(ValueError, match="1.5"):
        Dropout(1.5)


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


@pytest.mark.parametrize("bias", [False, True])
def test_attention_equals_torch_multihead_attention(bias):
    d, heads, t = 24, 4, 7
    ours = MultiHeadAttention(d, d, 10, 0.0, heads, qkv_bias=bias).double()
    twin = attention_twin(ours, d, heads, bias)
    later = torch.ones(t, t, dtype=torch.bool).triu(1)
    x, mine, theirs = torch.randn(2, t, d, dtype=torch.float64), [], []
    for results, module, run in (
        (mine, ours, ours),
        (theirs, twin, lambda x: twin(x, x, x, attn_mask=later, need_weights=False)[0]),
    ):
        given = x.clone().requires_grad_()
        output = run(given)
        (output * torch.linspace(-1, 2, output.numel()).view_as(output)).sum().backward()
        results += [output, given.grad, module.out_proj.weight.grad]
        results.append(
            torch.cat([p.weight.grad for p in (ours.W_query, ours.W_key, ours.W_value)])
            if module is ours
            else twin.in_proj_weight.grad
        )
    for one, other in zip(mine, theirs, strict=False):
        torch.testing.assert_close(one, other, **TIGHT)


def test_attention_with_widths_of_its_own_equals_a_loop_over_heads():
    ours = MultiHeadAttention(24, 24, 10, 0.0, 4, key_dim=8, val_dim=16).double()
    x = torch.randn(1, 6, 24, dtype=torch.float64)
    queries, keys, values = (
        p(x)[0].chunk(4, dim=-1) for p in (ours.W_query, ours.W_key, ours.W_value)
    )
    gathered = torch.zeros(6, 16, dtype=torch.float64)
    for head, (q, k, v) in enumerate(zip(queries, keys, values, strict=False)):
        for i in range(6):
            weights = F.softmax(torch.stack([q[i] @ k[j] for j in range(i + 1)]) / 2**0.5, dim=0)
            gathered[i, 4 * head : 4 * head + 4] = sum(w * v[j] for j, w in enumerate(weights))
    torch.testing.assert_close(ours(x)[0], ours.out_proj(gathered), **TIGHT)


def test_attention_drops_weights_while_training():
    attention = MultiHeadAttention(24, 24, 10, 0.5, 4)
    x = torch.randn(1, 6, 24)
    assert not torch.equal(attention(x), attention(x))
    attention.eval()
    assert torch.equal(attention(x), attention(x))


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="25.*4"):
        MultiHeadAttention(24, 25, 10, 0.0, 4)
