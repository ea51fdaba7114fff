"""How good a checkpoint is: its loss, and measures of the stories that it generates."""

import functools
import json
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import tiktoken
import torch

from golpo.console import describe_error, print_safely
from golpo.corpus import CORPUS_VERSION, Corpus, load_corpus, read_options
from golpo.dataset import story_bounds
from golpo.devices import pick_device
from golpo.files import make_folder
from golpo.inference import load_storyteller
from golpo.legacy import upgrade_evaluation
from golpo.loss import evaluate_loss
from golpo.paths import DEFAULT_CHECKPOINT_DIR, DEFAULT_CORPUS
from golpo.plots import draw_evaluation
from golpo.request_measures import measure_requests
from golpo.requests import Request, request_opening
from golpo.stories import DEFAULT_SAMPLING, genre_prompt, split_story
from golpo.story_measures import GenreClassifier, TrainingText, genres_of, measure_stories, stems
from golpo.vocabulary import decode_stories
from golpo_utils import (
    END,
    GPTModel,
    check_number,
    encode,
    generate,
    start_id_of,
    story_opening,
)

STORIES_PER_GENRE = 5
REFERENCE_CHARACTERS = 5_000_000  # of the validation stories, the first of which are measured
IDS_AT_ONCE = 2**20
TOKENS_AT_ONCE = 2**13  # of the validation set; more would need more memory


def bits_per_byte(loss: float, predicted: int, ids: torch.Tensor, tokenizer) -> float:
    """The loss per byte of the text that was predicted: comparable between tokenizers.

    loss: nats per token, over `predicted` tokens. Each story's first token is not predicted, so
    its bytes do not count.
    """
    sizes = [len(tokenizer.decode_single_token_bytes(one)) for one in range(tokenizer.n_vocab)]
    sizes = torch.tensor(sizes)
    first_tokens = ids[story_bounds(ids, start_id_of(tokenizer))[:-1]].long()
    size = -int(sizes[first_tokens].sum())
    for begin in range(0, len(ids), IDS_AT_ONCE):
        size += int(sizes[ids[begin : begin + IDS_AT_ONCE].long()].sum())
    return loss * predicted / math.log(2) / size


def generate_batch(
    model: GPTModel,
    tokenizer: tiktoken.Encoding,
    count: int,
    max_new_tokens: int = DEFAULT_SAMPLING["max_new_tokens"],
    temperature: float = DEFAULT_SAMPLING["temperature"],
    top_k: int | None = DEFAULT_SAMPLING["top_k"],
    seed: int = 0,
    **sampling,
) -> list[str]:
    """`count` stories generated in one batch, each with <|end|> if it reached one."""
    check_number("count", count, 1, whole=True)
    openings = [story_opening(tokenizer)] * count
    options = {"temperature": temperature, "top_k": top_k, **sampling}
    return continue_openings(model, tokenizer, openings, max_new_tokens, seed, **options)


def continue_openings(
    model: GPTModel,
    tokenizer: tiktoken.Encoding,
    openings: list[list[int]],
    max_new_tokens: int,
    seed: int = 0,
    **sampling,
) -> list[str]:
    """The story that begins with each opening (see `story_opening`), with <|end|> if it has one.

    Openings of one length are continued as one batch. Each story has a seed of its own.
    """
    by_length = defaultdict(list)
    for number, opening in enumerate(openings):
        by_length[len(opening)].append(number)
    stories = {}
    for numbers in by_length.values():
        rows = generate(
            model,
            torch.tensor([openings[n] for n in numbers], device=model.tok_emb.weight.device),
            max_new_tokens,
            model.config["context_length"],
            eos_sequence=encode(END, tokenizer),
            seed=seed + len(stories),
            **sampling,
        )  # (b, t)
        for number, row in zip(numbers, rows.tolist(), strict=True):
            text = tokenizer.decode(row)
            stories[number] = text[: text.find(END) + len(END)] if END in text else text
    return [stories[number] for number in range(len(openings))]


