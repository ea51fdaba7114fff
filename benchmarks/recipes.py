"""What does each part of the recipe bring? From the original's recipe upward, one change at a time.

    python benchmarks/recipes.py --corpus fairytales.txt                   every rung that has no result yet
    python benchmarks/recipes.py --corpus fairytales.txt --only "decay 1"  this rung alone
    python benchmarks/recipes.py --show                                    the table of what has been measured
    python benchmarks/recipes.py --corpus fairytales.txt --size 124M       a shorter ladder at the original's size (GPU)

Each rung: 4 layers x 128, context 128, batch 8, the same stories (the file's first, up to --tokens GPT-2 tokens, and
sixty thousand tokens of further ones to validate on), the same number of passes, --seed. Losses are in nats per GPT-2
token of the validation text, whatever the rung's own vocabulary, so all rungs can be compared. Results are added to
benchmarks/recipes.json, those of the 124M size to benchmarks/recipes_124M.json.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import golpo_utils as golpo  # noqa: E402

RESULTS = {"small": HERE / "recipes.json", "124M": HERE / "recipes_124M.json"}
VALIDATION_TOKENS = 60_000
SIZES = {       # name → shape, GPT-2 tokens to train on, passes
    "small": (dict(context_length=128, emb_dim=128, n_heads=4, n_layers=4, qkv_bias=False), 300_000, 6),
    "124M": (dict(context_length=512, emb_dim=768, n_heads=12, n_layers=12, qkv_bias=False), 3_400_000, 4)}
OF_THE_LADDER = ("config", "num_epochs", "batch_size")      # the same on all rungs
ORIGINAL = {name: value for name, value in golpo.PRESETS["original"].items() if name not in OF_THE_LADDER}
ORIGINAL |= dict(vocab_size=50261, tie_embeddings=False, init_std=None, drop_rate=0.1)
FIRST = "the original's recipe"
SCHEDULE = dict(learning_rate=1e-3, warmup=0.05, final_learning_rate=0.1, grad_clip=1.0, beta2=0.95)


def rungs(size="small"):
    """Name → the rung that it stands on, and its recipe: that one's with a change."""
    ladder = {FIRST: ("", ORIGINAL)}

    def change(name, base, **what):
        ladder[name] = base, {**ladder[base][1], **what}
        return name
    if size == "124M":
        kept = change("what the small ladder kept, at once", FIRST, tie_embeddings=True, init_std=0.02, **SCHEDULE, optimizer="muon",
                      decay_all=False, story_windows=True, moving_windows=True, batch_size=16)
        change("dropout 0.2", kept, drop_rate=0.2)
        change("peak 4e-4", kept, learning_rate=4e-4)
        change("peak 2e-3, dropout 0.2", kept, learning_rate=2e-3, drop_rate=0.2)
        return ladder
    cut = change("+ vocabulary cut to 4,096", FIRST, vocab_size=4096)
    init = change("+ GPT-2's initialisation", cut, init_std=0.02)
    tied = change("+ head tied to the embedding", init, tie_embeddings=True)
    schedule = change("+ warm-up, cosine, clipping, beta2 0.95, peak 1e-3", tied, **SCHEDULE)
    peak = change("+ peak 4e-3", schedule, learning_rate=4e-3)
    decay = change("+ decay on matrices only", peak, decay_all=False)
    stories = change("+ windows that begin at stories", decay, story_windows=True)
    whole = change("with all of GPT-2's vocabulary again", stories, vocab_size=50261)
    change("all of the vocabulary, windows moved at each pass", whole, moving_windows=True)
    change("all of the vocabulary, windows moved, peak 2e-3", whole, moving_windows=True, learning_rate=2e-3)
    base = change("with a vocabulary of 16,384", stories, vocab_size=16384)
    change("and Hugging Face's GPT-2, the same settings", base, peer=True)
    change("dropout 0", base, drop_rate=0.0)
    change("dropout 0.2", base, drop_rate=0.2)
    change("dropout 0.3", base, drop_rate=0.3)
    change("decay 0.3", base, weight_decay=0.3)
    change("decay 1", base, weight_decay=1.0)
    change("decay 3", base, weight_decay=3.0)
    change("peak 2e-3", base, learning_rate=2e-3)
    change("peak 8e-3", base, learning_rate=8e-3)
    change("beta2 0.999", base, beta2=0.999)
    change("initialisation 0.05", base, init_std=0.05)
    change("down to a rate of 0", base, final_learning_rate=0.0)
    change("averaged weights (EMA, 0.998)", base, average=0.998)
    change("windows side by side", base, story_windows=False)
    change("windows moved at each pass", base, moving_windows=True)
    change("a head of its own", base, tie_embeddings=False)
    muon = change("matrices by Muon", base, optimizer="muon")
    change("3 passes", base, num_epochs=3)
    change("12 passes", base, num_epochs=12)
    moved = change("Muon, windows moved at each pass", muon, moving_windows=True)
    change("Muon, windows moved, dropout 0.2", moved, drop_rate=0.2)
    change("Muon, all of the vocabulary, windows moved", whole, optimizer="muon", moving_windows=True)
    return ladder


