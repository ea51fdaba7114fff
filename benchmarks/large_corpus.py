"""How much memory does a corpus take that is larger than one likes to hold? Tokenizes it and trains on it.

    python benchmarks/large_corpus.py --corpus short_stories.txt

Runs `golpo_utils.py train` for a few steps in a process of its own and watches its memory: the resident peak, less
what importing takes, less the 16 bytes for each weight that the model, its gradients and AdamW need. Pages of the
memory-mapped token files that the system could drop at any time are in the peak, too.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROGRAM = HERE.parent / "golpo_utils.py"


def peak_of(command, environment):
    """Run `command` → (MiB of its resident peak, seconds, what it printed)."""
    begin, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            if found := re.search(r"VmHWM:\s+(\d+)", status):
                peak = max(peak, int(found[1]) // 1024)
            time.sleep(0.05)
        output.seek(0)
        text = output.read()
    if process.returncode:
        sys.exit(text)
    return peak, time.perf_counter() - begin, text


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "TMPDIR": folder}                  # so that nothing has been tokenized before
        imports, _, _ = peak_of([sys.executable, str(PROGRAM), "generate", "--help"], environment)
        command = [sys.executable, str(PROGRAM), "train", "--preset", "laptop", "--data-path", options.corpus, "--num-epochs",
                   "1", "--max-steps", str(options.steps), "--sample-tokens", "0", "--checkpoint-dir", f"{folder}/checkpoints"]
        peak, seconds, text = peak_of(command, environment)
    weights = float(re.search(r"([\d.]+) M parameters", text)[1]) * 1e6
    model = weights * 16 / 2 ** 20
    print(re.search(r".*M parameters.*", text)[0])
    print(f"{Path(options.corpus).stat().st_size / 1e6:.0f} MB of text, {options.steps} steps, {seconds:.0f} s in all: resident peak "
          f"{peak} MiB, of it {imports} for the imports and {model:.0f} for the model; {peak - imports - model:.0f} MiB beyond these")


if __name__ == "__main__":
    main()
