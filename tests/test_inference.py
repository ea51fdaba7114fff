"""Models that are ready to generate: every fast path equals the plain one, and 8 bits nearly."""

import pytest
import torch
import torch.nn.functional as F
from helpers import TINY_CONFIG

from golpo.checkpoint import load_checkpoint, save_checkpoint
from golpo.cpu_decoding import CPUDecoder
from golpo.errors import CheckpointError
from golpo.fast_linear import FastLinear, chunked_matmul, describe_products
from golpo.inference import Int8Linear, load_storyteller, prepare_for_inference
from golpo.static_decoding import StaticDecoder, StaticSteps
from golpo_utils import GPTModel, generate

SHARP = {**TINY_CONFIG, "init_std": 0.3}  # logits that differ clearly


def make_model(**changes):
    torch.manual_seed(6)
    return GPTModel({**SHARP, **changes}).eval()


@pytest.mark.parametrize("rows", [1, 3, 16])
@pytest.mark.parametrize("width", [5, 8, 41, 50257])
def test_a_chunked_product_equals_torchs(rows, width):
    torch.manual_seed(3)
    x = torch.randn(rows, 24)
    weight = torch.randn(width, 24)
    torch.testing.assert_close(chunked_matmul(x, weight, 8), F.linear(x, weight))


