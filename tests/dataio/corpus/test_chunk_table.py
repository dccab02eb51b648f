"""The chunk table's formats: sizes that follow each other, and the older offsets and sizes."""

import numpy as np
import pytest
from old_tables import section, write_as_format

from mim3d.bench.corpora import anatomy_like, corpus_of
from mim3d.dataio.convert.run import convert
from mim3d.dataio.corpus import table_reuse
from mim3d.dataio.corpus.chunk_table import ChunkTable
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.corpus.manifest import read_manifest
from mim3d.dataio.corpus.names import TABLE, own_file
from mim3d.dataio.corpus.table_file import read_file_head
from mim3d.dataio.corpus.table_rows import OFFSETS, SIZES
from mim3d.dataio.corpus.table_writer import build_table
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.inspect.verify import verify
from mim3d.dataio.reader.shard_reader import ShardReader


@pytest.fixture
def root(tmp_path):
    volumes = [anatomy_like((40, 50, 70), i) for i in range(2)]
    volumes[1][:32, :32] = 0
    labels = [(volume > 500).astype(np.uint8) for volume in volumes]
    return corpus_of(tmp_path / "c.zarr", volumes, labels, conversion=Conversion(chunk=32))


def test_a_table_of_format_1_reads_alike_and_passes_verify(root):
    new = ChunkTable.open(root)
    ranges = [new.ranges(row) for row in range(len(new.arrays))]
    voxels = ShardReader(new, root).read_box(2, (3, 5, 7), (30, 40, 60))
    assert any((sizes == 0).any() for _, sizes in ranges)
    write_as_format(root, 1, 32)
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
    assert read_file_head(own_file(root, TABLE))["format"] == 5
    write_as_format(root, 2, 32)
    old = ChunkTable.open(root)
    assert old.points_crc is None
    np.testing.assert_array_equal(old.points, points)
    assert [p.where for p in verify(str(root)).problems] == []
    sizes = np.load(root / SIZES)
    sizes[np.flatnonzero(sizes)[0]] = 0
    np.save(root / SIZES, sizes)
    with pytest.raises(CorpusError, match="add up"):
        ShardReader(ChunkTable.open(root), root).read_box(0, (0, 0, 0), (9, 9, 9))


@pytest.mark.parametrize("format", [1, 2, 3, 4])
def test_an_older_table_becomes_one_file_with_the_next_conversion(root, format):
    voxels = ShardReader(ChunkTable.open(root), root).read_box(2, (3, 5, 7), (30, 40, 60))
    write_as_format(root, format, 32)
    assert list(root.glob("chunks.*.npy"))
    convert([], root, Conversion(chunk=32))
    read = ShardReader(ChunkTable.open(root), root).read_box(2, (3, 5, 7), (30, 40, 60))
    np.testing.assert_array_equal(read, voxels)
    assert verify(str(root)).problems == ()
    assert [file.name for file in root.glob("chunks.*")] == [TABLE]


def test_rows_of_the_table_are_used_again_where_nothing_changed(root, monkeypatch):
    whole = own_file(root, TABLE).read_bytes()
    monkeypatch.setattr(table_reuse, "index_reader", lambda store: pytest.fail)
    monkeypatch.setattr(table_reuse, "point_reader", lambda store: pytest.fail)
    convert([], root, Conversion(chunk=32))
    assert own_file(root, TABLE).read_bytes() == whole


@pytest.mark.parametrize("name", ["sizes", "points", "arrays", "head"])
def test_rows_of_a_damaged_table_are_not_used_again(root, name):
    whole = own_file(root, TABLE).read_bytes()
    begin, nbytes = section(root, name)
    damaged = bytearray(whole)
    damaged[begin + nbytes // 2] ^= 16
    own_file(root, TABLE).write_bytes(damaged)
    convert([], root, Conversion(chunk=32))
    assert own_file(root, TABLE).read_bytes() == whole


def test_sizes_take_two_bytes_where_they_fit(root):
    def table(largest: int) -> np.ndarray:
        sizes = np.full(12, 100)
        sizes[3] = largest
        index = np.stack([np.cumsum(sizes) - sizes, sizes], axis=1)
        return build_table(read_manifest(root), 32, lambda *_: index, lambda _: {})[SIZES]

    assert table(65535).dtype == np.uint16
    assert table(65536).dtype == np.uint32
    assert table(65536).max() == 65536


def test_a_shard_with_gaps_is_refused(root):
    index = np.stack([np.arange(12) * 101, np.full(12, 100)], axis=1)
    with pytest.raises(CorpusError, match="v0000/0: its chunks do not follow"):
        build_table(read_manifest(root), 32, lambda *_: index, lambda _: {})


def test_intensities_beyond_float32_are_held_at_its_ends(tmp_path, recwarn):
    made = corpus_of(
        tmp_path / "c.zarr", [anatomy_like((9, 9, 9), 0)], slope=float(np.float32(3e38))
    )
    row = ChunkTable.open(made).volumes[0]
    assert row["maximum"] == np.finfo(np.float32).max
    assert np.isfinite([row[name] for name in ("mean", "std", "p005", "foreground_p995")]).all()
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]
    assert verify(made).problems == ()
