"""Whether the model learns what somebody likes: readers with a known taste choose, it learns.

    python benchmarks/preferences.py [--readers dialogue short] [--choices 20 100] [--seeds 1]

Each reader gives a story a number, and of two stories likes the one with the higher number. After
so many choices between stories of the plain model, an adapter is learned, and stories of the model
with it are compared with fresh ones of the plain model. Finished rows are kept in the output file,
and not measured again.
"""

import argparse
import json
import random
import re
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from machine import print_machine

from golpo.choices import Choice
from golpo.evaluation import generate_batch
from golpo.inference import load_storyteller
from golpo.learn_command import validation_stories
from golpo.lora import load_adapter, remove_adapter
from golpo.preferences import PreferenceSettings, learn_from_choices
from golpo.stories import split_story
from golpo.story_measures import measure_stories
from golpo_utils import START

BATCH = 100  # stories that are generated at once
ANIMALS = frozenset(
    "animal ant bat bear beaver bee beetle bird bug bunny butterfly calf camel cat caterpillar "
    "chick chicken cow crab crocodile crow cub deer dinosaur dog dolphin donkey dove dragonfly "
    "duck duckling eagle elephant fish fly fox frog giraffe goat goose hamster hare hedgehog hen "
    "hippo horse insect kangaroo kitten kitty ladybug lamb lion lizard mole monkey mouse octopus "
    "otter owl panda parrot peacock pig pigeon pony puppy rabbit raccoon rat rooster shark "
    "sheep snail snake sparrow spider squirrel swan tiger toad tortoise turkey turtle whale wolf "
    "worm zebra mice geese wolves".split()
)
NEAR = 30  # words


def words_of(story: str) -> list[str]:
    """The words of a story's prose, in small letters."""
    return re.findall(r"[a-z]+(?:'[a-z]+)?", split_story(story)[1].lower())


def dialogue(story: str) -> float:
    """The share of words in quotation marks."""
    prose = split_story(story)[1]
    spoken = re.findall(r'["“]([^"”]*)["”]', prose)
    return sum(len(part.split()) for part in spoken) / max(1, len(prose.split()))


def short(story: str) -> float:
    """Few words."""
    return -len(words_of(story))


def animal(story: str) -> float:
    """The share of words that name an animal."""
    words = words_of(story)
    names = sum(word in ANIMALS or word.removesuffix("s") in ANIMALS for word in words)
    return names / max(1, len(words))


def varied(story: str) -> float:
    """Few words of four letters and more that stood among the 30 such words before."""
    words = [word for word in words_of(story) if len(word) > 3]
    repeated = sum(word in words[max(0, n - NEAR) : n] for n, word in enumerate(words))
    return -repeated / max(1, len(words))


READERS = {one.__name__: one for one in (dialogue, short, animal, varied)}


def write_plain_stories(options: Namespace, model, tokenizer, seed: int) -> list[str]:
    """BATCH fresh stories, and after them enough for the choices; kept in a file."""
    path = options.output.with_suffix(".stories.json")
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    stories = []
    for part in range(1 + -(-2 * max(options.choices) // BATCH)):
        number = 10_000 * seed + 1000 * part
        if str(number) not in known:
            known[str(number)] = generate_batch(model, tokenizer, BATCH, seed=number)
            path.write_text(json.dumps(known, ensure_ascii=False), encoding="utf-8")
        stories += known[str(number)]
    return stories


def choose(reader: Callable, stories: list[str], number: int, seed: int) -> list[Choice]:
    """So many choices between two stories each, of which the reader likes one more."""
    chance = random.Random(seed)
    choices = []
    while len(choices) < number:
        pair = [story.removeprefix(START) for story in chance.sample(stories, 2)]
        values = [reader(story) for story in pair]
        if values[0] != values[1]:
            choices.append(Choice(pair, liked=int(values[1] > values[0])))
    return choices


def share_of_wins(reader: Callable, stories: list[str], others: list[str]) -> float:
    """Of all pairs, the share in which the reader likes the first more; a tie counts half."""
    numbers = [reader(story) for story in stories]
    against = [reader(story) for story in others]
    won = sum((one > other) + (one == other) / 2 for one in numbers for other in against)
    return won / (len(numbers) * len(against))


def measure(options: Namespace, about: tuple, reader: str, number: int, seed: int) -> dict:
    """One row: learn from `number` choices, and look at the stories afterwards."""
    model, tokenizer, val_stories = about
    stories = write_plain_stories(options, model, tokenizer, seed)
    fresh, rest = stories[:BATCH], stories[BATCH : BATCH + 2 * number]
    choices = choose(READERS[reader], rest, number, seed)
    settings = PreferenceSettings(seed=seed, **json.loads(options.settings))
    with TemporaryDirectory() as folder:
        learned = learn_from_choices(
            model, tokenizer, choices, folder, settings=settings, val_stories=val_stories
        )
        load_adapter(model, learned.folder, "taste")
    tuned = generate_batch(model, tokenizer, options.fresh, seed=10_000 * seed + 9000)
    remove_adapter(model, "taste")
    figures = {"plain": measure_stories(fresh), "tuned": measure_stories(tuned)}
    row = {"reader": reader, "choices": number, "seed": seed}
    row["wins"] = share_of_wins(READERS[reader], tuned, fresh)
    for name, of in figures.items():
        row |= {f"ended_{name}": of["ended"], f"titled_{name}": of["titled"]}
    row["mean_plain"] = sum(map(READERS[reader], fresh)) / len(fresh)
    row["mean_tuned"] = sum(map(READERS[reader], tuned)) / len(tuned)
    return row | {"learned": asdict(learned), "story": tuned[0]}


def describe(row: dict) -> str:
    """A row of the table in benchmarks/README.md."""
    learned = row["learned"]
    loss = learned["val_loss_after"] - learned["val_loss_before"]
    cells = [row["reader"], row["choices"], row["seed"], f"{row['wins']:.0%}", f"{loss:+.3f}"]
    cells += [f"{row[f'{name}_tuned'] - row[f'{name}_plain']:+.2f}" for name in ("ended", "titled")]
    cells += [f"{learned['agreement_after']} of {learned['kept_aside']}"]
    cells += [f"{learned['divergence']:.3f}", f"{learned['seconds']:.0f} s"]
    return "| " + " | ".join(map(str, cells)) + " |"


def read_options() -> Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", nargs="?", default="bundled")
    parser.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS))
    parser.add_argument("--choices", nargs="+", type=int, default=[20, 50, 100, 200])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--fresh", type=int, default=BATCH, help="stories after learning")
    parser.add_argument("--corpus", help="for the validation loss; default: the bundled one")
    parser.add_argument("--settings", default="{}", help="of PreferenceSettings, as JSON")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("preferences.json"))
    return parser.parse_args()


def main() -> None:
    options = read_options()
    torch.set_num_threads(options.threads)
    facts = print_machine()
    model, tokenizer, checkpoint = load_storyteller(options.checkpoint)
    val_stories = validation_stories(checkpoint, tokenizer, options.corpus)
    about = (model, tokenizer, val_stories)
    rows = json.loads(options.output.read_text())["rows"] if options.output.exists() else []
    done = {(row["reader"], row["choices"], row["seed"]) for row in rows}
    for seed in options.seeds:
        for number in options.choices:
            for reader in options.readers:
                if (reader, number, seed) in done:
                    continue
                rows.append(measure(options, about, reader, number, seed))
                print(describe(rows[-1]), flush=True)
                content = {"machine": facts, "settings": options.settings, "rows": rows}
                options.output.write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
