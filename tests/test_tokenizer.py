"""A tokenizer learned from a corpus: its merges, its pieces, its files, and resuming with it."""

import collections
import itertools
import json
import random

import pytest
import tiktoken
import tokenizers
import torch
import transformers
from helpers import tiny_settings, write_stories
from tokenizers import pre_tokenizers

from golpo.errors import CheckpointError
from golpo.hf_tokenizer import write_tokenizer
from golpo.paths import BUNDLED_MODEL
from golpo.runs import resume_training_from_checkpoint, start_fresh_training
from golpo.tokenizer import (
    FIRST_PATTERN,
    PATTERN,
    SPECIAL_TOKENS,
    TokenizerError,
    load_tokenizer,
    make_encoding,
    save_tokenizer,
    tokenizer_from_dict,
    tokenizer_to_dict,
    train_tokenizer,
)
from golpo_utils import encode, get_tokenizer

WORDS = "the owl saw a fox; foxes don't see owls, they'll say 12 or 1850 “words” café".split(" ")
BENGALI = "এক দেশে এক রাজা ছিলেন। র\u200d্যাবিট উদ্\u200cযাপন করল। ক্ষুদ্র পাখিটি গান গায়।"


def make_story(number):
    pick = random.Random(number)
    text = " ".join(pick.choice(WORDS) for _ in range(40))
    return f"<|start|>\n<|title|>The owl {number}</|title|>\n\n{text}.\n\n{text}\n<|end|>\n"


STORIES = [make_story(number) for number in range(200)]


@pytest.fixture(scope="module")
def own():
    return train_tokenizer(STORIES, 400)


def pieces(text):
    split = pre_tokenizers.Split(tokenizers.Regex(PATTERN), behavior="isolated")
    return [piece for piece, _ in split.pre_tokenize_str(text)]


def learn_merges(texts, count):
    """Byte-pair encoding as Sennrich et al. (2016) describe it, without any index."""
    order = [*range(33, 127), *range(161, 173), *range(174, 256)]
    order += [byte for byte in range(256) if byte not in order]
    ids = {bytes([byte]): number for number, byte in enumerate(order)}  # equal counts: lowest ids
    words = collections.Counter(piece for text in texts for piece in pieces(text))
    words = {tuple(bytes([byte]) for byte in word.encode()): n for word, n in words.items()}
    merges = []
    while len(merges) < count:
        pairs = collections.Counter()
        for word, n in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += n
        best = min(pairs, key=lambda pair: (-pairs[pair], ids[pair[0]], ids[pair[1]]))
        merges.append(best[0] + best[1])
        ids[merges[-1]] = len(ids)
        merged = collections.Counter()
        for word, n in words.items():
            new = []
            for part in word:
                # The last part may itself be the pair, which does not merge with its own half.
                if new and new[-1] == best[0] and part == best[1]:
                    new[-1] = merges[-1]
                else:
                    new.append(part)
            merged[tuple(new)] += n
        words = merged
    return merges


def test_a_reference_from_scratch_learns_the_same_merges(own):
    text = [part for story in STORIES for part in without_specials(story)]
    learned = [own.decode_single_token_bytes(number) for number in range(256, 395)]
    assert learned == learn_merges(text, 139)


def without_specials(text):
    for special in SPECIAL_TOKENS:
        text = text.replace(special, "\n")
    return [text]


def test_special_tokens_follow_the_merges_in_the_order_of_get_tokenizer(own):
    gpt2 = get_tokenizer(400)
    assert own.n_vocab == gpt2.n_vocab == 400
    for special in SPECIAL_TOKENS:
        assert own.encode_single_token(special) == gpt2.encode_single_token(special)


def test_texts_are_decoded_to_themselves(own):
    for text in [*STORIES[:5], BENGALI, "\r\n\t 猫 👩‍👩‍👧\x00", "  a  \n\n\n b"]:
        assert own.decode(encode(text, own)) == text


