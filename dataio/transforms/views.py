"""Augmented views of one crop on a CPU, in numpy and by the compiled loops: the same bits.

A view is a box stretched to the crop, a rotation about one axis, a blur, a gain, a bias and noise,
in this order, with the borders and voxel centres of DALI's `resize`, `warp_affine` and
`gaussian_blur`, which do the same on a GPU. Positions are float64, voxels float32. Noise has the
65,536 quantiles of a normal distribution: drawing from them costs a third of torch's `randn`.
"""

from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import numpy as np
import torch

from mim3d.dataio.native.extension import view_loops
from mim3d.dataio.transforms.augment import ViewDraws
from mim3d.dataio.transforms.counter_random import GOLDEN, mix

RADIUS = 2
PLANES = ((1, 2), (0, 2), (0, 1))
"""(slow, fast) axes of the plane across z, y, x."""


@dataclass(frozen=True)
class ViewPlan:
    """What is to be done to one crop.

    `axis` is that of the rotation, -1 without one; `turn` (2, 3) maps destination to source in the
    plane's (fast, slow) axes. `taps` are the blur's weights of the middle voxel, its two
    neighbours and theirs; () without a blur. `noise` is a deviation, and `seed` a uint64.
    """

    resized: bool
    start: tuple[float, ...]
    end: tuple[float, ...]
    axis: int
    turn: tuple[float, ...]
    taps: tuple[float, ...]
    gain: float
    bias: float
    noise: float
    seed: int

    @property
    def geometry(self) -> tuple[Any, ...]:
        """What moves voxels, as the compiled loops take it."""
        return self.resized, self.start, self.end, self.axis, self.turn


def plans(draws: ViewDraws, per_view: bool) -> list[ViewPlan]:
    """A plan of every sample; gain, bias and blur only where each view has its own."""
    turns = np.stack([draws.turn_z, draws.turn_y, draws.turn_x], 1)
    axes = np.where(turns.any(1), turns.argmax(1), -1).tolist()
    taps = blur_taps(draws.sigma)
    return [
        ViewPlan(
            resized=bool(draws.resized[i]),
            start=tuple(draws.roi_start[i].tolist()),
            end=tuple(draws.roi_end[i].tolist()),
            axis=axis,
            turn=tuple(draws.matrix[i].ravel().tolist()),
            taps=tuple(taps[i].tolist()) if per_view and draws.blurred[i] else (),
            gain=float(draws.gain[i]) if per_view else 1.0,
            bias=float(draws.bias[i]) if per_view else 0.0,
            noise=float(draws.noise_std[i]),
            seed=int(draws.noise_seed[i]),
        )
        for i, axis in enumerate(axes)
    ]


def blur_taps(sigma: np.ndarray) -> np.ndarray:
    """Weights (b, 3) float32 of a Gaussian over five voxels: middle, neighbours, theirs."""
    reach = np.exp(-0.5 * (np.arange(RADIUS + 1) / sigma[:, None].astype(np.float64)) ** 2)
    whole = reach[:, :1] + 2 * reach[:, 1:].sum(1, keepdims=True)
    return (reach / whole).astype(np.float32)


