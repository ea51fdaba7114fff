"""The training loop: step, evaluate, save, show, until the epochs are over or somebody stops it."""

import math
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import tiktoken
import torch

from golpo.checkpoint_manager import CheckpointManager
from golpo.console import auxiliary, print_safely
from golpo.corpus import Corpus
from golpo.devices import free_memory
from golpo.distributed import sum_over_processes
from golpo.errors import TrainingError
from golpo.loss import evaluate_loss
from golpo.metrics import METRICS_FILE, append_record, trim_records
from golpo.progress import TerminalProgress, pick_progress
from golpo.settings import Settings
from golpo.signals import defer_signals
from golpo.step import TrainingStep, is_out_of_memory
from golpo.tokenizer import tokenizer_to_dict
from golpo_utils import GPTModel, start_id_of, stream_story

MAX_SKIPPED_STEPS = 20  # steps in a row without a finite gradient after which training ends
EVALUATION_BATCH = 32  # windows at once
STEPS_BETWEEN_CHECKS = 16  # reading a number from the GPU waits for it


@dataclass
class TrainingState:
    """Where a training is: what a checkpoint holds beside weights, optimizer and settings."""

    global_step: int = 0  # steps done
    tokens_seen: int = 0
    train_losses: list = field(default_factory=list)  # means since the evaluation before
    val_losses: list = field(default_factory=list)
    track_tokens_seen: list = field(default_factory=list)  # at each evaluation
    best_val_loss: float = math.inf
    evals_since_best: int = 0
    sums: list = field(default_factory=lambda: [0.0, 0.0])  # since then: losses, finite steps
    scaler: dict = field(default_factory=dict)  # the gradient scaler's state
    seconds: float = 0.0  # spent training, in all runs together


def describe_state(state: TrainingState) -> dict:
    """A TrainingState as a checkpoint has it: whole, and its main parts under their own names."""
    whole = asdict(state)
    names = ("global_step", "train_losses", "val_losses", "track_tokens_seen", "tokens_seen")
    return {
        **{name: whole[name] for name in names},
        "best_val_loss": state.best_val_loss,
        "state": whole,
    }


class Stopwatch:
    """Training time, tokens a second and time left."""

    def __init__(self, state: TrainingState):
        self.started = time.monotonic()
        self.lap_started = self.started
        self.first_step = state.global_step
        self.lap_tokens = state.tokens_seen
        self.seconds_before = state.seconds

    def lap(self, state: TrainingState, last_step: int) -> dict[str, float]:
        """Update state.seconds; return the speed since the last lap and the seconds left."""
        now = time.monotonic()
        state.seconds = self.seconds_before + now - self.started
        tokens = state.tokens_seen - self.lap_tokens
        seconds_per_step = (now - self.started) / max(1, state.global_step - self.first_step)
        return {
            "tokens_per_second": tokens / max(now - self.lap_started, 1e-6),  # clocks have steps
            "seconds_left": seconds_per_step * (last_step - state.global_step),
        }

    def start_lap(self, state: TrainingState) -> None:
        self.lap_started = time.monotonic()
        self.lap_tokens = state.tokens_seen


