"""The packed table of every inner chunk's byte range, memory-mapped and shared by all ranks.

Five tables and two packed lists of strings in one file (`table_file`); before format 5, each a
plain .npy file, with `chunks.json` beside them. Rows
of `volumes` are in the order of the sorted manifest; `volumes["image"]` is the row in `arrays` of
the image, `first_label` .. `first_label + n_labels` are those of its labels; chunks of an array are
entries `first_chunk` .. `first_chunk + n_chunks` in C order of the (c) z y x grid of chunks. Chunks
of a shard lie one behind the other in that order, so their sizes say where they are: two bytes a
chunk, four where one has more than 65,535. Tables of format 1 have offset and size.

Opening checks what is small; what grows with chunks and points is checked where it is first used:
an array's sizes, which must add up to its shard, and the points, by their checksum (which tables
before format 3 lack). `channel_rows` says what the rows of `channels` are, which tables before
format 4 lack. A manifest may hold more lines than the table knows, while a conversion goes
on or where one was interrupted: the table tells of what was there before.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from mim3d.dataio.corpus.arrays import INDEX_CRC, INDEX_ENTRY, label_path, shard_key
from mim3d.dataio.corpus.channel_rows import CHANNEL_DTYPE, CHANNELS, rows_of_volumes
from mim3d.dataio.corpus.names import TABLE, check_names, check_packed_names, own_file
from mim3d.dataio.corpus.table_file import (
    TableFileError,
    crc_of_bytes,
    mapped_arrays,
)
from mim3d.dataio.corpus.table_head import (
    checked_first,
    crc_of,
    damaged,
    mapped,
    read_head,
    replaced_in,
)
from mim3d.dataio.corpus.table_rows import (
    ARRAYS,
    CHUNK_DTYPE,
    CHUNKS,
    FIRST_POINTS,
    LATER_SECTIONS,
    ONE_FILE,
    POINT_CRCS,
    POINT_DTYPE,
    POINTS,
    POINTS_TOGETHER,
    SECTIONS,
    SIZES,
    STRINGS,
    VOLUMES,
    section_of,
)
from mim3d.dataio.errors import CorpusError, Mim3dError

TOGETHER = 1 << 16  # rows


class PackedStrings:
    """A list of strings in two arrays: UTF-8 bytes end to end, and where each begins."""

    def __init__(self, blob: np.ndarray, offsets: np.ndarray) -> None:
        self.blob, self.offsets = blob, offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> str:
        if not 0 <= i < len(self):
            raise IndexError(f"string {i} of {len(self)}")
        return self.blob[self.offsets[i] : self.offsets[i + 1]].tobytes().decode()

    def find(self, text: str) -> int:
        """Row of `text` in a sorted list, or -1."""
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self[middle] < text else (low, middle)
        return low if low < len(self) and self[low] == text else -1


@dataclass(frozen=True)
class ChunkTable:
    """The opened table; every array is memory-mapped and read-only.

    `root` names the corpus, a folder or an address; the table's own files lie in `folder`.
    `chunks` holds the size of each chunk, or in format 1 records of offset and size: see `ranges`.
    `unchecked_points` are what `points` gives once they pass `points_crc` (None: not known).
    `replaced` are volumes that are no longer those the table tells of (None: it may be any).
    `identity` is the hash of the manifest that the table was made of. `first_points` and
    `point_crcs` are for reading a few points; older tables lack them.
    """

    root: str
    volumes: np.ndarray
    arrays: np.ndarray
    chunks: np.ndarray
    unchecked_points: np.ndarray
    ids: PackedStrings
    subjects: PackedStrings
    label_names: tuple[str, ...]
    points_crc: str | None = None
    folder: str = ""
    stored_channels: np.ndarray | None = None
    replaced: frozenset[str] | None = frozenset()
    identity: str = ""
    first_points: np.ndarray | None = None
    point_crcs: np.ndarray | None = None

    @classmethod
    def open(cls, corpus_root: str | Path) -> "ChunkTable":
        """Map the table of a corpus.

        CorpusError when it is missing, damaged, older than the manifest or of another format.
        """
        root = Path(corpus_root)
        head = read_head(root)
        if head["format"] >= ONE_FILE:
            table = cls.of_file(root, head)
        else:
            table = cls._of_files(root, head)
        table.check()
        return table

    @classmethod
    def of_file(cls, root: Path, head: dict) -> "ChunkTable":
        """Map the one file in a folder, of which `head` is the head."""
        file = own_file(root, TABLE)
        try:
            sections = SECTIONS | LATER_SECTIONS
            found = mapped_arrays(file, head, sections, optional=LATER_SECTIONS)
        except (TableFileError, OSError, ValueError, KeyError, TypeError) as error:
            raise damaged(file, str(error)) from error
        for name in set(found) - {section_of(SIZES), section_of(POINTS)}:
            if crc_of_bytes(found[name].view(np.uint8)) != head["sections"][name]["crc32c"]:
                raise damaged(file, f"its {name} fail their checksum")
        part = {name: found[section_of(name)] for name in (VOLUMES, ARRAYS, SIZES, POINTS)}
        ids, subjects = (PackedStrings(found[name], found[f"{name}_offsets"]) for name in STRINGS)
        crc = head["sections"][section_of(POINTS)]["crc32c"]
        return cls(
            *(str(root), part[VOLUMES], part[ARRAYS], part[SIZES], part[POINTS], ids, subjects),
            tuple(head["label_names"]), crc, str(root), found["channels"], replaced_in(root),
            str(head.get("manifest_sha256", "")), found.get(FIRST_POINTS), found.get(POINT_CRCS),
        )  # fmt: skip

    @classmethod
    def _of_files(cls, root: Path, head: dict) -> "ChunkTable":
        for name in checked_first(head["format"]):
            if crc_of(root / name) != head["crc32c"][name]:
                raise damaged(root / name, "fails its checksum")
        volumes, arrays = mapped(root / VOLUMES), mapped(root / ARRAYS)
        n_chunks = int(arrays["first_chunk"][-1] + arrays["n_chunks"][-1]) if len(arrays) else 0
        kinds = [CHUNK_DTYPE] if head["format"] == 1 else [np.dtype("<u2"), np.dtype("<u4")]
        chunks = mapped(root / CHUNKS[head["format"]], kinds, n_chunks)
        points = mapped(root / POINTS, [POINT_DTYPE])
        ids, subjects = (
            PackedStrings(*(mapped(root / f"chunks.{name}{s}.npy") for s in ("", "_offsets")))
            for name in STRINGS
        )
        names = tuple(head["label_names"])
        crc = head["crc32c"].get(POINTS)
        channels = None
        if CHANNELS in checked_first(head["format"]):
            channels = mapped(root / CHANNELS, [CHANNEL_DTYPE])
        return cls(
            *(str(root), volumes, arrays, chunks, points, ids, subjects, names, crc, str(root)),
            *(channels, replaced_in(root), str(head["manifest_sha256"])),
        )

    def check(self) -> None:
        """CorpusError where names could lead out of the corpus or rows point at none."""
        where = f"{self.root}: the chunk table"
        check_packed_names(self.ids.blob, self.ids.offsets, where)
        check_names(self.label_names, where)
        arrays, n = self.arrays, len(self.volumes)
        counts = np.asarray(arrays["n_chunks"]).astype(np.int64)
        stored = None if self.stored_channels is None else len(self.stored_channels)
        fits = (
            len(self.ids) == n
            and bool((np.cumsum(counts) - counts == arrays["first_chunk"]).all())
            and _grids_have(arrays, counts)
            and int(counts.sum()) == len(self.chunks)
            and bool((arrays["volume"] < n).all() and (self.volumes["image"] < len(arrays)).all())
            and bool((arrays["label"] < len(self.label_names)).all())
            and bool((self.volumes["first_label"] + self.volumes["n_labels"] <= len(arrays)).all())
            and bool((arrays["volume"][self.volumes["image"]] == np.arange(n)).all())
            and bool((self.volumes["subject"] < max(len(self.subjects), 1)).all())
            and stored in (None, int(self.n_channels.sum()))
            and self._points_fit()
        )
        if not fits:
            raise damaged(f"{self.root}/{TABLE}", "its rows do not fit each other")

    def _points_fit(self) -> bool:
        first, crcs = self.first_points, self.point_crcs
        if first is None or crcs is None:
            return True
        n = len(self.unchecked_points)
        return (
            len(first) == len(self.arrays) + 1
            and len(crcs) == -(-n // POINTS_TOGETHER)
            and int(first[0]) == 0
            and int(first[-1]) == n
            and bool((first[:-1] <= first[1:]).all())
        )

    @property
    def n_volumes(self) -> int:
        """Number of committed volumes."""
        return len(self.volumes)

    @cached_property
    def n_channels(self) -> np.ndarray:
        """Channels of each volume, int64 (n_volumes,)."""
        images = np.asarray(self.volumes["image"]).astype(np.int64)
        return np.asarray(self.arrays["channels"])[images].astype(np.int64)

    @cached_property
    def first_channel(self) -> np.ndarray:
        """Row in `channels` of each volume's first channel, int64 (n_volumes,)."""
        return np.cumsum(self.n_channels) - self.n_channels

    @cached_property
    def channels(self) -> np.ndarray:
        """Statistics of every channel of every volume: see `channel_rows`."""
        if self.stored_channels is not None:
            return np.asarray(self.stored_channels)
        return rows_of_volumes(np.asarray(self.volumes), self.n_channels)

    @cached_property
    def points(self) -> np.ndarray:
        """Sample points of all label arrays, in their order; CorpusError if they are damaged."""
        content = np.asarray(self.unchecked_points)
        if self.points_crc is not None and self._crc_of_points(content) != self.points_crc:
            raise damaged(f"{self.root}/{TABLE}", "the sample points fail their checksum")
        return self.unchecked_points

    def _crc_of_points(self, content: np.ndarray) -> str:
        older = Path(self.folder or self.root) / POINTS
        return crc_of(older) if older.is_file() else crc_of_bytes(content.view(np.uint8))

    @cached_property
    def _summed(self) -> bytearray:
        """1 for each array whose sizes were checked."""
        return bytearray(len(self.arrays))

    def check_sizes(self, row: int) -> None:
        """Compare the sizes of an array's chunks with its shard, once.

        CorpusError where they do not add up to it: a chunk taken for absent would read as zeros.
        """
        if self._summed[row]:
            return
        array = self.arrays[row]
        n, first = int(array["n_chunks"]), int(array["first_chunk"])
        expected = int(array["shard_bytes"]) - INDEX_ENTRY * n - INDEX_CRC
        found = int(self.sizes(slice(first, first + n)).sum())
        if found != expected:
            why = f"sizes of {self.shard_path(row)} add up to {found} bytes, not to {expected}"
            raise damaged(f"{self.root}/{TABLE}", f"the {why}")
        self._summed[row] = 1

    def ranges(self, row: int, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Offset (uint64) and size (int64, 0 where absent) in the shard of an array's chunks.

        `row` is one of `arrays`; of its chunks the first `count`, or all. CorpusError where the
        table is damaged there.
        """
        self.check_sizes(row)
        array = self.arrays[row]
        first, n = int(array["first_chunk"]), int(array["n_chunks"])
        part = np.asarray(self.chunks)[first : first + (n if count is None else count)]
        if part.dtype.names:
            return part["offset"].astype(np.uint64), part["nbytes"].astype(np.int64)
        sizes = part.astype(np.int64)
        return (np.cumsum(sizes) - sizes).astype(np.uint64), sizes

    def sizes(self, chunks: np.ndarray | slice) -> np.ndarray:
        """Stored bytes of chunks, numbers in the whole table; 0 where absent."""
        kept = np.asarray(self.chunks)[chunks]
        return (kept["nbytes"] if kept.dtype.names else kept).astype(np.int64)

    def volume_id(self, volume: int) -> str:
        """Id of a row of `volumes`."""
        return self.ids[int(volume)]

    def index(self, id: str) -> int:
        """Row of a volume; CorpusError if the corpus has none of that id."""
        row = self.ids.find(id)
        if row < 0:
            raise CorpusError(f"{self.root}: no volume {id!r} among {self.n_volumes}")
        return row

    def subject(self, volume: int) -> str:
        """Subject of a row of `volumes`."""
        return self.subjects[int(self.volumes["subject"][volume])]

    def array_path(self, row: int) -> str:
        """Zarr path of a row of `arrays`, relative to the corpus."""
        array = self.arrays[row]
        name = self.volume_id(int(array["volume"]))
        label = int(array["label"])
        path = "0" if label < 0 else label_path(self.label_names[label], self._layout(row))
        return f"{name}/{path}"

    def shard_path(self, row: int) -> str:
        """Key of the one shard object of a row of `arrays`, relative to the corpus."""
        n_axes = 3 + (int(self.arrays["channels"][row]) > 1)
        return shard_key(self.array_path(row), n_axes, self._layout(row))

    def _layout(self, row: int) -> int:
        newer = "layout" in (self.arrays.dtype.names or ())
        return int(self.arrays["layout"][row]) if newer else 1

    def label_row(self, volume: int, name: str) -> int:
        """Row in `arrays` of a volume's label, or -1 where it has none of that name."""
        if name not in self.label_names:
            return -1
        first, n = (int(self.volumes[field][volume]) for field in ("first_label", "n_labels"))
        number = self.label_names.index(name)
        rows = np.flatnonzero(self.arrays["label"][first : first + n] == number)
        return first + int(rows[0]) if len(rows) else -1


def _grids_have(arrays: np.ndarray, counts: np.ndarray) -> bool:
    """Whether each array's grid has as many chunks; in parts, for a million are 0.2 GB."""
    for begin in range(0, len(arrays), TOGETHER):
        part = arrays[begin : begin + TOGETHER]
        grid = -(-part["shape"].astype(np.int64) // np.maximum(part["chunk"], 1))
        found = grid[:, 0] * grid[:, 1] * grid[:, 2] * part["channels"]
        if not np.array_equal(found, counts[begin : begin + TOGETHER]):
            return False
    return True


def choose_volumes(
    table: ChunkTable, label: str | None, subjects: Collection[str] | None
) -> np.ndarray:
    """Rows of the volumes of `subjects` (None: all) that have `label` (None: whether or not)."""
    rows = np.arange(table.n_volumes)
    if subjects is not None:
        if isinstance(subjects, str) or not all(isinstance(name, str) for name in subjects):
            raise Mim3dError(f"subjects={subjects!r} must be a collection of names: ['a', 'b']")
        rows = rows[_of_subjects(table, set(subjects))]
    if label is not None:
        rows = rows[label_arrays(table, label)[rows] >= 0]
    if not len(rows):
        raise CorpusError(f"{table.root}: no volume left for these subjects and label {label!r}")
    return rows


def label_arrays(table: ChunkTable, label: str) -> np.ndarray:
    """Row in `arrays` of each volume's `label`, -1 where it has none; (n_volumes,) int64."""
    if label not in table.label_names:
        known = ", ".join(table.label_names) or "none"
        raise CorpusError(f"{table.root}: has no label {label!r}; its labels: {known}")
    arrays = np.asarray(table.arrays)
    rows = np.flatnonzero(arrays["label"] == table.label_names.index(label))
    found = np.full(table.n_volumes, -1, np.int64)
    found[arrays["volume"][rows]] = rows
    return found


def _of_subjects(table: ChunkTable, wanted: set[str]) -> np.ndarray:
    """Mask of the volumes whose subject is wanted; CorpusError for one the corpus lacks."""
    names = [table.subjects[i] for i in range(len(table.subjects))]
    unknown = sorted(wanted.difference(names))
    if unknown:
        raise CorpusError(
            f"{table.root}: has no subject {', '.join(unknown[:5])}"
            f"{' and others' if len(unknown) > 5 else ''}"
        )
    chosen = np.array([name in wanted for name in names])
    return chosen[np.asarray(table.volumes["subject"])]
