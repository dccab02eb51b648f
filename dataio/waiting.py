"""Waiting for a store that may never answer: told after seconds, bounded, left at once on Ctrl-C.

A request runs in a thread that nobody joins, and whoever asked waits for it in short looks: a call
into the client itself would hold back Ctrl-C, and every thread that reads ahead, until it returns.
"""

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

from mim3d.dataio.errors import Mim3dError, StoreError

Answer = TypeVar("Answer")

TIMEOUT = "MIM3D_STORE_TIMEOUT_S"
DEFAULT_TIMEOUT_S = 120.0
TELL_S, TELL_AGAIN_S = 10.0, 60.0
LOOK_S = 0.2


class StalledError(StoreError):
    """A store kept silent for as long as it may: no use to ask it for anything else."""


class GivenUpError(Exception):
    """Whoever wanted the answer has left."""


def store_timeout_s() -> float:
    """Seconds that a store may keep silent; Mim3dError where the environment names none."""
    text = os.environ.get(TIMEOUT, "") or str(DEFAULT_TIMEOUT_S)
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0.0 < seconds <= threading.TIMEOUT_MAX:
        raise Mim3dError(f"{TIMEOUT}={text}: must be seconds, such as {DEFAULT_TIMEOUT_S:.0f}")
    return seconds


@dataclass(frozen=True)
class Patience:
    """How long a thread waits: `limit_s` (None: as long as the client), or until all have left."""

    limit_s: float | None = None
    left: Callable[[], bool] = lambda: False


_own = threading.local()


def own_patience() -> Patience:
    """This thread's."""
    return getattr(_own, "patience", Patience())


@contextmanager
def patience(
    limit_s: float | None = None, left: Callable[[], bool] | None = None
) -> Iterator[None]:
    """Have this thread's requests wait at most `limit_s`, and only until `left()`."""
    before = own_patience()
    _own.patience = Patience(limit_s or before.limit_s, left or before.left)
    try:
        yield
    finally:
        _own.patience = before


def answered(
    place: str, key: str, request: Callable[[], Answer], *, bounded: bool = True
) -> Answer:
    """What `request` returns or raises; StalledError where the store says nothing for too long.

    `place` is the store's address, `key` the object: both stand in what is told. Without `bounded`
    the client's own limits end it, as where a large object is sent.
    """
    future: Future[Answer] = Future()
    threading.Thread(target=_run, args=(future, request), daemon=True).start()
    return wait_for(future, place, key, bounded=bounded)


def _run(future: Future[Answer], request: Callable[[], Answer]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        answer = request()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(answer)


def wait_for(future: Future[Answer], place: str, key: str, *, bounded: bool = True) -> Answer:
    """The same for a request under way, which is cancelled when nobody waits for it any more."""
    own = own_patience()
    limit = own.limit_s or (store_timeout_s() if bounded else math.inf)
    began = time.monotonic()
    try:
        while True:
            with suppress(TimeoutError):
                future.exception(LOOK_S)
            if future.done():  # also where it came just after the look
                answer = future.result()
                NOTICES.answered(place)
                return answer
            waited = time.monotonic() - began
            if own.left():
                raise GivenUpError(f"{place}/{key}: nobody waits for it any more")
            if waited >= limit:
                raise StalledError(
                    f"{place}/{key}: the store has not answered for {limit:.4g} s; run the same "
                    f"command again when it does, or with {TIMEOUT}={math.ceil(10 * limit)}"
                )
            if waited >= TELL_S:
                NOTICES.waiting(place, key, waited, limit)
    finally:
        future.cancel()


class SilenceNotices:
    """What was said of stores that keep silent: by one thread for all, and not over and over."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._last: dict[str, float] = {}

    def waiting(self, place: str, key: str, waited: float, limit: float) -> None:
        """Say that a store keeps silent, the first time and once a minute."""
        # Never waited for: an interrupt inside might leave it locked.
        if not self._turn.acquire(blocking=False):
            return
        now = time.monotonic()
        due = now - self._last.get(place, -math.inf) >= TELL_AGAIN_S
        if due:
            self._last[place] = now
        self._turn.release()
        if due:
            until = f"for at most {limit:.4g} s ({TIMEOUT})" if limit < math.inf else "on"
            say(f"{place}: no answer for {waited:.0f} s ({key}); waiting {until}")

    def answered(self, place: str) -> None:
        """Say that it answers again, where its silence was told."""
        if self._last and self._last.pop(place, None) is not None:
            say(f"{place}: answers again")


NOTICES = SilenceNotices()


def say(line: str) -> None:
    """A line for whoever watches, on the standard error."""
    print(f"mim3d: {line}", file=sys.stderr, flush=True)


@contextmanager
def asking_threads(n: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that leave stores they wait for when the block is left by an error or Ctrl-C."""
    left = threading.Event()

    def begin() -> None:
        _own.patience = Patience(left=left.is_set)

    with ThreadPoolExecutor(n, initializer=begin) as pool:
        try:
            yield pool
        except BaseException:
            left.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
