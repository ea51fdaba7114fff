"""From scores to tokens to stories: against Hugging Face's processors and against naive loops."""

import math
import random

import numpy as np
import pytest
import torch
from helpers import SHARP_CONFIG, tell_these
from transformers import LogitsProcessorList
from transformers.generation import logits_process as hugging_face

from golpo_utils import (
    GPTModel,
    Sampling,
    encode,
    generate,
    get_tokenizer,
    next_token_probabilities,
    sample_token,
    story_opening,
    stream_story,
)

# ---- one step: scores to probabilities, probabilities to a token


@pytest.mark.parametrize(
    "temperature, top_k, top_p, min_p, penalty",
    [
        (0.7, None, None, None, 1.0),
        (1.0, 5, None, None, 1.0),
        (1.0, None, 0.6, None, 1.0),
        (1.0, None, None, 0.2, 1.0),
        (1.0, None, None, None, 1.7),
        (0.5, 40, 0.9, 0.05, 1.3),
        (1.8, 3, 0.5, 0.5, 0.8),
        (1.0, None, 1e-6, None, 1.0),
        (1.3, 500, 0.999, 1e-4, 1.1),
        (1.0, 1, None, None, 1.0),
        (0.9, 0, 1.0, 0.0, 1.0),
    ],
)
def test_probabilities_are_hugging_faces(temperature, top_k, top_p, min_p, penalty):
    torch.manual_seed(11)
    logits, told = 3 * torch.randn(4, 300), torch.randint(0, 300, (4, 60))
    steps = [
        hugging_face.RepetitionPenaltyLogitsProcessor(penalty),
        hugging_face.TemperatureLogitsWarper(temperature),
    ]
    if top_k:
        steps.append(hugging_face.TopKLogitsWarper(top_k))
    if top_p is not None and top_p < 1:
        steps.append(hugging_face.TopPLogitsWarper(top_p))
    if min_p:
        steps.append(hugging_face.MinPLogitsWarper(min_p))
    expected = LogitsProcessorList(steps)(told, logits.clone()).softmax(dim=-1)
    seen = torch.zeros(4, 300, dtype=torch.bool).scatter(1, told, True)
    sampling = Sampling(temperature, top_k, top_p, min_p, penalty)
    torch.testing.assert_close(
        next_token_probabilities(logits, sampling, seen), expected, rtol=0, atol=1e-6
    )


def test_temperature_zero_takes_the_likeliest_and_a_tiny_one_too():
    logits = torch.tensor([[1.0, 4.0, 3.9], [-5.0, -7.0, -6.0]])
    for temperature in (0, 1e-40):
        chosen = next_token_probabilities(logits, Sampling(temperature))
        assert chosen.tolist() == [[0, 1, 0], [1, 0, 0]]


def test_draw_gives_each_token_its_share_and_the_impossible_none():
    probabilities = torch.tensor([[0.0, 0.5, 0.0, 0.3, 0.2, 0.0]])
    uniform = torch.linspace(0, 1, 100_001, dtype=torch.float64)[:-1]
    drawn = sample_token(probabilities.expand(len(uniform), -1), uniform)
    shares = torch.bincount(drawn.flatten(), minlength=6) / len(uniform)
    torch.testing.assert_close(shares, probabilities[0], rtol=0, atol=2e-5)
    assert shares[[0, 2, 5]].sum() == 0
    assert sample_token(probabilities, torch.tensor([1 - 1e-16], dtype=torch.float64)).item() == 4


@pytest.mark.parametrize("damage", [math.nan, math.inf])
def test_scores_that_are_not_numbers_are_refused(model, damage):
    broken = GPTModel(SHARP_CONFIG)
    broken.final_norm.shift.data.fill_(damage)
    with pytest.raises(ValueError, match="NaN"):
        generate(broken, torch.tensor([[1, 2]]), 3, 16)


