"""Does a note keep the hero's name in a long story? Long stories with and without one.

    python benchmarks/notes.py [--checkpoint bundled] [--stories 20] [--tokens 1500]

A story that ends is continued in a new paragraph, as the studio's Continue does. Counted is how
many stories have the hero's name in their last third, and how often it stands there.
"""

import argparse
import re
import time

import torch
from machine import print_machine

from golpo import DEFAULT_SAMPLING, load_storyteller
from golpo.long_stories import stream_long_story

HEROES = ["Hanna", "Tim", "Mira", "Ben", "Lily", "Max", "Anna", "Tom", "Sara", "Jack"]
OPENING = "Once upon a time, there was a child named {hero}."
NOTE = "This is a story about {hero}. {hero} is brave and kind."


def long_story(model, tokenizer, hero: str, note: str, tokens: int, seed: int) -> str:
    """A story of `tokens` tokens about `hero`."""
    text = OPENING.format(hero=hero)
    sampling = {name: DEFAULT_SAMPLING[name] for name in ("temperature", "top_k", "min_p")}
    left = tokens
    while left > 0:
        stream = stream_long_story(
            model,
            tokenizer,
            text,
            title=f"{hero}'s Day",
            note=note,
            max_new_tokens=left,
            seed=seed,
            **sampling,
        )
        pieces = list(stream)
        text += "".join(pieces)
        left -= len(pieces) + 1
        seed += 1000
        if left > 0:
            text = text.rstrip() + "\n\n"
    return text


def name_in_last_third(text: str, hero: str) -> int:
    """How often the name stands in the last third of the text."""
    return len(re.findall(rf"\b{hero}\b", text[2 * len(text) // 3 :]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", default="bundled")
    parser.add_argument("--stories", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=1500)
    arguments = parser.parse_args()
    print_machine()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, tokenizer, _ = load_storyteller(arguments.checkpoint, device)
    started = time.monotonic()
    print("| note | stories with the name in the last third | times it stands there, mean |")
    print("| --- | --- | --- |", flush=True)
    for label, note in [("none", ""), ("names the hero", NOTE)]:
        counts = []
        for number in range(arguments.stories):
            hero = HEROES[number % len(HEROES)]
            story = long_story(
                model, tokenizer, hero, note.format(hero=hero), arguments.tokens, number
            )
            counts.append(name_in_last_third(story, hero))
        found = sum(count > 0 for count in counts)
        mean = sum(counts) / len(counts)
        print(f"| {label} | {found} of {len(counts)} | {mean:.1f} |", flush=True)
    print(f"{time.monotonic() - started:.0f} s on {device}")


if __name__ == "__main__":
    main()
