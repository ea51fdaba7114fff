"""What does each part of the recipe bring? From the original's recipe upward, one change at a time.

    python benchmarks/ablations.py --corpus fairytales.txt                   all without a result
    python benchmarks/ablations.py --corpus fairytales.txt --only "decay 1"  this one alone
    python benchmarks/ablations.py --show                                    the table of results
    python benchmarks/ablations.py --corpus fairytales.txt --size 124M       original size (GPU)

Each training: 4 layers x 128, context 128, batch 8, the same stories (the file's first, up to
--tokens GPT-2 tokens, and sixty thousand tokens of further ones to validate on), the same number of
epochs, --seed. Losses are in nats per GPT-2 token of the validation text, whatever the training's
own vocabulary, so all can be compared. Results are added to benchmarks/ablations.json, those of the
124M size to benchmarks/ablations_124M.json, or to --output.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path

import tiktoken
import torch
import torch.nn as nn
from machine import BENCHMARKS, print_machine
from torch import Tensor

from golpo.corpus import Corpus, read_stories
from golpo.devices import pick_device
from golpo.evaluation import generate_batch
from golpo.huggingface import load_gpt2_weights
from golpo.optim import make_optimizer
from golpo.progress import TerminalProgress
from golpo.settings import PRESETS, Settings
from golpo.step import TrainingStep
from golpo.story_measures import TrainingText, measure_stories
from golpo.trainer import Trainer, TrainingState
from golpo_utils import GPTModel, encode, get_tokenizer, start_id_of

RESULTS = {
    "small": BENCHMARKS / "ablations.json",
    "124M": BENCHMARKS / "ablations_124M.json",
}
VALIDATION_TOKENS = 60_000
STORIES = 20
# name → shape, GPT-2 tokens to train on, epochs
SMALL_SHAPE = {"context_length": 128, "emb_dim": 128, "n_heads": 4, "n_layers": 4}
LARGE_SHAPE = {"context_length": 512, "emb_dim": 768, "n_heads": 12, "n_layers": 12}
SIZES = {"small": (SMALL_SHAPE, 300_000, 6), "124M": (LARGE_SHAPE, 3_400_000, 4)}
SAME_FOR_ALL = ("config", "num_epochs", "batch_size")
MODEL_KEYS = ("vocab_size", "tie_embeddings", "init_std", "drop_rate")
ORIGINAL = {name: value for name, value in PRESETS["original"].items() if name not in SAME_FOR_ALL}
ORIGINAL |= {"vocab_size": 50261, "tie_embeddings": False, "init_std": None, "drop_rate": 0.1}
FIRST = "the original's recipe"
SCHEDULE = {
    "learning_rate": 1e-3,
    "warmup": 0.05,
    "final_learning_rate": 0.1,
    "grad_clip": 1.0,
    "beta2": 0.95,
}
COLUMNS = (
    "| recipe | base | seeds | best | final | training | bits per byte | below the original's "
    "| below its base | titled | distinct titles | repeated 4-grams, median | verbatim 8-grams "
    "| names last |"
)


class Recipes:
    """Recipes by name; each is another one with a change."""

    def __init__(self):
        self.base = {FIRST: ""}
        self.settings = {FIRST: ORIGINAL}

    def add(self, name: str, base: str, **change) -> str:
        """Add a recipe: that of `base` with a change."""
        self.base[name] = base
        self.settings[name] = {**self.settings[base], **change}
        return name


def make_recipes(size: str) -> Recipes:
    """All recipes of a size, each with its base."""
    recipes = Recipes()
    if size == "124M":
        add_large_recipes(recipes)
    else:
        base = add_steps(recipes)
        add_single_changes(recipes, base)
    return recipes


def add_large_recipes(recipes: Recipes) -> None:
    """For the original's size: everything that the small size kept, at once."""
    ours = recipes.add(
        "ours",
        FIRST,
        tie_embeddings=True,
        init_std=0.02,
        **SCHEDULE,
        optimizer="muon",
        decay_all=False,
        align_to_stories=True,
        shift_windows=True,
        batch_size=16,
    )
    recipes.add("ours, dropout 0.2", ours, drop_rate=0.2)
    recipes.add("ours, peak 4e-4", ours, learning_rate=4e-4)
    recipes.add("ours, peak 2e-3, dropout 0.2", ours, learning_rate=2e-3, drop_rate=0.2)


