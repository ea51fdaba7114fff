"""Adapters, against the library peft on Hugging Face's GPT-2."""

import copy
import json

import peft
import pytest
import torch
import transformers
from helpers import TINY_CONFIG
from safetensors.torch import load_file

from golpo.huggingface import export_hf
from golpo.inference import prepare_for_inference
from golpo.lora import (
    adapter_names,
    adapter_parameters,
    add_adapter,
    load_adapter,
    merge_adapter,
    remove_adapter,
    save_adapter,
    set_adapter_strength,
)
from golpo.static_decoding import StaticSteps
from golpo_utils import GPTModel, generate, get_tokenizer

CONFIG = TINY_CONFIG | {"vocab_size": 300, "init_std": 0.3}
IDS = torch.tensor([[5, 80, 7, 200, 11, 3, 99, 42]])


def make_model(seed=3, **changes) -> GPTModel:
    torch.manual_seed(seed)
    return GPTModel(CONFIG | changes).eval()


def fill(model, name="default", seed=1) -> None:
    """Give an adapter the values of a trained one: B is no longer zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter_parameters(model, name):
        values = 0.3 * torch.randn(parameter.shape, generator=generator)
        parameter.data.copy_(values)


def adapted(seed=3, **changes) -> GPTModel:
    model = make_model(seed, **changes)
    add_adapter(model, rank=4)
    fill(model)
    return model


@torch.no_grad()
def logits_of(model) -> torch.Tensor:
    return model(IDS)


def exported(model, folder) -> transformers.GPT2LMHeadModel:
    """The model without adapters, as transformers loads it."""
    export_hf(model, get_tokenizer(300), folder)
    return transformers.GPT2LMHeadModel.from_pretrained(folder).eval()


@torch.no_grad()
def test_peft_loads_our_adapter(tmp_path):
    theirs = exported(make_model(), tmp_path / "model")
    plain = theirs(IDS).logits
    model = adapted()
    save_adapter(model, tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    torch.testing.assert_close(theirs(IDS).logits, logits_of(model), atol=2e-5, rtol=1e-5)
    assert not torch.allclose(plain, logits_of(model), atol=0.1)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["c_attn"]},
        {"target_modules": ["c_attn", "c_proj", "c_fc"], "use_rslora": True},
        {"target_modules": ["mlp.c_proj"], "layers_to_transform": [1], "lora_dropout": 0.1},
        {"target_modules": ["c_attn"], "init_lora_weights": "gaussian"},
        {"target_modules": ["c_attn"], "init_lora_weights": "orthogonal", "r": 4},
    ],
)
def test_we_load_an_adapter_that_peft_has_trained(tmp_path, options):
    model = make_model()
    theirs = exported(model, tmp_path / "model")
    config = peft.LoraConfig(task_type="CAUSAL_LM", **{"r": 3, "lora_alpha": 5, **options})
    theirs = peft.get_peft_model(theirs, config).train()
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=0.02)
    for _ in range(5):
        theirs(IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    theirs.eval().save_pretrained(tmp_path / "mine")
    assert load_adapter(model, tmp_path / "mine") == "mine"
    with torch.no_grad():
        expected = theirs(IDS).logits
    torch.testing.assert_close(logits_of(model), expected, atol=2e-5, rtol=1e-5)


def test_training_computes_the_gradients_that_peft_computes(tmp_path):
    model = adapted()
    save_adapter(model, tmp_path / "adapter")
    theirs = exported(make_model(), tmp_path / "model")
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter", is_trainable=True).eval()
    model(IDS).square().sum().backward()
    theirs(IDS).logits.square().sum().backward()
    name = "base_model.model.transformer.h.2.attn.c_attn.lora_{}.default.weight"
    for part in "AB":
        ours = getattr(model.adapters["default"][2]["qkv"], part).grad
        expected = theirs.get_parameter(name.format(part)).grad
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)


def test_a_new_adapter_changes_nothing_and_freezes_the_rest():
    model = make_model()
    before = logits_of(model)
    add_adapter(model)
    assert torch.equal(logits_of(model), before)
    learned = {id(parameter) for parameter in adapter_parameters(model)}
    assert {id(p) for p in model.parameters() if p.requires_grad} == learned


def test_the_seed_decides_an_adapters_first_values():
    values = []
    for seed in (0, 0, 1):
        model = make_model()
        add_adapter(model, seed=seed)
        values.append(adapter_parameters(model)[0])
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


def test_strength_scales_what_the_adapter_adds_and_is_exact_at_0():
    model = adapted()
    merged = make_model()
    add_adapter(merged, rank=4, alpha=8)  # half of alpha is half of the strength
    fill(merged)
    full = logits_of(model)
    set_adapter_strength(model, 0.5)
    torch.testing.assert_close(logits_of(model), logits_of(merged))
    set_adapter_strength(model, 0)
    assert torch.equal(logits_of(model), logits_of(make_model()))
    set_adapter_strength(model, 1)
    assert torch.equal(logits_of(model), full)


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("strength", [1.0, 0.7])
def test_merged_equals_unmerged(prepared, strength):
    model = adapted(init_std=0.1)
    set_adapter_strength(model, strength)
    before = logits_of(model)
    if prepared:
        prepare_for_inference(model)
    merge_adapter(model)
    assert adapter_names(model) == []
    assert set(model.state_dict()) == set(make_model().state_dict())
    torch.testing.assert_close(logits_of(model), before, atol=1e-5, rtol=1e-5)


def test_several_adapters_are_kept_by_name():
    model = make_model()
    plain = logits_of(model)
    alone = {}
    for seed, name in enumerate(("sea", "forest")):
        add_adapter(model, name)
        fill(model, name, seed)
        alone[name] = logits_of(model)
        set_adapter_strength(model, 0, name)
    assert adapter_names(model) == ["sea", "forest"]
    for name, expected in alone.items():
        set_adapter_strength(model, 1, name)
        assert torch.equal(logits_of(model), expected)
        set_adapter_strength(model, 0, name)
    set_adapter_strength(model, 1, "sea")
    remove_adapter(model, "forest")
    assert torch.equal(logits_of(model), alone["sea"])
    remove_adapter(model, "sea")
    assert torch.equal(logits_of(model), plain)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("quantize", [False, True])
@pytest.mark.parametrize("adapter_first", [False, True])
def test_a_prepared_model_takes_an_adapter(tmp_path, quantize, adapter_first):
    """It generates with the adapter what its own layers, one after the other, give."""
    save_adapter(adapted(), tmp_path / "mine")
    model = make_model()
    if adapter_first:
        load_adapter(model, tmp_path / "mine")
    model = prepare_for_inference(model, quantize)
    if not adapter_first:
        load_adapter(model, tmp_path / "mine")
    expected = logits_of(adapted())
    tolerance = 0.2 if quantize else 1e-4
    error = (logits_of(model) - expected).norm() / expected.norm()
    assert error < tolerance
    set_adapter_strength(model, 0, "mine")
    assert torch.equal(logits_of(model), logits_of(prepare_for_inference(make_model(), quantize)))


def test_strength_moves_between_two_tokens():
    """A prepared model's decoder follows the strength, and is exact at 0."""
    model = prepare_for_inference(adapted())
    references = {strength: adapted() for strength in (0.0, 1.0, 1.5)}
    for strength, reference in references.items():
        set_adapter_strength(reference, strength)
    decoder = model.make_decoder(16)
    with torch.inference_mode():
        decoder.prefill(IDS)
        for strength, reference in references.items():
            set_adapter_strength(model, strength)
            copied = copy.deepcopy(decoder.caches)
            logits = decoder.advance(torch.tensor([[7]]))
            expected = reference.next_logits(torch.tensor([[7]]), copied)
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_a_captured_step_is_not_used_with_other_adapters():
    model = make_model()
    steps = StaticSteps(model)
    for _ in range(2):
        decoder = steps.make_decoder(16)
        with torch.inference_mode():
            decoder.prefill(IDS)
            decoder.advance(torch.tensor([[7]]))
        first = decoder.step
        del decoder
        again = steps.make_decoder(16)
        with torch.inference_mode():
            again.prefill(IDS)
        assert again.step is first
        del again
        add_adapter(model, f"adapter{len(adapter_names(model))}")
        last = steps.make_decoder(16)
        with torch.inference_mode():
            last.prefill(IDS)
        assert last.step is not first
        del last


