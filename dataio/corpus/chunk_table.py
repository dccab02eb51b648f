"""The packed table of every inner chunk's byte range, memory-mapped and shared by all ranks.

Five tables and two packed lists of strings, each a plain .npy file, and `chunks.json` beside them.
Rows of `volumes` are in the order of the sorted manifest; `volumes["image"]` is the row in `arrays`
of the image, `first_label` .. `first_label + n_labels` are those of its labels; chunks of an array
are entries `first_chunk` .. `first_chunk + n_chunks` in C order of the (c) z y x grid of chunks.
Chunks of a shard lie one behind the other in that order, so their sizes say where they are: two
bytes a chunk, four where one has more than 65,535. Tables of format 1 have offset and size.

Opening checks what is small; what grows with chunks and points is checked where it is first used:
an array's sizes, which must add up to its shard, and the points, by their checksum in chunks.json
(which tables before format 3 lack). `channel_rows` says what the rows of `channels` are, which
tables before format 4 lack.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import google_crc32c
import numpy as np

from mim3d.dataio.corpus.channel_rows import CHANNEL_DTYPE, CHANNELS, rows_of_volumes
from mim3d.dataio.corpus.manifest import MANIFEST
from mim3d.dataio.errors import CorpusError, Mim3dError

TABLE_FORMAT = 4
READABLE_FORMATS = (1, 2, 3, 4)
HEAD = "chunks.json"
VOLUMES, ARRAYS = "chunks.volumes.npy", "chunks.arrays.npy"
SIZES, POINTS = "chunks.sizes.npy", "chunks.points.npy"
OFFSETS = "chunks.offsets.npy"  # format 1
CHUNKS = {1: OFFSETS, 2: SIZES, 3: SIZES, 4: SIZES}
STRINGS = ("ids", "subjects")
CHECKED = (
    VOLUMES,
    ARRAYS,
    *(f"chunks.{name}{part}.npy" for name in STRINGS for part in ("", "_offsets")),
)
REMEDY = "run the same `mim3d convert` again to complete it"
READ_BYTES = 1 << 22
INDEX_ENTRY, INDEX_CRC = 16, 4  # bytes of a shard's index: an entry per chunk, its checksum
# label -1 is the image, else an index into label_names; shape and chunk are z, y, x.
ARRAY_DTYPE = np.dtype([
    ("volume", "<u4"), ("label", "<i2"), ("dtype", "S8"), ("channels", "<u2"),
    ("shape", "<u4", 3), ("chunk", "<u2", 3), ("first_chunk", "<u8"), ("n_chunks", "<u4"),
    ("slope", "<f8"), ("intercept", "<f8"), ("shard_bytes", "<u8"),
])  # fmt: skip
VOLUME_DTYPE = np.dtype([
    ("image", "<u4"), ("shape", "<u4", 3), ("spacing_mm", "<f4", 3),
    ("foreground_box", "<u4", (2, 3)),
    ("minimum", "<f4"), ("maximum", "<f4"), ("mean", "<f4"), ("std", "<f4"),
    ("p005", "<f4"), ("p995", "<f4"),
    ("foreground_mean", "<f4"), ("foreground_std", "<f4"),
    ("foreground_p005", "<f4"), ("foreground_p995", "<f4"),
    ("subject", "<u4"), ("first_label", "<u4"), ("n_labels", "<u2"),
])  # fmt: skip
# Format 1. nbytes 0: the chunk is absent and holds the fill value 0.
CHUNK_DTYPE = np.dtype([("offset", "<u8"), ("nbytes", "<u4")])
# Up to 64 voxels of each foreground class of each label array, for foreground oversampling.
POINT_DTYPE = np.dtype([("array", "<u4"), ("cls", "<u2"), ("zyx", "<u4", 3)])


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

    @classmethod
    def open(cls, corpus_root: str | Path) -> "ChunkTable":
        """Map the table of a corpus.

        CorpusError when it is missing, damaged, older than the manifest or of another format.
        """
        root = Path(corpus_root)
        head = read_head(root)
        for name in checked_first(head["format"]):
            if crc_of(root / name) != head["crc32c"][name]:
                raise _damaged(root / name, "fails its checksum")
        volumes, arrays = _mapped(root / VOLUMES), _mapped(root / ARRAYS)
        n_chunks = int(arrays["first_chunk"][-1] + arrays["n_chunks"][-1]) if len(arrays) else 0
        kinds = [CHUNK_DTYPE] if head["format"] == 1 else [np.dtype("<u2"), np.dtype("<u4")]
        chunks = _mapped(root / CHUNKS[head["format"]], kinds, n_chunks)
        points = _mapped(root / POINTS, [POINT_DTYPE])
        ids, subjects = (
            PackedStrings(*(_mapped(root / f"chunks.{name}{s}.npy") for s in ("", "_offsets")))
            for name in STRINGS
        )
        names = tuple(head["label_names"])
        crc = head["crc32c"].get(POINTS)
        channels = None
        if CHANNELS in checked_first(head["format"]):
            n_channels = int(arrays["channels"][volumes["image"]].sum())
            channels = _mapped(root / CHANNELS, [CHANNEL_DTYPE], n_channels)
        return cls(
            str(root), volumes, arrays, chunks, points, ids, subjects, names, crc, str(root),
            channels,
        )  # fmt: skip

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
        file = Path(self.folder or self.root) / POINTS
        if self.points_crc is not None and crc_of(file) != self.points_crc:
            raise _damaged(file, "the sample points fail their checksum")
        return self.unchecked_points

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
            told = f"sizes of {self.shard_path(row)} add up to {found} bytes, not to {expected}"
            raise _damaged(f"{self.root}/{HEAD}", f"the chunk {told}: the table is damaged")
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
        return f"{name}/0" if label < 0 else f"{name}/labels/{self.label_names[label]}/0"

    def shard_path(self, row: int) -> str:
        """Key of the one shard object of a row of `arrays`, relative to the corpus."""
        n_axes = 3 + (int(self.arrays["channels"][row]) > 1)
        return f"{self.array_path(row)}/c" + "/0" * n_axes

    def label_row(self, volume: int, name: str) -> int:
        """Row in `arrays` of a volume's label, or -1 where it has none of that name."""
        if name not in self.label_names:
            return -1
        first, n = (int(self.volumes[field][volume]) for field in ("first_label", "n_labels"))
        number = self.label_names.index(name)
        rows = np.flatnonzero(self.arrays["label"][first : first + n] == number)
        return first + int(rows[0]) if len(rows) else -1


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