@cache
def normal_quantiles() -> np.ndarray:
    """2^16 quantiles of a normal distribution, of equal probability, up to 4.3 deviations."""
    n = 1 << 16
    middle = (torch.arange(n // 2, n, dtype=torch.float64) + 0.5) / n
    upper = torch.special.ndtri(middle).numpy().astype(np.float32)
    return np.concatenate([-upper[::-1], upper])


class ViewMaker:
    """Makes views of crops of one shape; the compiled loops' working memory is kept. One thread."""

    def __init__(self) -> None:
        self._room = np.empty(0, np.uint8)

    def image(self, crop: np.ndarray, plan: ViewPlan, out: np.ndarray) -> None:
        """View of a crop (c, z, y, x) float32 into `out`."""
        loops = view_loops()
        if loops is None:
            out[...] = view_of(crop, plan)
            return
        taps = plan.taps or (1.0, 0.0, 0.0)
        light = plan.gain, plan.bias, plan.noise, plan.seed, normal_quantiles()
        what = crop, plan.geometry, bool(plan.taps), taps, *light
        wanted = loops.view(*what, out, self._room)
        if wanted is not None:
            self._room = np.empty(wanted, np.uint8)
            loops.view(*what, out, self._room)

    def label(self, label: np.ndarray, plan: ViewPlan, out: np.ndarray) -> None:
        """The label (z, y, x) of a crop, by the nearest voxel, into `out`."""
        loops = view_loops()
        if loops is None:
            out[...] = label_of(label, plan)
        else:
            loops.label(label, plan.geometry, out)


def view_of(crop: np.ndarray, plan: ViewPlan) -> np.ndarray:
    """The same view in numpy."""
    if plan.resized:
        for axis in range(3):
            crop = _stretched(crop, plan.start[axis], plan.end[axis], axis)
    if plan.axis >= 0:
        crop = _turned(crop, plan)
    if plan.taps:
        for axis in range(3):
            crop = _blurred(crop, np.array(plan.taps, np.float32), axis)
    crop = crop * np.float32(plan.gain) + np.float32(plan.bias)
    return crop + noise_of(crop.shape, plan) if plan.noise else crop


def noise_of(shape: tuple[int, ...], plan: ViewPlan) -> np.ndarray:
    """Gaussian noise as a pure function of the seed: four voxels from each SplitMix64 word."""
    words = np.arange(1, prod(shape) // 4 + 2, dtype=np.uint64) * GOLDEN + np.uint64(plan.seed)
    parts = mix(words)[:, None] >> np.arange(0, 64, 16, dtype=np.uint64)
    drawn = normal_quantiles()[parts.ravel()[: prod(shape)] & np.uint64(0xFFFF)]
    return np.float32(plan.noise) * drawn.reshape(shape)


def label_of(label: np.ndarray, plan: ViewPlan) -> np.ndarray:
    """The same label in numpy."""
    at = [np.asarray(axis) for axis in np.indices(label.shape)]
    if plan.axis >= 0:
        slow, fast = PLANES[plan.axis]
        positions = _plane_positions(plan, at[slow] + 0.5, at[fast] + 0.5)
        for axis, position in zip((slow, fast), positions, strict=True):
            at[axis] = _within(np.floor(position), label.shape[axis])
    if plan.resized:
        for axis, n in enumerate(label.shape):
            position = _stretch(plan.start[axis], plan.end[axis], at[axis], n)
            at[axis] = _within(np.floor(position), n)
    return label[tuple(at)]


def _stretch(start: float, end: float, index: np.ndarray, n: int) -> np.ndarray:
    return start + (index + 0.5) * (end - start) / n


def _within(index: np.ndarray, n: int) -> np.ndarray:
    return np.clip(index, 0, n - 1).astype(np.int64)


def _places(position: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two neighbours of each position, and how far it is from the first."""
    below = np.floor(position)
    share = (position - below).astype(np.float32)
    return _within(below, n), _within(below + 1, n), share


def _stretched(crop: np.ndarray, start: float, end: float, axis: int) -> np.ndarray:
    n = crop.shape[axis + 1]
    first, second, share = _places(_stretch(start, end, np.arange(n), n) - 0.5, n)
    share = share.reshape([n if k == axis else 1 for k in range(3)])
    a, b = crop.take(first, axis + 1), crop.take(second, axis + 1)
    return a + share * (b - a)


def _plane_positions(
    plan: ViewPlan, slow: np.ndarray, fast: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where voxel centres of the plane that turns come from, along (slow, fast)."""
    t = plan.turn
    return t[3] * fast + t[4] * slow + t[5], t[0] * fast + t[1] * slow + t[2]


def _turned(crop: np.ndarray, plan: ViewPlan) -> np.ndarray:
    slow, fast = PLANES[plan.axis]
    moved = np.moveaxis(crop, (slow + 1, fast + 1), (0, 1))
    n_slow, n_fast = moved.shape[:2]
    grid = np.indices((n_slow, n_fast)) + 0.5
    at_slow, at_fast = _plane_positions(plan, grid[0], grid[1])
    upper, lower, down = _places(at_slow - 0.5, n_slow)
    left, right, across = _places(at_fast - 0.5, n_fast)
    down, across = down[..., None, None], across[..., None, None]
    above = moved[upper, left] + across * (moved[upper, right] - moved[upper, left])
    below = moved[lower, left] + across * (moved[lower, right] - moved[lower, left])
    return np.moveaxis(above + down * (below - above), (0, 1), (slow + 1, fast + 1))


def _blurred(crop: np.ndarray, taps: np.ndarray, axis: int) -> np.ndarray:
    n = crop.shape[axis + 1]
    middle = np.arange(n)
    a, b, c, d, e = (
        crop.take(_mirrored(middle + k, n), axis + 1) for k in range(-RADIUS, RADIUS + 1)
    )
    return taps[0] * c + taps[1] * (b + d) + taps[2] * (a + e)


def _mirrored(index: np.ndarray, n: int) -> np.ndarray:
    """Indices beyond the border, mirrored about the outermost voxel."""
    if n == 1:
        return np.zeros_like(index)
    at = index % (2 * (n - 1))
    return np.where(at < n, at, 2 * (n - 1) - at)
