"""Trainings of an adapter: what is trained, what is saved, and how it is used afterwards."""

import contextlib

import peft
import pytest
import torch
import transformers
from helpers import TINY_CONFIG, tiny_gpt2
from safetensors.torch import load_file
from trainings import newest, same_bits, train

from golpo.cli import main
from golpo.errors import CheckpointError
from golpo.inference import load_storyteller
from golpo.lora import adapter_names, adapter_parameters, add_adapter, save_adapter
from golpo.optim import make_optimizer
from golpo.plan import plan_training
from golpo.runs import start_fresh_training, train_or_resume
from golpo.settings import PRESETS, Settings
from golpo_utils import GPTModel

pytestmark = pytest.mark.usefixtures("one_thread", "silent")
RANK = 3


@pytest.fixture(scope="module")
def base(training_corpus, tmp_path_factory):
    """The folder of a training of all weights."""
    folder = tmp_path_factory.mktemp("base")
    with contextlib.redirect_stdout(None):
        train(training_corpus, folder, num_epochs=1)
    return folder


@pytest.fixture(scope="module")
def trained(base, training_corpus, tmp_path_factory):
    """The folder of a training of an adapter beside it."""
    folder = tmp_path_factory.mktemp("trained")
    with contextlib.redirect_stdout(None):
        train_adapter(base, training_corpus, folder)
    return folder


def train_adapter(base, corpus, folder, **more):
    settings = {"start_from": str(base), "adapter_rank": RANK, "learning_rate": 0.03}
    return train(corpus, folder, **settings, **more)


@torch.no_grad()
def logits_of(source, **more):
    model, *_ = load_storyteller(source, **more)
    return model(torch.tensor([[5, 80, 7, 200, 11]]))


def test_only_the_adapter_learns(base, trained):
    weights = newest(trained)["model_state_dict"]
    started = load_storyteller(base, which="best")[0].state_dict()
    for name, before in started.items():
        assert torch.equal(weights[name], before), name
    learned = [name for name in weights if name.startswith("adapters.")]
    assert len(learned) == 4 * 3  # A, B and the scale, beside four layers of one block
    assert all(weights[name].any() for name in learned)
    losses = newest(trained)["val_losses"]
    assert losses[-1] < losses[0] < newest(base)["val_losses"][-1]


def test_the_optimizer_has_the_adapters_parameters_only():
    config = PRESETS["laptop"]["config"]
    model = GPTModel(config)
    add_adapter(model, rank=4)
    optimizer = make_optimizer(model, Settings())
    held = [id(one) for group in optimizer.param_groups for one in group["params"]]
    assert sorted(held) == sorted(map(id, adapter_parameters(model)))


def test_an_interrupted_training_of_an_adapter_resumes_to_the_last_bit(
    base, trained, training_corpus, tmp_path
):
    for stop in (7, 40, None):
        train_adapter(base, training_corpus, tmp_path, max_steps=stop)
    assert same_bits(newest(tmp_path), newest(trained))
    one, other = (load_file(folder / "adapter/adapter_model.safetensors") for folder in
                  (tmp_path, trained))  # fmt: skip
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_an_untied_head_stays_frozen_when_the_training_resumes(training_corpus, tmp_path):
    """GPT-2 finetuned elsewhere may have a head of its own."""
    theirs = tiny_gpt2(tie_word_embeddings=False)
    theirs.save_pretrained(tmp_path / "gpt2")
    weights = str(tmp_path / "gpt2" / "model.safetensors")
    config = TINY_CONFIG | {"vocab_size": 300}
    more = {"start_from": weights, "adapter_rank": 2, "config": config, "num_epochs": 1}
    train(training_corpus, tmp_path / "whole", **more)
    for stop in (5, None):
        train(training_corpus, tmp_path / "cut", **more, max_steps=stop)
    assert same_bits(newest(tmp_path / "whole"), newest(tmp_path / "cut"))
    head = newest(tmp_path / "cut")["model_state_dict"]["out_head.weight"]
    assert torch.equal(head[:97], theirs.lm_head.weight.detach())


def test_the_saved_adapter_is_the_best_checkpoints(base, trained):
    expected = logits_of(trained, which="best")
    actual = logits_of(base, which="best", adapter=trained / "adapter")
    assert torch.equal(actual, expected)
    plain = logits_of(base, which="best")
    assert not torch.allclose(actual, plain, atol=1e-2)
    assert torch.equal(logits_of(trained, adapter_strength=0), plain)


