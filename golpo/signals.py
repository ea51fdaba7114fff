"""Stop requests: Ctrl-C, a notebook's Stop and SIGTERM, noted instead of raised."""

import contextlib
import signal
import threading
from collections.abc import Iterator

# Every signal that was noted; the command line reads it for a fitting exit code.
noted: list[int] = []

# The lists of all who wait for a signal now: two pages of one notebook may be at work at once,
# and either may end first. So all share one handler.
_waiting: list[list[int]] = []
_previous: dict = {}  # the handlers that were there before it


def _note(number, frame):
    """The one handler of a signal."""
    if not _waiting:  # someone put it back after the last one left, as a kernel does after a cell
        signal.signal(number, _previous[number])
        signal.raise_signal(number)
        return
    new = [requests for requests in _waiting if number not in requests]
    if not new:
        raise KeyboardInterrupt
    for requests in new:
        requests.append(number)
    noted.append(number)


@contextlib.contextmanager
def defer_signals() -> Iterator[list[int]]:
    """Enter SIGINT and SIGTERM into the list that this yields, so that they interrupt no step.

    A second signal of the same kind raises KeyboardInterrupt. Several uses at a time all get a
    signal, and may end in any order. Outside of the main thread, where Python delivers no
    signals, nothing changes.
    """
    requests: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield requests
        return
    _waiting.append(requests)
    for number in (signal.SIGINT, signal.SIGTERM):
        handler = signal.signal(number, _note)
        if handler is not _note:
            _previous[number] = handler
    try:
        yield requests
    finally:
        _waiting[:] = [other for other in _waiting if other is not requests]
        for number, handler in _previous.items():
            if not _waiting and signal.getsignal(number) is _note:
                signal.signal(number, handler)
