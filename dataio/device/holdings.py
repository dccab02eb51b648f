"""What stays on the device: chunks as they are stored, or their voxels.

Both are written and read on the side lane alone, in the order in which its work was queued: what is
known to be there by the host is there when later work of the lane comes to it.
"""

import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mim3d.dataio.corpus.chunk_table import ChunkTable
from mim3d.dataio.device.inflate import Inflate
from mim3d.dataio.device.lanes import Lanes
from mim3d.dataio.device.streams import ALIGN, Streams, StreamTable, packed_room


class Holding(ABC):
    """Chunks that stay; `find` may be called on any thread, `decoded` by one at a time."""

    def __init__(self, inflate: Inflate) -> None:
        self.inflate = inflate
        self._used = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._used

    @abstractmethod
    def find(self, chunks: np.ndarray, chunk_bytes: int) -> tuple[np.ndarray, Streams]:
        """Which of the chunks (numbers in the table) are held, (n,) bool, and their streams."""

    @abstractmethod
    def decoded(
        self, known: np.ndarray, held: Streams, fresh: Streams, buffer: Tensor, chunk_bytes: int
    ) -> tuple[Tensor, np.ndarray]:
        """Decode a batch's chunks: rows (m, chunk_bytes) uint8, still shuffled, and each one's row.

        `known` and `held` are what `find` said of them, `fresh` the others' streams in `buffer`.
        """


