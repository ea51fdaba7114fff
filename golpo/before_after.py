"""What a finetuning has changed: the losses before and after, and one opening continued by both."""

from dataclasses import dataclass
from pathlib import Path

import tiktoken

from golpo.console import plain_text, print_safely
from golpo.evaluation import load_checkpoint_corpus, loss_figures
from golpo.finetuning import load_start_weights
from golpo.inference import load_storyteller, prepare_for_inference
from golpo.initialization import SkipInitialization
from golpo.lora import adapter_names, adapter_parameters, set_adapter_strength
from golpo.paths import DEFAULT_CHECKPOINT_DIR
from golpo.stories import remove_markers, wrap_text
from golpo_utils import GPTModel, stream_story


@dataclass
class Measured:
    """A model on the stories that a finetuning kept aside, and on one opening."""

    val_loss: float  # nats per token
    bits_per_byte: float
    story: str


@dataclass
class BeforeAfter:
    """The two models of a finetuning; as text, a report."""

    before: Measured
    after: Measured
    learned: int  # parameters that were trained
    parameters: int  # of the model without adapters

    def __str__(self) -> str:
        lines = [
            f"trained: {self.learned:,} of {self.parameters:,} parameters "
            f"({self.learned / self.parameters:.1%})",
            f"validation loss: {self.before.val_loss:.3f} before, {self.after.val_loss:.3f} after",
            f"bits per byte: {self.before.bits_per_byte:.3f} before, "
            f"{self.after.bits_per_byte:.3f} after",
        ]
        for name, measured in (("before", self.before), ("after", self.after)):
            lines += ["", f"---- {name} ----", measured.story]
        return "\n".join(lines)


def compare_finetuning(
    checkpoint_dir: str | Path = DEFAULT_CHECKPOINT_DIR,
    title: str | None = None,
    prompt: str = "",
    max_new_tokens: int = 200,
    seed: int = 1,
    staging: str | Path | None = None,
) -> BeforeAfter:
    """The best checkpoint of a finetuning beside the model that it started from, printed, too.

    Losses are over the validation stories of the finetuning. Both models continue the opening,
    title and prompt, with the same seed. staging: the local folder of a training on Drive. Raises
    ValueError for a training that started from no other model, FileNotFoundError without a
    checkpoint.
    """
    model, tokenizer, about = load_storyteller(checkpoint_dir, which="best", staging=staging)
    settings = about.get("settings") or {}
    if not settings.get("start_from"):
        raise ValueError(
            f"the training in {str(checkpoint_dir)!r} started from no other model (start_from), "
            f"so there is nothing to compare it with"
        )
    corpus = load_checkpoint_corpus(about, None, tokenizer)

    def measure(one: GPTModel) -> Measured:
        figures = loss_figures(one, corpus, tokenizer)
        options = {"title": title, "max_new_tokens": max_new_tokens, "seed": seed, "min_p": 0.1}
        pieces = stream_story(one, tokenizer, prompt, **options)
        opening = f"{title}\n\n{prompt}" if title else prompt
        story = wrap_text(plain_text(remove_markers(opening + "".join(pieces))).strip())
        return Measured(figures["val_loss"], figures["bits_per_byte"], story)

    after = measure(model)
    names = adapter_names(model)
    learned = sum(one.numel() for name in names for one in adapter_parameters(model, name))
    parameters = model.parameter_count() - learned
    for name in names:
        set_adapter_strength(model, 0, name)
    start = model if names else load_start(settings["start_from"], about["config"], tokenizer)
    result = BeforeAfter(measure(start), after, learned or parameters, parameters)
    print_safely(str(result))
    return result


def load_start(source: str, config: dict, tokenizer: tiktoken.Encoding) -> GPTModel:
    """The model that a training with this config started from."""
    with SkipInitialization():
        model = GPTModel(config)
    load_start_weights(model, source, tokenizer)
    model.usable_ids = min(tokenizer.n_vocab, config["vocab_size"])
    return prepare_for_inference(model)


@dataclass
class Compare:
    """Show what a finetuning has changed: its losses and a story, before and after."""

    # The folder of the finetuning's checkpoints.
    checkpoint: str = str(DEFAULT_CHECKPOINT_DIR)
    # The title of the story.
    title: str | None = None
    # Opening words of the story.
    prompt: str = ""
    # The most tokens to generate.
    max_new_tokens: int = 200
    # The seed of both stories.
    seed: int = 1

    def run(self) -> None:
        compare_finetuning(self.checkpoint, self.title, self.prompt, self.max_new_tokens, self.seed)