def read_head(root: Path) -> dict:
    """`chunks.json` of a corpus, checked against the format and the manifest's size."""
    file = root / HEAD
    if not file.is_file():
        raise CorpusError(f"{root}: the chunk table is missing ({HEAD}); {REMEDY}")
    try:
        head = json.loads(file.read_bytes())
        body = {key: value for key, value in head.items() if key != "self_crc32c"}
        intact = head["self_crc32c"] == head_crc(body)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        intact, head = False, {}
    if not intact:
        raise _damaged(file, "damaged")
    if head["format"] not in READABLE_FORMATS:
        known = ", ".join(map(str, READABLE_FORMATS))
        raise CorpusError(f"{file}: format {head['format']}, this version reads {known}")
    size = (root / MANIFEST).stat().st_size if (root / MANIFEST).is_file() else -1
    if size != head["manifest_bytes"]:
        raise CorpusError(
            f"{root}: the chunk table was made for a manifest of {head['manifest_bytes']} bytes, "
            f"now it has {size}: a conversion did not finish; {REMEDY}"
        )
    return head


def check_manifest(root: Path, text: bytes) -> None:
    """CorpusError unless these bytes are the manifest that the table was made of."""
    if sha256(text).hexdigest() != read_head(root)["manifest_sha256"]:
        raise CorpusError(
            f"{root / MANIFEST}: damaged: not the manifest that {HEAD} was made for; restore it, "
            "or run the same `mim3d convert` again"
        )


def checked_first(format: int) -> tuple[str, ...]:
    """Files with a checksum in chunks.json that opening compares."""
    return (*CHECKED, CHANNELS) if format >= 4 else CHECKED


def checked_later(format: int) -> tuple[str, ...]:
    """Files with a checksum in chunks.json that opening does not look at."""
    return (POINTS,) if format >= 3 else ()


def head_crc(body: dict) -> str:
    """Checksum of chunks.json's own fields."""
    return f"{google_crc32c.value(json.dumps(body, sort_keys=True).encode()):08x}"


def crc_of(file: Path) -> str:
    """crc32c of a file; an unreadable one is a CorpusError with the remedy."""
    crc = 0
    try:
        with file.open("rb", buffering=0) as opened:
            while block := opened.read(READ_BYTES):
                crc = google_crc32c.extend(crc, block)
    except OSError as error:
        raise CorpusError(f"{file}: cannot be read ({error.strerror}); {REMEDY}") from error
    return f"{crc:08x}"


def _damaged(file: Path | str, what: str) -> CorpusError:
    return CorpusError(f"{file}: {what}; delete {HEAD}, then {REMEDY}")


def _mapped(file: Path, dtypes: Sequence[np.dtype] = (), length: int | None = None) -> np.ndarray:
    """A .npy file as memory map, of one of `dtypes` and of `length` where these are told."""
    try:
        mapped = np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy's parser of headers raises whatever Python's own does
        raise _damaged(file, f"cannot be mapped ({error})") from error
    end = getattr(mapped, "offset", 0) + mapped.nbytes
    if mapped.ndim != 1 or end != file.stat().st_size:
        raise _damaged(file, f"its header speaks of {mapped.shape} entries, {end} bytes in all")
    if dtypes and mapped.dtype not in dtypes:
        raise _damaged(file, f"holds {mapped.dtype}, not {dtypes[0]}")
    if length is not None and mapped.shape != (length,):
        raise _damaged(file, f"has {mapped.shape} entries, the arrays {length}")
    return mapped
