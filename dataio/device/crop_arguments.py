"""Requests for crops as the arrays that `assemble_crops` takes."""

from collections.abc import Sequence

import numpy as np

from mim3d.dataio.reader.shard_reader import Request

RUN = 16  # voxels


def crop_arguments(
    requests: Sequence[Request], shapes: np.ndarray, origin: np.ndarray
) -> tuple[dict[str, np.ndarray], int]:
    """Arrays by the argument's name, and the unit of `start` in voxels.

    `shapes` (b, 3) are those of the volumes; `origin` (b, 3) the voxel of the volume that is the
    first of the crop's box of chunks.
    """
    starts = np.array([r.start for r in requests])
    # Snapped starts let the kernel read runs of voxels instead of single ones.
    unit = RUN if not ((starts - origin) % RUN).any() else 1
    arrays = {
        "start": (starts - origin) // unit,
        "box": np.stack([-origin, shapes - origin], axis=1),
        "pad": np.array([r.fill for r in requests], np.float32),  # (b, c), as all below
        "flip": np.array([r.flip for r in requests]),
    }
    rescales = [r.rescale for r in requests if r.rescale is not None]
    if rescales:
        arrays["scale"] = np.array([[a.scale for a in each] for each in rescales], np.float32)
        arrays["shift"] = np.array([[a.shift for a in each] for each in rescales], np.float32)
    if any(a.clips for each in rescales for a in each):
        arrays["clip"] = np.array([[a[:2] for a in each] for each in rescales], np.float32)
    return arrays, unit
