"""A tokenizer that lies beside a model in Hugging Face's format: read right, or refused."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import tiktoken

from golpo.errors import CheckpointError
from golpo.hf_tokenizer import OWN_TOKENIZER, byte_ranks, special_tokens
from golpo.tokenizer import (
    BYTES,
    FIRST_PATTERN,
    PATTERN,
    SPECIAL_TOKENS,
    FolderTokenizer,
    TokenizerError,
    letters_to_bytes,
    load_tokenizer,
    make_encoding,
    pattern_of,
)
from golpo_utils import GPT2_VOCAB_SIZE, SMALLEST_VOCAB_SIZE, get_tokenizer

# Tokenizers that are no byte-level BPE, known by their files.
OTHER_KINDS = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.txt")
# Text in which tokenizers differ: contractions, numbers, runs of spaces, other scripts, emoji.
SAMPLE = (
    "It's the fox's 1,234th day; they'll run... \n\n\t\"Don't!\"  he said,   and ran.\n"
    "Fräulein Maße café ça naïve — গল্প কথক 猫は走る 👩‍👩‍👧 1234567 x_y=z(3)\r\n Ünïcode"
)


class TokenizerFiles(NamedTuple):
    """What the files of a byte-level BPE tokenizer say."""

    pattern: str  # splits texts into words
    ranks: dict[bytes, int]  # each token but the special ones, with its id
    specials: dict[str, int]


def read_tokenizer(folder: Path, vocab_size: int, own_size: int | None) -> tiktoken.Encoding:
    """The tokenizer of the model in `folder`, which has `vocab_size` ids.

    own_size: the vocab_size of our model that was exported to it, None for a model that is not
    ours. Raises CheckpointError for a tokenizer that this project cannot have.
    """
    if (folder / OWN_TOKENIZER).is_file():
        base = read_own(folder / OWN_TOKENIZER)
    elif own_size is not None:
        base = get_tokenizer(own_size)
    else:
        base = None
    files = read_files(folder)
    if files is None and base is None and vocab_size < GPT2_VOCAB_SIZE:
        raise CheckpointError(
            f"{str(folder)!r} has no tokenizer files, and its model has {vocab_size} ids, so its "
            f"tokenizer is not GPT-2's; put its tokenizer.json there"
        )
    if files is None:
        return base or get_tokenizer(vocab_size)
    tokenizer = find_equal(files, base) or make_foreign(files, folder)
    if tokenizer.n_vocab > vocab_size:
        raise CheckpointError(
            f"the tokenizer in {str(folder)!r} has {tokenizer.n_vocab} tokens, and its model only "
            f"{vocab_size} ('vocab_size' in config.json); one of the two is of another model"
        )
    return tokenizer


def read_own(path: Path) -> tiktoken.Encoding:
    """The tokenizer that an export of ours has beside the files for others."""
    try:
        return load_tokenizer(path)
    except (TokenizerError, OSError, RecursionError) as error:
        raise CheckpointError(
            f"the tokenizer {str(path)!r} is damaged ({type(error).__name__}); export the model "
            f"anew"
        ) from None


def read_files(folder: Path) -> TokenizerFiles | None:
    """What the tokenizer's files say; None if there are none. Raises CheckpointError."""
    try:
        if (folder / "tokenizer.json").is_file():
            return read_fast(folder)
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            return read_slow(folder)
    except CheckpointError:
        raise
    except (LookupError, OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"the tokenizer in {str(folder)!r} is damaged ({type(error).__name__}); get its files "
            f"anew, or remove them if it is GPT-2's own"
        ) from None
    for name in OTHER_KINDS:
        if (folder / name).is_file():
            raise refusal(folder, name, "is not a byte-level BPE")
    return None


def refusal(folder: Path, what: str, why: str) -> CheckpointError:
    return CheckpointError(
        f"the tokenizer in {str(folder)!r} cannot be used: {what} {why}; this project reads "
        f"byte-level BPE as GPT-2 has it"
    )


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_fast(folder: Path) -> TokenizerFiles:
    """tokenizer.json, the file of the library tokenizers."""
    content = read_json(folder / "tokenizer.json")
    model = content["model"]
    kind = model.get("type", "BPE")
    if kind != "BPE" or "merges" not in model:
        raise refusal(folder, f"'type' in tokenizer.json is {kind!r}, which", "is not BPE")
    if content.get("normalizer") is not None:
        raise refusal(folder, "'normalizer' in tokenizer.json", "changes texts")
    if model.get("byte_fallback") or model.get("ignore_merges"):
        raise refusal(folder, "'byte_fallback' or 'ignore_merges'", "is set")
    pattern = pattern_of(content.get("pre_tokenizer"))
    if pattern is None:
        raise refusal(folder, "'pre_tokenizer' in tokenizer.json", "is not GPT-2's")
    tokens = content.get("added_tokens", [])
    added = {token["content"]: token["id"] for token in tokens}
    check_added(folder, added, {token["content"] for token in tokens if token.get("special")})
    return sort_tokens(folder, model["vocab"], model["merges"], added, pattern)