class HeldChunks(Holding):
    """Compressed chunks in `room` bytes, decoded for each batch.

    Chunks stay once they are in (an epoch is a scan: dropping for newer ones would never hit).
    """

    def __init__(self, table: ChunkTable, room: int, inflate: Inflate, lanes: Lanes) -> None:
        super().__init__(inflate)
        room = max(min(room, corpus_room(table)), ALIGN)
        with lanes.side():  # whose memory it is: freed, it is not used before its work is done
            self.arena = torch.empty(room, dtype=torch.uint8, device=lanes.device)
        self._table = StreamTable(len(table.chunks))

    def find(self, chunks: np.ndarray, chunk_bytes: int) -> tuple[np.ndarray, Streams]:
        """Held chunks' streams lie in the arena."""
        with self._lock:
            known = self._table.has(chunks)
            return known, self._table.find(chunks[known])

    def decoded(
        self, known: np.ndarray, held: Streams, fresh: Streams, buffer: Tensor, chunk_bytes: int
    ) -> tuple[Tensor, np.ndarray]:
        """Rows of a batch's own, each decoded into."""
        self._admit(fresh, buffer)
        size = max(len(known), 1), chunk_bytes
        rows = torch.empty(size, dtype=torch.uint8, device=buffer.device)
        inflate_into(self.inflate, fresh, buffer, rows, np.flatnonzero(~known))
        inflate_into(self.inflate, held, self.arena, rows, np.flatnonzero(known))
        return rows, np.arange(len(known))

    def _admit(self, fresh: Streams, buffer: Tensor) -> None:
        """Keep what came in, as far as the room goes: all chunks of the buffer or none."""
        n = len(buffer)
        if not len(fresh.chunks) or self._used + n > len(self.arena):
            return
        # Of two batches on their way with a chunk in common only the first is kept: the next
        # one that is fetched brings what is missing yet, and nothing is kept twice.
        if self._table.has(fresh.chunks).any():
            return
        # Taken before it is told of: a Ctrl-C in between leaves no chunk to be written over.
        begin, self._used = self._used, self._used + -(-n // ALIGN) * ALIGN
        self.arena[begin : begin + n].copy_(buffer)
        with self._lock:
            self._table.add(fresh, begin)


@dataclass(frozen=True)
class VoxelPlaces:
    """A row for each stored chunk that may be drawn, among those of its size.

    `counts` says how many rows of how many bytes there are, `numbers` (all chunks of the table) one
    more than each chunk's row, 0 for chunks that are never drawn.
    """

    counts: dict[int, int]
    numbers: np.ndarray

    def of(self, chunks: np.ndarray) -> np.ndarray:
        """Rows of chunks."""
        return self.numbers[chunks] - 1

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return sum(nbytes * n for nbytes, n in self.counts.items())


class HeldVoxels(Holding):
    """Decoded chunks, each decoded once, where `places` puts them: there is room for all."""

    def __init__(self, places: VoxelPlaces, inflate: Inflate, lanes: Lanes) -> None:
        super().__init__(inflate)
        self.places = places
        with lanes.side():  # whose memory it is: freed, it is not used before its work is done
            self.arenas = {
                nbytes: torch.empty((max(n, 1), nbytes), dtype=torch.uint8, device=lanes.device)
                for nbytes, n in places.counts.items()
            }
        self._layouts = {nbytes: np.zeros((n, 2), np.int64) for nbytes, n in places.counts.items()}
        self._held = np.zeros(len(places.numbers), bool)

    def find(self, chunks: np.ndarray, chunk_bytes: int) -> tuple[np.ndarray, Streams]:
        """Held chunks have no streams any more: only how they are shuffled is told."""
        with self._lock:
            known = self._held[chunks]
        held = chunks[known]
        layouts = self._layouts[chunk_bytes][self.places.of(held)]
        nothing = np.zeros(len(held), np.int64), np.empty((0, 4), np.int64)
        return known, Streams("", held, layouts, *nothing)

    def decoded(
        self, known: np.ndarray, held: Streams, fresh: Streams, buffer: Tensor, chunk_bytes: int
    ) -> tuple[Tensor, np.ndarray]:
        """The arena itself, in which what is fresh is decoded where it stays.

        A chunk that another batch brought meanwhile is decoded once more, to the same bytes.
        """
        arena, rows = self.arenas[chunk_bytes], np.empty(len(known), np.int64)
        rows[known], rows[~known] = self.places.of(held.chunks), self.places.of(fresh.chunks)
        self._layouts[chunk_bytes][rows[~known]] = fresh.layouts
        inflate_into(self.inflate, fresh, buffer, arena, rows[~known])
        with self._lock:  # queued by now: whatever reads these rows is queued behind it
            self._used += int((~self._held[fresh.chunks]).sum()) * chunk_bytes
            self._held[fresh.chunks] = True
        return arena, rows


def voxel_places(table: ChunkTable, arrays: np.ndarray) -> VoxelPlaces:
    """Places for the chunks of `arrays`, rows of the table's; absent chunks have none."""
    numbers = np.zeros(len(table.chunks), np.int64)
    counts: dict[int, int] = {}
    drawn = np.asarray(table.arrays)[np.unique(arrays)]
    sizes = chunk_bytes_of(drawn)
    for nbytes in np.unique(sizes).tolist():
        alike = drawn[sizes == nbytes]
        n = alike["n_chunks"].astype(np.int64)
        first = alike["first_chunk"].astype(np.int64)
        chunks = np.repeat(first - (np.cumsum(n) - n), n) + np.arange(n.sum())
        stored = chunks[table.sizes(chunks) > 0]
        numbers[stored] = 1 + np.arange(len(stored))
        counts[nbytes] = len(stored)
    return VoxelPlaces(counts, numbers)


def chunk_bytes_of(arrays: np.ndarray) -> np.ndarray:
    """Bytes of a decoded chunk of each of these rows of the table's arrays; (n,) int64."""
    return arrays["chunk"].astype(np.int64).prod(axis=1) * itemsizes_of(arrays)


def itemsizes_of(arrays: np.ndarray) -> np.ndarray:
    """Bytes of a voxel of each; (n,) int64."""
    # As integers: many times as fast as of bytes.
    kinds, which = np.unique(arrays["dtype"].view("<u8"), return_inverse=True)
    sizes = [np.dtype(kind.decode()).itemsize for kind in kinds.view("S8")]
    return np.array(sizes, np.int64)[which]


def inflate_into(
    inflate: Inflate, streams: Streams, source: Tensor, rows: Tensor, places: np.ndarray
) -> None:
    """Decode every stream of `source` into its chunk's row of `rows`, in one call."""
    if not len(streams.rows):
        return
    offset, nbytes, at, size = streams.rows.T
    target = rows.data_ptr() + places[streams.owners] * rows.shape[1] + at
    inflate(streams.codec, np.stack([source.data_ptr() + offset, nbytes, size, target]))


def corpus_room(table: ChunkTable) -> int:
    """Bytes that all chunks of a corpus may take when resident: a larger arena would stay empty."""
    arrays = np.asarray(table.arrays)
    chunk_bytes, itemsize = int(chunk_bytes_of(arrays).max()), int(itemsizes_of(arrays).max())
    chunks, stored = int(arrays["n_chunks"].sum()), int(arrays["shard_bytes"].sum())
    # Each buffer that is kept begins anew at ALIGN, and holds a chunk at least.
    return packed_room(chunks, stored, chunk_bytes, itemsize) + chunks * ALIGN
