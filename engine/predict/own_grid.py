"""From the grid a network saw back to a scan's own: turned where that is exact, else resampled.

A corpus that kept the scan's voxels (turned and cropped at most) gives a label map to the voxel.
One that was resampled gives class probabilities, interpolated linearly onto the scan's voxels
before the largest wins: labels interpolated by nearest neighbour would carry the steps of the
coarser grid. What was cropped away is background.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mim3d.dataio.corpus.manifest import VolumeRecord
from mim3d.dataio.geometry import Grid, Reorientation

SAME_PLACE = 1e-3  # voxels: affines are rounded
BEYOND = 1.0
"""Voxels past the last centre that its value still stands for: half of one, and rounded sizes."""


@dataclass(frozen=True)
class Axis:
    """One axis: own index i lies at `ratio * i + offset` of the stored axis."""

    own: int
    stored: int
    ratio: float
    offset: float

    @property
    def is_exact(self) -> bool:
        """Whether every own voxel is a stored one, or beyond them."""
        same = abs(self.ratio - 1) * max(self.own, self.stored) < SAME_PLACE
        return same and abs(self.offset - round(self.offset)) < SAME_PLACE

    @cached_property
    def places(self) -> np.ndarray:
        """Stored coordinate of every own voxel."""
        return self.ratio * np.arange(self.own) + self.offset

    @cached_property
    def covered(self) -> slice:
        """Own voxels that the stored ones tell something of."""
        if self.is_exact:
            first = -round(self.offset)
            return slice(max(first, 0), max(min(first + self.stored, self.own), 0))
        slack = BEYOND + SAME_PLACE
        inside = (self.places >= -slack) & (self.places <= self.stored - 1 + slack)
        hit = np.flatnonzero(inside)
        return slice(int(hit[0]), int(hit[-1]) + 1) if hit.size else slice(0, 0)

    def neighbours(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of covered voxels: the stored ones before and behind, and the weight of the latter."""
        places = np.clip(self.places[self.covered], 0, self.stored - 1)
        before = np.floor(places).astype(np.int64)
        behind = np.minimum(before + 1, self.stored - 1)
        return before, behind, (places - before).astype(np.float32)


@dataclass(frozen=True)
class OwnGrid:
    """A scan's own grid beside the stored one.

    `axes` are z, y, x of the own grid once it is turned as the stored one is; `change` turns it.
    """

    own: Grid
    change: Reorientation
    axes: tuple[Axis, Axis, Axis]

    @property
    def is_exact(self) -> bool:
        """Whether no voxel has to be interpolated."""
        return all(axis.is_exact for axis in self.axes)

    @property
    def is_covered(self) -> bool:
        """Whether the stored voxels tell something of all own ones."""
        return all(axis.covered == slice(0, axis.own) for axis in self.axes)

    def turned(self, own: np.ndarray) -> np.ndarray:
        """A view of (z, y, x) voxels of the own grid, turned as the stored ones are."""
        return self.change.view(own.transpose(2, 1, 0)).transpose(2, 1, 0)


def own_grid(record: VolumeRecord) -> OwnGrid:
    """Where the voxels of a volume lie in the grid of its source."""
    x, y, z = record.original_shape
    own = Grid((z, y, x), np.array(record.original_affine))
    stored = Grid(record.shape, np.array(record.affine))
    change, turned = own.turned_like(stored)
    between = np.linalg.inv(stored.affine) @ turned.affine
    axes = [
        Axis(turned.shape[axis], stored.shape[axis], float(between[i, i]), float(between[i, 3]))
        for axis, i in ((0, 2), (1, 1), (2, 0))
    ]
    return OwnGrid(own, change, (axes[0], axes[1], axes[2]))


@dataclass(frozen=True)
class Placed:
    """Class scores (k, n, y, x) of covered own voxels, turned, that begin at plane `first`."""

    first: int
    scores: Tensor
    rows: slice
    columns: slice


def placed(planes: Iterator[tuple[int, Tensor]], grid: OwnGrid) -> Iterator[Placed]:
    """Finished stored planes (k, n, y, x), ascending, as planes of the own grid.

    Where it is exact they are cut and passed on, else interpolated: give probabilities then.
    """
    z, y, x = grid.axes
    if grid.is_exact:
        yield from cut(planes, z, y, x)
        return
    pending = Pending(z)
    for first, block in planes:
        for index in range(block.shape[1]):
            within = along(along(block[:, index : index + 1], 2, y), 3, x)
            for at, scores in pending.take(first + index, within):
                yield Placed(at, scores, y.covered, x.covered)


def cut(planes: Iterator[tuple[int, Tensor]], z: Axis, y: Axis, x: Axis) -> Iterator[Placed]:
    """Planes that are own voxels as they stand, without those beyond the own grid."""
    shift = round(z.offset)
    rows, columns = (
        slice(axis.covered.start + round(axis.offset), axis.covered.stop + round(axis.offset))
        for axis in (y, x)
    )
    for first, block in planes:
        low = max(first - shift, z.covered.start)
        high = min(first - shift + block.shape[1], z.covered.stop)
        if low < high:
            part = slice(low + shift - first, high + shift - first)
            yield Placed(low, block[:, part, rows, columns], y.covered, x.covered)


def along(block: Tensor, dim: int, axis: Axis) -> Tensor:
    """Interpolate linearly to the own voxels of one axis."""
    if axis.is_exact and axis.covered == slice(0, axis.stored) and round(axis.offset) == 0:
        return block
    before, behind, weight = axis.neighbours()
    shape = [1] * block.dim()
    shape[dim] = len(weight)
    share = torch.from_numpy(weight).to(block).reshape(shape)
    low, high = (
        block.index_select(dim, torch.from_numpy(part).to(block.device))
        for part in (before, behind)
    )
    return torch.lerp(low, high, share)


class Pending:
    """Own planes along z that still wait for a stored one."""

    def __init__(self, axis: Axis) -> None:
        self.before, self.behind, self.weight = axis.neighbours()
        self.first = axis.covered.start
        self._next = 0
        self._last: Tensor | None = None

    def take(self, at: int, plane: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Own planes, with their index, that are known once stored plane `at` is."""
        while self._next < len(self.behind) and self.behind[self._next] <= at:
            i = self._next
            low = plane if self.before[i] == at else self._last
            assert low is not None
            yield self.first + i, torch.lerp(low, plane, float(self.weight[i]))
            self._next += 1
        self._last = plane