def prompt_adherence(
    model: GPTModel,
    tokenizer: tiktoken.Encoding,
    titles: list[str],
    genres: dict[str, str] | None = None,
    max_new_tokens: int = DEFAULT_SAMPLING["max_new_tokens"],
    seed: int = 0,
    **sampling,
) -> dict:
    """Whether stories are about what was asked for: one for each title, some for each genre.

    title_words: the share of a title's `stems` that its story uses, on average.
    title_words_by_chance: the same against the stories of all other titles. genre_kept: share of
    stories that `GenreClassifier` takes for their own genre (genre → the text of its stories).
    """

    def prose_of(prompts: list[dict]) -> list[str]:
        openings = [story_opening(tokenizer, **prompt) for prompt in prompts]
        options = {"max_new_tokens": max_new_tokens, "seed": seed, **sampling}
        stories = continue_openings(model, tokenizer, openings, **options)
        return [split_story(story)[1] for story in stories]

    used = [stems(prose) for prose in prose_of([{"title": title} for title in titles])]
    shares = []
    by_chance = []
    for number, title in enumerate(titles):
        asked = stems(title)
        if asked:
            shares.append(share_used(asked, used[number]))
            others = used[:number] + used[number + 1 :]
            by_chance += [share_used(asked, other) for other in others]
    figures = {
        "title_words": float(np.mean(shares or [0])),
        "title_words_by_chance": float(np.mean(by_chance or [0])),
    }
    if genres and len(genres) > 1:
        classifier = GenreClassifier(genres)
        asked = [genre for genre in genres for _ in range(STORIES_PER_GENRE)]
        stories = prose_of([genre_prompt(genre) for genre in asked])
        found = [classifier.classify(prose) for prose in stories]
        hits = [genre == one for genre, one in zip(asked, found, strict=True)]
        figures["genre_kept"] = sum(hits) / len(hits)
    return figures


def share_used(asked: set[str], used: set[str]) -> float:
    """The share of the stems `asked` that are among the stems `used`."""
    return len(asked & used) / len(asked)


def write_requested(
    model: GPTModel, tokenizer: tiktoken.Encoding, options: dict, requests: list[Request]
) -> list[str]:
    """The prose of a story for each request. options: keywords of `continue_openings`."""
    openings = [story_opening(tokenizer, **request_opening(one)) for one in requests]
    stories = continue_openings(model, tokenizer, openings, **options)
    given = [len(tokenizer.decode(opening)) for opening in openings]
    return [split_story(story[n:])[1] for story, n in zip(stories, given, strict=True)]


def read_comparisons(paths: list[str | Path]) -> dict[str, dict]:
    """Figures that `evaluate` wrote for other checkpoints: name → figures. Raises ValueError."""
    others = {}
    for path in paths:
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            content = None
        figures = upgrade_evaluation(content) if isinstance(content, dict) else {}
        if "reference" not in figures:
            raise ValueError(
                f"{str(path)!r} has no figures of a checkpoint; give a JSON file that `evaluate` "
                f"wrote (its option output)"
            )
        others[Path(path).stem] = figures
    return others


