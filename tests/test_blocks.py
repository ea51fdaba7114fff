"""Each block that golpo_utils writes out, against the one that PyTorch ships: outputs and gradients."""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import golpo_utils as golpo

TIGHT = dict(rtol=0, atol=1e-9)
TWINS = {
    "softmax": (lambda: golpo.Softmax(dim=-1), lambda: nn.Softmax(dim=-1)),
    "softmax over the middle": (lambda: golpo.Softmax(dim=1), lambda: nn.Softmax(dim=1)),
    "layer norm": (lambda: golpo.LayerNorm(24), lambda: nn.LayerNorm(24)),
    "gelu": (golpo.GELU, lambda: nn.GELU(approximate="tanh")),
    "feed-forward": (lambda: golpo.FeedForward({"emb_dim": 24}),
                     lambda: nn.Sequential(nn.Linear(24, 96), nn.GELU(approximate="tanh"), nn.Linear(96, 24))),
}


@pytest.fixture(autouse=True, params=[False, True], ids=["definition", "fused"])
def path(request, monkeypatch):
    monkeypatch.setattr(golpo.Block, "use_fused", request.param)
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


@pytest.mark.parametrize("name", TWINS)
def test_block_equals_its_torch_twin(name):
    ours, theirs = (make().double() for make in TWINS[name])
    for parameter, twin in zip(ours.parameters(), theirs.parameters(), strict=True):
        nn.init.normal_(parameter)
        twin.data.copy_(parameter.data)
    assert_twins(ours, theirs, 3 * torch.randn(2, 5, 24, dtype=torch.float64))


def test_softmax_survives_scores_that_exp_does_not():
    scores = torch.tensor([1000.0, 999.0, -1000.0])
    torch.testing.assert_close(golpo.Softmax()(scores), F.softmax(scores, dim=0))


def test_dropout_drops_its_share_scales_the_rest_and_rests_when_told():
    dropout, x = golpo.Dropout(0.3), torch.ones(200_000)
    dropped = dropout(x)
    kept = dropped[dropped != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / 0.7))
    assert abs((dropped == 0).float().mean() - 0.3) < 0.01
    assert torch.equal(dropout.eval()(x), x)
    assert not golpo.Dropout(1.0)(x).any()
    with pytest.raises(ValueError, match="1.5"):
        golpo.Dropout(1.5)


def attention_twin(ours, d, heads, bias):
    """torch's attention, with our weights."""
    twin = nn.MultiheadAttention(d, heads, bias=True, batch_first=True).double()
    with torch.no_grad():
        projections = (ours.W_query, ours.W_key, ours.W_value)
        twin.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
        twin.in_proj_bias.copy_(torch.cat([p.bias for p in projections]) if bias else torch.zeros(3 * d))
        twin.out_proj.load_state_dict(ours.out_proj.state_dict())
    return twin


@pytest.mark.parametrize("bias", [False, True])
def test_attention_equals_torch_multihead_attention(bias):
    d, heads, t = 24, 4, 7
    ours = golpo.MultiHeadAttention(d, d, 10, 0.0, heads, qkv_bias=bias).double()
    twin = attention_twin(ours, d, heads, bias)
    later = torch.ones(t, t, dtype=torch.bool).triu(1)
    x, mine, theirs = torch.randn(2, t, d, dtype=torch.float64), [], []
    for results, module, run in ((mine, ours, ours),
                                 (theirs, twin, lambda x: twin(x, x, x, attn_mask=later, need_weights=False)[0])):
        given = x.clone().requires_grad_()
        output = run(given)
        (output * torch.linspace(-1, 2, output.numel()).view_as(output)).sum().backward()
        results += [output, given.grad, module.out_proj.weight.grad]
        results.append(torch.cat([p.weight.grad for p in (ours.W_query, ours.W_key, ours.W_value)])
                       if module is ours else twin.in_proj_weight.grad)
    for one, other in zip(mine, theirs):
        torch.testing.assert_close(one, other, **TIGHT)


def test_attention_with_widths_of_its_own_equals_a_loop_over_heads():
    ours = golpo.MultiHeadAttention(24, 24, 10, 0.0, 4, key_dim=8, val_dim=16).double()
    x = torch.randn(1, 6, 24, dtype=torch.float64)
    queries, keys, values = (p(x)[0].chunk(4, dim=-1) for p in (ours.W_query, ours.W_key, ours.W_value))
    gathered = torch.zeros(6, 16, dtype=torch.float64)
    for head, (q, k, v) in enumerate(zip(queries, keys, values)):
        for i in range(6):
            weights = F.softmax(torch.stack([q[i] @ k[j] for j in range(i + 1)]) / 2 ** 0.5, dim=0)
            gathered[i, 4 * head:4 * head + 4] = sum(w * v[j] for j, w in enumerate(weights))
    torch.testing.assert_close(ours(x)[0], ours.out_proj(gathered), **TIGHT)


