"""Building the packed chunk table from the manifest and the shards' own indexes."""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from typing import Any

import google_crc32c
import numpy as np
from typing_extensions import Buffer

from mim3d.dataio.chunks.shard_writer import chunk_index, n_chunks
from mim3d.dataio.corpus.arrays import described_at, label_path, shard_key
from mim3d.dataio.corpus.channel_rows import CHANNELS, channel_rows, held
from mim3d.dataio.corpus.history import history_text
from mim3d.dataio.corpus.manifest import LabelRecord, VolumeRecord
from mim3d.dataio.corpus.names import HEAD, TABLE
from mim3d.dataio.corpus.ome import unpack_points
from mim3d.dataio.corpus.root import root_facts
from mim3d.dataio.corpus.table_file import crcs_of_blocks, packed
from mim3d.dataio.corpus.table_head import checked_first, checked_later, head_crc
from mim3d.dataio.corpus.table_rows import (
    ARRAY_DTYPE,
    ARRAYS,
    CHUNK_DTYPE,
    CHUNKS,
    FIRST_POINTS,
    OLD_ARRAY_DTYPE,
    ONE_FILE,
    POINT_CRCS,
    POINT_DTYPE,
    POINTS,
    POINTS_TOGETHER,
    TABLE_FORMAT,
    VOLUME_DTYPE,
    VOLUMES,
    section_of,
)
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.storage.remote import ADDRESS
from mim3d.dataio.storage.store import Store
from mim3d.dataio.waiting import asking_threads

READERS = 8
BATCH = 1024
TOGETHER = 32
"""Arrays of a local corpus that a thread reads one after the other: their indexes were written just
now, and asking a thread for one costs more than reading it."""
# (array path, shard key, chunks) -> (n, 2) offsets and lengths; label path -> class -> (n, 3)
# points.
IndexReader = Callable[[str, str, int], np.ndarray]
PointReader = Callable[[str], dict[int, np.ndarray]]
Readers = tuple[IndexReader, PointReader]


def table_objects(
    store: Store,
    records: Sequence[VolumeRecord],
    manifest: bytes,
    chunk: int,
    format: int = TABLE_FORMAT,
    readers: Readers | None = None,
) -> dict[str, Sequence[Buffer]]:
    """The table's file in parts, or its files with chunks.json last; `records` sorted by id, as
    the manifest is.

    Formats before the last are how tables were once written, for comparison with one.
    """
    readers = readers or (index_reader(store), point_reader(store))
    together = 1 if ADDRESS.match(store.url) else TOGETHER
    table = build_table(records, chunk, *readers, format, together)
    body: dict[str, Any] = {
        "format": format,
        "label_names": label_names(records),
        "manifest_bytes": len(manifest),
        "manifest_sha256": sha256(manifest).hexdigest(),
    }
    if format >= ONE_FILE:
        body |= {"root": root_facts(store), "history": history_text(store).decode()}
        sections = {section_of(name): table[name] for name in table}
        return {TABLE: packed(body, sections | point_sections(table))}
    objects: dict[str, Sequence[Buffer]] = {n: _npy(array) for n, array in table.items()}
    body["crc32c"] = {n: _crc32c(objects[n]) for n in checked_files(format)}
    head = json.dumps(body | {"self_crc32c": head_crc(body)}, indent=1).encode()
    return objects | {HEAD: [head]}