def test_stories_with_an_adapter_are_those_of_the_merged_model():
    model = adapted()
    merged = adapted()
    merge_adapter(merged)
    options = {"max_new_tokens": 12, "temperature": 0, "context_size": 24}
    expected = generate(merged, IDS, **options)
    assert torch.equal(generate(model, IDS, **options), expected)
    assert torch.equal(generate(prepare_for_inference(model), IDS, **options), expected)


def test_a_copy_of_a_model_has_an_adapter_of_its_own():
    model = adapted()
    expected = logits_of(model)
    other = copy.deepcopy(model)
    set_adapter_strength(other, 0)
    assert torch.equal(logits_of(model), expected)
    assert torch.equal(logits_of(other), logits_of(make_model()))
    set_adapter_strength(other, 1)
    fill(other, seed=9)
    assert torch.equal(logits_of(model), expected)
    assert not torch.allclose(logits_of(other), expected)


def test_the_file_holds_the_adapter_alone(tmp_path):
    model = adapted()
    save_adapter(model, tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    count = sum(parameter.numel() for parameter in adapter_parameters(model))
    assert sum(tensor.numel() for tensor in weights.values()) == count
    per_layer = 4 * (32 + 96) + 4 * (32 + 32) + 4 * (32 + 128) + 4 * (128 + 32)
    assert count == 3 * per_layer


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (dict(n_layers=2), "3 layers, and this one has 2"),
        (dict(n_layers=4), "3 layers, and this one has 4"),
        (dict(emb_dim=64), "c_proj is 128 → 32 wide, and this model's is 256 → 64"),
        (dict(seed=4), "trained on another model .*fingerprint"),
    ],
)
def test_an_adapter_for_another_model_is_refused(tmp_path, other, named):
    save_adapter(adapted(), tmp_path, base="bundled")
    model = make_model(**other)
    before = logits_of(model)
    with pytest.raises(ValueError, match=named):
        load_adapter(model, tmp_path)
    assert adapter_names(model) == []
    assert torch.equal(logits_of(model), before)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"target_modules": ["c_attn"], "use_dora": True}, "use_dora = True"),
        ({"target_modules": ["c_attn"], "modules_to_save": ["wte"]}, "modules_to_save"),
        ({"target_modules": ["c_attn", "wte"]}, "wte.*belongs to no linear layer"),
        ({"target_modules": ["c_attn"], "bias": "all"}, "bias = 'all'"),
        # These change the weights that the adapter stands beside.
        ({"target_modules": ["c_attn"], "init_lora_weights": "pissa"}, "init_.* = 'pissa'"),
        ({"target_modules": ["c_attn"], "init_lora_weights": "olora"}, "init_.* = 'olora'"),
    ],
)
def test_what_peft_can_do_beyond_lora_is_refused(tmp_path, options, named):
    theirs = exported(make_model(), tmp_path / "model")
    config = peft.LoraConfig(task_type="CAUSAL_LM", **options)
    peft.get_peft_model(theirs, config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=named):
        load_adapter(make_model(), tmp_path / "adapter")


