"""The optimizer and the learning rate: AdamW, and Muon for the matrices of the blocks."""

import math
from collections import defaultdict

import torch
from torch import Tensor

from golpo.lora import adapter_names
from golpo.settings import Settings
from golpo_utils import GPTModel, check_number


def learning_rate_at(step: int, total_steps: int, settings: Settings) -> float:
    """A linear warmup, then half a cosine down (Loshchilov and Hutter, 2017).

    It depends on the step alone, so that a resumed training continues where it was.
    """
    warmup_steps = max(1, round(settings.warmup * total_steps))
    if step < warmup_steps:
        return settings.learning_rate * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1, progress)))
    floor = settings.final_learning_rate
    return settings.learning_rate * (floor + (1 - floor) * cosine)


def newton_schulz(matrices: Tensor) -> Tensor:
    """(n, r, c) → matrices with the same singular vectors and singular values near 1.

    Five iterations with the coefficients of Jordan et al., 2024 (MuonAdamW).
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    is_wide = x.shape[-1] >= 2 * x.shape[-2]
    # The squares of small singular values are lost in 16 bits.
    if is_wide and not torch.is_autocast_enabled(x.device.type):
        x = newton_schulz_of_gram(x @ x.mT) @ x
    else:
        for _ in range(5):
            gram = x @ x.mT  # (n, r, r)
            factor = torch.baddbmm(gram, gram, gram, beta=-4.775, alpha=2.0315)
            x = torch.baddbmm(x, factor, x, beta=3.4445)  # (n, r, c)
    return x.mT if tall else x


def newton_schulz_of_gram(gram: Tensor) -> Tensor:
    """The products x @ x.mT, (n, r, r) → the factors, (n, r, r), with which the iterations scale x.

    All factors are polynomials of the first product, so they commute, and the matrices x, which
    are wider, take part in no iteration.
    """
    total = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    for _ in range(5):
        factor = torch.baddbmm(gram, gram, gram, beta=-4.775, alpha=2.0315)
        factor.diagonal(dim1=-2, dim2=-1).add_(3.4445)
        gram = factor @ gram @ factor
        total = factor @ total
    return total


class MuonAdamW(torch.optim.AdamW):
    """Muon for `matrices` (Jordan et al., 2024, kellerjordan.github.io/posts/muon), AdamW for
    the other parameters (Loshchilov and Hutter, 2019).

    Muon's update is the averaged gradient, orthogonalized, so that the matrix learns in all
    directions and not only in the largest. Its length is that of an AdamW step (Liu et al.,
    arXiv 2502.16982). Learning rate and weight decay are those of the first group.
    """

    MOMENTUM = 0.95

    def __init__(self, groups: list[dict], matrices: list[Tensor], **options):
        super().__init__(groups, **options)
        self.matrices = matrices

    @torch.no_grad()
    def step(self, closure=None):
        by_shape = defaultdict(list)
        for parameter in self.matrices:
            if parameter.grad is not None:  # frozen ones have none
                by_shape[parameter.shape].append(parameter)
        for same_shape in by_shape.values():
            self.step_matrices(same_shape)
        return super().step(closure)

    def step_matrices(self, parameters: list[Tensor]) -> None:
        """Update matrices of one shape (r, c) at once: a GPU starts each operation only once."""
        for parameter in parameters:
            if not self.state[parameter]:
                # AdamW looks for a step in each state that it loads.
                state = {"momentum_buffer": torch.zeros_like(parameter), "step": torch.zeros(())}
                self.state[parameter] = state
        rate = self.param_groups[0]["lr"]
        decay = self.param_groups[0]["weight_decay"]
        device = parameters[0].device
        # 0 if the gradient scaler found infinite gradients: the step then changes nothing.
        valid = 1 - getattr(self, "found_inf", torch.zeros(())).to(device)
        gradients = torch.stack([parameter.grad for parameter in parameters])  # (n, r, c)
        gradients = gradients.nan_to_num(0.0, 0.0, 0.0)
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        momentum = torch.stack(buffers).lerp(gradients, (1 - self.MOMENTUM) * valid)
        directions = newton_schulz(gradients.lerp(momentum, self.MOMENTUM))
        updates = directions * (valid * rate * 0.2 * math.sqrt(max(parameters[0].shape)))
        # All memory is allocated by now: either every change below happens, or none.
        torch._foreach_copy_(buffers, momentum.unbind())
        torch._foreach_mul_(parameters, 1 - valid * rate * decay)
        torch._foreach_sub_(parameters, updates.unbind())
        for parameter in parameters:
            parameter.grad = None  # AdamW then skips it


def make_optimizer(model: GPTModel, settings: Settings) -> torch.optim.Optimizer:
    """MuonAdamW, or AdamW for all parameters, as settings.optimizer says; for adapters AdamW.

    Matrices decay; biases, norms and embeddings only if settings.decay_all.
    """
    embeddings = {id(model.tok_emb.weight), id(model.pos_emb.weight)}
    # Adapters are trained alone.
    learned = list((model.adapters if adapter_names(model) else model).parameters())
    matrices = [p for p in learned if p.dim() > 1 and id(p) not in embeddings]
    others = [p for p in learned if p.dim() <= 1 or id(p) in embeddings]
    decay = settings.weight_decay
    groups = [
        {"params": matrices, "weight_decay": decay},
        {"params": others, "weight_decay": decay * settings.decay_all},
    ]
    options = {"lr": settings.learning_rate, "betas": (0.9, settings.beta2), "fused": True}
    if settings.optimizer == "adamw" or adapter_names(model):
        return torch.optim.AdamW(groups, **options)
    block_matrices = [p for p in model.trf_blocks.parameters() if p.dim() > 1]
    return MuonAdamW(groups, block_matrices, **options)


def freeze_layers(model: GPTModel, layers: int) -> None:
    """Exclude the positions and the first `layers` blocks from training.

    Raises ValueError for more blocks than the model has.
    """
    check_number("frozen_layers", layers, 0, len(model.trf_blocks), whole=True)
    if layers == 0:
        return
    for part in (model.pos_emb, *model.trf_blocks[:layers]):
        part.requires_grad_(False)
