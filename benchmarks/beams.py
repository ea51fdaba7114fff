"""What beam search does to stories: for the same titles, beams of several widths and sampling.

    python benchmarks/beams.py [CHECKPOINT] [--titles 20] [--output FILE]

Prints, for each way, the score that beam search looks for (the log-probability of a token, mean
over the story), the share of runs of four words that occur again, how many stories begin with
other words than the rest, and how many end.
"""

import argparse
import json
from argparse import Namespace
from pathlib import Path

import torch
from machine import print_machine, seconds

from golpo.beam_search import beam_search
from golpo.inference import load_storyteller
from golpo.stories import DEFAULT_SAMPLING, split_story
from golpo.story_measures import measure_stories, repeated_share
from golpo_utils import END, GPTModel, encode, generate, story_opening

TITLES = """
    The Lost Key / The Old Mill / A Rainy Day / The Brave Mouse / The Broken Kite / The Red Boat
    The Quiet Owl / Grandma's Garden / The Big Race / The Hidden Door / A New Friend / The Moon
    The Lonely Tree / The Birthday Cake / The Little Train / The Snowman / The Magic Stone
    The Hungry Fox / The Last Apple / The Music Box
"""
COLUMNS = {
    "log_probability": "log-probability",
    "repeated_4grams_mean": "4-grams again, mean",
    "repeated_4grams_median": "median",
    "repeated_4grams_worst": "worst",
    "distinct_openings": "openings",
    "ended": "ended",
}


def read_titles(count: int) -> list[str]:
    """The first `count` titles of the list."""
    return [title.strip() for title in TITLES.strip().replace("\n", "/").split("/")][:count]


@torch.inference_mode()
def score(model: GPTModel, ids: torch.Tensor, opening: int) -> float:
    """The mean log-probability of the tokens after the opening, ids (1, t)."""
    logs = model(ids[:, :-1]).log_softmax(dim=-1)
    each = logs.gather(2, ids[:, 1:, None])[:, opening - 1 :, 0]
    return float(each.mean())


def write_stories(model, tokenizer, titles: list[str], options: Namespace, way: dict) -> dict:
    """Stories by beams (way: "num_beams" and more) or by sampling (the fields of Sampling)."""
    end = encode(END, tokenizer)
    context = model.config["context_length"]
    stories, scores = [], []
    for title in titles:
        opening = story_opening(tokenizer, title=title)
        idx = torch.tensor([opening])
        most = min(options.max_new_tokens, context - len(opening))
        if "num_beams" in way:
            ids = beam_search(model, idx, most, context, eos_sequence=end, **way).ids[:, 0]
        else:
            ids = generate(model, idx, most, context, eos_sequence=end, seed=1, **way)
        ids = cut_after(ids, end)
        stories.append(tokenizer.decode(ids[0].tolist()))
        scores.append(score(model, ids, len(opening)))
    figures = measure_stories(stories)
    repeated = [repeated_share(split_story(story)[1]) or 0 for story in stories]
    figures["repeated_4grams_mean"] = sum(repeated) / len(repeated)
    figures["log_probability"] = sum(scores) / len(scores)
    return figures


def cut_after(ids: torch.Tensor, end: list[int]) -> torch.Tensor:
    """ids (1, t) up to the first `end`; what follows only fills them up."""
    for last in range(len(end), ids.shape[1]):
        if ids[0, last - len(end) : last].tolist() == end:
            return ids[:, :last]
    return ids


def list_ways() -> dict[str, dict]:
    """Name → the settings of a way."""
    sampling = {key: value for key, value in DEFAULT_SAMPLING.items() if key != "max_new_tokens"}
    beams = {f"{n} beam{'s' * (n > 1)}": {"num_beams": n} for n in (1, 2, 4, 8)}
    without_repetition = {"num_beams": 4, "no_repeat_ngram_size": 4}
    return {"sampling": sampling, **beams, "4 beams, no 4-gram twice": without_repetition}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", nargs="?", default="bundled")
    parser.add_argument("--titles", type=int, default=20, help="stories for each way, at most 20")
    parser.add_argument("--max-new-tokens", type=int, default=400)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    facts = print_machine()
    model, tokenizer, _ = load_storyteller(options.checkpoint)
    titles = read_titles(options.titles)
    print(
        f"{len(titles)} titles\n{'':26}", *(f"{one:>20}" for one in COLUMNS.values()), "  seconds"
    )
    rows = []
    for name, way in list_ways().items():
        row = {"way": name}
        time = seconds(
            lambda row=row, way=way: row.update(
                write_stories(model, tokenizer, titles, options, way)
            )
        )
        row["seconds"] = round(time, 1)
        cells = (f"{row[column]:20.3f}" for column in COLUMNS)
        print(f"{name:26}", *cells, f"{time:9.1f}", flush=True)
        rows.append(row)
        if options.output:
            text = json.dumps({"machine": facts, "titles": len(titles), "rows": rows}, indent=1)
            options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
