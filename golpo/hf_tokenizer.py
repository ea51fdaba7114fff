"""Tokenizer files in Hugging Face's format: those of our tokenizers, written and read.

Clients of Hugging Face's tokenizers find our ids for any text that more text follows.
"""

import json
from pathlib import Path

import tiktoken

from golpo.tokenizer import (
    PROMPT_PATTERN,
    FolderTokenizer,
    is_own,
    letters_to_bytes,
    save_tokenizer,
    tokenizer_to_dict,
)
from golpo_utils import END, END_OF_TEXT, START

OWN_TOKENIZER = "golpo_tokenizer.json"  # a tokenizer that is none of GPT-2's


def write_tokenizer(tokenizer: tiktoken.Encoding, folder: Path, context_length: int) -> None:
    """Write all files from which Hugging Face's and other programs make this tokenizer."""
    pieces = token_pieces(tokenizer)
    specials = special_tokens(tokenizer)
    files = {
        "vocab.json": pieces | specials,
        "tokenizer_config.json": tokenizer_config(context_length, specials),
    }
    for name, content in files.items():
        text = json.dumps(content, indent=1, ensure_ascii=False)
        (folder / name).write_text(text, encoding="utf-8")
    merges = ["#version: 0.2", *merge_rules(pieces), ""]
    (folder / "merges.txt").write_text("\n".join(merges), encoding="utf-8")
    write_fast_tokenizer(tokenizer, pieces, folder / "tokenizer.json")
    if tokenizer_to_dict(tokenizer) is not None:
        save_tokenizer(tokenizer, folder / OWN_TOKENIZER)


def write_fast_tokenizer(tokenizer: tiktoken.Encoding, pieces: dict[str, int], path: Path) -> None:
    """Write tokenizer.json, from which the library tokenizers and its clients find our ids."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    merges = [tuple(rule.split(" ")) for rule in merge_rules(pieces)]
    specials = special_tokens(tokenizer)
    fast = Tokenizer(models.BPE(vocab=pieces | specials, merges=merges))
    split = pre_tokenizers.Split(Regex(client_pattern(tokenizer)), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in specials])
    fast.save(str(path))


def client_pattern(tokenizer: tiktoken.Encoding) -> str:
    """The regular expression by which other programs split texts into words."""
    from tiktoken_ext.openai_public import r50k_pat_str

    if isinstance(tokenizer, FolderTokenizer) and tokenizer.pattern != r50k_pat_str:
        return tokenizer.pattern
    return tokenizer.pattern if is_own(tokenizer) else PROMPT_PATTERN


def neutral_token(specials: dict[str, int]) -> str | None:
    """<|endoftext|>, or another special token where there is none."""
    return END_OF_TEXT if END_OF_TEXT in specials else next(iter(specials), None)


def begin_end_pad(specials: dict[str, int]) -> dict[str, str]:
    """The special tokens that begin a text ("bos"), end it ("eos"), and fill up a batch ("pad").

    A tokenizer may lack some. The pad token is never the end token, which a model must learn.
    """
    neutral = neutral_token(specials)
    roles = {
        "bos": START if START in specials else neutral,
        "eos": END if END in specials else neutral,
        "pad": neutral if END in specials else None,
    }
    return {role: token for role, token in roles.items() if token is not None}


def tokenizer_config(context_length: int, specials: dict[str, int]) -> dict:
    """The content of tokenizer_config.json."""
    roles = {f"{role}_token": token for role, token in begin_end_pad(specials).items()}
    if specials:
        roles["unk_token"] = neutral_token(specials)  # CTranslate2 wants one; it never occurs
    return roles | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "additional_special_tokens": list(specials),
    }


def special_tokens(tokenizer: tiktoken.Encoding) -> dict[str, int]:
    """Each special token with its id, in the order of the ids."""
    tokens = {one: tokenizer.encode_single_token(one) for one in tokenizer.special_tokens_set}
    return dict(sorted(tokens.items(), key=lambda item: item[1]))


def byte_ranks(tokenizer: tiktoken.Encoding) -> dict[bytes, int]:
    """The bytes of each token but the special ones, with its id, in the order of the ids."""
    specials = {special.encode() for special in tokenizer.special_tokens_set}
    values = [one for one in tokenizer.token_byte_values() if one not in specials]
    ranks = {one: tokenizer.encode_single_token(one) for one in values}
    return dict(sorted(ranks.items(), key=lambda item: item[1]))


def token_pieces(tokenizer: tiktoken.Encoding) -> dict[str, int]:
    """Each token but the special ones, as GPT-2's files write it, with its id.

    They show a byte as the letter that it is in Latin-1, or as one beyond 255 if it is invisible.
    """
    letters = {byte: letter for letter, byte in letters_to_bytes().items()}
    return {
        "".join(letters[byte] for byte in value): number
        for value, number in byte_ranks(tokenizer).items()
    }


def merge_rules(pieces: dict[str, int]) -> list[str]:
    """GPT-2's merges: each pair of tokens whose concatenation is a token, in the order of ranks."""
    rules = []
    for piece in pieces:
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in pieces and right in pieces:
                rules.append(f"{left} {right}")
    return rules
