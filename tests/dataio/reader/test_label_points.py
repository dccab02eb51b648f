"""Points of one label at a time: the same as the table's, checked block by block where used."""

from pathlib import Path

import numpy as np
import pytest

from mim3d.bench.corpora import anatomy_like, corpus_of
from mim3d.dataio.corpus import table_writer
from mim3d.dataio.corpus.chunk_table import ChunkTable, label_arrays
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.corpus.names import TABLE, own_file
from mim3d.dataio.corpus.table_file import read_file_head
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.loader.config import LoaderConfig
from mim3d.dataio.loader.loader import Loader
from mim3d.dataio.reader import label_points
from mim3d.dataio.reader.label_points import LabelPoints

BLOCK = 50
CONFIG = LoaderConfig(
    crop_size=(16, 16, 16), label="seg", foreground_fraction=1.0, micro_batch=2, seed=3
)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Four volumes, the third without foreground, with points in blocks of 50."""
    for module in (table_writer, label_points):
        monkeypatch.setattr(module, "POINTS_TOGETHER", BLOCK)
    monkeypatch.setattr("mim3d.dataio.corpus.chunk_table.POINTS_TOGETHER", BLOCK)
    return make(tmp_path / "c.zarr")


def make(root: Path) -> Path:
    volumes = [anatomy_like((40, 50, 60), i) for i in range(4)]
    labels = [(v > 500).astype(np.uint8) + (v > 900).astype(np.uint8) for v in volumes]
    labels[2][:] = 0
    return corpus_of(root, volumes, labels, conversion=Conversion(chunk=32))


def points_of_rows(table: ChunkTable) -> list[np.ndarray]:
    return [
        np.asarray(table.points[table.points["array"] == row])
        for row in label_arrays(table, "seg").tolist()
    ]


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 0], [2]])
def test_they_are_the_tables_own(root, order):
    table = ChunkTable.open(root)
    rows = label_arrays(table, "seg")[order]
    expected = [points_of_rows(table)[i] for i in order]
    assert sum(map(len, points_of_rows(table))) > 3 * BLOCK
    points = LabelPoints(table, rows)
    for entry, part in enumerate(expected):
        found = points(entry)
        np.testing.assert_array_equal(found.classes, part["cls"])
        np.testing.assert_array_equal(found.zyx, part["zyx"])
        assert (np.diff(found.classes.astype(int)) >= 0).all()


def test_what_is_damaged_is_told_where_it_is_used_and_nowhere_else(root):
    head = read_file_head(own_file(root, TABLE))["sections"]["points"]
    with own_file(root, TABLE).open("r+b") as file:
        file.seek(head["offset"] + head["nbytes"] - 1)
        (last,) = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([last ^ 1]))
    table = ChunkTable.open(root)
    points = LabelPoints(table, label_arrays(table, "seg"))
    assert len(points(0).zyx)
    for _ in range(2):
        with pytest.raises(CorpusError, match=r"points fail their checksum.*--mend"):
            points(3)
    with Loader(root, CONFIG) as loader, pytest.raises(CorpusError, match="fail their checksum"):
        for _ in range(4):
            next(loader)


def test_a_table_that_does_not_tell_where_points_begin_gives_the_same_crops(
    root, tmp_path, monkeypatch
):
    monkeypatch.setattr(table_writer, "point_sections", lambda _: {})
    old = make(tmp_path / "old.zarr")
    assert ChunkTable.open(old).first_points is None
    assert ChunkTable.open(root).first_points is not None
    with Loader(root, CONFIG) as new, Loader(old, CONFIG) as earlier:
        for _ in range(6):
            np.testing.assert_array_equal(next(new).label, next(earlier).label)


def test_places_that_do_not_fit_are_refused(root):
    firsts = np.array(ChunkTable.open(root).first_points)
    firsts[-1] += 1
    table = ChunkTable.open(root)
    object.__setattr__(table, "first_points", firsts)
    with pytest.raises(CorpusError, match="rows do not fit each other"):
        table.check()
