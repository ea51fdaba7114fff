"""What an NVIDIA GPU makes of it: one command, under ten minutes on a T4 or newer.

    python benchmarks/gpu.py --original PATH          against a checkout of the original, at its own config
    python benchmarks/gpu.py --device cpu --tiny      does this script work? (a toy size, on any machine)

Three parts, all written to benchmarks/gpu.json: training at GPT_CONFIG_124M, batch 8 (`training.py`'s contenders and
utilisation); the same --steps of training in fp32, bf16 and fp16 with its gradient scaler, and how far their losses
part; telling (`telling.py`'s contenders).
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
import golpo_utils as golpo  # noqa: E402
import telling  # noqa: E402
import training  # noqa: E402


def losses_of(precision, options):
    """Train `steps` steps on the stories in the box in this precision → the loss of each."""
    config = golpo.GPT_CONFIG_T4 | {"drop_rate": 0.0}
    config |= {"n_layers": 2, "emb_dim": 64, "n_heads": 2, "context_length": 64, "vocab_size": 512} if options.tiny else {}
    settings = golpo.Settings(config=config, batch_size=8, learning_rate=1e-3, warmup=0.02, num_epochs=8, precision=precision, compile="off",
                              device=options.device, checkpoint_dir=tempfile.gettempdir())
    tokenizer = golpo.get_tokenizer(config["vocab_size"])
    torch.manual_seed(0)
    model = golpo.GPTModel(config).to(options.device)
    run = golpo.Training(model, golpo.make_optimizer(model, settings), golpo.load_corpus(tokenizer=tokenizer), tokenizer,
                         settings, golpo.TrainingState(), None, None)
    sums = []
    for _ in range(options.steps):
        run.step()
        sums.append(float(run.sums[0]))
    return [after - before for before, after in zip([0.0, *sums], sums)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--original", help="a checkout of the original project")
    parser.add_argument("--nanogpt", help="a checkout of nanoGPT")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--tiny", action="store_true", help="a toy size")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("PyTorch sees no GPU here; choose a GPU runtime, or try the script with --device cpu --tiny")
    new = options.device == "cpu" or torch.cuda.get_device_capability() >= (8, 0)
    size = dict(layers=1, width=32, heads=2, context=32) if options.tiny else dict(layers=12, width=768, heads=12, context=512)
    peers = dict(device=options.device, original=options.original, nanogpt=options.nanogpt, threads=torch.get_num_threads())
    found = {}

    def keep(**part):                                           # at once, should a later part fail
        found.update(part)
        (HERE / "gpu.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    facts, rows, ratios, _ = training.measure(SimpleNamespace(
        **size, **peers, batch=8, rounds=2 if options.tiny else 6, half=torch.bfloat16 if new else torch.float16,
        compiled=not options.tiny, no_memory=True))
    keep(training={**facts, "rows": rows, "ratios": ratios})
    for row in rows:
        print(f"{row['contender']:36}{row['tokens_per_second']:12,.0f} tokens/s{row['mfu']:8.0%} of the matrix-product ceiling")
    print(*(f"{pair}: {ratio}" for pair, ratio in ratios.items()), sep="\n")

    options.steps = min(options.steps, 20) if options.tiny else options.steps
    precisions = ("fp32", "bf16", "fp16") if new else ("fp32", "fp16")      # an older GPU only emulates bf16, slowly
    losses = {precision: losses_of(precision, options) for precision in precisions}
    last = {precision: statistics.mean(values[-50:]) for precision, values in losses.items()}
    print(f"mean loss of the last 50 of {options.steps} steps:", {precision: round(value, 4) for precision, value in last.items()})
    keep(mean_losses_of_50_steps={precision: [round(statistics.mean(values[i:i + 50]), 4) for i in range(0, len(values), 50)]
                                  for precision, values in losses.items()})

    keep(telling=telling.measure(SimpleNamespace(**peers, tokens=8 if options.tiny else 200, long=0, rounds=2))[1])
    for row in found["telling"]:
        print(f"{row['contender']:36}{row['tokens_per_second']:12,.1f} tokens/s")


if __name__ == "__main__":
    main()
