"""Where voxels lie: shape and affine together, compared, cropped and described."""

from dataclasses import dataclass
from itertools import product

import numpy as np

from mim3d.dataio.manifest import Affine, Triple

# Corners of two grids may differ by this share of the smallest voxel side: headers round.
TOLERANCE_VOXELS = 0.1


@dataclass(frozen=True)
class Grid:
    """`shape` is (z, y, x); `affine` maps the voxel index (x, y, z, 1) to world mm."""

    shape: Triple
    affine: np.ndarray

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel sides in array order (z, y, x)."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return (z, y, x)

    @property
    def nested_affine(self) -> Affine:
        """The affine as plain tuples."""
        return tuple(tuple(float(v) + 0.0 for v in row) for row in self.affine)

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


def obliquity_deg(affine: np.ndarray) -> float:
    """Largest angle between a voxel axis and its closest world axis, in degrees."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.degrees(np.arccos(np.clip(np.abs(axes).max(axis=0), -1, 1)).max()))
