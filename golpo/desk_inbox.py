"""The writer's desk: what pages send, in the order in which they sent it."""

import threading
from collections import defaultdict
from collections.abc import Callable


class Inbox:
    """Hands on the messages of each page, one at a time and in their order.

    A kernel reads the first messages of a page on one thread and the others on another, so two of
    them may come at the same time or in the wrong order. Each message has the "page" that sent it
    and its "sequence" number. "hello" starts the count anew: earlier numbers of the page are not
    waited for. A message without a number is handed on at once.
    """

    def __init__(self, handle: Callable[[dict], None]):
        self.handle = handle
        self.lock = threading.RLock()
        self.waiting: dict[str, dict[int, dict]] = defaultdict(dict)  # page → number → message
        self.next: dict[str, int] = {}  # page → the number that is handed on next

    def receive(self, message: dict) -> None:
        """Take in a message, and hand on what is complete up to it."""
        message = dict(message)
        page = message.pop("page", None)
        number = message.pop("sequence", None)
        with self.lock:
            if number is None:
                self.handle(message)
                return
            waiting = self.waiting[page]
            waiting[number] = message
            if message.get("do") == "hello":
                self.next[page] = number
                for old in [other for other in waiting if other < number]:
                    del waiting[old]
            while self.next.get(page) in waiting:
                due = waiting.pop(self.next[page])
                self.next[page] += 1
                self.handle(due)
