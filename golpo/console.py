"""Where output goes, and printing that cannot fail: few characters, or no reader any more."""

import contextlib
import re
import sys

ESCAPE_SEQUENCES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|.)?")
CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def plain_text(text: str) -> str:
    """`text` without characters that control a terminal: a sample may contain any."""
    return CONTROL_CHARACTERS.sub("", ESCAPE_SEQUENCES.sub("", text))


def printable(text: str, encoding: str | None) -> str:
    """`text` with a question mark for each character that `encoding` lacks."""
    encoding = encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding, "replace")


def clean_text(text: str) -> str:
    """`text` as a page or a book can have it: no control characters, no half characters."""
    return plain_text(printable(text, "utf-8"))


def print_safely(text: str, end: str = "\n") -> None:
    """Print `text`, with replacements where needed; an output that fails is ignored."""
    with contextlib.suppress(Exception):
        print(printable(text, getattr(sys.stdout, "encoding", None)), end=end, flush=True)


@contextlib.contextmanager
def auxiliary(what: str, warned: set | None = None):
    """For work that a training can do without: an exception in it becomes a printed warning.

    warned: holds what was warned of before, which is not printed again.
    """
    try:
        yield
    except Exception as error:
        kind = (what, type(error))
        if warned is None or kind not in warned:
            print_safely(f"Warning: {what} failed ({describe_error(error)}). Training continues.")
        if warned is not None:
            warned.add(kind)


def describe_error(error: BaseException) -> str:
    """The kind of an exception and its message, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(":")


def in_notebook() -> bool:
    """Whether this runs in a Jupyter kernel, where pictures can be shown."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel")
