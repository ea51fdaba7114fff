"""How fast does a model learn, and in how much memory? Contenders train on the same batch in turns.

    python benchmarks/training.py                          the steps, and Hugging Face's GPT-2
    python benchmarks/training.py --original PATH --nanogpt PATH    with checkouts of those, too
    python benchmarks/training.py --save       also training.json, and docs/training-speed.png
    python benchmarks/training.py --half fp32  on a processor that does not multiply bf16 natively

The steps lead from the reference modules to what `golpo train` does, one change at a time. All
contenders have the shape of --layers, --width and --context, the same dropout, and random tokens
of GPT-2's vocabulary. Other work on the machine slows all, not equally: ratios are medians of
ratios within a round. Model FLOPs utilization (MFU) follows PaLM's appendix B (6 operations for
each weight and token, 12 x layers x width x context for attention). It is relative to the fastest
product of two square matrices that was measured here in the same precision.
"""

import argparse
import contextlib
import gc
import json
import statistics
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from machine import BENCHMARKS, PROJECT, load_module, own_peak_memory, print_machine, seconds
from torch import Tensor

from golpo.loss import NextTokenLoss
from golpo.optim import make_optimizer
from golpo.settings import Settings
from golpo.step import TrainingStep
from golpo_utils import FusedModule, GPTModel

VOCABULARY = 50257
FP32 = torch.float32
NAMES = {FP32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
MIXED = "4 + mixed precision, {}"
TRAIN = "6 `golpo train`, all of these"
COMPILED = "7 + compiled"
OURS_FP32 = "ours, fp32"
ORIGINAL = "the original, fp32"
HUGGING_FACE = "Hugging Face, fp32"
PEERS = ("the original", "nanoGPT", "Hugging Face")
Step = Callable[[], object]


class Contender(NamedTuple):
    """Something that trains: its precision, and what makes its step."""

    dtype: torch.dtype
    make: Callable[[], Step]


def config_of(options: Namespace) -> dict:
    return {
        "vocab_size": VOCABULARY,
        "context_length": options.context,
        "emb_dim": options.width,
        "n_heads": options.heads,
        "n_layers": options.layers,
        "drop_rate": 0.1,
        "qkv_bias": False,
    }


def make_plain_step(
    model: nn.Module,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    options: Namespace,
    dtype: torch.dtype = FP32,
    clip: bool = True,
) -> Step:
    """A step of a plain loop: loss_of(inputs, targets), backward, clipping, optimizer."""
    shape = (options.batch, options.context)
    inputs = torch.randint(0, VOCABULARY, shape, device=options.device)
    targets = torch.randint(0, VOCABULARY, shape, device=options.device)
    scaler = torch.amp.GradScaler(options.device, enabled=dtype == torch.float16)

    def step() -> None:
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


def plain_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    logits = model(inputs)  # (b, t, v)
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def make_partial_step(
    options: Namespace,
    use_fused: bool,
    chunked_loss: bool = False,
    dtype: torch.dtype = FP32,
    fused_optimizer: bool = False,
) -> Step:
    """A step with some of what `golpo train` has."""
    model = GPTModel(config_of(options)).to(options.device)
    if fused_optimizer:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=False)
    loss = NextTokenLoss(model) if chunked_loss else lambda *batch: plain_loss(model, *batch)
    plain_step = make_plain_step(model, loss, optimizer, options, dtype)

    def step() -> None:
        FusedModule.use_fused = use_fused
        try:
            plain_step()
        finally:
            FusedModule.use_fused = True

    return step


def make_our_step(
    options: Namespace, precision: str, compile: str = "off", optimizer: str = "adamw"
) -> Step:
    """The step of `golpo train`: batches cut from a corpus, schedule, clipping and all."""
    config = config_of(options)
    settings = Settings(
        config=config,
        batch_size=options.batch,
        precision=precision,
        compile=compile,
        optimizer=optimizer,
        device=options.device,
        checkpoint_dir=tempfile.gettempdir(),
    )
    ids = torch.randint(0, VOCABULARY, (options.batch * options.context * 100,))
    model = GPTModel(config).to(options.device)
    training_step = TrainingStep(model, make_optimizer(model, settings), ids, None, settings)
    numbers = iter(range(training_step.total_steps))
    return lambda: training_step.run(next(numbers))


