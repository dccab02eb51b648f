"""A corpus that is converted again, grows or shrinks while a reader has it open."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mim3d.dataio.convert.pool import run_jobs
from mim3d.dataio.convert.run import convert
from mim3d.dataio.convert.upkeep import remove
from mim3d.dataio.corpus.names import own_file
from mim3d.dataio.corpus.replacing import REPLACING, note_replacing
from mim3d.dataio.errors import CorpusError, CorpusWarning
from mim3d.dataio.reader.chunk_cache import ChunkCache
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.reader.local_shards import LocalShards
from mim3d.dataio.reader.shard_reader import ShardReader
from mim3d.dataio.sources.source import Source
from mim3d.dataio.storage.store import open_store

BOX = ((0, 0, 0), (16, 16, 16))


def save(path: Path, seed: int) -> Source:
    """Noise, which blosc stores as it is: any two are of one size."""
    voxels = np.random.default_rng(seed).integers(0, 256, (16, 16, 16)).astype(np.uint8)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    return Source(path.name.split(".")[0], (str(path),))


@pytest.fixture
def place(tmp_path) -> Path:
    convert([save(tmp_path / f"v{i}.nii", i) for i in range(3)], tmp_path / "c", workers=1)
    return tmp_path


def reader(corpus: Path, cached: bool = False) -> ShardReader:
    opened = Corpus.open(corpus)
    shards = LocalShards(opened.root)
    cache = ChunkCache(1 << 20) if cached else None
    return ShardReader(opened.table, opened.root, shards, cache)


@pytest.mark.parametrize("cached", [False, True])
def test_new_voxels_are_not_read_by_the_old_table(place, cached):
    old = reader(place / "c", cached)
    before = old.read_box(0, *BOX)
    size = (place / "c" / old.array(1).path).stat().st_size
    convert([save(place / "v1.nii", 77), save(place / "v0.nii", 78)], place / "c", workers=1)
    assert (place / "c" / old.array(1).path).stat().st_size == size
    with pytest.raises(CorpusError, match=r"volume v1 was converted again.*start it again"):
        old.read_box(1, *BOX)
    np.testing.assert_array_equal(old.read_box(0, *BOX), before)  # open, and so the old one
    old.read_box(2, *BOX)
    old.close()
    if not cached:
        with pytest.raises(CorpusError, match="volume v0"):
            old.read_box(0, *BOX)
    reader(place / "c").read_box(1, *BOX)


def test_while_volumes_are_being_replaced(place):
    old = reader(place / "c")
    found = []

    def runner(jobs, workers):
        for result in run_jobs(jobs, workers):
            with pytest.raises(CorpusError, match=r"volume v1 is being converted again"):
                old.read_box(1, *BOX)
            with pytest.warns(CorpusWarning, match="volumes are being replaced"):
                late = reader(place / "c")
            with pytest.raises(CorpusError, match="v1 is being"):
                late.read_box(1, *BOX)
            late.read_box(2, *BOX)
            found.append(result.id)
            yield result

    convert([save(place / "v1.nii", 77)], place / "c", workers=1, runner=runner)
    assert "v1" in found and not own_file(place / "c", REPLACING).exists()
    reader(place / "c").read_box(1, *BOX)


def test_what_was_added_disturbs_nobody(place):
    old = reader(place / "c")
    convert([save(place / "v3.nii", 3), save(place / "a.nii", 4)], place / "c", workers=1)
    for row in range(3):
        old.read_box(row, *BOX)
    assert old.table.n_volumes == 3 and reader(place / "c").table.n_volumes == 5


def test_a_removed_volume_is_told(place):
    old = reader(place / "c")
    remove(place / "c", volumes=["v1"])
    old.read_box(2, *BOX)
    with pytest.raises(CorpusError, match="volume v1 was converted again, or removed"):
        old.read_box(1, *BOX)


def test_a_damaged_note_may_mean_any_volume(place):
    note_replacing(open_store(place / "c"), ["v0"])
    with own_file(place / "c", REPLACING).open("ab") as file:
        file.write(b"torn")
    with pytest.warns(CorpusWarning):
        late = reader(place / "c")
    with pytest.raises(CorpusError, match="is being converted again"):
        late.read_box(2, *BOX)
    convert([], place / "c", workers=1)
    reader(place / "c").read_box(2, *BOX)


def test_an_interrupted_replacement_is_completed_by_the_same_command(place, monkeypatch):
    sources = [save(place / "v1.nii", 77)]

    def runner(jobs, workers):
        for result in run_jobs(jobs, workers):
            yield result
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(sources, place / "c", workers=1, runner=runner)
    with pytest.warns(CorpusWarning, match="convert` again"):
        late = reader(place / "c")
    late.read_box(2, *BOX)
    with pytest.raises(CorpusError):
        late.read_box(1, *BOX)
    convert(sources, place / "c", workers=1)
    reader(place / "c").read_box(1, *BOX)
