"""Are the stories of the main job's model stories that a reader accepts?

    python benchmarks/box_stories.py [--checkpoint FOLDER_OR_FILE] [--stories 20]

Tells stories from <|start|> with the settings of `train.ipynb` and counts those that end in <|end|>
within 400 tokens, have a title, keep their hero's name (the names that the corpus gives to heroes:
exactly one of them stands in the story, in its first paragraph and in its last), and those that
stand verbatim in the corpus. Then as many from opening words alone, without a title: the first
sentences of stories that the corpus does not hold.
"""

import argparse
import re
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT), str(PROJECT / "data")]

import golpo_utils as golpo
from make_training_data import HEROES, tell_all

HERO = re.compile(r"\b(" + "|".join(hero.name for hero in HEROES) + r")\b")


def keeps_its_hero(prose):
    """Is one hero, and only one, named in the first paragraph and in the last?"""
    paragraphs = prose.split("\n\n")
    return len(set(HERO.findall(prose))) == 1 and all(HERO.search(place) for place in (paragraphs[0], paragraphs[-1]))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", default=golpo.DEFAULT_CHECKPOINTS)
    parser.add_argument("--stories", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--top-k", type=int, default=40)
    parser.add_argument("--min-p", type=float, default=0.1)
    parser.add_argument("--show", action="store_true", help="print the stories too")
    options = parser.parse_args()
    model, tokenizer, about = golpo.load_storyteller(options.checkpoint, golpo.pick_device())
    told = golpo.tell_many(model, tokenizer, options.stories, 400, options.temperature, options.top_k, options.seed,
                           min_p=options.min_p)
    figures = golpo.measure_stories(told, golpo.DEFAULT_CORPUS.read_text(encoding="utf-8"))
    keeping = [keeps_its_hero(golpo.split_story(text)[1]) for text in told]
    if options.show:
        for text, keeps in zip(told, keeping):
            print(f"{'keeps its hero' if keeps else 'LOSES ITS HERO'}\n{text}\n")
    n = options.stories
    print(f"{about['path'].name}, step {about['global_step']:,}, temperature {options.temperature}, top-k {options.top_k}, "
          f"min-p {options.min_p}")
    print(f"end by themselves within 400 tokens   {round(figures['ended'] * n)} of {n}")
    print(f"have a title                          {round(figures['titled'] * n)} of {n}")
    print(f"keep their hero's name                {sum(keeping)} of {n}")
    print(f"all three                             "
          f"{sum(k and golpo.END in t and golpo.TITLE_END in t for k, t in zip(keeping, told))} of {n}")
    print(f"stand verbatim in the corpus          {figures['verbatim_stories']} of {n}")
    print(f"distinct titles                       {figures['distinct_titles']} of {n}")
    ended = kept = 0
    for number, (*_, text) in enumerate(tell_all(n, seed=99)):
        opening = re.match(r'.*?[.!?]"?(?= )', text)[0]
        story = opening
        pieces = golpo.stream_story(model, tokenizer, opening, temperature=options.temperature, top_k=options.top_k,
                                    min_p=options.min_p, seed=options.seed + number)
        try:
            while True:
                story += next(pieces)
        except StopIteration as last:
            ends = last.value == "end"
        ended, kept = ended + ends, kept + (ends and keeps_its_hero(story))
    print(f"from opening words: end by themselves  {ended} of {n}; and keep their hero {kept}")


if __name__ == "__main__":
    main()
