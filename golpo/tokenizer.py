"""A tokenizer of one's own: byte-level BPE learned from a corpus, in any language.

A word of a script with combining marks, such as Bengali, stays whole before merging. Each line
break is a token: two line breaks have the same tokens at the end of a prompt as inside a text.
No merge crosses a border of GPT-2's own pattern, so that clients which know only that one, such
as llama.cpp, find the same tokens in English text.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

import tiktoken

from golpo.errors import CheckpointError
from golpo.packages import import_optional
from golpo_utils import (
    END_OF_TEXT,
    GPT2_VOCAB_SIZE,
    MARKERS,
    SMALLEST_VOCAB_SIZE,
    check_number,
    get_tokenizer,
)

# GPT-2's pattern with each line break by itself, and with words that continue after a letter with
# marks (\p{M}) and with the joiners of Indic scripts (U+200C, U+200D, as in Bengali র‍্যাব).
PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}[\p{L}\p{M}\u200c\u200d]*| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
    r"|[\r\n]|[^\S\r\n]+(?!\S)|[^\S\r\n]+"
)
# The pattern of the tokenizers that were learned before, such as the bundled model's.
FIRST_PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)| ?[\p{L}\p{M}]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}]+"
    r"|\n|[^\S\n]+(?!\S)|[^\S\n]+"
)
# GPT-2's pattern splits the last white space of a text off only if more text follows. This one
# always does, so the line breaks at the end of a prompt have the same tokens as inside a story.
PROMPT_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?=\s)|\s+"
SPECIAL_TOKENS = (END_OF_TEXT, *MARKERS)
BYTES = 256
LARGEST_VOCAB_SIZE = GPT2_VOCAB_SIZE - 1  # from there on, sizes mean GPT-2's tokenizer


class TokenizerError(ValueError):
    """A tokenizer that cannot be learned or read."""


class VocabularyTooLarge(TokenizerError):
    """A corpus has too few merges for a vocabulary; `largest` is the size that it can fill."""

    def __init__(self, vocab_size: int, merges: int):
        self.largest = BYTES + merges + len(SPECIAL_TOKENS)
        super().__init__(
            f"the corpus has only {merges} merges, too few for vocab_size {vocab_size}; choose at "
            f"most {self.largest}"
        )


class LearnedTokenizer(tiktoken.Encoding):
    """A tokenizer that was learned from a corpus; `pattern` splits its texts."""

    def __init__(self, name: str, pattern: str, ranks: dict[bytes, int], specials: dict[str, int]):
        super().__init__(name=name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=specials)
        self.pattern = pattern


class FolderTokenizer(tiktoken.Encoding):
    """A tokenizer that was read from a folder of another program; `pattern` splits its texts.

    Its name is a digest of all that decides its ids.
    """

    def __init__(self, pattern: str, ranks: dict[bytes, int], specials: dict[str, int]):
        parts = [pattern, sorted(ranks.items()), sorted(specials.items())]
        digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
        name = f"folder-{len(ranks) + len(specials)}-{digest}"
        super().__init__(name=name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=specials)
        self.pattern = pattern
        self.ranks = ranks
        self.specials = specials


def train_tokenizer(stories: Iterable[str], vocab_size: int) -> tiktoken.Encoding:
    """Learn a tokenizer of `vocab_size` tokens from the texts of `stories`.

    256 bytes, then merges in the order in which they were learned, then <|endoftext|> and the
    four markers. Byte-level BPE (Radford et al., 2019) by the library tokenizers. Raises
    VocabularyTooLarge if the texts have fewer merges than that, ValueError for a size below 261.
    """
    import_optional("tokenizers", "learning a tokenizer")
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    check_number("vocab_size", vocab_size, SMALLEST_VOCAB_SIZE, LARGEST_VOCAB_SIZE, whole=True)
    learner = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    learner.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(map(without_markers, stories), trainer)
    merges = json.loads(learner.to_str())["model"]["merges"]
    tokens = merged_tokens(merges)
    if BYTES + len(tokens) + len(SPECIAL_TOKENS) < vocab_size:
        raise VocabularyTooLarge(vocab_size, len(tokens))
    return make_encoding(PATTERN, tokens)


def without_markers(story: str) -> str:
    for marker in SPECIAL_TOKENS:
        story = story.replace(marker, "\n")
    return story


def letters_to_bytes() -> dict[str, int]:
    """The letter by which byte-level BPE writes each byte (GPT-2's table) → the byte."""
    visible = (*range(33, 127), *range(161, 173), *range(174, 256))
    letters = {chr(byte): byte for byte in visible}
    invisible = [byte for byte in range(BYTES) if byte not in visible]
    return letters | {chr(BYTES + number): byte for number, byte in enumerate(invisible)}


def merged_tokens(merges: list) -> list[bytes]:
    """The tokens that merges make, in their order, each once."""
    table = letters_to_bytes()
    tokens = {}
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        tokens[bytes(table[letter] for letter in "".join(pair))] = None
    return list(tokens)


def make_encoding(pattern: str, tokens: list[bytes]) -> LearnedTokenizer:
    """A tiktoken.Encoding of the bytes, `tokens` in their order, and the special tokens."""
    ranks = {bytes([byte]): byte for byte in range(BYTES)}
    ranks |= {token: BYTES + number for number, token in enumerate(tokens)}
    first = len(ranks)
    content = json.dumps([pattern, [token.decode("latin-1") for token in tokens]])
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    size = first + len(SPECIAL_TOKENS)
    specials = {special: first + n for n, special in enumerate(SPECIAL_TOKENS)}
    return LearnedTokenizer(f"own-{size}-{digest}", pattern, ranks, specials)


def is_own(tokenizer: tiktoken.Encoding) -> bool:
    """Whether `tokenizer` was learned from a corpus, rather than made from GPT-2's merges."""
    return isinstance(tokenizer, LearnedTokenizer)


def tokenizer_to_dict(tokenizer: tiktoken.Encoding) -> dict | None:
    """A tokenizer as plain data for checkpoints and JSON; None for one of GPT-2's."""
    if isinstance(tokenizer, FolderTokenizer):
        ranks = {token.decode("latin-1"): number for token, number in tokenizer.ranks.items()}
        return {"pattern": tokenizer.pattern, "ranks": ranks, "specials": tokenizer.specials}
    if not isinstance(tokenizer, LearnedTokenizer):
        return None
    first_special = tokenizer.n_vocab - len(SPECIAL_TOKENS)
    tokens = [tokenizer.decode_single_token_bytes(n) for n in range(BYTES, first_special)]
    return {"pattern": tokenizer.pattern, "tokens": [token.decode("latin-1") for token in tokens]}


def tokenizer_from_dict(data: dict) -> tiktoken.Encoding:
    """The tokenizer that `tokenizer_to_dict` described. Raises TokenizerError."""
    try:
        if "ranks" in data:
            return folder_tokenizer_from_dict(data)
        tokens = [token.encode("latin-1") for token in data["tokens"]]
        if len(set(tokens)) < len(tokens) or min(map(len, tokens), default=2) < 2:
            raise ValueError("a token is a single byte, or occurs twice")
        return make_encoding(data["pattern"], tokens)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise TokenizerError(f"this is not a tokenizer of this project ({error!r})") from None


def folder_tokenizer_from_dict(data: dict) -> FolderTokenizer:
    """The same for a FolderTokenizer. Raises ValueError if ids or bytes are missing."""
    ranks = {token.encode("latin-1"): number for token, number in data["ranks"].items()}
    ids = sorted([*ranks.values(), *data["specials"].values()])
    if ids != list(range(len(ids))) or not all(bytes([byte]) in ranks for byte in range(BYTES)):
        raise ValueError("an id or a byte is missing, or an id occurs twice")
    return FolderTokenizer(data["pattern"], ranks, data["specials"])


def save_tokenizer(tokenizer: tiktoken.Encoding, path: str | Path) -> None:
    """Write a tokenizer that is none of GPT-2's as JSON."""
    text = json.dumps(tokenizer_to_dict(tokenizer), indent=0, ensure_ascii=True)
    Path(path).write_text(text, encoding="utf-8")


def load_tokenizer(path: str | Path) -> tiktoken.Encoding:
    """Read what `save_tokenizer` wrote, or a byte-level BPE in Hugging Face's tokenizer.json.

    The tokens of the latter get this project's ids: bytes, merges, special tokens. Raises
    FileNotFoundError or TokenizerError.
    """
    name = repr(str(path))
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no tokenizer at {name}")
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:
        raise TokenizerError(f"{name} is not JSON, so it is not a tokenizer") from None
    try:
        if isinstance(data, dict) and "model" in data:
            return from_hugging_face(data)
        return tokenizer_from_dict(data)
    except TokenizerError as error:
        raise TokenizerError(f"{name} cannot be used: {error}") from None


def from_hugging_face(data: dict) -> tiktoken.Encoding:
    """The tokenizer with the merges of a tokenizer.json. Raises TokenizerError."""
    try:
        added = {token["content"] for token in data.get("added_tokens", [])}
        missing = [token for token in SPECIAL_TOKENS if token not in added]
        if missing:
            raise TokenizerError(
                f"it lacks the special tokens {', '.join(missing)}; add them with transformers' "
                f"add_special_tokens and save it again, or learn one with tokenizer='own'"
            )
        pattern = pattern_of(data.get("pre_tokenizer"))
        if data["model"].get("type") != "BPE" or data.get("normalizer") or pattern is None:
            raise TokenizerError("it is not a byte-level BPE as GPT-2 has it")
        return make_encoding(pattern, merged_tokens(data["model"]["merges"]))
    except TokenizerError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise TokenizerError(f"its tokenizer.json is damaged ({error!r})") from None


def pattern_of(pre_tokenizer: dict | None) -> str | None:
    """The pattern of a byte-level pre-tokenizer; None if it is of another kind."""
    from tiktoken_ext.openai_public import r50k_pat_str

    steps = [pre_tokenizer or {}]
    if steps[0].get("type") == "Sequence":
        steps = steps[0]["pretokenizers"]
    last = steps[-1]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    if len(steps) == 1 and last.get("use_regex", True):
        return r50k_pat_str
    is_split = len(steps) == 2 and steps[0].get("type") == "Split"
    if not is_split or last.get("use_regex", True) or steps[0].get("invert"):
        return None
    if steps[0].get("behavior") != "Isolated" or "Regex" not in steps[0]["pattern"]:
        return None
    pattern = steps[0]["pattern"]["Regex"]
    return r50k_pat_str if pattern == PROMPT_PATTERN else pattern


def tokenizer_of(vocab_size: int, data: dict | None, name: str | None) -> tiktoken.Encoding:
    """The tokenizer of a checkpoint: that in `data`, else GPT-2's of that size.

    name: the tokenizer's, as the checkpoint notes it. Raises TokenizerError for damaged data,
    CheckpointError for a tokenizer that the checkpoint lacks.
    """
    if data:
        return tokenizer_from_dict(data)
    if not str(name).startswith("folder-"):
        return get_tokenizer(vocab_size)
    # An earlier version did not save tokenizers that came from a folder. Some were GPT-2's with
    # more tokens, such as one that fills up a batch.
    if extended := re.match(r"folder-gpt2-(\d+):", name):
        return get_tokenizer(int(extended[1]))
    raise CheckpointError(
        f"the checkpoint was trained with the tokenizer {name!r} of a folder, and an earlier "
        f"version of this project did not save it; train from that folder again"
    )
