"""The loss of DPO, against trl's, and its parts, against transformers and torch.distributions."""

import copy

import pytest
import torch
import transformers
import trl
from datasets import Dataset
from helpers import SHARP_CONFIG

from golpo.choices import Choice
from golpo.dpo import divergence, dpo_loss, log_probability, make_example, trainable_copy
from golpo.huggingface import export_hf
from golpo.inference import prepare_for_inference
from golpo.lora import adapter_parameters, add_adapter, set_adapter_strength
from golpo_utils import START, TITLE, TITLE_END, GPTModel, get_tokenizer, text_to_token_ids

CONFIG = {**SHARP_CONFIG, "vocab_size": 300, "context_length": 64}
TOKENIZER = get_tokenizer(300)
OPENING = [295, 5, 9]
LIKED = [7, 200, 11, 3, 99]
OTHER = [42, 42, 8]


def make_model(seed=3) -> GPTModel:
    torch.manual_seed(seed)
    return GPTModel(CONFIG).eval()


def adapted(model: GPTModel, name="taste", seed=1) -> GPTModel:
    add_adapter(model, name, rank=4)
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter_parameters(model, name):
        parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def as_transformers(model: GPTModel, folder) -> transformers.GPT2LMHeadModel:
    export_hf(model, TOKENIZER, folder)
    return transformers.GPT2LMHeadModel.from_pretrained(folder).eval()


@torch.no_grad()
@pytest.mark.parametrize("by_length", [False, True])
def test_log_probability_is_that_of_transformers(tmp_path, by_length):
    model = make_model()
    theirs = as_transformers(model, tmp_path)
    ids = torch.tensor([OPENING + LIKED])
    labels = ids.clone()
    labels[:, : len(OPENING)] = -100
    mean = -theirs(ids, labels=labels).loss
    expected = mean if by_length else mean * len(LIKED)
    ours = log_probability(model, OPENING + LIKED, len(OPENING), by_length)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(("kind", "by_length"), [("sigmoid", False), ("sigmoid_norm", True)])
def test_the_loss_and_its_gradient_are_those_of_trl(tmp_path, kind, by_length):
    start, model = make_model(), make_model(seed=4)
    theirs = as_transformers(model, tmp_path / "model")
    their_start = as_transformers(start, tmp_path / "start")
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    their_tokenizer.pad_token = their_tokenizer.eos_token
    options = trl.DPOConfig(
        str(tmp_path), beta=0.3, loss_type=kind, use_cpu=True, report_to="none", bf16=False
    )  # fmt: skip
    data = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    trainer = trl.DPOTrainer(
        theirs, their_start, options, train_dataset=data, processing_class=their_tokenizer
    )
    pair = {"prompt_ids": OPENING, "chosen_ids": LIKED, "rejected_ids": OTHER}
    expected = trainer.compute_loss(theirs.eval(), trainer.data_collator([pair]))
    expected.backward()

    def both(one: GPTModel) -> list[torch.Tensor]:
        stories = (OPENING + LIKED, OPENING + OTHER)
        return [log_probability(one, ids, len(OPENING), by_length) for ids in stories]

    liked, other = both(model)
    with torch.no_grad():
        liked_start, other_start = both(start)
    loss = dpo_loss(liked, other[None], liked_start, other_start[None], beta=0.3)
    loss.backward()
    assert abs(float(loss.detach()) - 0.6931) > 0.01, "both models are the same"
    torch.testing.assert_close(loss.detach(), expected.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        model.pos_emb.weight.grad, theirs.transformer.wpe.weight.grad, rtol=1e-3, atol=1e-5
    )


def test_the_loss_of_several_others_is_the_mean_of_the_pairs():
    """Log-probabilities that are easy to count by hand."""
    numbers = torch.tensor([-9.0, -12.0, -10.0])
    start = torch.tensor([-10.0, -11.0, -10.5])  # gains 1, -1, 0.5
    loss = dpo_loss(numbers[0], numbers[1:], start[0], start[1:], beta=0.5)
    pairs = [torch.log1p(torch.exp(torch.tensor(-0.5 * gap))) for gap in (2.0, 0.5)]
    torch.testing.assert_close(loss, sum(pairs) / 2)
    no_change = dpo_loss(start[0], start[1:], start[0], start[1:], beta=0.5)
    torch.testing.assert_close(no_change, torch.tensor(2.0).log())