@pytest.mark.parametrize(
    "setting, value",
    [
        ("temperature", -1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "hot"),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_p", -0.1),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("min_p", -0.1),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("repetition_penalty", -1),
        ("max_new_tokens", -1),
        ("max_new_tokens", 1.5),
    ],
)
def test_settings_out_of_range_are_refused_by_name_and_value(model, storyteller, setting, value):
    with pytest.raises(ValueError, match=f"{setting}.*{value}"):
        generate(
            model, torch.tensor([[1]]), **{"max_new_tokens": 2, "context_size": 16, setting: value}
        )
    with pytest.raises(ValueError, match=f"{setting}.*{value}"):
        next(stream_story(*storyteller, **{setting: value}))


@pytest.mark.parametrize(
    "idx",
    [
        torch.zeros(1, 0, dtype=torch.long),
        torch.tensor([1, 2]),
        torch.tensor([[97]]),
        torch.tensor([[-1]]),
        torch.tensor([[1.0, 2.0]]),
        torch.tensor([[True]]),
        [[1, 2]],
        None,
    ],
    ids=["empty", "no rows", "too high", "negative", "float", "bool", "list", "None"],
)
def test_ids_that_cannot_be_are_refused(model, idx):
    with pytest.raises(ValueError, match="idx is .*; it must be .* ids from 0 to 96"):
        generate(model, idx, 2, 16)


@pytest.mark.parametrize(
    "name, value",
    [
        ("seed", 2**64),
        ("seed", -(2**63) - 1),
        ("seed", 1.5),
        ("seed", "abc"),
        ("prompt", None),
        ("prompt", b"Once"),
        ("title", b"The Fox"),
        ("title", 3),
        ("stop", 3),
        ("stop", (b"river",)),
        ("stop", ""),
        ("stop", ("a", "")),
    ],
)
def test_values_of_another_kind_are_named_in_one_sentence(storyteller, name, value):
    with pytest.raises(ValueError) as found:
        list(stream_story(*storyteller, max_new_tokens=3, **{name: value}))
    text = str(found.value)
    assert name in text and repr(value) in text and "must be" in text and "\n" not in text


@pytest.mark.parametrize(
    "name, value",
    [
        ("eos_sequence", 5),
        ("eos_sequence", "ab"),
        ("eos_sequence", []),
        ("eos_sequence", [[]]),
        ("eos_sequence", [[1], []]),
        ("eos_sequence", [1.5]),
        ("eos_sequence", ["a"]),
        ("eos_sequence", [[1], 2]),
        ("eos_sequence", [1, [2]]),
        ("eos_sequence", [[1], [None]]),
        ("eos_sequence", {1: 2}),
        ("eos_sequence", iter([1])),
        ("eos_sequence", torch.tensor([1])),
        ("eos_sequence", [-1]),
        ("eos_sequence", [True]),
        ("eos_id", "x"),
        ("eos_id", 1.5),
        ("eos_id", -1),
        ("eos_id", [1]),
        ("model", None),
        ("model", "bundled"),
        ("context_size", None),
        ("context_size", 0),
        ("max_new_tokens", "3"),
        ("temperature", None),
        ("temperature", [1]),
        ("top_k", ""),
        ("top_k", False),
        ("min_p", []),
        ("repetition_penalty", None),
        ("seed", [1]),
    ],
)
def test_arguments_of_another_kind_are_named_in_one_sentence(model, name, value):
    """F: a sentence for each argument of `generate`, and not an error from the depths."""
    given = {"model": model, "idx": torch.tensor([[1]]), "max_new_tokens": 2, "context_size": 16}
    with pytest.raises(ValueError) as found:
        generate(**{**given, name: value})
    text = str(found.value)
    called = "stop sequence" if name == "eos_sequence" else name
    assert called in text and "must be" in text and "\n" not in text


def test_a_seed_and_stops_may_be_of_numpy_and_tuples(model):
    """F: what is refused is what has no meaning."""
    idx = torch.tensor([[1, 2]])
    expected = generate(model, idx, 9, 16, 1.0, seed=3)
    assert torch.equal(generate(model, idx, 9, 16, 1.0, seed=np.int64(3)), expected)
    stop = tuple(expected[0, 5:7].tolist())
    found = generate(model, idx, 9, 16, 1.0, seed=3, eos_sequence=stop)
    assert torch.equal(found, expected[:, : found.shape[1]]) and found.shape[1] < 12
    several = generate(model, idx, 9, 16, 1.0, seed=3, eos_sequence=(list(stop), (96, 96, 96)))
    assert torch.equal(several, found)


