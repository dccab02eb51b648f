"""Whether a volume is still the one that an open chunk table tells of.

A corpus may be converted again, or lose volumes, while a run has it open: where a new shard is as
long as the old one, the old table would read its voxels as if they were the old ones. A conversion
notes a volume before it exchanges its folder, and drops the note after the new table stands
(`corpus.replacing`). So a shard that was opened first, and looked up here afterwards, is of the
table that is open, or is told to be another. Volumes that were only added disturb nobody.
"""

import threading
from pathlib import Path
from typing import Protocol

import numpy as np

from mim3d.dataio.corpus.chunk_table import ChunkTable
from mim3d.dataio.corpus.names import TABLE, own_file
from mim3d.dataio.corpus.replacing import REPLACING, parse_replacing
from mim3d.dataio.corpus.table_file import TableFileError, read_file_head
from mim3d.dataio.errors import CorpusError


class TablePlace(Protocol):
    """Where the newest table and note are looked for."""

    def note(self) -> bytes | None:
        """The note of what is being replaced; None where there is none."""
        ...

    def stamp(self) -> str:
        """What changes whenever another table takes the place of the last."""
        ...

    def table(self) -> ChunkTable | None:
        """The table that stands there; None where there is none, or it is damaged."""
        ...


class TableFolder:
    """A corpus on disk."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def note(self) -> bytes | None:
        """As `TablePlace.note`."""
        try:
            return own_file(self.root, REPLACING).read_bytes()
        except OSError:
            return None

    def stamp(self) -> str:
        """As `TablePlace.stamp`."""
        try:
            found = own_file(self.root, TABLE).stat()
        except OSError:
            return ""
        return f"{found.st_ino} {found.st_mtime_ns} {found.st_size}"

    def table(self) -> ChunkTable | None:
        """As `TablePlace.table`."""
        return table_in(self.root)


def table_in(folder: Path) -> ChunkTable | None:
    """The table of a folder; None where there is none, or it is damaged."""
    try:
        return ChunkTable.of_file(folder, read_file_head(own_file(folder, TABLE)))
    except (OSError, TableFileError, CorpusError):
        return None


class TableWatch:
    """Asks after each newly opened shard; safe for many threads."""

    def __init__(self, table: ChunkTable, place: TablePlace) -> None:
        self._table, self._place = table, place
        self._stamp: str | None = None
        self._newer: ChunkTable | None = None
        self._lock = threading.Lock()

    def check(self, path: str) -> None:
        """CorpusError unless the shard at `path` is that of the table that is open."""
        id = path.split("/", maxsplit=1)[0]
        note = self._place.note()
        if note is not None:
            ids = parse_replacing(note)
            if ids is None or id in ids:
                raise self._changed(id, "is being converted again")
        with self._lock:
            if (stamp := self._place.stamp()) != self._stamp:
                newer = self._place.table()
                same = newer is not None and newer.identity == self._table.identity
                self._newer, self._stamp = (None if same else newer), stamp
            newer = self._newer
        if newer is not None and not same_volume(self._table, newer, id):
            raise self._changed(id, "was converted again, or removed,")

    def _changed(self, id: str, what: str) -> CorpusError:
        return CorpusError(
            f"{self._table.root}: volume {id} {what} since this process opened the corpus; start "
            "it again (a run goes on from its last checkpoint)"
        )


def same_volume(table: ChunkTable, newer: ChunkTable, id: str) -> bool:
    """Whether both tables tell of the same shards of a volume."""
    found, there = table.ids.find(id), newer.ids.find(id)
    if there < 0 or "shard" not in (table.arrays.dtype.names or ()):
        return False
    mine, others = (_shards(t, v) for t, v in ((table, found), (newer, there)))
    return np.array_equal(mine, others)


def _shards(table: ChunkTable, volume: int) -> np.ndarray:
    row, n_labels = (int(table.volumes[name][volume]) for name in ("image", "n_labels"))
    return np.asarray(table.arrays["shard"][row : row + 1 + n_labels])
