"""Direct preference optimization (DPO: Rafailov et al., 2023), from scratch.

Of stories with the same opening, one is liked. How much more probable the model makes a story than
it did at the start is taken as the model's reward for it,

    r(story) = beta * (log p(story) - log p_start(story)),

and the loss is -log sigmoid(r(liked) - r(other)): equation 7 of the paper. It falls while the
liked story gains more than the other one.
"""

from typing import NamedTuple

import tiktoken
import torch
import torch.nn.functional as F
from torch import Tensor

from golpo.choices import Choice
from golpo.initialization import SkipInitialization
from golpo.long_stories import Sight
from golpo.lora import adapter_names, restore_adapters, set_adapter_strength
from golpo.requests import parse_request, request_opening
from golpo_utils import GPTModel, encode, story_opening


class Example(NamedTuple):
    """A choice as token ids."""

    opening: int  # how many ids at the beginning of each story are given
    stories: list[list[int]]  # the liked story first


def opening_ids(choice: Choice, tokenizer: tiktoken.Encoding) -> list[int]:
    """What the stories of a choice begin with: request, title, note, opening.

    Raises ValueError for a request with unknown keys.
    """
    sight = Sight(choice.title, choice.note, choice.opening, 0)
    if not choice.request:
        return story_opening(tokenizer, **sight.opening())
    request = parse_request(choice.request)
    return story_opening(tokenizer, **request_opening(request, choice.title, sight.prompt))


def make_example(choice: Choice, tokenizer: tiktoken.Encoding, context_length: int) -> Example:
    """The ids of a choice's stories, each cut off after context_length + 1 of them.

    Raises ValueError if the opening fills the context, or the stories' ids do not differ.
    """
    opening = opening_ids(choice, tokenizer)
    if len(opening) > context_length:
        raise ValueError(f"the opening has {len(opening)} tokens, and the context {context_length}")
    order = sorted(range(len(choice.stories)), key=lambda place: place != choice.liked)
    rows = [opening + encode(choice.stories[place], tokenizer) for place in order]
    rows = [row[: context_length + 1] for row in rows]
    if any(len(row) == len(opening) for row in rows) or rows[0] in rows[1:]:
        raise ValueError(
            "a story is empty, or as long as the context holds it equals the liked one"
        )
    return Example(len(opening), rows)


def story_logits(model: GPTModel, ids: Tensor, opening: int) -> Tensor:
    """The logits for each of the n tokens after the opening: ids (t,) → (n, v), n = t - opening."""
    hidden = model.hidden_states(ids[None, :-1])[0, opening - 1 :]  # (n, d)
    return model.out_head(hidden)


def log_probability(
    model: GPTModel, ids: list[int], opening: int, by_length: bool = False
) -> Tensor:
    """The log-probability of the story after its opening, in nats, a scalar.

    That is the sum over its tokens, or with by_length the mean.
    """
    row = torch.tensor(ids, device=model.tok_emb.weight.device)  # (t,)
    logits = story_logits(model, row, opening).float()  # (n, v)
    loss = F.cross_entropy(logits, row[opening:], reduction="mean" if by_length else "sum")
    return -loss


def dpo_loss(liked: Tensor, others: Tensor, liked_start: Tensor, others_start: Tensor,
             beta: float) -> Tensor:  # fmt: skip
    """The loss of a liked story against n others, mean over the n pairs.

    liked, others: log-probabilities under the model, () and (n,); liked_start, others_start: under
    the model at the start, which have no gradient.
    """
    gains = (liked - liked_start) - (others - others_start)  # (n,)
    return -F.logsigmoid(beta * gains).mean()


@torch.no_grad()
def divergence(model: GPTModel, adapter: str, ids: list[int], opening: int) -> float:
    """How far the model with an adapter is from the plain one, over one story, in nats.

    That is the Kullback-Leibler divergence KL(model || plain model) of the next token, summed over
    the places of the story, with all earlier tokens given.
    """
    row = torch.tensor(ids, device=model.tok_emb.weight.device)  # (t,)
    with_adapter = story_logits(model, row, opening).float().log_softmax(dim=-1)  # (n, v)
    set_adapter_strength(model, 0, adapter)
    try:
        plain = story_logits(model, row, opening).float().log_softmax(dim=-1)  # (n, v)
    finally:
        set_adapter_strength(model, 1, adapter)
    return float(F.kl_div(plain, with_adapter, log_target=True, reduction="sum"))


def trainable_copy(model: GPTModel, without: str) -> GPTModel:
    """A second model with the same weights in the same memory, to add an adapter to.

    `model` may be prepared for inference. Of its adapters, the one named `without` is left out,
    and the others are copied. Raises ValueError for 8-bit weights.
    """
    state = model.state_dict()
    weights = {name: one for name, one in state.items() if not name.startswith("adapters.")}
    with SkipInitialization():
        copy = GPTModel(model.config)
    if weights.keys() != copy.state_dict().keys():
        raise ValueError("a model with 8-bit weights cannot learn; load it without quantize")
    copy.load_state_dict(weights, assign=True)
    copy.to(model.tok_emb.weight.device).eval()
    others = [name for name in adapter_names(model) if name != without]
    for name in others:
        prefix = f"adapters.{name}."
        restore_adapters(copy, {key: one for key, one in state.items() if key.startswith(prefix)})
        set_adapter_strength(copy, model.adapters[name].layers()[0].strength, name)
    return copy.requires_grad_(False)
