"""One training step: its fast parts compute what the plain ones do."""

import pytest
import torch
from helpers import TINY_CONFIG

from golpo.projections import project_at_once
from golpo_utils import GPTModel


@pytest.mark.parametrize("bias", [True, False])
def test_queries_keys_and_values_at_once_are_those_of_three_products(bias):
    torch.manual_seed(2)
    config = {**TINY_CONFIG, "qkv_bias": bias, "key_dim": 16, "val_dim": 64, "init_std": 0.3}
    attention = GPTModel(config).trf_blocks[0].att.double()
    found = []
    for project in (attention.project, lambda x: project_at_once(attention, x)):
        x = torch.linspace(-1, 1, 2 * 5 * 32, dtype=torch.float64).view(2, 5, 32).requires_grad_()
        parts = project(x)
        loss = sum((part * part).sum() for part in parts)
        parameters = [p for name, p in attention.named_parameters() if name.startswith("W_")]
        found.append([*parts, *torch.autograd.grad(loss, [x, *parameters])])
    for at_once, separate in zip(*found, strict=True):
        torch.testing.assert_close(at_once, separate)
