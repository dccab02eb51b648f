"""Resampling to a voxel size: images anti-aliased, labels by the class that fills a voxel most.

scipy's filters and splines, but never of a whole volume at once: an image is resampled plane by
plane and then along z, which for separable filters is the same, and a label slab by slab, each
class within its bounding box. So one
float32 volume is held where a dozen would be, and the image it is made of goes as it comes.
"""

from collections.abc import Sequence
from math import ceil, floor, prod
from typing import Any

import numpy as np

from mim3d.dataio.errors import SourceError
from mim3d.dataio.geometry import Grid
from mim3d.dataio.memory import forget, room, trim

CUBIC = 3
# Beyond this many classes a smoothed indicator per class costs too much; nearest is used.
MAX_INDICATORS = 64
BLOCK_VOXELS, SLAB_VOXELS = 1 << 18, 1 << 19  # held several times over, in float32
TRUNCATE = 4.0  # a Gaussian's radius in sigmas, scipy's default
# Copies of the outermost voxels around an image, as scipy has them: a cubic spline's coefficients
# at the very edge would be wrong, and 12 voxels further in nothing is left of that.
EDGE = 12


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


def resample_channels(
    given: list[np.ndarray], old: Grid, new: Grid, slope: float = 1.0, intercept: float = 0.0
) -> np.ndarray:
    """Cubic interpolation of the one (c, z, y, x) in `given` in float32, each channel on its own,
    after a Gaussian where voxels grow.

    Real values are slope * voxel + intercept. The Gaussian's sigma is (factor - 1) / 2 old voxels,
    as in scikit-image's anti-aliasing; overshoot of the cubic is clipped to the source's range.
    Empties `given`: where nobody else holds that array, it and the result are never held at once.
    """
    stack, out = _moved(given, new)
    factors = _factors(old, new)
    # A channel takes planes of either depth, as they are replaced in place along z.
    plane, depth = prod(new.shape[1:]), max(old.shape[0], new.shape[0])
    for number, channel in enumerate(stack):
        start = number * new.shape[0] * plane
        work = out[start : start + depth * plane].reshape(depth, *new.shape[1:])
        low, high = _fill_planes(work, channel, slope, intercept, factors)
        _replace_along_z(work, old.shape[0], new.shape[0], factors[0])
        if low <= high:  # else there is nothing but NaN
            np.clip(work[: new.shape[0]], low, high, out=work[: new.shape[0]])
    done = out[: len(stack) * prod(new.shape)].reshape(len(stack), *new.shape)
    trim(done)
    return done