def test_a_tokenizer_of_another_model_is_named(storyteller):
    """F: it would give ids that the model lacks, or meet ids that it lacks itself."""
    with pytest.raises(ValueError, match="the tokenizer has 4096 tokens, the model 50261; load"):
        next(stream_story(storyteller[0], get_tokenizer(4096)))
    small = GPTModel({**SHARP_CONFIG, "vocab_size": 300})
    with pytest.raises(ValueError, match="the tokenizer has 50261 tokens, the model 300; load"):
        next(stream_story(small, get_tokenizer()))


@pytest.mark.parametrize("name, value", [("model", None), ("tokenizer", None), ("tokenizer", "x")])
def test_a_story_needs_a_model_and_a_tokenizer(storyteller, name, value):
    """F: they are easily exchanged."""
    given = dict(zip(("model", "tokenizer"), storyteller, strict=True))
    with pytest.raises(ValueError, match=f"the {name}.* is .*; it must be"):
        next(stream_story(**{**given, name: value}))


@pytest.mark.parametrize("config", [None, "laptop", []])
def test_a_config_is_a_dict(config):
    """F: as GPT_CONFIG_124M."""
    with pytest.raises(ValueError, match="the config is .*; it must be a dict such as GPT_CONFIG"):
        GPTModel(config)


def test_a_plain_text_is_one_stop(storyteller):
    """Not one for each of its letters."""
    whole = "".join(stream_story(*storyteller, max_new_tokens=60, seed=4, stop=()))
    stop = whole[20:24]
    first = whole.index(stop)
    assert (
        "".join(stream_story(*storyteller, max_new_tokens=60, seed=4, stop=stop)) == whole[:first]
    )
    assert "".join(stream_story(*storyteller, max_new_tokens=60, seed=4, stop=None)) == whole


# ---- many steps


