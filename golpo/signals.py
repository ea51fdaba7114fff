"""Stop requests: Ctrl-C, a notebook's Stop and SIGTERM, noted instead of raised."""

import contextlib
import signal
import threading
from collections.abc import Iterator

# Every signal that was noted; the command line reads it for a fitting exit code.
noted: list[int] = []


@contextlib.contextmanager
def defer_signals() -> Iterator[list[int]]:
    """Enter SIGINT and SIGTERM into the list that this yields, so that they interrupt no step.

    A second signal of the same kind raises KeyboardInterrupt. Outside of the main thread, where
    Python delivers no signals, nothing changes.
    """
    requests = []

    def note(number, frame):
        if number in requests:
            raise KeyboardInterrupt
        requests.append(number)
        noted.append(number)

    previous = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, note)
    try:
        yield requests
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
