"""The commands train, generate, evaluate and export: their flags, and what they run.

The comment above a field is the help of its flag.
"""

import inspect
import re
import signal
import sys
import time
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, Literal, TypedDict, get_type_hints

import tyro

from golpo.beam_search import BeamSettings
from golpo.beam_stories import stream_beams
from golpo.console import plain_text, print_safely
from golpo.devices import pick_device
from golpo.paths import DEFAULT_CHECKPOINT_DIR
from golpo.requests import Request, request_opening
from golpo.settings import (
    CHOICES,
    PRESETS,
    Settings,
    default_preset,
    find_preset,
    make_settings,
)
from golpo.signals import noted
from golpo.stories import DEFAULT_SAMPLING, genre_prompt, remove_markers
from golpo_utils import GPT_CONFIG_124M, encode, stream_story

Switch = tyro.conf.FlagCreatePairsOff[bool]  # --fresh, without a --no-fresh


class ModelFlags(TypedDict, total=False):
    """The model. What is not given is the preset's, or the checkpoint's."""

    # Number of token ids.
    vocab_size: int
    # The most tokens that the model sees at once.
    context_length: int
    # Size of a token's vector.
    emb_dim: int
    # Attention heads in a block.
    n_heads: int
    # Blocks.
    n_layers: int
    # Share of activations dropped during training.
    drop_rate: float
    # Whether the query, key and value projections have a bias.
    qkv_bias: bool
    # Size of queries and keys, all heads together.
    key_dim: int
    # Size of values, all heads together.
    val_dim: int
    # Whether the output head shares the token embedding's weights.
    tie_embeddings: bool
    # Standard deviation of the initial weights; None: PyTorch's own initialization.
    init_std: float | None


def comments_of(cls: type) -> dict[str, str]:
    """The comment above each field of a class, read from its source."""
    found = re.findall(r"^((?: +#.*\n)+) +(\w+):", inspect.getsource(cls), re.MULTILINE)
    return {
        name: " ".join(line.strip().removeprefix("#").strip() for line in comment.splitlines())
        for comment, name in found
    }


def make_setting_flags() -> Any:
    """A type with a flag for each field of `Settings`; it holds those that are given."""
    preset = default_preset()
    defaults = asdict(make_settings({}))
    comments = comments_of(Settings)
    types = get_type_hints(Settings)
    flags = {"config": ModelFlags}
    for name in (one.name for one in fields(Settings) if one.name != "config"):
        kind = Literal[CHOICES[name]] if name in CHOICES else types[name]
        source = f", from the preset {preset}" if name in PRESETS[preset] else ""
        hint = f"(default: {defaults[name]}{source})"
        flags[name] = Annotated[kind, tyro.conf.arg(help=comments[name], help_behavior_hint=hint)]
    return TypedDict("SettingFlags", flags, total=False)


def make_train_command() -> type:
    """The command `train`, with a flag for each setting."""
    flags = Annotated[make_setting_flags(), tyro.conf.arg(name="")]
    preset_names = Literal[("auto", *PRESETS)]

    @dataclass
    class Train:
        """Resume from the newest checkpoint, or start a training if there is none.

        A resumed training keeps the settings of its checkpoint; flags replace single ones.
        """

        # A model with its settings; "auto" is the one for this machine, or the checkpoint's.
        preset: preset_names = "auto"
        # Start a new training even if there is a checkpoint; earlier ones are moved aside.
        fresh: Switch = False
        settings: flags = field(default_factory=dict)

        def run(self) -> None:
            train(self.preset, self.fresh, self.settings)

    return Train


def train(preset: str, fresh: bool, settings: dict) -> None:
    """Train with the settings that were given, over those of the preset or the checkpoint."""
    from golpo.runs import train_or_resume

    given = dict(settings)
    if config := given.pop("config", {}):
        given["config"] = complete_config(config, find_base_config(preset, fresh, given))
    train_or_resume(fresh, preset, **given)
    if signal.SIGINT in noted:
        raise KeyboardInterrupt  # the training has saved; shells expect the exit code of Ctrl-C


def find_base_config(preset: str, fresh: bool, settings: dict) -> dict:
    """The model config that flags replace parts of: the checkpoint's, or the preset's."""
    from golpo.checkpoint import newest_checkpoint, read_checkpoint

    if preset == "auto" and not fresh:
        folder = settings.get("checkpoint_dir", DEFAULT_CHECKPOINT_DIR)
        found = newest_checkpoint(folder, staging=settings.get("staging_dir"))
        if found is not None:
            return read_checkpoint(found[0]).get("config") or GPT_CONFIG_124M
    return find_preset(preset, settings.get("tokenizer"))["config"]


