"""The natural prompts in every client: how many nats does the next word cost after each?

    python benchmarks/prompts.py [CHECKPOINT] --corpus FILE [--stories 50] [--output FILE]

A prompt is a story's beginning, cut where a person may cut it, and tokenized by the client. What
follows, up to the end of the next word, is given in the tokens of training: these are the nats
that the client's model gives to them, the mean over stories that it has not trained on. A client
that tokenizes a prompt in another way than training did is worse in its row: see docs/export.md.
The last column is the same word inside the whole story, tokenized once.

Clients that are not installed are left out, and named. llama.cpp: see GOLPO_NODE_MODULES.
"""

import argparse
import importlib.util
import itertools
import json
import re
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from llama import ask_llama, has_llama
from machine import print_machine

from golpo.evaluation import load_checkpoint_corpus
from golpo.exports import export
from golpo.inference import load_storyteller
from golpo.stories import split_story
from golpo.vocabulary import decode_stories
from golpo_utils import START, TITLE, TITLE_END, GPTModel, encode, story_opening

LIMIT = 1.2  # × the best client: the most that a prompt may cost
PROMPTS = (
    "start",
    "start, line break",
    "start, title",
    "start, title, two line breaks",
    "start, title, two line breaks, three words",
)
Losses = list[list[float]]  # the nats of the ids that follow, for each case


class Case(NamedTuple):
    """A prompt, and the ids that follow it in training, up to the end of the next word."""

    kind: str
    prompt: str
    next_ids: list[int]
    in_story: float  # their nats in the whole story


def natural_prompts(title: str, prose: str) -> dict[str, tuple[str, str]]:
    """Each kind of prompt → the prompt, and the text that follows, up to the next word's end."""
    opened = f"{START}\n{TITLE}{title}{TITLE_END}"
    words = re.match(r"((\S+)\s+\S+\s+\S+)(\s+\S+)", prose)
    first_of_title = f"{TITLE}{title.split()[0]}"
    continuations = (
        (START, f"\n{first_of_title}"),
        (f"{START}\n", first_of_title),
        (opened, f"\n\n{words[2]}"),
        (f"{opened}\n\n", words[2]),
        (f"{opened}\n\n{words[1]}", words[3]),
    )
    return dict(zip(PROMPTS, continuations, strict=True))


@torch.inference_mode()
def nats_of(model: GPTModel, ids: list[int], count: int) -> list[float]:
    """The nats of the last `count` ids."""
    logits = model(torch.tensor([ids[:-1]]))[0, -count:]
    return F.cross_entropy(logits, torch.tensor(ids[-count:]), reduction="none").tolist()


def cut_story(story: str, model: GPTModel, tokenizer) -> list[Case]:
    """The cases of one story; none where a token reaches across the end of a prompt or word.

    A prompt's own tokens may differ from the story's, so that its end there is found in bytes.
    """
    title, prose = split_story(story)
    if not title or re.match(r"(\S+\s+){3}\S+", prose) is None:
        return []
    whole = encode(story, tokenizer)
    cases = []
    for kind, (prompt, word) in natural_prompts(title, prose).items():
        start = count_tokens(whole, len(prompt.encode()), tokenizer)
        end = count_tokens(whole, len((prompt + word).encode()), tokenizer)
        if start is None or end is None:
            return []
        ids = whole[:end]
        nats = sum(nats_of(model, ids, end - start))
        cases.append(Case(kind, prompt, ids[start:], nats))
    return cases


def count_tokens(ids: list[int], size: int, tokenizer) -> int | None:
    """How many of the first ids have `size` bytes; None if a token reaches across."""
    sizes = itertools.accumulate(len(tokenizer.decode_single_token_bytes(one)) for one in ids)
    return next((n for n, total in enumerate(sizes, 1) if total == size), None)


def collect_cases(stories: Iterator[str], count: int, model, tokenizer) -> list[Case]:
    """The cases of the first `count` stories that have a title and can be cut."""
    cut = (cut_story(story.strip("\n"), model, tokenizer) for story in stories)
    cases = list(itertools.islice(filter(None, cut), count))
    if not cases:
        raise SystemExit("no story of the corpus has a title and can be cut into prompts")
    return list(itertools.chain.from_iterable(cases))


def score_here(model: GPTModel, tokenizer, cases: list[Case], folder: Path) -> Losses:
    losses = []
    for case in cases:
        ids = story_opening(tokenizer, case.prompt, markers=True) + case.next_ids
        losses.append(nats_of(model, ids, len(case.next_ids)))
    return losses


@torch.inference_mode()
def score_transformers(model: GPTModel, tokenizer, cases: list[Case], folder: Path) -> Losses:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    export(model, tokenizer, str(folder / "hf"), "hf")
    theirs = AutoModelForCausalLM.from_pretrained(folder / "hf").eval()
    text = AutoTokenizer.from_pretrained(folder / "hf")
    losses = []
    for case in cases:
        ids = text(case.prompt)["input_ids"] + case.next_ids
        logits = theirs(torch.tensor([ids])).logits[0, -len(case.next_ids) - 1 : -1]
        targets = torch.tensor(case.next_ids)
        losses.append(F.cross_entropy(logits, targets, reduction="none").tolist())
    return losses


