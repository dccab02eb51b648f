"""Coarser scales for viewers: means of the finer ones, where OME-Zarr's readers look for them."""

import json
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import pytest
import zarr

from mim3d.dataio.chunks.pyramid import coarser, halved, n_scales
from mim3d.dataio.convert.merge import merge
from mim3d.dataio.convert.run import convert
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.inspect.verify import verify
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.sources.source import Source
from mim3d.engine.commands.cli import main

SHAPE = (150, 130, 40)  # x, y, z
AFFINE = np.diag([1.5, 2.0, 3.0, 1.0])
AFFINE[:3, 3] = (-7, 11, 13)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A volume whose values are its world's x, one of two channels with a label, a small one."""
    root = tmp_path_factory.mktemp("pyramid")
    rng = np.random.default_rng(1)
    x = np.broadcast_to(np.arange(SHAPE[0])[:, None, None], SHAPE)
    images = {
        "ramp": (1.5 * x - 7).astype(np.float32),
        "a": rng.integers(0, 3000, SHAPE).astype(np.int16),
        "b": rng.integers(0, 3000, SHAPE).astype(np.int16),
        "seg": rng.integers(0, 3, SHAPE).astype(np.uint8),
        "small": rng.integers(0, 3000, (30, 20, 10)).astype(np.int16),
    }
    paths = {name: str(root / f"{name}.nii") for name in images}
    for name, voxels in images.items():
        nib.save(nib.Nifti1Image(voxels, AFFINE), paths[name])
    sources = [
        Source("ramp", (paths["ramp"],)),
        Source("two", (paths["a"], paths["b"]), {"seg": paths["seg"]}),
        Source("small", (paths["small"],)),
    ]
    report = convert(sources, root / "c.zarr", Conversion(pyramid=True), workers=1)
    assert report.n_volumes == 3 and not report.rejections
    return root


def scales(root: Path, id: str) -> list[np.ndarray]:
    group = zarr.open_group(root / "c.zarr" / id, mode="r")
    names = sorted(name for name, _ in group.arrays() if name.isdigit())
    return [np.asarray(cast(zarr.Array, group[name])[...]) for name in names]


def test_each_scale_is_the_mean_of_eight_voxels_of_the_one_before(root):
    for id, count in (("ramp", 3), ("two", 3), ("small", 1)):
        found = scales(root, id)
        assert len(found) == count and max(found[-1].shape[-3:]) <= 64
        for fine, coarse in pairwise(found):
            even = [n // 2 * 2 for n in fine.shape[-3:]]
            inner = fine[..., : even[0], : even[1], : even[2]].astype(np.float64)
            z, y, x = (n // 2 for n in even)
            means = inner.reshape(*fine.shape[:-3], z, 2, y, 2, x, 2).mean(axis=(-5, -3, -1))
            error = np.abs(coarse[..., :z, :y, :x] - means).max()
            assert error <= (1e-4 if coarse.dtype.kind == "f" else 0.5)
            assert coarse.dtype == fine.dtype


def test_an_odd_end_is_the_mean_of_what_there_is():
    voxels = np.arange(27, dtype=np.float32).reshape(3, 3, 3)
    coarse = halved(voxels)
    assert coarse.shape == (2, 2, 2)
    assert coarse[1, 1, 1] == voxels[2, 2, 2] and coarse[0, 0, 1] == voxels[:2, :2, 2].mean()
    assert [each.shape for each in coarser(np.zeros((65, 3, 1), np.uint8))] == [(33, 2, 1)]
    assert (n_scales((64, 64, 64)), n_scales((512, 3, 3)), n_scales((1, 1, 1))) == (0, 3, 0)
    full = np.full((2, 2, 2), 255, np.uint8)
    assert halved(full).item() == 255 and halved(full.astype(">i2")).item() == 255


def test_scale_and_translation_put_every_scale_where_it_lies(root):
    """The value of each voxel is its place in the world, at any scale."""
    document = json.loads((root / "c.zarr/ramp/zarr.json").read_text())
    (image,) = document["attributes"]["ome"]["multiscales"]
    for level, voxels in zip(image["datasets"], scales(root, "ramp"), strict=True):
        scale, shift = (t[t["type"]][2] for t in level["coordinateTransformations"])
        n = (SHAPE[0] // int(scale / 1.5)) // 2 * 2  # the odd end aside
        np.testing.assert_allclose(voxels[0, 0, :n], shift + scale * np.arange(n), rtol=1e-5)


def test_ome_zarr_models_validates_the_scales(root):
    models = pytest.importorskip("ome_zarr_models.v05")
    group = zarr.open_group(root / "c.zarr", mode="r")
    for id, count in (("ramp", 3), ("two", 3), ("small", 1)):
        image = models.Image.from_zarr(group[id])
        first = image.attributes.ome.multiscales[0]
        assert [level.path for level in first.datasets] == [str(n) for n in range(count)]


def test_ome_zarrs_own_reader_shows_every_scale(root):
    """ome-zarr needs s3fs, whose botocore is not that of our tests: installed alone, it is run."""
    reader = pytest.importorskip("ome_zarr.reader")
    from ome_zarr.io import parse_url  # pyright: ignore[reportMissingImports]

    for id in ("ramp", "two"):
        location = parse_url(str(root / "c.zarr" / id))
        (node,) = [n for n in reader.Reader(location)() if n.data]
        for shown, stored in zip(node.data, scales(root, id), strict=True):
            np.testing.assert_array_equal(np.asarray(shown), stored)


def test_scales_are_verified_mended_merged_and_forecast(root, tmp_path, capsys):
    corpus = tmp_path / "c.zarr"
    files = ["--workers", "1", "--pyramid"]
    (tmp_path / "in").mkdir()
    for name in ("a", "small"):
        (tmp_path / "in" / f"{name}.nii").write_bytes((root / f"{name}.nii").read_bytes())
    words = ["convert", str(tmp_path / "in"), str(corpus), *files]
    json_file = tmp_path / "f.json"
    assert main([*words, "--dry-run", "--json", str(json_file)]) == 0
    assert main(words) == 0
    found = 1 + len(list(corpus.rglob("*")))
    forecast = json.loads(json_file.read_text())
    assert abs(forecast.get("figures", forecast)["estimated_files"] - found) <= 2
    assert verify(corpus).problems == ()
    shard = corpus / "a" / "1" / "c.0.0.0"
    content = bytearray(shard.read_bytes())
    content[40] ^= 1
    shard.write_bytes(content)
    assert {problem.where for problem in verify(corpus).problems} == {"a/1/c.0.0.0"}
    assert main(["verify", str(corpus), "--mend"]) == 0 and verify(corpus).problems == ()
    other = tmp_path / "other.zarr"
    convert([Source("x", (str(root / "b.nii"),))], other, Conversion(pyramid=True), workers=1)
    merge([corpus, other], tmp_path / "both.zarr")
    assert verify(tmp_path / "both.zarr").problems == ()
    records = {r.id: len(r.scales) for r in Corpus.open(tmp_path / "both.zarr").records}
    assert records == {"a": 2, "small": 0, "x": 2}


def test_without_it_there_is_one_scale_and_nothing_else_changes(root, tmp_path):
    plain: Any = convert([Source("r", (str(root / "ramp.nii"),))], tmp_path / "c.zarr", workers=1)
    assert plain.records[0].scales == ()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [n for n, _ in zarr.open_group(tmp_path / "c.zarr/r", mode="r").arrays()] != []
    shard = (root / "c.zarr/ramp/0/c.0.0.0").read_bytes()
    assert (tmp_path / "c.zarr/r/0/c.0.0.0").read_bytes() == shard
