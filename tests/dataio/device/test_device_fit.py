"""Volumes of several dtypes under cache='device': the host keeps them, with the same crops."""

import shutil
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from mim3d.bench.corpora import corpus_of
from mim3d.dataio.convert.run import convert
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.device.device_fit import unlike
from mim3d.dataio.errors import CorpusWarning
from mim3d.dataio.loader.config import LoaderConfig
from mim3d.dataio.loader.loader import Loader
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.sources.discover import discover

CROP = (16, 16, 16)


def make(folder: Path, kinds: list[type], **options: object) -> Path:
    """A corpus with a volume of each dtype."""
    (folder / "nifti").mkdir(parents=True)
    for number, kind in enumerate(kinds):
        voxels = np.random.default_rng(number).integers(0, 200, (20, 24, 18)).astype(kind)
        image = nibabel.Nifti1Image(voxels, np.eye(4))  # pyright: ignore[reportPrivateImportUsage]
        nibabel.save(image, folder / "nifti" / f"p{number}.nii.gz")  # pyright: ignore[reportPrivateImportUsage]
    sources = discover(str(folder / "nifti")).sources
    convert(sources, folder / "corpus.zarr", Conversion(**options), workers=1)  # type: ignore[arg-type]
    return folder / "corpus.zarr"


def test_mixed_dtypes_go_on_with_the_hosts_cache_and_the_same_crops(tmp_path: Path) -> None:
    mixed = make(tmp_path, [np.int16, np.float32, np.uint8])
    options = {"crop_size": CROP, "micro_batch": 2, "threads": 1}
    with (
        pytest.warns(
            CorpusWarning, match=r"volumes of float32, int16, uint8: cache='device' needs"
        ),
        Loader(mixed, LoaderConfig(**options, cache="device")) as device,
        Loader(mixed, LoaderConfig(**options, cache="host")) as host,
    ):
        assert device.config.cache == "host"
        for _ in range(3):
            one, two = next(device), next(host)
            assert torch.equal(one.image, two.image)


def test_labels_that_are_unlike_are_alike_once_their_classes_are_few(tmp_path: Path) -> None:
    volumes = [np.full((20, 24, 18), 7 + n, np.int16) for n in range(2)]
    config = LoaderConfig(crop_size=CROP, micro_batch=2, threads=1, cache="device", label="seg")
    for largest in (300, 255):
        labels = [np.zeros(volume.shape, np.int16) for volume in volumes]
        labels[0][::2], labels[1][::2] = largest, 1
        corpus = corpus_of(tmp_path / f"{largest}.zarr", volumes, labels)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", CorpusWarning)
            with Loader(corpus, config) as loader:
                next(loader)
        if largest > 255:
            assert "labels 'seg' of int16, uint8: cache='device'" in str(told[0].message)
            assert "(labels of classes 0 to 255 are alike: renumber" in str(told[0].message)
        assert loader.config.cache == ("host" if largest > 255 else "device")


def test_what_the_warning_advises_is_taken_by_the_device(tmp_path: Path) -> None:
    mixed = make(tmp_path, [np.int16, np.uint8])
    alike = tmp_path / "alike.zarr"
    sources = discover(str(tmp_path / "nifti")).sources
    convert(sources, alike, Conversion(dtype="float32"), workers=1)
    table = Corpus.open(alike).table
    assert unlike(table, np.arange(2)) == ""
    assert unlike(Corpus.open(mixed).table, np.arange(1)) == ""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = LoaderConfig(crop_size=CROP, micro_batch=2, threads=1, cache="device")
        with Loader(alike, config) as loader:
            assert loader.config.cache == "device"
            assert torch.isfinite(next(loader).image).all()
    shutil.rmtree(alike)
