"""Whole volumes as validation reads them."""

import numpy as np
import pytest

from mim3d.bench.corpora import anatomy_like, corpus_of
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.reader.shard_reader import ShardReader
from mim3d.dataio.reader.whole_volume import read_volume


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    voxels = anatomy_like((20, 37, 41), 0)
    label = (voxels > 600).astype(np.int16) * 300
    root = corpus_of(tmp_path_factory.mktemp("v") / "c.zarr", [voxels], [label], slope=0.5)
    return voxels, label, ShardReader(Corpus.open(root).table, root)


def test_image_and_label_come_whole(case):
    voxels, label, reader = case
    volume = read_volume(reader, 0, "seg", "none")
    np.testing.assert_array_equal(volume.image, voxels[None] * np.float32(0.5))
    np.testing.assert_array_equal(volume.label, label)
    assert volume.id == "v0000"
    assert volume.subject == "s0000"
    assert volume.spacing_mm == (1.0, 1.0, 1.0)


def test_normalised_as_asked(case):
    _, _, reader = case
    image = read_volume(reader, 0, None, "window:0:400").image
    assert image.min() == -1
    assert image.max() <= 1
    assert read_volume(reader, 0).label is None


def test_a_missing_label_is_named(case):
    with pytest.raises(CorpusError, match="'tumour'"):
        read_volume(case[2], 0, "tumour")
