"""What does each part of the recipe bring? From the original's recipe upward, one change at a time.

    python benchmarks/ablations.py --corpus fairytales.txt                   all without a result
    python benchmarks/ablations.py --corpus fairytales.txt --only "decay 1"  this one alone
    python benchmarks/ablations.py --show                                    the table of results
    python benchmarks/ablations.py --corpus fairytales.txt --size 124M       original size (GPU)
    python benchmarks/ablations.py --corpus simple_stories.txt --size overfit   many passes

Each training: 4 layers x 128, context 128, batch 8, the same stories (the file's first, up to
--tokens GPT-2 tokens, and sixty thousand tokens of further ones to validate on), the same number of
epochs, --seed. Losses are in nats per GPT-2 token of the validation text, whatever the training's
own vocabulary, so all can be compared. The size "overfit" is in overfitting.py. Each size has a
file of results beside this one, such as ablations_124M.json, unless --output names another.
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

import overfitting
import tiktoken
import torch
import torch.nn as nn
from machine import BENCHMARKS, PROJECT, print_machine
from overfitting import DistillationLoss, WeightAverages, ensemble_loss
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
from golpo.tokenizer import train_tokenizer
from golpo.trainer import Trainer, TrainingState
from golpo_utils import GPTModel, encode, get_tokenizer, start_id_of

RESULTS = {
    "small": BENCHMARKS / "ablations.json",
    "124M": BENCHMARKS / "ablations_124M.json",
    "overfit": overfitting.RESULTS,
}
VALIDATION_TOKENS = {"small": 60_000, "124M": 60_000, "overfit": overfitting.VALIDATION_TOKENS}
STORIES = 20
MODELS = PROJECT / "output" / "ablations"  # what may teach a student
# name → shape, GPT-2 tokens to train on, epochs
SMALL_SHAPE = {"context_length": 128, "emb_dim": 128, "n_heads": 4, "n_layers": 4}
LARGE_SHAPE = {"context_length": 512, "emb_dim": 768, "n_heads": 12, "n_layers": 12}
SIZES = {
    "small": (SMALL_SHAPE, 300_000, 6),
    "124M": (LARGE_SHAPE, 3_400_000, 4),
    "overfit": (overfitting.SHAPE, overfitting.TOKENS, overfitting.EPOCHS),
}
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

    def __init__(self, first: str, settings: dict):
        self.first = first
        self.base = {first: ""}
        self.settings = {first: settings}

    def add(self, name: str, base: str, **change) -> str:
        """Add a recipe: that of `base` with a change."""
        self.base[name] = base
        self.settings[name] = {**self.settings[base], **change}
        return name


def make_recipes(size: str) -> Recipes:
    """All recipes of a size, each with its base."""
    if size == "overfit":
        recipes = Recipes(overfitting.BASE, overfitting.TODAY)
        overfitting.add_overfit_recipes(recipes)
        return recipes
    recipes = Recipes(FIRST, ORIGINAL)
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
    # What helped at the size that overfits, and what it must be compared with.
    recipes.add("ours, input noise 10%", ours, input_noise=0.1)
    longer = recipes.add("ours, 8 passes", ours, num_epochs=8)
    noisy = recipes.add("ours, 8 passes, input noise 10%", longer, input_noise=0.1)
    recipes.add("ours, 8 passes, input noise 10%, two teachers", noisy, teachers=(noisy, (2, 3)))


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
    """A trainer that keeps averages of the weights, and can validate one instead of the weights."""

    averages: WeightAverages | None = None
    validated = ""  # the name of the average that is validated
    epochs_between = 0  # evaluations come after so many epochs; 0: as the settings say
    decay_grows = False  # from 0 to twice the weight decay, in proportion to the steps

    def train_step(self) -> None:
        if self.decay_grows:
            share = 2 * self.state.global_step / self.step.total_steps
            self.step.optimizer.param_groups[0]["weight_decay"] = share * self.settings.weight_decay
        super().train_step()
        if self.averages is not None:
            self.averages.note_step(self.state.global_step, self.epoch_has_ended())

    def evaluation_is_due(self) -> bool:
        if not self.epochs_between:
            return super().evaluation_is_due()
        return self.state.global_step % (self.epochs_between * self.step.steps_per_epoch) == 0

    def validation_loss(self) -> float:
        if not self.validated:
            return super().validation_loss()
        return self.averages.losses(super().validation_loss, [self.validated])[self.validated]


def cut_corpus(path: str, tokens: int, validation: int, folder: Path) -> tuple[Path, Path]:
    """Two files: the first stories with `tokens` GPT-2 tokens, and those after them to validate."""
    gpt2 = get_tokenizer()
    stories = read_stories(path)
    paths = (folder / "train.txt", folder / "validation.txt")
    for part, limit in zip(paths, (tokens, validation), strict=True):
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


class Recipe:
    """A recipe's parts: the model's config, a training's settings, and what is the benchmark's own.

    average: the rate of the moving average that is validated. teachers: (recipe, seeds) of models
    that teach this one, as (1 - share) × cross-entropy + share × KL. Raises TypeError for a key
    that no part knows.
    """

    def __init__(self, recipe: dict, options: Namespace, folder: Path):
        shape, _, epochs = SIZES[options.size]
        own = {"num_epochs": options.epochs or epochs, "batch_size": 8, **recipe}
        self.config = {**shape, "qkv_bias": False, **{key: own.pop(key) for key in MODEL_KEYS}}
        self.all = own | self.config
        self.is_peer = own.pop("peer", False)
        self.average = own.pop("average", 0.0)
        self.decay_grows = own.pop("decay_grows", False)
        self.teachers = own.pop("teachers", None)
        self.share = own.pop("share", 0.5)
        self.settings = Settings(
            config=self.config,
            seed=options.seed,
            sample_tokens=0,
            checkpoint_dir=str(folder),
            **own,
        )


def model_path(size: str, name: str, seed: int) -> Path:
    """Where a trained model's weights are kept for students."""
    return MODELS / f"{size} {name} {seed}.pt".replace(" ", "_").replace("/", "_")


