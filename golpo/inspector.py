"""A look inside the model: how likely the next tokens are, and where a head looks."""

import html

import tiktoken
import torch
from torch import Tensor

from golpo.fonts import font_families
from golpo.plots import clear_axes, png_bytes
from golpo_utils import (
    FusedModule,
    GPTModel,
    Sampling,
    check_number,
    next_token_probabilities,
    story_opening,
)

TOKENS_IN_PICTURE = 40


def token_label(token: int, tokenizer: tiktoken.Encoding) -> str:
    """A token as people can read it: with visible spaces, line breaks and control characters."""
    if token >= tokenizer.n_vocab:
        return f"(unused id {token})"
    text = tokenizer.decode([token]).replace(" ", "·").replace("\n", "↵")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def candidates_html(
    logits: Tensor, seen: Tensor, sampling: Sampling, tokenizer: tiktoken.Encoding, count: int = 10
) -> str:
    """The most likely next tokens as bars, from logits (1, v).

    Pale: the model's own probability. Strong: the probability under `sampling`.
    """
    own = torch.softmax(logits.float(), dim=-1)[0]  # (v,)
    sampled = next_token_probabilities(logits, sampling, seen)[0]  # (v,)
    rows = []
    for token in (own + sampled).topk(min(count, len(own))).indices.tolist():
        name = html.escape(token_label(token, tokenizer))
        bars = "".join(f"<i style='width: {share[token]:.1%}'></i>" for share in (own, sampled))
        figures = f"{sampled[token]:.1%} (model: {own[token]:.1%})"
        cells = f"<code>{name}</code><span>{bars}</span><span>{figures}</span>"
        rows.append(f"<div class='bar'>{cells}</div>")
    return "".join(rows)


@torch.inference_mode()
def attention_weights(model: GPTModel, token_ids: Tensor, layer: int, head: int) -> Tensor:
    """How much each token attends to itself and those before it: (1, t) ids → (t, t).

    Each row has a sum of 1.
    """
    found = []

    def keep(module, inputs, output):
        found.append(output)

    fused = FusedModule.use_fused
    FusedModule.use_fused = False  # only the reference computes weights that can be shown
    try:
        with model.trf_blocks[layer].att.softmax.register_forward_hook(keep):
            model.hidden_states(token_ids)
    finally:
        FusedModule.use_fused = fused
    return found[0][0, head].float().cpu()  # of (1, h, t, t)


def attention_picture(weights: Tensor, words: list[str]) -> bytes:
    """Weights (t, t) between `words` → the content of a PNG file."""
    figure, axes = clear_axes(6.4, 6)
    ticks = range(len(words))
    axes.imshow(weights.numpy(), cmap="Blues", vmin=0)
    # Without parse_math a dollar sign in a token would begin a formula.
    style = {"size": 8, "parse_math": False, "family": font_families(words)}
    axes.set_xticks(ticks, words, rotation=90, **style)
    axes.set_yticks(ticks, words, **style)
    return png_bytes(figure)


def inspect_next(
    model: GPTModel,
    tokenizer: tiktoken.Encoding,
    prose: str,
    title: str,
    sampling: Sampling,
    layer: int,
    head: int,
    markers: bool = False,
) -> tuple[str, bytes]:
    """The candidates after a story as HTML, and a PNG file: where a head looks in its end.

    prose, title and markers: as `story_opening` has them. Raises ValueError for a layer or a head
    that the model does not have.
    """
    check_number("the layer", layer, 0, len(model.trf_blocks) - 1, whole=True)
    check_number("the head", head, 0, model.config["n_heads"] - 1, whole=True)
    ids = story_opening(tokenizer, prose, title, markers)[-model.config["context_length"] :]
    tokens = torch.tensor([ids], device=model.tok_emb.weight.device)  # (1, t)
    with torch.inference_mode():
        logits = model.next_logits(tokens)[:, : model.usable_ids]  # (1, usable)
    weights = attention_weights(model, tokens, layer, head)
    shown = ids[-TOKENS_IN_PICTURE:]
    words = [token_label(token, tokenizer) for token in shown]
    picture = attention_picture(weights[-len(shown) :, -len(shown) :], words)
    seen = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, tokens, True)
    return candidates_html(logits, seen, sampling, tokenizer), picture
