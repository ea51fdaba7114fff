"""A story as text and as a file: its title, its prose, and what is asked of the model."""

import re
import textwrap
from pathlib import Path

import tiktoken

from golpo.console import plain_text, print_safely
from golpo.files import as_path, make_folder, write_text
from golpo_utils import MARKERS, START, TITLE, TITLE_END, GPTModel, stream_story

# The sampling defaults of notebooks, studio and command line.
DEFAULT_SAMPLING = {
    "temperature": 0.9,
    "top_k": 50,
    "top_p": 1.0,
    "min_p": 0.1,
    "repetition_penalty": 1.0,
    "max_new_tokens": 400,
}


def remove_markers(text: str) -> str:
    """`text` without the four story markers."""
    return re.sub("|".join(map(re.escape, MARKERS)), "", text)


def split_story(text: str) -> tuple[str | None, str]:
    """A story's text → its title (or None) and its prose, without markers."""
    match = re.search(re.escape(TITLE) + r"(.*?)" + re.escape(TITLE_END), text, re.DOTALL)
    if match is None:
        return None, remove_markers(text).strip()
    return match[1].strip(), remove_markers(text[match.end() :]).strip()


def genre_prompt(genre: str, title: str | None = None) -> dict:
    """Keywords of `stream_story` that ask for a genre, as in "Ghost story: The Mill".

    It works if the corpus names genres in its title lines. Without `title` the model chooses one.
    """
    if title:
        return {"title": f"{genre.strip()}: {title.strip()}"}
    return {"prompt": f"{START}\n{TITLE}{remove_markers(genre).strip()}:", "markers": True}


def wrap_text(text: str, width: int = 80) -> str:
    """`text` with each line wrapped at `width` columns."""
    return "\n".join(textwrap.fill(line, width=width) for line in text.split("\n"))


def generate_story(
    test_no: int,
    model: GPTModel,
    tokenizer: tiktoken.Encoding,
    output_dir: str | Path,
    start_context: str | None = None,
    max_new_tokens: int = 50,
    temperature: float = 0.0,
    top_k: int | None = None,
    *,
    stream: bool = False,
) -> str:
    """Generate one story, write it to a file in output_dir, and return its text.

    The file is output_no_{test_no}_{temperature}_{top_k}_{max_new_tokens}.txt, wrapped at 80
    columns, without markers. start_context: the story's opening, in which markers count.
    stream: also print the text while it is generated.
    """
    folder = as_path("output_dir", output_dir)
    opening = start_context or ""
    pieces = []
    for piece in stream_story(
        model,
        tokenizer,
        opening,
        markers=True,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
    ):
        pieces.append(piece)
        if stream:
            print_safely(plain_text(remove_markers(piece)), end="")
    text = wrap_text(plain_text(remove_markers(opening + "".join(pieces))).strip("\n"))
    path = folder / f"output_no_{test_no}_{temperature}_{top_k}_{max_new_tokens}.txt"
    make_folder(path.parent)
    write_text(path, text + "\n")
    return text