def test_attention_drops_weights_while_training():
    attention = golpo.MultiHeadAttention(24, 24, 10, 0.5, 4)
    x = torch.randn(1, 6, 24)
    assert not torch.equal(attention(x), attention(x))
    attention.eval()
    assert torch.equal(attention(x), attention(x))


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="25.*4"):
        golpo.MultiHeadAttention(24, 25, 10, 0.0, 4)


@pytest.mark.parametrize("n", [1, 512, 1100])
def test_loss_equals_cross_entropy(n):
    hidden = torch.randn(n, 16, dtype=torch.float64)
    weight, targets = torch.randn(91, 16, dtype=torch.float64), torch.randint(0, 91, (n,))
    targets[2::7] = -100                                        # these do not count
    ours = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    twin = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    loss = golpo.NextTokenLoss.apply(*ours, targets)
    expected = F.cross_entropy(twin[0] @ twin[1].T, targets)
    torch.testing.assert_close(loss, expected, **TIGHT)
    (2 * loss).backward()
    (2 * expected).backward()
    for mine, theirs in zip(ours, twin):
        torch.testing.assert_close(mine.grad, theirs.grad, **TIGHT)


def test_loss_in_mixed_precision_stays_near_full_precision():
    hidden, weight, targets = torch.randn(700, 64), torch.randn(300, 64) / 8, torch.randint(0, 300, (700,))
    mixed, full = ([hidden.clone().requires_grad_(), weight.clone().requires_grad_()] for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = golpo.NextTokenLoss.apply(*mixed, targets)
    expected = F.cross_entropy(full[0] @ full[1].T, targets)
    loss.backward()
    expected.backward()
    assert loss.dtype == torch.float32 and abs(loss - expected) < 2e-3
    for mine, theirs in zip(mixed, full):
        assert mine.grad.dtype == torch.float32
        assert (mine.grad - theirs.grad).norm() < 0.01 * theirs.grad.norm()


@pytest.mark.parametrize("shape", [(1, 24), (1, 1, 24), (3, 24), (2, 5, 24), (16, 24), (17, 24)], ids=str)
@pytest.mark.parametrize("width, bias", [(8, True), (40, False), (41, True), (5, False), (50257, False)])
def test_linear_in_slices_equals_torch_nn_linear(shape, width, bias):
    torch.manual_seed(3)
    ours, twin = golpo.Linear(24, width, bias=bias), torch.nn.Linear(24, width, bias=bias)
    twin.load_state_dict(ours.state_dict())
    x = torch.randn(shape)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), twin(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.autograd.grad(ours(x).sum(), ours.weight), torch.autograd.grad(twin(x).sum(), twin.weight))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bias", [True, False])
def test_an_int8_layer_is_pytorchs_own_dynamic_quantization(bias):
    from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic
    torch.manual_seed(4)
    layer, x = golpo.Linear(64, 48, bias=bias), torch.randn(3, 64)
    twin = torch.nn.Sequential(torch.nn.Linear(64, 48, bias=bias))
    twin[0].load_state_dict(layer.state_dict())
    twin = quantize_dynamic(twin, {torch.nn.Linear: per_channel_dynamic_qconfig})
    ours = golpo.Int8Linear(layer)
    ours.seven_bits = True                                              # as PyTorch's own layer, on any processor
    torch.testing.assert_close(ours(x), layer(x), atol=0.05, rtol=0)
    torch.testing.assert_close(ours(x), twin(x), atol=0.02, rtol=0)      # it spreads a row's scale a little differently


@pytest.mark.filterwarnings("ignore")
def test_an_int8_layer_rounds_inputs_to_eight_bits_where_the_processor_can():
    if not torch.cpu._is_vnni_supported():
        pytest.skip("this processor has no VNNI, so inputs are rounded to 7 bits")
    torch.manual_seed(4)
    layer, x = golpo.Linear(640, 48), 3 * torch.randn(16, 640)
    ours = golpo.Int8Linear(layer)
    weight, bias = torch.ops.quantized.linear_unpack(ours.packed)
    rounded = torch.quantize_per_tensor_dynamic(x, torch.quint8, False).dequantize()
    torch.testing.assert_close(ours(x), F.linear(rounded, weight.dequantize(), bias), atol=1e-3, rtol=0)
    assert len(torch.quantize_per_tensor_dynamic(x, torch.quint8, False).int_repr().unique()) > 128
