"""The look inside the model: what it shows of tokens that are no plain words."""

import math
import re

import numpy as np
import pytest
import torch
from trainings import PLAIN_CONFIG

from golpo.inspector import (
    attention_picture,
    attention_weights,
    candidates_html,
    inspect_next,
    token_label,
)
from golpo_utils import FusedModule, GPTModel, Sampling, get_tokenizer, story_opening

CONFIG = {**PLAIN_CONFIG, "vocab_size": 50304}
# What matplotlib would take for formulas, half of them broken, and what a page would take for HTML.
HOSTILE = [
    "$$",
    "$x^",
    "$\\frac",
    "\\frac{1}",
    "$a$",
    "_x",
    "<b>",
    "\x1b[2J",
    "![](a.png)",
    "",
    "🦊",
]


@pytest.mark.filterwarnings("error")
def test_words_in_the_attention_picture_are_never_formulas():
    """A: a token `$$` made the studio's inspector fail."""
    weights = torch.eye(len(HOSTILE))
    picture = attention_picture(weights, HOSTILE)
    assert picture.startswith(b"\x89PNG")
    # The dollar signs are drawn: the picture differs from one with the formula's letter alone.
    assert attention_picture(torch.eye(1), ["$a$"]) != attention_picture(torch.eye(1), ["a"])


def test_the_bars_show_any_token_as_text():
    """A: `$$`, HTML and control characters among the likeliest next tokens."""
    tokenizer = get_tokenizer(50304)
    ids = [tokenizer.encode(text)[0] for text in ("$$", "</", "&", "\x1b", "\\", "\x00", " <")]
    logits = torch.zeros(1, 50261)
    logits[0, ids] = 20.0
    seen = torch.zeros(1, 50261, dtype=torch.bool)
    shown = candidates_html(logits, seen, Sampling(), tokenizer, count=len(ids))
    assert "<code>$$</code>" in shown
    assert "<code>&lt;/</code>" in shown and "<code>&amp;</code>" in shown
    assert "<code>\\x1b</code>" in shown and "<code>\\x00</code>" in shown
    assert not set(shown) & set(map(chr, range(32)))


def test_an_id_beyond_the_tokenizer_has_a_name():
    """A: the last ids of a padded vocabulary."""
    assert token_label(50300, get_tokenizer(50304)) == "(unused id 50300)"
    model = GPTModel(CONFIG)
    weights = attention_weights(model, torch.tensor([[50300, 1, 2]]), 0, 0)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)


SMALL = {**CONFIG, "vocab_size": 4096, "context_length": 64, "n_layers": 2, "qkv_bias": True}


def test_the_bars_are_the_probabilities_of_the_next_token():
    model, tokenizer = GPTModel(SMALL).eval(), get_tokenizer(4096)
    ids = torch.tensor([story_opening(tokenizer, "Once upon")])
    expected = torch.softmax(model(ids)[0, -1] / 0.8, dim=-1).topk(50).values
    sampling = Sampling(temperature=0.8, top_k=50)
    bars, picture = inspect_next(model, tokenizer, "Once upon", "", sampling, 0, 0)
    shown = [float(share) for share in re.findall(r"<span>([\d.]+)% \(", bars)]
    assert shown == pytest.approx((100 * expected / expected.sum())[:10].tolist(), abs=0.051)
    bars, other = inspect_next(model, tokenizer, "Once upon", "", Sampling(temperature=0), 1, 1)
    assert sorted(re.findall(r"<span>([\d.]+)% \(", bars)) == ["0.0"] * 9 + ["100.0"]
    assert picture.startswith(b"\x89PNG") and other.startswith(b"\x89PNG") and picture != other


def test_attention_is_what_the_formula_gives():
    torch.manual_seed(0)
    model = GPTModel(SMALL).eval()
    ids = torch.arange(7)[None]
    block, inputs = model.trf_blocks[1], []
    with (
        block.att.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0])),
        torch.no_grad(),
    ):
        model(ids)
    query, key = (
        projection(inputs[0])[0, :, 8:].detach()  # head 1
        for projection in (block.att.W_query, block.att.W_key)
    )
    weights = attention_weights(model, ids, layer=1, head=1)
    for i in range(7):
        scores = torch.tensor([float(query[i] @ key[j]) / math.sqrt(8) for j in range(i + 1)])
        torch.testing.assert_close(weights[i, : i + 1], scores.softmax(0), atol=1e-6, rtol=0)
        assert not weights[i, i + 1 :].any()
    assert FusedModule.use_fused


@pytest.mark.parametrize(
    "layer, head, message",
    [
        (2, 0, "the layer is 2; it must be a whole number from 0 to 1"),
        (-1, 0, "the layer is -1"),
        (0.5, 0, "the layer is 0.5"),
        (0, SMALL["n_heads"], "the head is"),
        (0, -1, "the head is -1"),
    ],
)
def test_a_layer_or_a_head_that_is_not_there_is_named(layer, head, message):
    model, tokenizer = GPTModel(SMALL).eval(), get_tokenizer(4096)
    with pytest.raises(ValueError, match=message):
        inspect_next(model, tokenizer, "Once", "", Sampling(), layer, head)