def load_teachers(recipe: Recipe, size: str) -> list[GPTModel]:
    """The models that teach a recipe's student. Raises FileNotFoundError if one is not trained."""
    name, seeds = recipe.teachers
    teachers = []
    for seed in seeds:
        path = model_path(size, name, seed)
        if not path.exists():
            raise FileNotFoundError(
                f"the teacher {name!r} of seed {seed} is not at {path}; train it first, with "
                f"--only and --seed"
            )
        teacher = GPTModel(recipe.config).to(pick_device())
        teacher.load_state_dict(torch.load(path, weights_only=True))
        teachers.append(teacher)
    return teachers


def make_trainer(
    model: nn.Module, corpus: Corpus, tokenizer: tiktoken.Encoding, recipe: Recipe, size: str
) -> AveragingTrainer:
    """What trains `model` with a recipe, without checkpoints."""
    settings = recipe.settings
    optimizer = make_optimizer(model, settings)
    start_id = start_id_of(tokenizer)
    step = TrainingStep(model, optimizer, corpus.train_ids, start_id, settings, tokenizer)
    if recipe.teachers:
        step.loss_of = DistillationLoss(model, load_teachers(recipe, size), recipe.share)
    trainer = AveragingTrainer(step, corpus, tokenizer, TrainingState(), None, TerminalProgress())
    trainer.decay_grows = recipe.decay_grows
    if recipe.average:
        trainer.averages = WeightAverages(model, (recipe.average,), ())
        trainer.validated = f"EMA {recipe.average}"
    elif size == "overfit":
        trainer.averages = WeightAverages(model)
        trainer.epochs_between = 3
    return trainer


def run_trainer(trainer: AveragingTrainer) -> TrainingState:
    trainer.progress.start(trainer.state, trainer.step.total_steps)
    trainer.run()
    trainer.progress.finish(trainer.state, trainer.step.total_steps)
    return trainer.state


def run_recipe(name: str, settings: dict, options: Namespace, folder: Path) -> dict:
    """Train with a recipe → its result, as the JSON file has it."""
    recipe = Recipe(settings, options, folder)
    size = options.size
    tokens = options.tokens or SIZES[size][1]
    paths = cut_corpus(options.corpus, tokens, VALIDATION_TOKENS[size], folder)
    train_path, val_path = paths
    tokenizer = make_tokenizer(recipe, train_path)
    corpus = Corpus(*(ids_of(path, tokenizer) for path in paths), 0, 0, "", [])
    predicted = len(corpus.val_ids) - 1
    per_gpt2_token = predicted / (len(ids_of(val_path, get_tokenizer())) - 1)
    torch.manual_seed(options.seed)
    model = (HuggingFacePeer if recipe.is_peer else GPTModel)(recipe.config).to(pick_device())
    trainer = make_trainer(model, corpus, tokenizer, recipe, size)
    started = time.perf_counter()
    state = run_trainer(trainer)
    seconds = time.perf_counter() - started
    averages = measure_averages(trainer)
    if size != "small":
        MODELS.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), model_path(size, name, options.seed))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if recipe.is_peer:
        weights = model.cpu().gpt2.state_dict()
        model = load_gpt2_weights(GPTModel(recipe.config | {"qkv_bias": True}), weights)
    generated = generate_batch(model, tokenizer, STORIES, min_p=0.05)
    losses = [loss * per_gpt2_token for loss in state.val_losses]
    bits = min(state.val_losses) * predicted / math.log(2)
    return {
        "name": name,
        "seed": options.seed,
        "recipe": recipe.all,
        "parameters": parameters,
        "tokens_seen": state.tokens_seen,
        "best": min(losses),
        "final": losses[-1],
        "final_training": state.train_losses[-1] * per_gpt2_token,
        "bits_per_byte": bits / val_path.stat().st_size,
        "losses": losses,
        "averages": {name: loss * per_gpt2_token for name, loss in averages.items()},
        "stories": measure_stories(generated, TrainingText(read_stories(train_path), generated)),
        "seconds": round(seconds),
    }


def make_tokenizer(recipe: Recipe, train_path: Path) -> tiktoken.Encoding:
    """The tokenizer of a recipe: GPT-2's first merges, or learned from the training stories."""
    vocab_size = recipe.config["vocab_size"]
    if recipe.settings.tokenizer == "own":
        return train_tokenizer(read_stories(train_path), vocab_size)
    return get_tokenizer(vocab_size)


def measure_averages(trainer: AveragingTrainer) -> dict[str, float]:
    """The validation loss with each average of the weights that was kept, and of the teachers."""
    found = {}
    if trainer.averages is not None and not trainer.validated:
        found |= trainer.averages.losses(trainer.validation_loss)
    if isinstance(trainer.step.loss_of, DistillationLoss):
        teachers = trainer.step.loss_of.teachers
        start_id = start_id_of(trainer.tokenizer)
        found["the teachers together"] = ensemble_loss(teachers, trainer.corpus.val_ids, start_id)
    return found


class ResultTable:
    """Results as a Markdown table, a row a recipe: means over its seeds."""

    def __init__(self, results: list[dict], first: str):
        self.first = first
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
            self.difference(self.first, name) if base else "",
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
    parser.add_argument("--tokens", type=int, help="GPT-2 tokens to train on")
    parser.add_argument("--epochs", type=int, help="passes; a recipe may have its own")
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
    ResultTable(results, recipes.first).print(recipes)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
