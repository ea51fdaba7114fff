"""Training and generation at 124 million parameters on a GPU, beside nanoGPT and Hugging Face.

    python benchmarks/gpu.py --nanogpt PATH           PATH: a checkout of nanoGPT
    python benchmarks/gpu.py --device cpu --tiny      a toy size on a CPU: does this script work?

Results are written to benchmarks/gpu.json (or --output) as they come.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from machine import print_machine

from golpo.inference import prepare_for_inference
from golpo.optim import make_optimizer
from golpo.settings import Settings
from golpo.step import TrainingStep
from golpo_utils import GPT_CONFIG_124M, GPTModel, generate

CONFIG = {**GPT_CONFIG_124M, "drop_rate": 0.0}
TINY = {
    **CONFIG,
    "vocab_size": 512,
    "context_length": 32,
    "emb_dim": 32,
    "n_heads": 2,
    "n_layers": 1,
    "key_dim": 32,
    "val_dim": 32,
}


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def our_step(config: dict, batch: int, device: str, optimizer: str, compiled: bool):
    """A function that does one training step of ours, through TrainingStep."""
    torch.manual_seed(0)
    model = GPTModel(config).to(device)
    settings = Settings(
        config=config,
        batch_size=batch,
        num_epochs=1000,
        optimizer=optimizer,
        device=device,
        compile="on" if compiled else "off",
        align_to_stories=False,
    )
    ids = torch.randint(0, config["vocab_size"], (200_000,), dtype=torch.int32)
    step = TrainingStep(model, make_optimizer(model, settings), ids, None, settings)
    model.train()
    numbers = iter(range(10**9))
    return lambda: step.run(next(numbers))


def nanogpt_model(path: str, config: dict, device: str):
    """nanoGPT's model of that config, without dropout, in fp32."""
    sys.path.append(path)
    import model as nanogpt

    size = nanogpt.GPTConfig(
        block_size=config["context_length"],
        vocab_size=config["vocab_size"],
        n_layer=config["n_layers"],
        n_head=config["n_heads"],
        n_embd=config["emb_dim"],
        dropout=0.0,
        bias=True,
    )
    return nanogpt.GPT(size).to(device)


def nanogpt_step(path: str, config: dict, batch: int, device: str, compiled: bool):
    """A function that does one training step of nanoGPT's model, as its train.py does."""
    theirs = nanogpt_model(path, config, device)
    optimizer = theirs.configure_optimizers(0.1, 1e-4, (0.9, 0.95), device)
    run = torch.compile(theirs) if compiled else theirs
    length = config["context_length"]
    ids = torch.randint(0, config["vocab_size"], (batch, length + 1), device=device)
    dtype = torch.bfloat16

    def step():
        with torch.autocast(device, dtype):
            _, loss = run(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def measure_steps(steps: dict, tokens: int, rounds: int, device: str) -> dict:
    """Tokens a second of each contender: the median of `rounds` of ten steps, taken in turn."""
    for step in steps.values():
        for _ in range(3):
            step()
    times = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            synchronize(device)
            started = time.perf_counter()
            for _ in range(10):
                step()
            synchronize(device)
            times[name].append((time.perf_counter() - started) / 10)
    return {name: tokens / statistics.median(values) for name, values in times.items()}


def matmul_ceiling(device: str) -> float:
    """Operations a second of a large bf16 product on random data."""
    n = 8192 if device == "cuda" else 512
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16)
    b = torch.randn(n, n, device=device, dtype=torch.bfloat16)
    for _ in range(3):
        a @ b
    synchronize(device)
    started = time.perf_counter()
    for _ in range(10):
        a @ b
    synchronize(device)
    return 10 * 2 * n**3 / (time.perf_counter() - started)


def flops_per_token(config: dict) -> float:
    """Forward and backward: 6 a weight, and attention's two products (Chowdhery et al., 2022)."""
    with torch.device("meta"):
        parameters = GPTModel({**config, "init_std": None}).parameter_count()
    d, t = config["emb_dim"], config["context_length"]
    return 6 * (parameters - d * t) + 12 * config["n_layers"] * d * t


def measure_training(options, config: dict) -> dict:
    found = {}
    batches = (8,) if options.tiny else (8, 32)
    for batch in batches:
        steps = {
            "ours, AdamW": our_step(config, batch, options.device, "adamw", not options.tiny),
            "ours, Muon": our_step(config, batch, options.device, "muon", not options.tiny),
        }
        if options.nanogpt:
            nano = nanogpt_step(options.nanogpt, config, batch, options.device, not options.tiny)
            steps["nanoGPT, AdamW"] = nano
        tokens = batch * config["context_length"]
        speeds = measure_steps(steps, tokens, options.rounds, options.device)
        found[f"batch {batch}"] = {name: round(speed) for name, speed in speeds.items()}
        del steps
    ceiling = matmul_ceiling(options.device)
    fastest = max(max(speeds.values()) for speeds in found.values())
    found["matmul ceiling, FLOP/s"] = ceiling
    found["utilization of the ceiling"] = fastest * flops_per_token(config) / ceiling
    return found


def seconds_for(call, device: str) -> float:
    call()
    times = []
    for _ in range(3):
        synchronize(device)
        started = time.perf_counter()
        call()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def measure_generation(options, config: dict) -> dict:
    """Tokens a second of one story, and of ten at once, for each contender."""
    device = options.device
    count = 8 if options.tiny else 200
    prompt = torch.tensor([[1, 2, 3]], device=device)

    def ours(model, rows=1):
        ids = prompt.repeat(rows, 1)
        length = config["context_length"]
        seconds = seconds_for(lambda: generate(model, ids, count, length, 0.8, 50, seed=1), device)
        return rows * count / seconds

    torch.manual_seed(0)
    model = GPTModel(config).to(device).eval()
    found = {"ours, plain, fp32": ours(model)}
    prepared = prepare_for_inference(GPTModel(config).to(device))
    found["ours, prepared, fp32"] = ours(prepared)
    half = prepare_for_inference(GPTModel(config).to(device).to(torch.bfloat16))
    found["ours, prepared, bf16"] = ours(half)
    found["ours, prepared, bf16, ten stories"] = ours(half, 10)
    if options.nanogpt:
        theirs = nanogpt_model(options.nanogpt, config, device).to(torch.bfloat16).eval()
        run = lambda: theirs.generate(prompt, count, temperature=0.8, top_k=50)  # noqa: E731
        with torch.inference_mode():
            found["nanoGPT, bf16"] = count / seconds_for(run, device)
    return {name: round(speed, 1) for name, speed in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--nanogpt", help="a checkout of nanoGPT")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="a toy size")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("PyTorch sees no GPU; choose a GPU runtime, or add --device cpu --tiny")
    config = TINY if options.tiny else CONFIG
    found = {"machine": print_machine()}
    for name, measure in (("generation", measure_generation), ("training", measure_training)):
        found[name] = measure(options, config)
        print(name, json.dumps(found[name], indent=1))
        options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
