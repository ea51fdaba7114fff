"""Finetuning the bundled model on 200 stories of another kind: all weights, or an adapter.

    python benchmarks/finetuning.py --runs full:0.0003 4:0.01 8:0.01

Each run is RANK:LEARNING_RATE, "full" for all weights. The stories are 200 from all over the
project's corpus, on which the bundled model was not trained; a tenth is kept aside. Two epochs on
one thread. Prints the validation loss before and after, the seconds of processor time, and the
sizes of the newest checkpoint and of what has to be kept.
"""

import argparse
import contextlib
import io
import tempfile
import time
from pathlib import Path

import torch
from machine import print_machine

from golpo.before_after import compare_finetuning
from golpo.inference import load_storyteller
from golpo.paths import DEFAULT_CORPUS
from golpo.runs import start_fresh_training
from golpo_utils import END

STORIES = 200
CONTEXT = 192


def write_own_file(folder: Path) -> Path:
    """A file of STORIES stories from all over the corpus."""
    stories = DEFAULT_CORPUS.read_text(encoding="utf-8").split(END)[:-1]
    chosen = stories[:: len(stories) // STORIES][:STORIES]
    path = folder / "own.txt"
    path.write_text("".join(f"{story.strip()}\n{END}\n" for story in chosen), encoding="utf-8")
    return path


def finetune(corpus: Path, folder: Path, rank: int, rate: float, max_steps: int | None) -> float:
    """Train in `folder`; return the seconds of processor time."""
    config = {**load_storyteller("bundled")[0].config, "context_length": CONTEXT}
    started = time.process_time()
    start_fresh_training(
        start_from="bundled",
        tokenizer="start",
        config=config,
        data_path=corpus,
        checkpoint_dir=folder,
        adapter_rank=rank,
        learning_rate=rate,
        num_epochs=2,
        evals_per_epoch=1,
        sample_tokens=0,
        max_steps=max_steps,
        device="cpu",
    )
    return time.process_time() - started


def size_of(paths) -> str:
    return f"{sum(path.stat().st_size for path in paths) / 1e6:.1f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", nargs="+", default=["full:0.0003", "8:0.01"])
    parser.add_argument("--max-steps", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print_machine()
    print("| run | before | after | learned | seconds | checkpoint | to keep |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for run in arguments.runs:
        rank, rate = run.split(":")
        rank = 0 if rank == "full" else int(rank)
        with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
            folder = Path(name)
            corpus = write_own_file(folder)
            seconds = finetune(corpus, folder, rank, float(rate), arguments.max_steps)
            result = compare_finetuning(folder, max_new_tokens=1)
            kept = folder.glob("adapter/*") if rank else [folder / "checkpoint_best.pt"]
            slot = max(folder.glob("checkpoint_[ab].pt"), key=lambda path: path.stat().st_mtime)
            sizes = f"{size_of([slot])} | {size_of(kept)}"
        losses = f"{result.before.val_loss:.3f} | {result.after.val_loss:.3f}"
        print(f"| {run} | {losses} | {result.learned:,} | {seconds:.0f} | {sizes} |", flush=True)


if __name__ == "__main__":
    main()
