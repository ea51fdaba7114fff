"""How fast does the bundled model generate, beside other programs' int8? Part of generation.py.

All contenders have the same weights and continue the same opening, taking the best token each
time, past the story's end. They take turns, so that other work on the machine slows all of them.
"""

import statistics
import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import torch
from llama import ask_llama, has_llama
from machine import seconds

from golpo.exports import export
from golpo.fast_linear import describe_products
from golpo.inference import load_storyteller
from golpo.packages import import_optional
from golpo_utils import generate, story_opening

TITLE = "The Lost Key"
MANY = 10  # stories at once
FP32, INT8 = "ours, fp32", "ours, int8"
HUGGING_FACE = "Hugging Face, fp32"
CTRANSLATE2 = "ctranslate2, int8"
LLAMA = "llama.cpp, q8_0"


def many(name: str) -> str:
    return f"{name}, ten at once"


def long(name: str) -> str:
    return f"{name}, long"


# The ratios that are reported, where both were measured.
RATIOS = (
    (INT8, CTRANSLATE2),
    (many(INT8), many(CTRANSLATE2)),
    (INT8, LLAMA),
    (FP32, HUGGING_FACE),
    (INT8, HUGGING_FACE),
    (many(FP32), FP32),
    (many(INT8), INT8),
    (long(FP32), FP32),
    (long(INT8), INT8),
)
Speed = Callable[[int], float]  # generates so many tokens → tokens a second


def opening_of(tokenizer) -> list[int]:
    return story_opening(tokenizer, title=TITLE)


def make_ours(quantize: bool, rows: int = 1) -> Speed:
    """This project's generation."""
    model, tokenizer, _ = load_storyteller("bundled", quantize=quantize)
    idx = torch.tensor([opening_of(tokenizer)] * rows)
    context = model.config["context_length"]
    return lambda count: rows * count / seconds(lambda: generate(model, idx, count, context))


def make_hugging_face(folder: Path) -> Speed:
    """transformers' generate on the export that `folder` holds."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "hf").eval()
    _, tokenizer, _ = load_storyteller("bundled")
    idx = torch.tensor([opening_of(tokenizer)])

    def generate_tokens(count: int) -> None:
        model.generate(
            idx,
            attention_mask=torch.ones_like(idx),
            max_length=None,
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            top_k=None,
            top_p=None,
        )

    return lambda count: count / seconds(lambda: generate_tokens(count))


def make_ctranslate2(folder: Path, threads: int, rows: int = 1) -> Speed:
    """CTranslate2 on the export that `folder` holds."""
    ctranslate2 = import_optional("ctranslate2", "this peer")
    from transformers import PreTrainedTokenizerFast

    model = ctranslate2.Generator(
        str(folder / "ct2"), device="cpu", intra_threads=threads, inter_threads=1
    )
    text = PreTrainedTokenizerFast(tokenizer_file=str(folder / "ct2" / "tokenizer.json"))
    _, tokenizer, _ = load_storyteller("bundled")
    pieces = [text.convert_ids_to_tokens(opening_of(tokenizer))] * rows

    def generate_tokens(count: int) -> None:
        options = {"max_length": count, "min_length": count, "sampling_topk": 1}
        found = model.generate_batch(pieces, include_prompt_in_result=False, **options)
        assert all(len(one.sequences_ids[0]) == count for one in found)

    return lambda count: rows * count / seconds(lambda: generate_tokens(count))


def make_llama(folder: Path, threads: int) -> Speed:
    """llama.cpp on the file in `folder`; loading it is not counted."""
    model, tokenizer, _ = load_storyteller("bundled")
    settings = {"threads": threads, "context": model.config["context_length"]}

    def speed(count: int) -> float:
        # A first short text, not counted, warms up the new process.
        timed = [{"prompt": opening_of(tokenizer), "tokens": n} for n in (8, count)]
        return ask_llama(folder / "model.gguf", timed=timed, **settings)["timed"][1]

    return speed


def export_for_peers(folder: Path) -> None:
    """Write the bundled model for those peers that are installed; name the others."""
    model, tokenizer, about = load_storyteller("bundled")
    wanted = [("hf", "hf", None), ("ct2", "ctranslate2", "int8")]
    if has_llama():
        wanted.append(("model.gguf", "gguf", "q8_0"))
    else:
        print("llama.cpp is not installed; it is left out (see GOLPO_NODE_MODULES)")
    for name, format, precision in wanted:
        try:
            export(model, tokenizer, str(folder / name), format, precision, about)
        except ImportError as error:
            print(f"{name} is left out: {error}")


def make_contenders(folder: Path, threads: int) -> dict[str, Speed]:
    """Name → the contender, for as many threads as PyTorch has now."""
    contenders = {
        FP32: make_ours(quantize=False),
        many(FP32): make_ours(quantize=False, rows=MANY),
        INT8: make_ours(quantize=True),
        many(INT8): make_ours(quantize=True, rows=MANY),
        HUGGING_FACE: make_hugging_face(folder),
    }
    if (folder / "ct2").exists():
        contenders[CTRANSLATE2] = make_ctranslate2(folder, threads)
        contenders[many(CTRANSLATE2)] = make_ctranslate2(folder, threads, MANY)
    if (folder / "model.gguf").exists():
        contenders[LLAMA] = make_llama(folder, threads)
    return contenders


def run_rounds(contenders: dict[str, Speed], options: Namespace) -> list[dict[str, float]]:
    """The tokens a second of each contender, in each round."""
    for speed in contenders.values():
        speed(4)  # warm up
    rounds = []
    for _ in range(options.rounds):
        speeds = {name: speed(options.tokens) for name, speed in contenders.items()}
        if options.long:
            speeds |= {long(name): contenders[name](options.long) for name in (FP32, INT8)}
        rounds.append(speeds)
    return rounds


def median_ratio(rounds: list[dict[str, float]], a: str, b: str) -> float:
    return round(statistics.median(one[a] / one[b] for one in rounds), 2)


def measure_bundled(options: Namespace) -> dict:
    """Let all contenders take turns at one and at two threads → "1 thread", "2 threads"."""
    found = {"tokens": options.tokens, "long": options.long, "rounds": options.rounds}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export_for_peers(folder)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            known = len(describe_products())
            rounds = run_rounds(make_contenders(folder, threads), options)
            rows = {
                name: {
                    "tokens_per_second": round(statistics.median(one[name] for one in rounds), 1),
                    "spread": [
                        round(min(one[name] for one in rounds), 1),
                        round(max(one[name] for one in rounds), 1),
                    ],
                }
                for name in rounds[0]
            }
            ratios = {
                f"{a} / {b}": median_ratio(rounds, a, b)
                for a, b in RATIOS
                if a in rounds[0] and b in rounds[0]
            }
            key = f"{threads} thread{'s' * (threads > 1)}"
            products = describe_products()[known:]
            found[key] = {"rows": rows, "ratios": ratios, "products": products}
            print_threads(key, found[key], options)
    return found


def print_threads(threads: str, result: dict, options: Namespace) -> None:
    """Print the table for one number of threads."""
    print(f"\n{threads}: {options.tokens} new tokens, {options.rounds} rounds")
    print(f"{'':32}{'tokens/s':>10}{'spread':>20}")
    for name, row in result["rows"].items():
        spread = "{:.1f} to {:.1f}".format(*row["spread"])
        print(f"{name:32}{row['tokens_per_second']:10.1f}{spread:>20}")
    for pair, ratio in result["ratios"].items():
        print(f"{pair}: {ratio:.2f}")
    print("matrix products that were the fastest:", *result["products"], sep="\n  ", flush=True)
