"""Learning from choices: an adapter (golpo/lora.py) that makes the liked stories more probable.

Some choices are kept aside, to measure whether what was learned holds for them. The weights of the
model stay as they are. Where adapters are kept: golpo/tastes.py; the loss: golpo/dpo.py.
"""

import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import tiktoken
import torch

from golpo.choices import Choice, count
from golpo.console import print_safely
from golpo.dpo import Example, divergence, dpo_loss, log_probability, make_example, trainable_copy
from golpo.lora import adapter_parameters, add_adapter
from golpo.tastes import TASTE, Learned, save_taste
from golpo_utils import GPTModel, check_number, encode

LEAST_CHOICES = 10
CHECKS = 4  # of the divergence
CHECKED_STORIES = 6  # of those kept aside
TRAINING_COST = 2.5  # of a forward and a backward pass, in forward passes


@dataclass(frozen=True)
class PreferenceSettings:
    """How an adapter learns from choices. Raises ValueError for an invalid value."""

    beta: float = 0.04  # how strongly a difference in log-probability counts: see golpo/dpo.py
    by_length: bool = False  # log-probabilities per token, instead of a story's sum
    anchor: float = 1.0  # weight of the stories' own loss, which keeps the model close
    learning_rate: float = 3e-3
    trained: int = 160  # choices to train on, at least; fewer are gone through several times
    batch_size: int = 2  # choices in a step
    rank: int = 8
    kept_aside: float = 0.2  # share of the choices
    max_divergence: float = 0.1  # from the plain model, in nats per token; learning ends there
    seed: int = 0

    def __post_init__(self):
        for name in ("beta", "learning_rate", "max_divergence"):
            check_number(name, getattr(self, name), 1e-9)
        check_number("anchor", self.anchor, 0)
        for name in ("trained", "batch_size"):
            check_number(name, getattr(self, name), 1, whole=True)
        check_number("kept_aside", self.kept_aside, 0.05, 0.5)


class LearningProgress(NamedTuple):
    """How far the learning is."""

    done: float  # share, 0..1
    seconds_left: float

    def __str__(self) -> str:
        return f"learning: {self.done:.0%}, {self.seconds_left:.0f} s left"


