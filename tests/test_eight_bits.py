"""Matrices in 8 bits: as near as llama.cpp's, the same after a second rounding, exact in fp16."""

import pytest
import torch
from helpers import TINY_CONFIG

from golpo.eight_bits import from_8_bits, round_to_8_bits, to_8_bits, use_8_bits
from golpo.hf_folder import read_hf
from golpo.inference import prepare_for_inference
from golpo.paths import BUNDLED_MODEL
from golpo_utils import GPTModel


def rounded(weight):
    return from_8_bits(*to_8_bits(weight), weight.shape[1])


@pytest.mark.parametrize("width", [32, 96, 50])  # whole blocks, and a row that is filled up
def test_rounding_twice_is_rounding_once(width):
    torch.manual_seed(0)
    weight = torch.randn(500, width) * torch.logspace(-4, 2, 500)[:, None]
    weight[7] = 0
    weight[8, 1:] = 0
    once = rounded(weight)
    assert once.shape == weight.shape
    assert torch.equal(rounded(once), once)
    assert torch.equal(once[:8].half().float(), once[:8])
    assert not once[7].any()
    assert (once - weight).abs().max(1).values.le(weight.abs().max(1).values / 220).all()


def test_the_error_is_near_that_of_llama_cpp_s_8_bits():
    """Q8_0 also has blocks of 32 weights, with a scale of 11 bits where ours has 4."""
    gguf = pytest.importorskip("gguf")
    torch.manual_seed(1)
    weight = torch.randn(300, 320)
    kind = gguf.GGMLQuantizationType.Q8_0
    theirs = torch.from_numpy(
        gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), kind), kind)
    )
    ours, theirs = ((each - weight).square().mean().sqrt() for each in (rounded(weight), theirs))
    assert 0.9 * theirs < ours < 1.1 * theirs


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_with_codes_computes_what_the_rounded_one_does(tied):
    torch.manual_seed(2)
    model = GPTModel({**TINY_CONFIG, "drop_rate": 0.0, "tie_embeddings": tied}).eval()
    before = model.pos_emb.weight.clone()
    ids = torch.randint(97, (2, 20))
    exact = model(ids).detach()
    round_to_8_bits(model)
    near = model(ids)
    use_8_bits(model)
    assert torch.equal(model(ids), near)
    assert not torch.equal(near, exact)
    torch.testing.assert_close(near, exact, rtol=0, atol=0.05 * float(exact.std()))
    assert torch.equal(model.pos_emb.weight, before)


def test_the_bundled_model_loses_nothing():
    """Its matrices are rounded already, so the page in the browser has the very same weights."""
    model = read_hf(BUNDLED_MODEL)["model"]
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    round_to_8_bits(model)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_a_prepared_model_is_refused():
    model = prepare_for_inference(GPTModel(TINY_CONFIG))
    for function in (round_to_8_bits, use_8_bits):
        with pytest.raises(ValueError, match="prepared for inference"):
            function(model)
