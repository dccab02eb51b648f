"""Corpora are what others' code reads: ome-zarr-models, niizarr, zarr-python, zarrs, tensorstore.

The oracle is always nibabel on the source file, brought to RAS+ by nibabel itself.
"""

import warnings
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import pytest
import zarr
from nibabel.arrayproxy import ArrayProxy
from old_tables import write_as_format

from mim3d.dataio.convert.run import convert
from mim3d.dataio.corpus.arrays import NEWEST, label_path, n_files
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.corpus.manifest import VolumeRecord
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.sources.discover import discover
from mim3d.dataio.sources.phantom import make_cohort
from mim3d.dataio.sources.source import Source


@pytest.fixture(scope="module", params=["lz4", "zstd-ome", "lz4-older"])
def corpus(request, tmp_path_factory) -> Corpus:
    """Phantoms with labels, a two-channel volume, and a 4D one split by time."""
    codec, _, kind = request.param.partition("-")
    root = tmp_path_factory.mktemp(f"interop-{request.param}")
    sources = list(discover(str(make_cohort(root / "cohort", 6))).sources)
    rng = np.random.default_rng(5)
    affine = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, -7], [0, 0, 3.0, 9], [0, 0, 0, 1]])
    for name in ("t1", "t2"):
        voxels = rng.integers(0, 3000, (40, 33, 20)).astype(np.uint16)
        nib.save(nib.Nifti1Image(voxels, affine), root / f"{name}.nii.gz")
    sources.append(Source("both", tuple(str(root / f"{n}.nii.gz") for n in ("t1", "t2"))))
    frames = rng.normal(size=(9, 8, 7, 2)).astype(np.float32)
    nib.save(nib.Nifti1Image(frames, affine), root / "bold.nii")
    sources.append(Source("bold", (str(root / "bold.nii"),)))
    conversion = Conversion(codec=codec, ome_labels=kind == "ome")
    report = convert(sources, root / "c.zarr", conversion, workers=1)
    assert (report.n_volumes, report.rejections) == (9, ())
    if kind == "older":
        write_as_format(root / "c.zarr", 5, 16)
    return Corpus.open(root / "c.zarr")


def canonical(path: str, frame: int = -1) -> tuple[np.ndarray, np.ndarray]:
    """Unscaled voxels (z, y, x) and affine in RAS+, by nibabel alone."""
    image = cast(nib.Nifti1Image, nib.load(path))
    voxels = cast(ArrayProxy, image.dataobj).get_unscaled()
    voxels = voxels[..., frame] if frame >= 0 else voxels
    plain = nib.as_closest_canonical(nib.Nifti1Image(voxels, image.affine))
    assert plain.affine is not None
    return np.asarray(plain.dataobj).transpose(2, 1, 0), plain.affine


def expected(record: VolumeRecord) -> np.ndarray:
    """Voxels (c, z, y, x) that the corpus must hold."""
    return np.stack([canonical(path, record.frame)[0] for path in record.sources])


def image_path(corpus: Corpus, record: VolumeRecord) -> Path:
    return corpus.root / record.id / "0"


def with_channels(voxels: Any) -> np.ndarray:
    array = np.asarray(voxels)
    return array if array.ndim == 4 else array[None]


def test_zarr_python_reads_the_voxels_of_nibabel(corpus):
    root = zarr.open_group(corpus.root, mode="r")
    for record in corpus.records:
        array = cast(zarr.Array, root[f"{record.id}/0"])
        np.testing.assert_array_equal(with_channels(array[...]), expected(record))
        for label in record.labels:
            path = f"{record.id}/{label_path(label.name, record.layout)}"
            array = cast(zarr.Array, root[path])
            np.testing.assert_array_equal(array[...], canonical(label.source)[0])


def test_zarrs_reads_the_same(corpus):
    pytest.importorskip("zarrs")
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        for record in corpus.records:
            array = zarr.open_array(image_path(corpus, record), mode="r")
            np.testing.assert_array_equal(with_channels(array[...]), expected(record))


def test_tensorstore_reads_the_same(corpus):
    tensorstore = pytest.importorskip("tensorstore")
    for record in corpus.records:
        where = {"driver": "file", "path": str(image_path(corpus, record))}
        array = tensorstore.open({"driver": "zarr3", "kvstore": where}).result()
        np.testing.assert_array_equal(with_channels(array.read().result()), expected(record))
        for label in record.labels:
            path = corpus.root / record.id / label_path(label.name, record.layout)
            where = {"driver": "file", "path": str(path)}
            array = tensorstore.open({"driver": "zarr3", "kvstore": where}).result()
            np.testing.assert_array_equal(array.read().result(), canonical(label.source)[0])


