"""Byte ranges of the objects of a bucket: many requests in flight, in the order they were asked.

Everything that changes is touched by one thread, that of the event loop; others leave messages.
So no lock is held by a thread that Ctrl-C may fall into, and whoever waits looks at a future.
"""

import asyncio
import os
import random
import time
from collections import deque
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np

from mim3d.dataio.remote.background import Background
from mim3d.dataio.remote.limits import RemoteLimits
from mim3d.dataio.remote.link import Link
from mim3d.dataio.remote.ranges import joined
from mim3d.dataio.remote.ticket import TOGETHER, Part, Ticket
from mim3d.dataio.storage.remote import is_beyond_end, is_plain_http, store_reason
from mim3d.dataio.waiting import store_timeout_s, wait_for

A_CALL = 40
"""Ranges given to obstore in one call, for a call costs as much CPU as a request; in as many calls
as have them all in flight where someone waits already."""
PIECE_BYTES = 4 << 20
"""Longer runs are asked for in several requests, for each has its own bandwidth."""
PAUSE_S, LONGEST_PAUSE_S = 0.1, 8.0
RETRY_SHARE = 0.75  # of the time a store may keep silent, for asking again where it fails


class UnavailableError(Exception):
    """Requests failed in a way that may pass."""


class RefusedError(Exception):
    """The store will not answer this, however often it is asked."""


class Lane(Background):
    """The thread of one process: what waits for its turn there, and how many requests fly.

    What was announced lies in `inbox`, where it is looked for once `rung`.
    """

    def __init__(self) -> None:
        self.inbox: deque[Ticket] = deque()
        self.queue: deque[Part] = deque()
        self.flying = 0
        self.rung = False
        super().__init__()


