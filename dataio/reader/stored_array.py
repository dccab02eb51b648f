"""One array of a corpus as the reader uses it, and the chunks of a box in it."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from mim3d.dataio.chunks.boxes import box_chunks
from mim3d.dataio.corpus.chunk_table import ChunkTable
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.geometry import Triple

# 64-bit integers are narrowed by now; corpora made before hold some.
DTYPES = frozenset(["|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8"])


class Box(NamedTuple):
    """What tells the chunks of a box from those of others: row, first, last, and how many."""

    row: int
    first: int
    last: int
    n: int


@dataclass(frozen=True)
class StoredArray:
    """One row of the chunk table in Python types: cheaper to reuse than numpy records."""

    row: int
    dtype: np.dtype
    channels: int
    shape: Triple
    chunk: Triple
    first_chunk: int
    chunks_per_channel: int
    path: str
    nbytes: int
    sizes: np.ndarray | None
    """Stored bytes of all chunks, where the table has nothing else."""
    name: str = ""
    """What tells its shard from every other: one of the same name has the same bytes."""

    @cached_property
    def grid(self) -> Triple:
        """Chunks along z, y, x."""
        (z, y, x), (dz, dy, dx) = self.shape, self.chunk
        return -(-z // dz), -(-y // dy), -(-x // dx)

    def chunks(self, channel: int, start: Triple, size: Triple) -> np.ndarray:
        """Numbers in the array of the chunks of one channel that a box meets."""
        inside = box_chunks(self.shape, self.chunk, start, size)
        return inside + channel * self.chunks_per_channel

    def places(self, start: Triple, size: Triple) -> tuple[slice, slice, slice]:
        """The same as slices of the grid of chunks."""
        (z, y, x), (dz, dy, dx), (nz, ny, nx) = start, self.chunk, self.shape
        return (
            slice(max(z, 0) // dz, -(-min(z + size[0], nz) // dz)),
            slice(max(y, 0) // dy, -(-min(y + size[1], ny) // dy)),
            slice(max(x, 0) // dx, -(-min(x + size[2], nx) // dx)),
        )

    def place(self, chunk: int) -> str:
        """Where a chunk lies, in words."""
        channel, number = divmod(chunk, self.chunks_per_channel)
        z, y, x = (int(i) for i in np.unravel_index(number, self.grid))
        return f"c {channel}, z {z}, y {y}, x {x}"

    def box(self, channel: int, start: Triple, size: Triple) -> Box:
        """The box of one channel, which meets the array."""
        z, y, x = self.places(start, size)
        _, ny, nx = self.grid
        base = channel * self.chunks_per_channel
        first = base + (z.start * ny + y.start) * nx + x.start
        last = base + ((z.stop - 1) * ny + y.stop - 1) * nx + x.stop - 1
        n = (z.stop - z.start) * (y.stop - y.start) * (x.stop - x.start)
        return Box(self.row, first, last, n)

    def box_of(self, chunks: np.ndarray) -> Box:
        """The same of a box' chunks."""
        return Box(self.row, int(chunks[0]), int(chunks[-1]), len(chunks))


class Asked(NamedTuple):
    """Chunks, their offsets (uint64), sizes (int64, 0 where absent), and which were announced."""

    chunks: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    announced: np.ndarray | None = None

    def stored(self) -> "Wanted":
        """Those of them that are stored."""
        chosen = np.flatnonzero(self.sizes)
        ranges = self.offsets[chosen].astype(np.int64), self.sizes[chosen]
        asked = None if self.announced is None else self.announced[chosen]
        return Wanted(self, self.chunks[chosen], ranges, asked)


class Wanted(NamedTuple):
    """Chunks of a box that are stored, offsets and sizes (int64), and which were announced."""

    box: Asked
    chunks: np.ndarray
    ranges: tuple[np.ndarray, np.ndarray]
    asked: np.ndarray | None


class AskedBoxes:
    """What was announced and not read, by box."""

    def __init__(self) -> None:
        self._of: dict[Box, Asked] = {}

    def __contains__(self, box: Box) -> bool:
        return box in self._of

    def add(self, array: StoredArray, asked: Asked) -> None:
        """Remember it until it is taken."""
        self._of[array.box_of(asked.chunks)] = asked

    def take(self, array: StoredArray, chunks: np.ndarray) -> Asked | None:
        """What was announced of exactly these chunks, once."""
        asked = self._of.get(array.box_of(chunks)) if len(chunks) else None
        if asked is None or not np.array_equal(asked.chunks, chunks):  # others of the same ends
            return None
        return self._of.pop(array.box_of(chunks), None)

    def clear(self) -> None:
        """Forget all."""
        self._of.clear()


def stored_array(table: ChunkTable, row: int) -> StoredArray:
    """Describe row `row`; CorpusError where the table is damaged or its dtype is not known."""
    record = table.arrays[row]
    name = bytes(record["dtype"]).decode()
    dtype = np.dtype(name)
    if dtype.str not in DTYPES:
        raise CorpusError(f"{table.shard_path(row)}: dtype {name} is none of {sorted(DTYPES)}")
    shape, chunk = _triple(record["shape"]), _triple(record["chunk"])
    per_channel = int(np.prod([-(-n // c) for n, c in zip(shape, chunk, strict=True)]))
    channels = int(record["channels"])
    if per_channel * channels != int(record["n_chunks"]):
        raise CorpusError(
            f"{table.shard_path(row)}: the table has {record['n_chunks']} chunks, shape {shape} "
            f"with chunks of {chunk} and {channels} channels needs {per_channel * channels}"
        )
    first, n = int(record["first_chunk"]), per_channel * channels
    sizes = np.asarray(table.chunks)[first : first + n]
    path, nbytes = table.shard_path(row), int(record["shard_bytes"])
    return StoredArray(
        row,
        dtype,
        channels,
        shape,
        chunk,
        first,
        per_channel,
        path,
        nbytes,
        sizes if sizes.dtype.str in ("<u2", "<u4") else None,
        _name(table, record, path),
    )


def _name(table: ChunkTable, record: np.void, path: str) -> str:
    """The beginning of the shard's hash; tables without it have that of the whole manifest."""
    hashed = "shard" in (table.arrays.dtype.names or ()) and int(record["shard"])
    begins = f"{int(record['shard']):016x}" if hashed else f"{table.identity}/{path}"
    return f"{begins}/{int(record['shard_bytes'])}"


def _triple(values: np.ndarray) -> Triple:
    z, y, x = (int(value) for value in values)
    return z, y, x