def make_hugging_face(options: Namespace, dtype: torch.dtype, compile: bool = False) -> Step:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_positions=options.context,
        n_embd=options.width,
        n_layer=options.layers,
        n_head=options.heads,
    )
    model = GPT2LMHeadModel(config).to(options.device)
    run = torch.compile(model) if compile else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def loss_of(inputs: Tensor, _: Tensor) -> Tensor:
        return run(inputs, labels=inputs).loss  # transformers shifts the labels itself

    return make_plain_step(model, loss_of, optimizer, options, dtype)


def make_original(options: Namespace) -> Step:
    """The project that this one is a remake of, with its own optimizer settings."""
    module = load_module(Path(options.original, "utils.py"))
    widths = {"key_dim": options.width, "val_dim": options.width}
    model = module.GPTModel(config_of(options) | widths).to(options.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, weight_decay=0.1)
    loss_of = lambda *batch: plain_loss(model, *batch)  # noqa: E731
    return make_plain_step(model, loss_of, optimizer, options, clip=False)


def make_nanogpt(options: Namespace, dtype: torch.dtype, compile: bool = False) -> Step:
    module = load_module(Path(options.nanogpt, "model.py"))
    config = module.GPTConfig(
        block_size=options.context,
        vocab_size=VOCABULARY,
        n_layer=options.layers,
        n_head=options.heads,
        n_embd=options.width,
        dropout=0.1,
        bias=False,
    )
    with contextlib.redirect_stdout(sys.stderr):
        model = module.GPT(config).to(options.device)
        optimizer = model.configure_optimizers(0.1, 1e-4, (0.9, 0.95), options.device)
    run = torch.compile(model) if compile else model
    return make_plain_step(model, lambda *batch: run(*batch)[1], optimizer, options, dtype)


def make_contenders(options: Namespace) -> dict[str, Contender]:
    """Name → contender. First the steps towards `golpo train`, then the peers."""
    half = options.half
    name = NAMES[half]

    def partial(dtype: torch.dtype, *arguments) -> Contender:
        return Contender(dtype, lambda: make_partial_step(options, *arguments))

    def ours(precision: str, **changes) -> Contender:
        dtype = FP32 if precision == "fp32" else half
        return Contender(dtype, lambda: make_our_step(options, precision, **changes))

    def peer(make: Callable, dtype: torch.dtype, compile: bool = False) -> Contender:
        return Contender(dtype, lambda: make(options, dtype, compile))

    contenders = {
        "1 reference modules, fp32": partial(FP32, False),
        "2 + fused modules": partial(FP32, True),
        "3 + loss in chunks": partial(FP32, True, True),
        MIXED.format(name): partial(half, True, True, half),
        "5 + fused optimizer": partial(half, True, True, half, True),
        TRAIN: ours(name),
        COMPILED: ours(name, compile="on"),
        "8 `golpo train` with Muon": ours(name, optimizer="muon"),
        OURS_FP32: ours("fp32"),
        HUGGING_FACE: peer(make_hugging_face, FP32),
        f"Hugging Face, {name}": peer(make_hugging_face, half),
        f"Hugging Face, {name}, compiled": peer(make_hugging_face, half, True),
    }
    if options.original:
        contenders[ORIGINAL] = Contender(FP32, lambda: make_original(options))
    if options.nanogpt:
        contenders["nanoGPT, fp32"] = peer(make_nanogpt, FP32)
        contenders[f"nanoGPT, {name}"] = peer(make_nanogpt, half)
        contenders[f"nanoGPT, {name}, compiled"] = peer(make_nanogpt, half, True)
    if half == FP32:
        del contenders[MIXED.format(name)]
    if not options.compiled:
        contenders = {one: what for one, what in contenders.items() if "compiled" not in one}
    return contenders


def product_ceiling(dtype: torch.dtype, device: str) -> float:
    """The most floating-point operations a second that a matrix product reaches here."""
    n = 8192 if device == "cuda" else 2048
    a = torch.randn(n, n, dtype=dtype, device=device)
    fastest = min(seconds(lambda: a @ a) for _ in range(10))
    return 2 * n**3 / fastest


