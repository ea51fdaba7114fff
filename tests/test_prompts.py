"""The benchmark of natural prompts: what it measures, and that it notices a wrong tokenizer."""

import sys
from pathlib import Path

import pytest
import torch

from golpo.tokenizer import train_tokenizer
from golpo_utils import GPTModel, get_tokenizer

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))
import prompts

pytestmark = pytest.mark.usefixtures("one_thread")
STORIES = [
    "<|start|>\n<|title|>The Lost Key</|title|>\n\nOnce there was a key.\n\nIt was lost.\n<|end|>",
    "<|start|>\n<|title|>Mina's boat</|title|>\n\nMina had a boat. It sank.\n<|end|>",
]


def make_storyteller(kind: str):
    """A model with random weights, for GPT-2's tokenizer (cut) or for one of its own."""
    tokenizer = get_tokenizer(1000) if kind == "cut" else train_tokenizer(STORIES * 20, 300)
    torch.manual_seed(2)
    config = {
        "vocab_size": tokenizer.n_vocab,
        "context_length": 128,
        "emb_dim": 32,
        "n_heads": 2,
        "n_layers": 1,
        "drop_rate": 0.0,
        "qkv_bias": False,
        "init_std": 0.3,
    }
    return GPTModel(config).eval(), tokenizer


@pytest.mark.parametrize("kind", ["own", "cut"])
def test_a_prompt_costs_what_the_words_cost_in_the_whole_story(tmp_path, kind):
    """Here and in transformers; the words are those that follow the prompts."""
    model, tokenizer = make_storyteller(kind)
    cases = prompts.collect_cases(iter(STORIES), 2, model, tokenizer)
    words = ["\n<|title|>The", "<|title|>The", "\n\nOnce", "Once", " a"]
    assert [tokenizer.decode(case.next_ids) for case in cases[:5]] == words
    expected = [case.in_story for case in cases]
    for score in (prompts.score_here, prompts.score_transformers):
        losses = score(model, tokenizer, cases, tmp_path)
        assert list(map(sum, losses)) == pytest.approx(expected, rel=1e-4)


def test_a_client_that_joins_line_breaks_is_noticed():
    """GPT-2's own rule makes one token of those at the end of a prompt."""
    model, tokenizer = make_storyteller("cut")
    cases = prompts.collect_cases(iter(STORIES), 2, model, tokenizer)
    for case in cases:
        ids = tokenizer.encode(case.prompt, allowed_special="all") + case.next_ids
        nats = sum(prompts.nats_of(model, ids, len(case.next_ids)))
        is_joined = case.prompt.endswith("\n\n")
        assert (nats != pytest.approx(case.in_story, rel=0.05)) == is_joined, case.kind


def test_stories_that_cannot_be_cut_are_left_out():
    model, tokenizer = make_storyteller("cut")
    short = "<|start|>\n<|title|>A title</|title|>\n\nToo short.\n<|end|>"
    untitled = "<|start|>\nOnce there was a key.\n<|end|>"
    cases = prompts.collect_cases(iter([short, untitled, *STORIES]), 1, model, tokenizer)
    assert {case.prompt for case in cases if "Lost Key" in case.prompt}
    assert len(cases) == 5
    with pytest.raises(SystemExit, match="no story"):
        prompts.collect_cases(iter([short, untitled]), 1, model, tokenizer)
