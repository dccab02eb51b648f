"""One array to one Zarr v3 shard: chunks in C order, then the index with its checksum."""

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import google_crc32c
import numpy as np

from mim3d.dataio.codec import ChunkCodec

ABSENT = np.uint64(2**64 - 1)


@dataclass(frozen=True)
class Shard:
    """An encoded shard as the parts to write one after the other."""

    parts: tuple[bytes, ...]
    sha256: str
    nbytes: int


def write_shard(voxels: np.ndarray, codec: ChunkCodec) -> Shard:
    """Encode a (c,) z, y, x array of any strides and byte order; chunks of zeros are left out."""
    parts: list[bytes] = []
    entries: list[tuple[int, int]] = []
    offset = 0
    digest = hashlib.sha256()
    for data in encoded_chunks(voxels, codec):
        if data == codec.empty:
            entries.append((int(ABSENT), int(ABSENT)))
            continue
        entries.append((offset, len(data)))
        parts.append(data)
        digest.update(data)
        offset += len(data)
    index = np.array(entries, "<u8").tobytes()
    index += struct.pack("<I", google_crc32c.value(index))
    digest.update(index)
    return Shard((*parts, index), digest.hexdigest(), offset + len(index))


def encoded_chunks(voxels: np.ndarray, codec: ChunkCodec) -> Iterator[bytes]:
    """Every chunk of the array in C order of the grid of chunks, encoded."""
    for volume in voxels if voxels.ndim == 4 else voxels[None]:
        sides = codec.chunk_shape[-3:]
        for z in range(0, volume.shape[0], sides[0]):
            for chunk in slab_chunks(volume[z : z + sides[0]], sides, codec.dtype):
                yield codec.encode(chunk)


def slab_chunks(slab: np.ndarray, sides: tuple[int, ...], dtype: str) -> np.ndarray:
    """Chunks (n, z, y, x) of a slab at most one chunk thick, zeros beyond the array's edge.

    Whole chunks are moved by one strided assignment, which is twice as fast as one per chunk.
    """
    depth, height, width = slab.shape
    ny, nx = -(-height // sides[1]), -(-width // sides[2])
    whole_y, whole_x = height // sides[1], width // sides[2]
    ragged = (depth, height, width) != (sides[0], ny * sides[1], nx * sides[2])
    make = np.zeros if ragged else np.empty
    chunks = make((ny, nx, *sides), dtype)
    for rows, columns in _regions(whole_y, ny, whole_x, nx):
        part = slab[
            :, rows.start * sides[1] : rows.stop * sides[1],
            columns.start * sides[2] : columns.stop * sides[2],
        ]  # fmt: skip
        n_rows, n_columns = len(rows), len(columns)
        high, wide = part.shape[1] // n_rows, part.shape[2] // n_columns
        target = chunks[rows.start : rows.stop, columns.start : columns.stop, :depth, :high, :wide]
        blocks = _split(part, n_rows, high, n_columns, wide)
        target[...] = blocks.transpose(1, 3, 0, 2, 4)
    return chunks.reshape(ny * nx, *sides)


def _regions(whole_y: int, ny: int, whole_x: int, nx: int) -> Iterator[tuple[range, range]]:
    """Whole chunks, and the ragged last row and column."""
    for rows in (range(whole_y), range(whole_y, ny)):
        for columns in (range(whole_x), range(whole_x, nx)):
            if rows and columns:
                yield rows, columns


def _split(part: np.ndarray, rows: int, high: int, columns: int, wide: int) -> np.ndarray:
    """View (z, rows, high, columns, wide) of (z, rows * high, columns * wide), never a copy."""
    sz, sy, sx = part.strides
    shape = (part.shape[0], rows, high, columns, wide)
    strides = (sz, sy * high, sy, sx * wide, sx)
    return np.lib.stride_tricks.as_strided(part, shape, strides, writeable=False)


def chunk_index(tail: bytes, n_chunks: int) -> np.ndarray:
    """Offsets and lengths (n, 2) from the last bytes of a shard; ValueError on a failed checksum.

    Absent chunks have length 0.
    """
    size = n_chunks * 16
    index, crc = tail[-size - 4 : -4], tail[-4:]
    if len(index) != size or google_crc32c.value(index) != struct.unpack("<I", crc)[0]:
        raise ValueError("the shard's index fails its crc32c checksum")
    table = np.frombuffer(index, "<u8").reshape(n_chunks, 2).copy()
    table[table[:, 1] == ABSENT] = 0
    return table


def n_chunks(shape: tuple[int, ...], chunk_shape: tuple[int, ...]) -> int:
    """Number of chunks that cover an array."""
    return prod(-(-size // side) for size, side in zip(shape, chunk_shape, strict=True))
