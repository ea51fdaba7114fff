"""Do stories of a model of the bundled corpus hold together? The grammar of the corpus says.

    python benchmarks/story_judge.py [--checkpoint FOLDER_OR_FILE] [--stories 100 or FILE]

Generates stories at the default settings, or reads them from a file, and parses each with the
grammar that wrote the corpus. A story's facts agree if every sentence is one that its plot can
say and no two of them contradict each other in the hero, a pronoun, another person, the place, the
trade or a thing. A sentence that no plot can say could hide a contradiction, so it counts as one.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

from machine import print_machine
from story_parser import Parsed, parse_story

from golpo.corpus import read_stories
from golpo.devices import pick_device
from golpo.evaluation import generate_batch
from golpo.inference import load_storyteller
from golpo.paths import DEFAULT_CHECKPOINT_DIR, DEFAULT_CORPUS
from golpo.stories import DEFAULT_SAMPLING, split_story
from golpo_utils import END

KINDS = ("hero", "pronoun", "friend", "helper", "place", "trade", "object")


def judge_stories(stories: list[str], corpus: set[str]) -> dict:
    """Figures over stories, each a text from <|start|> on. corpus: the prose of known stories."""
    parts = [split_story(text) for text in stories]
    parsed = [parse_story(title, prose) for title, prose in parts]
    sentences = max(1, sum(one.sentences for one in parsed))
    kinds = Counter(kind for one in parsed for kind in one.contradictions())
    new = [" ".join(prose.split()) not in corpus for _, prose in parts]
    return {
        "stories": len(stories),
        "ended": sum(END in text for text in stories),
        "titled": sum(title is not None for title, _ in parts),
        "distinct titles": len({title for title, _ in parts if title}),
        "facts agree throughout": sum(one.facts_agree() for one in parsed),
        "no contradiction found": sum(not one.contradictions() for one in parsed),
        **{f"contradiction: {kind}": kinds[kind] for kind in KINDS},
        "sentences of the grammar, %": 100 * sum(one.of_grammar for one in parsed) / sentences,
        "sentences of the plot, %": 100 * sum(one.of_plot for one in parsed) / sentences,
        "whole stories of the grammar": sum(one.is_whole() for one in parsed),
        "not in the corpus": sum(new),
    }


def describe_story(text: str, parsed: Parsed) -> dict:
    """What the grammar makes of one story."""
    return {
        "title": split_story(text)[0],
        "plot": parsed.plot.name,
        "facts_agree": parsed.facts_agree(),
        "contradictions": sorted(parsed.contradictions()),
        "sentences": parsed.sentences,
        "of_plot": parsed.of_plot,
        "of_grammar": parsed.of_grammar,
        "choices": parsed.choices(),
    }


def known_proses(path: Path = DEFAULT_CORPUS) -> set[str]:
    """The prose of each story of a corpus, its words separated by single spaces."""
    return {" ".join(split_story(text)[1].split()) for text in read_stories(path)}


def get_stories(options: argparse.Namespace) -> list[str]:
    """Stories from the file, or as many as asked for from the checkpoint."""
    if not options.stories.isdigit():
        return list(read_stories(Path(options.stories)))
    model, tokenizer, about = load_storyteller(options.checkpoint, pick_device())
    print(f"{about['path'].name}, step {about['global_step']:,}")
    return generate_batch(
        model,
        tokenizer,
        int(options.stories),
        temperature=options.temperature,
        top_k=options.top_k,
        min_p=options.min_p,
        seed=options.seed,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT_DIR)
    parser.add_argument("--stories", default="100", help="how many, or a file of stories")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=DEFAULT_SAMPLING["temperature"])
    parser.add_argument("--top-k", type=int, default=DEFAULT_SAMPLING["top_k"])
    parser.add_argument("--min-p", type=float, default=DEFAULT_SAMPLING["min_p"])
    parser.add_argument("--output", type=Path, help="a JSON file for the figures and each story")
    options = parser.parse_args()
    machine = print_machine()
    stories = get_stories(options)
    figures = judge_stories(stories, known_proses())
    for name, figure in figures.items():
        print(f"{name:32}{figure:8.4g}")
    if options.output:
        each = [describe_story(text, parse_story(*split_story(text))) for text in stories]
        sampling = {name: getattr(options, name) for name in ("temperature", "top_k", "min_p")}
        report = {"machine": machine, "sampling": sampling, "figures": figures, "each": each}
        options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