def score_ctranslate2(model: GPTModel, tokenizer, cases: list[Case], folder: Path) -> Losses:
    import ctranslate2
    import numpy as np
    from transformers import PreTrainedTokenizerFast

    export(model, tokenizer, str(folder / "ct2"), "ctranslate2", "float32")
    theirs = ctranslate2.Generator(str(folder / "ct2"), device="cpu")
    text = PreTrainedTokenizerFast(tokenizer_file=str(folder / "ct2" / "tokenizer.json"))
    losses = []
    for case in cases:
        ids = text(case.prompt)["input_ids"] + case.next_ids
        found = theirs.forward_batch([text.convert_ids_to_tokens(ids)])
        logits = torch.from_numpy(np.array(found))[0, -len(case.next_ids) - 1 : -1]
        targets = torch.tensor(case.next_ids)
        losses.append(F.cross_entropy(logits, targets, reduction="none").tolist())
    return losses


def score_llama(model: GPTModel, tokenizer, cases: list[Case], folder: Path) -> Losses:
    export(model, tokenizer, str(folder / "model.gguf"), "gguf", "f32")
    scored = [(case.prompt, case.next_ids) for case in cases]
    asked = {"scored": scored, "threads": 1, "context": model.config["context_length"]}
    return ask_llama(folder / "model.gguf", **asked)["scored"]


def find_clients() -> dict[str, Callable[..., Losses]]:
    """The clients that are installed; the others are named."""

    def has(*packages: str) -> bool:
        return all(importlib.util.find_spec(package) for package in packages)

    clients = {
        "here": (True, score_here),
        "transformers": (has("transformers"), score_transformers),
        "llama.cpp": (has_llama() and has("gguf"), score_llama),
        "ctranslate2": (has("ctranslate2", "transformers"), score_ctranslate2),
    }
    for name, (is_there, _) in clients.items():
        if not is_there:
            print(f"{name} is not installed; it is left out")
    return {name: score for name, (is_there, score) in clients.items() if is_there}


def mean_by_kind(values: list[float], cases: list[Case]) -> dict[str, float]:
    """The mean of the values of each kind of prompt."""
    groups = {kind: [] for kind in PROMPTS}
    for case, value in zip(cases, values, strict=True):
        groups[case.kind].append(value)
    return {kind: sum(group) / len(group) for kind, group in groups.items()}


def measure(checkpoint: str, options: Namespace) -> dict:
    """Score all prompts in all clients → facts and "rows", one for each kind of prompt."""
    model, tokenizer, about = load_storyteller(checkpoint, which="best")
    corpus = load_checkpoint_corpus(about, options.corpus, tokenizer)
    stories = decode_stories(corpus.val_ids, tokenizer)
    cases = collect_cases(stories, options.stories, model, tokenizer)
    columns = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, score in find_clients().items():
            losses = score(model, tokenizer, cases, Path(folder))
            columns[name] = mean_by_kind(list(map(sum, losses)), cases)
    reference = mean_by_kind([case.in_story for case in cases], cases)
    rows = []
    for kind in PROMPTS:
        nats = {name: round(means[kind], 3) for name, means in columns.items()}
        best = min(*nats.values(), reference[kind])
        worst = round(max(nats.values()) / best, 3)
        rows.append(
            {"prompt": kind, **nats, "in_story": round(reference[kind], 3), "worst_ratio": worst}
        )
    return {"stories": len(cases) // len(PROMPTS), "tokens": tokenizer.n_vocab, "rows": rows}


def print_result(result: dict) -> None:
    """Print what `measure` returned as a table."""
    print(f"nats of the next word, mean over {result['stories']} validation stories\n")
    names = [name for name in result["rows"][0] if name not in ("prompt", "worst_ratio")]
    print(f"{'prompt':44}", *(f"{name:>13}" for name in names), f"{'worst / best':>13}")
    for row in result["rows"]:
        numbers = (f"{row[name]:13.3f}" for name in names)
        print(f"{row['prompt']:44}", *numbers, f"{row['worst_ratio']:13.3f}")
    worst = max(row["worst_ratio"] for row in result["rows"])
    print(f"\nthe worst is {worst:.3f} × the best; at most {LIMIT} is wanted")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", nargs="?", default="bundled")
    parser.add_argument("--corpus", type=Path, help="the corpus that the model was trained on")
    parser.add_argument("--stories", type=int, default=50)
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    facts = print_machine()
    result = measure(options.checkpoint, options)
    print_result(result)
    if options.output:
        text = json.dumps(
            {"machine": facts, "checkpoint": Path(options.checkpoint).name, **result}, indent=1
        )
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
