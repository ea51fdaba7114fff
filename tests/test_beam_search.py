"""Beam search: the sequences and scores of Hugging Face's, and the same from every cache."""

import itertools
import math

import pytest
import torch
import transformers

from golpo.beam_search import beam_search
from golpo.beam_stories import beam_story
from golpo.huggingface import export_hf
from golpo.inference import load_storyteller, prepare_for_inference
from golpo.static_decoding import StaticSteps
from golpo_utils import END, GPTModel, encode, generate, get_tokenizer, story_opening

CONFIG = {
    "vocab_size": 300,
    "context_length": 64,
    "emb_dim": 32,
    "n_heads": 4,
    "n_layers": 1,
    "drop_rate": 0.1,
    "qkv_bias": False,
    "init_std": 0.3,
}
pytestmark = pytest.mark.usefixtures("one_thread")
PROMPT = [3, 14, 15, 92, 65]
NEW = 16


def make_model(vocab_size: int = 300) -> GPTModel:
    torch.manual_seed(5)
    return GPTModel({**CONFIG, "vocab_size": vocab_size}).eval()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """One model with random weights, here and in transformers."""
    folder = tmp_path_factory.mktemp("hf")
    model = make_model()
    export_hf(model, get_tokenizer(300), str(folder))
    return model, transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def likely_end(model: GPTModel, prompts: torch.Tensor) -> int:
    """A token that beams reach early, so that some of them end."""
    found = beam_search(model, prompts, NEW, 64, num_beams=8).ids[:, :, prompts.shape[1] + 3 :]
    return int(found.flatten().mode().values)


def theirs_of(model, prompts, num_beams, eos_id=None, **settings) -> tuple[list, list]:
    """Their sequences and scores for each row, the best first, without what follows an end."""
    out = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=NEW,
        do_sample=False,
        num_beams=num_beams,
        num_return_sequences=num_beams,
        eos_token_id=eos_id,
        pad_token_id=299,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        **settings,
    )
    t = prompts.shape[1]
    texts = [cut(row[t:].tolist(), [eos_id, 299, -1]) for row in out.sequences]
    if num_beams > 1:
        scores = out.sequences_scores
    else:  # greedy search returns no scores; they are sums over its own tokens
        logs = torch.stack(out.logits, dim=1).log_softmax(dim=-1)  # (b, new, v)
        each = logs.gather(2, out.sequences[:, t:, None])[:, :, 0]
        lengths = [min(len(text) + 1, NEW) for text in texts]
        penalty = settings.get("length_penalty", 1.0)
        scores = [float(row[:n].sum()) / n**penalty for row, n in zip(each, lengths, strict=True)]
    return texts, list(map(float, scores))


def cut(ids: list[int], ends: list) -> list[int]:
    return list(itertools.takewhile(lambda token: token not in ends, ids))


@pytest.mark.parametrize("num_beams", [1, 2, 4, 8])
@pytest.mark.parametrize(
    ("settings", "ends"),
    [
        ({}, False),
        ({}, True),
        ({"length_penalty": 0.5}, True),
        ({"length_penalty": 2.0}, True),
        ({"no_repeat_ngram_size": 3}, True),
        ({"no_repeat_ngram_size": 1, "length_penalty": -1.0}, True),
    ],
    ids=str,
)
def test_sequences_and_scores_are_those_of_transformers(pair, num_beams, settings, ends):
    ours, theirs = pair
    prompts = torch.tensor([PROMPT, PROMPT[::-1], [7] * 5])
    eos_id = likely_end(ours, prompts) if ends else None
    found = beam_search(ours, prompts, NEW, 64, num_beams=num_beams, eos_id=eos_id, **settings)
    texts, scores = theirs_of(theirs, prompts, num_beams, eos_id, **settings)
    new = found.ids[:, :, len(PROMPT) :].flatten(0, 1).tolist()
    lengths = set()
    for mine, expected in zip(new, texts, strict=True):
        assert cut(mine, [eos_id]) == expected
        lengths.add(len(expected))
    torch.testing.assert_close(found.scores.flatten(), torch.tensor(scores), rtol=1e-4, atol=1e-4)
    if settings == {} and num_beams > 1:
        assert (min(lengths) < NEW) == ends, "the end was meant to be reached"


def test_a_stop_sequence_ends_a_beam_as_a_stopping_criterion_of_transformers_does(pair):
    ours, theirs = pair
    prompts = torch.tensor([PROMPT])
    plain = beam_search(ours, prompts, NEW, 64, num_beams=4).ids[0, 0, len(PROMPT) :].tolist()
    stop = plain[6:8]

    def ends_in_stop(ids, scores, **_):
        return (ids[:, -2:] == torch.tensor(stop)).all(dim=-1)

    criteria = transformers.StoppingCriteriaList([ends_in_stop])
    texts, scores = theirs_of(theirs, prompts, 4, stopping_criteria=criteria)
    found = beam_search(ours, prompts, NEW, 64, num_beams=4, eos_sequence=stop)
    short = 0
    for mine, expected in zip(found.ids[0, :, len(PROMPT) :].tolist(), texts, strict=True):
        assert mine[: len(expected)] == expected
        assert set(mine[len(expected) :]) <= {expected[-1]}
        short += expected[-2:] == stop
    assert short
    torch.testing.assert_close(found.scores[0], torch.tensor(scores), rtol=1e-4, atol=1e-4)
    both = beam_search(ours, prompts, NEW, 64, num_beams=4, eos_sequence=[stop, [299, 298]])
    assert torch.equal(both.ids, found.ids)


