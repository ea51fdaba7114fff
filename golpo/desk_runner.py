"""Work in the background of a page: on the kernel's own loop, which hears Stop and Interrupt."""

import asyncio
from collections.abc import Callable, Coroutine

from golpo.signals import defer_signals


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that runs in this thread; None in plain Python."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class Runner:
    """Does one thing at a time. `stops` is not empty once Stop or Interrupt was asked for.

    report: called with an exception that the work raised; it would be seen nowhere.
    """

    def __init__(self, report: Callable[[Exception], None]):
        self.loop = running_loop()
        self.report = report
        self.stops: list = []
        self.busy = False

    def start(self, work: Coroutine, at_end: Callable[[], object]) -> None:
        """Begin in the background; in plain Python, where there is no loop, do all of it here.

        at_end: called when the work is over, whatever has ended it; the next may then begin.
        """
        self.busy = True
        self.stops = []
        task = self.run(work, at_end)
        loop = self.loop or running_loop()
        if loop is None:
            asyncio.run(task)
        else:
            # A click may arrive on a thread of its own, where Interrupt is not heard.
            asyncio.run_coroutine_threadsafe(task, loop)

    def stop(self) -> None:
        """Ask the work to end after the present token."""
        self.stops.append("Stop")

    async def run(self, work: Coroutine, at_end: Callable[[], object]) -> None:
        """The work, with signals noted instead of raised."""
        # The click ends first, and with it the kernel's own handler of SIGINT.
        await asyncio.sleep(0.01)
        try:
            with defer_signals() as requests:
                requests += self.stops  # Stop may have been quicker
                self.stops = requests
                try:
                    await work
                finally:
                    self.busy = False
                    at_end()
        except Exception as error:
            self.report(error)
        self.report(None)
