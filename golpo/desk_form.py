"""The writer's desk: the settings of its sliders, its note, its requests, and presets by name."""

import itertools
import json

from golpo.desk_sentences import Refusal, Term
from golpo.files import as_path, make_folder, replace_file
from golpo.requests import CHOICES, Request
from golpo.stories import DEFAULT_SAMPLING
from golpo_utils import Sampling, check_kind

# What a slider shows: label, lowest, highest, step, help. The names are those of `stream_story`.
SLIDERS = {
    "temperature": (
        "temperature",
        0.0,
        2.0,
        0.05,
        "0 takes the most likely token; 1 samples with the model's own probabilities",
    ),
    "top_k": ("top-k", 0, 200, 1, "sample among so many most likely tokens; 0: among all"),
    "max_new_tokens": (
        "max tokens",
        10,
        2000,
        10,
        "the longest passage; a token is about ¾ of a word",
    ),
    "top_p": ("top-p", 0.05, 1.0, 0.05, "sample among the fewest tokens of this probability"),
    "min_p": ("min-p", 0.0, 0.5, 0.01, "drop tokens below this share of the highest probability"),
    "repetition_penalty": (
        "repetition penalty",
        1.0,
        2.0,
        0.05,
        "above 1, tokens that stood before become less likely",
    ),
    "seed": ("seed", 0, 9999, 1, "the same seed and settings give the same words again"),
}
IN_VIEW = ("temperature", "top_k", "max_new_tokens")
IN_PRESETS = ("temperature", "top_k", "min_p", "repetition_penalty")
PRESETS = {
    "careful": {"temperature": 0.6, "top_k": 40, "min_p": 0.15, "repetition_penalty": 1.0},
    "balanced": {name: DEFAULT_SAMPLING[name] for name in IN_PRESETS},
    "wild": {"temperature": 1.3, "top_k": 0, "min_p": 0.02, "repetition_penalty": 1.1},
    "exact": {"temperature": 0.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0},
}
BEAMS = (1, 2, 4, 8)  # at temperature 0: how many continuations to follow at once
PRESETS_FILE = "presets.json"
TEXTS = ("note", "hero", "words", "length")


