"""Learning from choices: what is learned, what is said, and what stays when it is cut short."""

import json
import multiprocessing
import random
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from golpo.adapter_files import base_fingerprint
from golpo.choices import Choice, append_choice, read_choices
from golpo.dpo import divergence, log_probability, make_example
from golpo.inference import prepare_for_inference
from golpo.lora import adapter_names, load_adapter, set_adapter_strength
from golpo.preferences import PreferenceSettings, learn_from_choices, learn_steps
from golpo.tastes import newest_taste, taste_folders
from golpo_utils import GPTModel, generate, get_tokenizer

CONFIG = {
    "vocab_size": 300,
    "context_length": 64,
    "emb_dim": 32,
    "n_heads": 2,
    "n_layers": 1,
    "drop_rate": 0.1,
    "qkv_bias": False,
}
TOKENIZER = get_tokenizer(300)
QUICK = PreferenceSettings(
    beta=0.1, by_length=False, anchor=0, learning_rate=1e-2, trained=72, rank=4, max_divergence=5
)
WORDS = "sun rain fox tree lamp boat".split()


def make_model() -> GPTModel:
    torch.manual_seed(3)
    return GPTModel(CONFIG).eval()


def make_story(chance: random.Random, word: str) -> str:
    words = chance.choices(WORDS, k=5)
    words.insert(chance.randrange(5), word)
    return " ".join(words) + ".<|end|>"


def make_choices(number=30, others=1, seed=1) -> list[Choice]:
    """Choices of somebody who likes owls and dislikes mud."""
    chance = random.Random(seed)
    choices = []
    for _ in range(number):
        stories = [make_story(chance, "mud") for _ in range(others)]
        liked = chance.randrange(others + 1)
        stories.insert(liked, make_story(chance, "owl"))
        choices.append(Choice(stories, liked, opening="Once", title="A day"))
    return choices


def learn(folder, choices=None, model=None, **more):
    choices = make_choices() if choices is None else choices
    more = {"settings": QUICK, **more}
    return learn_from_choices(model or make_model(), TOKENIZER, choices, folder, **more)


@pytest.mark.parametrize("by_length", [False, True])
@pytest.mark.parametrize("others", [1, 3])
def test_what_is_liked_becomes_more_probable(tmp_path, capsys, others, by_length):
    settings = PreferenceSettings(
        beta=2.0 if by_length else 0.1, by_length=by_length, learning_rate=1e-2, trained=72, rank=4,
        anchor=0, max_divergence=5,
    )  # fmt: skip
    model = make_model()
    val_stories = ["<|start|>\nThe lamp.\n<|end|>\n"]
    choices = make_choices(others=others)
    learned = learn(tmp_path, choices, model, settings=settings, val_stories=val_stories)
    assert (learned.choices, learned.kept_aside, learned.left_out) == (24, 6, 0)
    assert learned.agreement_after >= 5
    assert learned.val_loss_before == pytest.approx(5.7, abs=0.3)
    assert learned.val_loss_after != learned.val_loss_before
    assert not learned.reached_bound
    # The adapter as somebody else loads it: fresh choices, by the model's own probabilities.
    assert load_adapter(model, learned.folder, "taste") == "taste"
    gains = [gain(model, choice) for choice in make_choices(20, others, seed=2)]
    assert sum(gains) >= 18
    said = capsys.readouterr().out
    assert "Learned from 24 choices" in said
    assert f"Of 6 choices kept aside, the plain model finds the liked story the likeliest in " \
        f"{learned.agreement_before}; what was learned points to it in {learned.agreement_after}." \
        in said  # fmt: skip
    assert f"{learned.val_loss_before:.3f} before, {learned.val_loss_after:.3f} after" in said


