"""What a user would read crops with instead: each peer stores the volumes its own way first."""

import importlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mim3d.dataio.geometry import Triple

# Reads a crop of a volume into (z, y, x) float32.
ReadCrop = Callable[[int, Triple, np.ndarray], None]


def memmap(folder: Path, volumes: Sequence[np.ndarray]) -> ReadCrop:
    """Uncompressed .npy, memory-mapped: near the limit, at several times the disk space."""
    maps = []
    for i, voxels in enumerate(volumes):
        np.save(folder / f"{i}.npy", voxels)
        maps.append(np.load(folder / f"{i}.npy", mmap_mode="r"))

    def read(volume: int, start: Triple, out: np.ndarray) -> None:
        out[...] = maps[volume][_box(start, out.shape)]

    return read


def blosc2_zstd(folder: Path, volumes: Sequence[np.ndarray]) -> ReadCrop:
    """Store as nnU-Net and nnssl do: zstd level 8, their block and chunk sizes, mmap."""
    return _blosc2(folder, volumes, "ZSTD", 8)


def blosc2_lz4(folder: Path, volumes: Sequence[np.ndarray]) -> ReadCrop:
    """Store the same with lz4 level 5."""
    return _blosc2(folder, volumes, "LZ4", 5)


def _blosc2(folder: Path, volumes: Sequence[np.ndarray], codec: str, level: int) -> ReadCrop:
    library: Any = importlib.import_module("blosc2")
    library.set_nthreads(1)
    arrays: list[Any] = []
    for i, voxels in enumerate(volumes):
        file = str(folder / f"{i}.b2nd")
        block, chunk = nnunet_blocks(voxels.shape, (96, 96, 96))
        cparams = {"codec": getattr(library.Codec, codec), "clevel": level, "nthreads": 1}
        library.asarray(voxels, urlpath=file, chunks=chunk, blocks=block, cparams=cparams)
        arrays.append(library.open(urlpath=file, mode="r", dparams={"nthreads": 1}, mmap_mode="r"))

    def read(volume: int, start: Triple, out: np.ndarray) -> None:
        out[...] = arrays[volume][_box(start, out.shape)]

    return read


def nnunet_blocks(
    shape: tuple[int, ...], patch: Triple, itemsize: int = 4
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Block and chunk shapes as nnU-Net v2 chooses them (comp_blosc2_params).

    Blocks shrink from the patch's next power of two until they fit 80 % of a 32 KiB L1 cache;
    chunks grow by blocks up to 80 % of 1.4 MB, or 1.5 times the patch on average.
    """
    block = [2 ** math.ceil(math.log2(side)) for side in patch]
    while math.prod(block) * itemsize > 32768 * 0.8:
        axis = max((i for i in range(3) if block[i] > 1), key=lambda i: block[i] / patch[i])
        block[axis] = min(2 ** math.floor(math.log2(block[axis] - 1)), shape[axis])
    block = [min(b, n) for b, n in zip(block, shape, strict=True)]
    chunk = list(block)
    while math.prod(chunk) * itemsize < 1441792 * 0.8 and chunk != list(shape):
        growing = [i for i in range(3) if chunk[i] < shape[i]]
        axis = min(growing, key=lambda i: chunk[i] / block[i])
        before = chunk[axis]
        chunk[axis] = min(chunk[axis] + block[axis], shape[axis])
        if sum(c / p for c, p in zip(chunk, patch, strict=True)) / 3 > 1.5:
            chunk[axis] = before
            break
    return tuple(block), tuple(chunk)


def tensorstore_of(arrays: Sequence[Path]) -> ReadCrop:
    """Tensorstore on the corpus itself, in one thread."""
    import tensorstore

    context = tensorstore.Context(
        {"data_copy_concurrency": {"limit": 1}, "cache_pool": {"total_bytes_limit": 10_000_000}}
    )
    opened = [
        tensorstore.open(
            {
                "driver": "zarr3",
                "kvstore": {"driver": "file", "path": str(path)},
                "recheck_cached_data": False,
                "recheck_cached_metadata": False,
            },
            context=context,
        ).result()
        for path in arrays
    ]

    def read(volume: int, start: Triple, out: np.ndarray) -> None:
        out[...] = opened[volume][_box(start, out.shape)].read().result()

    return read


def zarr_python(arrays: Sequence[Path]) -> ReadCrop:
    """zarr-python on the corpus itself, as installed and configured by default."""
    import zarr

    opened: list[Any] = [zarr.open_array(str(path), mode="r") for path in arrays]

    def read(volume: int, start: Triple, out: np.ndarray) -> None:
        out[...] = opened[volume][_box(start, out.shape)]

    return read


def monai_cache(folder: Path, volumes: Sequence[np.ndarray]) -> ReadCrop:
    """MONAI's CacheDataset: whole volumes in memory, a random crop of them by its transform.

    It chooses the start itself, so `start` is not used.
    """
    from monai.data.dataset import CacheDataset
    from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, RandSpatialCropd

    items = []
    for i, voxels in enumerate(volumes):
        np.save(folder / f"monai-{i}.npy", voxels)
        items.append({"image": str(folder / f"monai-{i}.npy")})
    steps = [
        LoadImaged(keys="image"),
        EnsureChannelFirstd(keys="image", channel_dim="no_channel"),
        RandSpatialCropd(keys="image", roi_size=(96, 96, 96), random_size=False),
    ]
    dataset = CacheDataset(items, Compose(steps), num_workers=1, progress=False)

    def read(volume: int, start: Triple, out: np.ndarray) -> None:
        item: Any = dataset[volume]
        out[...] = item["image"][0].numpy()

    return read


def _box(start: Triple, size: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(a, a + s) for a, s in zip(start, size, strict=True))
