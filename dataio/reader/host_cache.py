"""Compressed chunks kept in memory, so that a corpus that fits is read from storage once.

An epoch visits every volume once in random order, and against such a scan the least recently used
chunk is the worst to drop: a corpus a little larger than the budget would never hit. So chunks
stay once they are in (`keep`), and the share of hits is the share of the corpus that fits; `lru`
is there for skewed sampling (weights, few subjects).
"""

import threading
from collections import OrderedDict

import numpy as np

from mim3d.dataio.corpus.chunk_table import ChunkTable
from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.reader.shards import Shards

POLICIES = ("keep", "lru")


class HostCache:
    """Shards with compressed chunks resident in host memory, at most `budget` bytes of them.

    Safe for many threads. `hits`, `misses`, `evicted` count chunks; `resident_bytes` is in use.
    """

    def __init__(self, shards: Shards, budget: int, policy: str = "keep") -> None:
        if policy not in POLICIES:
            raise Mim3dError(f"cache_policy={policy!r} is none of: {', '.join(POLICIES)}")
        self.shards, self.budget, self.policy = shards, budget, policy
        self.hits = self.misses = self.evicted = self.resident_bytes = 0
        self._chunks: OrderedDict[tuple[str, int], np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def open_file(self, path: str, nbytes: int) -> None:
        """None: chunks come from memory."""

    def read(
        self, path: str, nbytes: int, offsets: list[int], sizes: list[int]
    ) -> list[np.ndarray]:
        """Ranges of one shard, from memory where they are resident."""
        with self._lock:
            views = [self._chunks.get((path, offset)) for offset in offsets]
            missing = [i for i, view in enumerate(views) if view is None]
            self.hits += len(views) - len(missing)
            self.misses += len(missing)
            if self.policy == "lru":
                for i, view in enumerate(views):
                    if view is not None:
                        self._chunks.move_to_end((path, offsets[i]))
        if missing:
            read = self.shards.read(
                path, nbytes, [offsets[i] for i in missing], [sizes[i] for i in missing]
            )
            for i, view in zip(missing, read, strict=True):
                views[i] = view
                self._admit((path, offsets[i]), view)
        return [view for view in views if view is not None]

    def forget(self, path: str, offsets: list[int]) -> None:
        """Drop chunks, such as one that failed its checksum: the next read asks storage again."""
        with self._lock:
            for offset in offsets:
                chunk = self._chunks.pop((path, offset), None)
                self.resident_bytes -= 0 if chunk is None else len(chunk)
        self.shards.forget(path, offsets)

    def has_room(self) -> bool:
        """As what lies below has."""
        return self.shards.has_room()

    def announce(self, path: str, offsets: np.ndarray, sizes: np.ndarray) -> None:
        """Pass on what is not in memory."""
        with self._lock:
            missing = [(path, offset) not in self._chunks for offset in offsets.tolist()]
        if any(missing):
            self.shards.announce(path, offsets[missing], sizes[missing])

    def withdraw(self) -> None:
        """As what lies below."""
        self.shards.withdraw()

    def watch(self, table: ChunkTable) -> None:
        """As what lies below does; chunks in memory are of the table they were read by."""
        self.shards.watch(table)

    def close(self) -> None:
        """Free the memory and close what lies below."""
        with self._lock:
            self._chunks.clear()
            self.resident_bytes = 0
        self.shards.close()

    def metrics(self) -> dict[str, float]:
        """Hits, misses and evictions in chunks, and resident bytes."""
        return {
            "cache_hits": float(self.hits),
            "cache_misses": float(self.misses),
            "cache_evicted": float(self.evicted),
            "cache_bytes": float(self.resident_bytes),
            **self.shards.metrics(),
        }

    def _admit(self, key: tuple[str, int], view: np.ndarray) -> None:
        if len(view) > self.budget:
            return
        with self._lock:
            if key in self._chunks:
                return
            if self.policy == "keep" and self.resident_bytes + len(view) > self.budget:
                return
            # A view of a read buffer that will be overwritten: keep a copy.
            self._chunks[key] = view.copy()
            self.resident_bytes += len(view)
            while self.resident_bytes > self.budget:
                _, dropped = self._chunks.popitem(last=False)
                self.resident_bytes -= len(dropped)
                self.evicted += 1