@pytest.mark.parametrize("key", ["layer_replication", "use_qalora", "kasa_config", "arrow_config"])
def test_a_config_with_another_product_is_refused_by_its_key(tmp_path, key):
    save_adapter(adapted(), tmp_path)
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {key: None}))
    load_adapter(make_model(), tmp_path)
    file.write_text(json.dumps(config | {key: [[0, 2]]}))
    with pytest.raises(ValueError, match=f"has {key} = .*only plain LoRA"):
        load_adapter(make_model(), tmp_path)


@pytest.mark.parametrize("name", ["eval", "train", "keys", "type", "trainable"])
def test_an_adapters_folder_may_have_any_name(tmp_path, name):
    save_adapter(adapted(), tmp_path / name)
    model = make_model()
    loaded = load_adapter(model, tmp_path / name)
    assert adapter_names(model) == [loaded]
    assert torch.equal(logits_of(model), logits_of(adapted()))
    with pytest.raises(ValueError, match=f"name is '{name}'.*another"):
        add_adapter(model, name)


def test_bad_arguments_are_named(tmp_path):
    model = adapted()
    with pytest.raises(ValueError, match="'default' already"):
        add_adapter(model)
    with pytest.raises(ValueError, match="rank is 0"):
        add_adapter(model, "other", rank=0)
    with pytest.raises(ValueError, match="'W_query'.*choose of qkv"):
        add_adapter(model, "other", targets=("W_query",))
    with pytest.raises(ValueError, match="no adapter 'sea'; it has 'default'"):
        remove_adapter(model, "sea")
    with pytest.raises(ValueError, match="strength is 2"):
        set_adapter_strength(model, 2)
    with pytest.raises(FileNotFoundError, match="adapter_config.json"):
        load_adapter(model, tmp_path)
    save_adapter(model, tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="damaged"):
        load_adapter(model, tmp_path)
    quantized = prepare_for_inference(model, quantize=True)
    with pytest.raises(ValueError, match="8-bit"):
        merge_adapter(quantized)
