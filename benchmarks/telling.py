"""How fast are stories told on a CPU? Contenders tell the same lengths in turns, in one process.

    python benchmarks/telling.py                                  the table, against Hugging Face's GPT-2
    python benchmarks/telling.py --original PATH --nanogpt PATH   against checkouts of those projects too
    python benchmarks/telling.py --save                           also writes benchmarks/telling.json
    python benchmarks/telling.py --int8-loss FILE --corpus FILE   instead: what int8 costs a storyteller in perplexity

All have the shape of GPT_CONFIG_124M and random weights, which cost what trained ones cost. A machine
that does other work slows all contenders, not equally: ratios are medians of ratios within a round.
"""

import argparse
import importlib.util
import json
import math
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import golpo_utils as golpo  # noqa: E402

CONFIG = golpo.GPT_CONFIG_124M
PROMPT = 16
OURS, TEN, INT8, TEN_INT8, PEER = ("ours, fp32", "ours, fp32, ten at once", "ours, int8", "ours, int8, ten at once",
                                   "Hugging Face, fp32")


def prompt(options, rows=1):
    return torch.ones(rows, PROMPT, dtype=torch.long, device=options.device)


def ours(options, rows=1, int8=False):
    model = golpo.GPTModel(CONFIG).to(options.device)
    model = golpo.to_int8(model) if int8 else model
    return lambda count: golpo.generate(model, prompt(options, rows), count, 512)


def hugging_face(options):
    from transformers import GPT2Config, GPT2LMHeadModel
    model = GPT2LMHeadModel(GPT2Config(n_positions=CONFIG["context_length"])).eval().to(options.device)
    opening = prompt(options)

    def tell(count):
        model.generate(opening, attention_mask=torch.ones_like(opening), max_new_tokens=count, min_new_tokens=count,
                       do_sample=False, use_cache=True, pad_token_id=0)
    return tell


def load_module(path):
    spec = importlib.util.spec_from_file_location(Path(path).parent.name + "_" + Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def original(options):
    module = load_module(Path(options.original) / "utils.py")
    model = module.GPTModel(CONFIG).eval().to(options.device)
    return lambda count: module.generate(model, prompt(options), count, 512)


def nanogpt(options):
    module = load_module(Path(options.nanogpt) / "model.py")
    model = module.GPT(module.GPTConfig(block_size=512, vocab_size=50257, bias=True, dropout=0.0)).eval()
    model = model.to(options.device)
    return lambda count: model.generate(prompt(options), count)


def contenders(options):
    """Name → how to make its `tell(count)`."""
    every = {OURS: ours, TEN: lambda _: ours(options, rows=10), PEER: hugging_face}
    if options.device == "cpu":
        every |= {INT8: lambda _: ours(options, int8=True), TEN_INT8: lambda _: ours(options, 10, int8=True)}
    if options.original:
        every["the original, fp32"] = original
    if options.nanogpt:
        every["nanoGPT, fp32"] = nanogpt
    return every


def seconds(tell, count):
    begin = time.perf_counter()
    tell(count)
    return time.perf_counter() - begin


def reading_ceiling():
    """How many bytes a second this machine reads from memory, the best of ten tries."""
    numbers = torch.ones(64 * 2 ** 20)                                  # 256 MiB
    return numbers.nbytes / min(seconds(lambda _: numbers.sum(), 0) for _ in range(10))


def peak_memory(name, options):
    """MiB that a process needs which tells with this contender alone."""
    words = [sys.executable, __file__, "--memory-of", name, "--threads", str(options.threads)]
    for peer in ("original", "nanogpt"):
        words += [f"--{peer}", getattr(options, peer)] if getattr(options, peer) else []
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[-1])


