"""One training step: windows → loss → gradients → update, within the memory of the device."""

import contextlib
import functools
import math
from collections.abc import Iterator

import numpy as np
import tiktoken
import torch
import torch.nn as nn
from torch import Tensor

from golpo.console import print_safely
from golpo.dataset import GPTDataset, epoch_shift
from golpo.devices import free_memory, pick_precision
from golpo.distributed import rank_and_world_size
from golpo.errors import TrainingError
from golpo.input_noise import InputNoise
from golpo.lora import adapter_names
from golpo.loss import NextTokenLoss
from golpo.optim import learning_rate_at
from golpo.packing import PackedDataset
from golpo.projections import project_at_once
from golpo.request_dataset import RequestDataset
from golpo.settings import Settings
from golpo.trimming import TrimmedDataset
from golpo_utils import GPTModel

IDS_ON_GPU = 2**28  # so many ids, or fewer, are copied to the GPU, where they take a gigabyte
# What PyTorch says when memory is used up, on Linux, on Windows, and in CUDA's libraries.
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
STEPS_WORTH_COMPILING = 1000  # compiling takes a minute or two


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that the memory of the GPU or of the machine is used up."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(words in text for words in OUT_OF_MEMORY)


@contextlib.contextmanager
def memory_errors_explained(config: dict) -> Iterator[None]:
    """Turns an exception that says that memory is used up into a TrainingError with advice."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        sizes = ", ".join(f"{name} {value}" for name, value in config.items())
        raise TrainingError(
            f"out of memory; choose a smaller model or batch_size (the model's config is {sizes})"
        ) from error


class TrainingStep:
    """Computes the steps of one training; each depends on its number and the weights alone."""

    def __init__(
        self,
        model: GPTModel,
        optimizer: torch.optim.Optimizer,
        train_ids: Tensor,
        start_id: int | None,
        settings: Settings,
        tokenizer: tiktoken.Encoding | None = None,
    ):
        self.model = model
        self.optimizer = optimizer
        self.settings = settings
        self.device = next(model.parameters()).device
        self.dtype = pick_precision(settings.precision, self.device)
        self.rank, self.world_size = rank_and_world_size()
        self.context_length = model.config["context_length"]
        self.dataset = self.make_dataset(train_ids, start_id, tokenizer)
        self.noise = self.make_noise(tokenizer)
        self.steps_per_epoch = math.ceil(len(self.dataset) / settings.batch_size)
        self.total_steps = settings.num_epochs * self.steps_per_epoch
        self.micro_batch_size = settings.micro_batch_size or settings.batch_size
        # fp16 gradients underflow unless the loss is scaled up. The other precisions keep a scale
        # of 1 and use the scaler only to skip steps whose gradients are not finite.
        self.scales_loss = self.dtype == torch.float16
        initial_scale = 2.0**16 if self.scales_loss else 1.0
        self.scaler = torch.amp.GradScaler(self.device.type, init_scale=initial_scale)
        if self.device.type == "cuda" and not adapter_names(model):
            for block in model.trf_blocks:
                block.att.project = functools.partial(project_at_once, block.att)
        self.loss_of = self.wrap(NextTokenLoss(model))

    def make_dataset(
        self, train_ids: Tensor, start_id: int | None, tokenizer: tiktoken.Encoding | None
    ) -> GPTDataset | TrimmedDataset:
        """The training windows: with requests, packed or trimmed if the settings say so."""
        aligned_to = start_id if self.settings.align_to_stories else None
        length = self.context_length
        seed = self.settings.seed
        fits = self.device.type == "cuda" and len(train_ids) < IDS_ON_GPU
        if fits and not self.settings.requests:  # requests are written on the processor
            train_ids = train_ids.to(self.device, torch.int32)
        if self.settings.pack_stories:
            return PackedDataset(train_ids, length, aligned_to, seed)
        if self.settings.requests:
            dataset = RequestDataset(train_ids, tokenizer, length, aligned_to, seed)
        else:
            dataset = GPTDataset(train_ids, None, length, length, start_id=aligned_to)
        return TrimmedDataset(dataset, aligned_to) if self.settings.trim_windows else dataset

    def make_noise(self, tokenizer: tiktoken.Encoding | None) -> InputNoise | None:
        share = self.settings.input_noise
        if share == 0:
            return None
        return InputNoise(share, tokenizer, self.context_length, self.settings.seed)

    def wrap(self, loss_module: NextTokenLoss) -> nn.Module:
        """`loss_module` for several processes, and compiled where that pays."""
        if self.world_size > 1:
            wrapped = nn.parallel.DistributedDataParallel(loss_module, broadcast_buffers=False)
        else:
            wrapped = loss_module
        on_gpu = self.device.type == "cuda" and torch.cuda.get_device_capability() >= (7, 0)
        pays = on_gpu and self.total_steps > STEPS_WORTH_COMPILING
        if self.settings.compile == "on" or (self.settings.compile == "auto" and pays):
            if isinstance(self.dataset, TrimmedDataset):
                self.dataset.one_shape = True
            # A batch has one shape, but for the last of an epoch. Each is compiled for itself:
            # PyTorch 2.11 breaks on chunks of the loss whose number varies.
            wrapped = torch.compile(wrapped, dynamic=False)
        return wrapped

    def mixed_precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def run(self, number: int) -> tuple[Tensor, Tensor, int]:
        """Do step `number`: (this process's part of the mean loss, whether it was finite, tokens).

        A step whose gradients are not finite changes no weight.
        """
        epoch, position = divmod(number, self.steps_per_epoch)
        order = self.dataset.order(self.settings.seed, epoch, self.settings.batch_size)
        start = position * self.settings.batch_size
        windows = order[start : start + self.settings.batch_size]
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(number)
        loss = self.backward_within_memory(number, windows)
        self.scaler.unscale_(self.optimizer)
        longest = self.settings.grad_clip or math.inf
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), longest)
        self.update_within_memory()
        self.scaler.update(None if self.scales_loss else 1.0)
        self.optimizer.zero_grad()
        return loss, torch.isfinite(norm), self.dataset.predicted(windows, self.shift(epoch))

    def learning_rate(self, number: int) -> float:
        return learning_rate_at(number, self.total_steps, self.settings)

    def backward_within_memory(self, number: int, windows: np.ndarray) -> Tensor:
        """`backward`, with fewer windows at once if the memory does not suffice."""
        while True:
            try:
                return self.backward(number, windows)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self.halve_micro_batch()
                self.optimizer.zero_grad()

    def update_within_memory(self) -> None:
        """The optimizer's step, tried again after freeing memory."""
        while True:
            try:
                return self.update()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                # The optimizer continues with the parameters that it has not updated yet.
                self.halve_micro_batch()

    def update(self) -> None:
        with self.mixed_precision():  # for Muon's matrix products
            self.scaler.step(self.optimizer)

    def halve_micro_batch(self) -> None:
        """Compute fewer windows at once from now on; raise TrainingError if that cannot be."""
        if self.micro_batch_size == 1 or self.world_size > 1:
            raise TrainingError(
                f"out of memory with {self.micro_batch_size} windows at once; lower "
                f"micro_batch_size, context_length or the model's size"
            ) from None
        self.micro_batch_size = math.ceil(self.micro_batch_size / 2)
        free_memory(self.device)
        print_safely(
            f"Out of memory: from now on {self.micro_batch_size} windows are computed at once "
            f"and their gradients accumulated; the result stays the same."
        )

    def backward(self, number: int, windows: np.ndarray) -> Tensor:
        """Accumulate the gradients of this process's windows; return its part of the mean loss."""
        share = windows[self.rank :: self.world_size]
        # DistributedDataParallel averages the gradients over the processes.
        epoch = number // self.steps_per_epoch
        shift = self.shift(epoch)
        weight = self.world_size / self.full_windows(windows, shift) if len(share) else 0.0
        if len(share) == 0:
            share = windows[:1]  # every process must take part in the exchange
        total = 0
        for start in range(0, len(share), self.micro_batch_size):
            part = share[start : start + self.micro_batch_size]
            inputs, targets = self.dataset.batch(part, shift, epoch)  # (b, t) each
            if self.noise is not None:
                inputs = self.noise.apply(inputs, targets, part, epoch)
            self.seed_dropout(number, start)
            more_follow = start + self.micro_batch_size < len(share)
            wait = self.world_size > 1 and more_follow
            with self.loss_of.no_sync() if wait else contextlib.nullcontext():
                with self.mixed_precision():
                    loss = self.loss_of(inputs.to(self.device), targets.to(self.device))
                    loss = loss * (self.full_windows(part, shift) * weight)
                self.scaler.scale(loss).backward()
            total = total + loss.detach() / self.world_size
        return total

    def shift(self, epoch: int) -> float:
        """By which share of what they can the windows of an epoch start earlier."""
        return epoch_shift(self.settings.seed, epoch) if self.settings.shift_windows else 0.0

    def full_windows(self, windows: np.ndarray, shift: float) -> float:
        """The tokens that the windows predict, counted in windows without padding."""
        return self.dataset.predicted(windows, shift) / self.context_length

    def seed_dropout(self, number: int, start: int) -> None:
        """Dropout's random numbers depend on the step alone, not on what happened before it."""
        sequence = np.random.SeedSequence([self.settings.seed, number, self.rank, start])
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))
