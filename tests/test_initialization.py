"""Models without initial weights: quick to make, and otherwise like any other."""

import torch
from helpers import TINY_CONFIG

from golpo.initialization import SkipInitialization
from golpo_utils import GPTModel


def test_nothing_random_is_drawn_and_loading_makes_the_same_model():
    torch.manual_seed(3)
    usual = GPTModel(TINY_CONFIG).eval()
    before = torch.get_rng_state()
    with SkipInitialization():
        model = GPTModel(TINY_CONFIG).eval()
    assert torch.get_rng_state().equal(before), "random numbers were drawn"
    model.load_state_dict(usual.state_dict())
    ids = torch.arange(20)[None]
    assert model(ids).equal(usual(ids))
    assert model.out_head.weight is model.tok_emb.weight
    assert {name: t.requires_grad for name, t in model.named_parameters()} == {
        name: t.requires_grad for name, t in usual.named_parameters()
    }


def test_outside_of_it_weights_are_random_again():
    with SkipInitialization():
        GPTModel(TINY_CONFIG)
    torch.manual_seed(3)
    first = GPTModel(TINY_CONFIG).tok_emb.weight.clone()
    torch.manual_seed(3)
    assert GPTModel(TINY_CONFIG).tok_emb.weight.equal(first)
    assert first.std() > 0.01