def point_sections(table: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Where each array's points begin, and a checksum of each block of them."""
    points = table[POINTS]
    arrays = np.arange(len(table[ARRAYS]) + 1, dtype=points.dtype["array"])
    first = np.searchsorted(points["array"], arrays).astype("<u8")
    return {FIRST_POINTS: first, POINT_CRCS: crcs_of_blocks(points, POINTS_TOGETHER)}


def checked_files(format: int) -> tuple[str, ...]:
    """Files whose checksums chunks.json has."""
    return (*checked_first(format), *checked_later(format))


def _crc32c(parts: Sequence[Buffer]) -> str:
    crc = 0
    for part in parts:
        crc = google_crc32c.extend(crc, bytes(part))
    return f"{crc:08x}"


def build_table(
    records: Sequence[VolumeRecord],
    chunk: int,
    read_index: IndexReader,
    read_points: PointReader,
    format: int = TABLE_FORMAT,
    together: int = 1,
) -> dict[str, np.ndarray]:
    """All tables by file name; `records` sorted by id. A thread reads `together` arrays."""
    names = label_names(records)
    subjects = sorted({record.subject for record in records})
    volumes = np.zeros(len(records), VOLUME_DTYPE)
    arrays = np.zeros(sum(1 + len(record.labels) for record in records), ARRAY_DTYPE)
    rows = _fill_rows(records, chunk, names, subjects, volumes, arrays)
    chunks = np.zeros(int(arrays["n_chunks"].sum()), CHUNK_DTYPE if format == 1 else "<u4")
    points: list[np.ndarray] = []
    for row, index, found in _indexes(rows, arrays, read_index, read_points, together):
        first, count = int(arrays["first_chunk"][row]), int(arrays["n_chunks"][row])
        if format == 1:
            chunks["offset"][first : first + count] = index[:, 0]
            chunks["nbytes"][first : first + count] = index[:, 1]
        else:
            chunks[first : first + count] = _sizes(index, rows[row][0])
        points.extend(_point_rows(row, found))
    channels = {CHANNELS: channel_rows(records)} if CHANNELS in checked_first(format) else {}
    return {
        VOLUMES: volumes,
        ARRAYS: arrays if format >= ONE_FILE else _without_hashes(arrays),
        **channels,
        CHUNKS[format]: chunks if format == 1 else _narrow(chunks),
        POINTS: np.concatenate(points) if points else np.zeros(0, POINT_DTYPE),
        **_packed("ids", [record.id for record in records]),
        **_packed("subjects", subjects),
    }


def _without_hashes(arrays: np.ndarray) -> np.ndarray:
    older = np.zeros(len(arrays), OLD_ARRAY_DTYPE)
    for name in older.dtype.names or ():
        older[name] = arrays[name]
    return older


def shard_tag(sha256: str) -> int:
    """The beginning of a shard's hash, as rows of `arrays` have it."""
    return int(sha256[:16] or "0", 16)


def _sizes(index: np.ndarray, path: str) -> np.ndarray:
    """Sizes of a shard's chunks, which must follow each other without a gap."""
    offsets, sizes = index[:, 0], index[:, 1]
    expected = np.cumsum(sizes) - sizes
    if not np.array_equal(offsets[sizes > 0], expected[sizes > 0]):
        raise CorpusError(
            f"{path}: its chunks do not follow each other in C order, so another program wrote "
            "the shard; `mim3d verify CORPUS --mend` makes it anew"
        )
    return sizes


def _narrow(sizes: np.ndarray) -> np.ndarray:
    return sizes.astype("<u2") if sizes.max(initial=0) < 1 << 16 else sizes


def label_names(records: Sequence[VolumeRecord]) -> list[str]:
    """Names of all labels, sorted."""
    return sorted({label.name for record in records for label in record.labels})


def _fill_rows(
    records: Sequence[VolumeRecord],
    chunk: int,
    names: list[str],
    subjects: list[str],
    volumes: np.ndarray,
    arrays: np.ndarray,
) -> list[tuple[str, bool]]:
    """Fill both tables; the (Zarr path, is a label) of every row of `arrays`."""
    subject_rows = {name: row for row, name in enumerate(subjects)}
    label_rows = {name: row for row, name in enumerate(names)}
    paths: list[tuple[str, bool]] = []
    first_chunk = 0
    for volume, record in enumerate(records):
        image = len(paths)
        volumes[volume] = _volume_row(record, image, subject_rows[record.subject])
        for label in (None, *record.labels):
            number = -1 if label is None else label_rows[label.name]
            count = n_chunks(record.shape, (chunk,) * 3)
            count *= record.channels if label is None else 1
            row = _array_row(record, label, volume, number, chunk, first_chunk, count)
            arrays[len(paths)] = row
            path = "0" if label is None else label_path(label.name, record.layout)
            paths.append((f"{record.id}/{path}", label is not None))
            first_chunk += count
    return paths


def _volume_row(record: VolumeRecord, image: int, subject: int) -> tuple:
    whole, inside = record.intensity, record.foreground
    figures = (
        whole.minimum, whole.maximum, whole.mean, whole.std, whole.p005, whole.p995,
        inside.mean, inside.std, inside.p005, inside.p995,
    )  # fmt: skip
    return (
        image, record.shape, record.spacing_mm, record.foreground_box,
        *held(figures), subject, image + 1, len(record.labels),
    )  # fmt: skip


def _array_row(
    record: VolumeRecord,
    label: LabelRecord | None,
    volume: int,
    number: int,
    chunk: int,
    first_chunk: int,
    count: int,
) -> tuple:
    dtype = np.dtype(record.dtype if label is None else label.dtype).newbyteorder("<").str
    channels = record.channels if label is None else 1
    scaling = (record.slope, record.intercept) if label is None else (1.0, 0.0)
    made = record if label is None else label
    return (
        volume, number, dtype.encode(), channels, record.shape, (chunk,) * 3,
        first_chunk, count, *scaling, made.shard_bytes, shard_tag(made.shard_sha256),
        record.layout,
    )  # fmt: skip


def _indexes(
    rows: list[tuple[str, bool]],
    arrays: np.ndarray,
    read_index: IndexReader,
    read_points: PointReader,
    together: int,
) -> Iterator[tuple[int, np.ndarray, dict[int, np.ndarray]]]:
    """Index and points of every array, read by a few threads as small reads mostly wait."""

    def read(row: int) -> tuple[int, np.ndarray, dict[int, np.ndarray]]:
        path, is_label = rows[row]
        n_axes = 3 + (int(arrays["channels"][row]) > 1)
        key = shard_key(path, n_axes, int(arrays["layout"][row]))
        index = read_index(path, key, int(arrays["n_chunks"][row]))
        return row, index, read_points(path) if is_label else {}

    def read_group(first: int) -> list[tuple[int, np.ndarray, dict[int, np.ndarray]]]:
        return list(map(read, range(first, min(first + together, len(rows)))))

    if len(rows) <= together > 1:
        yield from read_group(0)
        return
    with asking_threads(READERS) as readers:
        for start in range(0, len(rows), BATCH):
            firsts = range(start, min(start + BATCH, len(rows)), together)
            for group in readers.map(read_group, firsts):
                yield from group


def _point_rows(row: int, found: dict[int, np.ndarray]) -> Iterator[np.ndarray]:
    for number in sorted(found):
        points = np.zeros(len(found[number]), POINT_DTYPE)
        points["array"], points["cls"], points["zyx"] = row, number, found[number]
        yield points


def _packed(name: str, texts: Sequence[str]) -> dict[str, np.ndarray]:
    encoded = [text.encode() for text in texts]
    offsets = np.concatenate([[0], np.cumsum([len(text) for text in encoded])]).astype("<u8")
    blob = np.frombuffer(b"".join(encoded), np.uint8)
    return {f"chunks.{name}.npy": blob, f"chunks.{name}_offsets.npy": offsets}


def _npy(array: np.ndarray) -> list[Buffer]:
    """An .npy file as header and content, without a copy of the content."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(array))
    return [head.getvalue(), np.ascontiguousarray(array).reshape(-1).view(np.uint8).data]


def index_reader(store: Store) -> IndexReader:
    """Read the index at the end of an array's shard."""

    def read(path: str, key: str, count: int) -> np.ndarray:
        try:
            return chunk_index(store.tail(key, count * 16 + 4), count)
        except (ValueError, FileNotFoundError) as error:
            raise CorpusError(
                f"{store.url}: shard {key}: {error}; `mim3d verify {store.url} --mend` mends it"
            ) from error

    return read


def point_reader(store: Store) -> PointReader:
    """Read the points kept beside a label."""

    def read(path: str) -> dict[int, np.ndarray]:
        document = json.loads(store.get(described_at(path)))
        return unpack_points(document["attributes"]["mim3d"]["points"])

    return read
