"""Threads that read ahead: each call once, errors kept, none left, and no interrupt locks them."""

import gc
import signal
import threading
import time
from collections.abc import Callable
from functools import partial

import pytest

from mim3d.dataio.loader.read_threads import ReadThreads

Count = Callable[[], int]


@pytest.fixture
def alive() -> Count:
    """How many threads this test has: what other tests left in the process does not count."""
    others = set(threading.enumerate())

    def count() -> int:
        own = set(threading.enumerate()) - others
        return sum(thread.name.startswith("mim3d-read") for thread in own)

    return count


def none_alive(alive: Count, seconds: float = 120.0) -> bool:
    """Whether all have ended; a dismissed thread takes a moment."""
    end = time.monotonic() + seconds
    while alive() and time.monotonic() < end:
        time.sleep(0.01)
    return not alive()


def test_every_call_is_made_once_and_waited_for(alive):
    made: list[int] = []
    threads = ReadThreads(3)
    works = [threads.start([partial(made.append, 10 * k + i) for i in range(7)]) for k in range(5)]
    assert [work.wait() for work in works] == [None] * 5
    assert sorted(made) == sorted(10 * k + i for k in range(5) for i in range(7))
    threads.close()
    threads.close()
    assert not alive()


def test_the_first_call_that_failed_is_told_whichever_ended_first():
    def fail(error: Exception, seconds: float) -> None:
        time.sleep(seconds)
        raise error

    slow, fast = KeyError("slow"), ValueError("fast")
    threads = ReadThreads(2)
    work = threads.start([lambda: None, partial(fail, slow, 0.1), partial(fail, fast, 0.0)])
    assert work.wait() is slow
    threads.close()


def test_what_was_dropped_is_not_begun():
    gate, made = threading.Event(), []
    calls: list[Callable[[], object]] = [gate.wait, lambda: made.append(1)]
    threads = ReadThreads(1)
    work = threads.start(calls)  # type: ignore[arg-type]
    work.drop()
    gate.set()
    assert work.wait() is None
    assert made == []
    threads.close()


def test_threads_end_when_nobody_holds_them(alive):
    threads = ReadThreads(2)
    threads.start([lambda: None]).wait()
    assert alive() == 2
    del threads
    gc.collect()
    assert none_alive(alive)


def test_no_interrupt_leaves_a_thread_or_the_caller_waiting(alive):
    """Thousands of alarms at any place of handing over and waiting; the next wait still ends."""

    class Alarm(Exception):
        pass

    def ring(_signal: int, _frame: object) -> None:
        raise Alarm

    threads, rung = ReadThreads(2), 0
    threads.start([lambda: None]).wait()  # Thread.start itself is Python's own affair
    before = signal.signal(signal.SIGALRM, ring)
    try:
        for i in range(400):
            try:  # a busy machine may ring before the next line
                signal.setitimer(signal.ITIMER_REAL, 0.0002 + 0.00001 * (i % 50))
                while True:
                    threads.start([lambda: None] * 3).wait()
            except Alarm:
                rung += 1
            work = threads.start([lambda: None] * 3)
            assert work.wait() is None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    threads.close()
    assert rung == 400
    assert none_alive(alive)


@pytest.mark.parametrize("n", [1, 4])
def test_no_more_threads_than_asked_for(n, alive):
    threads, seen = ReadThreads(n), set()
    work = threads.start([lambda: seen.add(threading.get_ident())] * 50)
    work.wait()
    assert len(seen) <= n == alive()
    threads.close()