@torch.no_grad()
def test_divergence_is_that_of_torch():
    model = adapted(make_model())
    ids = OPENING + LIKED
    tuned, plain = (one(torch.tensor([ids[:-1]]))[0, 2:] for one in (model, make_model()))
    tuned, plain = (torch.distributions.Categorical(logits=one) for one in (tuned, plain))
    expected = torch.distributions.kl_divergence(tuned, plain).sum()
    found = divergence(model, "taste", ids, len(OPENING))
    assert found == pytest.approx(float(expected), rel=1e-4)
    assert found > 0.1
    new = make_model()
    add_adapter(new, "taste")
    assert divergence(new, "taste", ids, len(OPENING)) == 0


def test_an_example_begins_with_the_liked_story():
    stories = ["one<|end|>", "two", "three"]
    choice = Choice(stories, liked=1, opening="Once", title="The Lamp")
    example = make_example(choice, TOKENIZER, 64)
    text = f"{START}\n{TITLE}The Lamp{TITLE_END}\n\nOnce"
    texts = [TOKENIZER.decode(row) for row in example.stories]
    assert texts == [text + story for story in ("two", "one<|end|>", "three")]
    assert TOKENIZER.decode(example.stories[0][: example.opening]) == text
    assert example.stories[1][-1] == text_to_token_ids("<|end|>", TOKENIZER)[0, -1]


def test_a_request_stands_before_the_title():
    stories = ["one", "two"]
    choice = Choice(stories, liked=0, opening="Once", title="The Lamp", request="Hero: Mia")
    example = make_example(choice, TOKENIZER, 128)
    text = f"{START}\nHero: Mia\n{TITLE}The Lamp{TITLE_END}\n\nOnce"
    assert [TOKENIZER.decode(row) for row in example.stories] == [text + one for one in stories]
    assert example.opening == len(text_to_token_ids(text, TOKENIZER)[0])
    with pytest.raises(ValueError, match="Colour"):
        make_example(Choice(stories, 0, request="Colour: red"), TOKENIZER, 128)


def test_stories_end_where_the_context_does():
    choice = Choice(["x y " * 100, "a b " * 100], liked=0)
    example = make_example(choice, TOKENIZER, 64)
    assert [len(row) for row in example.stories] == [65, 65]
    assert torch.isfinite(log_probability(make_model(), example.stories[0], example.opening))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice(["a", "b"], 0, opening="word " * 100), "the context 64"),
        (Choice(["a", ""], 0), "empty"),
        (Choice(["same " * 90 + "a", "same " * 90 + "b"], 0), "equals"),
    ],
)
def test_choices_that_do_not_fit_are_refused(choice, message):
    with pytest.raises(ValueError, match=message):
        make_example(choice, TOKENIZER, 64)


@pytest.mark.parametrize("prepared", [False, True])
def test_a_trainable_copy_computes_the_same_and_leaves_the_model_alone(prepared):
    model = adapted(adapted(make_model(), "own"), "taste", seed=2)
    set_adapter_strength(model, 0.5, "own")
    set_adapter_strength(model, 0, "taste")
    if prepared:
        prepare_for_inference(model)
    ids = torch.tensor([OPENING + LIKED])
    with torch.no_grad():
        expected = model(ids)
    before = copy.deepcopy({name: one.clone() for name, one in model.state_dict().items()})
    second = trainable_copy(model, without="taste")
    add_adapter(second, "taste", rank=2)
    learned = {id(parameter) for parameter in adapter_parameters(second, "taste")}
    assert {id(one) for one in second.parameters() if one.requires_grad} == learned
    torch.testing.assert_close(second(ids), expected, atol=1e-4, rtol=1e-4)
    weight = second.trf_blocks[0].ff.layers[0].weight
    assert weight.data_ptr() == model.trf_blocks[0].ff.layers[0].weight.data_ptr()
    second(ids).sum().backward()
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_8_bit_weights_cannot_learn():
    with pytest.raises(ValueError, match="without quantize"):
        trainable_copy(prepare_for_inference(make_model(), quantize=True), without="taste")