class Learner:
    """Trains an adapter on choices, a little at each `next` of `run`, so that a page can answer."""

    def __init__(
        self,
        model: GPTModel,
        tokenizer: tiktoken.Encoding,
        choices: list[Choice],
        settings: PreferenceSettings,
        val_stories: list[str],
    ):
        self.settings = settings
        context = model.config["context_length"]
        self.examples, self.left_out = make_examples(choices, tokenizer, context)
        if len(self.examples) < LEAST_CHOICES:
            raise too_few(len(self.examples), self.left_out)
        self.val_rows = [encode(story, tokenizer)[: context + 1] for story in val_stories]
        self.val_rows = [row for row in self.val_rows if len(row) > 1]
        random.Random(settings.seed).shuffle(self.examples)
        kept = max(1, round(settings.kept_aside * len(self.examples)))
        self.kept = self.examples[:kept]
        self.used = self.examples[kept:]
        self.passes = math.ceil(settings.trained / len(self.used))
        self.model = trainable_copy(model, without=TASTE)
        add_adapter(self.model, TASTE, settings.rank, 2 * settings.rank, seed=settings.seed)
        self.parameters = adapter_parameters(self.model, TASTE)
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.0
        )
        self.divergence = 0.0
        self.reached_bound = False
        self.started = time.monotonic()
        self.done = 0.0
        self.total = self.cost()

    def cost(self) -> float:
        """How much there is to compute, in forward passes of a story."""
        kept = sum(len(example.stories) for example in self.kept)
        used = sum(len(example.stories) for example in self.used)
        trained = self.passes * TRAINING_COST * used
        checks = CHECKS * 2 * CHECKED_STORIES
        return used + 2 * kept + 2 * len(self.val_rows) + trained + checks

    def note(self, cost: float) -> LearningProgress:
        """Count what has been computed."""
        self.done = min(self.done + cost, self.total)
        seconds = time.monotonic() - self.started
        return LearningProgress(
            self.done / self.total, seconds * (self.total / max(self.done, 1e-9) - 1)
        )

    def log_probabilities(self, example: Example) -> torch.Tensor:
        """Of an example's stories, the liked one first, per token: (n,)."""
        rows = [
            log_probability(self.model, row, example.opening, by_length=True)
            for row in example.stories
        ]
        return torch.stack(rows)

    @torch.no_grad()
    def measure(self, examples: list[Example]) -> Iterator[LearningProgress]:
        """Return the log-probabilities of each example's stories, per token."""
        found = []
        for example in examples:
            found.append(self.log_probabilities(example))
            yield self.note(len(example.stories))
        return found

    @torch.no_grad()
    def validation_loss(self) -> Iterator[LearningProgress]:
        """Return the loss over the validation stories in nats per token; None without any."""
        total = 0.0
        for row in self.val_rows:
            total -= float(log_probability(self.model, row, 1))
            yield self.note(1)
        predicted = sum(len(row) - 1 for row in self.val_rows)
        return total / predicted if predicted else None

    def run(self) -> Iterator[LearningProgress]:
        """Learn; return the figures."""
        start = yield from self.measure(self.used)
        start_kept = yield from self.measure(self.kept)
        loss_before = yield from self.validation_loss()
        yield from self.train(start)
        after_kept = yield from self.measure(self.kept)
        loss_after = yield from self.validation_loss()
        gains = [after - before for after, before in zip(after_kept, start_kept, strict=True)]
        return Learned(
            choices=len(self.used),
            kept_aside=len(self.kept),
            left_out=self.left_out,
            agreement_before=sum(is_first_best(one) for one in start_kept),
            agreement_after=sum(is_first_best(one) for one in gains),
            val_loss_before=loss_before,
            val_loss_after=loss_after,
            divergence=self.divergence,
            reached_bound=self.reached_bound,
            seconds=time.monotonic() - self.started,
        )

    def train(self, start: list[torch.Tensor]) -> Iterator[LearningProgress]:
        """Passes over the choices. start: what `measure` found for them before."""
        settings = self.settings
        order = list(range(len(self.used)))
        shuffled = random.Random(settings.seed)
        total = self.passes * len(order)
        seen = 0
        for _ in range(self.passes):
            shuffled.shuffle(order)
            for place in order:
                with torch.enable_grad():  # whatever the caller has chosen
                    loss = self.loss(self.used[place], start[place])
                    (loss / settings.batch_size).backward()
                seen += 1
                if seen % settings.batch_size == 0 or seen == total:
                    self.step(seen / total)
                yield self.note(TRAINING_COST * len(self.used[place].stories))
                if seen % math.ceil(total / CHECKS) and seen != total:
                    continue
                yield from self.check()
                if self.divergence > settings.max_divergence:
                    yield from self.shrink()
                    return

    def loss(self, example: Example, start: torch.Tensor) -> torch.Tensor:
        """The loss of one choice. start: the log-probabilities per token, (n,), before."""
        now = self.log_probabilities(example)  # (n,)
        sizes = torch.tensor([len(row) - example.opening for row in example.stories])
        # The stories are the plain model's own: their loss is its divergence from the model that
        # learns, but for a constant. Without this term, DPO makes all of them less likely.
        anchor = -self.settings.anchor * now.mean()
        if not self.settings.by_length:
            now, start = (one * sizes.to(one) for one in (now, start))
        return dpo_loss(now[0], now[1:], start[0], start[1:], self.settings.beta) + anchor

    def step(self, done: float) -> None:
        """One step of the optimizer; the learning rate rises over a tenth, and then falls."""
        rate = self.settings.learning_rate * min(1, 10 * done) * max(0.1, 1 - done)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def check(self) -> Iterator[LearningProgress]:
        """Measure how far the model is from the plain one, on some stories kept aside."""
        pairs = [(row, example.opening) for example in self.kept for row in example.stories]
        pairs = pairs[:CHECKED_STORIES]
        total = 0.0
        for row, opening in pairs:
            total += divergence(self.model, TASTE, row, opening)
            yield self.note(2)
        self.divergence = total / sum(len(row) - opening for row, opening in pairs)

    def shrink(self) -> Iterator[LearningProgress]:
        """Make what was learned smaller, until the divergence is within its bound again."""
        self.reached_bound = True
        bound = self.settings.max_divergence
        while self.divergence > bound:
            # The divergence grows with the square of what an adapter adds.
            factor = 0.97 * math.sqrt(bound / self.divergence)
            with torch.no_grad():
                for low_rank in self.model.adapters[TASTE].layers():
                    low_rank.B.mul_(factor)
            yield from self.check()