def test_few_files_a_volume(corpus):
    """Files and folders: 5, and with one label 3 more, or 7 as OME-Zarr has it; the dry run counts
    the same."""
    for record in corpus.records:
        found = 1 + len(list((corpus.root / record.id).rglob("*")))
        older = 22 if record.labels else 12
        n_axes = len(record.array_shape) - 3
        wanted = older + n_axes
        if record.layout > 1:
            wanted = n_files(len(record.labels), record.layout)
            assert wanted == {2: (5, 12), 3: (5, 8)}[record.layout][len(record.labels)]
        assert found == wanted, record.id


def test_zarr_python_finds_all_that_is_in_a_volume_and_warns_of_nothing(corpus):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for record in corpus.records:
            group = zarr.open_group(corpus.root / record.id, mode="r")
            names = {name for name, _ in group.members(max_depth=None)}
            inside = {label_path(label.name, record.layout) for label in record.labels}
            above = {str(p) for path in inside for p in Path(path).parents} - {"."}
            assert names == {"0", "nifti"} | inside | above
            np.testing.assert_array_equal(
                with_channels(cast(zarr.Array, group["0"])[...]), expected(record)
            )


def test_zarr_python_lists_the_root_and_warns_of_nothing(corpus):
    """Of a corpus whose own files lie in the root it warns: they stay where they were."""
    if corpus.records[0].layout == 1:
        assert (corpus.root / "manifest.jsonl").is_file()
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        root = zarr.open_group(corpus.root, mode="r")
        assert {name for name, _ in root.groups()} == {record.id for record in corpus.records}
        assert {name for name, _ in root.arrays()} == {"mim3d"}
        assert len(list(root.members(max_depth=None))) > 2 * len(corpus.records)


def test_ome_zarr_models_validates_every_image_and_label(corpus):
    models = pytest.importorskip("ome_zarr_models.v05")
    from ome_zarr_models.v05.image_label import ImageLabel

    root = zarr.open_group(corpus.root, mode="r")
    for record in corpus.records:
        image = models.Image.from_zarr(root[record.id])
        scales, *others = image.attributes.ome.multiscales
        (level,) = scales.datasets
        assert [axis.name for axis in scales.axes][-3:] == ["z", "y", "x"]
        scale = level.coordinateTransformations[0].scale[-3:]
        np.testing.assert_allclose(scale, record.spacing_mm, rtol=1e-6)
        beside = {other.name: other.datasets[0].path for other in others}
        if record.layout == NEWEST:
            assert beside == {a.name: label_path(a.name, NEWEST) for a in record.labels}
            continue
        names = image.labels.attributes.ome.labels if image.labels else []
        assert names == [label.name for label in record.labels] and not others
        for label in record.labels:
            found = ImageLabel.from_zarr(cast(zarr.Group, root[f"{record.id}/labels/{label.name}"]))
            properties = cast(Any, found.attributes.ome.image_label).properties
            assert {p.label_value for p in properties} == set(label.classes)


def test_nifti_zarr_opens_it_with_the_same_affine(corpus):
    niizarr = pytest.importorskip("niizarr")
    for record in corpus.records:
        image = niizarr.zarr2nii(str(corpus.root / record.id))
        affine = image.header.get_best_affine()
        np.testing.assert_allclose(affine, record.affine, rtol=0, atol=1e-5)
        if record.frame < 0:
            np.testing.assert_allclose(affine, canonical(record.sources[0])[1], atol=1e-4)
        voxels = np.asarray(image.dataobj)
        if record.channels > 1:
            voxels = voxels[:, :, :, 0, :].transpose(3, 2, 1, 0)
        else:
            voxels = voxels.transpose(2, 1, 0)[None]
        np.testing.assert_array_equal(voxels, expected(record))


def test_world_corners_agree_with_nibabel(corpus):
    for record in corpus.records:
        _, affine = canonical(record.sources[0], record.frame)
        z, y, x = record.shape
        corners = np.array(
            [[i, j, k, 1] for i in (0, x - 1) for j in (0, y - 1) for k in (0, z - 1)]
        )
        ours = corners @ np.array(record.affine).T
        np.testing.assert_allclose(ours, corners @ affine.T, atol=1e-3)


def test_real_odd_headers_read_back_through_tensorstore(tmp_path, real_data):
    tensorstore = pytest.importorskip("tensorstore")
    found = discover(str(real_data / "nifti_zoo"))
    report = convert(found.sources, tmp_path / "c.zarr", workers=1)
    corpus = Corpus.open(tmp_path / "c.zarr")
    assert {r.code for r in report.rejections} == {"non-finite", "rgb"}
    for record in corpus.records:
        where = {"driver": "file", "path": str(image_path(corpus, record))}
        array = tensorstore.open({"driver": "zarr3", "kvstore": where}).result()
        stored = with_channels(array.read().result())
        np.testing.assert_allclose(stored, expected(record), rtol=1e-6)
