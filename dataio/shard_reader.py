"""Boxes of voxels straight from sharded Zarr: chunk table, preadv, checksum, decode into place.

No zarr-python here: the chunk table already holds every inner chunk's byte range, so a box costs
one read per run of neighbouring chunks and one decode per chunk.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from mim3d.dataio.chunk_boxes import BoxPlan, Triple, plan_box
from mim3d.dataio.chunk_decode import (
    IDENTITY,
    Affine,
    checked_frame,
    decode_frame,
    fill_crop,
    fits_compiled,
)
from mim3d.dataio.chunk_table import ChunkTable
from mim3d.dataio.errors import ChunkError, CorpusError
from mim3d.dataio.shard_files import LocalShards

DTYPES = frozenset(["|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<f2", "<f4", "<f8"])
NO_FLIP = (False, False, False)
T = TypeVar("T")


class Shards(Protocol):
    """Where compressed bytes come from: local files, an object store, or a cache before either."""

    def read(
        self, path: str, nbytes: int, offsets: list[int], sizes: list[int]
    ) -> list[np.ndarray]:
        """Ranges of one shard as uint8 arrays, valid until the calling thread reads again."""
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...


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


class ShardReader:
    """Reads boxes of any array of a corpus; safe for many threads.

    `read_s`, `decode_s` and `bytes_read` add up over all threads.
    """

    def __init__(self, table: ChunkTable, root: str | Path, shards: Shards | None = None) -> None:
        self.table = table
        self.shards: Shards = LocalShards(Path(root)) if shards is None else shards
        self.read_s = self.decode_s = 0.0
        self.bytes_read = 0
        self._offset = np.asarray(table.chunks)["offset"]
        self._nbytes = np.asarray(table.chunks)["nbytes"]
        self._arrays: dict[int, StoredArray] = {}
        self._local = threading.local()

    def array(self, row: int) -> StoredArray:
        """Describe array `row`; CorpusError where its dtype is none this reader knows."""
        known = self._arrays.get(row)
        if known is None:
            known = self._arrays[row] = _stored_array(self.table, row)
        return known

    def read_box(
        self,
        row: int,
        start: Triple,
        size: Triple,
        out: np.ndarray | None = None,
        *,
        fill: float = 0,
        flip: tuple[bool, bool, bool] = NO_FLIP,
        affine: Affine | None = None,
    ) -> np.ndarray:
        """Read `(c, z, y, x)` voxels of the box of `size` at `start` from array `row`.

        The box may overhang the volume; voxels outside get `fill`. `out` may be of another dtype
        (values are cast as numpy does) and any strides; without it the array's own dtype is
        used. `flip` mirrors the result along z, y, x; `affine` (float32 `out` only) applies to
        voxels and `fill` alike. Raises ChunkError for a damaged chunk.
        """
        array = self.array(row)
        if out is None:
            out = np.empty((array.channels, *size), array.dtype if affine is None else np.float32)
        elif out.shape != (array.channels, *size):
            raise ValueError(f"out has shape {out.shape}, the box {(array.channels, *size)}")
        if affine is not None and out.dtype != np.float32:
            raise ValueError(f"out has dtype {out.dtype}; with an affine it must be float32")
        z, y, x = (slice(None, None, -1 if mirrored else 1) for mirrored in flip)
        target = out[:, z, y, x] if any(flip) else out
        plan = plan_box(array.shape, array.chunk, start, size)
        if not plan.covers:
            out[...] = _through(affine, fill)
        for channel in range(array.channels):
            self._read_channel(array, channel, plan, target[channel], affine)
        return out

    def sizes(self, chunks: np.ndarray) -> np.ndarray:
        """Stored bytes of chunks (numbers in the table); 0 where absent."""
        return self._nbytes[chunks]

    def read_frames(
        self, array: StoredArray, chunks: list[int], parse: Callable[[np.ndarray, StoredArray], T]
    ) -> dict[int, T]:
        """What `parse` makes of the stored bytes of each chunk (numbers in the table).

        A ValueError of `parse` becomes a ChunkError that names the chunk.
        """
        began = time.perf_counter()
        sizes = [int(self._nbytes[chunk]) for chunk in chunks]
        offsets = [int(self._offset[chunk]) for chunk in chunks]
        views = self.shards.read(array.path, array.nbytes, offsets, sizes) if chunks else []
        parsed: dict[int, T] = {}
        for chunk, view in zip(chunks, views, strict=True):
            try:
                parsed[chunk] = parse(view, array)
            except ValueError as error:
                channel, place = divmod(chunk - array.first_chunk, array.chunks_per_channel)
                raise self._chunk_error(array, channel, place, error) from error
        self.read_s += time.perf_counter() - began
        self.bytes_read += sum(sizes)
        return parsed

    def close(self) -> None:
        """Close files and connections."""
        self.shards.close()

    def _read_channel(
        self,
        array: StoredArray,
        channel: int,
        plan: BoxPlan,
        target: np.ndarray,
        affine: Affine | None,
    ) -> None:
        if not plan.chunks:
            return
        began = time.perf_counter()
        ids = plan.ids + (array.first_chunk + channel * array.chunks_per_channel)
        sizes: list[int] = self._nbytes[ids].tolist()
        offsets: list[int] = self._offset[ids].tolist()
        stored = [i for i, nbytes in enumerate(sizes) if nbytes]
        if len(stored) < len(sizes):
            for i, nbytes in enumerate(sizes):
                if not nbytes:
                    target[plan.targets[i]] = _through(affine, 0.0)
            offsets, sizes = [offsets[i] for i in stored], [sizes[i] for i in stored]
        views = self.shards.read(array.path, array.nbytes, offsets, sizes) if stored else []
        read = time.perf_counter()
        self._decode(array, channel, plan, stored, views, target, affine)
        self.read_s += read - began
        self.decode_s += time.perf_counter() - read
        self.bytes_read += sum(sizes)

    def _decode(
        self,
        array: StoredArray,
        channel: int,
        plan: BoxPlan,
        members: list[int],
        views: list[np.ndarray],
        target: np.ndarray,
        affine: Affine | None,
    ) -> None:
        """Write chunks `members` of the plan, whose stored bytes are `views`, into the target."""
        frames: list[np.ndarray] = []
        done = 0
        try:
            frames.extend(map(checked_frame, views))
        except ValueError as error:
            damaged = plan.chunks[members[len(frames)]]
            raise self._chunk_error(array, channel, damaged, error) from error
        if affine is None and target.dtype == np.float32 != array.dtype:
            affine = IDENTITY
        try:
            if fits_compiled(array.dtype, target, affine):
                boxes = plan.boxes if len(members) == len(plan.chunks) else plan.boxes[members]
                done, valid = fill_crop(frames, boxes, target, array.chunk, array.dtype, affine)
                if not valid:
                    raise ValueError("its lz4 frame is not valid")
            scratch = self._scratch(array)
            while done < len(frames):
                decode_frame(frames[done], scratch)
                voxels = scratch[plan.sources[members[done]]]
                if affine is not None:
                    voxels = affine.apply(voxels.astype(np.float32))
                target[plan.targets[members[done]]] = voxels
                done += 1
        except ValueError as error:
            raise self._chunk_error(array, channel, plan.chunks[members[done]], error) from error

    def _scratch(self, array: StoredArray) -> np.ndarray:
        """One decoded chunk, per thread and per kind of array."""
        kept: dict[str, np.ndarray] = self._local.__dict__
        kind = f"{array.dtype.str} {array.chunk}"
        scratch = kept.get(kind)
        if scratch is None:
            scratch = kept[kind] = np.empty(array.chunk, array.dtype)
        return scratch

    def _chunk_error(
        self, array: StoredArray, channel: int, chunk: int, error: ValueError
    ) -> ChunkError:
        grid = [-(-n // c) for n, c in zip(array.shape, array.chunk, strict=True)]
        z, y, x = (int(i) for i in np.unravel_index(chunk, grid))
        volume = self.table.volume_id(int(self.table.arrays[array.row]["volume"]))
        return ChunkError(
            f"volume {volume}, shard {array.path}, chunk (c {channel}, z {z}, y {y}, x {x}): "
            f"{error}; run `mim3d verify`, then convert the volume again"
        )


def _through(affine: Affine | None, value: float) -> float:
    """One stored value as it comes out."""
    if affine is None:
        return value
    return float(affine.apply(np.array([value], np.float32))[0])


def _stored_array(table: ChunkTable, row: int) -> StoredArray:
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
    return StoredArray(
        row,
        dtype,
        channels,
        shape,
        chunk,
        int(record["first_chunk"]),
        per_channel,
        table.shard_path(row),
        int(record["shard_bytes"]),
    )


def _triple(values: np.ndarray) -> Triple:
    z, y, x = (int(value) for value in values)
    return z, y, x
