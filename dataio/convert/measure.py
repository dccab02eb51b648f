"""What is measured of a volume to be stored: statistics of each channel, the foreground's box."""

from dataclasses import dataclass
from math import isfinite
from typing import NamedTuple

import numpy as np

from mim3d.dataio.convert.intensity import Profiles, Statistics, profiles, statistics
from mim3d.dataio.convert.values import Values, finite_only
from mim3d.dataio.geometry import Triple

CHANNEL_AXIS = 4
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