def test_bengali_words_stay_whole():
    assert pieces(BENGALI.replace("।", "")) == [
        word if number == 0 else f" {word}"
        for number, word in enumerate(BENGALI.replace("।", "").split(" "))
    ]
    assert "".join(pieces(BENGALI)) == BENGALI


def test_line_breaks_have_the_same_tokens_at_the_end_and_before_more_text(own):
    for prompt in ("<|start|>\n", "a\n\n", "<|title|>x</|title|>\n\n", "a \n\n\n"):
        ids = encode(prompt, own)
        assert encode(prompt + "The owl", own)[: len(ids)] == ids
    assert encode("\n\n", own) == 2 * encode("\n", own)
    for number in range(256, 395):
        assert b"\n" not in own.decode_single_token_bytes(number)


def gpt2_pieces(own, texts, folder):
    """The ids that a client finds which splits texts by GPT-2's own pattern."""
    write_tokenizer(own, folder, 64)
    client = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert type(client.pre_tokenizer) is pre_tokenizers.Sequence
    client.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return [client.encode(text, add_special_tokens=False).ids for text in texts]


def random_texts(alphabet, count):
    pick = random.Random(1)
    return [
        "".join(pick.choice(alphabet) for _ in range(pick.randint(1, 20))) for _ in range(count)
    ]


def test_clients_with_gpt2s_pattern_find_the_same_ids_in_english(own, tmp_path):
    texts = STORIES[:50] + random_texts([*"aes o w\n\n  \t'st!.,12é”—\r", "the", " owl"], 3000)
    assert [encode(text, own) for text in texts] == gpt2_pieces(own, texts, tmp_path)


def test_transformers_finds_the_same_ids_in_every_script(own, tmp_path):
    write_tokenizer(own, tmp_path, 64)
    client = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    alphabet = [*"aes o\n\n  \t's!১২é\r❤\ufe0f\u0301", "the", *BENGALI]
    texts = [*STORIES[:50], BENGALI, *random_texts(alphabet, 3000)]
    assert [encode(text, own) for text in texts] == [
        client.encode(text, add_special_tokens=False) for text in texts
    ]


def test_a_tokenizer_comes_back_from_data_json_and_checkpoints(own, tmp_path):
    data = tokenizer_to_dict(own)
    torch.save(data, tmp_path / "data.pt")
    save_tokenizer(own, tmp_path / "own.json")
    write_tokenizer(own, tmp_path, 64)
    for again in (
        tokenizer_from_dict(json.loads(json.dumps(data))),
        tokenizer_from_dict(torch.load(tmp_path / "data.pt", weights_only=True)),
        load_tokenizer(tmp_path / "own.json"),
        load_tokenizer(tmp_path / "tokenizer.json"),
    ):
        assert again.name == own.name
        assert tokenizer_to_dict(again) == data
        assert encode(STORIES[0], again) == encode(STORIES[0], own)


def test_a_tokenizer_keeps_the_pattern_that_it_was_learned_with(tmp_path):
    earlier = make_encoding(FIRST_PATTERN, [b"ab"])
    save_tokenizer(earlier, tmp_path / "earlier.json")
    assert load_tokenizer(tmp_path / "earlier.json").name == earlier.name
    assert earlier.name != make_encoding(PATTERN, [b"ab"]).name
    bundled = load_tokenizer(BUNDLED_MODEL / "golpo_tokenizer.json")
    assert load_tokenizer(BUNDLED_MODEL / "tokenizer.json").name == bundled.name


def test_merges_of_another_program_are_read_with_this_projects_ids(tmp_path):
    other = tokenizers.ByteLevelBPETokenizer()
    other.train_from_iterator(STORIES, 350, special_tokens=["<pad>", *SPECIAL_TOKENS])
    other.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path / "tokenizer.json")
    assert ours.n_vocab == 349  # without <pad>
    text = "The owl saw 12 foxes, and they'll say so."
    their_tokens = [other.id_to_token(number) for number in other.encode(text).ids]
    assert [ours.decode([number]) for number in encode(text, ours)] == [
        token.replace("Ġ", " ") for token in their_tokens
    ]


