"""Checking a corpus: every hash, every checksum, the manifest against the store, nothing extra."""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mim3d.dataio.chunks.codec import ChunkCodec
from mim3d.dataio.chunks.shard_writer import checked_digest, chunk_index, n_chunks
from mim3d.dataio.corpus.arrays import StoredArray, is_shard, metadata_sha256, stored_arrays
from mim3d.dataio.corpus.channel_rows import CHANNELS
from mim3d.dataio.corpus.chunk_table import (
    CHECKED,
    HEAD,
    OFFSETS,
    POINTS,
    READABLE_FORMATS,
    SIZES,
    TABLE_FORMAT,
)
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.corpus.manifest import MANIFEST, VolumeRecord, intact_records, latest
from mim3d.dataio.corpus.ome import json_bytes
from mim3d.dataio.corpus.quarantine import QUARANTINE, parse_quarantine
from mim3d.dataio.corpus.root import read_root, sealed_document
from mim3d.dataio.corpus.table_writer import table_objects
from mim3d.dataio.errors import CorpusError, Mim3dError
from mim3d.dataio.nifti.file import source_hash
from mim3d.dataio.progress import progress
from mim3d.dataio.storage.store import LOCK, Store, open_store

REPAIR = "delete its volume's folder and run the same convert again"
ROOT_FILES = frozenset(
    {"zarr.json", MANIFEST, QUARANTINE, HEAD, OFFSETS, SIZES, POINTS, LOCK, CHANNELS, *CHECKED}
)


@dataclass(frozen=True, order=True)
class Problem:
    """One thing wrong: the object, a machine-readable code, and what it means."""

    where: str
    code: str
    detail: str


@dataclass(frozen=True)
class Verification:
    """What was checked and what is wrong; `nbytes` were read of `n_volumes` with `n_chunks`."""

    n_volumes: int
    n_chunks: int
    nbytes: int
    problems: tuple[Problem, ...]


def verify(
    corpus: str | Path, *, workers: int = 2, sources: bool = False, byte_budget: int = 1 << 40
) -> Verification:
    """Check a whole corpus; with `sources`, also that the source files are still what they were.

    CorpusError where there is no corpus at all; everything else is a `Problem`.
    """
    store = open_store(corpus)
    if not store.exists("zarr.json"):
        raise CorpusError(f"{corpus}: not a corpus: it has no zarr.json")
    problems: list[Problem] = []
    records = _manifest(store, problems)
    chunk = _root(store, records, problems)
    problems += _quarantine(store)
    checked = partial(_volume, store, chunk)
    counts = [0, 0]
    with progress("verify", len(records), "volumes") as shown, ThreadPoolExecutor(workers) as pool:
        for found, n, nbytes in pool.map(checked, records):
            problems += found
            counts[0] += n
            counts[1] += nbytes
            shown.advance(1)
    problems += _table(store, records, chunk)
    problems += _extra(store, records)
    if sources:
        problems += _sources(records, byte_budget)
    return Verification(len(records), counts[0], counts[1], tuple(sorted(set(problems))))


def _root(store: Store, records: Sequence[VolumeRecord], problems: list[Problem]) -> int:
    """Side of the inner chunk, by the root, or where it cannot tell by a volume's own metadata."""
    try:
        text = store.get("zarr.json")
        facts = read_root(text, store.url)
        if text != json_bytes(sealed_document(facts)):
            detail = "not the document that was written; run the same convert again to mend it"
            problems.append(Problem("zarr.json", "bad-root", detail))
        return int(facts["conversion"]["chunk"])
    except CorpusError as error:
        problems.append(Problem("zarr.json", "bad-root", str(error)))
        told = (_chunk_side(store, f"{record.id}/0/zarr.json") for record in records)
        return next(filter(None, told), Conversion().chunk)


def _chunk_side(store: Store, key: str) -> int:
    """Side of an array's inner chunk as its zarr.json says; 0 where it does not."""
    try:
        (sharding,) = json.loads(store.get(key))["codecs"]
        return int(sharding["configuration"]["chunk_shape"][-1])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return 0


def _manifest(store: Store, problems: list[Problem]) -> list[VolumeRecord]:
    """Records of all lines that pass; the others are problems."""
    if not store.exists(MANIFEST):
        problems.append(Problem(MANIFEST, "missing", "no manifest: nothing is committed"))
        return []
    text = store.get(MANIFEST)
    if text and not text.endswith(b"\n"):
        detail = "ends within a line: a conversion was interrupted; run it again"
        problems.append(Problem(MANIFEST, "torn-line", detail))
    records, damaged = intact_records(text)
    problems += [Problem(MANIFEST, "bad-line", str(error)) for error in damaged]
    return sorted(latest(records), key=lambda record: record.id)


def _quarantine(store: Store) -> list[Problem]:
    if not store.exists(QUARANTINE):
        return [Problem(QUARANTINE, "missing", "a conversion did not finish; run it again")]
    try:
        parse_quarantine(store.get(QUARANTINE))
    except CorpusError as error:
        return [Problem(QUARANTINE, "bad-line", str(error))]
    return []


