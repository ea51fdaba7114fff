"""Makes the bundled model: everything in this folder but this file, the card and its picture.

    python voice/make_bundled_model.py CORPORA [--work FOLDER] [--rehearse]

CORPORA is a folder with short_stories.txt, fairytales.txt and simple_stories.txt in the project's
format. The stages run one after another, each from the best weights of the one before; a stage
that is complete is not repeated. --rehearse trains a toy size, to see whether the script works.
"""

import argparse
import json
from pathlib import Path

import torch

from golpo.checkpoint import newest_checkpoint, read_checkpoint
from golpo.corpus import Corpus, load_corpus, read_stories
from golpo.eight_bits import round_to_8_bits
from golpo.hf_folder import read_hf
from golpo.huggingface import export_hf
from golpo.inference import load_storyteller
from golpo.loss import evaluate_loss
from golpo.paths import BUNDLED_MODEL
from golpo.runs import start_fresh_training
from golpo.tokenizer import save_tokenizer, train_tokenizer
from golpo.vocabulary import decode_stories
from golpo_utils import start_id_of

VOCAB_SIZE = 4096
CONFIG = {
    "context_length": 512,
    "emb_dim": 384,
    "n_heads": 6,
    "n_layers": 7,
    "qkv_bias": False,
}
TOY_CONFIG = {**CONFIG, "context_length": 64, "emb_dim": 32, "n_heads": 2, "n_layers": 1}
SETTINGS = {
    "batch_size": 32,
    "validation_fraction": 0.05,
    "evals_per_epoch": 1,
    "sample_tokens": 0,
    "compile": "off",
    "seed": 1,
}
# Two older corpora teach the language, the simple stories what a story is. The last stage has
# only stories that end within 380 tokens, so that the model's own stories do, too.
SHORT_STORY = 380
STAGES = [
    {"name": "short_stories", "num_epochs": 1, "learning_rate": 2e-3, "drop_rate": 0.0},
    {"name": "fairytales", "num_epochs": 2, "learning_rate": 1.5e-3, "drop_rate": 0.1},
    {"name": "simple_stories", "num_epochs": 7, "learning_rate": 1.5e-3, "drop_rate": 0.2},
    {"name": "short_simple_stories", "num_epochs": 2, "learning_rate": 3e-4, "drop_rate": 0.2},
]


def load_simple_stories(path: Path, tokenizer) -> Corpus:
    """The simple stories, with the split that the third stage has."""
    return load_corpus(path, tokenizer, SETTINGS["validation_fraction"], SETTINGS["seed"])


def write_short_stories(corpus: Corpus, target: Path, tokenizer) -> None:
    """Write the training stories with at most SHORT_STORY tokens; validation stays unseen."""
    with open(target, "w", encoding="utf-8") as file:
        for story in decode_stories(corpus.train_ids, tokenizer):
            if len(tokenizer.encode_ordinary(story)) <= SHORT_STORY:
                file.write(story)


def run_stage(stage: dict, work: Path, corpus: Path, start_from: Path | None, common: dict) -> Path:
    """Train one stage unless it is complete; return its folder."""
    folder = work / stage["name"]
    finished = folder / "finished.json"
    if not finished.exists():
        config = {**common["config"], "drop_rate": stage["drop_rate"]}
        losses = start_fresh_training(
            **{**SETTINGS, **common, "config": config},
            num_epochs=stage["num_epochs"],
            learning_rate=stage["learning_rate"],
            data_path=corpus,
            checkpoint_dir=folder,
            start_from=None if start_from is None else str(start_from),
        )
        finished.write_text(json.dumps({"train": losses[0], "val": losses[1]}), encoding="utf-8")
    return folder


def export(folders: list[Path], corpus: Corpus) -> None:
    """Write the best weights of the last stage, with what was done."""
    checkpoints = [read_checkpoint(newest_checkpoint(folder)[0]) for folder in folders]
    model, tokenizer, about = load_storyteller(folders[-1], which="best")
    about = {
        "global_step": sum(checkpoint["global_step"] for checkpoint in checkpoints),
        "tokens_seen": sum(checkpoint["tokens_seen"] for checkpoint in checkpoints),
        "settings": {key: SETTINGS[key] for key in ("validation_fraction", "seed")},
    }
    export_hf(model, tokenizer, BUNDLED_MODEL, about=about)
    round_weights(corpus)


def round_weights(corpus: Corpus) -> None:
    """Round the exported matrices to 8 bits and measure the loss; a second call changes nothing.

    The page docs/app/ stores 8 bits, so it has the very weights of this folder. They are written
    as fp16, which holds them exactly. The loss is that on the simple stories that no stage has
    trained on.
    """
    about = read_hf(BUNDLED_MODEL)
    model, tokenizer = about.pop("model").eval(), about.pop("encoding")
    round_to_8_bits(model)
    start_id = start_id_of(tokenizer)
    loss, _ = evaluate_loss(model, corpus.val_ids, model.config["context_length"], start_id)
    about["val_losses"] = [loss]
    export_hf(model, tokenizer, BUNDLED_MODEL, dtype=torch.float16, about=about)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("corpora", type=Path)
    parser.add_argument("--work", type=Path, default=Path("bundled_model_training"))
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    vocab_size = 512 if options.rehearse else VOCAB_SIZE
    simple = options.corpora / "simple_stories.txt"
    tokenizer = train_tokenizer(read_stories(simple), vocab_size)
    tokenizer_path = options.work / "tokenizer.json"
    save_tokenizer(tokenizer, tokenizer_path)
    short = options.work / "short_simple_stories.txt"
    corpus = load_simple_stories(simple, tokenizer)
    write_short_stories(corpus, short, tokenizer)
    config = {**(TOY_CONFIG if options.rehearse else CONFIG), "vocab_size": tokenizer.n_vocab}
    common = {"config": config, "tokenizer": str(tokenizer_path)}
    if options.rehearse:
        common["max_steps"] = 10
    folders = []
    for stage in STAGES:
        is_short = stage["name"] == "short_simple_stories"
        path = short if is_short else options.corpora / f"{stage['name']}.txt"
        start_from = folders[-1] if folders else None
        folders.append(run_stage(stage, options.work, path, start_from, common))
        if not options.rehearse and stage["name"] in ("simple_stories", "short_simple_stories"):
            export(folders, corpus)


if __name__ == "__main__":
    main()
