"""Flipped bits of chunk table and manifest: reading what they affect raises, or it is right."""

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from old_tables import read_section, rewrite_section, section, write_as_format

from mim3d.bench.corpora import anatomy_like, corpus_of
from mim3d.dataio.corpus.chunk_table import ChunkTable
from mim3d.dataio.corpus.names import HEAD, MANIFEST, TABLE, own_file
from mim3d.dataio.corpus.table_rows import ARRAYS, POINTS, SIZES, VOLUMES
from mim3d.dataio.errors import CorpusError, Mim3dError
from mim3d.dataio.inspect.verify import verify
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.reader.shard_reader import ShardReader

FLIPS = 400


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Two volumes with air around them, so that chunks of the labels are absent."""
    volumes = [anatomy_like((40, 36, 44), i) for i in range(2)]
    labels = [(volume > 640).astype(np.uint8) for volume in volumes]
    for label in labels:
        label[:17], label[:, 33:] = 0, 0
    return corpus_of(tmp_path_factory.mktemp("flips") / "c.zarr", volumes, labels)


def all_that_is_read(root: Path) -> dict[str, Any]:
    """Everything a reader of the corpus can ask for."""
    corpus = Corpus.open(root)
    table = corpus.table
    reader = ShardReader(table, corpus.root)
    found: dict[str, Any] = {
        table.array_path(row): reader.read_box(row, (0, 0, 0), reader.array(row).shape).tobytes()
        for row in range(len(table.arrays))
    }
    reader.close()
    found["points"] = np.asarray(table.points).tobytes()
    found["volumes"] = np.asarray(table.volumes).tobytes()
    found["ids"] = [(table.volume_id(i), table.subject(i)) for i in range(table.n_volumes)]
    found["records"] = repr(corpus.records)
    return found


def check_flips(root: Path, file: Path, begin: int, nbytes: int, name: str) -> int:
    """Flip bits within a part of a file; how often reading everything raised."""
    truth, content = all_that_is_read(root), file.read_bytes()
    n_bits = 8 * nbytes
    drawn = random.Random(name).sample(range(n_bits), min(FLIPS, n_bits))
    first = random.Random(1).sample(range(min(8 * 128, n_bits)), min(150, n_bits))
    raised = 0
    try:
        for bit in {*drawn, *first, n_bits - 7}:
            damaged = bytearray(content)
            damaged[begin + bit // 8] ^= 1 << bit % 8
            file.write_bytes(damaged)
            try:
                assert all_that_is_read(root) == truth, f"bit {bit} of {name} is silent"
            except Mim3dError:
                raised += 1
    finally:
        file.write_bytes(content)
    return raised


@pytest.mark.parametrize(
    "name", ["head", "volumes", "arrays", "sizes", "points", "ids", "subjects_offsets"]
)
def test_a_flipped_bit_of_the_table_is_noticed_by_reading_or_has_no_effect(root, name):
    begin, nbytes = section(root, name)
    assert (
        check_flips(root, own_file(root, TABLE), begin, nbytes, name) > min(FLIPS, 8 * nbytes) / 2
    )


@pytest.mark.parametrize("name", [MANIFEST, "zarr.json"])
def test_a_flipped_bit_is_noticed_by_reading_or_has_no_effect(root, name):
    file = own_file(root, MANIFEST) if name == MANIFEST else root / name
    assert check_flips(root, file, 0, file.stat().st_size, name) > FLIPS / 2


@pytest.fixture
def old(root, tmp_path) -> Path:
    """The same corpus with its table in several files."""
    copy = shutil.copytree(root, tmp_path / "old.zarr")
    write_as_format(copy, 3, 16)
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("name", [SIZES, POINTS, VOLUMES, ARRAYS, HEAD])
def test_a_flipped_bit_of_an_older_table_is_noticed_too(old, name):
    raised = check_flips(old, old / name, 0, (old / name).stat().st_size, name)
    assert raised > FLIPS / 2 or name == HEAD


def test_a_size_that_became_zero_is_no_absent_chunk(root):
    """The audit's case: a power of two flipped away would be read as background."""
    content = own_file(root, TABLE).read_bytes()
    sizes = read_section(root, "sizes")
    at = int(np.flatnonzero(sizes)[3])
    sizes[at] = 0
    rewrite_section(root, "sizes", sizes)
    try:
        table = ChunkTable.open(root)
        row = int(np.searchsorted(table.arrays["first_chunk"], at, side="right")) - 1
        with pytest.raises(CorpusError, match=f"{table.array_path(row)}.*add up"):
            ShardReader(table, root).read_box(row, (0, 0, 0), (1, 1, 1))
        with pytest.raises(CorpusError, match="add up"):
            table.ranges(row, 1)
    finally:
        own_file(root, TABLE).write_bytes(content)


@pytest.mark.parametrize("byte", [6, 8, 20, 40, 60, 75])
def test_a_damaged_header_of_an_array_file_is_told_in_words(old, byte):
    """numpy's parser raises TokenError, SyntaxError and others on these."""
    file = old / SIZES
    content = file.read_bytes()
    try:
        for bit in range(8):
            damaged = bytearray(content)
            damaged[byte] ^= 1 << bit
            file.write_bytes(damaged)
            try:
                ranges = ChunkTable.open(old).ranges(0)
            except CorpusError as error:
                assert f"`mim3d verify {old} --mend`" in str(error)
                continue
            file.write_bytes(content)
            np.testing.assert_array_equal(ranges, ChunkTable.open(old).ranges(0))
    finally:
        file.write_bytes(content)


def test_points_are_only_checked_where_they_are_used(root):
    content = own_file(root, TABLE).read_bytes()
    points = read_section(root, "points")
    points["zyx"][-1] ^= 1
    rewrite_section(root, "points", points)
    try:
        table = ChunkTable.open(root)
        ShardReader(table, root).read_box(0, (0, 0, 0), (9, 9, 9))
        with pytest.raises(CorpusError, match=r"chunks\.table.*points fail their checksum"):
            _ = table.points
        assert [p.where for p in verify(root).problems] == [TABLE]
    finally:
        own_file(root, TABLE).write_bytes(content)


def test_a_manifest_without_its_last_line_is_not_the_one_the_table_knows(root, tmp_path):
    file = own_file(root, MANIFEST)
    content = file.read_bytes()
    try:
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 2]))
        with pytest.raises(CorpusError, match=MANIFEST):
            _ = Corpus.open(root).records
        own_file(root, TABLE).rename(tmp_path / TABLE)  # half written: what is committed is shown
        assert [r.id for r in Corpus.open(root).records] == ["v0000"]
        (tmp_path / TABLE).rename(own_file(root, TABLE))
    finally:
        file.write_bytes(content)
    assert len(Corpus.open(root).records) == 2
