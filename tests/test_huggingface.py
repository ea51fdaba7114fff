"""GPT-2's weights in, our models out: equal logits, ids and greedy tokens in transformers."""

import pytest
import torch
import transformers
from helpers import TINY_CONFIG, tiny_gpt2, write_stories
from safetensors.torch import save_file

from golpo.errors import CheckpointError
from golpo.hf_tokenizer import write_tokenizer
from golpo.huggingface import export_hf, load_gpt2_weights
from golpo.inference import load_storyteller
from golpo.runs import resume_training_from_checkpoint, start_fresh_training
from golpo_utils import GPTModel, encode, generate, get_tokenizer


@pytest.mark.parametrize("tied", [True, False])
def test_logits_and_greedy_tokens_are_hugging_faces(path, tied):
    theirs = tiny_gpt2(tie_word_embeddings=tied)
    ours = load_gpt2_weights(GPTModel(TINY_CONFIG), theirs.state_dict()).eval()
    ids = torch.randint(0, 97, (2, 24))
    torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=0, atol=1e-4)
    expected = theirs.generate(
        ids[:, :4], max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert generate(ours, ids[:, :4], 20, 24).tolist() == expected.tolist()


def test_weights_load_from_a_safetensors_file_into_a_model_with_more_tokens(tmp_path):
    theirs = tiny_gpt2()
    save_file(
        {
            name: tensor.contiguous().clone()
            for name, tensor in theirs.transformer.state_dict().items()
        },
        tmp_path / "gpt2.safetensors",
    )
    ours = GPTModel({**TINY_CONFIG, "vocab_size": 101, "context_length": 16})
    load_gpt2_weights(ours, str(tmp_path / "gpt2.safetensors")).eval()
    ids = torch.randint(0, 97, (1, 16))
    logits = ours(ids)
    torch.testing.assert_close(logits[..., :97], theirs(ids).logits, rtol=0, atol=1e-4)
    new, known = ours.tok_emb.weight[97:], ours.tok_emb.weight[:97]
    assert len(new.unique(dim=0)) == 4 and new.norm(dim=1).max() < known.norm(dim=1).max()


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"n_layers": 2}, "h.2."),
        ({"n_layers": 4}, "h.3"),
        ({"qkv_bias": False}, "c_attn.bias"),
        ({"emb_dim": 64}, "shape"),
        ({"context_length": 48}, "pos_emb"),
        ({"vocab_size": 64}, "tok_emb"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(changes, named):
    state = {name: tensor + 0.1 for name, tensor in tiny_gpt2().state_dict().items()}
    model = GPTModel({**TINY_CONFIG, **changes})
    with pytest.raises(ValueError, match=named):
        load_gpt2_weights(model, state)


def test_sources_without_weights_are_refused(tmp_path):
    with pytest.raises(ValueError, match="wte.weight"):
        load_gpt2_weights(GPTModel(TINY_CONFIG), {"something": torch.zeros(1)})
    with pytest.raises(FileNotFoundError, match="nowhere.safetensors"):
        load_gpt2_weights(GPTModel(TINY_CONFIG), str(tmp_path / "nowhere.safetensors"))


@pytest.mark.parametrize(
    "changes",
    [{}, {"qkv_bias": False, "tie_embeddings": False}, {"vocab_size": 700}, {"vocab_size": 50257}],
    ids=["full", "no bias, untied", "cut", "without markers"],
)
def test_an_exported_model_has_the_same_logits_and_ids_in_transformers(tmp_path, changes):
    config = {**TINY_CONFIG, "vocab_size": 50261, "init_std": 0.3, **changes}
    model, tokenizer = GPTModel(config).eval(), get_tokenizer(config["vocab_size"])
    export_hf(model, tokenizer, tmp_path / "out")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "out")
    ids = torch.randint(0, config["vocab_size"], (2, 24))
    torch.testing.assert_close(theirs.eval()(ids).logits, model(ids), rtol=0, atol=1e-4)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in (
        "Once upon a time, there's a fox;  1,234 words!\n\n\tEnd.",
        "Fräulein ß গল্প 猫 👩‍👩‍👧\u2028 ",
        "<|start|>\n<|title|>The Fox</|title|>\n\nHe ran. <|end|>\n",
    ):
        assert their_tokenizer(text)["input_ids"] == encode(text, tokenizer)
        assert (
            their_tokenizer.decode(encode(text, tokenizer), clean_up_tokenization_spaces=False)
            == text
        )
    back, same_tokenizer, about = load_storyteller(tmp_path / "out")
    torch.testing.assert_close(back(ids), model(ids))
    assert same_tokenizer.name == tokenizer.name
    assert back.config == model.config


def test_an_export_in_half_precision_is_read_back_with_its_facts(tmp_path):
    torch.manual_seed(8)
    model, tokenizer = GPTModel({**TINY_CONFIG, "vocab_size": 300}).eval(), get_tokenizer(300)
    export_hf(model, tokenizer, tmp_path / "half", dtype=torch.float16, about={"global_step": 7})
    back, _, about = load_storyteller(tmp_path / "half")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(
        tmp_path / "half", dtype=torch.float32
    ).eval()
    ids = torch.randint(0, 300, (2, 24))
    torch.testing.assert_close(back(ids), model(ids), rtol=0, atol=1e-2)
    torch.testing.assert_close(back(ids), theirs(ids).logits, rtol=0, atol=1e-4)
    assert (
        about["global_step"] == 7
        and about["path"] == tmp_path / "half"
        and back.tok_emb.weight.dtype == torch.float32
    )


