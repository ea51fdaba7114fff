"""Reads, checks, splits and tokenizes a corpus of stories, in a stream.

A corpus may be larger than memory: at most a block and the longest story are held at once.
"""

import hashlib
import itertools
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import tiktoken
from torch import Tensor

from golpo.copies import Copies, choose_validation, find_copies
from golpo.corpus_checks import CorpusReport
from golpo.encodings import ByteSource, check_encoding, read_text
from golpo.file_kinds import kind_of_path
from golpo.formats import MAX_STORY_LENGTH, opener, read_file
from golpo.paths import DEFAULT_CORPUS
from golpo.stories import split_story
from golpo.token_cache import cached_tokens
from golpo_utils import (
    END,
    START,
    TITLE,
    check_kind,
    check_number,
    encode,
    get_tokenizer,
    start_id_of,
)

PIECE_LENGTH = 1000  # characters; text without markers is split into pieces of about this length
ENCODE_LENGTH = 1 << 20  # characters that are tokenized at once
# How a corpus is read. A training stays with the version that it was started with.
# 1: a text file as it is; stories without text are kept; copies may be on both sides of the split.
# 2: every format of `read_file`; stories without text are left out; copies stay on one side.
CORPUS_VERSION = 2


class ReadOptions(NamedTuple):
    """How a corpus is read."""

    encoding: str | None = None  # of text files; None: UTF-8
    fix_markers: bool = False  # repair misspelt markers, titles and stories without their end
    corpus_version: int = CORPUS_VERSION


DEFAULT_OPTIONS = ReadOptions()


def read_options(settings: dict) -> dict:
    """The keywords of `load_corpus` that are in a training's settings, as a dict.

    Settings without them were written by version 1 of the project.
    """
    first = ReadOptions(corpus_version=1)._asdict()
    return {name: settings.get(name, value) for name, value in first.items()}


def read_blocks(
    path: str | Path, options: ReadOptions = DEFAULT_OPTIONS, report: CorpusReport | None = None
) -> Iterator[str]:
    """Yield a corpus as text in the story format, in blocks, with \\n for line ends.

    Raises FileNotFoundError, or ValueError if it is empty, no text, or in another encoding.
    """
    report = report or CorpusReport()
    if options.corpus_version > 1 or kind_of_path(path) != "file":
        blocks = read_file(path, options.encoding, options.fix_markers, report)
    else:
        check_encoding(options.encoding)
        blocks = read_text(ByteSource(str(path), opener(path)), options.encoding)
    empty = True
    for block in blocks:
        empty = empty and (not block or block.isspace())
        yield block
    if empty:
        raise ValueError(
            f"{str(path)!r} is empty; put stories into it, each between {START} and {END}"
        )


def split_text(text: str, length: int = PIECE_LENGTH) -> list[str]:
    """`text` in pieces of at most `length` characters (the last one: at most twice that).

    Each piece ends before a paragraph, else before a line, else before a word.
    """
    pieces = []
    start = 0
    while len(text) - start > 2 * length:
        low, high = start + length // 2, start + length
        breaks = (text.rfind(space, low, high) for space in ("\n\n", "\n", " "))
        end = next((position for position in breaks if position > 0), high)
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]]


def read_stories(
    path: str | Path, options: ReadOptions = DEFAULT_OPTIONS, report: CorpusReport | None = None
) -> Iterator[str]:
    """Yield each story of a corpus, from <|start|> to <|end|>, and text outside them in pieces.

    report: gets what is found. Raises what `read_blocks` raises, and ValueError that names a story
    without its <|end|>.
    """
    splitter = _StorySplitter(str(path), options, report or CorpusReport())
    rest = ""
    for block in itertools.chain(read_blocks(path, options, splitter.report), [None]):
        if block is None:  # the end of the file
            yield from splitter.split(rest, has_end=False)
            return
        *ended, rest = (rest + block).split(END)
        for text in ended:
            yield from splitter.split(text, has_end=True)
        if START not in rest:
            *pieces, rest = split_text(rest)
            yield from filter(str.strip, pieces)
        elif len(rest) > MAX_STORY_LENGTH:
            raise ValueError(
                f"story {splitter.number + 1} of {str(path)!r} has more than "
                f"{MAX_STORY_LENGTH:,} characters; put {END} after each story"
            )


