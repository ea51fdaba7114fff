"""The whole model: causal, of the right size, and equal to others' GPT-2 and to the original project's."""

import math

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file

import golpo_utils as golpo

TINY = {"vocab_size": 97, "context_length": 24, "emb_dim": 32, "n_heads": 4, "n_layers": 3, "drop_rate": 0.1,
        "qkv_bias": True}


def tiny_gpt2(**changes):
    """Hugging Face's GPT-2 with random weights, large enough that logits differ clearly."""
    torch.manual_seed(5)
    config = transformers.GPT2Config(vocab_size=97, n_positions=24, n_embd=32, n_head=4, n_layer=3,
                                     initializer_range=0.3, bos_token_id=0, eos_token_id=0, **changes)
    return transformers.GPT2LMHeadModel(config).eval()


@pytest.fixture(params=[False, True], ids=["definition", "fused"])
def path(request, monkeypatch):
    monkeypatch.setattr(golpo.Block, "use_fused", request.param)


def test_a_token_changes_no_score_before_it(path):
    model = golpo.GPTModel(TINY).eval()
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
        model = golpo.GPTModel({**golpo.GPT_CONFIG_124M, "tie_embeddings": tied, "init_std": None})
    assert round(model.parameter_count() / 1e6, 1) == millions


@pytest.mark.parametrize("tied", [True, False])
def test_logits_and_greedy_tokens_are_hugging_faces(path, tied):
    theirs = tiny_gpt2(tie_word_embeddings=tied)
    ours = golpo.load_gpt2_weights(golpo.GPTModel(TINY), theirs.state_dict()).eval()
    ids = torch.randint(0, 97, (2, 24))
    torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=0, atol=1e-4)
    told = theirs.generate(ids[:, :4], max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert golpo.generate(ours, ids[:, :4], 20, 24).tolist() == told.tolist()


def test_weights_load_from_a_safetensors_file_into_a_model_with_more_tokens(tmp_path):
    theirs = tiny_gpt2()
    save_file({name: tensor.contiguous().clone() for name, tensor in theirs.transformer.state_dict().items()},
              tmp_path / "gpt2.safetensors")
    ours = golpo.GPTModel({**TINY, "vocab_size": 101, "context_length": 16})
    golpo.load_gpt2_weights(ours, str(tmp_path / "gpt2.safetensors")).eval()
    ids = torch.randint(0, 97, (1, 16))
    logits = ours(ids)
    torch.testing.assert_close(logits[..., :97], theirs(ids).logits, rtol=0, atol=1e-4)
    new, known = ours.tok_emb.weight[97:], ours.tok_emb.weight[:97]
    assert len(new.unique(dim=0)) == 4 and new.norm(dim=1).max() < known.norm(dim=1).max()


@pytest.mark.parametrize("changes, named", [
    ({"n_layers": 2}, "h.2."), ({"n_layers": 4}, "h.3"), ({"qkv_bias": False}, "c_attn.bias"),
    ({"emb_dim": 64}, "shape"), ({"context_length": 48}, "pos_emb"), ({"vocab_size": 64}, "tok_emb")])
def test_weights_that_do_not_fit_are_refused_by_name(changes, named):
    state = {name: tensor + 0.1 for name, tensor in tiny_gpt2().state_dict().items()}
    model = golpo.GPTModel({**TINY, **changes})
    with pytest.raises(ValueError, match=named):
        golpo.load_gpt2_weights(model, state)


def test_sources_without_weights_are_refused(tmp_path):
    with pytest.raises(ValueError, match="wte.weight"):
        golpo.load_gpt2_weights(golpo.GPTModel(TINY), {"something": torch.zeros(1)})
    with pytest.raises(FileNotFoundError, match="nowhere.safetensors"):
        golpo.load_gpt2_weights(golpo.GPTModel(TINY), str(tmp_path / "nowhere.safetensors"))


# The original project's checkpoint: no config, an untied head, masks among the weights, no marker file.
ORIGINAL = {"vocab_size": 89, "context_length": 12, "emb_dim": 16, "n_heads": 4, "n_layers": 2, "drop_rate": 0.1,
            "qkv_bias": False, "key_dim": 16, "val_dim": 16}


def original_state():
    torch.manual_seed(3)
    state = {"tok_emb.weight": torch.randn(89, 16), "pos_emb.weight": torch.randn(12, 16),
             "final_norm.scale": torch.randn(16), "final_norm.shift": torch.randn(16),
             "out_head.weight": torch.randn(89, 16)}
    for n in range(2):
        block = f"trf_blocks.{n}."
        state[block + "att.mask"] = torch.triu(torch.ones(12, 12), diagonal=1)
        for name, shape in (("att.W_query", (16, 16)), ("att.W_key", (16, 16)), ("att.W_value", (16, 16)),
                            ("att.out_proj", (16, 16)), ("ff.layers.0", (64, 16)), ("ff.layers.2", (16, 64))):
            state[block + name + ".weight"] = torch.randn(shape) / 2
            if "W_" not in name:
                state[block + name + ".bias"] = torch.randn(shape[0])
        for norm in ("norm1", "norm2"):
            state[block + norm + ".scale"], state[block + norm + ".shift"] = torch.randn(16), torch.randn(16)
    return state


def original_logits(state, ids):
    """The original's architecture for one text, ids (t,), straight from its weights."""
    def linear(x, name):
        return F.linear(x, state[name + ".weight"], state.get(name + ".bias"))

    def norm(x, name):
        return F.layer_norm(x, (16,), state[name + ".scale"], state[name + ".shift"])

    x = state["tok_emb.weight"][ids] + state["pos_emb.weight"][:len(ids)]
    for block in ("trf_blocks.0.", "trf_blocks.1."):
        y, heads = norm(x, block + "norm1"), []
        split = [linear(y, block + "att.W_" + which).chunk(4, dim=-1) for which in ("query", "key", "value")]
        for q, k, v in zip(*split):
            scores = (q @ k.T / 4 ** 0.5).masked_fill(state[block + "att.mask"][:len(ids), :len(ids)] == 1, -math.inf)
            heads.append(F.softmax(scores, dim=-1) @ v)
        x = x + linear(torch.cat(heads, dim=-1), block + "att.out_proj")
        y = linear(norm(x, block + "norm2"), block + "ff.layers.0")
        x = x + linear(F.gelu(y, approximate="tanh"), block + "ff.layers.2")
    return linear(norm(x, "final_norm"), "out_head")


def test_a_checkpoint_of_the_original_project_gives_the_originals_logits(path, tmp_path):
    state = original_state()
    torch.save({"epoch": 4, "global_step": 77, "model_state_dict": state, "optimizer_state_dict": {},
                "train_losses": [2.5], "val_losses": [2.75], "track_tokens_seen": [640], "tokens_seen": 640},
               tmp_path / "model_and_optimizer.pth")
    model = golpo.GPTModel(ORIGINAL)
    with pytest.warns(UserWarning, match="marker"):
        rest = golpo.load_checkpoint(model, tmp_path / "model_and_optimizer.pth")
    assert (rest["epoch"], rest["global_step"], rest["val_losses"]) == (4, 77, [2.75])
    ids = torch.randint(0, 89, (2, 12))
    expected = torch.stack([original_logits(state, row) for row in ids])
    torch.testing.assert_close(model.eval()(ids), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("changes, named", [
    ({"emb_dims": 32}, "emb_dims.*32"), ({"n_heads": 5}, "n_heads.*5"), ({"key_dim": 30}, "key_dim.*30"),
    ({"val_dim": 30}, "val_dim.*30"), ({"drop_rate": -0.1}, "drop_rate.*-0.1"), ({"drop_rate": 1.5}, "drop_rate.*1.5"),
    ({"drop_rate": math.nan}, "drop_rate.*nan"), ({"vocab_size": 0}, "vocab_size.*0"),
    ({"n_layers": 2.5}, "n_layers.*2.5"),
    ({"emb_dim": "32"}, "emb_dim.*'32'"), ({"qkv_bias": 1}, "qkv_bias.*1"), ({"init_std": -1}, "init_std.*-1")])
def test_a_config_that_cannot_be_is_refused_by_key_and_value(changes, named):
    with pytest.raises(ValueError, match=named):
        golpo.GPTModel({**TINY, **changes})


def test_a_missing_key_is_named():
    with pytest.raises(ValueError, match="n_heads"):
        golpo.GPTModel({key: value for key, value in TINY.items() if key != "n_heads"})


def test_more_tokens_than_the_context_are_refused():
    with pytest.raises(ValueError, match="25.*24"):
        golpo.GPTModel(TINY)(torch.zeros(1, 25, dtype=torch.long))


def test_loss_from_targets_is_cross_entropy_of_the_logits():
    model = golpo.GPTModel(TINY).eval()
    ids, targets = torch.randint(0, 97, (2, 24)), torch.randint(0, 97, (2, 24))
    torch.testing.assert_close(model(ids, targets), F.cross_entropy(model(ids).flatten(0, 1), targets.flatten()))


@pytest.mark.parametrize("changes", [{}, {"qkv_bias": False, "tie_embeddings": False}, {"vocab_size": 700},
                                     {"vocab_size": 50257}], ids=["full", "no bias, untied", "cut", "without markers"])
def test_an_exported_storyteller_is_the_same_in_hugging_faces_hands(tmp_path, changes):
    config = {**TINY, "vocab_size": 50261, "init_std": 0.3, **changes}
    model, tokenizer = golpo.GPTModel(config).eval(), golpo.get_tokenizer(config["vocab_size"])
    golpo.export_hf(model, tokenizer, tmp_path / "out")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "out")
    ids = torch.randint(0, config["vocab_size"], (2, 24))
    torch.testing.assert_close(theirs.eval()(ids).logits, model(ids), rtol=0, atol=1e-4)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in ("Once upon a time, there's a fox;  1,234 words!\n\n\tEnd.", "Fräulein ß গল্প 猫 👩‍👩‍👧\u2028 ",
                 "<|start|>\n<|title|>The Fox</|title|>\n\nHe ran. <|end|>\n"):
        assert their_tokenizer(text)["input_ids"] == golpo.encode(text, tokenizer)
        assert their_tokenizer.decode(golpo.encode(text, tokenizer), clean_up_tokenization_spaces=False) == text
    back, same_tokenizer, about = golpo.load_storyteller(tmp_path / "out")
    assert torch.equal(back(ids), model(ids)) and same_tokenizer.name == tokenizer.name and back.config == model.config


def test_an_export_in_half_precision_is_read_back_with_its_facts(tmp_path):
    torch.manual_seed(8)
    model, tokenizer = golpo.GPTModel({**TINY, "vocab_size": 300}).eval(), golpo.get_tokenizer(300)
    golpo.export_hf(model, tokenizer, tmp_path / "half", dtype=torch.float16, about={"global_step": 7})
    back, _, about = golpo.load_storyteller(tmp_path / "half")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "half", dtype=torch.float32).eval()
    ids = torch.randint(0, 300, (2, 24))
    torch.testing.assert_close(back(ids), model(ids), rtol=0, atol=1e-2)
    torch.testing.assert_close(back(ids), theirs(ids).logits, rtol=0, atol=1e-4)
    assert about["global_step"] == 7 and about["path"] == tmp_path / "half" and back.tok_emb.weight.dtype == torch.float32


