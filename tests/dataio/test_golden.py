"""The bytes of converted volumes and of the loader's batches, frozen.

A change here changes what a seed means: every run in progress would go on with other samples, and
corpora would be converted anew. Say so in CHANGELOG.md, and raise the format of what changed (a
conversion's FORMAT, a loader's STATE_FORMAT). Volumes are made of whole numbers, so that nothing
depends on the processor; only frames depend on the version of blosc, and are looked at with that.
"""

import hashlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from numcodecs import blosc  # pyright: ignore[reportAttributeAccessIssue]

from mim3d.dataio.convert.run import convert
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.loader.loader import Loader, LoaderConfig
from mim3d.dataio.sources.source import Source

SHAPES = {
    "one": (40, 24, 33),
    "two": (17, 50, 20),
    "three": (32, 32, 32),
    "four": (9, 21, 40),
}  # x, y, z
BLOSC = "1.21.7.dev"
SHARDS = {
    "lz4": "e738f368d2e0fac4",
    "zstd": "4bb04439d3cc107e",
    "uint8": "569d3f1c048d325d",
}
RECIPES = {
    "lz4": Conversion(),
    "zstd": Conversion(codec="zstd", shuffle="byte", chunk=8, orientation="LPS"),
    "uint8": Conversion(dtype="uint8", window=(10.0, 200.0), chunk=32),
}
BASE = {"crop_size": (16, 12, 20), "micro_batch": 2, "normalise": "none", "threads": 1}
LOADERS: dict[str, tuple[str, dict, int]] = {  # corpus, settings, ranks
    "plain": ("lz4", {}, 1),
    "crop beyond the volume": ("lz4", {"crop_size": (48, 48, 48)}, 1),
    "snap 1": ("lz4", {"snap": 1}, 1),
    "window": ("lz4", {"normalise": "window:0:100"}, 1),
    "percentile": ("lz4", {"normalise": "percentile"}, 1),
    "mim": ("lz4", {"augment": "mim", "seed": 3}, 1),
    "mim, bfloat16": ("lz4", {"augment": "mim", "dtype": "bfloat16"}, 1),
    "mim, float16": ("lz4", {"augment": "mim", "dtype": "float16"}, 1),
    "label": ("lz4", {"label": "seg", "augment": "mim"}, 1),
    "foreground": ("lz4", {"label": "seg", "foreground_fraction": 0.7}, 1),
    "weighting by voxels": ("lz4", {"weighting": "voxels"}, 1),
    "three ranks": ("lz4", {"augment": "mim"}, 3),
    "two nodes": ("lz4", {"nodes": 2, "node_rotation": 0.5}, 2),
    "host cache": ("lz4", {"cache": "host", "augment": "mim"}, 1),
    "zstd, LPS": ("zstd", {"augment": "mim"}, 1),
    "uint8": ("uint8", {"augment": "mim"}, 1),
}
BATCHES = {
    "plain": "f0a021f5eabbd3eb",
    "crop beyond the volume": "a71879bfe2bef3a8",
    "snap 1": "18cc55b98005da3f",
    "window": "8017bfa20ce3b67c",
    "percentile": "934ee5c4b2ab3e62",
    "mim": "5452bf937cc252c2",
    "mim, bfloat16": "35735c529279f5bb",
    "mim, float16": "e666d68b24f9a16e",
    "label": "c429b8b7fbfe96f0",
    "foreground": "809eb80babf797c4",
    "weighting by voxels": "64bd382ad9ba21b9",
    "three ranks": "7f5c7ab89cdd8931",
    "two nodes": "ac72dae02c327f24",
    "host cache": "ae7794717f874a69",
    "zstd, LPS": "c63626b129cb5174",
    "uint8": "72a9b7e172c0de70",
}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> Path:
    """A corpus of every recipe."""
    root = tmp_path_factory.mktemp("golden")
    sources = []
    for k, (name, shape) in enumerate(SHAPES.items()):
        x, y, z = np.ogrid[: shape[0], : shape[1], : shape[2]]
        voxels = ((x * x + 3 * y * z + 7 * k) % 251 - 20 * (x > 9)).astype(np.int16)
        label = ((x // 8 + y // 8 + z // 8) % 3).astype(np.uint8)
        affine = np.diag([-1.0 if k % 2 else 1.0, 2.0, 1.5, 1.0])
        paths = [str(root / f"{name}.nii"), str(root / f"{name}-seg.nii")]
        nib.save(nib.Nifti1Image(voxels, affine), paths[0])  # pyright: ignore
        nib.save(nib.Nifti1Image(label, affine), paths[1])  # pyright: ignore
        sources.append(Source(name, (paths[0],), {"seg": paths[1]}, subject=name))
    for recipe, conversion in RECIPES.items():
        assert not convert(sources, root / recipe, conversion, workers=1).rejections
    return root


def digest(*parts: bytes) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little") + part)
    return found.hexdigest()[:16]


def shards(corpus: Path) -> str:
    """Bytes of every shard, wherever its key puts it."""
    found = []
    for name in sorted(SHAPES):
        for array, first_name in (("0", "0"), ("labels.seg", "labels/seg/0")):
            files = [f for f in (corpus / name / array).iterdir() if f.suffix != ".json"]
            found += [f"{name}/{first_name}".encode(), *(file.read_bytes() for file in files)]
            assert len(files) == 1
    return digest(*found)


def batches(corpus: Path, settings: dict, world: int) -> str:
    """Dtypes, shapes and bytes of four batches of each rank."""
    parts = []
    for rank in range(world):
        with Loader(corpus, LoaderConfig(**BASE | settings), rank=rank, world=world) as loader:
            for _ in range(4):
                batch = next(loader)
                for tensor in (batch.image, batch.label, batch.volume, batch.start, batch.sample):
                    if tensor is not None:
                        parts.append(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
                        parts.append(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest(*parts)


@pytest.mark.parametrize("recipe", RECIPES)
def test_converted_volumes_are_the_same_bytes(corpora, recipe):
    if blosc.__version__ != BLOSC:
        pytest.skip(f"blosc {blosc.__version__} may compress otherwise than {BLOSC}")
    assert shards(corpora / recipe) == SHARDS[recipe]


@pytest.mark.parametrize("name", LOADERS)
def test_the_loaders_batches_are_the_same_bytes(corpora, name):
    corpus, settings, world = LOADERS[name]
    assert batches(corpora / corpus, settings, world) == BATCHES[name]
