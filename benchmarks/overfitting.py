"""What learns more from a text that the recipe overfits: recipes of a size of their own, and tools.

`ablations.py --size overfit` trains them. Every training there also measures averages of its
weights, which cost no training of their own.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from machine import BENCHMARKS
from torch import Tensor

from golpo.loss import IGNORED, NextTokenLoss, evaluation_windows

RESULTS = BENCHMARKS / "ablations_overfit.json"
# 21 parameters a token to learn from; the 124M model has 36 on fairytales.txt.
SHAPE = {"context_length": 128, "emb_dim": 96, "n_heads": 4, "n_layers": 4}
TOKENS = 28_000  # of GPT-2's, to train on
VALIDATION_TOKENS = 40_000
EPOCHS = 12
BASE = "today's recipe, 12 passes"
# The defaults of Settings: Muon, decay 0.1 on matrices, windows that start at stories and shift.
TODAY = {
    "vocab_size": 2048,
    "tokenizer": "own",
    "tie_embeddings": True,
    "init_std": 0.02,
    "drop_rate": 0.1,
    "learning_rate": 3e-3,
}
DECAYS = (0.4, 0.8, 1.6, 3.2)
EMA_RATES = (0.95, 0.998)  # the second is reached after 5,000 steps only: see note_step
LAST_EPOCHS = (2, 4)


def add_overfit_recipes(recipes) -> None:
    """The recipes of this size; the first is the base of all."""
    add = recipes.add
    add("6 passes", BASE, num_epochs=6)
    for decay in DECAYS:
        add(f"decay {decay}", BASE, weight_decay=decay)
    for share in (0.05, 0.1, 0.15, 0.2):
        add(f"input noise {share:.0%}", BASE, input_noise=share)
    for rate in (0.0, 0.2):
        add(f"dropout {rate:g}", BASE, drop_rate=rate)
    add("input noise 20%, dropout 0.2", "input noise 20%", drop_rate=0.2)
    best = "input noise 10%"
    add("input noise 10%, 24 passes", best, num_epochs=24)
    add("input noise 10%, dropout 0", best, drop_rate=0.0)
    for decay in DECAYS:
        add(f"input noise 10%, decay {decay}", best, weight_decay=decay)
    add("input noise 10%, decay 1.6 that grows", best, weight_decay=1.6, decay_grows=True)
    add("input noise 10%, three teachers", best, teachers=(best, (1, 2, 3)))
    add("three teachers", BASE, teachers=(BASE, (1, 2, 3)))


class WeightAverages:
    """Averages of a model's weights: exponential moving ones, and means of the last epochs' ends.

    rates: one moving average for each, of weights with a half-life of log(0.5) / log(rate) steps.
    """

    def __init__(self, model: nn.Module, rates: tuple = EMA_RATES, epochs: tuple = LAST_EPOCHS):
        self.weights = list(model.parameters())
        self.moving = {rate: self.copy() for rate in rates}
        self.epochs = epochs
        self.ends = []

    @torch.no_grad()
    def copy(self) -> list[Tensor]:
        return [weight.clone() for weight in self.weights]

    @torch.no_grad()
    def note_step(self, steps: int, epoch_has_ended: bool) -> None:
        """Take the weights after `steps` steps into account."""
        for rate, average in self.moving.items():
            keep = min(rate, steps / (steps + 10))  # short at first
            torch._foreach_lerp_(average, self.weights, 1 - keep)
        if epoch_has_ended and self.epochs:
            self.ends = [*self.ends, self.copy()][-max(self.epochs) :]

    def by_name(self) -> dict[str, list[Tensor]]:
        """Each average under its name."""
        found = {f"EMA {rate}": average for rate, average in self.moving.items()}
        for count in self.epochs:
            if len(self.ends) >= count:
                parts = zip(*self.ends[-count:], strict=True)
                found[f"last {count} epochs"] = [torch.stack(part).mean(dim=0) for part in parts]
        return found

    @torch.no_grad()
    def losses(self, measure, names: list[str] | None = None) -> dict[str, float]:
        """What `measure()` gives with each average (of these names) in place of the weights."""
        own = self.copy()
        found = {}
        for name, average in self.by_name().items():
            if names is None or name in names:
                self.put(average)
                found[name] = measure()
        self.put(own)
        return found

    @torch.no_grad()
    def put(self, values: list[Tensor]) -> None:
        torch._foreach_copy_(self.weights, values)


class DistillationLoss(NextTokenLoss):
    """The loss of a student: (1 - share) × cross-entropy + share × KL from its teachers.

    The teachers' probabilities are averaged. They read the text without the student's noise.
    """

    def __init__(self, model: nn.Module, teachers: list[nn.Module], share: float):
        super().__init__(model)
        self.teachers = [teacher.eval() for teacher in teachers]  # no submodules: they don't learn
        self.share = share

    def forward(self, token_ids: Tensor, targets: Tensor) -> Tensor:
        counted = targets != IGNORED  # (b, t)
        clean = torch.cat([token_ids[:, :1], targets[:, :-1]], dim=1)  # (b, t)
        clean = clean.where(clean != IGNORED, token_ids)
        log_p = F.log_softmax(self.model(token_ids).float(), dim=-1)[counted]  # (n, v)
        with torch.no_grad():
            log_q = mean_probabilities(self.teachers, clean)[counted].log()  # (n, v)
        hard = F.nll_loss(log_p, targets[counted])
        soft = F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
        return (1 - self.share) * hard + self.share * soft


def mean_probabilities(models: list[nn.Module], token_ids: Tensor) -> Tensor:
    """The mean of the models' next-token probabilities after ids (b, t), (b, t, v)."""
    return sum(F.softmax(model(token_ids).float(), dim=-1) for model in models) / len(models)


@torch.no_grad()
def ensemble_loss(models: list[nn.Module], ids: Tensor, start_id: int | None) -> float:
    """The mean loss over ids (n,) of several models as one, whose probabilities are averaged."""
    device = next(models[0].parameters()).device
    total = 0.0
    count = 0
    for start, end in evaluation_windows(ids, models[0].config["context_length"], start_id):
        window = ids[start : end + 1].long().to(device)
        probabilities = mean_probabilities([model.eval() for model in models], window[None, :-1])
        total += float(F.nll_loss(probabilities[0].log(), window[1:], reduction="sum"))
        count += end - start
    return total / count
