"""Who reads crops from the store: each reads ahead as it likes and gives a batch at a time."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mim3d.bench.loader.crops import CROP, Crops
from mim3d.dataio.loader.loader import Loader, LoaderConfig

BATCH = 8
AHEAD = 8 * BATCH  # crops that peers ask for before they are needed
ZARR_THREADS, ZARR_CONCURRENCY = 16, 64
Batches = Iterator[object]


@dataclass(frozen=True)
class Place:
    """A corpus at an address, the arrays in it, and which crops are read."""

    address: str
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
    corpus = place.arrays[0].split("/")[0]
    found: dict[str, Callable[[], Any]] = {
        "mim3d": partial(from_loader, f"{place.address}/{corpus}", first, cache="none"),
    }
    if peers:
        for requests in (32, 128, 512):
            name = f"tensorstore, {requests} requests"
            found[name] = partial(from_tensorstore, place, requests)
        found["zarr-python + obstore"] = partial(from_zarr, place)
    return found
