"""Boxes of voxels straight from sharded Zarr: chunk table, pread, checksum, decode into place.

No zarr-python here: the chunk table already holds every inner chunk's byte range, so a box costs
one call of the loop in C, with one read per run of neighbouring chunks. zstd, dtypes it does
not know, and a package without it go chunk by chunk through numcodecs.
"""

import os
import threading
import time
from collections.abc import Sequence
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mim3d.dataio.chunks.boxes import plan_box
from mim3d.dataio.chunks.decode import (
    BAD_CRC,
    CAST_TARGETS,
    DONE,
    IDENTITY,
    IO_ERROR,
    SHORT_FILE,
    UNSUPPORTED,
    Decoded,
    Rescale,
    Stored,
    as_written,
    checked_frame,
    decode_frame,
    fits_loop,
    read_crop,
    to_bfloat16,
)
from mim3d.dataio.corpus.chunk_table import ChunkTable
from mim3d.dataio.errors import ChunkError, CorpusError
from mim3d.dataio.geometry import Triple
from mim3d.dataio.reader.chunk_cache import ChunkCache, Held
from mim3d.dataio.reader.kept_shard import OpenForBoth
from mim3d.dataio.reader.local_shards import LocalShards, OpenFile, cut_short, mending
from mim3d.dataio.reader.shards import Shards, sliced
from mim3d.dataio.reader.stored_array import Asked, AskedBoxes, StoredArray, Wanted, stored_array

Flip = tuple[bool, bool, bool]


class Request(NamedTuple):
    """One crop: a row of `arrays`, its first voxel, flips, and per channel intensities and the
    stored padding."""

    row: int
    start: Triple
    flip: Flip
    rescale: tuple[Rescale, ...] | None
    fill: tuple[float, ...]


NO_FLIP = (False, False, False)
NOTHING = np.empty(0, np.uint8)
KNOWN_ARRAYS = 1 << 14


