"""Prints digests of small trainings, to show that a change of the code changes no number.

    python tests/digests.py PROJECT [PROJECT ...]

Each PROJECT is a folder with the code (of commit 557b5ea or later). Run all of them on one
machine: digests differ between processors. The command fails if the projects differ.
"""

import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CONFIG = {
    "vocab_size": 512,
    "context_length": 32,
    "emb_dim": 48,
    "n_heads": 4,
    "n_layers": 2,
    "drop_rate": 0.1,
    "qkv_bias": False,
}
NEW_TOKENS = 200


def digest(value) -> str:
    """SHA-256 of tensors, numbers and texts in nested dicts and lists, without the dicts' keys."""
    import torch

    sha = hashlib.sha256()

    def add(part):
        if isinstance(part, dict):
            for key in sorted(part, key=str):
                add(part[key])
        elif isinstance(part, list | tuple):
            for item in part:
                add(item)
        elif isinstance(part, torch.Tensor):
            sha.update(part.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        else:
            sha.update(repr(part).encode())

    add(value)
    return sha.hexdigest()[:16]


def write_corpus(folder: Path) -> Path:
    animals = ("owl", "fox", "hare", "otter", "wren", "mole")
    places = ("mill", "lake", "tower", "garden", "bridge")
    stories = []
    for number, (animal, place) in enumerate(itertools.product(animals, places)):
        text = f"The {animal} of the {place} counted {number} stars, and {number * 3} more. " * 3
        stories.append(f"<|start|>\n<|title|>The {animal}</|title|>\n\n{text}\n<|end|>\n")
    path = folder / "stories.txt"
    path.write_text("".join(stories), encoding="utf-8")
    return path


def measure() -> dict:
    """Digests of trainings with the code that Python finds first."""
    import torch

    torch.set_num_threads(1)
    import golpo_utils

    if hasattr(golpo_utils, "start_fresh_training"):
        package = golpo_utils  # the code before it became a package
    else:
        import golpo as package
        from golpo.checkpoint import newest_checkpoint, read_checkpoint

        golpo_utils.newest_checkpoint = newest_checkpoint
        golpo_utils.read_checkpoint = read_checkpoint
    digests = {}
    for optimizer, precision in itertools.product(("muon", "adamw"), ("fp32", "bf16")):
        with tempfile.TemporaryDirectory() as work:
            settings = {
                "config": CONFIG,
                "data_path": write_corpus(Path(work)),
                "checkpoint_dir": Path(work, "checkpoints"),
                "num_epochs": 2,
                "batch_size": 4,
                "evals_per_epoch": 2,
                "sample_tokens": 20,
                "optimizer": optimizer,
                "precision": precision,
                "device": "cpu",
            }
            package.start_fresh_training(**settings, max_steps=21)
            losses = package.resume_training_from_checkpoint(settings["checkpoint_dir"])
            path, _ = golpo_utils.newest_checkpoint(settings["checkpoint_dir"])
            checkpoint = golpo_utils.read_checkpoint(path)
            model, tokenizer, _ = package.load_storyteller(settings["checkpoint_dir"])
            name = f"{optimizer} {precision}"
            digests[f"{name} weights"] = digest(checkpoint["model_state_dict"])
            states = checkpoint["optimizer_state_dict"]["state"]
            digests[f"{name} optimizer"] = digest(
                [sorted_values(states[number]) for number in sorted(states)]
            )
            digests[f"{name} losses"] = digest(losses)
            digests[f"{name} step"] = checkpoint["global_step"]
            opening = golpo_utils.text_to_token_ids("<|start|>\nThe owl", tokenizer)
            for temperature in (0.0, 0.9):
                ids = golpo_utils.generate(model, opening, NEW_TOKENS, 32, temperature, seed=5)
                digests[f"{name} tokens at {temperature}"] = digest(ids)
    return digests


def sorted_values(state: dict) -> list:
    """The values of one parameter's optimizer state, whatever they are called."""
    return sorted(state.values(), key=lambda value: (value.numel(), digest(value)))


def main(projects: list[str]) -> None:
    if not projects:
        print(json.dumps(measure()))
        return
    found = {}
    for project in projects:
        environment = {**os.environ, "PYTHONPATH": str(Path(project).resolve())}
        command = [sys.executable, "-P", __file__]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        if result.returncode:
            sys.exit(result.stderr)
        found[project] = json.loads(result.stdout.splitlines()[-1])
    for name in next(iter(found.values())):
        values = [digests[name] for digests in found.values()]
        print(f"{name:28}", *values, "" if len(set(values)) == 1 else "DIFFERENT")
    if any(digests != next(iter(found.values())) for digests in found.values()):
        sys.exit("the projects compute different numbers")
    print("equal")


if __name__ == "__main__":
    main(sys.argv[1:])