def complete_config(config: dict, base: dict) -> dict:
    """`config` over `base`; a key or value width that equals emb_dim in `base` follows it."""
    full = {**base, **config}
    for key in ("key_dim", "val_dim"):
        if key not in config and base.get(key) == base["emb_dim"]:
            full[key] = full["emb_dim"]
    return full


@dataclass
class SamplingFlags:
    """How tokens are sampled."""

    # 0 always takes the most likely token; higher values are more random.
    temperature: float = DEFAULT_SAMPLING["temperature"]
    # Sample among the most likely tokens only, this many; None: among all.
    top_k: int | None = DEFAULT_SAMPLING["top_k"]
    # Sample among the fewest tokens that have this probability together; None: among all.
    top_p: float | None = DEFAULT_SAMPLING["top_p"]
    # Leave out tokens less likely than this share of the likeliest; None: none.
    min_p: float | None = DEFAULT_SAMPLING["min_p"]
    # Above 1, tokens that have occurred become less likely.
    repetition_penalty: float = DEFAULT_SAMPLING["repetition_penalty"]


@dataclass
class Generate:
    """Generate a story and print it."""

    # A checkpoint, a folder of checkpoints (the newest is taken), a model exported with
    # `golpo export`, or "bundled", the bundled model.
    checkpoint: str = str(DEFAULT_CHECKPOINT_DIR)
    # Opening words of the story.
    prompt: str = ""
    # The story's title.
    title: str | None = None
    # The most tokens to generate.
    max_new_tokens: int = DEFAULT_SAMPLING["max_new_tokens"]
    # The same seed gives the same story; None: another story each time.
    seed: int | None = None
    sampling: Annotated[SamplingFlags, tyro.conf.arg(name="")] = field(
        default_factory=SamplingFlags
    )
    beams: Annotated[BeamSettings, tyro.conf.arg(name="")] = field(default_factory=BeamSettings)
    request: Annotated[Request, tyro.conf.arg(name="")] = field(default_factory=Request)
    # 8-bit weights: faster on a CPU.
    quantize: Switch = False
    # The folder of an adapter, as a training with --adapter-rank leaves it, or peft.
    adapter: str | None = None
    # How much adapters count: 0 not at all, 1 as they were trained, at most 1.5.
    adapter_strength: float = 1.0
    # Print the checkpoint, the settings, the device and the speed on stderr.
    verbose: Switch = False

    def run(self) -> None:
        from golpo.fast_linear import describe_products
        from golpo.inference import describe_checkpoint, load_storyteller

        opening = self.opening()
        self.beams.check_use()
        device = pick_device("cpu" if self.quantize else "auto")
        model, tokenizer, about = load_storyteller(
            self.checkpoint,
            device,
            quantize=self.quantize,
            adapter=self.adapter,
            adapter_strength=self.adapter_strength,
        )
        settings = self.settings()
        if self.request.is_used() and not (about.get("settings") or {}).get("requests"):
            print_error("Note: this model was not trained with requests, so it may ignore them.")
        if self.verbose:
            print_error(describe_checkpoint(about))
            print_error(f"{model.parameter_count():,} parameters on {device}")
            other = "8-bit weights" if self.quantize else "PyTorch's own"
            print_error("matrix products: " + ("; ".join(describe_products()) or other))
            print_error(", ".join(f"{name} {value}" for name, value in settings.items()))
        started = time.perf_counter()
        tokens = 0
        shown = show_opening(opening)
        print(shown, end="")
        opening = request_opening(self.request, **opening) if self.request.is_used() else opening
        write = stream_story if self.beams.num_beams == 1 else stream_beams
        for piece in write(model, tokenizer, **opening, **settings):
            text = plain_text(remove_markers(piece))
            # A story without an opening begins with the line break after its start marker.
            text = text if shown else text.lstrip("\n")
            shown = shown or text
            print(text, end="", flush=True)
            tokens += len(encode(piece, tokenizer))
        print()
        if self.verbose:
            seconds = time.perf_counter() - started
            print_error(f"{tokens} tokens in {seconds:.1f} s, {tokens / seconds:.1f} tokens/s")

    def settings(self) -> dict:
        """The keywords of `stream_story`, or with beams those of `beam_story`."""
        length = {"max_new_tokens": self.max_new_tokens}
        if self.beams.num_beams != 1:
            return length | asdict(self.beams)
        return length | {"seed": self.seed} | asdict(self.sampling)

    def opening(self) -> dict:
        """The keywords of `stream_story` for title, prompt and genre."""
        genre = self.request.genre
        if genre and self.prompt and not self.title:
            raise ValueError(
                f"--genre {genre!r} is part of the title, so --prompt {self.prompt!r} needs "
                f"a --title too"
            )
        opening = {"title": self.title, "prompt": self.prompt}
        return opening | (genre_prompt(genre, self.title) if genre else {})


