"""How fast are stories generated? Contenders generate the same lengths in turns, in one process.

    python benchmarks/generation.py                        the table, with Hugging Face's GPT-2
    python benchmarks/generation.py --original PATH --nanogpt PATH    with checkouts of those, too
    python benchmarks/generation.py --save                 also writes benchmarks/generation.json
    python benchmarks/generation.py --bundled              the bundled model, beside int8 of others
    python benchmarks/generation.py --int8-loss FILE --corpus FILE    what int8 costs in perplexity

All have the shape of GPT_CONFIG_124M and random weights, which cost what trained ones cost. Other
work on the machine slows all contenders, not equally: ratios are medians within a round.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from bundled_generation import measure_bundled
from machine import BENCHMARKS, load_module, own_peak_memory, print_machine, seconds
from torch import Tensor

from golpo.corpus import load_corpus
from golpo.fast_linear import describe_products
from golpo.inference import load_storyteller, prepare_for_inference
from golpo_utils import GPT_CONFIG_124M, GPTModel, generate

PROMPT_TOKENS = 16
CONTEXT = GPT_CONFIG_124M["context_length"]
MANY = 10  # stories at once
INT8_TOKENS = 50_000  # of the validation set
OURS = "ours, fp32"
OURS_MANY = "ours, fp32, ten at once"
INT8 = "ours, int8"
INT8_MANY = "ours, int8, ten at once"
PEER = "Hugging Face, fp32"
ORIGINAL = "the original, fp32"
NANOGPT = "nanoGPT, fp32"
# The ratios that are reported, where both were measured.
RATIOS = (
    (OURS, PEER),
    (INT8, PEER),
    (OURS, ORIGINAL),
    (INT8, ORIGINAL),
    (OURS_MANY, OURS),
    (INT8_MANY, INT8),
    (f"{OURS}, long", OURS),
    (f"{INT8}, long", INT8),
)
GenerateTokens = Callable[[int], object]  # generates so many tokens


def make_prompt(options: Namespace, rows: int = 1) -> Tensor:
    return torch.ones(rows, PROMPT_TOKENS, dtype=torch.long, device=options.device)


def make_ours(options: Namespace, rows: int = 1, quantize: bool = False) -> GenerateTokens:
    """This project's generation, prepared as `load_storyteller` prepares a model."""
    model = prepare_for_inference(GPTModel(GPT_CONFIG_124M).to(options.device), quantize)
    return lambda count: generate(model, make_prompt(options, rows), count, CONTEXT)