class _StorySplitter:
    """Splits text at its markers and counts the stories."""

    def __init__(self, name: str, options: ReadOptions, report: CorpusReport):
        self.name = name
        self.options = options
        self.report = report
        self.number = 0

    def split(self, text: str, has_end: bool) -> Iterator[str]:
        """Yield the pieces and stories of the text before an <|end|>, or before the file's end."""
        outside, start, rest = text.partition(START)
        if has_end and not start:
            outside += END  # a stray one
        proses = rest.split(START) if start else []
        if len(proses) > 1 or (start and not has_end):
            self.missing_end(proses, has_end)
        yield from filter(str.strip, split_text(outside))
        for prose in proses:
            self.number += 1
            if self.is_empty(prose):
                self.report.empty_stories += 1
            elif prose or self.options.corpus_version > 1:
                yield START + prose + END + "\n"

    def is_empty(self, prose: str) -> bool:
        if self.options.corpus_version == 1:
            return not prose
        return len(prose) < PIECE_LENGTH and not split_story(prose)[1]

    def missing_end(self, proses: list[str], has_end: bool) -> None:
        """Count the stories without an <|end|>, or raise ValueError that names the first."""
        if self.options.fix_markers:
            self.report.ends_added += len(proses) - has_end
            return
        title, prose = split_story(proses[0])
        name = title or textwrap.shorten(prose, 40)
        advice = f"put {END} right after it"
        if self.report.near_markers.counts:
            advice += (
                f", or set fix_markers=True (--fix-markers) to repair what is misspelt: "
                f"{self.report.near_markers}"
            )
        raise ValueError(
            f"story {self.number + 1} of {self.name!r} ({name!r}) has no {END}; {advice}"
        )


@dataclass
class Corpus:
    """A corpus ready for training. Its ids are memory-mapped, so it may be larger than memory."""

    train_ids: Tensor  # (tokens,) uint16
    val_ids: Tensor  # (tokens,) uint16
    stories: int
    characters: int
    fingerprint: str  # SHA-256 of the stories' text
    notes: list[str]  # sentences about what was found, and what the corpus lacks
    copies: int = 0  # stories that are equal, or nearly, to another one


@dataclass
class CorpusCounts:
    """What the first pass over a corpus finds."""

    report: CorpusReport = field(default_factory=CorpusReport)
    stories: int = 0
    characters: int = 0
    marked: int = 0  # stories between markers
    titled: int = 0
    fingerprint: str = ""


def count_stories(path: str | Path, options: ReadOptions = DEFAULT_OPTIONS) -> CorpusCounts:
    """Read the whole corpus once and count. Raises ValueError for fewer than two stories."""
    counts = CorpusCounts()
    digest = hashlib.sha256()
    for text in read_stories(path, options, counts.report):
        is_marked = text.startswith(START)
        counts.stories += 1
        counts.characters += len(text)
        counts.marked += is_marked
        counts.titled += is_marked and TITLE in text
        digest.update(text.encode())
    counts.fingerprint = digest.hexdigest()
    if counts.stories < 2:
        raise ValueError(
            f"{str(path)!r} holds {counts.stories} story; add at least one more, "
            f"to be kept for validation"
        )
    return counts


