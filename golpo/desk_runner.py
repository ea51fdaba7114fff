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

    def start(self, work: Coroutine) -> None:
        """Begin in the background; in plain Python, where there is no loop, do all of it here."""
        self.busy = True
        self.stops = []
        task = self.run(work)
        loop = self.loop or running_loop()
        if loop is None:
            asyncio.run(task)
        else:
            # A click may arrive on a thread of its own, where Interrupt is not heard.
            asyncio.run_coroutine_threadsafe(task, loop)

    def stop(self) -> None:
        """Ask the work to end after the present token."""
        self.stops.append("Stop")

    async def run(self, work: Coroutine) -> None:
        """The work, with signals noted instead of raised."""
        # The click ends first, and with it the kernel's own handler of SIGINT.
        await asyncio.sleep(0.01)
        try:
            with defer_signals() as requests:
                requests += self.stops  # Stop may have been quicker
                self.stops = requests
                await work
        except Exception as error:
            self.report(error)
        finally:
            self.busy = False
            self.report(None)
