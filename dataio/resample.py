"""Resampling to a voxel size: images anti-aliased, labels by the class that fills a voxel most.

scipy's filters and splines, but never of a whole volume at once: an image is resampled plane by
plane and then along z, which for separable filters is the same, and a label slab by slab. So one
float32 volume is held where a dozen would be.
"""

from math import ceil, prod
from typing import Any

import numpy as np

from mim3d.dataio.errors import SourceError
from mim3d.dataio.grid import Grid

CUBIC = 3
# Beyond this many classes a smoothed indicator per class costs too much; nearest is used.
MAX_INDICATORS = 64
BLOCK_VOXELS, SLAB_VOXELS = 1 << 18, 1 << 19  # held several times over, in float32
TRUNCATE = 4.0  # a Gaussian's radius in sigmas, scipy's default


def resampled_grid(grid: Grid, spacing_mm: tuple[float, float, float]) -> Grid:
    """The grid of that voxel size that covers the same box, edge to edge, to half a voxel."""
    z, y, x = (
        max(1, round(size * old / new))
        for size, old, new in zip(grid.shape, grid.spacing_mm, spacing_mm, strict=True)
    )
    factors = np.array(spacing_mm) / np.array(grid.spacing_mm)
    affine = grid.affine.copy()
    affine[:3, :3] *= factors[::-1]
    affine[:3, 3] += grid.affine[:3, :3] @ ((factors[::-1] - 1) / 2)
    return Grid((z, y, x), affine)


def check_size(grid: Grid, channels: int, budget: int, path: str) -> None:
    """SourceError over-budget where float32 voxels of the new grid would not fit."""
    nbytes = 4 * channels * prod(grid.shape)
    if nbytes > budget:
        detail = f"resampled to {grid.shape[::-1]} it takes {nbytes} bytes, over {budget}"
        raise SourceError("over-budget", path, f"{detail} (--byte-budget)")


def resample_image(
    voxels: np.ndarray, old: Grid, new: Grid, slope: float = 1.0, intercept: float = 0.0
) -> np.ndarray:
    """Cubic interpolation of (z, y, x) in float32 after a Gaussian where voxels grow.

    Real values are slope * voxel + intercept. The Gaussian's sigma is (factor - 1) / 2 old voxels,
    as in scikit-image's anti-aliasing; overshoot of the cubic is clipped to the source's range.
    """
    return resample_channels(voxels[None], old, new, slope, intercept)[0]


