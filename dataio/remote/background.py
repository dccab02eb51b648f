"""The thread in which the requests of a reader are under way: an event loop of its own."""

import asyncio
import atexit
import os
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress

END_S = 5.0  # how long who ends a thread waits for it

_all: "weakref.WeakSet[Background]" = weakref.WeakSet()


class Background:
    """An event loop that runs in a thread, until it is ended or nobody holds it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.process = os.getpid()
        self._thread = threading.Thread(
            target=_run, args=(self.loop,), name="mim3d-remote", daemon=True
        )
        self._thread.start()
        _all.add(self)

    def call(self, function: Callable[..., object], *given: object) -> None:
        """Have a function called in the loop, unless it has ended; without waiting for it."""
        if not self.loop.is_closed():
            with suppress(RuntimeError):  # it ended just now
                self.loop.call_soon_threadsafe(function, *given)

    def end(self) -> None:
        """Drop what is under way and end the thread."""
        if self.process == os.getpid() and self._thread.is_alive():
            self.call(_drop, self.loop)
            self._thread.join(END_S)

    def __del__(self) -> None:
        if self.process == os.getpid():
            self.call(_drop, self.loop)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


def _drop(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel every task, and stop once they have heard of it."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()

    async def heard() -> None:
        await asyncio.gather(*tasks, return_exceptions=True)
        loop.stop()

    loop.create_task(heard())


@atexit.register
def _end_all() -> None:
    """Before the interpreter goes: answers would find it gone."""
    for each in list(_all):
        each.end()
