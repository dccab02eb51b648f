"""One array to one Zarr v3 shard: chunks in C order, then the index with its checksum."""

import hashlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import google_crc32c
import numpy as np

from mim3d.dataio.codec import ChunkCodec

CRC_BYTES = 4
ABSENT = np.uint64(2**64 - 1)


@dataclass(frozen=True)
class Shard:
    """An encoded shard as the parts to write one after the other; `sha256` as `shard_digest`."""

    parts: tuple[bytes, ...]
    sha256: str
    nbytes: int


def write_shard(voxels: np.ndarray, codec: ChunkCodec) -> Shard:
    """Encode a (c,) z, y, x array of any strides and byte order; chunks of zeros are left out."""
    parts: list[bytes] = []
    entries: list[tuple[int, int]] = []
    offset = 0
    for data in encoded_chunks(voxels, codec):
        if data == codec.empty:
            entries.append((int(ABSENT), int(ABSENT)))
            continue
        entries.append((offset, len(data)))
        parts.append(data)
        offset += len(data)
    index = np.array(entries, "<u8").tobytes()
    index += struct.pack("<I", google_crc32c.value(index))
    digest = shard_digest(index, [part[-CRC_BYTES:] for part in parts])
    return Shard((*parts, index), digest, offset + len(index))


def shard_digest(index: bytes, crcs: Sequence[bytes]) -> str:
    """SHA-256 of a shard's checksums: of its index, whole, and of each chunk's crc32c in order.

    Between them these cover every bit. A SHA-256 of the whole shard would say little more and take
    a quarter of the time that inflating and encoding take together.
    """
    return hashlib.sha256(index + b"".join(crcs)).hexdigest()


def checked_digest(data: bytes, n_chunks: int) -> str:
    """The digest worked out from a shard's content, not from the checksums stored in it.

    ValueError where the index is damaged or does not account for every byte.
    """
    table = chunk_index(data, n_chunks)
    crcs, end = [], 0
    for offset, nbytes in table.tolist():
        if nbytes:
            if offset != end or nbytes <= CRC_BYTES:
                raise ValueError("the shard's index leaves bytes out")
            end = offset + nbytes
            crc = google_crc32c.value(data[offset : end - CRC_BYTES])
            if data[end - CRC_BYTES : end] != struct.pack("<I", crc):
                return ""
            crcs.append(struct.pack("<I", crc))
    index = data[end:]
    if len(index) != n_chunks * 16 + CRC_BYTES:
        raise ValueError("the shard's index leaves bytes out")
    return shard_digest(index, crcs)


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
    slab = forward_rows(slab)
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
        blocks = _split(part, n_rows, high, n_columns, wide).transpose(1, 3, 0, 2, 4)
        _move(blocks, target)
    return chunks.reshape(ny * nx, *sides)


def forward_rows(slab: np.ndarray) -> np.ndarray:
    """The slab with x running forward in memory; unchanged where that takes more than a reversal.

    Radiological files run right to left. Reversing the slab's memory as one run, eight bytes at a
    time, is ten times as fast as copying row by row against the stride; the other two axes, turned
    by that too, are turned back in the view.
    """
    unflipped = slab[tuple(slice(None, None, -1 if step < 0 else None) for step in slab.strides)]
    if slab.strides[2] >= 0 or not unflipped.flags.c_contiguous:
        return slab
    back = reversed_run(unflipped.reshape(-1)).reshape(slab.shape)
    return back[
        slice(None, None, -1 if slab.strides[0] > 0 else None),
        slice(None, None, -1 if slab.strides[1] > 0 else None),
    ]


def reversed_run(flat: np.ndarray) -> np.ndarray:
    """A one-dimensional array in reverse order, a copy; its byte order may be the other one."""
    if flat.itemsize > 2 or flat.nbytes % 8:
        return np.ascontiguousarray(flat[::-1])
    words = np.empty(flat.nbytes // 8, "<u8")
    words[...] = flat.view(">u8")[::-1]
    # All eight bytes are swapped, so those of each voxel are too.
    return words.view(flat.dtype.newbyteorder("S"))


def _move(blocks: np.ndarray, target: np.ndarray) -> None:
    """Copy (rows, columns, z, y, x) blocks, each row of a chunk as one item where it is one."""
    forward = blocks.strides[-1] == target.strides[-1] == blocks.itemsize
    if blocks.dtype != target.dtype or not forward:
        target[...] = blocks
        return
    np.asarray(_Rows(target))[...] = np.asarray(_Rows(blocks))


class _Rows:
    """(..., x) voxels, contiguous along x, seen as one opaque item per row, without a copy."""

    def __init__(self, voxels: np.ndarray) -> None:
        self._voxels = voxels
        self.__array_interface__ = voxels.__array_interface__ | {
            "shape": voxels.shape[:-1],
            "strides": voxels.strides[:-1],
            "typestr": f"|V{voxels.shape[-1] * voxels.itemsize}",
            "descr": [("", f"|V{voxels.shape[-1] * voxels.itemsize}")],
        }


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