def test_one_beam_is_generate_without_a_temperature_past_the_context_too():
    model = make_model()
    prompts = torch.tensor([PROMPT, PROMPT[::-1]])
    for context in (1, 16, 64):
        expected = generate(model, prompts, 100, context)
        assert torch.equal(
            beam_search(model, prompts, 100, context, num_beams=1).ids[:, 0], expected
        )


def test_scores_are_the_log_probabilities_of_the_sequences():
    """Computed again from whole sequences, without a cache."""
    model = make_model()
    found = beam_search(model, torch.tensor([PROMPT]), NEW, 64, num_beams=8, length_penalty=1.0)
    logs = model(found.ids[0, :, :-1]).log_softmax(dim=-1)  # (8, t, v)
    each = logs.gather(2, found.ids[0, :, 1:, None])[:, len(PROMPT) - 1 :, 0]
    torch.testing.assert_close(found.scores[0], each.mean(dim=1), rtol=1e-4, atol=1e-4)
    assert len({tuple(row) for row in found.ids[0].tolist()}) == 8
    assert found.scores[0].tolist() == sorted(found.scores[0].tolist(), reverse=True)


@pytest.mark.parametrize("kind", ["prepared", "static"])
def test_prepared_models_find_the_same(kind):
    """The flat decoder of a CPU, and the static shapes that a GPU's graph needs."""
    plain, model = make_model(), make_model()
    if kind == "prepared":
        model = prepare_for_inference(model)
    else:
        model.make_decoder = StaticSteps(model).make_decoder
    prompts = torch.tensor([PROMPT, PROMPT[::-1]])
    expected = beam_search(plain, prompts, 40, 32, num_beams=4)
    found = beam_search(model, prompts, 40, 32, num_beams=4)
    assert torch.equal(found.ids, expected.ids)
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-4)


def test_no_run_of_three_tokens_occurs_twice_and_padded_ids_are_never_taken():
    model = make_model()
    model.usable_ids = 290
    with torch.no_grad():
        model.out_head.weight[290:] *= 10
    settings = {"num_beams": 4, "no_repeat_ngram_size": 3}
    ids = beam_search(model, torch.tensor([PROMPT]), 120, 64, **settings).ids[0, 0].tolist()
    runs = [tuple(ids[i : i + 3]) for i in range(len(ids) - 2)]
    assert len(runs) == len(set(runs)) == 123
    assert max(ids[len(PROMPT) :]) < 290


def test_the_model_stays_in_the_mode_it_was_in():
    model = make_model().train()
    first = beam_search(model, torch.tensor([PROMPT]), 8, 64, num_beams=2)
    assert model.training
    again = beam_search(model.eval(), torch.tensor([PROMPT]), 8, 64, num_beams=2)
    assert torch.equal(first.ids, again.ids)  # no dropout


def test_a_story_of_the_bundled_model_ends_and_is_likelier_than_the_greedy_one():
    model, tokenizer, _ = load_storyteller("bundled")
    opening = torch.tensor([story_opening(tokenizer, "Once", "The Lost Key")])
    end = encode(END, tokenizer)
    found = {
        n: beam_search(model, opening, 60, 512, num_beams=n, length_penalty=0, eos_sequence=end)
        for n in (1, 4)
    }
    assert found[4].scores[0, 0] > found[1].scores[0, 0]
    text = beam_story(
        model, tokenizer, "Once", title="The Lost Key", max_new_tokens=60, length_penalty=0
    )
    expected = tokenizer.decode(found[4].ids[0, 0, opening.shape[1] :].tolist())
    assert text == expected.partition(END)[0]
    assert text and END not in text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_beams": 0}, "num_beams is 0"),
        ({"num_beams": 2.0}, "num_beams is 2.0"),
        ({"num_beams": 151}, "num_beams is 151; it must be a whole number from 1 to 150"),
        ({"num_beams": 2, "length_penalty": math.nan}, "length_penalty is nan"),
        ({"num_beams": 2, "no_repeat_ngram_size": -1}, "no_repeat_ngram_size is -1"),
        ({"num_beams": 2, "eos_sequence": []}, "an id of a stop sequence is None"),
        ({"num_beams": 2, "eos_id": -1}, "eos_id is -1"),
    ],
)
def test_wrong_settings_are_named(settings, words):
    with pytest.raises(ValueError, match=words):
        beam_search(make_model(), torch.tensor([PROMPT]), 4, 64, **settings)


def test_wrong_ids_lengths_and_weights_are_named():
    model = make_model()
    with pytest.raises(ValueError, match="idx is"):
        beam_search(model, torch.tensor([[300]]), 4, 64, num_beams=2)
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        beam_search(model, torch.tensor([PROMPT]), 0, 64, num_beams=2)
    with torch.no_grad():
        model.out_head.weight[:] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        beam_search(model, torch.tensor([PROMPT]), 4, 64, num_beams=2)
