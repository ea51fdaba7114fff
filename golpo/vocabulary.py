"""Which tokenizer a training uses: the checkpoint's, GPT-2's, a saved one, or a new one."""

import codecs
import itertools
from collections.abc import Iterator

import tiktoken
from torch import Tensor

from golpo.console import print_safely
from golpo.corpus import load_corpus, read_options
from golpo.dataset import story_bounds
from golpo.errors import CheckpointError
from golpo.finetuning import start_tokenizer
from golpo.settings import PRESETS, Settings
from golpo.tokenizer import (
    VocabularyTooLarge,
    is_own,
    load_tokenizer,
    tokenizer_of,
    tokenizer_to_dict,
    train_tokenizer,
)
from golpo_utils import START, get_tokenizer, start_id_of

IDS_AT_ONCE = 2**16


def decode_stories(ids: Tensor, tokenizer: tiktoken.Encoding) -> Iterator[str]:
    """The texts of the stories in ids (n,), one at a time."""
    start_id = start_id_of(tokenizer)
    if start_id is None:
        yield from split_stories(ids, tokenizer)
        return
    for begin, end in itertools.pairwise(story_bounds(ids, start_id)):
        text = tokenizer.decode(ids[begin:end].tolist())
        if text.strip():
            yield text


def split_stories(ids: Tensor, tokenizer: tiktoken.Encoding) -> Iterator[str]:
    """The texts of the stories in ids (n,) of a tokenizer in which markers are several tokens."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pending = ""
    for begin in range(0, len(ids), IDS_AT_ONCE):
        part = ids[begin : begin + IDS_AT_ONCE].tolist()
        pending += decoder.decode(tokenizer.decode_bytes(part))
        *stories, pending = pending.split(START)
        yield from (START + story for story in stories if story.strip())
    if pending.strip():
        yield START + pending


def is_preset_size(vocab_size: int) -> bool:
    """Whether a preset with a tokenizer of its own has this size: nobody chose it by hand."""
    return any(
        preset["config"]["vocab_size"] == vocab_size
        for preset in PRESETS.values()
        if preset.get("tokenizer") == "own"
    )


def learn_tokenizer(settings: Settings) -> tiktoken.Encoding:
    """A tokenizer learned from the training part of the corpus, of the config's vocab_size.

    A small corpus makes a preset's vocabulary smaller: `settings.config` then has the new size.
    """
    gpt2 = get_tokenizer()
    corpus = load_corpus(
        settings.data_path,
        gpt2,
        settings.validation_fraction,
        settings.seed,
        **read_options(vars(settings)),
    )
    vocab_size = settings.config["vocab_size"]
    try:
        return train_tokenizer(decode_stories(corpus.train_ids, gpt2), vocab_size)
    except VocabularyTooLarge as error:
        if not is_preset_size(vocab_size):
            raise
        smaller = error.largest
    print_safely(f"Note: the corpus is small; its vocabulary has {smaller:,} tokens.")
    settings.config = {**settings.config, "vocab_size": smaller}
    return train_tokenizer(decode_stories(corpus.train_ids, gpt2), smaller)


def pick_tokenizer(settings: Settings, checkpoint: dict | None = None) -> tiktoken.Encoding:
    """The checkpoint's own tokenizer, or the one that the settings ask for.

    Raises ValueError if its size is not the config's vocab_size, CheckpointError if the settings
    ask for another one than the checkpoint's.
    """
    vocab_size = settings.config["vocab_size"]
    if checkpoint is not None:
        saved = checkpoint.get("tokenizer_data")
        tokenizer = tokenizer_of(vocab_size, saved, checkpoint.get("tokenizer"))
        check_same_tokenizer(settings.tokenizer, tokenizer, checkpoint)
        return tokenizer
    if settings.tokenizer == "gpt2":
        return get_tokenizer(vocab_size)
    if settings.tokenizer == "own":
        return learn_tokenizer(settings)
    if settings.tokenizer == "start":
        tokenizer = start_tokenizer(settings.start_from)
    else:
        tokenizer = load_tokenizer(settings.tokenizer)
    if tokenizer.n_vocab != vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.n_vocab} tokens, and the config's 'vocab_size' is "
            f"{vocab_size}; make them equal"
        )
    return tokenizer


def check_same_tokenizer(asked: str, tokenizer: tiktoken.Encoding, checkpoint: dict) -> None:
    """Raise CheckpointError if the setting `asked` is not the checkpoint's `tokenizer`."""
    if asked == (checkpoint.get("settings") or {}).get("tokenizer", "gpt2"):
        return  # unchanged; a file may since have moved, and the checkpoint has its content
    if asked == "start":
        return  # the checkpoint's tokenizer is that of its start
    if asked == "own":
        same = is_own(tokenizer)
    elif asked == "gpt2":
        same = tokenizer_to_dict(tokenizer) is None
    else:
        same = load_tokenizer(asked).name == tokenizer.name
    if not same:
        raise CheckpointError(
            f"the checkpoint was trained with the tokenizer {tokenizer.name!r}, and the setting "
            f"'tokenizer' is now {asked!r}; leave it out to keep the checkpoint's, or start over"
        )