def make_hugging_face(options: Namespace) -> GenerateTokens:
    """transformers' generate, with its cache."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_positions=CONTEXT)).eval().to(options.device)
    prompt = make_prompt(options)

    def generate_tokens(count: int) -> None:
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
        )

    return generate_tokens


def make_original(options: Namespace) -> GenerateTokens:
    """The project that this one is a remake of."""
    module = load_module(Path(options.original, "utils.py"))
    model = module.GPTModel(GPT_CONFIG_124M).eval().to(options.device)
    return lambda count: module.generate(model, make_prompt(options), count, CONTEXT)


def make_nanogpt(options: Namespace) -> GenerateTokens:
    module = load_module(Path(options.nanogpt, "model.py"))
    config = module.GPTConfig(block_size=CONTEXT, vocab_size=50257, bias=True, dropout=0.0)
    model = module.GPT(config).eval().to(options.device)
    return lambda count: model.generate(make_prompt(options), count)


def make_contenders(options: Namespace) -> dict[str, Callable[[], GenerateTokens]]:
    """Name → what makes the contender."""
    contenders = {
        OURS: lambda: make_ours(options),
        OURS_MANY: lambda: make_ours(options, MANY),
        PEER: lambda: make_hugging_face(options),
    }
    if options.device == "cpu":
        contenders[INT8] = lambda: make_ours(options, quantize=True)
        contenders[INT8_MANY] = lambda: make_ours(options, MANY, quantize=True)
    if options.original:
        contenders[ORIGINAL] = lambda: make_original(options)
    if options.nanogpt:
        contenders[NANOGPT] = lambda: make_nanogpt(options)
    return contenders


def memory_bandwidth(device: str) -> float:
    """How many bytes a second the device reads from its memory, the best of ten tries."""
    numbers = torch.ones(64 * 2**20, device=device)  # 256 MiB
    return numbers.nbytes / min(seconds(numbers.sum) for _ in range(10))


def peak_memory(name: str, options: Namespace) -> int | None:
    """MiB of a process that generates with this contender alone; None on a GPU."""
    if options.device != "cpu":
        return None
    words = [sys.executable, __file__, "--memory-of", name, "--threads", str(options.threads)]
    for peer in ("original", "nanogpt"):
        if path := getattr(options, peer):
            words += [f"--{peer}", path]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


@torch.inference_mode()
def compare_int8(source: str, corpus: str) -> None:
    """Print the validation loss of a checkpoint in fp32 and in int8, in windows side by side."""
    losses = {}
    for name, quantize in (("fp32", False), ("int8", True)):
        model, tokenizer, about = load_storyteller(source, quantize=quantize)
        saved = about.get("settings") or {}
        fraction = saved.get("validation_fraction", 0.1)
        ids = load_corpus(corpus, tokenizer, fraction, saved.get("seed", 0)).val_ids[:INT8_TOKENS]
        context = model.config["context_length"]
        count = (len(ids) - 1) // context * context
        inputs = ids[:count].long().view(-1, context)
        targets = ids[1 : count + 1].long().view(-1, context)
        total = 0.0
        for row, expected in zip(inputs, targets, strict=True):
            total += float(F.cross_entropy(model(row[None])[0], expected, reduction="sum"))
        losses[name] = total / count
    change = math.exp(losses["int8"] - losses["fp32"]) - 1
    print(f"{count:,} tokens: loss {losses['fp32']:.4f} in fp32, {losses['int8']:.4f} in int8")
    print(f"perplexity {change:+.2%}")


def generate_in_turns(
    makers: dict[str, Callable[[], GenerateTokens]], options: Namespace
) -> list[dict[str, float]]:
    """The tokens a second of each contender, in each round."""
    contenders = {name: make() for name, make in makers.items()}
    for generate_tokens in contenders.values():
        generate_tokens(4)  # warm up
    rounds = []
    for _ in range(options.rounds):
        speeds = {}
        for name, generate_tokens in contenders.items():
            rows = MANY if "ten" in name else 1
            time = seconds(lambda run=generate_tokens: run(options.tokens))
            speeds[name] = rows * options.tokens / time
        for name in (OURS, INT8):
            if options.long and name in contenders:
                time = seconds(lambda run=contenders[name]: run(options.long))
                speeds[f"{name}, long"] = options.long / time
        rounds.append(speeds)
    return rounds


def measure(options: Namespace) -> dict:
    """Let all contenders generate in turns → facts, "rows" (one for each) and "ratios"."""
    makers = make_contenders(options)
    rounds = generate_in_turns(makers, options)
    bandwidth = memory_bandwidth(options.device)
    weights = GPTModel(GPT_CONFIG_124M).parameter_count() * 4  # bytes read for a token in fp32
    rows = []
    for name in rounds[0]:
        speeds = [one[name] for one in rounds]
        speed = statistics.median(speeds)
        reads_all = name in (OURS, PEER)
        rows.append(
            {
                "contender": name,
                "tokens_per_second": round(speed, 2),
                "spread": [round(min(speeds), 2), round(max(speeds), 2)],
                "ratio_to_hugging_face": median_ratio(rounds, name, PEER),
                "share_of_ceiling": round(speed * weights / bandwidth, 2) if reads_all else None,
                "peak_memory_mib": peak_memory(name, options) if name in makers else None,
            }
        )
    ratios = {
        f"{a} / {b}": median_ratio(rounds, a, b)
        for a, b in RATIOS
        if a in rounds[0] and b in rounds[0]
    }
    return {
        "tokens": options.tokens,
        "long": options.long,
        "rounds": options.rounds,
        "ceiling_gb_per_second": round(bandwidth / 1e9, 1),
        "rows": rows,
        "ratios": ratios,
    }


def median_ratio(rounds: list[dict[str, float]], a: str, b: str) -> float:
    return round(statistics.median(one[a] / one[b] for one in rounds), 2)


def print_result(result: dict) -> None:
    """Print what `measure` returned as a table."""
    print(f"{result['tokens']} new tokens from {PROMPT_TOKENS}, {result['rounds']} rounds")
    print(f"memory is read at up to {result['ceiling_gb_per_second']} GB/s\n")
    heads = f"{'spread':>18}{'x HF':>8}{'of ceiling':>12}{'peak MiB':>10}"
    print(f"{'':26}{'tokens/s':>10}{heads}")
    for row in result["rows"]:
        low, high = row["spread"]
        share = "" if row["share_of_ceiling"] is None else f"{row['share_of_ceiling']:.0%}"
        spread = f"{low:.1f} to {high:.1f}"
        print(
            f"{row['contender']:26}{row['tokens_per_second']:10.1f}{spread:>18}"
            f"{row['ratio_to_hugging_face']:8.2f}{share:>12}{row['peak_memory_mib'] or '':>10}"
        )
    print()
    for pair, ratio in result["ratios"].items():
        print(f"{pair}: {ratio:.2f}")


def parse_options() -> Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=200, help="new tokens of a story")
    parser.add_argument("--long", type=int, default=2000, help="of the long story (0: none)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--original", help="a checkout of the original project")
    parser.add_argument("--nanogpt", help="a checkout of nanoGPT")
    parser.add_argument("--bundled", action="store_true", help="the bundled model, 1 and 2 threads")
    parser.add_argument(
        "--save", action="store_true", help="write benchmarks/generation.json (or _bundled.json)"
    )
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument(
        "--int8-loss", metavar="CHECKPOINT", help="compare its loss in fp32 and int8, on --corpus"
    )
    parser.add_argument("--corpus", help="the corpus that the checkpoint was trained on")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.memory_of:
        make_contenders(options)[options.memory_of]()(8)
        print(own_peak_memory())
        return
    facts = print_machine()
    if options.int8_loss:
        compare_int8(options.int8_loss, options.corpus)
        return
    if options.bundled:
        result = measure_bundled(options)
    else:
        result = measure(options)
        print_result(result)
        print("\nmatrix products that were the fastest here:", *describe_products(), sep="\n  ")
    if options.save:
        text = json.dumps({**facts, **result}, indent=1)
        name = "generation_bundled.json" if options.bundled else "generation.json"
        (BENCHMARKS / name).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