def test_peft_loads_what_the_training_saved(base, trained, tmp_path):
    main(["export", "--output", str(tmp_path), "--checkpoint", str(base), "--which", "best"])
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
    theirs = peft.PeftModel.from_pretrained(theirs, trained / "adapter").eval()
    with torch.no_grad():
        logits = theirs(torch.tensor([[5, 80, 7, 200, 11]])).logits
    expected = logits_of(base, which="best", adapter=trained / "adapter")
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_export_merges_the_adapter(base, trained, tmp_path):
    arguments = ["--checkpoint", str(base), "--which", "best"]
    arguments += ["--adapter", str(trained / "adapter"), "--adapter-strength", "0.5"]
    main(["export", "--output", str(tmp_path), *arguments])
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        logits = theirs(torch.tensor([[5, 80, 7, 200, 11]])).logits
    half = {"adapter": trained / "adapter", "adapter_strength": 0.5}
    expected = logits_of(base, which="best", **half)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_generate_takes_an_adapter(base, trained, capsys):
    """Several seeds: a story may end after a few tokens, before an adapter has changed one."""
    stories = []
    for more in ([], ["--adapter", str(trained / "adapter")], ["--adapter-strength", "0"]):
        place = trained if more[:1] == ["--adapter-strength"] else base / "checkpoint_best.pt"
        for seed in "123456":
            arguments = ["--checkpoint", str(place), "--seed", seed, "--max-new-tokens", "80"]
            main(["generate", *arguments, *more])
        stories.append(capsys.readouterr().out)
    plain, adapted, without = stories
    assert adapted != plain
    assert without == plain


def test_a_training_starts_from_a_trained_adapter(trained, training_corpus, tmp_path):
    more = {"start_from": str(trained), "num_epochs": 1, "learning_rate": 0.0}
    train(training_corpus, tmp_path, **more, weight_decay=0.0)
    assert not adapter_names(load_storyteller(tmp_path)[0])
    expected = logits_of(trained, which="best")
    torch.testing.assert_close(logits_of(tmp_path), expected, atol=1e-5, rtol=1e-5)


def test_config_and_tokenizer_are_those_of_the_start(training_corpus, tmp_path):
    settings = {"data_path": training_corpus, "checkpoint_dir": tmp_path, "max_steps": 1}
    settings |= {"sample_tokens": 0, "batch_size": 2, "device": "cpu", "num_epochs": 1}
    start_fresh_training(start_from="bundled", adapter_rank=4, **settings)
    bundled, tokenizer, _ = load_storyteller("bundled")
    checkpoint = newest(tmp_path)
    assert checkpoint["config"] == bundled.config
    assert checkpoint["tokenizer"] == tokenizer.name
    train_or_resume(**settings | {"max_steps": 2})
    assert newest(tmp_path)["global_step"] == 2


def test_the_adapter_of_the_bundled_model_is_small(tmp_path):
    model, *_ = load_storyteller("bundled")
    count = model.parameter_count()
    add_adapter(model, rank=4)
    save_adapter(model, tmp_path)
    learned = sum(one.numel() for one in adapter_parameters(model))
    assert 0.01 < learned / count < 0.02
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 2e6


def test_contradictions_are_named(base, trained, training_corpus, tmp_path):
    with pytest.raises(ValueError, match="adapter_rank is 3, but .* give start_from"):
        train(training_corpus, tmp_path, adapter_rank=3)
    with pytest.raises(ValueError, match="adapter_rank is 3 and frozen_layers 1"):
        train_adapter(base, training_corpus, tmp_path, frozen_layers=1)
    with pytest.raises(CheckpointError, match="adapter_rank = 3, and now it is 4"):
        train(training_corpus, trained, adapter_rank=4, num_epochs=4)
    with pytest.raises(CheckpointError, match="adapter_rank = 0, and now it is 3"):
        train_adapter(base, training_corpus, base, num_epochs=2)


def test_an_adapter_has_a_learning_rate_of_its_own():
    full = plan_training(preset="gpt2", fresh=True)
    adapter = plan_training(preset="gpt2", fresh=True, adapter_rank=8)
    assert full.learning_rate == PRESETS["gpt2"]["learning_rate"]
    assert adapter.learning_rate > 10 * full.learning_rate
    chosen = plan_training(preset="gpt2", fresh=True, adapter_rank=8, learning_rate=1e-4)
    assert chosen.learning_rate == 1e-4
