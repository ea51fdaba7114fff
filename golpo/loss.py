"""The loss of a language model: cross-entropy of the next token, in chunks, and on held-out text.

Shapes in comments: n tokens, r rows of a chunk, d embedding size, v vocabulary.
"""

import itertools

import torch
import torch.nn as nn
from torch import Tensor

from golpo.dataset import story_bounds
from golpo.distributed import sum_over_processes
from golpo_utils import GPTModel

IGNORED = -100  # a target that does not count, as in torch.nn.CrossEntropyLoss


def chunks(n: int, size: int) -> list[slice]:
    """0..n in slices of `size`; the last may be shorter."""
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


class ChunkedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of targets (n,) under the logits hidden @ weight.T, in nats.

    The logits of n tokens are by far the largest tensor in training, and the usual computation
    holds them several times. Here some rows at a time become logits, then loss and gradient in
    place, and are freed.
    """

    ROWS = 1024  # logits computed at once
    # On a CPU, so many probabilities at once, or 16 rows: their fp32 copies fit the cache.
    CACHED = 2**17

    @staticmethod
    def forward(ctx, hidden, weight, targets, needs_gradient):  # (n, d), (v, d), (n,), bool
        device = hidden.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else weight.dtype
        head = weight.to(dtype)  # (v, d)
        counted = (targets >= 0)[:, None]  # (n, 1)
        labels = targets.clamp(min=0)[:, None]  # (n, 1)
        loss = 0
        if needs_gradient:
            hidden_gradient = torch.empty_like(hidden)
            weight_gradient = torch.zeros_like(weight)
        for rows in chunks(len(targets), ChunkedCrossEntropy.ROWS):
            x = hidden[rows].to(dtype)  # (r, d)
            logits = x @ head.T  # (r, v)
            loss = add_loss(loss, logits, labels[rows], counted[rows], needs_gradient)
            if needs_gradient:  # `logits` now holds the gradient of the logits
                hidden_gradient[rows] = (logits @ head) * counted[rows]
                weight_gradient += logits.T @ (x * counted[rows])
        ctx.count = counted.sum()
        ctx.gradients = (hidden_gradient, weight_gradient) if needs_gradient else None
        return loss / ctx.count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        hidden_gradient, weight_gradient = ctx.gradients
        ctx.gradients = None  # they are scaled in place, which is right only once
        scale = gradient / ctx.count
        return hidden_gradient.mul_(scale), weight_gradient.mul_(scale), None, None


def add_loss(
    total: Tensor | float, logits: Tensor, labels: Tensor, counted: Tensor, needs_gradient: bool
) -> Tensor:
    """`total` plus the summed loss of labels (r, 1) under logits (r, v), where `counted` (r, 1).

    With needs_gradient, `logits` becomes its own gradient, in place: softmax minus one-hot.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    if logits.device.type == "cpu" and not torch.compiler.is_compiling():
        rows = max(16, ChunkedCrossEntropy.CACHED // logits.shape[1])
        memory = torch.empty(rows, logits.shape[1], dtype=wide)  # used again for each part
    else:
        rows = len(logits)  # a compiler makes one pass of it all
        memory = None
    for part in chunks(len(logits), rows):
        label = labels[part]  # (p, 1)
        out = None if memory is None else memory[: len(label)]
        log_p = torch.log_softmax(logits[part], dim=-1, dtype=wide, out=out)  # (p, v)
        total = total - (log_p.gather(1, label) * counted[part]).sum()
        if needs_gradient:
            minus_one = -torch.ones_like(label, dtype=wide)
            logits[part] = log_p.exp_().scatter_add_(1, label, minus_one)
    return total


class NextTokenLoss(nn.Module):
    """Wraps a GPTModel for training: ids and targets, (b, t) each → mean loss in nats per token.

    DistributedDataParallel and torch.compile wrap this module, so that `GPTModel.forward` only
    maps ids to logits.
    """

    def __init__(self, model: GPTModel):
        super().__init__()
        self.model = model

    def forward(self, token_ids: Tensor, targets: Tensor) -> Tensor:
        hidden = self.model.hidden_states(token_ids)  # (b, t, d)
        return self.cross_entropy(hidden.flatten(0, 1), targets.flatten())

    def cross_entropy(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of targets (n,) given the model's hidden states (n, d)."""
        weight = self.model.out_head.weight
        return ChunkedCrossEntropy.apply(hidden, weight, targets, torch.is_grad_enabled())


def evaluation_windows(
    ids: Tensor, context_length: int, start_id: int | None
) -> list[tuple[int, int]]:
    """The (start, end) of windows side by side that start anew at each story.

    Each token but a story's first is predicted once.
    """
    stories = itertools.pairwise(story_bounds(ids, start_id))
    return [
        (start, min(start + context_length, end - 1))
        for begin, end in stories
        for start in range(begin, end - 1, context_length)
    ]


@torch.no_grad()
def evaluate_loss(
    model: GPTModel,
    ids: Tensor,
    context_length: int,
    start_id: int | None = None,
    *,
    batch_size: int = 32,
    dtype: torch.dtype = torch.float32,
    rank: int = 0,
    world_size: int = 1,
) -> tuple[float, int]:
    """The mean loss over ids (n,) in nats per token, and the number of tokens predicted.

    Windows start anew at each story's `start_id`. Of several processes, each computes a share.
    """
    loss_of = NextTokenLoss(model)
    device = next(model.parameters()).device
    windows = evaluation_windows(ids, context_length, start_id)[rank::world_size]
    total = 0.0
    count = 0
    was_training = model.training
    model.eval()
    try:
        for part in chunks(len(windows), batch_size):
            rows = [ids[start : end + 1].long() for start, end in windows[part]]
            padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED)
            padded = padded.to(device)  # (b, t + 1)
            inputs = padded[:, :-1].clamp(min=0)  # (b, t)
            targets = padded[:, 1:]  # (b, t)
            predicted = sum(end - start for start, end in windows[part])
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                total += float(loss_of(inputs, targets)) * predicted
            count += predicted
    finally:
        model.train(was_training)
    total, count = sum_over_processes(total, count)
    return total / count, int(count)