def peak_memory(name: str) -> int | None:
    """MiB of a process that trains three steps with this contender alone."""
    words = [sys.executable, __file__, *sys.argv[1:], "--memory-of", name]
    done = subprocess.run(words, capture_output=True, text=True)
    return int(done.stdout.split()[-1]) if done.returncode == 0 else None


def warm_up(name: str, contender: Contender) -> Step:
    """Make a contender's step and run it twice, which compiles it, too."""
    torch.manual_seed(0)
    step = contender.make()
    time = seconds(step) + seconds(step)
    print(f"{name}: two steps to warm up took {time:.1f} s", file=sys.stderr)
    return step


def train_in_turns(contenders: dict[str, Contender], options: Namespace) -> tuple[list, dict]:
    """All contenders one after the other, again and again, so that a noisy machine is noisy for
    all → (their seconds in each round, no memory).
    """
    steps = {name: warm_up(name, contender) for name, contender in contenders.items()}
    rounds = []
    for _ in range(options.rounds):
        rounds.append({name: seconds(step) for name, step in steps.items()})
    return rounds, {}


def train_one_by_one(contenders: dict[str, Contender], options: Namespace) -> tuple[list, dict]:
    """Each contender alone on the GPU, which cannot hold all → (seconds, peaks in MiB)."""
    times = {}
    peaks = {}
    for name, contender in contenders.items():
        torch.cuda.reset_peak_memory_stats()
        step = warm_up(name, contender)
        times[name] = [seconds(step) for _ in range(options.rounds)]
        peaks[name] = torch.cuda.max_memory_allocated() // 2**20
        del step
        gc.collect()
        torch.cuda.empty_cache()
    rounds = [dict(zip(times, one, strict=True)) for one in zip(*times.values(), strict=True)]
    return rounds, peaks


def median_ratio(rounds: list[dict[str, float]], above: list[str], below: str) -> float:
    """The median of (the fastest of `above`) / `below` within a round."""
    pairs = [max(one[name] for name in above) / one[below] for one in rounds]
    return round(statistics.median(pairs), 2)


def compare_with_peers(rounds: list[dict[str, float]], contenders: dict[str, Contender]) -> dict:
    """The ratios between our speed and each peer's in the same kind of precision."""
    best_of_ours = [name for name in (TRAIN, COMPILED, OURS_FP32) if name in contenders]
    ratios = {}
    for name, contender in contenders.items():
        if name.startswith(PEERS):
            alike = [one for one in best_of_ours if contenders[one].dtype == contender.dtype]
            ours = "ours, fp32" if contender.dtype == FP32 else "best of ours"
            ratios[f"{ours} / {name}"] = median_ratio(rounds, alike, name)
    return ratios


def flops_per_token(options: Namespace) -> int:
    model = GPTModel(config_of(options))
    weights = model.parameter_count() - model.pos_emb.weight.numel()
    return 6 * weights + 12 * options.layers * options.width * options.context


def measure(options: Namespace) -> dict:
    """Train with all contenders → facts, "rows" (one for each), "ratios", and the "yardstick"."""
    contenders = make_contenders(options)
    run = train_one_by_one if options.device == "cuda" else train_in_turns
    times, peaks = run(contenders, options)
    tokens = options.batch * options.context
    rounds = [{name: tokens / time for name, time in one.items()} for one in times]
    flops = flops_per_token(options)
    dtypes = (FP32, options.half)
    ceilings = {dtype: product_ceiling(dtype, options.device) for dtype in dtypes}
    yardstick = ORIGINAL if options.original else HUGGING_FACE
    rows = []
    for name, contender in contenders.items():
        speeds = [one[name] for one in rounds]
        speed = statistics.median(speeds)
        if name not in peaks and not options.no_memory:
            peaks[name] = peak_memory(name)
        rows.append(
            {
                "contender": name,
                "tokens_per_second": round(speed, 1),
                "spread": [round(min(speeds), 1), round(max(speeds), 1)],
                f"ratio to {yardstick}": median_ratio(rounds, [name], yardstick),
                "mfu": round(speed * flops / ceilings[contender.dtype], 3),
                "peak_memory_mib": peaks.get(name),
            }
        )
    return {
        **{name: vars(options)[name] for name in ("layers", "width", "context", "batch")},
        "rounds": options.rounds,
        "flops_per_token": flops,
        "ceiling_tflops": {NAMES[one]: round(top / 1e12, 3) for one, top in ceilings.items()},
        "yardstick": yardstick,
        "rows": rows,
        "ratios": compare_with_peers(rounds, contenders),
    }


