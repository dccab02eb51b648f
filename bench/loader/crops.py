"""The volumes that crops are read from, and the crops that every contestant reads."""

import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from nibabel import nifti1
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from mim3d.dataio.geometry import Triple
from mim3d.dataio.loader.loader import LoaderConfig
from mim3d.dataio.loader.sampler import Sampler

CROP: Triple = (96, 96, 96)
SHAPE: Triple = (128, 192, 192)
"""Of generated volumes."""
MOST_CLASSES = 32  # of a label map
Crops = Sequence[tuple[int, Triple]]


def random_crops(shapes: Sequence[tuple[int, ...]], n: int, snap: int, first: int) -> Crops:
    """The `n` crops from the `first` on that a loader draws from volumes of these shapes.

    Starts are multiples of `snap`, or the last that fits.
    """
    volumes = np.arange(len(shapes))
    sampler = Sampler(LoaderConfig().seed, volumes, np.array(shapes), CROP, snap=snap)
    drawn = sampler.samples(first, n)
    crops = []
    for volume, (z, y, x) in zip(drawn.volume.tolist(), drawn.start.tolist(), strict=True):
        crops.append((volume, (z, y, x)))
    return crops


def found_volumes(folder: Path) -> list[np.ndarray]:
    """Images of a folder that a crop fits into, no label maps; ValueError where there are none.

    A file that cannot be read is left out, and said on stderr.
    """
    names = sorted(folder.rglob("*.npy")) + sorted(folder.rglob("*.nii*"))
    large = [
        v
        for v in map(readable, names)
        if v is not None and v.ndim == 3 and min(v.shape) >= max(CROP)
    ]
    images = [v for v in large if len(np.unique(v[::7, ::7, ::7])) > MOST_CLASSES]
    if not images:
        raise ValueError(f"{folder}: no image of at least {CROP} among {len(names)} files")
    return images


def readable(file: Path) -> np.ndarray | None:
    """Its voxels, or None where nibabel and numpy do not read them."""
    try:
        return voxels_of(file)
    except (HeaderDataError, ImageFileError, OSError, EOFError, ValueError, zlib.error) as why:
        print(f"{file}: left out: {why}", file=sys.stderr)
        return None


def voxels_of(file: Path) -> np.ndarray:
    """Voxels as they are stored (z, y, x)."""
    if file.suffix == ".npy":
        return np.load(file)
    image = nifti1.load(file)
    return np.ascontiguousarray(np.asanyarray(cast(Any, image.dataobj).get_unscaled()).T)