class HuggingFace(nn.Module):
    """transformers' GPT-2 of the same size, with the face of our GPTModel."""

    def __init__(self, config):
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel
        rate = config["drop_rate"]
        self.config = dict(config)
        self.gpt2 = GPT2LMHeadModel(GPT2Config(
            vocab_size=config["vocab_size"], n_positions=config["context_length"], n_embd=config["emb_dim"],
            n_layer=config["n_layers"], n_head=config["n_heads"], resid_pdrop=rate, embd_pdrop=rate, attn_pdrop=rate))
        self.tok_emb, self.pos_emb = self.gpt2.transformer.wte, self.gpt2.transformer.wpe

    def forward(self, token_ids, targets):
        logits = self.gpt2(token_ids).logits                                            # (b, t, v)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100)


class AveragedTraining(golpo.Training):
    """Training whose validation loss is that of an exponential moving average of the weights."""
    average = 0.0

    def step(self):
        super().step()
        if not self.average:
            return
        if not hasattr(self, "averages"):
            self.averages = [p.detach().clone() for p in self.model.parameters()]
        keep = min(self.average, self.state.global_step / (self.state.global_step + 10))    # short at first
        torch._foreach_lerp_(self.averages, [p.detach() for p in self.model.parameters()], 1 - keep)

    def evaluate(self, **pace):
        with torch.no_grad():
            now = [p.clone() for p in self.model.parameters()] if self.average else []
            for p, average in zip(self.model.parameters(), getattr(self, "averages", [])):
                p.copy_(average)
            super().evaluate(**pace)
            for p, own in zip(self.model.parameters(), now):
                p.copy_(own)


def cut_corpus(path, tokens, folder):
    """The file's first stories with `tokens` GPT-2 tokens, and those after them with VALIDATION_TOKENS → two files."""
    gpt2, stories, parts = golpo.get_tokenizer(), golpo.read_stories(path), []
    for name, limit in (("train.txt", tokens), ("validation.txt", VALIDATION_TOKENS)):
        count = 0
        with open(folder / name, "w", encoding="utf-8") as file:
            for story in stories:
                file.write(story)
                count += len(golpo.encode(story, gpt2))
                if count > limit:
                    break
        parts.append(folder / name)
    return parts


def ids_of(path, tokenizer):
    return torch.tensor(golpo.encode(Path(path).read_text(encoding="utf-8"), tokenizer))


