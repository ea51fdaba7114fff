"""The model card of an export: what the model is, how it was trained, how to ask it for stories."""

import shutil
from pathlib import Path

from golpo.paths import BUNDLED_MODEL, DEFAULT_CORPUS, LICENSE
from golpo.stories import DEFAULT_SAMPLING
from golpo_utils import START, TITLE, TITLE_END, GPTModel

GENERATED = "<!-- Written by golpo export; a card without this line is never overwritten. -->"
# The settings that a card names; none holds a path.
TRAINING_SETTINGS = (
    "num_epochs",
    "batch_size",
    "learning_rate",
    "optimizer",
    "weight_decay",
    "precision",
    "seed",
    "validation_fraction",
)
CARD = """---
license: {license}
{language}library_name: transformers
pipeline_tag: text-generation
tags:
- gpt2
- text-generation
- story-generation
- golpo-kothok-gpt
---

{generated}

# {name}

A GPT that writes short stories, trained from scratch with Golpo-Kothok-GPT. It has {parameters}
parameters ({n_layers} layers, {n_heads} heads, width {emb_dim}), {vocab_size} token ids and a
context of {context_length} tokens.

## Training

| | |
| --- | --- |
{facts}

It has learned from this text alone. It knows no facts, follows no instructions, and repeats what is
in its corpus, good or bad.

## Use

{prompt}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForCausalLM.from_pretrained("FOLDER")
inputs = tokenizer({example!r}, return_tensors="pt")
story = model.generate(**inputs, do_sample=True, temperature={temperature}, min_p={min_p})
print(tokenizer.decode(story[0]))
```

In Golpo-Kothok-GPT: `python -m golpo generate --checkpoint FOLDER --title "The Lost Key"`. To share
it: `hf upload NAME FOLDER`.
"""
MARKED_PROMPT = """A story begins with `<|start|>` and a line break. Then come its title between
`<|title|>` and `</|title|>`, two line breaks, and the text; it ends with `<|end|>`. Give as much of
it as you like."""
PLAIN_PROMPT = "Give the opening words of a story."


def public_facts(about: dict) -> dict:
    """What an export notes of a checkpoint's facts: nothing that names this machine's folders."""
    names = ("global_step", "tokens_seen", "best_val_loss")
    facts = {name: about[name] for name in names if name in about}
    facts["val_losses"] = list(about.get("val_losses") or [])[-1:]
    saved = about.get("settings") or {}
    facts["settings"] = {name: saved[name] for name in TRAINING_SETTINGS if name in saved}
    path = Path(saved.get("data_path", ""))
    corpus = about.get("corpus_name") or path.name
    # Other corpora may be in any language.
    is_bundled = path == DEFAULT_CORPUS or about.get("path") == BUNDLED_MODEL
    language = "en" if is_bundled else about.get("language")
    more = {"corpus_name": corpus, "language": language}
    return facts | {name: value for name, value in more.items() if value}


def write_model_card(
    folder: Path,
    model: GPTModel,
    specials: dict[str, int],
    about: dict,
    *,
    language: str | None,
    license: str,
) -> None:
    """Write README.md and LICENSE into `folder`; a card that somebody has written stays.

    language: None if it is not known, unless the facts `about` the model name it.
    """
    card = folder / "README.md"
    if not card.exists() or GENERATED in card.read_text(encoding="utf-8", errors="replace"):
        language = language or about.get("language")
        text = describe_model(folder.name, model, specials, about, language, license)
        card.write_text(text, encoding="utf-8")
    if license == "mit" and not (folder / "LICENSE").exists():
        shutil.copyfile(LICENSE, folder / "LICENSE")


def describe_model(
    name: str,
    model: GPTModel,
    specials: dict[str, int],
    about: dict,
    language: str | None,
    license: str,
) -> str:
    """The text of a model card."""
    has_markers = START in specials
    opening = f"{START}\n{TITLE}The Lost Key{TITLE_END}\n\n"
    facts = training_facts(about) or {"corpus": "not noted"}
    return CARD.format(
        **{key: f"{value:,}" for key, value in model.config.items() if type(value) is int},
        license=license,
        language=f"language: {language}\n" if language else "",
        generated=GENERATED,
        name=name,
        parameters=f"{model.parameter_count() / 1e6:.1f} M",
        facts="\n".join(f"| {key} | {value} |" for key, value in facts.items()),
        prompt=MARKED_PROMPT if has_markers else PLAIN_PROMPT,
        example=opening if has_markers else "Once upon a time",
        temperature=DEFAULT_SAMPLING["temperature"],
        min_p=DEFAULT_SAMPLING["min_p"],
    )


def training_facts(about: dict) -> dict[str, str]:
    """The rows of the card's table about the training."""
    facts = {}
    if about.get("corpus_name"):
        facts["corpus"] = about["corpus_name"]
    if about.get("global_step"):
        facts["steps"] = f"{about['global_step']:,}"
        facts["tokens seen"] = f"{about.get('tokens_seen', 0):,}"
    if about.get("val_losses"):
        facts["validation loss"] = f"{about['val_losses'][-1]:.3f} nats per token"
    for name, value in (about.get("settings") or {}).items():
        facts[name.replace("_", " ")] = str(value)
    return facts
