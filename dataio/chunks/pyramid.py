"""Coarser scales of an image for viewers: each axis halved by means until a volume is small."""

from collections.abc import Iterator

import numpy as np

LARGEST = 64  # voxels along the longest side of the coarsest scale


def n_scales(shape: tuple[int, ...]) -> int:
    """Scales beyond the first of an image (z, y, x)."""
    return max(0, (max(shape) - 1).bit_length() - (LARGEST - 1).bit_length())


def coarser(voxels: np.ndarray) -> Iterator[np.ndarray]:
    """Every coarser scale of an image ((c,) z, y, x), in its dtype."""
    for _ in range(n_scales(voxels.shape[-3:])):
        voxels = halved(voxels)
        yield voxels


def halved(voxels: np.ndarray) -> np.ndarray:
    """Means of two by two by two voxels; at an odd end, of those there are. Integers are rounded.

    Plane by plane, so that float32 of a few planes is all that is held beside.
    """
    if voxels.ndim > 3:
        return np.stack([halved(channel) for channel in voxels])
    nz, ny, nx = voxels.shape
    out = np.empty((-(-nz // 2), -(-ny // 2), -(-nx // 2)), voxels.dtype.newbyteorder("="))
    exact = np.float64 if voxels.dtype.itemsize > 2 else np.float32
    for z in range(len(out)):
        pair = voxels[2 * z : 2 * z + 2].astype(exact)
        plane = pair[0] if len(pair) == 1 else (pair[0] + pair[1]) / 2
        plane = np.pad(plane, ((0, ny % 2), (0, nx % 2)), mode="edge")
        plane = (plane[0::2] + plane[1::2]) / 2
        plane = (plane[:, 0::2] + plane[:, 1::2]) / 2
        out[z] = plane if out.dtype.kind == "f" else np.rint(plane)
    return out
