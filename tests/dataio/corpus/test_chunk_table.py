"""The chunk table's formats: sizes that follow each other, and the older offsets and sizes."""

import json

import numpy as np
import pytest

from mim3d.bench.corpora import anatomy_like, corpus_of
from mim3d.dataio.corpus.chunk_table import HEAD, OFFSETS, POINTS, SIZES, ChunkTable
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.corpus.manifest import MANIFEST, iter_manifest
from mim3d.dataio.corpus.table_writer import build_table, table_objects
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.inspect.verify import verify
from mim3d.dataio.reader.shard_reader import ShardReader
from mim3d.dataio.storage.store import open_store


@pytest.fixture
def root(tmp_path):
    volumes = [anatomy_like((40, 50, 70), i) for i in range(2)]
    volumes[1][:32, :32] = 0
    labels = [(volume > 500).astype(np.uint8) for volume in volumes]
    return corpus_of(tmp_path / "c.zarr", volumes, labels, conversion=Conversion(chunk=32))


def records_of(root):
    return list(iter_manifest((root / MANIFEST).read_bytes(), MANIFEST))


def test_a_table_of_format_1_reads_alike_and_passes_verify(root):
    new = ChunkTable.open(root)
    ranges = [new.ranges(row) for row in range(len(new.arrays))]
    voxels = ShardReader(new, root).read_box(2, (3, 5, 7), (30, 40, 60))
    assert any((sizes == 0).any() for _, sizes in ranges)
    store = open_store(str(root))
    manifest = (root / MANIFEST).read_bytes()
    for name, parts in table_objects(store, records_of(root), manifest, 32, format=1).items():
        (root / name).write_bytes(b"".join(map(bytes, parts)))
    (root / SIZES).unlink()
    old = ChunkTable.open(root)
    for row, (offsets, sizes) in enumerate(ranges):
        present = sizes > 0
        np.testing.assert_array_equal(old.ranges(row)[0][present], offsets[present])
        np.testing.assert_array_equal(old.ranges(row)[1], sizes)
        first = int(old.arrays["first_chunk"][row])
        np.testing.assert_array_equal(old.sizes(first + np.arange(len(sizes))), sizes)
        np.testing.assert_array_equal(old.ranges(row, 2)[1], sizes[:2])
    np.testing.assert_array_equal(
        ShardReader(old, root).read_box(2, (3, 5, 7), (30, 40, 60)), voxels
    )
    assert (root / OFFSETS).exists()
    assert verify(str(root)).problems == ()


def test_a_table_of_format_2_has_no_checksum_of_points_and_reads_on(root):
    points = np.array(ChunkTable.open(root).points)
    head = json.loads((root / HEAD).read_text())
    assert head["format"] == 4
    assert POINTS in head["crc32c"]
    manifest = (root / MANIFEST).read_bytes()
    made = table_objects(open_store(str(root)), records_of(root), manifest, 32, format=2)
    for name, parts in made.items():
        (root / name).write_bytes(b"".join(map(bytes, parts)))
    old = ChunkTable.open(root)
    assert old.points_crc is None
    np.testing.assert_array_equal(old.points, points)
    assert [p.where for p in verify(str(root)).problems] == []
    sizes = np.load(root / SIZES)
    sizes[np.flatnonzero(sizes)[0]] = 0
    np.save(root / SIZES, sizes)
    with pytest.raises(CorpusError, match="add up"):
        ShardReader(ChunkTable.open(root), root).read_box(0, (0, 0, 0), (9, 9, 9))


def test_sizes_take_two_bytes_where_they_fit(root):
    def table(largest: int) -> np.ndarray:
        sizes = np.full(12, 100)
        sizes[3] = largest
        index = np.stack([np.cumsum(sizes) - sizes, sizes], axis=1)
        return build_table(records_of(root), 32, lambda *_: index, lambda _: {})[SIZES]

    assert table(65535).dtype == np.uint16
    assert table(65536).dtype == np.uint32
    assert table(65536).max() == 65536


def test_a_shard_with_gaps_is_refused(root):
    index = np.stack([np.arange(12) * 101, np.full(12, 100)], axis=1)
    with pytest.raises(CorpusError, match="v0000/0: its chunks do not follow"):
        build_table(records_of(root), 32, lambda *_: index, lambda _: {})


def test_intensities_beyond_float32_are_held_at_its_ends(tmp_path, recwarn):
    made = corpus_of(
        tmp_path / "c.zarr", [anatomy_like((9, 9, 9), 0)], slope=float(np.float32(3e38))
    )
    row = ChunkTable.open(made).volumes[0]
    assert row["maximum"] == np.finfo(np.float32).max
    assert np.isfinite([row[name] for name in ("mean", "std", "p005", "foreground_p995")]).all()
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]
    assert verify(made).problems == ()
