"""The rows of the table that stands, for the next one: of arrays that are as they were, neither the
shard's index nor the label's points need reading again."""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from mim3d.dataio.corpus.arrays import stored_arrays
from mim3d.dataio.corpus.chunk_table import ChunkTable
from mim3d.dataio.corpus.manifest import VolumeRecord
from mim3d.dataio.corpus.names import TABLE, own_file, own_key
from mim3d.dataio.corpus.table_file import intact_section, read_file_head
from mim3d.dataio.corpus.table_writer import Readers, index_reader, point_reader, shard_tag
from mim3d.dataio.errors import CorpusError, Mim3dError
from mim3d.dataio.storage.store import LocalStore, Store
from mim3d.dataio.waiting import StalledError

Damaged = Callable[[str, Exception], None]


def table_that_stands(store: Store, held: ExitStack) -> ChunkTable | None:
    """The corpus' table where it passes all its checksums, and is of the newest format; that of a
    bucket lies in a temporary folder while `held` is open."""
    if isinstance(store, LocalStore):
        folder = store.root
    elif not store.exists(own_key(store, TABLE)):
        return None
    else:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="mim3d-table-")))
        (folder / TABLE).write_bytes(store.get(own_key(store, TABLE)))
    try:
        head = read_file_head(own_file(folder, TABLE))
        table = ChunkTable.of_file(folder, head)
        table.check()
    except (OSError, ValueError, KeyError):
        return None
    parts = {"sizes": table.chunks, "points": table.unchecked_points}
    whole = all(intact_section(head, name, np.asarray(part)) for name, part in parts.items())
    return table if whole else None


def reusing(
    store: Store, table: ChunkTable | None, records: Sequence[VolumeRecord], damaged: Damaged
) -> Readers:
    """Readers that look into the table first, by the hashes of the shards.

    An array that cannot be read is told to `damaged` and has no chunks: reading it will raise.
    """
    read_index, read_points = index_reader(store), point_reader(store)
    rows = {} if table is None else rows_of(table, records)
    first = np.asarray(table.unchecked_points["array"]) if table is not None else None

    def index(path: str, key: str, count: int) -> np.ndarray:
        if table is not None and path in rows and table.arrays["n_chunks"][rows[path]] == count:
            offsets, sizes = table.ranges(rows[path])
            return np.stack([offsets.astype(np.int64), sizes], axis=1)
        try:
            return read_index(path, key, count)
        except StalledError:
            raise
        except (Mim3dError, OSError) as error:
            damaged(path, error)
            return np.zeros((count, 2), np.int64)

    def points(path: str) -> dict[int, np.ndarray]:
        if table is not None and first is not None and path in rows:
            begin, end = np.searchsorted(first, [rows[path], rows[path] + 1])
            found = np.asarray(table.unchecked_points[begin:end])
            return {int(c): found["zyx"][found["cls"] == c] for c in np.unique(found["cls"])}
        try:
            return read_points(path)
        except StalledError:
            raise
        except (Mim3dError, OSError, ValueError, KeyError, TypeError) as error:
            damaged(path, error)
            return {}

    return index, points


def rows_of(table: ChunkTable, records: Sequence[VolumeRecord]) -> dict[str, int]:
    """Row of each array that is the same in the table, by path."""
    tags = np.asarray(table.arrays["shard"]).tolist()
    rows: dict[str, int] = {}
    for record in records:
        volume = table.ids.find(record.id)
        if volume < 0:
            continue
        image, n_labels = (int(table.volumes[name][volume]) for name in ("image", "n_labels"))
        known = {table.array_path(row): row for row in range(image, image + 1 + n_labels)}
        for array in stored_arrays(record):
            row = known.get(array.path, -1)
            if row >= 0 and tags[row] == shard_tag(array.sha256) and is_sound(table, row):
                rows[array.path] = row
    return rows


def is_sound(table: ChunkTable, row: int) -> bool:
    """Whether the row has its chunks: one of a volume that was damaged has none."""
    try:
        table.check_sizes(row)
    except CorpusError:
        return False
    return True