def load_corpus(
    path: str | Path = DEFAULT_CORPUS,
    tokenizer: tiktoken.Encoding | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    *,
    encoding: str | None = None,
    fix_markers: bool = False,
    corpus_version: int = CORPUS_VERSION,
) -> Corpus:
    """Read, check, split and tokenize a corpus. Whole stories are split, shuffled by `seed`.

    path: a file or folder that `read_file` reads. encoding, fix_markers, corpus_version: see
    `ReadOptions`. The ids stay in `cache_dir` (None: the user's
    cache folder) for the next time. Raises what `read_stories` raises, and ValueError for fewer
    than two stories.
    """
    tokenizer = tokenizer or get_tokenizer()
    check_number("validation_fraction", validation_fraction, 0, 0.9)
    check_number("seed", seed, 0, whole=True)
    check_kind("the tokenizer", tokenizer, tiktoken.Encoding, "what get_tokenizer returns")
    options = ReadOptions(encoding, fix_markers, corpus_version)
    counts = count_stories(path, options)

    def write(train: BinaryIO, val: BinaryIO) -> dict:
        copies = no_copies(counts.stories)
        if options.corpus_version > 1:
            stories = with_progress(read_stories(path, options), "looking for copies", counts)
            copies = find_copies(stories, work_dir=Path(train.name).parent)
        is_val = choose_validation(copies, seed, validation_fraction)
        stories = with_progress(read_stories(path, options), "tokenizing", counts)
        if write_tokens(stories, tokenizer, is_val, train, val) != counts.fingerprint:
            raise ValueError(f"{str(path)!r} changed while it was read; try again")
        return {"equal": copies.equal, "near": copies.near, "alike": copies.all_alike()}

    parts = (counts.fingerprint, tokenizer.name, seed, validation_fraction, options.corpus_version)
    key = hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()[:24]
    tokens = cached_tokens(key, write, cache_dir)
    return Corpus(
        tokens.train_ids,
        tokens.val_ids,
        counts.stories,
        counts.characters,
        counts.fingerprint,
        corpus_notes(counts, tokenizer, tokens.about, options),
        tokens.about["equal"] + tokens.about["near"],
    )


def no_copies(stories: int) -> Copies:
    """The result of `find_copies` for a corpus without copies."""
    return Copies(np.arange(stories), 0, 0)


def with_progress(stories: Iterator[str], what: str, counts: CorpusCounts) -> Iterator[str]:
    """The same stories, with a progress bar if they take more than a few seconds."""
    from tqdm.auto import tqdm

    return tqdm(stories, what, counts.stories, leave=False, delay=3)


def write_tokens(
    stories: Iterator[str],
    tokenizer: tiktoken.Encoding,
    is_val: np.ndarray,
    train: BinaryIO,
    val: BinaryIO,
) -> str:
    """Write the ids of each story, as uint16, to one of two files; return the fingerprint.

    is_val: (stories,) bool, which stories are for validation.
    """
    digest = hashlib.sha256()
    for text, for_validation in zip(stories, is_val, strict=False):
        digest.update(text.encode())
        file = val if for_validation else train
        for piece in split_text(text, ENCODE_LENGTH):
            file.write(np.array(encode(piece, tokenizer), dtype=np.uint16).tobytes())
    return digest.hexdigest()


def corpus_notes(
    counts: CorpusCounts, tokenizer: tiktoken.Encoding, copies: dict, options: ReadOptions
) -> list[str]:
    """A sentence for everything that was found, and that the stories or the vocabulary lack."""
    outside = counts.stories - counts.marked
    untitled = counts.marked - counts.titled
    notes = []
    if counts.marked == 0:
        notes.append(
            f"The text has no {START} … {END} markers; it was split into {counts.stories} pieces "
            f"at paragraphs, and the model will learn neither where stories begin nor where they "
            f"end."
        )
    elif outside:
        notes.append(f"{outside} pieces of text stand outside of stories; they are trained on.")
    if untitled:
        notes.append(f"{untitled} of {counts.marked} stories have no {TITLE} line.")
    if start_id_of(tokenizer) is None:
        notes.append("This vocabulary spells the markers out, in several tokens each.")
    notes += counts.report.notes()
    if copies["equal"] + copies["near"]:
        kept = (
            "are split like other stories" if copies["alike"] else "stay on one side of the split"
        )
        notes.append(
            f"{copies['equal'] + copies['near']} of {counts.stories} stories are copies of others "
            f"({copies['equal']} equal but for white space and case, {copies['near']} nearly "
            f"equal); copies {kept}."
        )
    if options.corpus_version == 1:
        notes.append(
            "The corpus is read as by version 1 of this project, with which the training began: "
            "copies of a story may be in training and in validation."
        )
    return notes
