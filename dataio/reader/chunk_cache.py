"""Compressed chunks kept in memory or on a local disk, so that what fits is read once.

An epoch visits every volume once in random order, and against such a scan the least recently used
bytes are the worst to drop: a corpus a little larger than the budget would never hit. So what came
in stays (`keep`), and the share of hits is the share of the corpus that fits; `lru` is there for
skewed sampling (weights, few subjects), and drops whole shards.

A shard keeps its layout: each chunk lies at its own offset, so a box whose chunks are all there is
decoded as from a local file, at the cost of one look at a small grid. What was read between chunks
to save requests is kept with them.
"""

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mim3d.dataio.errors import CorpusWarning, Mim3dError
from mim3d.dataio.geometry import Triple
from mim3d.dataio.reader.kept_shard import PAGE, Kept, MemoryShard, OpenForBoth
from mim3d.dataio.reader.shards import Run, sliced
from mim3d.dataio.reader.stored_array import StoredArray, Wanted

POLICIES = ("keep", "lru")
NOTHING = np.empty(0, np.uint8)
Read = Callable[[np.ndarray, np.ndarray], list[Run]]
SPARE = 2  # times what is missing may come, with what lies between and by whole pages
Make = Callable[[StoredArray, np.ndarray], Kept]


class Held:
    """One shard in the cache: its bytes, and which of them are there."""

    def __init__(
        self, array: StoredArray, kept: Kept, offsets: np.ndarray, sizes: np.ndarray
    ) -> None:
        self.kept, self.offsets, self.ends = kept, offsets, offsets + sizes
        self.grid = kept.present.reshape(array.channels, *array.grid)
        self.pages = np.zeros(-(-array.nbytes // PAGE), bool)
        tables = self.offsets.nbytes + self.ends.nbytes + self.pages.nbytes
        self.used = kept.used + tables

    def covers(self, array: StoredArray, channel: int, start: Triple, size: Triple) -> bool:
        """Whether all chunks that a box meets are there."""
        return bool(self.grid[channel][array.places(start, size)].all())

    def within(self, runs: Sequence[Run]) -> Iterator[slice]:
        """The chunks that lie in each run."""
        begins = np.array([begin for begin, _ in runs], np.int64)
        ends = begins + [len(data) for _, data in runs]
        first = np.searchsorted(self.offsets, begins, "left").tolist()
        last = np.searchsorted(self.ends, ends, "right").tolist()
        return map(slice, first, last)


class ChunkCache:
    """Shards as far as they were read, at most `budget` bytes of them.

    `make` says where a shard is kept (`absent` marks chunks that it does not have). Safe for many
    threads. `hits` and `misses` count chunks, `evicted` shards; `used_bytes` counts memory as the
    system gives it, in pages, and what says which chunks are there.
    """

    def __init__(self, budget: int, policy: str = "keep", make: Make | None = None) -> None:
        if policy not in POLICIES:
            raise Mim3dError(f"cache_policy={policy!r} is none of: {', '.join(POLICIES)}")
        self.budget, self.policy = budget, policy
        self.hits = self.misses = self.evicted = self.used_bytes = 0
        self._make: Make = make or (lambda array, absent: MemoryShard(array.nbytes, absent))
        self._shards: OrderedDict[str, Held] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, array: StoredArray) -> Held | None:
        """A shard of which something may be there."""
        held = self._shards.get(array.name)
        if held is not None and self.policy == "lru":
            with self._lock:
                if array.name in self._shards:
                    self._shards.move_to_end(array.name)
        return held

    def hold(self, array: StoredArray, offsets: np.ndarray, sizes: np.ndarray) -> Held | None:
        """Begin to keep a shard, whose chunks have these offsets and sizes; None without room."""
        with self._lock:
            held = self._shards.get(array.name)
            if held is not None:
                return held
            try:
                kept = self._make(array, np.asarray(sizes) == 0)
            except OSError as error:
                self._give_up(error)
                return None
            held = Held(array, kept, offsets.astype(np.int64), sizes)
            if not self._room(held.used, held):
                return None
            self.used_bytes += held.used
            self._shards[array.name] = held
            return held

    def through(self, held: Held | None, wanted: Wanted, read: Read) -> list[np.ndarray]:
        """Bytes of stored chunks of a shard.

        What is not there is `read` and kept as far as there is room. What was announced is taken
        in, for it is under way, even if it came another way meanwhile.
        """
        _, chunks, ranges, asked = wanted
        there = np.zeros(len(chunks), bool)
        views = [NOTHING] * len(chunks)
        if held is not None:
            there = held.kept.present[chunks]
            for place in np.flatnonzero(there if asked is None else there & ~asked).tolist():
                try:
                    views[place] = held.kept.view(int(ranges[0][place]), int(ranges[1][place]))
                except OSError:  # another thread or process removed the file
                    there[place] = False
        for chosen, runs in self._read(held, there, wanted, read):
            found = sliced(runs, ranges[0][chosen], ranges[1][chosen])
            for place, view in zip(np.flatnonzero(chosen).tolist(), found, strict=True):
                views[place] = view
        return views

    def take_in(
        self, array: StoredArray, held: Held, wanted: Wanted, read: Read
    ) -> memoryview | OpenForBoth | None:
        """The same, kept: where all of them lie at their offsets from here on.

        None where there may not be room for what is missing: nothing is read then.
        """
        there = held.kept.present[wanted.chunks]
        sizes = wanted.ranges[1][~there if wanted.asked is None else wanted.asked | ~there]
        if self.used_bytes + SPARE * (int(sizes.sum()) + PAGE * len(sizes)) > self.budget:
            return None
        for _ in self._read(held, there, wanted, read):
            pass
        return self.source(array, held) if held.kept.present[wanted.chunks].all() else None

    def _read(
        self, held: Held | None, there: np.ndarray, wanted: Wanted, read: Read
    ) -> Iterator[tuple[np.ndarray, list[Run]]]:
        """Read what was announced, then what is not there, and keep it: which chunks, in runs."""
        first = ~there if wanted.asked is None else wanted.asked
        for chosen in (first, ~there & ~first):
            if chosen.any():
                runs = read(wanted.ranges[0][chosen], wanted.ranges[1][chosen])
                if held is not None:
                    self.admit(held, runs)
                yield chosen, runs
        self.count(int(there.sum()), int((~there).sum()))

    def admit(self, held: Held, runs: Sequence[Run]) -> None:
        """Keep what was read, as far as there is room."""
        for (begin, data), chunks in zip(runs, held.within(runs), strict=True):
            end = begin + len(data)
            pages = slice(begin // PAGE, -(-end // PAGE))
            with self._lock:
                cost = PAGE * int(np.count_nonzero(~held.pages[pages]))
                if not self._room(cost, held):
                    continue
                held.pages[pages] = True
                held.used += cost
                self.used_bytes += cost
            try:
                held.kept.write(begin, data)
                if chunks.start < chunks.stop:
                    held.kept.mark(chunks, there=True)
            except FileNotFoundError:
                return  # another thread or process removed it
            except OSError as error:
                self._give_up(error)
                return

    def source(self, array: StoredArray, held: Held) -> memoryview | OpenForBoth | None:
        """What the loop in C reads of a shard; None where its file is gone."""
        try:
            return held.kept.source
        except OSError:
            self.drop(array)
            return None

    def drop(self, array: StoredArray) -> None:
        """Forget a shard: what was kept of it is not what was written."""
        with self._lock:
            held = self._shards.pop(array.name, None)
            if held is not None:
                held.kept.remove()
                self.used_bytes -= held.used

    def forget(self, array: StoredArray, chunks: np.ndarray) -> None:
        """Chunks turned out damaged: the next reading asks storage again."""
        held = self._shards.get(array.name)
        if held is not None:
            held.kept.mark(chunks, there=False)

    def count(self, hits: int, misses: int) -> None:
        """Count chunks that were there, and that were not."""
        with self._lock:
            self.hits += hits
            self.misses += misses

    def clear(self) -> None:
        """Let go of everything; files stay for the next to come."""
        with self._lock:
            self._shards.clear()
            self.used_bytes = 0

    def metrics(self) -> dict[str, float]:
        """Hits and misses in chunks, evictions in shards, and bytes in use."""
        return {
            "cache_hits": float(self.hits),
            "cache_misses": float(self.misses),
            "cache_evicted": float(self.evicted),
            "cache_bytes": float(self.used_bytes),
        }

    def _room(self, cost: int, wanting: Held) -> bool:
        """Whether so many bytes fit, after evictions where the policy has them."""
        if cost > self.budget:
            return False
        while self.policy == "lru" and self.used_bytes + cost > self.budget:
            name = next((k for k, held in self._shards.items() if held is not wanting), None)
            if name is None:
                return False
            evicted = self._shards.pop(name)
            evicted.kept.remove()
            self.used_bytes -= evicted.used
            self.evicted += 1
        return self.used_bytes + cost <= self.budget

    def _give_up(self, error: OSError) -> None:
        """Keep nothing more, and say so: what is wanted is read from storage."""
        self.budget = 0
        where, why = error.filename or "the cache", error.strerror or error
        remedy = "make room, or name another folder" if error.filename else "lower cache_bytes"
        warnings.warn(
            f"{where}: no more chunks can be kept ({why}), reading goes on without; {remedy}",
            CorpusWarning,
            stacklevel=3,
        )
