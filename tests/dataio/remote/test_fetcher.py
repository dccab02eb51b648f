"""Requests in flight: how many, in which order, asked again, dropped. The store is a stand-in."""

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from mim3d.dataio.remote import background
from mim3d.dataio.remote import fetcher as fetching
from mim3d.dataio.remote.fetcher import Fetcher, RefusedError, UnavailableError
from mim3d.dataio.remote.limits import RemoteLimits
from mim3d.dataio.remote.ticket import TOGETHER
from mim3d.dataio.waiting import StalledError

obstore = pytest.importorskip("obstore")
FAR = 10_000_000  # between ranges that are not to be joined


class Store:
    """Answers the byte i of every object with i mod 251, once `gate` is open."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.now = self.most = self.dropped = 0
        self.asked: list[int] = []
        self.calls: list[int] = []
        self.faults: list[BaseException] = []

    async def get_ranges(
        self, _store: Any, _path: str, *, starts: list[int], ends: list[int], coalesce: int
    ) -> list[bytes]:
        assert coalesce == 0
        self.asked += starts
        self.calls.append(len(starts))
        flying = min(len(starts), TOGETHER)
        self.now += flying
        self.most = max(self.most, self.now)
        try:
            while not self.gate.is_set():
                await asyncio.sleep(0.005)
            if self.faults:
                raise self.faults.pop(0)
        except asyncio.CancelledError:
            self.dropped += flying
            raise
        finally:
            self.now -= flying
        return [
            bytes((np.arange(a, b) % 251).astype(np.uint8))
            for a, b in zip(starts, ends, strict=True)
        ]

    def wait_for(self, n: int) -> None:
        """Until so many requests were made."""
        wait_until(lambda: len(self.asked) >= n)


def wait_until(happened: Callable[[], object], seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.fixture
def store(monkeypatch):
    store = Store()
    monkeypatch.setattr(obstore, "get_ranges_async", store.get_ranges)
    monkeypatch.setattr(fetching, "PAUSE_S", 0.01)
    monkeypatch.setattr(background, "END_S", 120.0)
    return store


@pytest.fixture
def own_threads():
    """Threads of fetchers; those that other tests left in this process are none of ours."""
    others = set(threading.enumerate())

    def found() -> list[threading.Thread]:
        return [t for t in set(threading.enumerate()) - others if t.name == "mim3d-remote"]

    return found


@pytest.fixture
def fetcher(store):
    fetcher = Fetcher(store, "s3://there", RemoteLimits(requests=20, nbytes=10_000))
    yield fetcher
    store.gate.set()
    fetcher.close()


def ranges(first: int, n: int, size: int = 100) -> tuple[np.ndarray, np.ndarray]:
    return (first + np.arange(n)) * FAR, np.full(n, size, np.int64)


def check(fetcher: Fetcher, path: str, offsets: np.ndarray, sizes: np.ndarray) -> None:
    ticket = fetcher.read(path, offsets, sizes)
    for run, begin, each in zip(*spread(ticket), ticket.buffers(), strict=True):
        got = np.frombuffer(memoryview(each), np.uint8)
        np.testing.assert_array_equal(got, np.arange(begin, ticket.runs.ends[run]) % 251)


def spread(ticket: Any) -> tuple[range, list[int]]:
    return range(len(ticket.runs.begins)), ticket.runs.begins.tolist()


def test_what_is_announced_is_in_flight_together_within_the_bound(store, fetcher):
    for first in (0, 12, 24, 36):
        fetcher.announce("a", *ranges(first, 12))
    store.wait_for(24)  # two calls, of which the client has ten each in flight
    time.sleep(0.1)
    assert store.now == store.most == 20
    assert not fetcher.has_room()
    store.gate.set()
    for first in (0, 12, 24, 36):
        check(fetcher, "a", *ranges(first, 12))
    assert store.most == 20
    assert fetcher.has_room()
    assert store.asked == [i * FAR for i in range(48)]
    metrics = fetcher.metrics()
    assert metrics["remote_requests"] == 48
    assert metrics["remote_bytes_read"] == metrics["remote_bytes_needed"] == 4800
    assert metrics["remote_wait_s"] > 0


def test_bytes_that_nobody_read_yet_are_bounded(store, fetcher):
    store.gate.set()
    fetcher.announce("a", *ranges(0, 2, 6_000))
    assert not fetcher.has_room()
    check(fetcher, "a", *ranges(0, 2, 6_000))
    assert fetcher.has_room()


def test_what_someone_waits_for_goes_before_what_is_only_announced(store, fetcher):
    for first in (0, 10, 20, 30):
        fetcher.announce("a", *ranges(first, 10))
    store.wait_for(20)
    reader = threading.Thread(target=check, args=(fetcher, "b", *ranges(90, 5)))
    reader.start()
    (lane,) = fetcher._lanes.values()
    wait_until(lambda: lane.queue and lane.queue[0].ticket.path == "b")
    store.gate.set()
    reader.join()
    store.wait_for(45)
    assert [at // FAR for at in store.asked[20:25]] == list(range(90, 95))


def test_what_is_announced_goes_in_few_calls_and_what_is_waited_for_all_at_once(store, fetcher):
    store.gate.set()
    fetcher.announce("a", *ranges(0, 90))
    check(fetcher, "a", *ranges(0, 90))
    check(fetcher, "b", *ranges(0, 40))
    assert store.calls == [30, 30, 30, 10, 10, 10, 10]


def test_those_of_a_call_that_failed_are_asked_one_by_one_within_the_bound(store, fetcher):
    store.gate.set()
    store.faults = [OSError("reset")]
    fetcher.announce("a", *ranges(0, 30))
    check(fetcher, "a", *ranges(0, 30))
    assert store.calls == [30] + [1] * 30
    assert store.most == 10
    assert fetcher.retries == 1


def test_an_announcement_that_an_interrupt_cut_off_is_read_all_the_same(store, fetcher):
    store.gate.set()
    check(fetcher, "a", *ranges(0, 1))
    (lane,) = fetcher._lanes.values()
    lane.rung = True  # as if Ctrl-C fell between ringing and the call
    fetcher.announce("a", *ranges(1, 5))
    check(fetcher, "a", *ranges(1, 5))
    assert not lane.rung
    assert not lane.inbox


def test_a_store_next_door_has_fewer_requests_in_flight(store):
    fetcher = Fetcher(store, "s3://there", RemoteLimits(requests=300, nbytes=1 << 30))
    with closing(fetcher):
        fetcher.link._earlier = 0.0  # as if it had answered at once
        for first in range(0, 400, 10):
            fetcher.announce("a", *ranges(first, 10))
        assert not fetcher.has_room()
        store.gate.set()
        for first in range(0, 400, 10):
            check(fetcher, "a", *ranges(first, 10))
        assert store.most <= 64


def test_what_is_withdrawn_is_dropped_and_may_be_asked_for_again(store, fetcher):
    fetcher.announce("a", *ranges(0, 10))
    store.wait_for(10)
    fetcher.withdraw()
    wait_until(lambda: store.dropped >= 10)
    assert store.dropped == 10
    store.gate.set()
    check(fetcher, "a", *ranges(0, 10))


def test_faults_that_pass_are_counted_and_those_that_last_are_told(store, fetcher, monkeypatch):
    store.gate.set()
    store.faults = [OSError("reset"), obstore.exceptions.GenericError("503")]
    check(fetcher, "a", *ranges(0, 5))
    assert fetcher.retries == 2
    store.faults = [FileNotFoundError("gone")]
    with pytest.raises(FileNotFoundError):
        fetcher.read("a", *ranges(0, 5))
    store.faults = [obstore.exceptions.PermissionDeniedError("not you")]
    with pytest.raises(RefusedError, match="not you"):
        fetcher.read("a", *ranges(0, 5))
    assert fetcher.retries == 2
    monkeypatch.setattr(fetching, "RETRY_SHARE", 0.001)
    store.faults = [OSError("reset")] * 100
    with pytest.raises(UnavailableError, match=r"reset \(after \d+ attempts\)"):
        fetcher.read("a", *ranges(0, 1))


def test_a_panic_of_the_client_reaches_who_waits(store, fetcher):
    class PanicError(BaseException):
        pass

    store.gate.set()
    store.faults = [PanicError("index out of range")]
    with pytest.raises(PanicError):
        fetcher.read("a", *ranges(0, 5))


def test_a_silent_store_ends_a_read_and_its_requests(store, fetcher, monkeypatch):
    monkeypatch.setenv("MIM3D_STORE_TIMEOUT_S", "0.5")
    fetcher.announce("a", *ranges(0, 5))
    store.wait_for(5)  # or the read might end before they were sent
    with pytest.raises(StalledError, match="s3://there/a"):
        fetcher.read("a", *ranges(0, 5))
    wait_until(lambda: store.dropped >= 5)
    assert store.dropped == 5


def test_long_reads_are_cut_and_put_together(store, fetcher, monkeypatch):
    monkeypatch.setattr(fetching, "PIECE_BYTES", 1000)
    store.gate.set()
    check(fetcher, "a", np.array([5, 100_000_000]), np.array([12_345, 7]))
    assert len(store.asked) == 14


def test_closing_ends_the_thread_and_a_later_read_begins_another(store, own_threads, fetcher):
    fetcher.announce("a", *ranges(0, 10))
    store.wait_for(10)
    assert own_threads()
    fetcher.close()
    assert not own_threads()
    store.gate.set()
    check(fetcher, "a", *ranges(0, 10))


def test_nobody_who_forgets_to_close_leaves_a_thread(store, own_threads):
    store.gate.set()
    fetcher = Fetcher(store, "s3://there", RemoteLimits())
    check(fetcher, "a", *ranges(0, 10))
    assert own_threads()
    del fetcher
    wait_until(lambda: not own_threads())


def test_unlike_reads_with_the_same_ends_are_told_apart(store, fetcher):
    store.gate.set()
    one, other = np.array([0, 1, 9]) * FAR, np.array([0, 5, 9]) * FAR
    sizes = np.full(3, 100, np.int64)
    fetcher.announce("a", one, sizes)
    fetcher.announce("a", other, sizes)
    for offsets in (other, one):
        assert fetcher.read("a", offsets, sizes).runs.begins.tolist() == offsets.tolist()


def test_threads_that_come_first_together_share_one_thread(store):
    store.gate.set()

    def errors_of_eight(fetcher: Fetcher) -> list[BaseException]:
        together, errors = threading.Barrier(8), []

        def read(first: int) -> None:
            together.wait()
            try:
                check(fetcher, "a", *ranges(first, 5))
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=read, args=(10 * i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return errors

    for _ in range(10):
        fetcher = Fetcher(store, "s3://there", RemoteLimits())
        errors = errors_of_eight(fetcher)
        fetcher.close()
        assert errors == []