def test_a_folder_of_hugging_faces_own_is_read(tmp_path):
    config = transformers.GPT2Config(
        vocab_size=300, n_positions=24, n_embd=32, n_head=4, n_layer=3, initializer_range=0.3
    )
    torch.manual_seed(5)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    ids = torch.randint(0, 300, (2, 24))
    theirs.save_pretrained(tmp_path / "theirs")
    write_tokenizer(get_tokenizer(300), tmp_path / "theirs", 24)
    model, tokenizer, about = load_storyteller(tmp_path / "theirs")
    torch.testing.assert_close(model(ids), theirs(ids).logits, rtol=0, atol=1e-4)
    assert about["val_losses"] == []
    assert model.config == {**TINY_CONFIG, "vocab_size": 300}
    assert tokenizer.name == get_tokenizer(300).name


def test_a_folder_of_another_model_is_refused_with_a_sentence(tmp_path):
    config = transformers.BertConfig(
        vocab_size=97,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "theirs")
    with pytest.raises(CheckpointError, match="theirs.* has no GPT-2 in Hugging Face's format"):
        load_storyteller(tmp_path / "theirs")


def test_widths_that_gpt2_cannot_have_are_not_exported(tmp_path):
    with pytest.raises(ValueError, match="key_dim"):
        export_hf(GPTModel({**TINY_CONFIG, "key_dim": 16}), get_tokenizer(), tmp_path)


def test_finetuning_starts_from_gpt2s_weights_and_leaves_frozen_blocks_alone(tmp_path):
    gpt2, weights = tiny_gpt2(), tmp_path / "gpt2.safetensors"
    save_file(
        {
            name: tensor.clone()
            for name, tensor in gpt2.state_dict().items()
            if name != "lm_head.weight"
        },
        weights,
    )
    stories = write_stories(tmp_path / "stories.txt")
    settings = dict(
        config={**TINY_CONFIG, "vocab_size": 300},
        data_path=stories,
        checkpoint_dir=tmp_path / "ck",
        device="cpu",
        precision="fp32",
        num_epochs=1,
        batch_size=4,
        sample_tokens=0,
        frozen_layers=2,
    )
    # GPT-2 has 97 tokens here and the model 300: 203 are new, as the markers are in reality.
    _, before, _ = start_fresh_training(
        **settings, start_from=weights, learning_rate=0.0, weight_decay=0.0
    )
    assert before[0] == before[-1]
    started, *_ = load_storyteller(tmp_path / "ck")
    theirs, state = gpt2.state_dict(), started.state_dict()
    torch.testing.assert_close(state["tok_emb.weight"][:97], theirs["transformer.wte.weight"])
    _, losses, _ = start_fresh_training(**settings, start_from=weights, learning_rate=3e-3)
    assert losses[-1] < before[-1] - 0.3
    learned = load_storyteller(tmp_path / "ck")[0].state_dict()
    for name in state:
        frozen = name.startswith(("pos_emb", "trf_blocks.0.", "trf_blocks.1."))
        assert torch.equal(state[name], learned[name]) == frozen, name


def test_a_frozen_training_resumes_exactly(tmp_path):
    stories = write_stories(tmp_path / "stories.txt")
    settings = dict(
        config={**TINY_CONFIG, "vocab_size": 300},
        data_path=stories,
        device="cpu",
        precision="fp32",
        num_epochs=2,
        batch_size=4,
        sample_tokens=0,
        frozen_layers=1,
    )
    start_fresh_training(**settings, checkpoint_dir=tmp_path / "whole")
    start_fresh_training(**settings, checkpoint_dir=tmp_path / "cut", max_steps=7)
    resume_training_from_checkpoint(tmp_path / "cut")
    whole, cut = (load_storyteller(tmp_path / name)[0].state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_frozen_layers_and_gpt2s_name_are_checked(tmp_path):
    with pytest.raises(ValueError, match="frozen_layers is 4; the model has 3 layers"):
        start_fresh_training(config=TINY_CONFIG, frozen_layers=4)
    with pytest.raises(FileNotFoundError, match="nowhere.safetensors"):
        load_gpt2_weights(GPTModel(TINY_CONFIG), str(tmp_path / "nowhere.safetensors"))


def test_a_download_that_fails_says_what_to_do(monkeypatch):
    import huggingface_hub

    def refuse(*_):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(
        ConnectionError, match="'openai-community/gpt2' could not be downloaded .* go online"
    ):
        load_gpt2_weights(GPTModel(TINY_CONFIG), "openai-community/gpt2")


def test_an_export_that_the_disk_refuses_is_an_oserror(tmp_path, monkeypatch):
    """safetensors has an exception of its own for a full disk."""
    import safetensors.torch

    called = []

    def refuse(*_, **__):
        called.append(1)
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", refuse)
    with pytest.raises(OSError, match=f"were not written to '{tmp_path}' .*No space left"):
        export_hf(GPTModel({**TINY_CONFIG, "vocab_size": 300}), get_tokenizer(300), tmp_path)
    assert called
    for wrong in ((None, get_tokenizer(300)), (GPTModel(TINY_CONFIG), None)):
        with pytest.raises(ValueError, match="the (model|tokenizer) is None; it must be"):
            export_hf(*wrong, tmp_path)