def _moved(given: list[np.ndarray], new: Grid) -> tuple[np.ndarray, np.ndarray]:
    """The array in `given`, and float32 for what it becomes, in one memory about as large as the
    larger of them.

    The array lies at its end, so far behind that filling it from the front, channel by channel and
    plane by plane, overwrites no plane before it was read. Until it is moved it is held twice.
    """
    old = given.pop()
    n_channels, depth, size = len(old), old.shape[1], old.dtype.itemsize
    plane, written = prod(old.shape[2:]), prod(new.shape[1:])
    # Bytes written less bytes read, after the first plane of a channel and after all it takes:
    # linear in between, so that the largest of the ends is the largest of all.
    ahead = [
        4 * written * (new.shape[0] * number + n_written) - size * plane * (depth * number + n_read)
        for number in (0, n_channels - 1)
        for n_written, n_read in ((1, 1), (depth, depth), (max(depth, new.shape[0]), depth))
    ]
    start = -(-max(0, *ahead) // 8) * 8
    memory = room(start + old.nbytes)
    moved = memory[start:].view(old.dtype.newbyteorder("=")).reshape(old.shape)
    moved[...] = old
    del old
    forget()  # where it lay
    return moved, memory[: len(memory) // 4 * 4].view(np.float32)


def _fill_planes(
    out: np.ndarray,
    channel: np.ndarray,
    slope: float,
    intercept: float,
    factors: tuple[float, float, float],
) -> tuple[float, float]:
    """Every plane of a channel at the new size, and the range of the real values before."""
    from scipy import ndimage

    low, high = np.inf, -np.inf
    for plane, to in zip(channel, out, strict=False):
        real = plane.astype(np.float32)
        np.multiply(real, np.float32(slope), out=real)
        np.add(real, np.float32(intercept), out=real)
        low = min(low, np.fmin.reduce(real, axis=None))
        high = max(high, np.fmax.reduce(real, axis=None))
        wide: Any = np.pad(_smoothed(real, factors[1:]), EDGE, mode="edge")
        bent = ndimage.spline_filter(wide, CUBIC, output=wide, mode="nearest")
        _sampled(bent, factors[1:], CUBIC, to, (EDGE, EDGE))
    return low, high


def _replace_along_z(work: np.ndarray, before: int, after: int, factor: float) -> None:
    """The first `before` planes by the `after` planes they become along z, block by block."""
    rows = max(1, BLOCK_VOXELS // ((len(work) + 2 * EDGE) * work.shape[2]))
    for y in range(0, work.shape[1], rows):
        block = work[:before, y : y + rows]
        work[:after, y : y + rows] = _along_z(block, factor, after)


def _along_z(block: np.ndarray, factor: float, depth: int) -> np.ndarray:
    """Smoothed and cubic-interpolated along the first axis only, to `depth` planes."""
    if factor == 1.0 and depth == len(block):
        return block
    from scipy import ndimage

    smooth = np.pad(
        _smoothed(block, (factor, 1.0, 1.0)), ((EDGE, EDGE), (0, 0), (0, 0)), mode="edge"
    )
    single: Any = np.float32
    bent = ndimage.spline_filter1d(smooth, CUBIC, axis=0, output=single, mode="nearest")
    place = (np.arange(depth) + 0.5) * factor - 0.5 + EDGE
    first = np.floor(place).astype(int)
    out = np.zeros((depth, *block.shape[1:]), np.float32)
    part = np.empty_like(out)
    for step, weight in zip(range(-1, 3), _cubic_weights(place - first), strict=True):
        # Beyond the ends their planes, as scipy's mode "nearest" has it.
        bent.take(first + step, axis=0, out=part, mode="clip")
        part *= weight.astype(np.float32)[:, None, None]
        out += part
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
        return _sampled(voxels, factors, 0, np.empty(new.shape, voxels.dtype))
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
    from scipy import ndimage

    best = np.full(out.shape, -1.0, np.float32)
    shift = (z * factors[0] - first, 0.0, 0.0)
    boxes = ndimage.find_objects(np.searchsorted(classes, voxels) + 1)
    for number, box in zip(classes.tolist(), boxes, strict=False):
        if box is None:
            continue
        axes = zip(box, factors, shift, voxels.shape, out.shape, strict=True)
        spans = [_touched((part.start, part.stop), f, s, a, b) for part, f, s, a, b in axes]
        if any(start >= stop for _, (start, stop) in spans):
            continue
        source = tuple(slice(*old) for old, _ in spans)
        target = tuple(slice(*new) for _, new in spans)
        moved = [
            new[0] * factor - old[0] + by
            for (old, new), factor, by in zip(spans, factors, shift, strict=True)
        ]
        here, so_far = out[target], best[target]
        share = _share(voxels[source] == number, factors, here.shape, moved)
        wins = share > so_far + 1e-6
        here[wins], so_far[wins] = number, share[wins]
        del share, wins  # before the next is made


def _touched(
    found: tuple[int, int], factor: float, shift: float, before: int, after: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Of one axis, of `before` old and `after` new voxels: old ones that tell the share of a class
    found in a span, with zeros around it, and new ones that have any of it."""
    reach = int(TRUNCATE * max(0.0, (factor - 1) / 2) + 0.5) + 2
    low, high = found[0] - reach, found[1] + reach
    offset = (factor - 1) / 2 + shift
    first = 0 if low <= 0 else max(0, floor((low - offset) / factor))
    last = after if high >= before else min(after, ceil((high - offset) / factor) + 1)
    return (max(low, 0), min(high, before)), (first, last)


def _share(
    inside: np.ndarray, factors: tuple[float, ...], shape: tuple[int, ...], shift: Sequence[float]
) -> np.ndarray:
    """How much of each new voxel is inside."""
    smooth = _smoothed(inside.astype(np.float32), factors)
    return _sampled(smooth, factors, 1, np.empty(shape, np.float32), shift)


def _factors(old: Grid, new: Grid) -> tuple[float, float, float]:
    z, y, x = (b / a for a, b in zip(old.spacing_mm, new.spacing_mm, strict=True))
    return (z, y, x)


def _smoothed(voxels: np.ndarray, factors: tuple[float, ...]) -> np.ndarray:
    """float32 voxels after a Gaussian where they grow, in their own memory."""
    sigma = [max(0.0, (factor - 1) / 2) for factor in factors]
    if not any(s > 1e-3 for s in sigma):
        return voxels
    from scipy import ndimage  # half of a worker's start-up, and only resampling needs it

    return ndimage.gaussian_filter(voxels, sigma, output=voxels, mode="nearest", truncate=TRUNCATE)


def _sampled(
    voxels: np.ndarray,
    factors: tuple[float, ...],
    order: int,
    out: np.ndarray,
    shift: Sequence[float] = (),
) -> np.ndarray:
    """Fill `out` with values at its voxels' centres, and return it.

    Index i is old coordinate (i + 1/2) * factor - 1/2, to which `shift` is added.
    For order 3 `voxels` are coefficients of the spline.
    """
    from scipy import ndimage

    centre = [(factor - 1) / 2 for factor in factors]
    offset: Any = [a + b for a, b in zip(centre, shift or [0.0] * len(centre), strict=True)]
    ndimage.affine_transform(
        voxels, np.array(factors), offset, output=out, order=order, mode="nearest", prefilter=False
    )
    return out