def add_steps(recipes: Recipes) -> str:
    """From the original's recipe upward, each step on the one before; return the base of others."""
    add = recipes.add
    cut = add("+ vocabulary of 4,096", FIRST, vocab_size=4096)
    init = add("+ GPT-2's initialization", cut, init_std=0.02)
    tied = add("+ tied head", init, tie_embeddings=True)
    schedule = add("+ warm-up, cosine, clipping, beta2 0.95, peak 1e-3", tied, **SCHEDULE)
    peak = add("+ peak 4e-3", schedule, learning_rate=4e-3)
    decay = add("+ decay on matrices only", peak, decay_all=False)
    aligned = add("+ windows aligned to stories", decay, align_to_stories=True)
    whole = add("GPT-2's whole vocabulary again", aligned, vocab_size=50261)
    add("whole vocabulary, shifted windows", whole, shift_windows=True)
    add(
        "whole vocabulary, shifted windows, peak 2e-3",
        whole,
        shift_windows=True,
        learning_rate=2e-3,
    )
    add("whole vocabulary, shifted windows, Muon", whole, optimizer="muon", shift_windows=True)
    return add("vocabulary of 16,384", aligned, vocab_size=16384)


def add_single_changes(recipes: Recipes, base: str) -> None:
    """One change each, on the recipe `base`."""
    changes = {
        "Hugging Face's GPT-2, the same settings": {"peer": True},
        "dropout 0": {"drop_rate": 0.0},
        "dropout 0.2": {"drop_rate": 0.2},
        "dropout 0.3": {"drop_rate": 0.3},
        "decay 0.3": {"weight_decay": 0.3},
        "decay 1": {"weight_decay": 1.0},
        "decay 3": {"weight_decay": 3.0},
        "peak 2e-3": {"learning_rate": 2e-3},
        "peak 8e-3": {"learning_rate": 8e-3},
        "beta2 0.999": {"beta2": 0.999},
        "initialization 0.05": {"init_std": 0.05},
        "down to a rate of 0": {"final_learning_rate": 0.0},
        "averaged weights (EMA, 0.998)": {"average": 0.998},
        "windows side by side": {"align_to_stories": False},
        "shifted windows": {"shift_windows": True},
        "untied head": {"tie_embeddings": False},
        "Muon": {"optimizer": "muon"},
        "3 epochs": {"num_epochs": 3},
        "12 epochs": {"num_epochs": 12},
    }
    for name, change in changes.items():
        recipes.add(name, base, **change)
    shifted = recipes.add("Muon, shifted windows", "Muon", shift_windows=True)
    recipes.add("Muon, shifted windows, dropout 0.2", shifted, drop_rate=0.2)


class HuggingFacePeer(nn.Module):
    """transformers' GPT-2 of the same size, with what a training needs of our GPTModel."""

    def __init__(self, config: dict):
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        rate = config["drop_rate"]
        self.config = dict(config)
        self.gpt2 = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=config["vocab_size"],
                n_positions=config["context_length"],
                n_embd=config["emb_dim"],
                n_layer=config["n_layers"],
                n_head=config["n_heads"],
                resid_pdrop=rate,
                embd_pdrop=rate,
                attn_pdrop=rate,
            )
        )
        self.tok_emb = self.gpt2.transformer.wte
        self.pos_emb = self.gpt2.transformer.wpe
        self.out_head = self.gpt2.lm_head

    def hidden_states(self, token_ids: Tensor) -> Tensor:
        return self.gpt2.transformer(token_ids).last_hidden_state  # (b, t, d)


