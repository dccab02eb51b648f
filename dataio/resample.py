"""Resampling to a voxel size: images anti-aliased, labels by the class that fills a voxel most."""

from math import prod
from typing import Any

import numpy as np

from mim3d.dataio.errors import SourceError
from mim3d.dataio.grid import Grid
from mim3d.dataio.manifest import Triple

CUBIC = 3
# Beyond this many classes a smoothed indicator per class costs too much; nearest is used.
MAX_INDICATORS = 64


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


def resample_image(voxels: np.ndarray, old: Grid, new: Grid) -> np.ndarray:
    """Cubic interpolation of float32 (z, y, x) after a Gaussian where voxels grow.

    The Gaussian's sigma is (factor - 1) / 2 old voxels, as in scikit-image's anti-aliasing;
    overshoot of the cubic is clipped to the source's range.
    """
    factors = _factors(old, new)
    smooth = _smoothed(voxels, factors)
    out = _sampled(smooth, factors, new.shape, CUBIC)
    return np.clip(out, voxels.min(), voxels.max(), out=out)


def resample_label(voxels: np.ndarray, old: Grid, new: Grid) -> np.ndarray:
    """For each new voxel the class with the largest smoothed share; ties go to the lower class."""
    factors = _factors(old, new)
    classes = np.unique(voxels)
    if len(classes) > MAX_INDICATORS:
        return _sampled(voxels, factors, new.shape, 0)
    best = np.full(new.shape, -1.0, np.float32)
    out = np.empty(new.shape, voxels.dtype)
    for number in classes:
        indicator = _smoothed((voxels == number).astype(np.float32), factors)
        share = _sampled(indicator, factors, new.shape, 1)
        wins = share > best + 1e-6
        out[wins], best[wins] = number, share[wins]
    return out


def _factors(old: Grid, new: Grid) -> tuple[float, float, float]:
    z, y, x = (b / a for a, b in zip(old.spacing_mm, new.spacing_mm, strict=True))
    return (z, y, x)


def _smoothed(voxels: np.ndarray, factors: tuple[float, float, float]) -> np.ndarray:
    sigma = [max(0.0, (factor - 1) / 2) for factor in factors]
    if not any(s > 1e-3 for s in sigma):
        return voxels
    from scipy import ndimage  # half of a worker's start-up, and only resampling needs it

    return ndimage.gaussian_filter(voxels, sigma, mode="nearest")


def _sampled(
    voxels: np.ndarray, factors: tuple[float, float, float], shape: Triple, order: int
) -> np.ndarray:
    """Values at the new voxels' centres: index i is old coordinate (i + 1/2) * factor - 1/2."""
    offset: Any = [(factor - 1) / 2 for factor in factors]
    from scipy import ndimage

    if order > 1:
        single: Any = np.float32
        voxels = ndimage.spline_filter(voxels, order, output=single, mode="nearest")
    return ndimage.affine_transform(
        voxels, np.array(factors), offset, output_shape=shape, order=order, mode="nearest",
        prefilter=False,
    )  # fmt: skip