class Fetcher:
    """Reads of objects through obstore's client `store`; `address` is for messages.

    `announce` what will be read, in the order of the readings, then `read` it. The counts are of
    requests that were answered; `wait_s` adds up over threads.
    """

    def __init__(self, store: Any, address: str, limits: RemoteLimits) -> None:
        self.store, self.address, self.limits = store, address, limits
        self.link = Link()
        self.requests = self.retries = self.bytes_read = self.bytes_needed = 0
        self.wait_s = 0.0
        self._announced: dict[Any, Ticket] = {}
        self._lanes: dict[int, Lane] = {}

    def has_room(self) -> bool:
        """Whether more should be announced: as many requests as fly wait for their turn, so that
        there are some whenever others have landed."""
        flying = nbytes = 0
        for ticket in list(self._announced.values()):
            nbytes += ticket.nbytes
            flying += ticket.flying
        return flying < 2 * self._most and nbytes < self.limits.nbytes

    @property
    def _most(self) -> int:
        """Requests in flight: what is of use to this store, within the limit."""
        return min(self.limits.requests, self.link.useful)

    def announce(self, path: str, offsets: np.ndarray, sizes: np.ndarray) -> None:
        """Begin a read that `read` will ask for."""
        key = key_of(path, offsets)
        if key not in self._announced:
            ticket = self._announced[key] = self._ticket(path, offsets, sizes, A_CALL)
            lane = self._lane
            lane.inbox.append(ticket)
            if not lane.rung:  # an interrupt in between: `read` calls by itself
                lane.rung = True
                lane.call(self._empty, lane)

    def read(self, path: str, offsets: np.ndarray, sizes: np.ndarray) -> Ticket:
        """A read that has landed; its runs are short where the object is.

        FileNotFoundError, UnavailableError or RefusedError; StalledError where the store says
        nothing. It need not have been announced.
        """
        ticket = self._announced.pop(key_of(path, offsets), None)
        if ticket is None:
            ticket = self._ticket(path, offsets, sizes, TOGETHER)
        began = time.perf_counter()
        if ticket.waiting:
            lane = self._lane
            lane.call(self._hurry, lane, ticket)
        try:
            for part in ticket.parts:  # what counts as silence begins anew with each
                if not part.done.done():
                    wait_for(part.done, self.address, path)
                part.done.result()
        except BaseException:
            ticket.cancel()
            raise
        self.wait_s += time.perf_counter() - began
        return ticket

    def withdraw(self) -> None:
        """Drop what was announced and not read."""
        for key in list(self._announced):
            ticket = self._announced.pop(key, None)
            if ticket is not None:
                ticket.cancel()

    def close(self) -> None:
        """Drop everything, and end the thread; a later read begins another."""
        self.withdraw()
        lane = self._lanes.pop(os.getpid(), None)
        if lane is not None:
            lane.call(lane.inbox.clear)
            lane.call(lane.queue.clear)
            lane.end()

    def metrics(self) -> dict[str, float]:
        """Counts so far, seconds of threads that waited, and what a request costs by now."""
        return {
            "remote_requests": float(self.requests),
            "remote_retries": float(self.retries),
            "remote_bytes_read": float(self.bytes_read),
            "remote_bytes_needed": float(self.bytes_needed),
            "remote_wait_s": self.wait_s,
            "remote_latency_ms": 1e3 * self.link.latency_s,
            "remote_mb_per_s": self.link.bytes_per_s / 1e6,
        }

    def _ticket(self, path: str, offsets: np.ndarray, sizes: np.ndarray, a_call: int) -> Ticket:
        runs = joined(offsets, sizes, self.link.latency_bytes)
        return Ticket(path, runs, int(sizes.sum()), PIECE_BYTES, a_call)

    @property
    def _lane(self) -> Lane:
        """That of this process; a fork begins its own."""
        lane = self._lanes.get(os.getpid())
        # Of threads that come first together all take what one of them put there.
        return self._lanes.setdefault(os.getpid(), Lane()) if lane is None else lane

    # What follows runs in the loop's thread.

    def _empty(self, lane: Lane) -> None:
        """Take in what was announced."""
        lane.rung = False
        while lane.inbox:
            lane.queue.extend(lane.inbox.popleft().parts)
        self._pump(lane)

    def _hurry(self, lane: Lane, ticket: Ticket) -> None:
        """Have what someone waits for go before what was only announced."""
        waiting = [part for part in ticket.parts if not part.begun]
        if waiting and not (lane.queue and lane.queue[0] is waiting[0]):
            lane.queue.extendleft(reversed(waiting))  # their other places are passed over
        self._empty(lane)

    def _pump(self, lane: Lane) -> None:
        most = self._most
        while lane.queue:
            part = lane.queue[0]
            if part.begun or part.done.done():
                lane.queue.popleft()
                continue
            if lane.flying and lane.flying + part.flying > most:
                return
            lane.queue.popleft()
            part.begun = True
            lane.flying += part.flying
            task = lane.loop.create_task(self._fetch(lane, part))
            part.done.add_done_callback(partial(_stop_if_cancelled, lane.loop, task))

    async def _fetch(self, lane: Lane, part: Part) -> None:
        try:
            ticket = part.ticket
            answers = await self._insist(ticket.path, part.begins, part.ends)
            if ticket.waiting == len(part.spans):  # before whoever waits hears of the last
                self.bytes_needed += ticket.needed
            part.land(answers)
        except asyncio.CancelledError:
            part.done.cancel()
            raise
        except BaseException as error:  # obstore's panics too: nobody else would hear of them
            part.fail(error)
        finally:
            lane.flying -= part.flying
            self._pump(lane)

    async def _insist(
        self, path: str, begins: list[int], ends: list[int], pause: float = PAUSE_S
    ) -> list[Any]:
        """The answers to requests, asked again while they fail in a way that may pass."""
        until = time.monotonic() + RETRY_SHARE * store_timeout_s()
        attempt = 0
        while True:
            attempt += 1
            try:
                return await self._once(path, begins, ends)
            except UnavailableError as error:
                if time.monotonic() + pause > until:
                    raise UnavailableError(f"{error} (after {attempt} attempts)") from error
            self.retries += 1
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE_S)
            if len(begins) > 1:  # one of them failed; those that would not are asked once more
                return await self._one_by_one(path, begins, ends, pause)

    async def _one_by_one(
        self, path: str, begins: list[int], ends: list[int], pause: float
    ) -> list[Any]:
        """The same, so many at a time as in one call; each is asked again by itself."""
        found: list[Any] = []
        spans = list(zip(begins, ends, strict=True))
        for at in range(0, len(spans), TOGETHER):
            each = [self._insist(path, [a], [b], pause) for a, b in spans[at : at + TOGETHER]]
            found += [one for (one,) in await asyncio.gather(*each)]
        return found

    async def _once(self, path: str, begins: list[int], ends: list[int]) -> list[Any]:
        import obstore

        lasting = (
            obstore.exceptions.PermissionDeniedError,
            obstore.exceptions.UnauthenticatedError,
        )
        sent = time.monotonic()
        try:
            found = await obstore.get_ranges_async(
                self.store, path, starts=begins, ends=ends, coalesce=0
            )
        except FileNotFoundError:
            raise
        except lasting as error:
            raise RefusedError(store_reason(error)) from error
        except (obstore.exceptions.BaseError, OSError) as error:
            if len(begins) == 1 and is_beyond_end(error):
                return [b""]
            kind = RefusedError if is_plain_http(error) else UnavailableError
            raise kind(store_reason(error)) from error
        nbytes = [len(each) for each in found]
        rounds = -(-len(found) // TOGETHER)
        self.link.record(max(nbytes), (time.monotonic() - sent) / rounds)
        self.requests += len(found)
        self.bytes_read += sum(nbytes)
        return found


def key_of(path: str, offsets: np.ndarray) -> tuple[str, bytes]:
    """What tells one read of chunks of an object from another."""
    return path, offsets.tobytes()


def _stop_if_cancelled(
    loop: asyncio.AbstractEventLoop, task: "asyncio.Task[None]", done: "Future[None]"
) -> None:
    """Drop the requests of who does not want the answer any more."""
    if done.cancelled() and not loop.is_closed():
        loop.call_soon_threadsafe(task.cancel)
