"""Where voxels lie: shape and affine together, compared, cropped and described."""

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np

from mim3d.dataio.errors import Mim3dError

# Corners of two grids may differ by this share of the smallest voxel side: headers round.
TOLERANCE_VOXELS = 0.1


def obliquity_deg(affine: np.ndarray) -> float:
    """Largest angle between a voxel axis and its closest world axis, in degrees."""
    return _obliquity_of(linear_part(affine))


def linear_part(affine: np.ndarray) -> bytes:
    """Directions and sizes of the axes. What follows from them alone is kept by them: it is asked
    for many times a volume, and the volumes of a scanner share theirs."""
    return np.ascontiguousarray(affine[:3, :3], np.float64).tobytes()


def _columns(linear: bytes) -> np.ndarray:
    return np.frombuffer(linear).reshape(3, 3)


@lru_cache(maxsize=1024)
def _obliquity_of(linear: bytes) -> float:
    axes = _columns(linear) / np.linalg.norm(_columns(linear), axis=0)
    return float(np.degrees(np.arccos(np.clip(np.abs(axes).max(axis=0), -1, 1)).max()))


@lru_cache(maxsize=1024)
def _sizes_of(linear: bytes) -> tuple[float, float, float]:
    x, y, z = np.linalg.norm(_columns(linear), axis=0).tolist()
    return (z, y, x)


Triple = tuple[int, int, int]
Affine = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Grid:
    """`shape` is (z, y, x); `affine` maps the voxel index (x, y, z, 1) to world mm."""

    shape: Triple
    affine: np.ndarray

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel sides in array order (z, y, x)."""
        return _sizes_of(linear_part(self.affine))

    @property
    def nested_affine(self) -> Affine:
        """The affine as plain tuples."""
        return tuple(tuple(v + 0.0 for v in row) for row in self.affine.astype(np.float64).tolist())

    def corners(self) -> np.ndarray:
        """World coordinates (8, 3) of the corner voxels' centres, x slowest."""
        ends = [(0, size - 1) for size in self.shape[::-1]]
        index = np.array([(*corner, 1) for corner in product(*ends)], np.float64)
        return (index @ self.affine.T)[:, :3]

    def difference(self, other: "Grid") -> str:
        """What sets two grids apart, in words; empty where they agree."""
        if self.shape != other.shape:
            return f"shape {other.shape[::-1]}, not {self.shape[::-1]} (x, y, z)"
        apart = float(np.linalg.norm(self.corners() - other.corners(), axis=1).max())
        if apart > TOLERANCE_VOXELS * min(self.spacing_mm):
            return f"corners up to {apart:.3g} mm apart"
        return ""

    def crop(self, start: Triple, end: Triple) -> "Grid":
        """The grid of voxels [start, end), in (z, y, x)."""
        affine = self.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ np.array(start[::-1], np.float64)
        z, y, x = (b - a for a, b in zip(start, end, strict=True))
        return Grid((z, y, x), affine)

    def turned_like(self, other: "Grid") -> "tuple[Reorientation, Grid]":
        """The permutation and flips that bring this grid's axes nearest to another's, and this grid
        after them.
        """
        change = reorientation(self.affine, axis_codes(other.affine))
        shape = (self.shape[2], self.shape[1], self.shape[0])
        x, y, z = (shape[axis] for axis in change.axes)
        return change, Grid((z, y, x), change.affine(self.affine, shape))

    def is_same_space(self, other: "Grid") -> bool:
        """Whether both hold the same voxels, perhaps in another order of axes or directions."""
        return not other.difference(self.turned_like(other)[1])


KEEP = "keep"


@dataclass(frozen=True)
class Reorientation:
    """Source axes in target order, and which of them are flipped; all in (x, y, z) order."""

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    def view(self, voxels_xyz: np.ndarray) -> np.ndarray:
        """The array in target order, without a copy."""
        steps = tuple(slice(None, None, -1 if flip else None) for flip in self.flips)
        return voxels_xyz.transpose(self.axes)[steps]

    def affine(self, affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
        """The affine of the view, where `affine` and `shape` (x, y, z) are the source's."""
        out = affine.copy()
        for target, (source, flip) in enumerate(zip(self.axes, self.flips, strict=True)):
            column = affine[:3, source]
            out[:3, target] = -column if flip else column
            if flip:
                out[:3, 3] += column * (shape[source] - 1)
        return out


def axis_codes(affine: np.ndarray) -> str:
    """Closest anatomical direction of each axis, such as "LPS"."""
    return _codes_of(linear_part(affine))


@lru_cache(maxsize=1024)
def _codes_of(linear: bytes) -> str:
    from nibabel.orientations import ornt2axcodes  # nibabel takes long to load

    codes = ornt2axcodes(_closest_axes_of(linear))
    return "".join(code or "?" for code in codes)


@lru_cache(maxsize=1024)
def _closest_axes_of(linear: bytes) -> np.ndarray:
    from nibabel.orientations import io_orientation

    affine = np.eye(4)
    affine[:3, :3] = _columns(linear)
    return io_orientation(affine)


def check_orientation(target: str) -> None:
    """Mim3dError unless `target` is "keep" or three letters, one of each of LR, PA, IS."""
    axes = {frozenset("LR"), frozenset("PA"), frozenset("IS")}
    named = [axis for axis in axes for letter in target if letter in axis]
    if target != KEEP and (len(target) != 3 or set(named) != axes):
        raise Mim3dError(
            f'orientation {target!r}: "keep", or one letter each of L/R, P/A and I/S such as RAS'
        )


def reorientation(affine: np.ndarray, target: str) -> Reorientation:
    """Permutation and flips that bring the closest axes of `affine` to `target`."""
    if target == KEEP:
        return Reorientation((0, 1, 2), (False, False, False))
    return _reorientation_of(linear_part(affine), target)


@lru_cache(maxsize=1024)
def _reorientation_of(linear: bytes, target: str) -> Reorientation:
    from nibabel.orientations import axcodes2ornt, ornt_transform

    wanted = axcodes2ornt(tuple(target))
    change = ornt_transform(_closest_axes_of(linear), wanted)
    axes, flips = [0, 0, 0], [False, False, False]
    for source, (destination, sign) in enumerate(change):
        axes[int(destination)] = source
        flips[int(destination)] = sign < 0
    return Reorientation((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))