class Trainer:
    """Runs one training. See `train_model`."""

    def __init__(
        self,
        step: TrainingStep,
        corpus: Corpus,
        tokenizer: tiktoken.Encoding,
        state: TrainingState,
        manager: CheckpointManager | None,
        progress: TerminalProgress,
    ):
        self.step = step
        self.model = step.model
        self.settings = step.settings
        self.corpus = corpus
        self.tokenizer = tokenizer
        self.state = state
        self.manager = manager
        self.progress = progress
        self.is_main = step.rank == 0
        self.metrics = Path(self.settings.staging_dir or self.settings.checkpoint_dir, METRICS_FILE)
        self.last_step = min(step.total_steps, self.settings.max_steps or step.total_steps)
        if step.scales_loss and state.scaler:
            step.scaler.load_state_dict(state.scaler)
        # The sums are those of all processes; the main one continues them.
        sums = state.sums if self.is_main else [0.0, state.sums[1]]
        self.sums = torch.tensor(sums, dtype=torch.float64, device=step.device)
        self.skipped = torch.zeros((), device=step.device)
        self.evaluation_batch = EVALUATION_BATCH
        self.warned = set()  # what failed, of the work that training can do without
        self.best = None  # what is saved as the best, if it is new
        self.stopwatch = Stopwatch(state)

    def run(self) -> None:
        """Train until the epochs are over, patience ends, or a stop is asked for; then save."""
        state = self.state
        first_step = state.global_step
        self.model.train()
        with defer_signals() as stops:
            while not self.is_done():
                self.train_step()
                record = self.evaluate() if self.evaluation_is_due() else None
                save_is_due = self.manager is not None and self.manager.save_due(
                    self.settings.save_every_minutes
                )
                # All processes stop, and save, at the same step.
                stop, save = sum_over_processes(len(stops), save_is_due)
                if save or self.epoch_has_ended():
                    self.save()
                self.show(record)
                if stop:
                    break
            if state.global_step > first_step:
                self.save()
        if signal.SIGTERM in stops:
            sys.exit(128 + signal.SIGTERM)

    def is_done(self) -> bool:
        patience = self.settings.patience or math.inf
        return self.state.global_step >= self.last_step or self.state.evals_since_best >= patience

    def epoch_has_ended(self) -> bool:
        return self.state.global_step % self.step.steps_per_epoch == 0

    def evaluation_is_due(self) -> bool:
        """Evaluations divide each epoch evenly; the last one is at its end."""
        steps, evaluations = self.step.steps_per_epoch, self.settings.evals_per_epoch
        position = (self.state.global_step - 1) % steps
        return (position + 1) * evaluations // steps > position * evaluations // steps

    def train_step(self) -> None:
        """One step, entered into the state."""
        number = self.state.global_step
        loss, finite, tokens = self.step.run(number)
        self.sums += torch.stack([torch.where(finite, loss, 0), finite]).double()
        self.skipped = torch.where(finite, 0, self.skipped + 1)
        self.state.global_step += 1
        self.state.tokens_seen += tokens
        if number % STEPS_BETWEEN_CHECKS == 0:
            self.check_gradients()

    def check_gradients(self) -> None:
        hopeless = bool(self.skipped >= MAX_SKIPPED_STEPS)
        self.raise_if(hopeless, f"the last {MAX_SKIPPED_STEPS} steps gave no finite gradient")

    def raise_if(self, hopeless: bool, reason: str) -> None:
        if hopeless:
            raise TrainingError(
                f"{reason} (step {self.state.global_step}); lower learning_rate (now "
                f"{self.settings.learning_rate}) or set precision='fp32', and resume"
            )

    def evaluate(self) -> dict | None:
        """Measure the validation loss, enter it into the state, and return a metrics record.

        Returns None if there is too little memory to measure it.
        """
        state = self.state
        pace = self.stopwatch.lap(state, self.last_step)
        val_loss = self.validation_loss()
        if val_loss is None:
            return None
        self.check_gradients()
        self.raise_if(not math.isfinite(val_loss), f"the validation loss is {val_loss}")
        train_loss = sum_over_processes(float(self.sums[0]))[0] / max(1.0, float(self.sums[1]))
        self.sums.zero_()
        state.train_losses.append(train_loss)
        state.val_losses.append(val_loss)
        state.track_tokens_seen.append(state.tokens_seen)
        state.evals_since_best += 1
        if val_loss < state.best_val_loss:
            state.best_val_loss = val_loss
            state.evals_since_best = 0
            self.keep_best()
        record = {
            "step": state.global_step,
            "epoch": state.global_step / self.step.steps_per_epoch,
            "tokens_seen": state.tokens_seen,
            "train_loss": train_loss,
            "val_loss": val_loss,
            "val_perplexity": math.exp(min(val_loss, 700.0)),  # exp overflows above 709
            "learning_rate": self.step.learning_rate(state.global_step - 1),
            "seconds": state.seconds,
            **pace,
        }
        if self.is_main:
            with auxiliary("writing the metrics file", self.warned):
                append_record(self.metrics, record)
        return record

    def validation_loss(self) -> float | None:
        """The loss over the validation set, with fewer windows at once if memory runs out."""
        while True:
            try:
                return loss_over(
                    self.corpus.val_ids, self.step, self.tokenizer, self.evaluation_batch
                )
            except (RuntimeError, MemoryError) as error:
                if self.step.world_size > 1 or not is_out_of_memory(error):
                    raise
            if self.evaluation_batch == 1:
                print_safely("Warning: out of memory in an evaluation. Training continues.")
                return None
            self.evaluation_batch //= 2
            free_memory(self.step.device)
            print_safely(f"Out of memory: {self.evaluation_batch} windows are evaluated at once.")

    def save(self) -> None:
        """Write a checkpoint, and the best weights beside it if they are new."""
        self.note_sums()
        if self.manager is None:
            return
        with auxiliary("saving", self.warned):
            about = self.describe() | {"best": self.best}
            if self.manager.save(self.model, self.step.optimizer, **about):
                self.best = None

    def note_sums(self) -> None:
        """Enter the sums into the state; all processes take part."""
        self.state.sums = [*sum_over_processes(float(self.sums[0])), float(self.sums[1])]
        self.state.scaler = self.step.scaler.state_dict()

    def describe(self) -> dict:
        """Everything that a checkpoint holds beside weights and optimizer, as it is now."""
        return {
            **describe_state(self.state),
            "epoch": (self.state.global_step - 1) // self.step.steps_per_epoch,
            "settings": asdict(self.settings),
            "corpus": self.corpus.fingerprint,
            "tokenizer": self.tokenizer.name,
            "tokenizer_data": tokenizer_to_dict(self.tokenizer),
            "random_states": {"torch": torch.get_rng_state().tolist()},
        }

    def keep_best(self) -> None:
        """Keep a copy of the weights as they are now, the best so far, for the next save."""
        self.note_sums()
        if self.manager is None:
            return
        with auxiliary("keeping the best weights", self.warned):
            weights = self.model.state_dict()
            copies = {name: weight.cpu().clone() for name, weight in weights.items()}
            self.best = {**self.describe(), "weights": copies}

    def show(self, record: dict | None) -> None:
        """Show the progress, an evaluation's record, and a sample at the end of an epoch."""
        if not self.is_main:
            return
        with auxiliary("showing the progress", self.warned):
            if record is not None:
                self.progress.evaluated(record, self.state)
            self.progress.step_done(self.state)
        if record is not None:
            self.stopwatch.start_lap(self.state)
        if self.epoch_has_ended() and self.settings.sample_tokens:
            with auxiliary("showing a sample", self.warned):
                story = sample_story(self.model, self.tokenizer, self.settings)
                self.progress.sample(story)


