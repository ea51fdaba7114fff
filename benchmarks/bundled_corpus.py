"""Does a model of the bundled corpus write stories that a reader accepts?

    python benchmarks/bundled_corpus.py [--checkpoint FOLDER_OR_FILE] [--stories 20]

Generates stories from <|start|> with the default settings and counts those that end in
<|end|> within 400 tokens, have a title, keep their hero's name, and are in the corpus as a whole.
A hero is kept if exactly one of the names that the corpus gives to heroes is in the story, and it
is in its first paragraph and in its last. Then as many stories from opening words alone, without a
title: the first sentences of stories that the corpus does not contain.
"""

import argparse
import re
import sys
from argparse import Namespace

from machine import PROJECT, print_machine

sys.path.insert(0, str(PROJECT / "data"))
from story_grammar import HEROES, write_stories  # noqa: E402

from golpo.corpus import read_stories  # noqa: E402
from golpo.devices import pick_device  # noqa: E402
from golpo.evaluation import generate_batch  # noqa: E402
from golpo.inference import load_storyteller  # noqa: E402
from golpo.paths import DEFAULT_CHECKPOINT_DIR, DEFAULT_CORPUS  # noqa: E402
from golpo.stories import DEFAULT_SAMPLING, split_story  # noqa: E402
from golpo.story_measures import TrainingText, measure_stories  # noqa: E402
from golpo_utils import END, TITLE_END, stream_story  # noqa: E402

MAX_NEW_TOKENS = 400
HERO = re.compile(r"\b(" + "|".join(hero.name for hero in HEROES) + r")\b")
FIRST_SENTENCE = re.compile(r'.*?[.!?]"?(?=\s)')
OTHER_SEED = 99  # of stories that the corpus does not contain


def keeps_hero(prose: str) -> bool:
    """Whether one hero, and only one, is named in the first paragraph and in the last."""
    paragraphs = prose.split("\n\n")
    ends = (paragraphs[0], paragraphs[-1])
    return len(set(HERO.findall(prose))) == 1 and all(HERO.search(one) for one in ends)


def run_to_end(pieces) -> tuple[str, bool]:
    """A stream's text, and whether the story ended by itself."""
    text = ""
    while True:
        try:
            text += next(pieces)
        except StopIteration as last:
            return text, last.value == "end"


def measure_titled(model, tokenizer, options: Namespace) -> dict[str, int]:
    """Counts over stories from <|start|>."""
    generated = generate_batch(
        model,
        tokenizer,
        options.stories,
        MAX_NEW_TOKENS,
        options.temperature,
        options.top_k,
        options.seed,
        min_p=options.min_p,
    )
    figures = measure_stories(generated, TrainingText(read_stories(DEFAULT_CORPUS), generated))
    keeping = [keeps_hero(split_story(text)[1]) for text in generated]
    if options.show:
        for text, keeps in zip(generated, keeping, strict=True):
            print(f"{'hero kept' if keeps else 'HERO LOST'}\n{text}\n")
    pairs = zip(keeping, generated, strict=True)
    return {
        "end by themselves within 400 tokens": sum(END in text for text in generated),
        "have a title": sum(TITLE_END in text for text in generated),
        "keep their hero's name": sum(keeping),
        "all three": sum(keeps and END in text and TITLE_END in text for keeps, text in pairs),
        "are in the corpus as a whole": figures["verbatim_stories"],
        "distinct titles": figures["distinct_titles"],
    }


def measure_untitled(model, tokenizer, options: Namespace) -> dict[str, int]:
    """Counts over stories from opening words."""
    ended = 0
    kept = 0
    for number, (*_, story) in enumerate(write_stories(options.stories, seed=OTHER_SEED)):
        opening = FIRST_SENTENCE.match(story)[0]
        pieces = stream_story(
            model,
            tokenizer,
            opening,
            max_new_tokens=MAX_NEW_TOKENS,
            temperature=options.temperature,
            top_k=options.top_k,
            min_p=options.min_p,
            seed=options.seed + number,
        )
        text, has_ended = run_to_end(pieces)
        ended += has_ended
        kept += has_ended and keeps_hero(opening + text)
    return {"from opening words: end by themselves": ended, "and keep their hero's name": kept}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT_DIR)
    parser.add_argument("--stories", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=DEFAULT_SAMPLING["temperature"])
    parser.add_argument("--top-k", type=int, default=DEFAULT_SAMPLING["top_k"])
    parser.add_argument("--min-p", type=float, default=DEFAULT_SAMPLING["min_p"])
    parser.add_argument("--show", action="store_true", help="print the stories, too")
    options = parser.parse_args()
    print_machine()
    model, tokenizer, about = load_storyteller(options.checkpoint, pick_device())
    print(f"{about['path'].name}, step {about['global_step']:,}, ", end="")
    print(f"temperature {options.temperature}, top-k {options.top_k}, min-p {options.min_p}\n")
    counts = measure_titled(model, tokenizer, options)
    counts |= measure_untitled(model, tokenizer, options)
    for name, count in counts.items():
        print(f"{name:40}{count:4} of {options.stories}")


if __name__ == "__main__":
    main()
