"""What only a GPU can show: results as on a CPU, half precision, compilation, full memory."""

import copy

import pytest
import torch
import torch.nn.functional as F

from golpo.checkpoint import newest_checkpoint, read_checkpoint
from golpo.inference import prepare_for_inference
from golpo.lora import adapter_parameters, add_adapter, set_adapter_strength
from golpo.loss import NextTokenLoss
from golpo.runs import resume_training_from_checkpoint, start_fresh_training
from golpo_utils import GPTModel, generate

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU here")
CONFIG = dict(
    vocab_size=512,
    context_length=64,
    emb_dim=64,
    n_heads=4,
    n_layers=2,
    drop_rate=0.0,
    qkv_bias=False,
)


@pytest.fixture
def settings(tmp_path):
    """The bundled corpus, for 120 steps."""
    return dict(
        config=CONFIG,
        checkpoint_dir=tmp_path / "checkpoints",
        num_epochs=1,
        batch_size=16,
        learning_rate=3e-3,
        sample_tokens=0,
        max_steps=120,
        evals_per_epoch=50,
        seed=7,
        device="cuda",
    )


def train(settings, folder, **changes):
    """Validation losses, and the weights at the end, of a training in a folder of its own."""
    where = settings["checkpoint_dir"].with_name(folder)
    losses = start_fresh_training(**{**settings, "checkpoint_dir": where, **changes})[1]
    return losses, read_checkpoint(newest_checkpoint(where)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_loss_and_gradients_are_pytorchs(dtype):
    torch.manual_seed(0)
    model = GPTModel(CONFIG | {"vocab_size": 5000}).cuda()
    ids = torch.randint(
        0, 5000, (40, 65), device="cuda"
    )  # 2,560 rows: more than are scored at once
    found = []
    for loss_of in (
        lambda x, y: NextTokenLoss(model)(x, y),
        lambda x, y: F.cross_entropy(model(x).flatten(0, 1).float(), y.flatten()),
    ):
        model.zero_grad()
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            loss = loss_of(ids[:, :-1], ids[:, 1:])
        (loss * 1024).backward()  # fp16 would lose the smallest gradients
        found.append([loss.detach(), *(p.grad.flatten() / 1024 for p in model.parameters())])
    for ours, theirs in zip(*found, strict=False):
        assert (ours - theirs).norm() <= (1e-5 if dtype == torch.float32 else 2e-2) * theirs.norm()


def test_a_gpu_tells_what_the_cpu_tells():
    torch.manual_seed(0)
    model, ids = GPTModel(CONFIG), torch.randint(0, 512, (3, 10))
    told = [
        generate(model.to(device), ids.to(device), 100, 64, temperature, seed=3).cpu()
        for temperature in (0.0, 0.9)
        for device in ("cpu", "cuda")
    ]
    assert told[0].equal(told[1]) and told[2].equal(told[3])


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "bf16"},
        {"precision": "fp16"},
        {"compile": "on"},
        {"device": "cpu"},
        {"precision": "fp16", "compile": "on"},
    ],
    ids=str,
)
def test_every_way_learns_the_same(settings, change):
    """Against fp32 on the GPU, not compiled: validation losses within 3 %."""
    plain, _ = train(settings, "plain", precision="fp32", compile="off")
    other, _ = train(settings, "other", **{"precision": "fp32", "compile": "off", **change})
    assert plain[-1] < plain[0] - 0.5
    assert other == pytest.approx(plain, rel=0.03)


def test_fp16_leaves_out_a_step_that_overflows(settings, monkeypatch):
    """Gradients overflow at each scale above 2 ** 8: it is lowered, and training continues."""
    scale = torch.amp.GradScaler.scale

    def overflowing(scaler, loss):
        return scale(scaler, loss) * (torch.inf if scaler.get_scale() > 2**8 else 1.0)

    monkeypatch.setattr(torch.amp.GradScaler, "scale", overflowing)
    losses, checkpoint = train(settings, "scaled", precision="fp16")
    assert checkpoint["state"]["scaler"]["scale"] == 2**8 and losses[-1] < losses[0]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_resumed_training_goes_on_as_if_nothing_had_happened(settings, precision):
    """A GPU may add in another order each time: the weights are near, not the same bits."""
    changes = {"precision": precision, "config": CONFIG | {"drop_rate": 0.1}}
    whole, through = train(settings, "whole", **changes)
    train(settings, "parts", **changes, max_steps=61)
    parts = resume_training_from_checkpoint(
        settings["checkpoint_dir"].with_name("parts"), max_steps=120
    )[1]
    assert parts == pytest.approx(whole, rel=2e-3)
    resumed = read_checkpoint(newest_checkpoint(settings["checkpoint_dir"].with_name("parts"))[0])
    for name, weight in through["model_state_dict"].items():
        assert (resumed["model_state_dict"][name] - weight).norm() <= 0.05 * weight.norm(), name


def test_memory_that_runs_out_halves_the_micro_batch(settings, capsys):
    """This training gets 70 % of the memory that it needs, most of it for the windows at once."""
    wide = CONFIG | dict(context_length=256, emb_dim=256, n_layers=4)
    settings |= dict(config=wide, batch_size=64, precision="fp32", compile="off", max_steps=4)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    whole, _ = train(settings, "whole")
    needed = torch.cuda.max_memory_reserved()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(
        0.7 * needed / torch.cuda.get_device_properties(0).total_memory
    )
    try:
        halved, _ = train(settings, "halved")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "Out of memory: from now on 32 windows" in capsys.readouterr().out
    assert halved == pytest.approx(whole, rel=1e-3)


def test_an_adapters_strength_moves_while_a_captured_graph_runs():
    torch.manual_seed(0)
    plain = GPTModel(CONFIG | {"init_std": 0.2}).cuda().eval()
    reference = copy.deepcopy(plain)
    add_adapter(reference, rank=4)
    for parameter in adapter_parameters(reference):
        torch.nn.init.normal_(parameter, std=0.3)
    prompt = torch.arange(8, device="cuda")[None]
    token = torch.full((1, 1), 9, device="cuda")
    whole = torch.cat([prompt, token], dim=1)
    prepared = prepare_for_inference(copy.deepcopy(reference))
    without = prepare_for_inference(plain)
    found = {}
    with torch.inference_mode():
        for strength in (1.0, 0.0, 0.5):  # the graph is captured at the first
            for model in (prepared, reference):
                set_adapter_strength(model, strength)
            decoder = prepared.make_decoder(16)
            decoder.prefill(prompt)
            found[strength] = decoder.advance(token).clone()
            assert decoder.step.graph is not None
            torch.testing.assert_close(
                found[strength], reference.next_logits(whole), atol=1e-3, rtol=1e-3
            )
            del decoder
        decoder = without.make_decoder(16)
        decoder.prefill(prompt)
        assert torch.equal(decoder.advance(token), found[0.0])
    assert not torch.allclose(found[1.0], found[0.0], atol=0.1)


def test_an_adapter_is_trained_in_half_precision_and_the_rest_stays(settings):
    train(settings, "base")
    base = str(settings["checkpoint_dir"].with_name("base"))
    more = {"start_from": base, "adapter_rank": 4, "precision": "fp16"}
    losses, checkpoint = train(settings, "adapter", **more)
    assert losses[-1] < losses[0]
    started = read_checkpoint(newest_checkpoint(base, "best")[0])["model_state_dict"]
    for name, weights in started.items():
        assert torch.equal(checkpoint["model_state_dict"][name], weights), name
