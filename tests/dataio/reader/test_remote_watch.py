"""The same of a corpus in a bucket: asked every half minute, and at once where sizes differ."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from s3_server import s3_server, use_s3

from mim3d.dataio.convert.run import convert
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.reader import remote_shards
from mim3d.dataio.reader.corpus import opened_corpus
from mim3d.dataio.reader.shard_reader import ShardReader
from mim3d.dataio.sources.source import Source

BOX = ((0, 0, 0), (16, 16, 16))


def save(path: Path, seed: int) -> Source:
    """Noise, which blosc stores as it is: any two are of one size."""
    voxels = np.random.default_rng(seed).integers(0, 256, (16, 16, 16)).astype(np.uint8)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    return Source(path.name.split(".")[0], (str(path),))


@pytest.fixture
def bucket(monkeypatch):
    with s3_server("watch") as address:
        use_s3(address, monkeypatch)
        yield "s3://watch/c.zarr"


def test_a_bucket_converted_again_is_told(bucket, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(remote_shards, "WATCH_S", 0.0)
    convert([save(tmp_path / f"v{i}.nii", i) for i in range(2)], bucket, workers=1)
    with opened_corpus(bucket) as (corpus, shards):
        reader = ShardReader(corpus.table, corpus.root, shards)
        reader.read_box(1, *BOX)
        convert([save(tmp_path / "v2.nii", 2)], bucket, workers=1)
        reader.read_box(1, *BOX)
        convert([save(tmp_path / "v1.nii", 77)], bucket, workers=1)
        reader.read_box(0, *BOX)
        with pytest.raises(CorpusError, match="volume v1 was converted again"):
            reader.read_box(1, *BOX)
