"""Who reads crops from the store: each reads ahead as it likes and gives a batch at a time."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mim3d.bench.loader.crops import CROP, Crops
from mim3d.dataio.geometry import Triple
from mim3d.dataio.loader.loader import Loader, LoaderConfig
from mim3d.dataio.reader.corpus import opened_corpus
from mim3d.dataio.reader.shard_reader import ShardReader
from mim3d.dataio.remote.fetcher import PIECE_BYTES
from mim3d.dataio.remote.link import Link
from mim3d.dataio.remote.ranges import Spans, cut, joined
from mim3d.dataio.storage.remote import locate

OURS, CLIENT = "mim3d", "obstore, nothing decoded"
BATCH = 8
AHEAD = 8 * BATCH  # crops that peers ask for before they are needed
NEAR_MS, CALLS_NEAR, CALLS_FAR = 3.0, 8, 48
"""Crops that obstore alone has under way, of ten requests each: more cost a near store's client CPU
and give nothing."""
ZARR_THREADS, ZARR_CONCURRENCY = 16, 64
Batches = Iterator[object]


@dataclass(frozen=True)
class Place:
    """A corpus at an address that answers after `latency_ms`, the arrays in it (one a row of its
    table), and which crops are read."""

    address: str
    latency_ms: float
    arrays: tuple[str, ...]
    crops: Crops


def loader_of(place: str, **options: Any) -> Loader:
    """The loader as it comes, but for what is named; crops as they are stored, in float32."""
    config: dict[str, Any] = {"crop_size": CROP, "micro_batch": BATCH, "normalise": "none"}
    return Loader(place, LoaderConfig(**(config | options)))


@contextmanager
def from_loader(place: str, first: int, **options: Any) -> Iterator[Batches]:
    """Batches of the loader, from sample `first` on."""
    with loader_of(place, **options) as loader:
        loader.load_state_dict(loader.state_dict() | {"sample": first})
        yield loader


@contextmanager
def from_tensorstore(place: Place, requests: int) -> Iterator[Batches]:
    """Tensorstore's own zarr3 driver over HTTP, with so many requests at a time."""
    import tensorstore

    context = tensorstore.Context(
        {
            "http_request_concurrency": {"limit": requests},
            "cache_pool": {"total_bytes_limit": 10_000_000},
        }
    )
    opened = [
        tensorstore.open(
            {
                "driver": "zarr3",
                "kvstore": {"driver": "http", "base_url": place.address, "path": f"/{array}/"},
                "recheck_cached_data": False,
                "recheck_cached_metadata": False,
            },
            context=context,
        ).result()
        for array in place.arrays
    ]
    yield batches(place.crops, lambda volume, box: opened[volume][box].read())


@contextmanager
def from_zarr(place: Place) -> Iterator[Batches]:
    """zarr-python over obstore: its async requests, in threads that each read a crop."""
    import zarr
    from obstore.store import from_url
    from zarr.storage import ObjectStore

    opened: list[Any] = []
    for array in place.arrays:
        store = from_url(f"{place.address}/{array}", client_options={"allow_http": True})
        opened.append(zarr.open_array(ObjectStore(store, read_only=True), mode="r"))
    with (
        zarr.config.set({"async.concurrency": ZARR_CONCURRENCY}),
        ThreadPoolExecutor(ZARR_THREADS) as pool,
    ):
        begun: deque[Future[Any]] = deque()

        def begin(volume: int, box: tuple[slice, ...]) -> Future[Any]:
            begun.append(pool.submit(opened[volume].__getitem__, box))
            return begun[-1]

        try:
            yield batches(place.crops, begin)
        finally:
            for each in begun:
                each.cancel()


@contextmanager
def from_obstore(place: Place, calls: int) -> Iterator[Batches]:
    """What the loader's client can do at most: the ranges that it asks for, by obstore alone, with
    so many crops under way; what comes is dropped, nothing is decoded."""
    import obstore

    corpus = f"{place.address}/{place.arrays[0].split('/')[0]}"
    with opened_corpus(corpus) as (opened, shards):
        reader = ShardReader(opened.table, corpus, shards)
        wanted = [(reader.array(volume).path, spans_of(reader, volume, start))
                  for volume, start in place.crops]  # fmt: skip
    bucket, prefix = locate(corpus)
    client, loop = bucket.without_retries(), asyncio.new_event_loop()

    async def fetch(path: str, spans: Spans) -> None:
        starts, ends = spans.begins, spans.ends
        key = f"{prefix}/{path}"
        await obstore.get_ranges_async(client, key, starts=starts, ends=ends, coalesce=0)

    def landed() -> Batches:
        begun: deque[Any] = deque()
        for number, crop in enumerate(wanted):
            begun.append(loop.create_task(fetch(*crop)))
            if len(begun) == calls:
                loop.run_until_complete(begun.popleft())
            if number % BATCH == BATCH - 1 and number >= calls:
                yield None

    try:
        yield landed()
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
            with suppress(asyncio.CancelledError):
                loop.run_until_complete(task)
        loop.close()


def spans_of(reader: ShardReader, row: int, start: Triple) -> Spans:
    """The requests for a crop, as the loader makes them."""
    array = reader.array(row)
    chunks = array.chunks(0, start, CROP)
    offsets, sizes = (each[chunks].astype(np.int64) for each in reader.table.ranges(row))
    runs = joined(offsets[sizes > 0], sizes[sizes > 0], Link().latency_bytes)
    return cut(runs, PIECE_BYTES)


def batches(crops: Crops, begin: Callable[[int, tuple[slice, ...]], Any]) -> Batches:
    """Float32 batches of crops, each begun `AHEAD` crops before it is due."""
    out = np.empty((BATCH, *CROP), np.float32)
    wanted = deque(crops)
    begun: deque[Any] = deque()
    while True:
        while wanted and len(begun) < AHEAD:
            volume, start = wanted.popleft()
            begun.append(
                begin(volume, tuple(slice(a, a + n) for a, n in zip(start, CROP, strict=True)))
            )
        if len(begun) < BATCH:
            return
        for i in range(BATCH):
            out[i] = begun.popleft().result()
        yield out


def contestants(place: Place, first: int, peers: bool) -> dict[str, Callable[[], Any]]:
    """Everyone's stream over the same crops, by name."""
    calls = CALLS_NEAR if place.latency_ms < NEAR_MS else CALLS_FAR
    corpus = place.arrays[0].split("/")[0]
    found: dict[str, Callable[[], Any]] = {
        OURS: partial(from_loader, f"{place.address}/{corpus}", first, cache="none"),
        CLIENT: partial(from_obstore, place, calls),
    }
    if peers:
        for requests in (32, 128, 512):
            name = f"tensorstore, {requests} requests"
            found[name] = partial(from_tensorstore, place, requests)
        found["zarr-python + obstore"] = partial(from_zarr, place)
    return found
