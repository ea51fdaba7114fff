"""The optimizer against torch.optim and linear algebra."""

import math

import pytest
import torch
from trainings import PLAIN_CONFIG

from golpo.loss import NextTokenLoss
from golpo.optim import make_optimizer, newton_schulz
from golpo.settings import make_settings
from golpo_utils import GPTModel


def test_muon_is_torchs(settings):
    """Against torch.optim.Muon, which rounds to bf16 inside, and torch's AdamW for the rest."""
    torch.manual_seed(0)
    ours, theirs = (
        GPTModel({**PLAIN_CONFIG, "n_layers": 2}),
        GPTModel({**PLAIN_CONFIG, "n_layers": 2}),
    )
    theirs.load_state_dict(ours.state_dict())
    matrices = [p for p in theirs.trf_blocks.parameters() if p.dim() == 2]
    others = [p for p in theirs.parameters() if not any(p is matrix for matrix in matrices)]
    optimizers = (
        make_optimizer(
            ours, make_settings({**settings, "learning_rate": 1e-2, "weight_decay": 5.0})
        ),
        torch.optim.Muon(matrices, lr=1e-2, weight_decay=5.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=1e-2, weight_decay=0, betas=(0.9, 0.95)),
    )
    before = ours.state_dict() | {
        name: tensor.clone() for name, tensor in ours.state_dict().items()
    }
    for _ in range(5):
        ids = torch.randint(0, 300, (4, 17))
        for model in (ours, theirs):
            NextTokenLoss(model)(ids[:, :-1], ids[:, 1:]).backward()
        for optimizer in optimizers:
            optimizer.step()
        ours.zero_grad()
        theirs.zero_grad()
    for (name, mine), other in zip(
        ours.state_dict().items(), theirs.state_dict().values(), strict=False
    ):
        moved = (mine - before[name]).norm()
        assert moved > 0.01 and (mine - other).norm() < 0.05 * moved, name


@pytest.mark.parametrize("shape", [(3, 24, 40), (2, 40, 24)])
def test_the_orthogonal_matrix_is_the_nearest(shape):
    """Against the singular value decomposition: same directions, all values near 1."""
    matrices = torch.randn(shape, dtype=torch.float64)
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    stretched = u.mT @ newton_schulz(matrices) @ vh.mT  # diagonal, if the directions are the same
    values = stretched.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(stretched, torch.diag_embed(values), atol=1e-9, rtol=0)
    assert values.min() > 0.5 and values.max() < 1.3


def test_a_step_that_the_gradient_scaler_refuses_changes_nothing():
    """A step with an infinite gradient is skipped by Muon and AdamW, and changes no average."""
    model = GPTModel(PLAIN_CONFIG)
    optimizer = make_optimizer(model, make_settings({"config": PLAIN_CONFIG}))
    scaler, ids = torch.amp.GradScaler("cpu", init_scale=4.0), torch.randint(0, 300, (4, 17))
    for spoil in (False, True):
        scaler.scale(NextTokenLoss(model)(ids[:, :-1], ids[:, 1:])).backward()
        if spoil:
            model.trf_blocks[0].att.W_key.weight.grad[0, 0] = math.inf
            before = [
                tensor.clone()
                for tensor in (*model.parameters(), *optimizer.state_dict()["state"][0].values())
            ]
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    after = [*model.parameters(), *optimizer.state_dict()["state"][0].values()]
    assert (
        all(torch.equal(old, new) for old, new in zip(before, after, strict=False))
        and scaler.get_scale() == 2.0
    )


def test_decay_falls_on_matrices_only():
    model = GPTModel({**PLAIN_CONFIG, "qkv_bias": True})
    decayed, spared = make_optimizer(
        model, make_settings({"config": PLAIN_CONFIG, "weight_decay": 0.3})
    ).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert decayed["weight_decay"] == 0.3 and spared["weight_decay"] == 0
    assert all(
        name.split(".")[-2] in ("W_query", "W_key", "W_value", "out_proj", "0", "2")
        and name.endswith("weight")
        for name in (names[id(p)] for p in decayed["params"])
    )
    assert len(decayed["params"]) == 6 and len(decayed["params"]) + len(spared["params"]) == len(
        names
    )
