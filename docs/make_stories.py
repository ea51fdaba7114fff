"""Write stories.md: the first three stories of each model, with seeds 1, 2 and 3, none left out.

    python docs/make_stories.py [CHECKPOINT_FOLDER]

The models are the bundled one and that of the folder (gpt_checkpoints, as notebooks/run_all.py
leaves it). The sampling settings are the defaults.
"""

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from golpo.inference import load_storyteller  # noqa: E402
from golpo.stories import DEFAULT_SAMPLING, split_story  # noqa: E402
from golpo_utils import stream_story  # noqa: E402

SEEDS = (1, 2, 3)
HEAD = """# Three stories of each model

`python docs/make_stories.py` writes this page: seeds 1, 2 and 3, none left out, none shortened. The
sampling settings are the defaults: {settings}. On another processor, the same seed may give another
story.
"""


def as_markdown(story: str, seed: int) -> str:
    """A story as a block quote under a heading with its title."""
    title, prose = split_story(story)
    lines = [f"> {line}".rstrip() for line in prose.split("\n")]
    return "\n".join([f"### {title or 'Without a title'} (seed {seed})", "", *lines])


def section(name: str, checkpoint: str | Path) -> str:
    """The heading of a model and its stories."""
    model, tokenizer, _ = load_storyteller(checkpoint)
    parts = [f"## {name}: {model.parameter_count() / 1e6:.1f} M parameters"]
    for seed in SEEDS:
        pieces = stream_story(model, tokenizer, seed=seed, **DEFAULT_SAMPLING)
        parts.append(as_markdown("".join(pieces), seed))
    return "\n\n".join(parts)


def main(checkpoints: str | Path = DOCS.parent / "gpt_checkpoints") -> None:
    settings = ", ".join(f"{key} {value}" for key, value in DEFAULT_SAMPLING.items())
    parts = [
        HEAD.format(settings=settings.replace("_", " ")),
        section("The bundled model", "bundled"),
        "",
        section("The model that the README's first command trains", checkpoints),
        "",
    ]
    (DOCS / "stories.md").write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