class DeskForm:
    """What the controls are set to. values: a number a slider, and a text a field."""

    def __init__(self, desk, output_dir):
        self.desk = desk
        self.path = as_path("output_dir", output_dir) / PRESETS_FILE
        self.values = {**DEFAULT_SAMPLING, "seed": 1, "num_beams": 1, **dict.fromkeys(TEXTS, "")}
        self.unsaid: list[str] = []  # about presets, for the page that opens
        self.own = self.first_presets()
        self.actions = {
            "form": self.take,
            "save_preset": self.save_preset,
            "delete_preset": self.delete_preset,
        }

    def event(self) -> dict:
        """What a page needs to build its controls."""
        self.say_unsaid()
        return {
            "sliders": [[name, *spec, name in IN_VIEW] for name, spec in SLIDERS.items()],
            "values": self.values,
            "presets": PRESETS | self.own,
            "own": list(self.own),
            "lengths": list(CHOICES["length"]),
            "beams": list(BEAMS),
        }

    def take(self, values: dict, source: str = "") -> None:
        """A person moved a slider or filled a field."""
        self.set(values, source)
        if "note" in values:
            self.desk.shelf.keep()

    def set(self, values: dict, source: str = "") -> None:
        """Set controls, on all pages but `source`. Raises ValueError for a bad value."""
        for name, value in values.items():
            if name in SLIDERS or name == "num_beams":
                self.values[name] = checked(name, value)
            elif name in TEXTS:
                check_kind(f"the field {name}", value, str, "text")
                self.values[name] = value.encode("utf-8", "replace").decode()
            else:
                raise Refusal("the page sets {name!r}, which the desk does not have", name=name)
        self.desk.send({"ev": "form", "source": source, "values": values})

    def next_seed(self, used: int = 1) -> None:
        """Take the seed after `used` ones, so that the same settings give other words."""
        seed = (self.values["seed"] + used) % (SLIDERS["seed"][2] + 1)
        self.set({"seed": seed})

    def settings(self) -> dict:
        """The keywords of `stream_story`."""
        return {name: self.values[name] for name in SLIDERS}

    def sampling(self) -> Sampling:
        """How a token is sampled."""
        rest = ("seed", "max_new_tokens")
        return Sampling(**{n: v for n, v in self.settings().items() if n not in rest})

    def request(self) -> Request:
        """What the story shall have; nothing, by default."""
        values = self.values
        return Request(
            hero=values["hero"].strip() or None,
            words=(values["words"],),
            length=values["length"] or None,
        )

    def options(self) -> dict:
        """The keywords of `stream_passage`. Raises ValueError for what cannot be asked for."""
        self.sampling()
        options = {"note": self.values["note"], "request": self.request(), **self.settings()}
        if self.values["temperature"] == 0 and self.values["num_beams"] > 1:
            options["num_beams"] = self.values["num_beams"]
        return options

    def first_presets(self) -> dict:
        """The writer's own presets; a sentence for the page about those that cannot be used."""
        try:
            own, faults = usable_presets(self.read_presets())
        except OSError as error:
            self.unsaid.append(
                self.desk.sentence("Your presets cannot be read: {error}", error=error)
            )
            return {}
        if faults:
            self.unsaid.append(
                self.desk.sentence(
                    "Not used of {file}: {faults}.", file=PRESETS_FILE, faults="; ".join(faults)
                )
            )
        return own

    def read_presets(self) -> dict:
        """What the file of presets holds; a damaged one is moved aside. Raises OSError."""
        try:
            found = json.loads(self.path.read_bytes())
            check_kind("the content", found, dict, "an object")
            return found
        except FileNotFoundError:
            return {}
        except (ValueError, RecursionError):
            names = (self.path.with_suffix(f".damaged{n}.json") for n in itertools.count(1))
            free = next(name for name in names if not name.exists())
            self.path.rename(free)
            self.unsaid.append(
                self.desk.sentence(
                    "{file} is damaged; it is now {free}.", file=PRESETS_FILE, free=free.name
                )
            )
            return {}

    def save_preset(self, name: str) -> None:
        """Keep the sliders, without the seed, as a preset of the writer's own."""
        check_kind("the preset's name", name, str, "text")
        name = " ".join(name.split())[:40]
        if not name or name in PRESETS:
            raise Refusal(
                "a preset of your own cannot be called {name!r}; give another name", name=name
            )
        values = {key: self.values[key] for key in (*SLIDERS, "num_beams") if key != "seed"}
        # Another studio may have written the file since.
        self.write_presets(self.read_presets() | {name: values})

    def delete_preset(self, name: str) -> None:
        """Forget a preset of the writer's own."""
        found = self.read_presets()
        if found.pop(name, None) is not None:
            self.write_presets(found)

    def write_presets(self, presets: dict) -> None:
        """Replace the file of presets, and show them."""
        content = json.dumps(presets, ensure_ascii=False, indent=1).encode("utf-8", "replace")
        make_folder(self.path.parent)
        replace_file(self.path, lambda file: file.write(content))
        self.own, _ = usable_presets(presets)
        self.desk.send({"ev": "presets", "presets": PRESETS | self.own, "own": list(self.own)})
        self.say_unsaid()

    def say_unsaid(self) -> None:
        """Show what could not be said before there was a page."""
        if self.unsaid:
            self.desk.send({"ev": "message", "text": " ".join(self.unsaid)})
            self.unsaid = []


def usable_presets(found: dict) -> tuple[dict, list[str]]:
    """The presets that the sliders can take, and what is wrong with each of the others."""
    own = {}
    faults = []
    for name in [name for name in found if name not in PRESETS]:
        try:
            check_kind("it", found[name], dict, "an object with a number for each slider")
            own[name] = {key: checked(key, value) for key, value in found[name].items()}
        except ValueError as error:
            faults.append(f"{name!r}: {error}")
    return own, faults


def checked(name: str, value) -> int | float:
    """A control's value as the number that it must be. Raises ValueError for any other."""
    if name == "num_beams":
        if type(value) is not int or value not in BEAMS:
            raise Refusal(
                "the number of beams is {value!r}; it must be one of {beams}",
                value=value,
                beams=BEAMS,
            )
        return value
    if name not in SLIDERS:
        raise Refusal("there is no slider {name!r}", name=name)
    label, low, high, step, _ = SLIDERS[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise Refusal(
            "{label} is {value!r}; it must be a number from {low} to {high}",
            label=Term(label),
            value=value,
            low=low,
            high=high,
        )
    return int(value) if isinstance(step, int) else float(value)
