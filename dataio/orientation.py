"""Axis permutations and flips, exact and as views: RAS+ is x to the right, y front, z up."""

from dataclasses import dataclass
from functools import lru_cache

import nibabel as nib
import numpy as np

from mim3d.dataio.errors import Mim3dError

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
    codes = nib.orientations.ornt2axcodes(_closest_axes(affine))
    return "".join(code or "?" for code in codes)


def _closest_axes(affine: np.ndarray) -> np.ndarray:
    """nibabel's io_orientation, kept: it is an SVD, and the volumes of a scanner share theirs."""
    return _closest_axes_of(np.ascontiguousarray(affine[:3, :3], np.float64).tobytes())


@lru_cache(maxsize=1024)
def _closest_axes_of(linear: bytes) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.frombuffer(linear).reshape(3, 3)
    return nib.orientations.io_orientation(affine)


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
    wanted = nib.orientations.axcodes2ornt(tuple(target))
    change = nib.orientations.ornt_transform(_closest_axes(affine), wanted)
    axes, flips = [0, 0, 0], [False, False, False]
    for source, (destination, sign) in enumerate(change):
        axes[int(destination)] = source
        flips[int(destination)] = sign < 0
    return Reorientation((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))