def naive(model, idx, count, context, choose):
    """Every token from a full forward pass; a window that is full keeps its newest half."""
    model.eval()
    window = idx if idx.shape[1] <= context else idx[:, -max(1, context // 2) :]
    for _ in range(count):
        with torch.no_grad():
            token = choose(model(window)[:, -1])
        idx, window = torch.cat([idx, token], dim=1), torch.cat([window, token], dim=1)
        if window.shape[1] > context:
            window = window[:, -max(1, context // 2) :]
    return idx


@pytest.mark.parametrize(
    "prompt, context", [(1, 16), (5, 16), (16, 16), (40, 16), (3, 7), (9, 1), (2, 99)]
)
def test_greedy_equals_a_naive_loop_past_the_context_too(model, prompt, context):
    idx = torch.randint(0, 97, (3, prompt))
    expected = naive(
        model, idx, 50, min(context, 16), lambda logits: logits.argmax(dim=-1, keepdim=True)
    )
    assert generate(model, idx, 50, context).tolist() == expected.tolist()


def test_sampling_equals_a_naive_loop_past_the_context(model):
    idx, generators = (
        torch.randint(0, 97, (2, 5)),
        [torch.Generator().manual_seed(8 + row) for row in range(2)],
    )
    sampling = Sampling(1.2, 20, 0.9)

    def choose(logits):
        uniform = torch.stack(
            [torch.rand((), generator=g, dtype=torch.float64) for g in generators]
        )
        return sample_token(next_token_probabilities(logits, sampling), uniform)[:, None]

    told = generate(model, idx, 50, 16, 1.2, 20, top_p=0.9, seed=8)
    assert told.tolist() == naive(model, idx, 50, 16, choose).tolist()


def test_a_penalty_counts_the_prompt_and_everything_told(model):
    told = generate(model, torch.tensor([[1, 2, 3]]), 80, 16, repetition_penalty=1e6)[0].tolist()
    assert len(set(told)) == 83


def test_a_seed_repeats_a_story_whatever_else_draws(model):
    idx = torch.tensor([[5, 6]])
    first = generate(model, idx, 30, 16, 1.0, seed=4)
    torch.rand(3)
    assert torch.equal(generate(model, idx, 30, 16, 1.0, seed=4), first)
    assert not torch.equal(generate(model, idx, 30, 16, 1.0, seed=5), first)
    before = torch.get_rng_state()
    generate(model, idx, 5, 16, 1.0, seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    unseeded = generate(model, idx, 30, 16, 1.0)
    assert not torch.equal(generate(model, idx, 30, 16, 1.0), unseeded)


def test_a_row_tells_the_same_in_a_batch_as_alone(model):
    together = generate(model, torch.tensor([[5, 6]] * 3), 30, 16, 1.0, seed=40)
    for row in range(3):
        assert torch.equal(
            generate(model, torch.tensor([[5, 6]]), 30, 16, 1.0, seed=40 + row)[0], together[row]
        )


def test_rows_stop_each_on_its_own(model):
    idx = torch.randint(0, 97, (4, 3), generator=torch.Generator().manual_seed(1))
    free = generate(model, idx, 30, 16, 1.0, seed=3)
    eos = int(free[0, 8])
    stopped = generate(model, idx, 30, 16, 1.0, eos_id=eos, seed=3)
    lengths = []
    for row, full in zip(stopped.tolist(), free.tolist(), strict=False):
        end = full.index(eos, 3) if eos in full[3:] else len(full)
        assert row[:end] == full[:end] and set(row[end:]) <= {eos}
        lengths.append(end)
    assert len(set(lengths)) > 1 and stopped.shape[1] == max(lengths)


def test_rows_stop_after_a_sequence_or_one_of_several(model):
    idx = torch.tensor([[1, 2, 3]])
    free = generate(model, idx, 30, 16, 1.0, seed=3)[0].tolist()
    one = generate(model, idx, 30, 16, 1.0, eos_sequence=free[10:13], seed=3)
    assert one[0].tolist() == free[:13]
    several = generate(model, idx, 30, 16, 1.0, eos_sequence=[free[20:22], free[15:18]], seed=3)
    assert several[0].tolist() == free[:18]
    with pytest.raises(ValueError, match="stop sequence"):
        generate(model, idx, 3, 16, eos_sequence=[])


def test_a_sequence_that_stands_in_the_prompt_stops_nothing(model):
    assert generate(model, torch.tensor([[7, 8]]), 4, 16, eos_sequence=[7, 8]).shape == (1, 6)


def test_no_new_tokens_return_the_prompt_alone(model, storyteller):
    idx = torch.randint(0, 97, (2, 5))
    assert torch.equal(generate(model, idx, 0, 16), idx)
    assert list(stream_story(*storyteller, max_new_tokens=0)) == []


def test_telling_leaves_a_training_model_training(model):
    model.train()
    generate(model, torch.tensor([[1]]), 3, 16)
    assert model.training


# ---- stories


def test_streamed_pieces_are_whole_characters_and_equal_the_full_decoding(monkeypatch, storyteller):
    model, tokenizer = storyteller
    pick = random.Random(0)
    alphabets = [
        (32, 126),
        (0x980, 0x9FF),
        (0x4E00, 0x9FFF),
        (0x1F300, 0x1FAFF),
        (0x200D, 0x200D),
        (1, 0xD7FF),
    ]
    for _ in range(1000):
        text = "".join(
            chr(pick.randint(*pick.choice(alphabets))) for _ in range(pick.randint(1, 25))
        )
        ids = tokenizer.encode_ordinary(text)
        if pick.random() < 0.3:  # the worst case: a token a byte
            ids = [tokenizer.encode_single_token(bytes([byte])) for byte in text.encode()]
        tell_these(monkeypatch, ids)
        pieces = list(stream_story(model, tokenizer, max_new_tokens=len(ids)))
        assert "".join(pieces) == text == tokenizer.decode(ids)
        assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)


def test_half_a_character_at_the_limit_is_marked_as_such(monkeypatch, storyteller):
    halves = [storyteller[1].encode_single_token(bytes([byte])) for byte in "猫猫".encode()[:4]]
    tell_these(monkeypatch, halves)
    assert "".join(stream_story(*storyteller, max_new_tokens=4)) == "猫\N{REPLACEMENT CHARACTER}"


def told_and_why(stream):
    """Everything that a stream yields, in one string, and what it returns."""
    pieces = []
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as stop:
            return "".join(pieces), stop.value


def test_stop_texts_are_held_back_and_left_out(monkeypatch, storyteller):
    tokenizer = storyteller[1]
    ids = tokenizer.encode_ordinary("A fox. The en, The end. More")
    tell_these(monkeypatch, ids)
    stream = stream_story(*storyteller, stop=(" The end.", " never"), max_new_tokens=len(ids))
    assert told_and_why(stream) == ("A fox. The en,", "end")


def test_a_stop_that_never_completes_is_told_in_the_end(monkeypatch, storyteller):
    ids = storyteller[1].encode_ordinary("A fox. The end")
    tell_these(monkeypatch, ids)
    stream = stream_story(*storyteller, stop=(" The end.",), max_new_tokens=len(ids))
    assert told_and_why(stream) == ("A fox. The end", "limit")


@pytest.mark.parametrize("vocab_size", [50257, 50261])
def test_a_story_ends_at_its_marker_be_it_one_token_or_five(monkeypatch, vocab_size):
    tokenizer = get_tokenizer(vocab_size)
    model = GPTModel({**SHARP_CONFIG, "vocab_size": vocab_size})
    tell_these(monkeypatch, encode("He slept.<|end|>\n", tokenizer))
    assert told_and_why(stream_story(model, tokenizer)) == ("He slept.", "end")


def test_markers_that_a_person_types_add_no_special_token_unless_asked_for(storyteller):
    tokenizer = storyteller[1]
    typed = "a<|end|>b</|title|><|start|>"
    plain = story_opening(tokenizer, typed, title="x<|end|>")
    assert [token for token in plain if token >= 50257] == [50257, 50259, 50260]
    asked = story_opening(tokenizer, typed, markers=True)
    assert [token for token in asked if token >= 50257] == [50257, 50258, 50260, 50257]
    assert story_opening(tokenizer, "<|start|>\nThe", markers=True) == encode(
        "<|start|>\nThe", tokenizer
    )


def test_any_prompt_is_continued(storyteller):
    for prompt in ("", "🦊 猫", "<|end|>", "word " * 100, "\n"):
        text = "".join(stream_story(*storyteller, prompt, max_new_tokens=20, seed=1))
        assert text and text == "".join(
            stream_story(*storyteller, prompt, max_new_tokens=20, seed=1)
        )


def test_many_stories_from_one_opening_read_it_once(model, monkeypatch):
    """The opening is computed once, and each story is the one that it would be alone."""
    opening, shapes, hidden = torch.tensor([[5, 9, 2, 30]]), [], GPTModel.hidden_states
    alone = [generate(model, opening, 40, 16, temperature=1.0, seed=3 + row)[0] for row in range(3)]
    monkeypatch.setattr(
        GPTModel,
        "hidden_states",
        lambda self, ids, caches=None: shapes.append(tuple(ids.shape)) or hidden(self, ids, caches),
    )
    together = generate(model, opening.expand(3, -1), 40, 16, temperature=1.0, seed=3)
    assert (
        shapes[:2] == [(1, 4), (3, 1)] and (3, 8) in shapes
    )  # (3, 8): past the context they are three
    assert torch.equal(together, torch.stack(alone))


@pytest.mark.parametrize("size", [4096, 50261, 50257])
def test_an_opening_has_the_tokens_that_stories_begin_with(size):
    """An opening has the tokens that the same text has inside a story, as in training."""
    tokenizer = get_tokenizer(size)
    whole = encode(
        "<|start|>\n<|title|>The Mill</|title|>\n\n"
        "Once there was a mill.\n\nIt stood still.\n<|end|>",
        tokenizer,
    )
    for given in (
        {"title": "The Mill"},
        {"title": "The Mill", "prompt": "Once there was a mill."},
        {"title": "The Mill", "prompt": "Once there was a mill.\n\n"},
        {"prompt": "<|start|>\n<|title|>The Mill</|title|>\n\n", "markers": True},
    ):
        opening = story_opening(tokenizer, **given)
        assert whole[: len(opening)] == opening, given
    untitled = encode("<|start|>\nOnce there was a mill.", tokenizer)
    assert (
        story_opening(tokenizer, "Once there was")
        == untitled[: len(story_opening(tokenizer, "Once there was"))]
    )