def is_first_best(values: torch.Tensor) -> bool:
    """Whether the liked story, the first, has the highest value."""
    return bool((values[0] > values[1:]).all())


def too_few(number: int, left_out: int) -> ValueError:
    """The exception for fewer choices than can be learned from."""
    rest = f" ({left_out} more do not fit the model)" if left_out else ""
    return ValueError(
        f"there {'is' if number == 1 else 'are'} {count(number, 'choice')}{rest}; learning needs "
        f"at least {LEAST_CHOICES}, so make {count(LEAST_CHOICES - number, 'more choice')}"
    )


def make_examples(
    choices: list[Choice], tokenizer: tiktoken.Encoding, context_length: int
) -> tuple[list[Example], int]:
    """The choices as ids, and how many do not fit the model."""
    examples = []
    for choice in choices:
        try:
            examples.append(make_example(choice, tokenizer, context_length))
        except ValueError:
            continue
    return examples, len(choices) - len(examples)


def learn_steps(
    model: GPTModel,
    tokenizer: tiktoken.Encoding,
    choices: list[Choice],
    folder: str | Path,
    *,
    settings: PreferenceSettings | None = None,
    val_stories: list[str] = (),
) -> Iterator[LearningProgress]:
    """Learn from choices and save the adapter; yield the progress, return the `Learned`.

    `model` stays as it is; it may be in use meanwhile, and prepared for inference, but not 8-bit.
    folder: where the adapter's own folder is made, once everything is learned. val_stories: texts
    from <|start|> on, to see what the model loses. Raises ValueError for fewer than ten choices,
    and for 8-bit weights.
    """
    learner = Learner(model, tokenizer, choices, settings or PreferenceSettings(), val_stories)
    learned = yield from learner.run()
    return save_taste(learner.model, Path(folder), learned)


def learn_from_choices(
    model: GPTModel,
    tokenizer: tiktoken.Encoding,
    choices: list[Choice],
    folder: str | Path,
    *,
    on_progress: Callable[[LearningProgress], object] | None = None,
    should_stop: Callable[[], bool] | None = None,
    settings: PreferenceSettings | None = None,
    val_stories: list[str] = (),
) -> Learned | None:
    """Learn from choices, save the adapter, print and return the figures: see `learn_steps`.

    on_progress is called after each choice. When should_stop says so, nothing is saved, an earlier
    adapter stays, and None is returned.
    """
    steps = learn_steps(
        model, tokenizer, choices, folder, settings=settings, val_stories=val_stories
    )
    while True:
        try:
            progress = next(steps)
        except StopIteration as end:
            print_safely(end.value.describe())
            return end.value
        if on_progress is not None:
            on_progress(progress)
        if should_stop is not None and should_stop():
            print_safely("Learning was stopped; nothing was saved, and earlier adapters stay.")
            return None
