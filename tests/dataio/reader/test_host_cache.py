"""Compressed chunks in host memory: budget, policies, threads, and the same voxels."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mim3d.bench.corpora import anatomy_like, corpus_of
from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.loader.loader import Loader, LoaderConfig
from mim3d.dataio.reader.host_cache import HostCache


class Storage:
    """Shards whose byte at offset i is i mod 251, in one buffer that each read overwrites."""

    def __init__(self):
        self.buffer = np.zeros(10_000, np.uint8)
        self.asked: list[int] = []

    def open_file(self, path, nbytes):
        return None

    def read(self, path, nbytes, offsets, sizes):
        views, at = [], 0
        for offset, size in zip(offsets, sizes, strict=True):
            self.buffer[at : at + size] = np.arange(offset, offset + size) % 251
            views.append(self.buffer[at : at + size])
            at += size
            self.asked.append(offset)
        return views

    def watch(self, table):
        pass

    def has_room(self):
        return False

    def announce(self, path, offsets, sizes):
        pass

    def withdraw(self):
        pass

    def metrics(self):
        return {}

    def forget(self, path, offsets):
        pass

    def close(self):
        self.asked = [-1]


def check(views, offsets, sizes):
    for view, offset, size in zip(views, offsets, sizes, strict=True):
        np.testing.assert_array_equal(view, np.arange(offset, offset + size) % 251)


requests = st.lists(
    st.lists(st.integers(0, 12), min_size=1, max_size=5, unique=True), min_size=1, max_size=30
)


@given(requests=requests, budget=st.integers(1, 400), policy=st.sampled_from(["keep", "lru"]))
def test_every_read_is_right_and_the_budget_holds(requests, budget, policy):
    cache = HostCache(Storage(), budget, policy)
    for numbers in requests:
        offsets, sizes = [n * 100 for n in numbers], [20 + 7 * n for n in numbers]
        check(cache.read("a", 0, offsets, sizes), offsets, sizes)
        assert cache.resident_bytes <= budget
    metrics = cache.metrics()
    assert metrics["cache_hits"] + metrics["cache_misses"] == sum(map(len, requests))
    if policy == "keep":
        assert metrics["cache_evicted"] == 0


def test_what_fits_is_read_once():
    storage = Storage()
    cache = HostCache(storage, 1000)
    for _ in range(5):
        cache.read("a", 0, [0, 100, 200], [50, 50, 50])
    assert storage.asked == [0, 100, 200]
    assert cache.hits == 12


@pytest.mark.parametrize(("policy", "hits"), [("keep", 5 * 9), ("lru", 0)])
def test_a_scan_larger_than_the_budget_hits_its_share_with_keep_only(policy, hits):
    cache = HostCache(Storage(), 50 * 5, policy)
    for _ in range(10):
        for number in range(6):
            cache.read("a", 0, [number * 100], [50])
    assert cache.hits == hits


def test_a_forgotten_chunk_is_read_again():
    storage = Storage()
    cache = HostCache(storage, 1000)
    cache.read("a", 0, [0], [50])
    cache.forget("a", [0, 700])
    assert cache.resident_bytes == 0
    cache.read("a", 0, [0], [50])
    assert storage.asked == [0, 0]


def test_a_policy_must_be_known():
    with pytest.raises(Mim3dError, match="cache_policy='fifo'"):
        HostCache(Storage(), 10, "fifo")


def test_the_loader_gives_the_same_crops_from_memory(tmp_path):
    root = corpus_of(tmp_path / "c.zarr", [anatomy_like((40, 40, 40), i) for i in range(3)])
    options = {"crop_size": (24, 24, 24), "micro_batch": 3, "threads": 2}
    with (
        Loader(root, LoaderConfig(**options)) as plain,
        Loader(root, LoaderConfig(**options, cache="host")) as cached,
    ):
        for _ in range(12):
            assert torch.equal(next(plain).image, next(cached).image)
        metrics = cached.metrics()
    assert metrics["cache_hits"] > metrics["cache_misses"] > 0
    assert metrics["cache_bytes"] > 0


def test_threads_may_share_a_cache():
    class Fresh(Storage):
        def read(self, path, nbytes, offsets, sizes):
            return [
                np.arange(o, o + s).astype(np.uint64) % 251
                for o, s in zip(offsets, sizes, strict=True)
            ]

    cache = HostCache(Fresh(), 300, "lru")

    def work(seed):
        offsets, sizes = [seed % 7 * 100, seed % 5 * 100 + 700], [60, 60]
        check(cache.read("a", 0, offsets, sizes), offsets, sizes)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(500)))
    assert cache.resident_bytes == sum(map(len, cache._chunks.values())) <= 300
