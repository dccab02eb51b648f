"""Who reads the crops: mim3d's reader and loader in several ways, and what people use instead."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mim3d.bench.loader import peers
from mim3d.bench.loader.crops import CROP, Crops
from mim3d.dataio.chunks.decode import IDENTITY
from mim3d.dataio.geometry import Triple
from mim3d.dataio.loader.loader import Loader, LoaderConfig
from mim3d.dataio.reader.corpus import opened_corpus
from mim3d.dataio.reader.shard_reader import ShardReader

Round = Callable[[Crops], None]


def make_readers(
    root: Path, shapes: Sequence[tuple[int, ...]], n_crops: int
) -> dict[str, tuple[int, Round]]:
    """mim3d's bare reader at three snaps, and straight to bfloat16."""
    with opened_corpus(root) as (corpus, _):
        table = corpus.table
    reader = ShardReader(table, root)

    def bare(volume: int, start: Triple, out: np.ndarray) -> None:
        reader.read_box(int(table.volumes["image"][volume]), start, CROP, out[None])

    rounded = np.empty((8, 1, *CROP), np.uint16)

    def half(volume: int, start: Triple, out: np.ndarray) -> None:
        # `out` only tells which place of the batch is due.
        place = rounded[out.__array_interface__["data"][0] // out.nbytes % len(rounded)]
        reader.read_box(int(table.volumes["image"][volume]), start, CROP, place, rescale=IDENTITY)

    contestants = {
        f"mim3d reader, snap {snap}": (snap, reading(bare, n_crops)) for snap in (16, 1, 32)
    }
    contestants["mim3d reader, bf16"] = (16, reading(half, n_crops))
    return contestants


def make_loaders(root: Path) -> dict[str, Loader]:
    """The loader in the ways it is used on a CPU."""
    moved: dict[str, Any] = {"normalise": "zscore", "augment": "mim"}
    ways: dict[str, dict[str, Any]] = {
        "mim3d loader": {},
        "mim3d loader, normalised + flips": moved,
        "mim3d loader, the same, ignoring padding": moved | {"ignore": ("padding",)},
        "mim3d loader, the same, ignoring air": moved | {"ignore": ("air",)},
        "mim3d loader, two views": {"views": 2, "augment": "contrastive"},
        "mim3d loader, cache=host": {"cache": "host"},
        "mim3d loader, bf16": {"dtype": "bfloat16"},
    }
    options = {"crop_size": CROP, "micro_batch": 8, "normalise": "none"}
    return {
        name: Loader(root, LoaderConfig(**(options | changed))) for name, changed in ways.items()
    }


def make_peers(
    folder: Path, root: Path, volumes: Sequence[np.ndarray], n_crops: int
) -> dict[str, tuple[int, Round]]:
    """What people use instead, each with its own store in `folder`."""
    arrays = [root / f"v{i:04d}" / "0" for i in range(len(volumes))]

    def own(name: str) -> Path:
        (folder / name).mkdir()
        return folder / name

    made: dict[str, Callable[[], peers.ReadCrop]] = {
        "npy memmap": lambda: peers.memmap(own("npy"), volumes),
        "blosc2 zstd-8 (nnU-Net, nnssl)": lambda: peers.blosc2_zstd(own("z8"), volumes),
        "blosc2 lz4": lambda: peers.blosc2_lz4(own("lz4"), volumes),
        "tensorstore, same corpus": lambda: peers.tensorstore_of(arrays),
        "zarr-python, same corpus": lambda: peers.zarr_python(arrays),
        "MONAI CacheDataset": lambda: peers.monai_cache(own("monai"), volumes),
    }
    return {name: (16, reading(make(), n_crops)) for name, make in made.items()}


def reading(read: peers.ReadCrop, n_crops: int) -> Round:
    """Read crops one after the other into a reused batch."""
    batch = np.empty((min(n_crops, 8), *CROP), np.float32)

    def run(crops: Crops) -> None:
        for i, (volume, start) in enumerate(crops):
            out = batch[i % len(batch)]
            read(volume, start, out)

    return run


def loading(loader: Loader) -> Round:
    """Take as many batches as the crops need; the loader draws its own starts, snapped to 16."""

    def run(crops: Crops) -> None:
        for _ in range(len(crops) // loader.config.micro_batch):
            next(loader)

    return run
