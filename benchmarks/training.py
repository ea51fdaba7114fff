"""How fast does a model learn, and in how much memory? Contenders train on the same batch in turns, in one process.

    python benchmarks/training.py                                  the ladder, and Hugging Face's GPT-2
    python benchmarks/training.py --original PATH --nanogpt PATH   checkouts of those projects beside it
    python benchmarks/training.py --save                           also training.json, and docs/speed-ladder.png

The ladder climbs from the from-scratch definitions to what `train` does, one change at a time. All contenders have
the shape of --layers, --width and --context, the same dropout, and random tokens of GPT-2's vocabulary. Other work
on the machine slows all, though not equally: ratios are medians of ratios within a round. Utilisation ("MFU") is the
arithmetic of PaLM's appendix B (6 per weight and token, 12 x layers x width x context for attention), over the
fastest product of two 2,048 x 2,048 matrices that was measured here in the same precision.
"""

import argparse
import contextlib
import gc
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
import golpo_utils as golpo  # noqa: E402
from telling import load_module, seconds  # noqa: E402

VOCABULARY = 50257
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
NAMES = {FP32: "fp32", BF16: "bf16", FP16: "fp16"}


def config_of(options):
    return dict(vocab_size=VOCABULARY, context_length=options.context, emb_dim=options.width, n_heads=options.heads,
                n_layers=options.layers, drop_rate=0.1, qkv_bias=False)


def step_of(model, loss_of, optimizer, options, dtype=FP32, clip=True):
    """A training step of a plain loop: loss_of(inputs, targets), backward, clipping, optimizer."""
    inputs, targets = (torch.randint(0, VOCABULARY, (options.batch, options.context), device=options.device) for _ in "it")
    scaler = torch.amp.GradScaler(options.device, enabled=dtype == FP16)

    def step():
        with torch.autocast(options.device, dtype, enabled=dtype != FP32):
            loss = loss_of(inputs, targets)
        scaler.scale(loss).backward()
        if clip:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return step


def plain_loss(model, inputs, targets):
    logits = model(inputs)
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def by_hand(options, fused_blocks, sliced_loss=False, dtype=FP32, fused_optimizer=False):
    """A rung below the top of the ladder."""
    model = golpo.GPTModel(config_of(options)).to(options.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=None if fused_optimizer else False,
                                  fused=fused_optimizer or None)
    loss = model if sliced_loss else lambda *batch: plain_loss(model, *batch)
    plain_step = step_of(model, loss, optimizer, options, dtype)

    def step():
        golpo.Block.use_fused = fused_blocks
        plain_step()
        golpo.Block.use_fused = True
    return step


def ours(options, precision, compile="off", optimizer="adamw"):
    """`Training.step`, as `train` runs it: batches cut from the corpus, schedule, clipping and all; the peers' optimizer."""
    config = config_of(options)
    settings = golpo.Settings(config=config, batch_size=options.batch, precision=precision, compile=compile,
                              optimizer=optimizer, device=options.device, checkpoint_dir=tempfile.gettempdir())
    ids = torch.randint(0, VOCABULARY, (options.batch * options.context * 100,))
    model = golpo.GPTModel(config).to(options.device)
    training = golpo.Training(model, golpo.make_optimizer(model, settings), golpo.Corpus(ids, ids, 0, 0, "", []),
                              golpo.get_tokenizer(VOCABULARY), settings, golpo.TrainingState(), None, None)
    return training.step


def hugging_face(options, dtype, compile=False):
    from transformers import GPT2Config, GPT2LMHeadModel
    model = GPT2LMHeadModel(GPT2Config(n_positions=options.context, n_embd=options.width, n_layer=options.layers,
                                       n_head=options.heads)).to(options.device)
    run = torch.compile(model) if compile else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    return step_of(model, lambda inputs, targets: run(inputs, labels=inputs).loss, optimizer, options, dtype)


def original(options):
    module = load_module(Path(options.original) / "utils.py")
    model = module.GPTModel(config_of(options) | {"key_dim": options.width, "val_dim": options.width}).to(options.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, weight_decay=0.1)
    return step_of(model, lambda *batch: plain_loss(model, *batch), optimizer, options, clip=False)


def nanogpt(options, dtype, compile=False):
    module = load_module(Path(options.nanogpt) / "model.py")
    with contextlib.redirect_stdout(sys.stderr):
        model = module.GPT(module.GPTConfig(block_size=options.context, vocab_size=VOCABULARY, n_layer=options.layers,
                                            n_head=options.heads, n_embd=options.width, dropout=0.1, bias=False))
        model = model.to(options.device)
        optimizer = model.configure_optimizers(0.1, 1e-4, (0.9, 0.95), options.device)
    run = torch.compile(model) if compile else model
    return step_of(model, lambda *batch: run(*batch)[1], optimizer, options, dtype)