@torch.inference_mode()
def int8_loss(source, corpus):
    """Validation loss of a storyteller in fp32 and in int8, on the first 50,000 tokens of what the corpus validates on."""
    losses = {}
    for name, quantize in (("fp32", False), ("int8", True)):
        model, tokenizer, about = golpo.load_storyteller(source, quantize=quantize)
        saved, context = about.get("settings") or golpo.asdict(golpo.Settings()), model.config["context_length"]
        ids = golpo.load_corpus(corpus, tokenizer, saved["validation_fraction"], saved["seed"]).val_ids[:50_000].long()
        ids = ids[:(len(ids) - 1) // context * context + 1]
        rows, targets = ids[:-1].view(-1, context), ids[1:].view(-1, context)
        total = sum(torch.nn.functional.cross_entropy(model(x[None])[0], y, reduction="sum") for x, y in zip(rows, targets))
        losses[name] = float(total) / targets.numel()
    change = math.exp(losses["int8"] - losses["fp32"]) - 1
    print(f"{targets.numel():,} tokens: loss {losses['fp32']:.4f} in fp32, {losses['int8']:.4f} in int8; perplexity {change:+.2%}")


def measure(options):
    """Let all contenders tell in turns → facts, a row for each, and the ratios that the targets name."""
    every = contenders(options)
    tells = {name: make(options) for name, make in every.items()}
    for tell in tells.values():
        tell(4)                                                         # warm up
    rounds = []                                                         # of {name: tokens a second}
    for _ in range(options.rounds):
        rounds.append({name: options.tokens * (10 if "ten" in name else 1) / seconds(tell, options.tokens)
                       for name, tell in tells.items()})
        for name in (OURS, INT8) if options.long else ():
            rounds[-1][f"{name}, long"] = options.long / seconds(tells[name], options.long)
    ceiling = reading_ceiling()
    weights = golpo.GPTModel(CONFIG).parameter_count() * 4              # bytes read for each token in fp32
    rows = []
    for name in rounds[0]:
        speeds = [one[name] for one in rounds]
        speed = statistics.median(speeds)
        rows.append({"contender": name, "tokens_per_second": round(speed, 2),
                     "spread": [round(min(speeds), 2), round(max(speeds), 2)],
                     "ratio_to_hugging_face": round(statistics.median(one[name] / one[PEER] for one in rounds), 2),
                     "share_of_ceiling": round(speed * weights / ceiling, 2) if name in (OURS, PEER) else None,
                     "peak_memory_mib": peak_memory(name, options) if options.device == "cpu" and name in every else None})
    ratios = {f"{a} / {b}": round(statistics.median(one[a] / one[b] for one in rounds), 2)
              for a, b in ((OURS, PEER), (INT8, PEER), (OURS, "the original, fp32"), (INT8, "the original, fp32"),
                           (TEN, OURS), (TEN_INT8, INT8), (OURS + ", long", OURS), (INT8 + ", long", INT8))
              if a in rounds[0] and b in rounds[0]}
    facts = {"tokens": options.tokens, "long": options.long, "rounds": options.rounds, "threads": options.threads,
             "torch": torch.__version__, "ceiling_gb_per_second": round(ceiling / 1e9, 1)}
    return facts, rows, ratios


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=200, help="new tokens a story")
    parser.add_argument("--long", type=int, default=2000, help="new tokens of the long story (0: none)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--original", help="a checkout of the original project")
    parser.add_argument("--nanogpt", help="a checkout of nanoGPT")
    parser.add_argument("--save", action="store_true", help="write benchmarks/telling.json")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--int8-loss", metavar="CHECKPOINT", help="compare its perplexity in fp32 and int8, on --corpus")
    parser.add_argument("--corpus", help="the corpus that it was trained on")
    options = parser.parse_args()
    if options.int8_loss:
        int8_loss(options.int8_loss, options.corpus)
        return
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.memory_of:
        contenders(options)[options.memory_of](options)(8)
        # Not ru_maxrss: that is inherited from the process which started this one.
        print(int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
        return

    facts, rows, ratios = measure(options)
    print(f"{options.tokens} new tokens from {PROMPT}, {options.threads} threads, {options.rounds} rounds, "
          f"memory read at up to {facts['ceiling_gb_per_second']} GB/s, torch {torch.__version__}\n")
    print(f"{'':26}{'tokens/s':>10}{'spread':>18}{'x HF':>8}{'of ceiling':>12}{'peak MiB':>10}")
    for row in rows:
        low, high = row["spread"]
        share = "" if row["share_of_ceiling"] is None else f"{row['share_of_ceiling']:.0%}"
        print(f"{row['contender']:26}{row['tokens_per_second']:10.1f}{f'{low:.1f} to {high:.1f}':>18}"
              f"{row['ratio_to_hugging_face']:8.2f}{share:>12}{row['peak_memory_mib'] or '':>10}")
    print("\n" + "\n".join(f"{pair}: {ratio:.2f}" for pair, ratio in ratios.items()))
    if options.save:
        everything = {**facts, "rows": rows, "ratios": ratios}
        (HERE / "telling.json").write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
