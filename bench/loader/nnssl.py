"""Crops turned and zoomed as nnssl does it, re-made from its source and batchgenerators'.

nnssl (commit 7044864, BaseMAETrainer.get_training_transforms and nnsslDataLoader3D) stores volumes
as normalised float32 in blosc2, reads for every crop the patch that its widest turn needs, pads it,
and has batchgenerators' `augment_spatial` move the crop out of its middle by scipy's
`map_coordinates` of order 3, in float64, where it is turned or zoomed, cut it out where it is not.
"""

import importlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import map_coordinates

from mim3d.bench.loader.peers import nnunet_blocks
from mim3d.dataio.geometry import Triple
from mim3d.dataio.transforms.placement import Placement

WIDEST = math.radians(30.0)
ZOOM = 0.85
"""The turn and the zoom that `get_patch_size` makes room for."""


def patch_of(crop: int) -> int:
    """Voxels of a side of the patch that nnssl reads: 257 for a crop of 160."""
    return int(crop * (math.cos(WIDEST) + math.sin(WIDEST)) / ZOOM)


def stores(folder: Path, volumes: Sequence[np.ndarray], crop: int) -> list[Any]:
    """Volumes as nnssl keeps them, opened as it opens them: zstd level 8, blocks for its patch."""
    library: Any = importlib.import_module("blosc2")
    library.set_nthreads(1)
    side, opened = patch_of(crop), []
    for i, voxels in enumerate(volumes):
        values = voxels.astype(np.float32)
        values = (values - values.mean()) / values.std()
        block, chunk = nnunet_blocks(values.shape, (side, side, side))
        cparams = {"codec": library.Codec.ZSTD, "clevel": 8, "nthreads": 1}
        file = str(folder / f"{i}.b2nd")
        library.asarray(values, urlpath=file, chunks=chunk, blocks=block, cparams=cparams)
        opened.append(library.open(urlpath=file, mode="r", dparams={"nthreads": 1}, mmap_mode="r"))
    return opened


def patch(array: Any, start: Triple, crop: int) -> np.ndarray:
    """The padded patch about a crop, float32."""
    side = patch_of(crop)
    low = [at - (side - crop) // 2 for at in start]
    inside = tuple(
        slice(max(0, at), min(n, at + side)) for at, n in zip(low, array.shape, strict=True)
    )
    padding = [(max(0, -at), max(0, at + side - n)) for at, n in zip(low, array.shape, strict=True)]
    return np.pad(np.asarray(array[inside]), padding)


def moved(patch_: np.ndarray, at: Placement | None, crop: int, order: int) -> np.ndarray:
    """The crop (z, y, x) float32 out of the middle of its patch."""
    if at is None:
        first = (patch_.shape[0] - crop) // 2
        return patch_[(slice(first, first + crop),) * 3]
    steps = np.arange(crop, dtype=np.float64) - (crop - 1) / 2
    coords = np.array(np.meshgrid(steps, steps, steps, indexing="ij"))
    coords = (at.matrix @ coords.reshape(3, -1)).reshape(coords.shape)
    coords += patch_.shape[0] / 2 - 0.5
    found = map_coordinates(patch_.astype(float), coords, order=order, mode="constant", cval=0)
    return found.astype(patch_.dtype)
