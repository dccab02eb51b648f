"""What is measured of a volume to be stored: statistics of each channel, the foreground's box, and
whether it looks like a label map: few whole numbers, or long runs of the same ones."""

from dataclasses import dataclass
from math import isfinite
from typing import NamedTuple

import numpy as np

from mim3d.dataio.convert.intensity import (
    Profiles,
    Statistics,
    is_small_integer,
    profiles,
    statistics,
    tallied,
)
from mim3d.dataio.convert.values import Values, finite_only
from mim3d.dataio.geometry import Triple

CHANNEL_AXIS = 4
SAMPLE = 1 << 14
BLOCK = 1 << 17
FEW, MANY = 32, 1024
WHOLE = 1e-3
VOXELS_A_VALUE = 16  # fewer, and a tiny image has few values because it has few voxels
RUNS = 0.75  # of neighbours in a parcellation are alike; of noise hardly any
Box = tuple[Triple, Triple]


@dataclass(frozen=True)
class Measured:
    """Statistics of a volume, and the box of its foreground.

    `whole` is over all channels together, `by_channel` of each where there are several. The box is
    around the voxels above its own threshold in any channel that has one.
    """

    whole: Statistics
    by_channel: tuple[Statistics, ...]
    box: Box


def measured(values: Values) -> Measured:
    """Measure (z, y, x) or (c, z, y, x) voxels; those that are not finite are left out."""
    channels = as_channels(values.voxels)
    each = [_measured_channel(channel, values) for channel in channels]
    shown = [c for c in each if c.found.rule != "all"] or each
    box = around([c.box for c in shown])
    if len(channels) == 1:
        return Measured(each[0].found, (), box)
    extremes = min(c.extremes[0] for c in each), max(c.extremes[1] for c in each)
    return Measured(_together(values, extremes), tuple(c.found for c in each), box)


def as_channels(voxels: np.ndarray) -> np.ndarray:
    """(c, z, y, x) voxels of an array that may have no channel axis."""
    return voxels if voxels.ndim == CHANNEL_AXIS else voxels[None]


def around(boxes: list[Box]) -> Box:
    """The box around all boxes."""
    first = np.min([low for low, _ in boxes], axis=0).tolist()
    end = np.max([high for _, high in boxes], axis=0).tolist()
    return (first[0], first[1], first[2]), (end[0], end[1], end[2])


class Channel(NamedTuple):
    """Statistics of one channel, its stored extremes, and the box of its foreground."""

    found: Statistics
    extremes: tuple[float, float]
    box: Box


def _measured_channel(voxels: np.ndarray, values: Values) -> Channel:
    """Measure a channel (z, y, x); where it is flat its box is the whole."""
    falling, scaling = values.slope < 0, (values.slope, values.intercept)
    with np.errstate(invalid="ignore"):
        shown = _profiles_in_memory_order(voxels, falling)
    extremes = shown.minimum, shown.maximum
    if all(map(isfinite, extremes)):  # as one voxel that is not would be among them
        found = statistics(memory_order(voxels)[0], extremes, *scaling)
    else:
        finite = finite_only(voxels)
        if not finite.size:
            finite = np.zeros(1, voxels.dtype)  # a missing modality told by NaN, where it is kept
        extremes = (float(finite.min()), float(finite.max()))
        found = statistics(finite, extremes, *scaling)
        with np.errstate(invalid="ignore"):
            shown = profiles(np.nan_to_num(voxels, nan=extremes[falling]), falling=falling)
    if found.rule == "all":
        z, y, x = voxels.shape
        return Channel(found, extremes, ((0, 0, 0), (z, y, x)))
    return Channel(found, extremes, shown.box_beyond(found.stored_threshold))


def _together(values: Values, extremes: tuple[float, float]) -> Statistics:
    """Statistics of all channels as one."""
    voxels = finite_only(values.voxels)
    block = voxels if voxels.ndim == 1 else memory_order(voxels)[0]
    return statistics(block, extremes, values.slope, values.intercept)


def _profiles_in_memory_order(voxels: np.ndarray, falling: bool) -> Profiles:
    """Profiles of a view, worked out along its memory and turned back: many times as fast."""
    block, order, flipped = memory_order(voxels)
    found = profiles(block, falling=falling)
    along = [found.along[order.index(axis)] for axis in range(3)]
    z, y, x = (p[::-1] if flip else p for p, flip in zip(along, flipped, strict=True))
    return Profiles(found.minimum, found.maximum, (z, y, x), falling)


def memory_order(voxels: np.ndarray) -> tuple[np.ndarray, list[int], list[bool]]:
    """The same voxels as a contiguous block where there is one; which axis of `voxels` each of
    the block's axes is, and which axes of `voxels` the block runs against.
    """
    flipped = [step < 0 for step in voxels.strides]
    unflipped = voxels[tuple(slice(None, None, -1 if flip else None) for flip in flipped)]
    order = sorted(range(voxels.ndim), key=lambda axis: -unflipped.strides[axis])
    return unflipped.transpose(order), order, flipped


def few_values(voxels: np.ndarray, slope: float, intercept: float) -> int:
    """About how many values an image (or a channel) has that looks like a label map, else 0.

    Looks at a lattice of voxels and at planes around the middle, so that it costs nothing.
    """
    channels = voxels if voxels.ndim > 3 else voxels[None]
    found = (few_in(channel, slope, intercept) for channel in channels)
    return next((n for n in found if n), 0)


def few_in(voxels: np.ndarray, slope: float, intercept: float) -> int:
    """The same for one channel (z, y, x)."""
    flat = voxels.reshape(-1) if voxels.flags.c_contiguous else voxels.ravel()
    among, _ = counted_values(flat[:: max(1, flat.size // SAMPLE)])
    if len(among) > MANY:
        return 0
    n_planes = max(1, BLOCK // max(1, voxels[0].size))
    first = max(0, len(voxels) // 2 - n_planes // 2)
    block = voxels[first : first + n_planes]
    in_block, counts = counted_values(block.reshape(-1))
    if len(in_block) > MANY:
        return 0
    values, _ = counted_values(np.concatenate([among, in_block]))
    n = len(values)
    if n < 2 or block.size < VOXELS_A_VALUE * n or not are_whole(slope * values + intercept):
        return 0
    if n > FEW and (n > MANY or share_of_runs(block, in_block[counts.argmax()]) < RUNS):
        return 0
    return n


def are_whole(real: np.ndarray) -> bool:
    """Whether all are whole numbers, nearly."""
    return bool(np.isfinite(real).all()) and float(np.abs(np.rint(real) - real).max()) <= WHOLE


def counted_values(voxels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values there are among (n,) voxels, ascending, as float64, and how often each is.

    NaN is as many values as there are. numpy's unique loads its masked arrays, 10 ms a process.
    """
    if is_small_integer(voxels.dtype):
        return tallied(voxels)
    ordered = np.sort(voxels.astype(voxels.dtype.newbyteorder("="), copy=False))
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    counts = np.diff(starts, append=len(ordered))
    return ordered[starts].astype(np.float64), counts


def share_of_runs(block: np.ndarray, ground: float) -> float:
    """How often a voxel of another value than the commonest, `ground`, equals the next one along
    its row."""
    here, there = block[..., :-1], block[..., 1:]
    inside = (here != ground) & (there != ground)
    return float((here == there)[inside].mean()) if inside.any() else 0.0