def show_opening(opening: dict) -> str:
    """The words that a story is to begin with, as the reader sees them."""
    title = f"{opening['title'].strip()}\n\n" if opening["title"] else ""
    return title + remove_markers(opening["prompt"]).lstrip("\n")


def print_error(text: str) -> None:
    """Print a line on stderr."""
    print(text, file=sys.stderr, flush=True)


@dataclass
class Evaluate:
    """Measure a checkpoint: its loss, and figures of stories that it generates."""

    # As for `golpo generate`.
    checkpoint: str = str(DEFAULT_CHECKPOINT_DIR)
    # "best", the checkpoint with the lowest validation loss, or "newest".
    which: Literal["best", "newest"] = "best"
    # The corpus to measure on; None: the one that the checkpoint was trained on.
    data_path: str | None = None
    # How many stories to generate.
    stories: int = 20
    # The most tokens of a story.
    max_new_tokens: int = 400
    # 0 always takes the most likely token; higher values are more random.
    temperature: float = DEFAULT_SAMPLING["temperature"]
    # Sample among the most likely tokens only, this many; None: among all.
    top_k: int | None = DEFAULT_SAMPLING["top_k"]
    # Leave out tokens less likely than this share of the likeliest; None: none.
    min_p: float | None = DEFAULT_SAMPLING["min_p"]
    # The seed of the generated stories.
    seed: int = 0
    # A JSON file for the figures and the stories; a picture is written beside it.
    output: str | None = None
    # JSON files of other evaluations, for columns of their own in the table.
    compare_with: tuple[str, ...] = ()
    # Also measure how well stories follow requests, as in docs/requests.md.
    requests: Switch = False

    def run(self) -> None:
        from golpo.evaluation import evaluate

        evaluate(**asdict(self))


@dataclass
class Export:
    """Write a checkpoint in a format that other programs read."""

    # The folder to write; with the format gguf, the file.
    output: str
    # "hf": a folder for transformers, vLLM and the Hugging Face Hub. "gguf": a file for llama.cpp.
    # "ctranslate2": a folder for CTranslate2. "onnx": one for ONNX Runtime and transformers.js.
    format: Literal["hf", "gguf", "ctranslate2", "onnx"] = "hf"
    # gguf: "f32", "f16" or "q8_0". ctranslate2 and onnx: "int8" or "float32". hf: "float32" or
    # "float16". None: f16; int8; float32; float32.
    precision: str | None = None
    # As for `golpo generate`.
    checkpoint: str = str(DEFAULT_CHECKPOINT_DIR)
    # "newest", or "best", the checkpoint with the lowest validation loss.
    which: Literal["newest", "best"] = "newest"
    # As for `golpo generate`; it is merged into the weights.
    adapter: str | None = None
    # As for `golpo generate`.
    adapter_strength: float = 1.0

    def run(self) -> None:
        from golpo.exports import export
        from golpo.inference import load_storyteller
        from golpo.lora import merge_adapters

        with_adapter = {"adapter": self.adapter, "adapter_strength": self.adapter_strength}
        model, tokenizer, about = load_storyteller(
            self.checkpoint, "cpu", self.which, **with_adapter
        )
        merge_adapters(model)
        export(model, tokenizer, self.output, self.format, self.precision, about)
        print_safely(f"{about['path'].name} was written to {self.output!r}.")


def make_command_type() -> Any:
    """The type that tyro reads the command line with: one of the commands."""
    from golpo.before_after import Compare
    from golpo.learn_command import Learn

    name = tyro.conf.subcommand
    return (
        Annotated[make_train_command(), name("train")]
        | Annotated[Generate, name("generate")]
        | Annotated[Evaluate, name("evaluate")]
        | Annotated[Export, name("export")]
        | Annotated[Compare, name("compare")]
        | Annotated[Learn, name("learn")]
    )
