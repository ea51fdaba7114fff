"""The metrics file: one JSON record a line for each evaluation of a training."""

import json
import os
from pathlib import Path

from golpo.files import make_folder, replace_file

METRICS_FILE = "metrics.jsonl"
LONGEST_LINE = 2**16  # bytes; our records are shorter
SHOWN = (  # the fields that are plotted or printed
    "epoch",
    "tokens_seen",
    "train_loss",
    "val_loss",
    "val_perplexity",
    "learning_rate",
    "tokens_per_second",
    "seconds_left",
)


def append_record(path: Path, record: dict) -> None:
    """Append `record` as one whole line. Raises OSError if the disk refuses."""
    line = json.dumps(record) + "\n"
    with open(path, "ab+") as file:
        # A line that an interruption cut short must not be joined with this one.
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = "\n" + line
        file.write(line.encode())


def read_records(path: str | Path) -> list[dict]:
    """The records of the metrics file at `path`; whatever else is in it is skipped.

    Returns an empty list if there is no such file. Raises OSError if it cannot be read.
    """
    try:
        content = Path(path).read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        return []
    return [record for line in content.split(b"\n") for record in records_in(line)]


def records_in(line: bytes) -> list[dict]:
    """The records in one line: one, or none, or those that half a line was joined with."""
    if len(line) > LONGEST_LINE:
        return []
    text = line.decode("utf-8", "replace")
    decoder = json.JSONDecoder()
    records = []
    start = text.find("{")
    while start >= 0:
        try:
            found, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            end = start + 1
        else:
            if isinstance(found.get("step"), int):
                records.append(found)
        start = text.find("{", end)
    return records


def write_records(path: Path, records: list[dict]) -> None:
    """Replace the metrics file as a whole, so that an interruption loses nothing."""
    text = "".join(json.dumps(record) + "\n" for record in records)
    replace_file(Path(path), lambda file: file.write(text.encode()))


def trim_records(path: Path, last_step: int) -> None:
    """Drop the records after `last_step`, which a resumed training writes again.

    Raises OSError if the disk refuses; the file is then as it was.
    """
    path = Path(path)
    make_folder(path.parent)
    write_records(path, [record for record in read_records(path) if record["step"] <= last_step])


def merge_records(one: list[dict], other: list[dict]) -> list[dict]:
    """The records of two metrics files of one training, by step; those of `other` count more."""
    by_step = {record["step"]: record for record in [*one, *other]}
    return [by_step[step] for step in sorted(by_step)]


def is_complete(record: dict) -> bool:
    """Whether a record has every number that plots and `describe_record` need."""
    numbers = [record.get(name) for name in SHOWN]
    return all(isinstance(number, int | float) for number in numbers)


def describe_record(record: dict) -> str:
    """A complete record as one line."""
    perplexity = record["val_perplexity"]
    perplexity = f"{perplexity:,.1f}" if perplexity < 1e9 else f"{perplexity:.1e}"
    return (
        f"epoch {record['epoch']:.2f} · training loss {record['train_loss']:.3f} · validation loss "
        f"{record['val_loss']:.3f} (perplexity {perplexity}) · learning rate "
        f"{record['learning_rate']:.1e} · {record['tokens_per_second']:,.0f} tokens/s · "
        f"{record['seconds_left'] / 60:.1f} min left"
    )