class AveragingTrainer(Trainer):
    """A trainer that validates an exponential moving average of the weights, if `average` > 0."""

    average = 0.0

    def train_step(self) -> None:
        super().train_step()
        if not self.average:
            return
        weights = [parameter.detach() for parameter in self.model.parameters()]
        if not hasattr(self, "averages"):
            self.averages = [weight.clone() for weight in weights]
        steps = self.state.global_step
        keep = min(self.average, steps / (steps + 10))  # short at first
        torch._foreach_lerp_(self.averages, weights, 1 - keep)

    @torch.no_grad()
    def validation_loss(self) -> float:
        if not self.average:
            return super().validation_loss()
        weights = list(self.model.parameters())
        own = [weight.clone() for weight in weights]
        for weight, average in zip(weights, self.averages, strict=True):
            weight.copy_(average)
        loss = super().validation_loss()
        for weight, value in zip(weights, own, strict=True):
            weight.copy_(value)
        return loss


def cut_corpus(path: str, tokens: int, folder: Path) -> tuple[Path, Path]:
    """Two files: the first stories with `tokens` GPT-2 tokens, and those after them to validate."""
    gpt2 = get_tokenizer()
    stories = read_stories(path)
    paths = (folder / "train.txt", folder / "validation.txt")
    for part, limit in zip(paths, (tokens, VALIDATION_TOKENS), strict=True):
        count = 0
        with open(part, "w", encoding="utf-8") as file:
            for story in stories:
                file.write(story)
                count += len(encode(story, gpt2))
                if count > limit:
                    break
    return paths


def ids_of(path: Path, tokenizer: tiktoken.Encoding) -> Tensor:
    return torch.tensor(encode(path.read_text(encoding="utf-8"), tokenizer))


def train(
    model: nn.Module,
    corpus: Corpus,
    tokenizer: tiktoken.Encoding,
    settings: Settings,
    average: float,
) -> TrainingState:
    """Train `model` in place, without checkpoints."""
    optimizer = make_optimizer(model, settings)
    start_id = start_id_of(tokenizer)
    step = TrainingStep(model, optimizer, corpus.train_ids, start_id, settings)
    state = TrainingState()
    progress = TerminalProgress()
    trainer = AveragingTrainer(step, corpus, tokenizer, state, None, progress)
    trainer.average = average
    progress.start(state, step.total_steps)
    trainer.run()
    progress.finish(state, step.total_steps)
    return state


def run_recipe(name: str, recipe: dict, options: Namespace, folder: Path) -> dict:
    """Train with a recipe → its result, as the JSON file has it."""
    shape, tokens, epochs = SIZES[options.size]
    recipe = {"num_epochs": options.epochs or epochs, "batch_size": 8, **recipe}
    own = dict(recipe)
    is_peer = own.pop("peer", False)
    average = own.pop("average", 0.0)
    config = {**shape, "qkv_bias": False, **{key: own.pop(key) for key in MODEL_KEYS}}
    settings = Settings(
        config=config, seed=options.seed, sample_tokens=0, checkpoint_dir=str(folder), **own
    )
    tokenizer = get_tokenizer(config["vocab_size"])
    train_path, val_path = cut_corpus(options.corpus, options.tokens or tokens, folder)
    corpus = Corpus(ids_of(train_path, tokenizer), ids_of(val_path, tokenizer), 0, 0, "", [])
    predicted = len(corpus.val_ids) - 1
    per_gpt2_token = predicted / (len(ids_of(val_path, get_tokenizer())) - 1)
    torch.manual_seed(options.seed)
    model = (HuggingFacePeer if is_peer else GPTModel)(config).to(pick_device())
    started = time.perf_counter()
    state = train(model, corpus, tokenizer, settings, average)
    seconds = time.perf_counter() - started
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if is_peer:
        weights = model.cpu().gpt2.state_dict()
        model = load_gpt2_weights(GPTModel(config | {"qkv_bias": True}), weights)
    generated = generate_batch(model, tokenizer, STORIES, min_p=0.05)
    losses = [loss * per_gpt2_token for loss in state.val_losses]
    bits = min(state.val_losses) * predicted / math.log(2)
    return {
        "name": name,
        "seed": options.seed,
        "recipe": recipe | config,
        "parameters": parameters,
        "tokens_seen": state.tokens_seen,
        "best": min(losses),
        "final": losses[-1],
        "final_training": state.train_losses[-1] * per_gpt2_token,
        "bits_per_byte": bits / val_path.stat().st_size,
        "losses": losses,
        "stories": measure_stories(generated, TrainingText(read_stories(train_path), generated)),
        "seconds": round(seconds),
    }