def climb(name, recipe, options, folder):
    """Train one rung → its figures."""
    shape, tokens, passes = SIZES[options.size]
    recipe = {"num_epochs": options.epochs or passes, "batch_size": 8, **recipe}
    golpo.Training, AveragedTraining.average = AveragedTraining, recipe.pop("average", 0.0)
    model_keys = {"vocab_size", "tie_embeddings", "init_std", "drop_rate"}
    config = shape | {key: recipe.pop(key) for key in model_keys & recipe.keys()}
    make = HuggingFace if recipe.pop("peer", False) else golpo.GPTModel
    settings = golpo.Settings(config=config, evals_per_epoch=2, sample_tokens=0, seed=options.seed, compile="off",
                              checkpoint_dir=str(folder), **recipe)
    tokenizer = golpo.get_tokenizer(config["vocab_size"])
    train, validation = cut_corpus(options.corpus, options.tokens or tokens, folder)
    train_ids, val_ids = ids_of(train, tokenizer), ids_of(validation, tokenizer)
    per_gpt2_token = (len(val_ids) - 1) / (len(ids_of(validation, golpo.get_tokenizer())) - 1)
    corpus = golpo.Corpus(train_ids, val_ids, 0, 0, "", [])
    torch.manual_seed(options.seed)
    model, begin = make(config).to(golpo.pick_device()), time.perf_counter()
    optimizer = golpo.make_optimizer(model, settings)
    train_losses, val_losses, seen = golpo.train_model(model, optimizer, corpus, tokenizer, settings)
    losses = [loss * per_gpt2_token for loss in val_losses]
    size, seconds = len(Path(validation).read_bytes()), time.perf_counter() - begin
    if make is HuggingFace:
        model = golpo.load_gpt2_weights(golpo.GPTModel(config | {"qkv_bias": True}), model.cpu().gpt2.state_dict())
    told = golpo.tell_many(model, tokenizer, 20, min_p=0.05)
    stories = golpo.measure_stories(told, Path(train).read_text(encoding="utf-8"))
    return {"rung": name, "seed": options.seed, "recipe": recipe | config, "parameters": sum(p.numel() for p in model.parameters()),
            "tokens_seen": seen[-1], "best": min(losses), "final": losses[-1], "final_training": train_losses[-1] * per_gpt2_token,
            "bits_per_byte": min(val_losses) * (len(val_ids) - 1) / math.log(2) / size, "losses": losses,
            "stories": stories, "seconds": round(seconds)}


def show(results, size):
    """The results as a Markdown table, a row a rung: means over its seeds, and differences on the same seeds."""
    found = {}
    for one in results:
        found.setdefault(one["rung"], {})[one["seed"]] = one

    def below(other, own):
        """By how much the best loss is below another rung's, on the seeds that both have."""
        pairs = [found[other][seed]["best"] - one["best"] for seed, one in own.items() if seed in found.get(other, ())]
        spread = f" ({min(pairs):+.3f} to {max(pairs):+.3f})" if len(pairs) > 1 else ""
        return f"{statistics.mean(pairs):+.3f}{spread}" if pairs else ""
    print("| rung | on top of | seeds | best | final | training | bits per byte | below the original's | below the rung it is on top of "
          "| titled | distinct titles | repeated 4-grams, median | verbatim 8-grams | names last |\n" + "| --- " * 14 + "|")
    for name, (base, _) in rungs(size).items():
        if own := found.get(name):
            best, final, training, bits = (statistics.mean(one[key] for one in own.values())
                                           for key in ("best", "final", "final_training", "bits_per_byte"))
            told = {key: statistics.mean(one["stories"][key] for one in own.values()) for key in next(iter(own.values()))["stories"]}
            print(f"| {name} | {base} | {len(own)} | {best:.3f} | {final:.3f} | {training:.3f} | {bits:.3f} | {below(FIRST, own) if base else ''} | "
                  f"{below(base, own)} | {told['titled']:.0%} | {told['distinct_titles']:.3g} | {told['repeated_4grams_median']:.3f} | "
                  f"{told['verbatim_8grams']:.1%} | {told['names_last']:.2f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--corpus", help="a file of stories")
    parser.add_argument("--size", choices=SIZES, default="small", help="124M: 12 layers x 768, context 512; needs a GPU")
    parser.add_argument("--tokens", type=int, help="GPT-2 tokens to train on: 300,000, at 124M 3,400,000")
    parser.add_argument("--epochs", type=int, help="passes: 6, at 124M 4")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", metavar="NAME", help="one rung alone")
    parser.add_argument("--show", action="store_true", help="print the results and stop")
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    ladder, options.results = rungs(options.size), options.results or RESULTS[options.size]
    if options.only not in ("", *ladder):
        parser.error(f"there is no rung {options.only!r}; they are {', '.join(ladder)}")
    results = json.loads(options.results.read_text()) if options.results.exists() else []
    done = {(one["rung"], one["seed"]) for one in results}
    for name, (_, recipe) in ladder.items():
        if not options.show and options.only in ("", name) and (name, options.seed) not in done:
            with tempfile.TemporaryDirectory() as folder:
                results.append(climb(name, recipe, options, Path(folder)))
            options.results.write_text(json.dumps(results, indent=1) + "\n")
    show(results, options.size)


if __name__ == "__main__":
    main()
