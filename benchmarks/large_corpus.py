"""How much memory does a large corpus take? Tokenizes it and trains on it.

    python benchmarks/large_corpus.py --corpus short_stories.txt
    python benchmarks/large_corpus.py --corpus short_stories.txt --evaluate    `golpo evaluate` too

Runs `golpo train` for a few steps in a process of its own and watches its memory: the resident
peak, less what importing takes, less the 16 bytes for each weight that the model, its gradients
and AdamW need. Pages of the memory-mapped token files, which the system could drop at any time, are
in the peak, too.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import PROJECT, print_machine, read_line

BYTES_A_WEIGHT = 16  # weight, gradient and AdamW's two averages, each in fp32
IMPORTS = "import golpo.trainer, golpo.runs, golpo.evaluation"


def peak_of(command: list[str], environment: dict) -> tuple[int, float, str]:
    """Run `command` → (MiB of its resident peak, seconds, what it printed)."""
    started = time.perf_counter()
    peak = 0
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        while process.poll() is None:
            high_water = read_line(f"/proc/{process.pid}/status", "VmHWM")
            if high_water:
                peak = max(peak, int(high_water.split()[0]) // 1024)
            time.sleep(0.05)
        output.seek(0)
        text = output.read()
    if process.returncode:
        sys.exit(text)
    return peak, time.perf_counter() - started, text


def train_command(corpus: str, steps: int, checkpoints: str) -> list[str]:
    return [
        *(sys.executable, "-m", "golpo", "train", "--preset", "laptop"),
        *("--data-path", corpus, "--num-epochs", "1", "--max-steps", str(steps)),
        *("--sample-tokens", "0", "--checkpoint-dir", checkpoints),
    ]


def evaluate_command(corpus: str, checkpoints: str) -> list[str]:
    return [
        *(sys.executable, "-m", "golpo", "evaluate", "--checkpoint", checkpoints),
        *("--data-path", corpus, "--stories", "1", "--max-new-tokens", "20"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--evaluate", action="store_true", help="measure `golpo evaluate`, too")
    options = parser.parse_args()
    print_machine()
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "PYTHONPATH": str(PROJECT),
            "XDG_CACHE_HOME": f"{folder}/cache",  # so that nothing has been tokenized before
        }
        imports, _, _ = peak_of([sys.executable, "-c", IMPORTS], environment)
        command = train_command(options.corpus, options.steps, f"{folder}/checkpoints")
        peak, seconds, text = peak_of(command, environment)
        model_line = re.search(r".*?([\d.]+) M parameters.*", text)
        model = float(model_line[1]) * 1e6 * BYTES_A_WEIGHT / 2**20
        size = Path(options.corpus).stat().st_size / 1e6
        print(f"{size:.0f} MB of text, imports {imports} MiB, model {model:.0f} MiB")
        print(model_line[0])
        beyond = peak - imports - model
        print(f"train, {options.steps} steps: {seconds:.0f} s, resident peak {peak} MiB, ", end="")
        print(f"{beyond:.0f} MiB beyond imports and model")
        if options.evaluate:
            command = evaluate_command(options.corpus, f"{folder}/checkpoints")
            peak, seconds, _ = peak_of(command, environment)
            beyond = peak - imports - model / 4
            print(f"evaluate: {seconds:.0f} s, resident peak {peak} MiB, ", end="")
            print(f"{beyond:.0f} MiB beyond imports and model")


if __name__ == "__main__":
    main()