class ShardReader:
    """Reads boxes of any array of a corpus; safe for many threads.

    `shards` is where bytes come from, `cache` what keeps them. `read_s`, `decode_s` and
    `bytes_read` add up over all threads.
    """

    def __init__(
        self,
        table: ChunkTable,
        root: str | Path,
        shards: Shards | None = None,
        cache: ChunkCache | None = None,
    ) -> None:
        self.table, self.cache = table, cache
        self.shards: Shards = LocalShards(Path(root)) if shards is None else shards
        if table.identity:
            self.shards.watch(table)
        self.read_s = self.decode_s = 0.0
        self.bytes_read = 0
        self._arrays: dict[int, StoredArray] = {}
        self._by_chunk: set[int] = set()
        self._asked = AskedBoxes()
        self._local = threading.local()

    def array(self, row: int) -> StoredArray:
        """Describe array `row`; CorpusError where its dtype is none this reader knows, or the
        sizes of its chunks in the table are damaged."""
        known = self._arrays.get(row)
        if known is None:
            if len(self._arrays) >= KNOWN_ARRAYS:  # 0.9 KB each; a million would be most of a rank
                self._arrays.clear()
                self._by_chunk.clear()
            self.table.check_sizes(row)
            known = self._arrays[row] = stored_array(self.table, row)
        return known

    def read_box(
        self,
        row: int,
        start: Triple,
        size: Triple,
        out: np.ndarray | None = None,
        *,
        fill: float | Sequence[float] = 0,
        flip: tuple[bool, bool, bool] = NO_FLIP,
        rescale: Rescale | Sequence[Rescale] | None = None,
    ) -> np.ndarray:
        """Read `(c, z, y, x)` voxels of the box of `size` at `start` from array `row`.

        The box may overhang the volume; voxels outside get `fill`. `out` may be of another dtype
        (values are cast as numpy does) and any strides; without it the array's own dtype is
        used. `flip` mirrors the result along z, y, x; `rescale` applies to voxels and `fill` alike,
        and needs `out` in float32, or in uint16 for bfloat16. `fill` and `rescale` are one for all
        channels, or one for each. Raises ChunkError for a damaged chunk.
        """
        array = self.array(row)
        if out is None:
            out = np.empty((array.channels, *size), array.dtype if rescale is None else np.float32)
        elif out.shape != (array.channels, *size):
            raise ValueError(f"out has shape {out.shape}, the box {(array.channels, *size)}")
        if rescale is not None and out.dtype not in CAST_TARGETS:
            raise ValueError(f"out has dtype {out.dtype}; with a rescale it must be float32")
        z, y, x = (slice(None, None, -1 if mirrored else 1) for mirrored in flip)
        target = out[:, z, y, x] if any(flip) else out
        (low_z, low_y, low_x), (nz, ny, nx) = start, array.shape
        high_z, high_y, high_x = low_z + size[0], low_y + size[1], low_x + size[2]
        rescales = _each(rescale, Rescale, array)
        if min(low_z, low_y, low_x) < 0 or high_z > nz or high_y > ny or high_x > nx:
            fills = _each(fill, Real, array)
            for channel in range(array.channels):
                out[channel] = as_written(rescales[channel], fills[channel], out.dtype)
            if low_z >= nz or low_y >= ny or low_x >= nx or min(high_z, high_y, high_x) <= 0:
                return out
        if rescale is None and out.dtype == np.float32 != array.dtype:
            rescales = (IDENTITY,) * array.channels
        for channel in range(array.channels):
            self._read_channel(array, channel, start, target[channel], rescales[channel])
        return out

    def close(self) -> None:
        """Close files and connections, and let go of what was kept in memory."""
        self.shards.close()
        if self.cache is not None:
            self.cache.clear()

    def metrics(self) -> dict[str, float]:
        """What was kept, and what was asked of a store."""
        kept = {} if self.cache is None else self.cache.metrics()
        return {**kept, **self.shards.metrics()}

    def announce(self, row: int, start: Triple, size: Triple) -> None:
        """Have the chunks of a box fetched that will be read; what is wrong is told by reading."""
        try:
            array = self.array(row)
            for channel in range(array.channels):
                self.announce_chunks(array, array.chunks(channel, start, size))
        except CorpusError:
            return

    def announce_chunks(self, array: StoredArray, chunks: np.ndarray) -> None:
        """The same of chunks that `stored` will be asked for."""
        if not len(chunks) or array.box_of(chunks) in self._asked:
            return  # under way already: asking for what has come in since would orphan the rest
        offsets, sizes = self._ranges(array, chunks)
        wanted = sizes > 0
        held = self._held(array)
        if held is not None:
            wanted &= ~held.kept.present[chunks]
        if wanted.any():
            self._asked.add(array, Asked(chunks, offsets, sizes, wanted))
            self.shards.announce(array.path, offsets[wanted].astype(np.int64), sizes[wanted])

    def withdraw(self) -> None:
        """What was announced and not read will not be."""
        self._asked.clear()
        self.shards.withdraw()

    def stored(self, array: StoredArray, chunks: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Those of `chunks` (ascending numbers in the array) that are stored, and their bytes."""
        wanted = self._wanted(array, chunks)
        return wanted.chunks, self._views(array, wanted)

    def _fetched(self, array: StoredArray, chunks: np.ndarray) -> Stored:
        """Chunks that nothing has at their offsets as yet, as the loop in C takes them."""
        wanted = self._wanted(array, chunks)
        if not len(wanted.chunks):
            return Stored([NOTHING] * len(chunks))
        read, held = partial(self.shards.runs, array.path, array.nbytes), self._held(array)
        at = wanted.box.sizes, 0, wanted.box.offsets
        if self.cache is None:
            runs = read(*wanted.ranges)
            begins = np.array([begin for begin, _ in runs], np.uint64)
            return Stored(([data for _, data in runs], begins), *at)
        source = None if held is None else self.cache.take_in(array, held, wanted, read)
        if source is not None:
            return Stored(source, *at)
        frames = [NOTHING] * len(chunks)
        places = np.flatnonzero(wanted.box.sizes).tolist()
        for place, view in zip(places, self._views(array, wanted), strict=True):
            frames[place] = view
        return Stored(frames)

    def _views(self, array: StoredArray, wanted: Wanted) -> list[np.ndarray]:
        """Bytes of each chunk."""
        read = partial(self.shards.runs, array.path, array.nbytes)
        if not len(wanted.chunks):
            return []
        if self.cache is None:
            return sliced(read(*wanted.ranges), *wanted.ranges)
        return self.cache.through(self._held(array), wanted, read)

    def _wanted(self, array: StoredArray, chunks: np.ndarray) -> Wanted:
        """What is to be read of a box, which is counted, as it was announced if it was."""
        asked = self._asked.take(array, chunks) or Asked(chunks, *self._ranges(array, chunks))
        self.bytes_read += int(asked.sizes.sum())
        return asked.stored()

    def _held(self, array: StoredArray) -> Held | None:
        """The array in the cache, which begins to keep it if it did not; None without room."""
        if self.cache is None:
            return None
        return self.cache.find(array) or self.cache.hold(array, *self.table.ranges(array.row))

    def _ranges(self, array: StoredArray, chunks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Offsets and sizes of chunks, ascending numbers in the array."""
        offsets, sizes = self.table.ranges(array.row, int(chunks[-1]) + 1 if len(chunks) else 0)
        return offsets[chunks], sizes[chunks]

    def _read_channel(
        self,
        array: StoredArray,
        channel: int,
        start: Triple,
        target: np.ndarray,
        rescale: Rescale | None,
    ) -> None:
        began = time.perf_counter()
        done = None
        if array.row not in self._by_chunk and fits_loop(array.dtype, target, rescale):
            done = self._read_by_loop(array, channel, start, target, rescale)
        if done is None:
            self._by_chunk.add(array.row)
            read_s = self._read_by_chunk(array, channel, start, target, rescale)
        else:
            read_s = done.read_ns / 1e9
        self.read_s += read_s
        self.decode_s += time.perf_counter() - began - read_s

    def _read_by_loop(
        self,
        array: StoredArray,
        channel: int,
        start: Triple,
        target: np.ndarray,
        rescale: Rescale | None,
        *,
        again: bool = True,
    ) -> Decoded | None:
        """Fill the target by the loop in C; None where a frame is not of lz4.

        Bytes that fail their checksum only once, as a network may garble them, are read `again`.
        """
        grid = array.shape, array.chunk, start
        first = channel * array.chunks_per_channel
        file = self._whole(array, channel, start, _size(target))
        if file is not None:
            source = file if isinstance(file, memoryview) else file.fd
            if array.sizes is not None:
                stored = Stored(source, array.sizes, first)
            else:
                offsets, sizes = self._ranges(array, array.chunks(channel, start, _size(target)))
                stored = Stored(source, sizes, offsets=offsets)
            done = read_crop(stored, grid, target, array.dtype, rescale)
            self.bytes_read += done.nbytes
        else:
            began = time.perf_counter()
            stored = self._fetched(array, array.chunks(channel, start, _size(target)))
            waited = int((time.perf_counter() - began) * 1e9)
            done = read_crop(stored, grid, target, array.dtype, rescale)
            done = done._replace(read_ns=waited)
        if done.code == DONE:
            return done
        if done.code == UNSUPPORTED:
            return None
        if self.cache is not None and file is not None and again:
            self.cache.drop(array)  # whatever befell what was kept: storage is asked
            return self._read_by_loop(array, channel, start, target, rescale, again=False)
        if done.code == IO_ERROR:
            raise CorpusError(f"{self._file(array)}: cannot be read: {os.strerror(done.detail)}")
        if done.code == SHORT_FILE:
            raise cut_short(self._file(array), done.detail, array.nbytes, self.table.root)
        number = int(array.chunks(channel, start, _size(target))[done.chunk])
        problem = self._damage(array, number)
        if problem is None and done.code == BAD_CRC and again:
            return self._read_by_loop(array, channel, start, target, rescale, again=False)
        raise self.chunk_error(array, number, problem or ValueError("its lz4 frame is not valid"))

    def _whole(
        self, array: StoredArray, channel: int, start: Triple, size: Triple
    ) -> OpenFile | OpenForBoth | memoryview | None:
        """A file or memory that has all chunks of a box at their offsets, if there is one."""
        cache = self.cache
        if cache is None:
            return self.shards.open_file(array.path, array.nbytes)
        held = cache.find(array)
        if held is None or not held.covers(array, channel, start, size):
            return None
        key = array.box(channel, start, size)
        if key in self._asked:  # what is under way for it is to be taken in
            return None
        cache.count(key.n, 0)
        return cache.source(array, held)

    def _damage(self, array: StoredArray, chunk: int) -> ValueError | None:
        """What the checksum finds wrong with a chunk's bytes, asked for anew; None: nothing."""
        self._forget(array, chunk)
        _, (stored,) = self.stored(array, np.array([chunk]))
        try:
            checked_frame(stored)
        except ValueError as error:
            return error
        return None

    def _forget(self, array: StoredArray, chunk: int) -> None:
        """Have no cache keep a chunk that is damaged: storage may hold, or get, a sound one."""
        if self.cache is not None:
            self.cache.forget(array, np.array([chunk]))

    def _read_by_chunk(
        self,
        array: StoredArray,
        channel: int,
        start: Triple,
        target: np.ndarray,
        rescale: Rescale | None,
    ) -> float:
        """Fill the target by numcodecs and numpy; seconds of it spent reading."""
        chunks = array.chunks(channel, start, _size(target))
        plan = plan_box(array.shape, array.chunk, start, _size(target))
        began = time.perf_counter()
        present, views = self.stored(array, chunks)
        read_s = time.perf_counter() - began
        stored = dict(zip(present.tolist(), views, strict=True))
        scratch = self._scratch(array)
        for number, source, place in zip(chunks.tolist(), plan.sources, plan.targets, strict=True):
            if number not in stored:
                target[place] = as_written(rescale, 0.0, target.dtype)
                continue
            try:
                decode_frame(checked_frame(stored[number]), scratch)
            except ValueError as error:
                raise self.chunk_error(array, number, error) from error
            voxels = scratch[source]
            if rescale is not None:
                voxels = rescale.apply(voxels.astype(np.float32))
                if target.dtype == np.uint16:
                    voxels = to_bfloat16(voxels)
            target[place] = voxels
        return read_s

    def _scratch(self, array: StoredArray) -> np.ndarray:
        """One decoded chunk, per thread and per kind of array."""
        kept: dict[str, np.ndarray] = self._local.__dict__
        kind = f"{array.dtype.str} {array.chunk}"
        scratch = kept.get(kind)
        if scratch is None:
            scratch = kept[kind] = np.empty(array.chunk, array.dtype)
        return scratch

    def _file(self, array: StoredArray) -> Path:
        return Path(self.table.root) / array.path

    def chunk_error(self, array: StoredArray, chunk: int, error: ValueError) -> ChunkError:
        """The error that names a damaged chunk, which no cache keeps from here on."""
        self._forget(array, chunk)
        volume = self.table.volume_id(int(self.table.arrays[array.row]["volume"]))
        return ChunkError(
            f"volume {volume}, shard {array.path}, chunk ({array.place(chunk)}): "
            f"{error}; {mending(self.table.root)}"
        )


def _each(given: Any, one: Any, array: StoredArray) -> Sequence[Any]:
    """What is given for every channel: one for each, or one for all."""
    if given is None or isinstance(given, one):
        return (given,) * array.channels
    if len(given) != array.channels:
        raise ValueError(f"{len(given)} intensities are given for {array.channels} channels")
    return given


def _size(target: np.ndarray) -> Triple:
    z, y, x = target.shape
    return z, y, x
