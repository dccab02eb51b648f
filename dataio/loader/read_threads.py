"""Threads that read ahead, and that Ctrl-C cannot leave locked.

An executor's futures and semaphores are locks held by Python code: an interrupt that falls between
taking one and the block that would free it leaves a thread waiting for ever, and the program with
it. Here threads meet in `SimpleQueue`s alone, whose locks are C's, and whoever waits looks at what
is done rather than counting messages.
"""

import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue

from mim3d.dataio.waiting import GivenUpError, own_patience, patience

LOOK_S = 0.5  # how often who waits looks by itself, should an interrupt have eaten a message


class Work:
    """Some calls that threads make, each once; who needs them all waits for all."""

    def __init__(self, calls: Sequence[Callable[[], None]]) -> None:
        self.calls = calls
        self._errors: dict[int, BaseException | None] = {}
        self._finished: SimpleQueue[None] = SimpleQueue()
        self._dropped = False

    def run(self, i: int) -> None:
        """Make call `i`, unless nobody wants it any more; what it raises is kept."""
        error = None
        try:
            if not self._dropped:
                with patience(left=lambda: self._dropped):
                    self.calls[i]()
        except BaseException as raised:
            error = raised
        self._errors[i] = error
        self._finished.put(None)

    @property
    def is_done(self) -> bool:
        """Whether all calls are through, so that `wait` would not."""
        return len(self._errors) >= len(self.calls)

    def wait(self) -> BaseException | None:
        """What the first of the calls that failed raised, once all are through.

        GivenUpError where this thread leaves before (`patience`).
        """
        while not self.is_done:
            try:
                self._finished.get(timeout=LOOK_S)
            except Empty:
                if own_patience().left():
                    self.drop()
                    return GivenUpError("nobody waits for what is read")
        return next((e for _, e in sorted(self._errors.items()) if e is not None), None)

    def drop(self) -> None:
        """Have calls that did not begin left out, and those that wait for a store end."""
        self._dropped = True


WorkQueue = SimpleQueue[tuple[Work, int] | None]


class ReadThreads:
    """At most `n` threads that make calls in the order given; they start with the first."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._tasks: WorkQueue = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def start(self, calls: Sequence[Callable[[], None]]) -> Work:
        """Hand over calls; without waiting for them."""
        work = Work(calls)
        while len(self._threads) < self._n:
            name = f"mim3d-read-{len(self._threads)}"
            thread = threading.Thread(target=_serve, args=(self._tasks,), name=name, daemon=True)
            thread.start()
            self._threads.append(thread)  # not before: an interrupt may keep it from starting
        for i in range(len(calls)):
            self._tasks.put((work, i))
        return work

    def close(self) -> None:
        """End the threads for good once they are through with what was handed over."""
        self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def __del__(self) -> None:
        self._tasks.put(None)


def _serve(tasks: WorkQueue) -> None:
    """Work until dismissed; holds nothing while it waits, so that owners can be let go."""
    while (task := tasks.get()) is not None:
        work, i = task
        work.run(i)
        del task, work
    tasks.put(None)  # for the next thread