def expected_keys(record: VolumeRecord) -> list[str]:
    """Every object of a volume's folder, relative to it."""
    arrays = [array.path.removeprefix(f"{record.id}/") for array in stored_arrays(record)]
    shards = [array.shard_key.removeprefix(f"{record.id}/") for array in stored_arrays(record)]
    keys = ["zarr.json", "nifti/zarr.json", "nifti/c/0", *shards]
    keys += [f"{path}/zarr.json" for path in arrays]
    if record.labels:
        keys += ["labels/zarr.json", *(f"labels/{a.name}/zarr.json" for a in record.labels)]
    return keys


def _volume(store: Store, chunk: int, record: VolumeRecord) -> tuple[list[Problem], int, int]:
    """Problems of one volume, chunks and bytes read."""
    problems: list[Problem] = []
    keys = expected_keys(record)
    metadata = _fetch(store, record.id, [key for key in keys if not is_shard(key)], problems)
    if not problems and metadata_sha256(metadata) != record.metadata_sha256:
        detail = f"its zarr.json files or NIfTI header are not what was written; {REPAIR}"
        problems.append(Problem(record.id, "bad-metadata", detail))
    n, nbytes = 0, 0
    for array in stored_arrays(record):
        data = _fetch(store, "", [array.shard_key], problems).get(array.shard_key, [b""])[0]
        count = n_chunks(array.shape, _sides(array, chunk))
        if data and not _same(data, count, array.sha256):
            problems += _damage(array, chunk, data)
        n += count
        nbytes += len(data)
    return problems, n, nbytes


def _fetch(
    store: Store, folder: str, keys: Sequence[str], problems: list[Problem]
) -> dict[str, list[bytes]]:
    found = {}
    for key in keys:
        where = f"{folder}/{key}".lstrip("/")
        try:
            found[key] = [store.get(where)]
        except (OSError, Mim3dError) as error:
            reason = (
                "is missing" if isinstance(error, FileNotFoundError) else f"unreadable: {error}"
            )
            problems.append(Problem(where, "missing", f"{reason}; {REPAIR}"))
    return found


def _same(data: bytes, count: int, sha256: str) -> bool:
    try:
        return checked_digest(data, count) == sha256
    except ValueError:
        return False


def _sides(array: StoredArray, chunk: int) -> tuple[int, ...]:
    return (1,) * (len(array.shape) - 3) + (chunk,) * 3


def _damage(array: StoredArray, chunk: int, data: bytes) -> Iterator[Problem]:
    """Which chunks of a shard with a wrong hash fail."""
    key, sides = array.shard_key, _sides(array, chunk)
    codec = ChunkCodec("lz4", array.dtype, sides)
    n_bad = 0
    try:
        index = chunk_index(data, n_chunks(array.shape, sides))
    except ValueError as error:
        yield Problem(key, "bad-index", f"{error}; {REPAIR}")
        return
    for number, (offset, nbytes) in enumerate(index.tolist()):
        if not nbytes:
            continue
        try:
            codec.decode(data[offset : offset + nbytes], f"chunk {number}")
        except CorpusError as error:
            n_bad += 1
            yield Problem(key, "bad-chunk", str(error))
    if not n_bad:
        detail = "its hash is not the manifest's, though every chunk passes its checksum"
        yield Problem(key, "bad-hash", f"{detail}; {REPAIR}")


def _table(store: Store, records: Sequence[VolumeRecord], chunk: int) -> list[Problem]:
    """Whether the chunk table is what the manifest and the shards make it."""
    remedy = "delete chunks.json and run the same convert again"
    try:
        format = _table_format(store)
        objects = table_objects(store, records, store.get(MANIFEST), chunk, format)
    except (OSError, Mim3dError, ValueError, KeyError) as error:
        return [Problem(HEAD, "not-checked", f"the table cannot be rebuilt to compare: {error}")]
    problems = []
    for name, parts in objects.items():
        if not store.exists(name):
            problems.append(Problem(name, "missing", f"the chunk table is not there; {remedy}"))
        elif store.get(name) != b"".join(map(bytes, parts)):
            detail = "is not what the manifest and the shards say"
            problems.append(Problem(name, "bad-table", f"{detail}; {remedy}"))
    return problems


def _table_format(store: Store) -> int:
    """Format of the table that is there, the newest where it does not tell."""
    try:
        format = json.loads(store.get(HEAD))["format"]
    except (OSError, ValueError, KeyError, TypeError):
        return TABLE_FORMAT
    return format if format in READABLE_FORMATS else TABLE_FORMAT


def _extra(store: Store, records: Sequence[VolumeRecord]) -> Iterator[Problem]:
    """Objects that nothing accounts for."""
    known = {f"{record.id}/{key}" for record in records for key in expected_keys(record)}
    for key in store.walk():
        if key not in known and key not in ROOT_FILES:
            detail = "belongs to no committed volume: left by an interrupted conversion or put here"
            yield Problem(key, "orphan", f"{detail}; run convert again or delete it")


def _sources(records: Sequence[VolumeRecord], budget: int) -> Iterator[Problem]:
    """Source files that are gone or no longer what was converted."""
    hash_of: Callable[[str], str] = partial(source_hash, budget=budget)
    for record in records:
        pairs = [*zip(record.sources, record.source_hash, strict=True)]
        pairs += [(label.source, label.source_hash) for label in record.labels]
        for path, hash in pairs:
            try:
                same = hash_of(path) == hash
            except Mim3dError as error:
                yield Problem(path, "source-gone", str(error))
                continue
            if not same:
                detail = f"changed since {record.id} was converted; run convert again"
                yield Problem(path, "source-changed", detail)