@torch.no_grad()
def gain(model: GPTModel, choice: Choice) -> bool:
    """Whether the liked story gains more per token than each other one, by PyTorch's own loss."""
    example = make_example(choice, TOKENIZER, 64)
    changes = []
    for row in example.stories:
        ids = torch.tensor(row)
        losses = []
        for strength in (0, 1):
            set_adapter_strength(model, strength, "taste")
            logits = model(ids[None, :-1])[0, example.opening - 1 :]
            losses.append(torch.nn.functional.cross_entropy(logits, ids[example.opening :]))
        changes.append(float(losses[0] - losses[1]))
    return changes[0] > max(changes[1:])


def test_the_model_itself_stays_as_it_is(tmp_path):
    model = prepare_for_inference(make_model())
    before = {name: one.clone() for name, one in model.state_dict().items()}
    learned = learn(tmp_path, model=model)
    assert adapter_names(model) == []
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())
    load_adapter(model, learned.folder, "taste")
    changed = generate(model, torch.tensor([[5, 6]]), 20, 64)
    set_adapter_strength(model, 0, "taste")
    plain = generate(model, torch.tensor([[5, 6]]), 20, 64)
    assert torch.equal(plain, generate(make_model(), torch.tensor([[5, 6]]), 20, 64))
    assert not torch.equal(plain, changed)


def test_a_seed_gives_the_same_adapter_and_each_has_its_own_folder(tmp_path):
    folders = [learn(tmp_path).folder for _ in range(2)]
    assert [path.name for path in taste_folders(tmp_path)] == ["taste-1", "taste-2"]
    assert [str(path) for path in taste_folders(tmp_path)] == folders
    assert same_weights(*taste_folders(tmp_path))
    (tmp_path / "taste-2").rename(tmp_path / "taste-10")
    assert newest_taste(tmp_path).name == "taste-10"
    figures = json.loads((tmp_path / "taste-1" / "learned.json").read_text())
    assert figures["folder"] == folders[0]
    assert figures["choices"] == 24


