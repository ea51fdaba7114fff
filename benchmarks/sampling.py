"""What sampling settings bring: endings, repetition, titles and names, one row for each setting.

    python benchmarks/sampling.py CHECKPOINT [--corpus FILE] [--stories 100] [--output FILE]

CHECKPOINT: a folder of checkpoints, or "bundled". With --corpus, the text that the model has
learned from, copied passages are counted too. The defaults in golpo/stories.py are chosen by this
table.
"""

import argparse
import itertools
import json
from pathlib import Path

import tiktoken
from machine import print_machine

from golpo.corpus import read_stories
from golpo.evaluation import generate_batch
from golpo.inference import load_storyteller
from golpo.stories import DEFAULT_SAMPLING, split_story
from golpo.story_measures import TrainingText, measure_stories, name_persistence
from golpo_utils import GPTModel

# temperature, min_p, repetition penalty
SETTINGS = [
    (0.7, 0.1, 1.0),
    (0.8, 0.1, 1.0),
    (0.8, 0.1, 1.1),
    (0.9, 0.1, 1.0),
    (0.9, 0.05, 1.0),
    (1.0, 0.1, 1.0),
    (1.0, 0.1, 1.05),
    (1.0, 0.05, 1.0),
    (1.0, 0.0, 1.0),
]
COLUMNS = (
    "ended",
    "titled",
    "distinct_titles",
    "repeated_4grams_median",
    "repeated_4grams_worst",
    "verbatim_8grams",
    "verbatim_stories",
    "named_stories",
    "named_in_last_third",
)


def measure(stories: list[str], training: TrainingText) -> dict:
    """`measure_stories`, and how many stories name their hero again in the last third."""
    places = [name_persistence(split_story(story)[1]) for story in stories]
    named = [place for place in places if place is not None]
    return {
        **measure_stories(stories, training),
        "named_stories": len(named),
        "named_in_last_third": sum(place >= 2 / 3 for place in named) / max(1, len(named)),
    }


def generate(
    model: GPTModel,
    tokenizer: tiktoken.Encoding,
    options: argparse.Namespace,
    temperature: float,
    min_p: float,
    penalty: float,
) -> list[str]:
    """The stories of one row of the table."""
    return generate_batch(
        model,
        tokenizer,
        options.stories,
        options.max_new_tokens,
        temperature,
        top_k=DEFAULT_SAMPLING["top_k"],
        seed=1,
        min_p=min_p,
        repetition_penalty=penalty,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--stories", type=int, default=100)
    parser.add_argument("--max-new-tokens", type=int, default=400)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    facts = print_machine()
    model, tokenizer, _ = load_storyteller(options.checkpoint, which="best")
    batches = [generate(model, tokenizer, options, *setting) for setting in SETTINGS]
    stories = read_stories(options.corpus) if options.corpus else ()
    training = TrainingText(stories, sought=itertools.chain(*batches))
    print(f"{'temperature, min-p, penalty':30}", *(f"{column:>14.14}" for column in COLUMNS))
    rows = []
    for setting, generated in zip(SETTINGS, batches, strict=True):
        figures = measure(generated, training)
        name = ", ".join(map(str, setting))
        print(f"{name:30}", *(f"{figures[column]:14.3f}" for column in COLUMNS))
        rows.append({"setting": name, **figures})
    if options.output:
        content = {"machine": facts, "checkpoint": options.checkpoint, "rows": rows}
        options.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