@pytest.mark.parametrize("vocab_size", [0, 260, 260.5, 50257, "many"])
def test_an_impossible_size_is_named(vocab_size):
    with pytest.raises(ValueError, match=f"vocab_size is {vocab_size!r}.*261 to 50256"):
        train_tokenizer(STORIES, vocab_size)


def test_a_corpus_with_too_few_merges_names_the_largest_size():
    with pytest.raises(TokenizerError, match="only 3 merges.*vocab_size 5000.*at most 264"):
        train_tokenizer(["abab abab"], 5000)
    assert train_tokenizer(["abab abab"], 264).n_vocab == 264
    with pytest.raises(TokenizerError, match="only 0 merges.*at most 261"):
        train_tokenizer([], 300)


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "is not JSON"),
        ("[]", "not a tokenizer of this project"),
        ("{}", "not a tokenizer of this project"),
        ('{"pattern": ".", "tokens": ["ab", "ab"]}', "occurs twice"),
        ('{"pattern": ".", "tokens": ["a"]}', "single byte"),
        ('{"pattern": "(", "tokens": ["ab"]}', "not a tokenizer of this project"),
        ('{"pattern": ".", "tokens": [1]}', "not a tokenizer of this project"),
        ('{"model": {"type": "BPE"}}', r"lacks the special tokens <\|endoftext\|>, <\|start\|>"),
        ('{"model": 1, "added_tokens": [1]}', "damaged"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(TokenizerError, match=f"bad.json.*{message}"):
        load_tokenizer(path)


def test_gpt2s_tokenizer_json_lacks_the_special_tokens(tmp_path):
    write_tokenizer(get_tokenizer(50257), tmp_path, 64)
    with pytest.raises(TokenizerError, match=r"lacks the special tokens <\|start\|>, <\|end\|>"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_a_tokenizer_of_gpt2s_has_no_data_of_its_own():
    assert tokenizer_to_dict(get_tokenizer(300)) is None
    assert type(get_tokenizer(300)) is tiktoken.Encoding


@pytest.fixture
def trained(tmp_path):
    """The keywords of a training with a learned tokenizer that paused after two steps."""
    settings = tiny_settings(tmp_path, tokenizer="own", max_steps=2)
    start_fresh_training(**settings)
    return settings


def test_resuming_keeps_the_checkpoints_tokenizer(trained):
    folder = trained["checkpoint_dir"]
    *_, seen_before = resume_training_from_checkpoint(folder, max_steps=3)
    *_, seen_after = resume_training_from_checkpoint(folder, max_steps=20, tokenizer="own")
    assert seen_after[-1] > (seen_before or [0])[-1]


def test_resuming_with_another_tokenizer_is_refused(trained, tmp_path):
    folder = trained["checkpoint_dir"]
    other = tmp_path / "other.json"
    save_tokenizer(train_tokenizer(STORIES, 300), other)
    for asked in ("gpt2", str(other)):
        with pytest.raises(CheckpointError, match=r"'own-300-.*'tokenizer' is now"):
            resume_training_from_checkpoint(folder, tokenizer=asked, accept_changes=True)


def test_a_checkpoint_with_gpt2s_tokenizer_refuses_a_learned_one(tmp_path):
    settings = tiny_settings(tmp_path, max_steps=1)
    start_fresh_training(**settings)
    with pytest.raises(CheckpointError, match="'gpt2-300.*'tokenizer' is now 'own'"):
        resume_training_from_checkpoint(settings["checkpoint_dir"], tokenizer="own")


def test_a_saved_tokenizer_must_have_the_configs_size(tmp_path):
    path = tmp_path / "own.json"
    save_tokenizer(train_tokenizer(STORIES, 320), path)
    settings = tiny_settings(tmp_path, tokenizer=path)
    write_stories(tmp_path / "stories.txt")
    with pytest.raises(ValueError, match="the tokenizer has 320 tokens.*'vocab_size' is 300"):
        start_fresh_training(**settings)