def contenders(options):
    """Name → (its precision, how to make its step). First the ladder, then the peers."""
    half, name = options.half, NAMES[options.half]
    every = {"1 from-scratch definitions, fp32": (FP32, lambda: by_hand(options, False)),
             "2 + fused blocks": (FP32, lambda: by_hand(options, True)),
             "3 + loss in slices": (FP32, lambda: by_hand(options, True, True)),
             f"4 + mixed precision, {name}": (half, lambda: by_hand(options, True, True, half)),
             "5 + fused optimizer": (half, lambda: by_hand(options, True, True, half, True)),
             "6 `train` itself, all of these": (half, lambda: ours(options, name)),
             "7 + compiled": (half, lambda: ours(options, name, "on")),
             "8 `train` with Muon for AdamW": (half, lambda: ours(options, name, optimizer="muon")),
             "ours, fp32": (FP32, lambda: ours(options, "fp32")),
             "Hugging Face, fp32": (FP32, lambda: hugging_face(options, FP32)),
             f"Hugging Face, {name}": (half, lambda: hugging_face(options, half)),
             f"Hugging Face, {name}, compiled": (half, lambda: hugging_face(options, half, True))}
    if options.original:
        every["the original, fp32"] = FP32, lambda: original(options)
    if options.nanogpt:
        every |= {"nanoGPT, fp32": (FP32, lambda: nanogpt(options, FP32)),
                  f"nanoGPT, {name}": (half, lambda: nanogpt(options, half)),
                  f"nanoGPT, {name}, compiled": (half, lambda: nanogpt(options, half, True))}
    return {one: how for one, how in every.items() if options.compiled or "compiled" not in one}


def timed(step, options):
    def run(_):
        step()
        if options.device == "cuda":
            torch.cuda.synchronize()
    return seconds(run, 0)


def product_ceiling(dtype, device):
    """The most floating-point operations a second that a matrix product reaches here."""
    n = 8192 if device == "cuda" else 2048
    a, fastest = torch.randn(n, n, dtype=dtype, device=device), float("inf")
    for _ in range(10):
        begin = time.perf_counter()
        a @ a
        if device == "cuda":
            torch.cuda.synchronize()
        fastest = min(fastest, time.perf_counter() - begin)
    return 2 * n ** 3 / fastest


def peak_memory(name, options):
    """MiB that a process needs which trains three steps with this contender alone."""
    words = [sys.executable, __file__, *sys.argv[1:], "--memory-of", name]
    done = subprocess.run(words, capture_output=True, text=True)
    return int(done.stdout.split()[-1]) if done.returncode == 0 else None


def tell_memory(step):
    for _ in range(3):
        step()
    # Not ru_maxrss: that is inherited from the process which started this one.
    print(int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024)


def draw_ladder(rows, path, subtitle):
    """The ladder as a picture: tokens a second, and how many times the first rung."""
    from matplotlib.figure import Figure
    rungs = [row for row in rows if row["contender"][0].isdigit()]
    others = [row for row in rows if row["contender"].startswith(("the original", "nanoGPT", "Hugging"))]
    shown = (rungs + others)[::-1]
    figure = Figure(figsize=(9, 0.42 * len(shown) + 1.4), layout="constrained", facecolor="none")
    axes = figure.subplots()
    colors = ["tab:blue" if row in rungs else "tab:gray" for row in shown]
    bars = axes.barh([row["contender"] for row in shown], [row["tokens_per_second"] for row in shown], color=colors)
    first = rungs[0]["tokens_per_second"]
    axes.bar_label(bars, [f"{row['tokens_per_second'] / first:.2f} ×" for row in shown], padding=4, color="gray")
    axes.set_facecolor("none")
    axes.set_title(subtitle, color="gray", size=10, loc="left")
    axes.set_xlabel("tokens trained on a second", color="gray")
    axes.tick_params(colors="gray")
    axes.spines[:].set_visible(False)
    axes.margins(x=0.1)
    figure.savefig(path, dpi=130)


def prepare(name, make):
    """Make a contender's step, and take it twice: to warm up, and to compile."""
    torch.manual_seed(0)
    step, begin = make(), time.perf_counter()
    for _ in range(2):
        step()
    print(f"{name}: two steps to warm up took {time.perf_counter() - begin:.1f} s", file=sys.stderr)
    return step


def in_turns(every, options):
    """All contenders one after the other, again and again, so that a noisy machine is noisy for all → their seconds
    in each round, and no memory."""
    steps = {name: prepare(name, make) for name, (_, make) in every.items()}
    return [{name: timed(step, options) for name, step in steps.items()} for _ in range(options.rounds)], {}


