"""Ctrl-C and SIGTERM, noted instead of raised, with real signals."""

import asyncio
import os
import signal

import pytest

from golpo.desk_runner import Runner
from golpo.signals import defer_signals

BOTH = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture
def heard():
    """Signals that reach the program's own handlers."""
    heard = []
    before = [signal.signal(number, lambda number, _: heard.append(number)) for number in BOTH]
    yield heard
    for number, handler in zip(BOTH, before, strict=True):
        signal.signal(number, handler)


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("number", BOTH)
def test_two_at_a_time_leave_in_any_order(heard, first, number):
    managers = [defer_signals(), defer_signals()]
    requests = [manager.__enter__() for manager in managers]
    managers[first].__exit__(None, None, None)
    send(number)
    assert requests[1 - first] == [number] and heard == []
    managers[1 - first].__exit__(None, None, None)
    send(number)
    assert heard == [number]


def test_a_signal_stops_all_that_is_at_work_and_a_second_one_interrupts(heard):
    with defer_signals() as outer, defer_signals() as inner:
        send(signal.SIGTERM)
        assert outer == inner == [signal.SIGTERM]
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGTERM)
    assert heard == []


@pytest.mark.parametrize("number", BOTH)
def test_a_handler_that_is_put_back_too_late_hands_the_signal_on(heard, number):
    """A notebook's kernel puts back, after a cell, the handler that it found before the cell."""
    with defer_signals():
        found = signal.getsignal(number)
    signal.signal(number, found)
    send(number)
    assert heard == [number]


@pytest.mark.parametrize("number", BOTH)
def test_a_handler_that_someone_else_set_meanwhile_stays(heard, number):
    theirs = []
    with defer_signals():
        signal.signal(number, lambda number, _: theirs.append(number))
    send(number)
    assert (theirs, heard) == ([number], [])


def test_signals_after_two_pages_that_wrote_at_once(heard):
    """One page ends before the other, on one loop, as in a notebook."""
    problems = []

    async def work(seconds):
        await asyncio.sleep(seconds)

    async def play():
        runners = [Runner(problems.append), Runner(problems.append)]
        for runner, seconds in zip(runners, (0.03, 0.1), strict=True):
            runner.start(work(seconds), lambda: None)
            await asyncio.sleep(0.015)
        while any(runner.busy for runner in runners):
            await asyncio.sleep(0.005)

    asyncio.run(play())
    send(signal.SIGTERM)
    send(signal.SIGINT)
    assert heard == [signal.SIGTERM, signal.SIGINT]
    assert not any(problems)
