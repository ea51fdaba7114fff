"""The command line: reads the arguments, runs the command, and reports errors in one sentence.

The commands themselves are in `golpo/commands.py`. This file imports nothing heavy, so that
Ctrl-C is answered in the same way from the first moment on.
"""

import contextlib
import io
import os
import re
import sys
import warnings
from typing import NoReturn

from golpo.errors import CheckpointError, TrainingError
from golpo.version import __version__

COMMANDS = ("train", "generate", "evaluate", "export", "compare", "learn")
# Exit codes, as shells and other programs use them.
FAILED = 1
WRONG_INPUT = 2
INTERRUPTED = 130  # 128 + SIGINT
CLOSED_PIPE = 141  # 128 + SIGPIPE


def main(arguments: list[str] | None = None) -> None:
    """Run `golpo` with `arguments` (None: those of the process).

    Errors that a person can act on become one sentence on stderr and an exit code.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console may lack a story's characters
    if arguments == ["--version"]:
        print(f"golpo {__version__}")
        return
    warnings.formatwarning = lambda message, *_, **__: f"golpo: {message}\n"
    try:
        parse_arguments(arguments).run()
        sys.stdout.flush()
    except KeyboardInterrupt:
        fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # Python flushes standard output once more at the end, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(CLOSED_PIPE)
    except (CheckpointError, TrainingError, OSError, MemoryError) as error:
        fail(str(error) or type(error).__name__, FAILED)
    except ValueError as error:
        fail(str(error), WRONG_INPUT)
    except RuntimeError as error:
        if "memory" not in str(error):  # the words differ between devices and systems
            raise
        fail(f"out of memory; choose a smaller model ({error})", FAILED)


def fail(message: str, code: int) -> NoReturn:
    """Print one line on stderr and exit."""
    with contextlib.suppress(OSError):
        print("golpo: " + " ".join(message.split()), file=sys.stderr, flush=True)
    sys.exit(code)


def parse_arguments(arguments: list[str]):
    """The command that `arguments` name, an object with a method `run`.

    Exits with a sentence if they are wrong, and after printing the help that they ask for.
    """
    import tyro

    from golpo.commands import make_command_type

    arguments = arguments or ["--help"]
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                make_command_type(),
                args=arguments,
                prog="golpo",
                description="Train a GPT on stories, and let it write new ones.",
            )
    except SystemExit as end:
        if end.code:
            fail(error_sentence(errors.getvalue(), arguments), WRONG_INPUT)
        raise


def error_sentence(box: str, arguments: list[str]) -> str:
    """What tyro prints about wrong arguments, a title and several paragraphs, as one sentence."""
    box = re.sub(r"\x1b\[[0-9;]*m", "", box).strip()
    lines = [line.strip("│ ") for line in box.splitlines()]
    # The title is in the frame, or underlined where the console has no letters for frames.
    lines = lines[1:] if box.startswith("╭") else lines[2:]
    rules = [n for n, line in enumerate(lines) if set(line) <= set("─-╰╯")] or [len(lines)]
    message = " ".join(lines[: rules[0]]).rstrip(".")
    if suggestion := re.search(r"[Pp]erhaps you meant:?\s*(--\S+)", " ".join(lines)):
        message += f"; perhaps you meant {suggestion[1]}"
    command = next((f"golpo {name}" for name in COMMANDS if name == arguments[0]), "golpo")
    return f"{message}; see `{command} --help`"
