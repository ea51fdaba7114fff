"""Generation with static shapes: one token at a time through a captured CUDA graph.

On a GPU a small step spends most of its time on starting kernels. A CUDA graph starts all of them
at once, but it needs the same shapes and the same memory in each step. `StaticDecoder` has both;
without a GPU it runs the same step uncaptured, which is how the tests compare it with `Decoder`.

Shapes in comments: b rows, d embedding size, h heads, c capacity, v vocabulary.
"""

import weakref

import torch
import torch.nn.functional as F
from torch import Tensor

from golpo.console import print_safely
from golpo.low_rank import adapter_changes
from golpo_utils import Decoder, GPTModel, KeyValueCache, TransformerBlock

WARM_UP_STEPS = 3  # as in PyTorch's notes on CUDA graphs


def attend_to_past(block: TransformerBlock, x: Tensor, cache: KeyValueCache, position: Tensor):
    """Attention of one new token (b, 1, d) at `position` (1,) to itself and those before it."""
    attention = block.att
    queries, keys, values = attention.project(x)  # (b, h, 1, width / h)
    cache.keys.index_copy_(2, position, keys)
    cache.values.index_copy_(2, position, values)
    capacity = cache.keys.shape[2]
    visible = torch.arange(capacity, device=x.device) <= position  # (c,)
    context = F.scaled_dot_product_attention(queries, cache.keys, cache.values, visible[None])
    return attention.out_proj(context.transpose(1, 2).flatten(2))  # (b, 1, d)


def decode_one_token(
    model: GPTModel, tokens: Tensor, position: Tensor, caches: list[KeyValueCache]
) -> Tensor:
    """Logits (b, v) after tokens (b, 1) at `position` (1,). No shape depends on the position."""
    x = model.tok_emb(tokens) + model.pos_emb(position)  # (b, 1, d)
    for block, cache in zip(model.trf_blocks, caches, strict=True):
        x = x + attend_to_past(block, block.norm1(x), cache, position)
        x = x + block.ff(block.norm2(x))
    return model.out_head(model.final_norm(x)[:, -1])


class StaticStep:
    """`decode_one_token` with memory of its own, of the shape of filled `caches`."""

    def __init__(self, model: GPTModel, caches: list[KeyValueCache]):
        self.model = model
        device = caches[0].keys.device
        self.tokens = torch.zeros(len(caches[0].keys), 1, dtype=torch.long, device=device)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.caches = []
        for cache in caches:
            # Zeros, for positions that are not filled yet must hold finite numbers.
            static = KeyValueCache(cache.capacity)
            static.keys = torch.zeros_like(cache.keys)
            static.values = torch.zeros_like(cache.values)
            self.caches.append(static)
        self.graph = None
        if device.type == "cuda":
            self.capture()

    def capture(self) -> None:
        """Record the step as a CUDA graph; without one, it runs as it is."""
        try:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP_STEPS):
                    self.compute()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.logits = self.compute()
            self.graph = graph
        except RuntimeError as error:
            print_safely(f"Note: no CUDA graph ({error}); generation is slower.")

    def compute(self) -> Tensor:
        return decode_one_token(self.model, self.tokens, self.position, self.caches)

    def fill(self, caches: list[KeyValueCache]) -> None:
        """Copy what `caches` hold."""
        past = caches[0].length
        for static, cache in zip(self.caches, caches, strict=True):
            static.keys[:, :, :past] = cache.keys[:, :, :past]
            static.values[:, :, :past] = cache.values[:, :, :past]
            static.length = past

    def run(self, tokens: Tensor) -> Tensor:
        """Logits (b, v) after tokens (b, 1), which follow. The next call overwrites them."""
        self.tokens.copy_(tokens)
        self.position.fill_(self.caches[0].length)
        for cache in self.caches:
            cache.length += 1
        if self.graph is None:
            return self.compute()
        self.graph.replay()
        return self.logits


class StaticSteps:
    """The static steps of a model: captured once, used by one story after the other."""

    def __init__(self, model: GPTModel):
        self.model = model
        # By rows, capacity and adapters: a captured step has those that it was captured with.
        self.idle: dict[tuple, list[StaticStep]] = {}

    def take(self, caches: list[KeyValueCache]) -> StaticStep:
        """A step for `caches` that nobody else uses now."""
        key = (len(caches[0].keys), caches[0].capacity, adapter_changes(self.model))
        idle = self.idle.setdefault(key, [])
        step = idle.pop() if idle else StaticStep(self.model, caches)
        step.key = key
        return step

    def give_back(self, step: StaticStep) -> None:
        self.idle[step.key].append(step)

    def make_decoder(self, capacity: int) -> "StaticDecoder":
        return StaticDecoder(self, capacity)


class StaticDecoder(Decoder):
    """`Decoder` whose single-token steps have static shapes."""

    def __init__(self, steps: StaticSteps, capacity: int):
        super().__init__(steps.model, capacity)
        self.steps = steps
        self.step = None

    def prefill(self, token_ids: Tensor) -> Tensor:
        logits = super().prefill(token_ids)
        if self.step is None:
            self.step = self.steps.take(self.caches)
            weakref.finalize(self, self.steps.give_back, self.step)
        self.step.fill(self.caches)
        self.caches = self.step.caches
        return logits

    def advance(self, tokens: Tensor) -> Tensor:
        return self.step.run(tokens)