def print_result(result: dict) -> None:
    """Print what `measure` returned as a table."""
    for name, value in result.items():
        if name not in ("rows", "ratios"):
            print(f"{name} {value}", end="  ")
    yardstick = result["yardstick"]
    heads = f"{'spread':>20}{'x ' + yardstick:>22}{'MFU':>8}{'peak MiB':>10}"
    print(f"\n\n{'':34}{'tokens/s':>10}{heads}")
    for row in result["rows"]:
        low, high = row["spread"]
        spread = f"{low:,.0f} to {high:,.0f}"
        print(
            f"{row['contender']:34}{row['tokens_per_second']:10,.0f}{spread:>20}"
            f"{row[f'ratio to {yardstick}']:22.2f}{row['mfu']:8.0%}"
            f"{row['peak_memory_mib'] or '':>10}"
        )
    print()
    for pair, ratio in result["ratios"].items():
        print(f"{pair}: {ratio:.2f}")


def draw_speeds(rows: list[dict], path: Path, title: str) -> None:
    """A picture of the tokens a second, and how many times the first step's they are."""
    from matplotlib.figure import Figure

    steps = [row for row in rows if row["contender"][0].isdigit()]
    peers = [row for row in rows if row["contender"].startswith(PEERS)]
    shown = (steps + peers)[::-1]
    figure = Figure(figsize=(9, 0.42 * len(shown) + 1.4), layout="constrained", facecolor="none")
    axes = figure.subplots()
    bars = axes.barh(
        [row["contender"] for row in shown],
        [row["tokens_per_second"] for row in shown],
        color=["tab:blue" if row in steps else "tab:gray" for row in shown],
    )
    first = steps[0]["tokens_per_second"]
    labels = [f"{row['tokens_per_second'] / first:.2f} ×" for row in shown]
    axes.bar_label(bars, labels, padding=4, color="gray")
    axes.set_facecolor("none")
    axes.set_title(title, color="gray", size=10, loc="left")
    axes.set_xlabel("tokens of training a second", color="gray")
    axes.tick_params(colors="gray")
    axes.spines[:].set_visible(False)
    axes.margins(x=0.1)
    figure.savefig(path, dpi=130)


def parse_options() -> Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    sizes = {"layers": 6, "width": 384, "heads": 6, "context": 256, "batch": 8}
    for name, value in (sizes | {"rounds": 5, "threads": 2}).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--half",
        default="bf16",
        choices=("bf16", "fp16", "fp32"),
        help="from step 4 on; fp32: none",
    )
    parser.add_argument("--original", help="a checkout of the original project")
    parser.add_argument("--nanogpt", help="a checkout of nanoGPT")
    parser.add_argument("--no-compiled", dest="compiled", action="store_false")
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    parser.add_argument("--save", action="store_true", help="write the JSON file and the picture")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.half = next(dtype for dtype, name in NAMES.items() if name == options.half)
    return options


def main() -> None:
    options = parse_options()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        step = make_contenders(options)[options.memory_of].make()
        for _ in range(3):
            step()
        print(own_peak_memory())
        return
    facts = print_machine()
    result = measure(options)
    print_result(result)
    if options.save:
        text = json.dumps({**facts, **result}, indent=1)
        (BENCHMARKS / "training.json").write_text(text + "\n", encoding="utf-8")
        title = f"{result['layers']} layers × {result['width']}, context {result['context']}, "
        title += f"batch {result['batch']}, {facts['processor']}; × the first step"
        draw_speeds(result["rows"], PROJECT / "docs" / "training-speed.png", title)


if __name__ == "__main__":
    main()
