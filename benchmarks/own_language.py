"""Does a model with a tokenizer of its own write words of its language?

    python benchmarks/own_language.py CHECKPOINT --corpus FILE [--stories 20]

Prints bytes per token on the corpus beside GPT-2's, and of the stories that the model streams: the
share of words that the corpus has, and the pieces of text that hold half a character (U+FFFD).
A word is a run of letters with their combining marks. Words that the model makes up may be right,
too: the share is a lower bound.
"""

import argparse
from pathlib import Path

import regex
from machine import print_machine

from golpo.inference import load_storyteller
from golpo.stories import DEFAULT_SAMPLING, remove_markers
from golpo_utils import encode, get_tokenizer, stream_story

WORD = regex.compile(r"\p{L}[\p{L}\p{M}\u200c\u200d]*")
BYTES_COUNTED = 1_000_000


def bytes_per_token(text: str, tokenizer) -> float:
    """Mean length of the tokens of `text`."""
    return len(text.encode()) / len(encode(text, tokenizer, markers=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--stories", type=int, default=20)
    options = parser.parse_args()
    print_machine()
    corpus = remove_markers(options.corpus.read_text(encoding="utf-8"))
    known = set(WORD.findall(corpus))
    model, tokenizer, about = load_storyteller(options.checkpoint)
    part = corpus.encode()[:BYTES_COUNTED].decode(errors="ignore")
    own = bytes_per_token(part, tokenizer)
    gpt2 = bytes_per_token(part, get_tokenizer())
    print(f"bytes per token: {own:.2f}, GPT-2's {gpt2:.2f}, ratio {own / gpt2:.1f}")
    words = []
    broken = 0
    for seed in range(1, options.stories + 1):
        pieces = list(stream_story(model, tokenizer, seed=seed, **DEFAULT_SAMPLING))
        broken += sum("\ufffd" in piece for piece in pieces)
        words += WORD.findall(remove_markers("".join(pieces)))
        if seed == 1:
            print("".join(pieces))
    share = sum(word in known for word in words) / len(words)
    print(f"{options.stories} stories of step {about['global_step']}: {len(words)} words")
    print(f"words that the corpus has: {share:.3f}; pieces with half a character: {broken}")


if __name__ == "__main__":
    main()
