"""Matrix products for generation on a CPU: the fastest of several ways on the machine at hand.

During generation the input has few rows, and reading the weights takes nearly all of the time.
Some processors then need all cores to reach the memory's bandwidth, and PyTorch uses one; on
others PyTorch's own product is the fastest. So each way is timed once, on the model's own layers.

Shapes in comments: r rows, c chunks.
"""

import functools
import time
from collections import defaultdict
from collections.abc import Callable

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

FEW_ROWS = 16  # more rows than this are a product that PyTorch runs well everywhere
ROW_COUNTS = (1, 8)  # timed for one story, and for several at once
REPEATS = 3
SECONDS = 0.02  # small products are repeated until so much time has passed
# Another product must be clearly faster than PyTorch's own: sums in another order differ in the
# last bit, and a choice that changes from day to day would change stories.
CLEARLY_FASTER = 0.8
Product = Callable[[Tensor, Tensor], Tensor]


def plain_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T: (r, d_in), (d_out, d_in) → (r, d_out)."""
    return F.linear(x, weight)


def chunked_matmul(x: Tensor, weight: Tensor, chunks: int) -> Tensor:
    """The same as a batch of smaller products, which PyTorch spreads over all cores."""
    whole = len(weight) // chunks * chunks
    parts = weight[:whole].unflatten(0, (chunks, -1))  # (c, d_out / c, d_in)
    if len(x) == 1:
        y = torch.bmm(parts, x.T.expand(chunks, -1, -1)).view(1, whole)
    else:
        y = torch.bmm(x.expand(chunks, -1, -1), parts.mT)  # (c, r, d_out / c)
        y = y.transpose(0, 1).flatten(1)  # (r, whole)
    if whole < len(weight):
        y = torch.cat([y, F.linear(x, weight[whole:])], dim=1)
    return y  # (r, d_out)


PRODUCTS: dict[str, Product] = {
    "plain": plain_matmul,
    "chunked": functools.partial(chunked_matmul, chunks=8),
}
# (shape of the weights, dtype, threads, rows) → the name of the fastest product in this process
fastest: dict[tuple, str] = {}


class FastLinear(nn.Module):
    """A linear layer for generation: (..., d_in) → (..., d_out).

    With many rows it computes what nn.Linear does.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.in_features = weight.shape[1]
        self.one_row = plain_matmul
        self.few_rows = plain_matmul

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // self.in_features
        product = self.one_row if rows == 1 else self.few_rows
        if product is plain_matmul or rows > FEW_ROWS or torch.is_grad_enabled():
            return F.linear(x, self.weight, self.bias)
        y = product(x.view(rows, -1), self.weight)  # (r, d_out)
        if self.bias is not None:
            y += self.bias
        return y.view(*x.shape[:-1], -1)


def choose_products(layers: list[FastLinear]) -> None:
    """Give each layer the products that are fastest for its shape; about a second for 124 M.

    The choice is kept for the process.
    """
    by_shape = defaultdict(list)
    for layer in layers:
        by_shape[tuple(layer.weight.shape)].append(layer)
    for shape, same_shape in by_shape.items():
        names = []
        for rows in ROW_COUNTS:
            weight = same_shape[0].weight
            key = (shape, weight.dtype, torch.get_num_threads(), rows)
            if key not in fastest:
                fastest[key] = fastest_product([layer.weight for layer in same_shape], rows)
            names.append(fastest[key])
        for layer in same_shape:
            layer.one_row, layer.few_rows = (PRODUCTS[name] for name in names)


@torch.inference_mode()
def fastest_product(weights: list[Tensor], rows: int) -> str:
    """The name of the product that is fastest for weights of one shape, each used in turn.

    In turn, so that they come from memory as in generation, and not from the cache.
    """
    x = torch.ones(rows, weights[0].shape[1], dtype=weights[0].dtype)
    seconds = {name: [] for name in PRODUCTS}
    deadline = time.perf_counter() + SECONDS * len(PRODUCTS)
    while len(seconds["plain"]) < REPEATS or time.perf_counter() < deadline:
        for name, product in PRODUCTS.items():
            started = time.perf_counter()
            for weight in weights:
                product(x, weight)
            seconds[name].append(time.perf_counter() - started)
    best = {name: min(times) for name, times in seconds.items()}
    name = min(best, key=best.get)
    return name if best[name] < CLEARLY_FASTER * best["plain"] else "plain"


def describe_products() -> list[str]:
    """What was chosen in this process, a line for each shape and number of rows."""
    return [
        f"{rows} row{'s' * (rows > 1)} × {shape[1]} → {shape[0]}: {name}"
        for (shape, _, _, rows), name in fastest.items()
    ]
