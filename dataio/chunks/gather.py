"""A volume cut into contiguous chunks, whatever its strides and byte order.

Two ways with equal results: a small loop in C (`native/chunks.c`) that gathers one row of
chunks after the other into memory that stays in the cache, and numpy where it is not built.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from mim3d.dataio.native.extension import chunk_loops

LOOP_ITEMSIZES = (1, 2, 4, 8)
GATHER_BYTES = 1 << 18
"""Of chunks gathered before they are given on: as many as one call encodes, still in the cache."""


def gathered_rows(volume: np.ndarray, sides: tuple[int, ...], dtype: str) -> Iterator[np.ndarray]:
    """Chunks of a (z, y, x) volume in C order of their grid, zeros beyond the volume's edge.

    They come as contiguous (n, z, y, x), rows of the grid, one or more at once. `dtype` is the
    volume's, in native byte order. A row is valid until the next is asked for: the memory is used
    again.
    """
    loop = chunk_loops()
    if loop is not None and fits_loop(volume):
        yield from loop_rows(loop, volume, sides, dtype)
        return
    for z in range(0, volume.shape[0], sides[0]):
        yield slab_chunks(volume[z : z + sides[0]], sides, dtype)


def fits_loop(volume: np.ndarray) -> bool:
    """Whether the loop in C takes a volume: any strides and byte order, voxels of up to 8 bytes."""
    return volume.dtype.itemsize in LOOP_ITEMSIZES and volume.size > 0


def loop_rows(
    loop: Any, volume: np.ndarray, sides: tuple[int, ...], dtype: str
) -> Iterator[np.ndarray]:
    """The same by the loop in C."""
    ny, nx = -(-volume.shape[1] // sides[1]), -(-volume.shape[2] // sides[2])
    row_bytes = nx * math.prod(sides) * volume.dtype.itemsize
    together = min(max(GATHER_BYTES // row_bytes, 1), ny)
    rows = np.empty((together, nx, *sides), dtype)
    chunks = rows.reshape(-1, *sides)
    swap = not volume.dtype.isnative
    for z in range(0, volume.shape[0], sides[0]):
        for first in range(0, ny, together):
            n = min(together, ny - first)
            for row in range(n):
                loop.gather(volume, z, (first + row) * sides[1], rows[row], swap)
            yield chunks[: n * nx]


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
