"""Chunks that crops share are counted, and figures that they flatter are refused."""

import numpy as np
import pytest

from mim3d.bench.corpora import VOLUMES, bench_corpus, many_volumes
from mim3d.bench.loader.options import LoaderBench
from mim3d.bench.sharing import Sharing, chunks_touched, sharing_of
from mim3d.dataio.loader.loader import Loader, LoaderConfig

CROP = (32, 32, 32)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return bench_corpus(tmp_path_factory.mktemp("few") / "c.zarr", many_volumes((48, 64, 64), 2), 1)


def test_a_bench_has_at_least_64_volumes_and_no_two_are_alike():
    volumes = many_volumes((4, 5, 6))
    assert len(volumes) == VOLUMES == LoaderBench().volumes >= 64
    assert len({volume.tobytes() for volume in volumes}) == VOLUMES


def test_the_files_a_corpus_was_made_of_are_gone(few):
    assert [file.name for file in few.parent.iterdir()] == ["c.zarr"]


def test_few_volumes_flatter_the_cache_on_the_device(few):
    config = LoaderConfig(
        crop_size=CROP, micro_batch=32, cache="device", device_keeps="chunks", normalise="none"
    )
    with Loader(few, config) as loader:
        sharing = sharing_of(loader, [next(loader) for _ in range(3)])
    assert 0 < sharing.decoded < 0.8 * sharing.touched
    assert sharing.flatters
    assert "REFUSED" in sharing.text()
    assert f"at least {VOLUMES}" in sharing.text()


def test_each_crop_alone_decodes_what_it_touches(few):
    config = LoaderConfig(
        crop_size=CROP, micro_batch=1, cache="device", device_keeps="chunks", normalise="none"
    )
    with Loader(few, config) as loader:
        batches = [next(loader) for _ in range(12)]
        touched = chunks_touched(loader, batches)
        sharing = sharing_of(loader, batches)
    assert sharing.decoded == pytest.approx(np.mean(touched), rel=0.2)  # read ahead is counted too
    assert not sharing.flatters
    assert np.all((touched >= 1) & (touched <= 8))  # snapped starts, 16 voxels a chunk: 2^3


def test_the_limit_is_four_fifths():
    assert Sharing(172.7, 216).flatters
    assert not Sharing(172.9, 216).flatters
    assert Sharing(180, 216).text() == "180 of the 216 chunks that a crop touches decoded for it"