def resample_channels(
    stack: np.ndarray, old: Grid, new: Grid, slope: float, intercept: float
) -> np.ndarray:
    """The same of (c, z, y, x), each channel on its own."""
    depth = max(old.shape[0], new.shape[0])
    # Planes of either depth: they are replaced in place along z.
    room = np.empty((len(stack), depth, *new.shape[1:]), np.float32)
    factors = _factors(old, new)
    for channel, out in zip(stack, room, strict=True):
        low, high = np.inf, -np.inf
        for plane, to in zip(channel, out, strict=False):
            real = plane.astype(np.float32) * np.float32(slope) + np.float32(intercept)
            low = min(low, np.fmin.reduce(real, axis=None))
            high = max(high, np.fmax.reduce(real, axis=None))
            to[...] = _sampled(_smoothed(real, factors[1:]), factors[1:], new.shape[1:], CUBIC)
        rows = max(1, BLOCK_VOXELS // (depth * new.shape[2]))
        for y in range(0, new.shape[1], rows):
            block = out[: old.shape[0], y : y + rows]
            out[: new.shape[0], y : y + rows] = _along_z(block, factors[0], new.shape[0])
        if low <= high:  # else there is nothing but NaN
            np.clip(out[: new.shape[0]], low, high, out=out[: new.shape[0]])
    return room[:, : new.shape[0]]


def _along_z(block: np.ndarray, factor: float, depth: int) -> np.ndarray:
    """Smoothed and cubic-interpolated along the first axis only, to `depth` planes."""
    if factor == 1.0 and depth == len(block):
        return block
    from scipy import ndimage

    smooth = _smoothed(block, (factor, 1.0, 1.0))
    single: Any = np.float32
    bent = ndimage.spline_filter1d(smooth, CUBIC, axis=0, output=single, mode="nearest")
    place = (np.arange(depth) + 0.5) * factor - 0.5
    first = np.floor(place).astype(int)
    out = np.zeros((depth, *block.shape[1:]), np.float32)
    for step, weight in zip(range(-1, 3), _cubic_weights(place - first), strict=True):
        near = np.clip(first + step, 0, len(block) - 1)  # as scipy's mode "nearest" has it
        out += weight.astype(np.float32)[:, None, None] * bent[near]
    return out


def _cubic_weights(t: np.ndarray) -> tuple[np.ndarray, ...]:
    """Cubic B-spline at distances 1 + t, t, 1 - t and 2 - t, for t in 0..1."""
    u = 1 - t
    return u**3 / 6, 2 / 3 - t**2 * (2 - t) / 2, 2 / 3 - u**2 * (2 - u) / 2, t**3 / 6


def resample_label(voxels: np.ndarray, old: Grid, new: Grid) -> np.ndarray:
    """For each new voxel the class with the largest smoothed share; ties go to the lower class."""
    factors = _factors(old, new)
    classes = np.unique(np.concatenate([np.unique(plane) for plane in voxels]))
    if len(classes) > MAX_INDICATORS:
        return _sampled(voxels, factors, new.shape, 0)
    out = np.empty(new.shape, voxels.dtype)
    planes = max(1, SLAB_VOXELS // prod(voxels.shape[1:]))
    for z in range(0, new.shape[0], planes):
        slab = out[z : z + planes]
        first, last = _needed(z, z + len(slab), factors[0], old.shape[0])
        _fill_label(slab, voxels[first:last], classes, factors, z, first)
    return out


def _needed(start: int, end: int, factor: float, depth: int) -> tuple[int, int]:
    """Old planes that new planes [start, end) are made of: two neighbours and the Gaussian."""
    reach = ceil(TRUNCATE * max(0.0, (factor - 1) / 2) + 0.5) + 2
    first = int((start + 0.5) * factor - 0.5) - reach
    last = ceil((end - 0.5) * factor - 0.5) + reach + 1
    return min(max(first, 0), depth - 1), max(min(last, depth), 1)


def _fill_label(
    out: np.ndarray,
    voxels: np.ndarray,
    classes: np.ndarray,
    factors: tuple[float, float, float],
    z: int,
    first: int,
) -> None:
    """Classes of the new planes from `z` on, from the old planes from `first` on."""
    best = np.full(out.shape, -1.0, np.float32)
    for number in classes:
        indicator = _smoothed((voxels == number).astype(np.float32), factors)
        share = _sampled(indicator, factors, out.shape, 1, z * factors[0] - first)
        wins = share > best + 1e-6
        out[wins], best[wins] = number, share[wins]


def _factors(old: Grid, new: Grid) -> tuple[float, float, float]:
    z, y, x = (b / a for a, b in zip(old.spacing_mm, new.spacing_mm, strict=True))
    return (z, y, x)


def _smoothed(voxels: np.ndarray, factors: tuple[float, ...]) -> np.ndarray:
    sigma = [max(0.0, (factor - 1) / 2) for factor in factors]
    if not any(s > 1e-3 for s in sigma):
        return voxels
    from scipy import ndimage  # half of a worker's start-up, and only resampling needs it

    return ndimage.gaussian_filter(voxels, sigma, mode="nearest", truncate=TRUNCATE)


def _sampled(
    voxels: np.ndarray,
    factors: tuple[float, ...],
    shape: tuple[int, ...],
    order: int,
    shift: float = 0.0,
) -> np.ndarray:
    """Values at the new voxels' centres: index i is old coordinate (i + 1/2) * factor - 1/2.

    `shift` is added to the first coordinate.
    """
    offset: Any = [(factor - 1) / 2 for factor in factors]
    offset[0] += shift
    from scipy import ndimage

    if order > 1:
        single: Any = np.float32
        voxels = ndimage.spline_filter(voxels, order, output=single, mode="nearest")
    return ndimage.affine_transform(
        voxels, np.array(factors), offset, output_shape=shape, order=order, mode="nearest",
        prefilter=False,
    )  # fmt: skip