def one_by_one(every, options):
    """Each contender alone on the GPU, which could not hold all → their seconds in each round, and peaks in MiB."""
    spent, peaks = {}, {}
    for name, (_, make) in every.items():
        torch.cuda.reset_peak_memory_stats()
        step = prepare(name, make)
        spent[name] = [timed(step, options) for _ in range(options.rounds)]
        peaks[name] = torch.cuda.max_memory_allocated() // 2 ** 20
        del step
        gc.collect()
        torch.cuda.empty_cache()
    return [dict(zip(spent, times)) for times in zip(*spent.values())], peaks


def measure(options):
    """Train with all contenders → facts, a row for each, the ratios that the targets name, and who is the yardstick."""
    every, tokens = contenders(options), options.batch * options.context
    rounds, peaks = (one_by_one if options.device == "cuda" else in_turns)(every, options)
    rounds = [{name: tokens / one[name] for name in one} for one in rounds]
    model = golpo.GPTModel(config_of(options))
    flops = 6 * (model.parameter_count() - model.pos_emb.weight.numel()) + 12 * options.layers * options.width * options.context
    ceilings = {dtype: product_ceiling(dtype, options.device) for dtype in (FP32, options.half)}
    peer = "the original, fp32" if options.original else "Hugging Face, fp32"
    rows = []
    for name, (dtype, _) in every.items():
        speeds = [one[name] for one in rounds]
        rows.append({"contender": name, "tokens_per_second": round(statistics.median(speeds), 1),
                     "spread": [round(min(speeds), 1), round(max(speeds), 1)],
                     f"ratio to {peer}": round(statistics.median(one[name] / one[peer] for one in rounds), 2),
                     "mfu": round(statistics.median(speeds) * flops / ceilings[dtype], 3),
                     "peak_memory_mib": peaks.get(name) or (None if options.no_memory else peak_memory(name, options))})
    top = "7 + compiled" if options.compiled else "6 `train` itself, all of these"
    ratios = {f"best of ours / {name}": round(statistics.median(max(one[top], one["6 `train` itself, all of these"]) / one[name]
                                                                for one in rounds), 2)
              for name, (dtype, _) in every.items() if dtype == options.half and name.startswith(("nano", "Hugging"))}
    ratios |= {f"ours, fp32 / {name}": round(statistics.median(one["ours, fp32"] / one[name] for one in rounds), 2)
               for name, (dtype, _) in every.items() if dtype == FP32 and name.startswith(("nano", "Hugging", "the"))}
    facts = {"layers": options.layers, "width": options.width, "context": options.context, "batch": options.batch,
             "device": torch.cuda.get_device_name() if options.device == "cuda" else f"{options.threads} CPU threads",
             "torch": torch.__version__, "rounds": options.rounds, "flops_per_token": flops,
             "ceiling_tflops": {NAMES[dtype]: round(ceiling / 1e12, 3) for dtype, ceiling in ceilings.items()}}
    return facts, rows, ratios, peer


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, value in (("layers", 6), ("width", 384), ("heads", 6), ("context", 256), ("batch", 8), ("rounds", 5), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--half", default="bf16", choices=("bf16", "fp16"), help="the precision of the upper rungs")
    parser.add_argument("--original", help="a checkout of the original project")
    parser.add_argument("--nanogpt", help="a checkout of nanoGPT")
    parser.add_argument("--no-compiled", dest="compiled", action="store_false", help="leave the compiled ones out")
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    parser.add_argument("--save", action="store_true", help="write benchmarks/training.json and docs/speed-ladder.png")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.half = {"bf16": BF16, "fp16": FP16}[options.half]
    torch.set_num_threads(options.threads)
    if options.memory_of:
        tell_memory(contenders(options)[options.memory_of][1]())
        return
    facts, rows, ratios, peer = measure(options)
    print("\n" + " · ".join(f"{name} {value}" for name, value in facts.items()) + "\n")
    print(f"{'':34}{'tokens/s':>10}{'spread':>20}{'x ' + peer:>22}{'MFU':>8}{'peak MiB':>10}")
    for row in rows:
        low, high = row["spread"]
        print(f"{row['contender']:34}{row['tokens_per_second']:10,.0f}{f'{low:,.0f} to {high:,.0f}':>20}"
              f"{row[f'ratio to {peer}']:22.2f}{row['mfu']:8.0%}{row['peak_memory_mib'] or '':>10}")
    print("\n" + "\n".join(f"{pair}: {ratio:.2f}" for pair, ratio in ratios.items()))
    if options.save:
        everything = {**facts, "rows": rows, "ratios": ratios}
        (HERE / "training.json").write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
        draw_ladder(rows, HERE.parent / "docs" / "speed-ladder.png",
                    f"{facts['layers']} layers × {facts['width']}, context {facts['context']}, batch {facts['batch']}, "
                    f"{facts['device']}; × the first")


if __name__ == "__main__":
    main()
