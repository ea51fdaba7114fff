"""Stories by beam search: the whole of one, or with a sign of life after each token."""

from collections.abc import Generator

import tiktoken
import torch

from golpo.beam_search import beam_search_steps
from golpo_utils import END, GPTModel, encode, story_opening


def beam_story(
    model: GPTModel,
    tokenizer: tiktoken.Encoding,
    prompt: str = "",
    *,
    num_beams: int = 4,
    max_new_tokens: int = 400,
    title: str | None = None,
    markers: bool = False,
    length_penalty: float = 1.0,
    no_repeat_ngram_size: int = 0,
) -> str:
    """The likeliest story that beam search finds, without its opening.

    prompt, title, markers: see `story_opening`. The rest: see `beam_search`.
    """
    settings = {
        "num_beams": num_beams,
        "length_penalty": length_penalty,
        "no_repeat_ngram_size": no_repeat_ngram_size,
    }
    opening = {"title": title, "markers": markers}
    return "".join(
        stream_beams(model, tokenizer, prompt, max_new_tokens=max_new_tokens, **opening, **settings)
    )


def stream_beams(
    model: GPTModel,
    tokenizer: tiktoken.Encoding,
    prompt: str = "",
    *,
    max_new_tokens: int = 400,
    title: str | None = None,
    markers: bool = False,
    num_beams: int = 4,
    length_penalty: float = 1.0,
    no_repeat_ngram_size: int = 0,
) -> Generator[str, None, str]:
    """`beam_story` in the form of `stream_story`: it returns "end" or "limit".

    There is nothing to show before the end: it yields an empty piece after each token, and then
    the whole text.
    """
    opening = story_opening(tokenizer, prompt, title, markers)
    steps = beam_search_steps(
        model,
        torch.tensor([opening], device=model.tok_emb.weight.device),
        max_new_tokens,
        model.config["context_length"],
        num_beams=num_beams,
        length_penalty=length_penalty,
        eos_id=None,
        eos_sequence=encode(END, tokenizer),
        no_repeat_ngram_size=no_repeat_ngram_size,
    )
    found = None
    while found is None:
        try:
            next(steps)
        except StopIteration as end:
            found = end.value
        else:
            yield ""
    text = tokenizer.decode(found.ids[0, 0, len(opening) :].tolist())
    story, marker, _ = text.partition(END)
    # At the limit, half a character may stand at the end.
    yield story if marker else story.rstrip("\ufffd")
    return "end" if marker else "limit"