def read_slow(folder: Path) -> TokenizerFiles:
    """vocab.json and merges.txt, GPT-2's own files, and the tokens that were added to them."""
    from tiktoken_ext.openai_public import r50k_pat_str

    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    merges = [line for line in lines if line and not line.startswith("#version")]
    names = ("added_tokens.json", "tokenizer_config.json", "special_tokens_map.json")
    contents = [read_json(folder / one) if (folder / one).is_file() else {} for one in names]
    added, config, special_tokens_map = contents
    if config.get("add_prefix_space"):
        raise refusal(folder, "'add_prefix_space' in tokenizer_config.json", "is set")
    decoder = config.get("added_tokens_decoder", {})
    added |= {token["content"]: int(number) for number, token in decoder.items()}
    special = {token["content"] for token in decoder.values() if token.get("special")}
    check_added(folder, added, special | named_tokens(config) | named_tokens(special_tokens_map))
    vocabulary = read_json(folder / "vocab.json")
    return sort_tokens(folder, vocabulary, merges, added, r50k_pat_str)


def named_tokens(config: dict) -> set[str]:
    """The special tokens that a file names by their role, such as pad_token."""
    named = [token for key, token in config.items() if key.endswith("_token") and token]
    named += config.get("additional_special_tokens") or []
    tokens = [one["content"] if isinstance(one, dict) else one for one in named]
    return {token for token in tokens if isinstance(token, str)}


def check_added(folder: Path, added: dict[str, int], special: set[str]) -> None:
    """Refuse added words: other programs find them in any text, and ours only special tokens."""
    words = [token for token in added if token not in special and token not in SPECIAL_TOKENS]
    if words:
        raise refusal(folder, f"the added token {words[0]!r}", "is not special")


def sort_tokens(
    folder: Path, vocabulary: dict[str, int], merges: list, added: dict[str, int], pattern: str
) -> TokenizerFiles:
    """Tell special tokens from those that merges make; check what tiktoken relies on."""
    table = letters_to_bytes()
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    made = [left + right for left, right in pairs]
    ordinary = {*table, *made} - set(added)
    specials = {piece: number for piece, number in vocabulary.items() if piece not in ordinary}
    specials |= added
    ranks = {
        bytes(table[letter] for letter in piece): number
        for piece, number in vocabulary.items()
        if piece in ordinary
    }
    ids = sorted([*ranks.values(), *specials.values()])
    if ids != list(range(len(ids))):
        raise refusal(folder, "its ids", "are not 0, 1, 2 and so on, each once")
    missing = sum(bytes([byte]) not in ranks for byte in range(BYTES))
    if missing:
        raise refusal(folder, "its vocabulary", f"lacks {missing} of the 256 bytes")
    order = [vocabulary[piece] for piece in dict.fromkeys(made)]
    if any(earlier >= later for earlier, later in pairwise(order)):
        raise refusal(folder, "its ids", "are not in the order of its merges")
    return TokenizerFiles(pattern, ranks, specials)


def find_equal(files: TokenizerFiles, base: tiktoken.Encoding | None) -> tiktoken.Encoding | None:
    """Our own tokenizer with these tokens, and what was added to it; None if there is none."""
    from tiktoken_ext.openai_public import r50k_pat_str

    candidates = [base] if base is not None else []
    size = len(files.ranks) + 1  # GPT-2 alone: its tokens and <|endoftext|>
    if size == GPT2_VOCAB_SIZE:
        candidates += [get_tokenizer(), get_tokenizer(GPT2_VOCAB_SIZE)]
    elif SMALLEST_VOCAB_SIZE <= size + len(SPECIAL_TOKENS) - 1 < GPT2_VOCAB_SIZE:
        candidates.append(get_tokenizer(size + len(SPECIAL_TOKENS) - 1))
    if files.pattern in (PATTERN, FIRST_PATTERN):
        tokens = sorted(files.ranks, key=files.ranks.get)[BYTES:]
        candidates.append(make_encoding(files.pattern, tokens))
    for candidate in candidates:
        pattern = getattr(candidate, "pattern", r50k_pat_str)
        if candidate is not base and pattern != files.pattern:
            continue
        specials = special_tokens(candidate)
        if specials.items() <= files.specials.items() and byte_ranks(candidate) == files.ranks:
            if specials == files.specials:
                return candidate
            return FolderTokenizer(pattern, files.ranks, files.specials)
    return None


def make_foreign(files: TokenizerFiles, folder: Path) -> FolderTokenizer:
    """A tokenizer that is not ours, compared with the library tokenizers on a sample of text."""
    try:
        tokenizer = FolderTokenizer(*files)
    except ValueError:
        raise refusal(folder, "its pattern", "is not understood") from None
    texts = [SAMPLE, *(SAMPLE[i : i + 40] for i in range(0, len(SAMPLE), 7))]
    texts += [b" ".join(files.ranks).decode("utf-8", "replace")]
    expected = reference_ids(folder, texts)
    if any(
        tokenizer.encode_ordinary(text) != ids for text, ids in zip(texts, expected, strict=True)
    ):
        raise refusal(folder, "its merges", "split a sample of text in another way")
    return tokenizer


def reference_ids(folder: Path, texts: list[str]) -> list[list[int]]:
    """The ids that the library tokenizers finds."""
    from tokenizers import ByteLevelBPETokenizer, Tokenizer

    if (folder / "tokenizer.json").is_file():
        reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
        reference.no_truncation()
        reference.no_padding()
    else:
        reference = ByteLevelBPETokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    return [reference.encode(text, add_special_tokens=False).ids for text in texts]