def loss_over(
    ids: torch.Tensor, step: TrainingStep, tokenizer: tiktoken.Encoding, batch_size: int
) -> float:
    """The loss of the model of `step` over ids (n,), `batch_size` windows at once."""
    loss, _ = evaluate_loss(
        step.model,
        ids,
        step.context_length,
        start_id_of(tokenizer),
        batch_size=batch_size,
        dtype=step.dtype,
        rank=step.rank,
        world_size=step.world_size,
    )
    return loss


def sample_story(model: GPTModel, tokenizer: tiktoken.Encoding, settings: Settings) -> str:
    """A story of the model as it is now."""
    length = settings.sample_tokens
    options = {"max_new_tokens": length, "min_p": 0.1, "seed": settings.seed}
    return "".join(stream_story(model, tokenizer, **options))


def train_model(
    model: GPTModel,
    optimizer: torch.optim.Optimizer,
    corpus: Corpus,
    tokenizer: tiktoken.Encoding,
    settings: Settings,
    state: TrainingState | None = None,
    manager: CheckpointManager | None = None,
    progress: TerminalProgress | None = None,
) -> tuple[list[float], list[float], list[int]]:
    """Train `model` in place; return (train_losses, val_losses, track_tokens_seen).

    The lists have one entry per evaluation. state: where to start (None: at the beginning).
    manager: saves at the end of each epoch, by the clock, and on a stop request (None: nothing is
    saved). progress: shows the training. Raises TrainingError if the loss is no longer a number.
    """
    state = state or TrainingState()
    progress = progress or pick_progress()
    start_id = start_id_of(tokenizer)
    step = TrainingStep(model, optimizer, corpus.train_ids, start_id, settings, tokenizer)
    trainer = Trainer(step, corpus, tokenizer, state, manager, progress)
    if trainer.is_main:
        with auxiliary("preparing the metrics file", trainer.warned):
            trim_records(trainer.metrics, state.global_step)
        with auxiliary("showing the progress", trainer.warned):
            progress.start(state, step.total_steps)
    trainer.run()
    if trainer.is_main:
        with auxiliary("showing the progress", trainer.warned):
            progress.finish(state, step.total_steps)
    return state.train_losses, state.val_losses, state.track_tokens_seen