@pytest.mark.parametrize("shape", [(1, 24), (1, 1, 24), (2, 5, 24), (16, 24), (17, 24)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_a_fast_linear_layer_equals_torchs_whatever_product_it_uses(shape, bias):
    torch.manual_seed(3)
    twin = torch.nn.Linear(24, 41, bias=bias)
    fast = FastLinear(twin.weight, twin.bias)
    reached = []

    def chunked(x, weight):
        reached.append(len(x))
        return chunked_matmul(x, weight, 8)

    fast.one_row = fast.few_rows = chunked
    x = torch.randn(shape)
    with torch.inference_mode():
        torch.testing.assert_close(fast(x), twin(x), atol=1e-5, rtol=1e-5)
    rows = x.numel() // 24
    assert reached == ([rows] if rows <= 16 else [])


@pytest.mark.parametrize("changes", [{}, {"qkv_bias": False}, {"key_dim": 16, "val_dim": 64}])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_prepared_model_generates_the_same_tokens_past_the_context_too(changes, temperature):
    ids = torch.randint(0, 97, (3, 5), generator=torch.Generator().manual_seed(1))
    plain = make_model(**changes)
    names = set(plain.state_dict())
    size = plain.parameter_count()
    expected = generate(plain, ids, 60, 24, temperature, seed=3)
    prepared = prepare_for_inference(make_model(**changes))
    found = generate(prepared, ids, 60, 24, temperature, seed=3)
    assert torch.equal(found, expected)
    assert set(prepared.state_dict()) == names
    assert prepared.parameter_count() == size
    has_own_widths = "key_dim" in changes
    assert isinstance(prepared.make_decoder(24), CPUDecoder) != has_own_widths


def test_the_products_that_were_chosen_are_described():
    prepare_for_inference(make_model())
    assert any("1 row × 32 → 96:" in line for line in describe_products())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("rows", [1, 3])
def test_steps_of_static_shape_generate_the_same_tokens(rows, temperature):
    """What a GPU runs as a CUDA graph, here as it is; the memory is used again by later stories."""
    ids = torch.randint(0, 97, (rows, 5), generator=torch.Generator().manual_seed(1))
    model = make_model()
    expected = generate(model, ids, 60, 24, temperature, seed=3)
    steps = StaticSteps(model)
    model.make_decoder = steps.make_decoder
    for _ in range(2):
        assert torch.equal(generate(model, ids, 60, 24, temperature, seed=3), expected)
    assert [len(idle) for idle in steps.idle.values()] == [1]


def test_two_stories_at_once_have_static_memory_of_their_own():
    model = make_model()
    alone = [generate(model, torch.tensor([[n]]), 9, 24)[0, 1:].tolist() for n in (1, 2)]
    steps = StaticSteps(model)
    with torch.inference_mode():
        decoders = [StaticDecoder(steps, 24) for _ in range(2)]
        logits = [one.prefill(torch.tensor([[n]])) for n, one in enumerate(decoders, start=1)]
        found = [[], []]
        for _ in range(9):
            for number, decoder in enumerate(decoders):
                token = logits[number].argmax(dim=-1, keepdim=True)
                found[number].append(int(token))
                logits[number] = decoder.advance(token).clone()
    assert found == alone


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bias", [True, False])
def test_an_int8_layer_is_pytorchs_own_dynamic_quantization(bias):
    from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

    torch.manual_seed(4)
    layer = torch.nn.Linear(64, 48, bias=bias)
    x = torch.randn(3, 64)
    twin = torch.nn.Sequential(torch.nn.Linear(64, 48, bias=bias))
    twin[0].load_state_dict(layer.state_dict())
    twin = quantize_dynamic(twin, {torch.nn.Linear: per_channel_dynamic_qconfig})
    ours = Int8Linear(layer.weight, layer.bias)
    ours.seven_bits = True  # as PyTorch's own layer, on any processor
    torch.testing.assert_close(ours(x), layer(x), atol=0.05, rtol=0)
    # PyTorch's layer computes the scale of a row a little differently.
    torch.testing.assert_close(ours(x), twin(x), atol=0.02, rtol=0)


@pytest.mark.filterwarnings("ignore")
def test_an_int8_layer_rounds_inputs_to_eight_bits_where_the_processor_can():
    torch.manual_seed(4)
    layer = torch.nn.Linear(640, 48)
    x = 3 * torch.randn(16, 640)
    ours = Int8Linear(layer.weight, layer.bias)
    if ours.seven_bits:
        pytest.skip("this processor has no VNNI, so inputs are rounded to 7 bits")
    weight, bias = torch.ops.quantized.linear_unpack(ours.packed)
    rounded = torch.quantize_per_tensor_dynamic(x, torch.quint8, False)
    expected = F.linear(rounded.dequantize(), weight.dequantize(), bias)
    torch.testing.assert_close(ours(x), expected, atol=1e-3, rtol=0)
    assert len(rounded.int_repr().unique()) > 128


@pytest.mark.filterwarnings("ignore")
def test_a_model_in_int8_has_nearly_the_same_logits_and_the_same_size():
    plain = make_model(init_std=0.1)
    ids = torch.randint(0, 97, (4, 24))
    targets = ids[:, 1:].flatten()
    size = plain.parameter_count()
    with torch.inference_mode():
        before = plain(ids)
        after = prepare_for_inference(make_model(init_std=0.1), quantize=True)(ids)
    assert F.cosine_similarity(before, after, dim=-1).min() > 0.99
    assert not torch.equal(before, after)
    losses = [F.cross_entropy(one[:, :-1].flatten(0, 1), targets) for one in (before, after)]
    assert float(losses[1]) == pytest.approx(float(losses[0]), rel=0.02)
    assert prepare_for_inference(plain, quantize=True).parameter_count() == size


@pytest.mark.parametrize("name", ["bundled", "voice"])
def test_the_bundled_model_is_known_by_its_name_in_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, tokenizer, about = load_storyteller(name)
    assert tokenizer.n_vocab == model.config["vocab_size"]
    assert about["path"].is_dir()


def test_a_folder_without_checkpoints_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no checkpoint in '{tmp_path}'"):
        load_storyteller(tmp_path)


@pytest.mark.parametrize("damage", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_noticed_when_they_are_loaded(tmp_path, damage):
    """F: saving refuses them, so such a file is from elsewhere; its manifest is right."""
    model = make_model()
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    save_checkpoint(model, None, 0, 0, [], [], [], 0, tmp_path, "checkpoint_a.pt")
    content = torch.load(tmp_path / "checkpoint_a.pt", weights_only=True)
    content["model_state_dict"]["trf_blocks.0.ff.layers.0.bias"][3] = damage
    torch.save(content, tmp_path / "foreign.pt")
    with pytest.warns(UserWarning, match="no manifest"):
        with pytest.raises(CheckpointError, match="layers.0.bias' hold NaN .* in foreign.pt; load"):
            load_storyteller(tmp_path / "foreign.pt")
    with pytest.warns(UserWarning, match="no manifest"):
        with pytest.raises(CheckpointError, match="NaN"):
            load_checkpoint(model, tmp_path / "foreign.pt")
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, weights[name])