def same_weights(one: Path, other: Path) -> bool:
    """Whether two adapters are equal to the last bit."""
    first, second = (load_file(path / "adapter_model.safetensors") for path in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_learning_again_starts_from_the_plain_model(tmp_path):
    model = make_model()
    first = learn(tmp_path, model=model)
    load_adapter(model, first.folder, "taste")
    set_adapter_strength(model, 0.5, "taste")
    second = learn(tmp_path, model=model)
    assert same_weights(*taste_folders(tmp_path))
    assert second.divergence == first.divergence


@pytest.mark.parametrize("number", [0, 1, 9])
def test_fewer_than_ten_choices_are_too_few(tmp_path, number):
    with pytest.raises(ValueError, match=f"{number} choice.* make {10 - number} more"):
        learn(tmp_path, make_choices(number))
    assert not list(tmp_path.iterdir())


def test_choices_that_do_not_fit_are_left_out_and_counted(tmp_path, capsys):
    long = Choice(["a", "b"], 0, opening="long " * 100)
    learned = learn(tmp_path, [long, *make_choices(12), long])
    assert (learned.choices, learned.kept_aside, learned.left_out) == (10, 2, 2)
    assert "Left out: 2 choices" in capsys.readouterr().out
    with pytest.raises(ValueError, match="9 choices .2 more do not fit"):
        learn(tmp_path, [long, *make_choices(9), long])


def test_progress_rises_to_the_end(tmp_path):
    seen = []
    learn(tmp_path, on_progress=seen.append, val_stories=["<|start|>The lamp.<|end|>"])
    shares = [progress.done for progress in seen]
    assert len(shares) > 60
    assert shares == sorted(shares)
    assert shares[0] < 0.05 and shares[-1] == pytest.approx(1)
    assert all(progress.seconds_left >= 0 for progress in seen)
    assert "50%" in str(seen[0]._replace(done=0.5))


@pytest.mark.parametrize("steps", [1, 40, 80])
def test_stop_saves_nothing_and_keeps_what_there_was(tmp_path, capsys, steps):
    for choice in make_choices(12):
        append_choice(tmp_path, choice)
    chosen = (tmp_path / "choices.jsonl").read_bytes()
    learn(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    calls = []
    stop = lambda: len(calls) >= steps  # noqa: E731
    assert learn(tmp_path, on_progress=calls.append, should_stop=stop) is None
    assert len(calls) == steps
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before
    assert chosen == (tmp_path / "choices.jsonl").read_bytes()
    assert "stopped" in capsys.readouterr().out


def test_learning_ends_within_the_bound_of_divergence(tmp_path, capsys):
    free = learn(tmp_path / "free")
    bound = free.divergence / 3
    settings = replace(QUICK, max_divergence=bound)
    model = make_model()
    learned = learn(tmp_path / "bound", settings=settings, model=model)
    assert learned.reached_bound and not free.reached_bound
    assert "ended early" in capsys.readouterr().out
    assert learned.divergence <= bound
    load_adapter(model, learned.folder, "taste")
    examples = [make_example(choice, TOKENIZER, 64) for choice in make_choices(20, seed=3)]
    total = sum(divergence(model, "taste", row, one.opening)
                for one in examples for row in one.stories)  # fmt: skip
    tokens = sum(len(row) - one.opening for one in examples for row in one.stories)
    assert total / tokens < 1.5 * bound


@torch.no_grad()
def test_the_anchor_keeps_the_stories_probable(tmp_path):
    """All stories lose without it, though one of each pair less than the other."""
    means = {}
    for anchor in (0, 3):
        model = make_model()
        learned = learn(tmp_path, settings=replace(QUICK, anchor=anchor), model=model)
        load_adapter(model, learned.folder, "taste")
        examples = [make_example(choice, TOKENIZER, 64) for choice in make_choices(10, seed=4)]
        logs = [log_probability(model, row, one.opening) for one in examples for row in one.stories]
        means[anchor] = float(torch.stack(logs).mean())
    assert means[3] > means[0] + 1


def learn_on_and_on(folder, made) -> None:
    torch.set_num_threads(1)
    while True:
        learn(folder, make_choices(12))
        made.value += 1


def test_kill_9_leaves_whole_adapters_and_all_choices(tmp_path):
    for choice in make_choices(12):
        append_choice(tmp_path, choice)
    learn(tmp_path)
    processes = multiprocessing.get_context("fork")
    chance = random.Random(5)
    made = processes.Value("i", 0)
    for _ in range(6):
        process = processes.Process(target=learn_on_and_on, args=(tmp_path, made))
        process.start()
        time.sleep(chance.uniform(0.1, 0.8))
        process.kill()
        process.join()
        for path in taste_folders(tmp_path):
            load_adapter(make_model(), path)
        assert len(taste_folders(tmp_path)) >= 1 + made.value
    assert len(read_choices(tmp_path).choices) == 12
    number = len(taste_folders(tmp_path))
    assert learn(tmp_path).folder.endswith(f"taste-{number + 1}")
    assert not (tmp_path / "taste.part").exists()


def test_the_learning_gives_way_between_stories(tmp_path):
    """A page that calls `next` itself gets the figures at the end."""
    steps = learn_steps(make_model(), TOKENIZER, make_choices(12), tmp_path, settings=QUICK)
    while True:
        try:
            assert 0 < next(steps).done <= 1
        except StopIteration as end:
            assert end.value.folder == str(tmp_path / "taste-1")
            break


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": 0}, "beta is 0"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'"),
        ({"trained": 0}, "trained is 0"),
        ({"anchor": -1}, "anchor is -1"),
        ({"kept_aside": 0.9}, "kept_aside is 0.9"),
    ],
)
def test_wrong_settings_get_a_sentence(changes, message):
    with pytest.raises(ValueError, match=message):
        PreferenceSettings(**changes)


def test_an_adapter_for_another_model_is_refused(tmp_path):
    learned = learn(tmp_path)
    torch.manual_seed(8)
    other = GPTModel(CONFIG)
    with pytest.raises(ValueError, match="another model"):
        load_adapter(other, learned.folder)
    assert base_fingerprint(other) != base_fingerprint(make_model())