def loss_figures(model: GPTModel, corpus: Corpus, tokenizer: tiktoken.Encoding) -> dict:
    """val_loss in nats per token, perplexity, bits_per_byte, over the whole validation set."""
    context_length = model.config["context_length"]
    start_id = start_id_of(tokenizer)
    batch_size = max(1, TOKENS_AT_ONCE // context_length)
    loss, predicted = evaluate_loss(
        model, corpus.val_ids, context_length, start_id, batch_size=batch_size
    )
    return {
        "val_loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": bits_per_byte(loss, predicted, corpus.val_ids, tokenizer),
    }


def evaluate(
    checkpoint: str | Path = DEFAULT_CHECKPOINT_DIR,
    data_path: str | Path | None = None,
    stories: int = 20,
    max_new_tokens: int = DEFAULT_SAMPLING["max_new_tokens"],
    temperature: float = DEFAULT_SAMPLING["temperature"],
    top_k: int | None = DEFAULT_SAMPLING["top_k"],
    min_p: float | None = DEFAULT_SAMPLING["min_p"],
    seed: int = 0,
    output: str | Path | None = None,
    which: str = "best",
    compare_with: list[str | Path] = (),
    requests: bool = False,
) -> dict:
    """Measure a checkpoint → a dict, printed as a table beside the corpus's validation stories.

    output: a JSON file for figures and stories, with a picture beside it. compare_with: such files
    of other checkpoints. The figures are those of `loss_figures`, `measure_stories`,
    `prompt_adherence` (titles of the validation stories), with requests also `measure_requests`.
    The split is the checkpoint's own, and so is the corpus without data_path.
    """
    check_number("stories", stories, 1, whole=True)
    others = read_comparisons(compare_with)
    if output:
        make_folder(Path(output).parent)
    model, tokenizer, about = load_storyteller(checkpoint, pick_device(), which)
    corpus = load_checkpoint_corpus(about, data_path, tokenizer)
    reference = first_stories(corpus.val_ids, tokenizer)
    titles = [title for title, _ in map(split_story, reference) if title][:stories]
    options = {"max_new_tokens": max_new_tokens, "seed": seed}
    options |= {"temperature": temperature, "top_k": top_k, "min_p": min_p}
    generated = generate_batch(model, tokenizer, stories, **options)
    training_stories = functools.partial(decode_stories, corpus.train_ids, tokenizer)
    training = TrainingText(training_stories(), sought=generated + reference)
    figures = {
        "checkpoint": about["path"].name,
        "step": about["global_step"],
        "parameters": model.parameter_count(),
        **loss_figures(model, corpus, tokenizer),
        **measure_stories(generated, training),
        **prompt_adherence(model, tokenizer, titles, genres_of(training_stories), **options),
    }
    write = functools.partial(write_requested, model, tokenizer, options)
    if requests:
        figures |= measure_requests(write, reference, training_stories, seed=seed)
    table = {"generated": figures, **others, "reference": measure_stories(reference, training)}
    print_table(table, list(figures))
    if output:
        write_evaluation(Path(output), table, generated)
    return figures


def first_stories(ids: torch.Tensor, tokenizer: tiktoken.Encoding) -> list[str]:
    """The texts of the first stories in ids (n,), of REFERENCE_CHARACTERS or little more."""
    texts = []
    size = 0
    for text in decode_stories(ids, tokenizer):
        texts.append(text)
        size += len(text)
        if size >= REFERENCE_CHARACTERS:
            break
    return texts


def write_evaluation(path: Path, table: dict[str, dict], generated: list[str]) -> None:
    """Write the figures and the stories as JSON to `path`, and a picture beside it."""
    content = {**table["generated"], "reference": table["reference"], "generated": generated}
    text = json.dumps(content, indent=1, ensure_ascii=False)
    path.write_text(text, encoding="utf-8")
    try:
        draw_evaluation(table).savefig(path.with_suffix(".png"), dpi=110)
    except Exception as error:
        print_safely(f"Warning: the figures were not drawn ({describe_error(error)}).")


def load_checkpoint_corpus(about: dict, data_path, tokenizer: tiktoken.Encoding) -> Corpus:
    """The corpus of a checkpoint, or the one at data_path, with the checkpoint's own split."""
    saved = about.get("settings") or {}
    options = read_options(saved)
    if data_path is not None and "corpus_version" not in saved:
        options["corpus_version"] = CORPUS_VERSION  # another corpus, of any format
    return load_corpus(
        data_path or saved.get("data_path", DEFAULT_CORPUS),
        tokenizer,
        saved.get("validation_fraction", 0.1),
        saved.get("seed", 0),
        **options,
    )


def print_table(table: dict[str, dict], names: list[str]) -> None:
    """Print a column for each entry of `table`, and a row for each of its figures."""
    print_safely(f"{'':28}" + "".join(f"{column:>20}" for column in table))
    for name in names:
        cells = [figures.get(name, "") for figures in table.values()]
        print_safely(f"{name:28}" + "".join(f"{describe_figure(cell):>20}" for cell in cells))
    if "names_last" not in names:
        print_safely("names_last does not apply: the script of these stories has no capitals.")


def describe_figure(figure) -> str:
    """A figure as it stands in the table."""
    if isinstance(figure, float):
        return f"{figure:.3f}" if abs(figure) < 1e9 else f"{figure:.3e}"
    return str(figure)
