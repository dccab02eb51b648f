"""Being told to stop: a signal on any rank ends all of them after the same step."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
import torch.distributed as dist

from mim3d.engine.distributed.process_group import Ranks

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
SAVING = b"\nstopping after this step, and saving it; Ctrl-C again ends at once, without saving\n"


class Flag:
    """What a signal's handler may set: an event's lock could be held by what it interrupts."""

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        """Once and for all."""
        self._is_set = True

    def is_set(self) -> bool:
        """Whether it was set."""
        return self._is_set


_listening: list[Flag] = []
"""Flags of the blocks that listen, the innermost last: a run's, within a study's."""


class StopSignal:
    """Whether any rank was signalled, known to all ranks one step later, without waiting.

    Each step starts a one-element reduction on the CPU group and reads the one that the step
    before started, so the answer is the same everywhere and the device is not waited for.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.signalled = Flag()
        self._flag = torch.zeros(1, dtype=torch.int32)
        self._work: dist.Work | None = None

    def agreed(self) -> bool:
        """Call once a step on every rank: True when the run is to stop now."""
        if self.ranks.world == 1:
            return self.signalled.is_set()
        stop = False
        if self._work is not None:
            self._work.wait()
            stop = bool(self._flag)
        self._flag.fill_(int(self.signalled.is_set()))
        self._work = dist.all_reduce(
            self._flag, op=dist.ReduceOp.MAX, group=self.ranks.control, async_op=True
        )
        return stop

    def at_once(self) -> bool:
        """Whether this process, being the only one, may leave a step that waits for its batch."""
        return self.ranks.world == 1 and self.signalled.is_set()

    def settle(self) -> None:
        """Wait for the reduction under way; the next `agreed` still reads it."""
        if self._work is not None:
            self._work.wait()


@contextmanager
def stop_on_signal(ranks: Ranks) -> Iterator[StopSignal]:
    """Turn SIGTERM, SIGUSR1 and a first Ctrl-C into a stop between steps."""
    stop = StopSignal(ranks)
    with signals_set(stop.signalled, SAVING if ranks.first else b""):
        yield stop


@contextmanager
def signals_set(halt: Flag, said: bytes) -> Iterator[None]:
    """Have SIGTERM, SIGUSR1 and a first Ctrl-C, which is answered by `said`, set a flag.

    A block around this one hears of it too. Only the main thread can listen. A second Ctrl-C ends
    the process, in whatever call it stands.
    """

    def listen(number: int, frame: FrameType | None) -> None:
        for flag in _listening:
            flag.set()
        if number == signal.SIGINT:
            signal.signal(number, second)
            os.write(2, said)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupts = signal.getsignal(signal.SIGINT)
    # A notebook's second interrupt must not end its kernel.
    second = interrupts if hasattr(sys, "ps1") or "ipykernel" in sys.modules else signal.SIG_DFL
    # Where another part of the program has a mind of its own (a study's workers) it is left to it.
    mine = (signal.SIGINT,) * (interrupts is signal.default_int_handler)
    _listening.append(halt)
    before = {number: signal.signal(number, listen) for number in (*SIGNALS, *mine)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _listening.remove(halt)
