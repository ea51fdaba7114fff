"""The whole model: causal, of the right size, equal to Hugging Face's and the original's."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import TINY_CONFIG

from golpo.checkpoint import load_checkpoint
from golpo_utils import GPT_CONFIG_124M, GPTModel


def test_a_token_changes_no_score_before_it(path):
    model = GPTModel(TINY_CONFIG).eval()
    ids = torch.randint(0, 97, (2, 24))
    before = model(ids)
    for k in (1, 11, 23):
        changed = ids.clone()
        changed[:, k] = (changed[:, k] + 1) % 97
        after = model(changed)
        assert torch.equal(after[:, :k], before[:, :k])
        assert not torch.allclose(after[:, k], before[:, k])


@pytest.mark.parametrize("tied, millions", [(True, 124.0), (False, 162.6)])
def test_gpt_124m_has_its_parameters(tied, millions):
    with torch.device("meta"):
        model = GPTModel({**GPT_CONFIG_124M, "tie_embeddings": tied, "init_std": None})
    assert round(model.parameter_count() / 1e6, 1) == millions


# The original project's checkpoint: no config, an untied head, masks as weights, no manifest.
ORIGINAL = {
    "vocab_size": 89,
    "context_length": 12,
    "emb_dim": 16,
    "n_heads": 4,
    "n_layers": 2,
    "drop_rate": 0.1,
    "qkv_bias": False,
    "key_dim": 16,
    "val_dim": 16,
}


def original_state():
    torch.manual_seed(3)
    state = {
        "tok_emb.weight": torch.randn(89, 16),
        "pos_emb.weight": torch.randn(12, 16),
        "final_norm.scale": torch.randn(16),
        "final_norm.shift": torch.randn(16),
        "out_head.weight": torch.randn(89, 16),
    }
    for n in range(2):
        block = f"trf_blocks.{n}."
        state[block + "att.mask"] = torch.triu(torch.ones(12, 12), diagonal=1)
        for name, shape in (
            ("att.W_query", (16, 16)),
            ("att.W_key", (16, 16)),
            ("att.W_value", (16, 16)),
            ("att.out_proj", (16, 16)),
            ("ff.layers.0", (64, 16)),
            ("ff.layers.2", (16, 64)),
        ):
            state[block + name + ".weight"] = torch.randn(shape) / 2
            if "W_" not in name:
                state[block + name + ".bias"] = torch.randn(shape[0])
        for norm in ("norm1", "norm2"):
            state[block + norm + ".scale"], state[block + norm + ".shift"] = (
                torch.randn(16),
                torch.randn(16),
            )
    return state


def original_logits(state, ids):
    """The original's architecture for one text, ids (t,), straight from its weights."""

    def linear(x, name):
        return F.linear(x, state[name + ".weight"], state.get(name + ".bias"))

    def norm(x, name):
        return F.layer_norm(x, (16,), state[name + ".scale"], state[name + ".shift"])

    x = state["tok_emb.weight"][ids] + state["pos_emb.weight"][: len(ids)]
    for block in ("trf_blocks.0.", "trf_blocks.1."):
        y, heads = norm(x, block + "norm1"), []
        split = [
            linear(y, block + "att.W_" + which).chunk(4, dim=-1)
            for which in ("query", "key", "value")
        ]
        for q, k, v in zip(*split, strict=False):
            scores = (q @ k.T / 4**0.5).masked_fill(
                state[block + "att.mask"][: len(ids), : len(ids)] == 1, -math.inf
            )
            heads.append(F.softmax(scores, dim=-1) @ v)
        x = x + linear(torch.cat(heads, dim=-1), block + "att.out_proj")
        y = linear(norm(x, block + "norm2"), block + "ff.layers.0")
        x = x + linear(F.gelu(y, approximate="tanh"), block + "ff.layers.2")
    return linear(norm(x, "final_norm"), "out_head")


def test_a_checkpoint_of_the_original_project_gives_the_originals_logits(path, tmp_path):
    state = original_state()
    torch.save(
        {
            "epoch": 4,
            "global_step": 77,
            "model_state_dict": state,
            "optimizer_state_dict": {},
            "train_losses": [2.5],
            "val_losses": [2.75],
            "track_tokens_seen": [640],
            "tokens_seen": 640,
        },
        tmp_path / "model_and_optimizer.pth",
    )
    model = GPTModel(ORIGINAL)
    with pytest.warns(UserWarning, match="manifest"):
        rest = load_checkpoint(model, tmp_path / "model_and_optimizer.pth")
    assert (rest["epoch"], rest["global_step"], rest["val_losses"]) == (4, 77, [2.75])
    ids = torch.randint(0, 89, (2, 12))
    expected = torch.stack([original_logits(state, row) for row in ids])
    torch.testing.assert_close(model.eval()(ids), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"emb_dims": 32}, "emb_dims.*32"),
        ({"n_heads": 5}, "n_heads.*5"),
        ({"key_dim": 30}, "key_dim.*30"),
        ({"val_dim": 30}, "val_dim.*30"),
        ({"drop_rate": -0.1}, "drop_rate.*-0.1"),
        ({"drop_rate": 1.5}, "drop_rate.*1.5"),
        ({"drop_rate": math.nan}, "drop_rate.*nan"),
        ({"vocab_size": 0}, "vocab_size.*0"),
        ({"n_layers": 2.5}, "n_layers.*2.5"),
        ({"emb_dim": "32"}, "emb_dim.*'32'"),
        ({"qkv_bias": 1}, "qkv_bias.*1"),
        ({"init_std": -1}, "init_std.*-1"),
    ],
)
def test_a_config_that_cannot_be_is_refused_by_key_and_value(changes, named):
    with pytest.raises(ValueError, match=named):
        GPTModel({**TINY_CONFIG, **changes})


def test_a_missing_key_is_named():
    with pytest.raises(ValueError, match="n_heads"):
        GPTModel({key: value for key, value in TINY_CONFIG.items() if key != "n_heads"})


def test_more_tokens_than_the_context_are_refused():
    with pytest.raises(ValueError, match="25.*24"):
        GPTModel(TINY_CONFIG)(torch.zeros(1, 25, dtype=torch.long))
