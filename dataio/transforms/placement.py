"""Where the voxels of a crop lie in their volume when it is turned and zoomed about its middle.

Positions are in voxels of the stored array, along (z, y, x), whole numbers at centres of voxels, as
`scipy.ndimage` counts them: voxel o of the crop lies at `matrix @ o + offset`. A volume of n voxels
reaches from -0.5 to n - 0.5; what lies beyond is filled, and the outer half of a border's voxel has
its value. All of it follows from a sample's draws, so the box of voxels that a crop needs is known
before anything is read.
"""

from dataclasses import dataclass

import numpy as np

from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.geometry import Triple

Range = tuple[float, float]
ROTATE, ANGLE, ZOOM, SIDE, SCALE, N_DRAWS = 0, 1, 4, 5, 6, 7
"""Which number of a sample decides what; ANGLE takes three, one per axis."""
SLACK = 1e-6
"""Voxels by which a box is widened against rounding."""


@dataclass(frozen=True)
class Spatial:
    """How a crop is turned and zoomed within its volume, about its own middle.

    `rotate`: chance of a rotation by up to `degrees`, either way, about each of z, y and x, in
    millimetres, so that voxels that are no cubes keep their shape. `zoom`: chance of a zoom; a
    voxel of the crop then spans so many of the volume's along each axis as `scale` allows: below 1
    it magnifies, and half of the zooms do where both sides are allowed (batchgenerators'
    `SpatialTransform`, as nnssl and nnU-Net use it).
    """

    rotate: float = 0.0
    degrees: float = 0.0
    zoom: float = 0.0
    scale: Range = (1.0, 1.0)

    def __post_init__(self) -> None:
        for name in ("rotate", "zoom"):
            if not 0 <= getattr(self, name) <= 1:
                raise Mim3dError(f"spatial {name}={getattr(self, name)} is no probability")
        if not 0 <= self.degrees <= 180:
            raise Mim3dError(f"spatial degrees={self.degrees} must lie in [0, 180]")
        if not 0.1 <= self.scale[0] <= self.scale[1] <= 10:
            raise Mim3dError(f"spatial scale={self.scale} must lie in [0.1, 10], low <= high")


@dataclass(frozen=True)
class Placement:
    """One crop's: `matrix` (3, 3) and `offset` (3,) in the volume, and the box it needs of it.

    `start` and `size` are the box's, which lies in the volume of `shape`; a size of 0: the crop
    meets nothing of the volume.
    """

    matrix: np.ndarray
    offset: np.ndarray
    start: Triple
    size: Triple
    shape: Triple

    @property
    def is_empty(self) -> bool:
        """Whether the crop meets nothing of the volume."""
        return 0 in self.size

    @property
    def within_box(self) -> np.ndarray:
        """(3, 4) float64: the matrix, and the offset from the box's first voxel."""
        return np.concatenate([self.matrix, (self.offset - self.start)[:, None]], axis=1)

    @property
    def extent(self) -> np.ndarray:
        """(2, 3) float64: from where to where the volume reaches, from the box's first voxel."""
        return np.array([np.zeros(3), self.shape]) - 0.5 - np.array(self.start)


@dataclass(frozen=True)
class Placements:
    """Those of samples; arrays of one entry each.

    `moved` (b,) bool says which are turned or zoomed; the others are read as they lie. `matrix`
    (b, 3, 3), `offset` (b, 3), `start`, `size` and `shape` (b, 3) are as a Placement has them.
    """

    moved: np.ndarray
    matrix: np.ndarray
    offset: np.ndarray
    start: np.ndarray
    size: np.ndarray
    shape: np.ndarray

    def of(self, i: int) -> Placement | None:
        """Sample i's; None where it is not moved."""
        if not self.moved[i]:
            return None
        start, size, shape = (
            _triple(each[i]) for each in (self.start, self.size, self.shape)
        )  # fmt: skip
        return Placement(self.matrix[i], self.offset[i], start, size, shape)


def place(
    kind: Spatial,
    u: np.ndarray,
    start: np.ndarray,
    crop: Triple,
    flips: np.ndarray,
    spacing_mm: np.ndarray,
    shape: np.ndarray,
) -> Placements:
    """Place crops of size `crop` at `start` (b, 3), drawn by `u` (N_DRAWS, b) in [0, 1).

    `flips` (b, 3) mirror the crop; `spacing_mm` and `shape` (b, 3) are the volumes'.
    """
    turned, zoomed = u[ROTATE] < kind.rotate, u[ZOOM] < kind.zoom
    angles = np.where(turned, np.deg2rad(kind.degrees) * (2 * u[ANGLE : ANGLE + 3] - 1), 0.0)
    scale = np.where(zoomed, _scales(kind.scale, u[SIDE], u[SCALE]), 1.0)
    spacing = np.asarray(spacing_mm, np.float64)
    # From voxels of the crop to millimetres, turned, and back to voxels.
    matrix = rotations(angles) * (spacing[:, None, :] / spacing[:, :, None])
    matrix = matrix * scale[:, None, None] * np.where(flips, -1.0, 1.0)[:, None, :]
    last = np.array(crop, np.float64) - 1
    offset = start + last / 2 - (matrix * (last / 2)).sum(2)
    low, high = boxes(matrix, offset, crop, np.asarray(shape, np.int64))
    return Placements(turned | zoomed, matrix, offset, low, high - low, np.asarray(shape, np.int64))


def boxes(
    matrix: np.ndarray, offset: np.ndarray, crop: Triple, shape: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """First voxels and ends (b, 3) int64 of the boxes that hold all neighbours of all positions."""
    reach = matrix * (np.array(crop, np.float64) - 1)
    lowest = offset + np.minimum(reach, 0).sum(2) - SLACK
    highest = offset + np.maximum(reach, 0).sum(2) + SLACK
    # Within a few voxels of the volume: no integer overflows, however far a crop reaches.
    low = np.clip(np.floor(lowest), 0, shape - 1).astype(np.int64)
    high = np.clip(np.floor(highest) + 2, low + 1, shape).astype(np.int64)
    misses = ((highest < -0.5) | (lowest > shape - 0.5)).any(1)
    return low, np.where(misses[:, None], low, high)


def rotations(angles: np.ndarray) -> np.ndarray:
    """Matrices (b, 3, 3) over (z, y, x) of rotations by `angles` (3, b) about x, then y, then z."""
    turned = np.broadcast_to(np.eye(3), (angles.shape[1], 3, 3))
    for axis, (slow, fast) in ((2, (0, 1)), (1, (0, 2)), (0, (1, 2))):
        about = np.broadcast_to(np.eye(3), turned.shape).copy()
        cosine, sine = np.cos(angles[axis]), np.sin(angles[axis])
        about[:, slow, slow] = about[:, fast, fast] = cosine
        about[:, slow, fast], about[:, fast, slow] = -sine, sine
        turned = about @ turned
    return turned


def _scales(scale: Range, side: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Half of the scales below 1, where the range has both sides of it."""
    low, high = scale
    if low < 1 < high:
        return np.where(side < 0.5, low + (1 - low) * u, 1 + (high - 1) * u)
    return low + (high - low) * u


def _triple(values: np.ndarray) -> Triple:
    z, y, x = values.tolist()
    return z, y, x
