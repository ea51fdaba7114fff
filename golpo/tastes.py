"""Adapters that were learned from choices: their figures, and the folders that they are kept in.

Every adapter gets a folder of its own, taste-1, taste-2, …, which appears whole; earlier ones stay.
"""

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from golpo.choices import count, sync_folder
from golpo.files import list_folder, make_folder, write_to_disk
from golpo.lora import save_adapter
from golpo_utils import GPTModel

TASTE = "taste"  # the adapter's name
LEARNED_FILE = "learned.json"  # beside the adapter: what was learned


@dataclass(frozen=True)
class Learned:
    """What was learned, in figures."""

    choices: int  # that were learned from
    kept_aside: int
    left_out: int  # choices whose stories do not fit the model
    agreement_before: int  # of those kept aside: the plain model finds the liked story likeliest
    agreement_after: int  # what was learned raises the liked story most
    val_loss_before: float | None  # nats per token; None without validation stories
    val_loss_after: float | None
    divergence: float  # from the plain model, nats per token
    reached_bound: bool  # whether learning ended early, at `max_divergence`
    seconds: float
    folder: str = ""  # the adapter's

    def describe(self) -> str:
        """The figures in plain sentences."""
        return "\n".join(sentence.format(**values) for sentence, values in self.sentences())

    def sentences(self) -> list[tuple[str, dict]]:
        """The figures in plain sentences, as pairs (sentence, values for its braces)."""
        sentences = [
            (
                "Learned from {choices} in {seconds} s.",
                {**counted(self.choices), "seconds": f"{self.seconds:.0f}"},
            ),
            (
                "Of {choices} kept aside, the plain model finds the liked story the likeliest in "
                "{before}; what was learned points to it in {after}.",
                {
                    **counted(self.kept_aside),
                    "before": self.agreement_before,
                    "after": self.agreement_after,
                },
            ),
        ]
        if self.left_out:
            text = "Left out: {choices} that did not fit the model."
            sentences.append((text, counted(self.left_out)))
        if self.val_loss_before is not None:
            text = (
                "Loss on stories of the corpus: {before} before, {after} after (nats per token; "
                "lower is better)."
            )
            losses = (f"{loss:.3f}" for loss in (self.val_loss_before, self.val_loss_after))
            sentences.append((text, dict(zip(("before", "after"), losses, strict=True))))
        if self.reached_bound:
            text = "Learning ended early, so that the model stays close to the plain one."
            sentences.append((text, {}))
        return sentences


def counted(number: int) -> dict:
    """A number of choices in words and as it is."""
    return {"choices": count(number, "choice"), "number": number}


def taste_folders(folder: str | Path) -> list[Path]:
    """The folders of adapters that were learned from choices, the newest last."""
    found = [path for path in list_folder(folder) if re.fullmatch(rf"{TASTE}-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def newest_taste(folder: str | Path) -> Path | None:
    """The folder of the adapter learned last, for `load_adapter`; None if there is none."""
    return next(reversed(taste_folders(folder)), None)


def save_taste(model: GPTModel, folder: Path, learned: Learned) -> Learned:
    """Write the adapter and the figures to a new folder, which appears whole; name it in them."""
    make_folder(folder)
    part = folder / f"{TASTE}.part"
    shutil.rmtree(part, ignore_errors=True)
    newest = newest_taste(folder)
    number = 1 + (0 if newest is None else int(newest.name.rpartition("-")[2]))
    target = folder / f"{TASTE}-{number}"
    learned = replace(learned, folder=str(target))
    save_adapter(model, part, TASTE)
    content = json.dumps(asdict(learned), indent=1).encode()
    write_to_disk(part / LEARNED_FILE, lambda file: file.write(content))
    os.rename(part, target)
    sync_folder(folder)
    return learned
