"""Crops from the box of their volume that they lie in, on a CPU: compiled, or the same in numpy.

An image's voxel is blended from its eight neighbours, a label's is the nearest one's: each once,
from what is stored, whatever the crop's rotation, zoom and flips are together. On a GPU
`kernels.resample` does the same. Positions are float64, voxels float32.
"""

from collections.abc import Sequence

import numpy as np

from mim3d.dataio.native.extension import view_loops
from mim3d.dataio.transforms.placement import Placement


def resample_image(box: np.ndarray, at: Placement, fill: Sequence[float], out: np.ndarray) -> None:
    """Fill `out` (c, z, y, x) float32 from the box's voxels (c, z, y, x) float32; `fill` one of
    each channel, for what lies outside the volume."""
    fills = np.asarray(fill, np.float32)
    if at.is_empty:
        out[...] = fills[:, None, None, None]
        return
    loops = view_loops()
    if loops is None:
        out[...] = image_of(box, at, fills, out.shape)
    else:
        loops.place(box, _placing(at), fills, out)


def resample_label(box: np.ndarray, at: Placement, out: np.ndarray) -> None:
    """The same of a label (z, y, x) from its box (z, y, x), 0 outside the volume."""
    if at.is_empty:
        out[...] = 0
        return
    loops = view_loops()
    if loops is None:
        out[...] = label_of(box, at, out.shape)
    else:
        loops.place(box[None], _placing(at), None, out[None])


def image_of(
    box: np.ndarray, at: Placement, fill: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """The same bits in numpy."""
    places, inside = _positions(at, shape[1:])
    ends, shares = [], []
    for place, n in zip(places, box.shape[1:], strict=True):
        below = np.floor(place)
        ends.append((_within(below, n), _within(below + 1, n)))
        shares.append((place - below).astype(np.float32))
    along_z, along_y, along_x = shares
    planes = []
    for z in ends[0]:
        rows = []
        for y in ends[1]:
            first, second = (box[:, z, y, x] for x in ends[2])
            rows.append(first + along_x * (second - first))
        planes.append(rows[0] + along_y * (rows[1] - rows[0]))
    values = planes[0] + along_z * (planes[1] - planes[0])
    return np.where(inside, values, fill[:, None, None, None])


def label_of(box: np.ndarray, at: Placement, shape: tuple[int, ...]) -> np.ndarray:
    """The same label in numpy."""
    places, inside = _positions(at, shape)
    z, y, x = (
        _within(np.floor(place + 0.5), n) for place, n in zip(places, box.shape, strict=True)
    )
    return np.where(inside, box[z, y, x], box.dtype.type(0))


def _placing(at: Placement) -> tuple[tuple[float, ...], ...]:
    low, high = at.extent.tolist()
    return tuple(at.within_box.ravel().tolist()), tuple(low), tuple(high)


def _positions(at: Placement, shape: tuple[int, ...]) -> tuple[list[np.ndarray], np.ndarray]:
    """Where the crop's voxels lie in the box along z, y, x, and which lie in the volume."""
    z, y, x = (np.asarray(axis, np.float64) for axis in np.indices(shape))
    places, inside = [], np.ones(shape, bool)
    for (by_z, by_y, by_x, first), low, high in zip(at.within_box, *at.extent, strict=True):
        place = by_z * z + by_y * y + first + by_x * x
        places.append(place)
        inside &= (place >= low) & (place < high)
    return places, inside


def _within(index: np.ndarray, n: int) -> np.ndarray:
    return np.clip(index, 0, n - 1).astype(np.int64)