def test_a_folder_of_hugging_faces_own_is_read(tmp_path):
    theirs, ids = tiny_gpt2(), torch.randint(0, 97, (2, 24))
    theirs.save_pretrained(tmp_path / "theirs")
    model, tokenizer, about = golpo.load_storyteller(tmp_path / "theirs")
    torch.testing.assert_close(model(ids), theirs(ids).logits, rtol=0, atol=1e-4)
    assert about["val_losses"] == [] and model.config == TINY and tokenizer.name == golpo.get_tokenizer(97).name


def test_a_folder_of_another_model_is_refused_with_a_sentence(tmp_path):
    config = transformers.BertConfig(vocab_size=97, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    transformers.BertModel(config).save_pretrained(tmp_path / "theirs")
    with pytest.raises(golpo.CheckpointError, match="theirs.* holds no GPT-2 in Hugging Face's format"):
        golpo.load_storyteller(tmp_path / "theirs")


def test_widths_that_gpt2_cannot_have_are_not_exported(tmp_path):
    with pytest.raises(ValueError, match="key_dim"):
        golpo.export_hf(golpo.GPTModel({**TINY, "key_dim": 16}), golpo.get_tokenizer(), tmp_path)


def test_finetuning_starts_from_gpt2s_weights_and_leaves_frozen_blocks_alone(tmp_path):
    gpt2, weights = tiny_gpt2(), tmp_path / "gpt2.safetensors"
    save_file({name: tensor.clone() for name, tensor in gpt2.state_dict().items() if name != "lm_head.weight"}, weights)
    stories = tmp_path / "stories.txt"
    stories.write_text("".join(f"<|start|>\nThe owl saw {n} mice and {n * 3} stars.\n<|end|>\n" for n in range(80)))
    settings = dict(config={**TINY, "vocab_size": 300}, data_path=stories, checkpoint_dir=tmp_path / "ck", device="cpu",
                    precision="fp32", num_epochs=1, batch_size=4, sample_tokens=0, frozen_layers=2)
    # GPT-2 has 97 tokens here and the model 300: the other 203 are new, as the four markers are in the real one.
    _, before, _ = golpo.start_fresh_training(**settings, start_from=weights, learning_rate=0.0, weight_decay=0.0)
    assert before[0] == before[-1]
    started, *_ = golpo.load_storyteller(tmp_path / "ck")
    theirs, state = gpt2.state_dict(), started.state_dict()
    torch.testing.assert_close(state["tok_emb.weight"][:97], theirs["transformer.wte.weight"])
    _, losses, _ = golpo.start_fresh_training(**settings, start_from=weights, learning_rate=3e-3)
    assert losses[-1] < before[-1] - 0.3
    learned = golpo.load_storyteller(tmp_path / "ck")[0].state_dict()
    for name in state:
        frozen = name.startswith(("pos_emb", "trf_blocks.0.", "trf_blocks.1."))
        assert torch.equal(state[name], learned[name]) == frozen, name


def test_a_frozen_training_resumes_exactly(tmp_path):
    stories = tmp_path / "stories.txt"
    stories.write_text("".join(f"<|start|>\nThe owl saw {n} mice and {n * 3} stars.\n<|end|>\n" for n in range(80)))
    settings = dict(config={**TINY, "vocab_size": 300}, data_path=stories, device="cpu", precision="fp32", num_epochs=2,
                    batch_size=4, sample_tokens=0, frozen_layers=1)
    golpo.start_fresh_training(**settings, checkpoint_dir=tmp_path / "whole")
    golpo.start_fresh_training(**settings, checkpoint_dir=tmp_path / "cut", max_steps=7)
    golpo.resume_training_from_checkpoint(tmp_path / "cut")
    whole, cut = (golpo.load_storyteller(tmp_path / name)[0].state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_frozen_layers_and_gpt2s_name_are_checked(tmp_path):
    with pytest.raises(ValueError, match="frozen_layers is 4; the model has 3 layers"):
        golpo.start_fresh_training(config=TINY, frozen_layers=4)
    with pytest.raises(FileNotFoundError, match="nowhere.safetensors"):
        golpo.load_gpt2_weights(golpo.GPTModel(TINY), str(tmp_path / "nowhere.safetensors"))


def test_a_download_that_fails_says_what_to_do(monkeypatch):
    import huggingface_hub

    def refuse(*_):
        raise OSError("no network")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(ConnectionError, match="'openai-community/gpt2' could not be downloaded .* go online"):
        golpo.load_gpt2_weights(golpo.GPTModel(TINY), "openai-community/gpt2")


def test_a_model_in_int8_says_nearly_the_same_and_weighs_the_same(tmp_path):
    torch.manual_seed(6)
    model = golpo.GPTModel({**TINY, "init_std": 0.1}).eval()
    ids = torch.randint(0, 97, (4, 24))
    with torch.inference_mode():
        before, count, loss = model(ids), model.parameter_count(), float(model(ids[:, :-1], ids[:, 1:].contiguous()))
        after = golpo.to_int8(model)(ids)
    assert F.cosine_similarity(before, after, dim=-1).min() > 0.99 and not torch.equal(before, after)
    assert model.parameter_count() == count
    told = F.cross_entropy(after[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert float(told) == pytest.approx(loss, rel=0.02)