class ResultTable:
    """Results as a Markdown table, a row a recipe: means over its seeds."""

    def __init__(self, results: list[dict]):
        self.found = {}
        for result in results:
            self.found.setdefault(result["name"], {})[result["seed"]] = result

    def difference(self, other: str, name: str) -> str:
        """By how much the best loss is below another recipe's, on the seeds that both have."""
        others = self.found.get(other, {})
        own = self.found[name]
        pairs = [others[seed]["best"] - own[seed]["best"] for seed in own if seed in others]
        if not pairs:
            return ""
        spread = f" ({min(pairs):+.3f} to {max(pairs):+.3f})" if len(pairs) > 1 else ""
        return f"{statistics.mean(pairs):+.3f}{spread}"

    def row(self, name: str, base: str) -> str:
        """One recipe's row."""
        own = list(self.found[name].values())

        def mean(key: str) -> float:
            return statistics.mean(result[key] for result in own)

        def story_mean(key: str) -> float:
            return statistics.mean(result["stories"][key] for result in own)

        cells = (
            name,
            base,
            len(own),
            f"{mean('best'):.3f}",
            f"{mean('final'):.3f}",
            f"{mean('final_training'):.3f}",
            f"{mean('bits_per_byte'):.3f}",
            self.difference(FIRST, name) if base else "",
            self.difference(base, name),
            f"{story_mean('titled'):.0%}",
            f"{story_mean('distinct_titles'):.3g}",
            f"{story_mean('repeated_4grams_median'):.3f}",
            f"{story_mean('verbatim_8grams'):.1%}",
            f"{story_mean('names_last'):.2f}",
        )
        return "| " + " | ".join(map(str, cells)) + " |"

    def print(self, recipes: Recipes) -> None:
        print(COLUMNS)
        print("| --- " * (COLUMNS.count("|") - 1) + "|")
        for name, base in recipes.base.items():
            if name in self.found:
                print(self.row(name, base))


def parse_options() -> Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--corpus", help="a file of stories")
    parser.add_argument("--size", choices=SIZES, default="small", help="124M needs a GPU")
    parser.add_argument("--tokens", type=int, help="GPT-2 tokens to train on: 300,000 or 3,400,000")
    parser.add_argument("--epochs", type=int, help="6, with the size 124M 4")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", metavar="NAME", help="one recipe alone")
    parser.add_argument("--show", action="store_true", help="print the results and stop")
    parser.add_argument("--output", type=Path, help="the file of results")
    options = parser.parse_args()
    options.output = options.output or RESULTS[options.size]
    names = make_recipes(options.size).settings
    if options.only not in ("", *names):
        parser.error(f"there is no recipe {options.only!r}; they are {', '.join(names)}")
    if not options.corpus and not options.show:
        parser.error("give --corpus FILE, or --show")
    return options


def main() -> None:
    options = parse_options()
    recipes = make_recipes(options.size)
    results = json.loads(options.output.read_text()) if options.output.exists() else []
    done = {(result["name"], result["seed"]) for result in results}
    if not options.show:
        facts = print_machine()
        for name, recipe in recipes.settings.items():
            if options.only not in ("", name) or (name, options.seed) in done:
                continue
            with tempfile.TemporaryDirectory() as folder:
                result = run_recipe(name, recipe, options, Path(folder))
            results.append(result | {"machine": facts})
            options.output.write_text(json.dumps(results, indent=1) + "\n")
    ResultTable(results).print(recipes)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
