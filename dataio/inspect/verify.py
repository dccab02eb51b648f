"""Checking a corpus: every hash, every checksum, the manifest against the store, nothing extra."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from mim3d.dataio.chunks.codec import ChunkCodec
from mim3d.dataio.chunks.shard_writer import checked_digest, chunk_index
from mim3d.dataio.corpus.arrays import (
    ArrayRecord,
    expected_keys,
    is_shard,
    metadata_sha256,
    stored_arrays,
)
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.corpus.history import HISTORY, history_text
from mim3d.dataio.corpus.manifest import VolumeRecord, intact_records
from mim3d.dataio.corpus.names import (
    HEAD,
    MANIFEST,
    OWN_METADATA,
    TABLE,
    is_flat,
    own_array,
    own_key,
)
from mim3d.dataio.corpus.ome import json_bytes
from mim3d.dataio.corpus.quarantine import QUARANTINE, intact_rejections, parse_quarantine
from mim3d.dataio.corpus.replacing import REPLACING
from mim3d.dataio.corpus.root import read_root, root_facts, sealed_document
from mim3d.dataio.corpus.seen_files import SEEN, remedy_of_unfinished
from mim3d.dataio.corpus.table_rows import OLD_TABLE_FILES, READABLE_FORMATS, TABLE_FORMAT
from mim3d.dataio.corpus.table_writer import table_objects
from mim3d.dataio.corpus.writer import ASIDE, orphans, without_line
from mim3d.dataio.errors import CorpusError, Mim3dError
from mim3d.dataio.nifti.file import source_hash
from mim3d.dataio.progress import progress
from mim3d.dataio.storage.store import LOCK, Store, open_store
from mim3d.dataio.waiting import StalledError, asking_threads

REPAIR = "`mim3d verify CORPUS --mend` makes the volume anew from its source"
MEND = "`mim3d verify CORPUS --mend` mends it"
AGAIN = "run the same `mim3d convert` again"
CONVERT = f"{AGAIN}, which makes anew what it told of"
FIRST = f"{AGAIN}, for the manifest is damaged, then verify again"
OWN_FILES = (MANIFEST, QUARANTINE, SEEN, HISTORY, REPLACING, TABLE)


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
    volumes: tuple[str, ...] = ()
    """Ids of volumes of which something is damaged or missing."""


def verify(
    corpus: str | Path, *, workers: int = 2, sources: bool = False, byte_budget: int = 1 << 40
) -> Verification:
    """Check a whole corpus; with `sources`, also that the source files are still what they were.

    CorpusError where there is no corpus at all; everything else is a `Problem`.
    """
    store = open_store(corpus)
    if not store.exists("zarr.json") and not store.exists(own_key(store, TABLE)):
        raise CorpusError(f"{corpus}: not a corpus: it has no zarr.json")
    if unfinished := _unfinished(store):
        return Verification(0, 0, 0, tuple(_with_remedy(store, [unfinished])))
    problems: list[Problem] = []
    records = _manifest(store, problems)
    if not any(problem.where == MANIFEST for problem in problems):
        problems += _lost_lines(store, records)
    chunk = _root(store, records, problems)
    problems += _own_folder(store)
    problems += _quarantine(store)
    problems += _history(store)
    checked = partial(_volume, store, chunk)
    counts, damaged = [0, 0], []
    with progress("verify", len(records), "volumes") as shown, asking_threads(workers) as pool:
        volumes = zip(records, pool.map(checked, records), strict=True)
        for record, (found, n, nbytes) in volumes:
            problems += found
            damaged += [record.id] if found else []
            counts[0] += n
            counts[1] += nbytes
            shown.advance(1)
    problems += _table(store, records, chunk)
    problems += _extra(store, records)
    if any(problem.where == MANIFEST for problem in problems):
        problems = [without_mend(problem) for problem in problems]
    problems = _with_remedy(store, problems)
    if sources:
        problems += _sources(records, byte_budget, _left_out(store))
    found = tuple(sorted(set(problems)))
    return Verification(len(records), counts[0], counts[1], found, tuple(damaged))


def _with_remedy(store: Store, problems: Iterable[Problem]) -> list[Problem]:
    """The same with the command that completes a corpus, where a merge did not end."""
    key = own_key(store, SEEN)
    remedy = remedy_of_unfinished(store.get(key) if store.exists(key) else b"")
    return [replace(p, detail=p.detail.replace(AGAIN, remedy)) for p in problems]


def _unfinished(store: Store) -> Problem | None:
    """That there is no more than volumes, which nothing tells of; None where there is."""
    if any(store.exists(own_key(store, name)) for name in (TABLE, HEAD, QUARANTINE)):
        return None
    key = own_key(store, MANIFEST)
    if not store.exists(key):
        why = f"is missing: a conversion did not finish, or {key} was lost with the files beside it"
        keeps = "which deletes no volume that was whole"
        return Problem(MANIFEST, "missing", f"{why}; {AGAIN}, {keeps}")
    if store.get(key):
        return None
    return Problem(MANIFEST, "unfinished", f"a conversion committed no volume yet; {AGAIN}")


def without_mend(problem: Problem) -> Problem:
    """The same beside a damaged manifest: by that --mend makes what it mends, and refuses."""
    return replace(
        problem, detail=re.sub(r"`mim3d verify [^`]*--mend`[^;]*", FIRST, problem.detail)
    )


def _root(store: Store, records: Sequence[VolumeRecord], problems: list[Problem]) -> int:
    """Side of the inner chunk, by the root, or where it cannot tell by a volume's own metadata."""
    try:
        text = store.get("zarr.json")
        facts = read_root(text, store.url)
        if text != json_bytes(sealed_document(facts)):
            detail = f"not the document that was written; {MEND}"
            problems.append(Problem("zarr.json", "bad-root", detail))
        return int(facts["conversion"]["chunk"])
    except (CorpusError, FileNotFoundError) as error:
        gone = isinstance(error, FileNotFoundError)
        detail = f"is missing; {MEND}" if gone else str(error)
        problems.append(Problem("zarr.json", "missing" if gone else "bad-root", detail))
        if facts := root_facts(store):
            return int(facts["conversion"]["chunk"])
        sides = (_chunk_side(store, f"{record.id}/0/zarr.json") for record in records)
        return next(filter(None, sides), Conversion().chunk)


def _chunk_side(store: Store, key: str) -> int:
    """Side of an array's inner chunk as its zarr.json says; 0 where it does not."""
    try:
        (sharding,) = json.loads(store.get(key))["codecs"]
        return int(sharding["configuration"]["chunk_shape"][-1])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return 0


def _manifest(store: Store, problems: list[Problem]) -> list[VolumeRecord]:
    """Records of all lines that pass; the others are problems."""
    if not store.exists(own_key(store, MANIFEST)):
        detail = f"no manifest: nothing is committed; {CONVERT}"
        problems.append(Problem(MANIFEST, "missing", detail))
        return []
    text = store.get(own_key(store, MANIFEST))
    if text and not text.endswith(b"\n"):
        detail = f"ends within a line: a conversion was interrupted; {CONVERT}"
        problems.append(Problem(MANIFEST, "torn-line", detail))
    if not text and any(key.endswith("/0/zarr.json") for key in store.sizes()):
        detail = f"is empty, and volumes lie beside it; {CONVERT}"
        problems.append(Problem(MANIFEST, "torn-line", detail))
    records, damaged = intact_records(text)
    problems += [Problem(MANIFEST, "bad-line", str(error)) for error in damaged]
    if store.exists(own_key(store, REPLACING)):
        detail = f"a conversion that replaces volumes goes on, or was interrupted; {MEND}"
        problems.append(Problem(REPLACING, "interrupted", detail))
    return sorted(records, key=lambda record: record.id)


def _lost_lines(store: Store, records: Sequence[VolumeRecord]) -> Iterator[Problem]:
    """Volumes that were committed and that no line of an intact manifest tells of."""
    key = own_key(store, MANIFEST)
    text = store.get(key) if store.exists(key) else b""
    for id in without_line(store, {record.id for record in records}, text, is_damaged=False):
        detail = f"lacks the line of volume {id}; {CONVERT}, and loses nothing"
        yield Problem(MANIFEST, "lost-line", detail)


def _own_folder(store: Store) -> list[Problem]:
    """Whether Zarr's readers find an array where the corpus' own files lie."""
    if is_flat(store.exists):
        return []
    whole = store.exists(OWN_METADATA) and store.get(OWN_METADATA) == json_bytes(own_array())
    return [] if whole else [Problem(OWN_METADATA, "bad-root", f"not what was written; {MEND}")]


def _quarantine(store: Store) -> list[Problem]:
    if not store.exists(own_key(store, QUARANTINE)):
        return [Problem(QUARANTINE, "missing", f"a conversion did not finish; {CONVERT}")]
    try:
        parse_quarantine(store.get(own_key(store, QUARANTINE)))
    except CorpusError as error:
        return [Problem(QUARANTINE, "bad-line", f"{error}; {MEND}")]
    return []


def _history(store: Store) -> list[Problem]:
    """Whether what was removed is still told."""
    try:
        known = history_text(store)
    except CorpusError as error:
        return [Problem(HISTORY, "bad-line", str(error))]
    key = own_key(store, HISTORY)
    if known == (store.get(key) if store.exists(key) else b""):
        return []
    return [Problem(HISTORY, "bad-line", f"is not what the chunk table repeats of it; {MEND}")]


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
        count = array.n_chunks(chunk)
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
        except StalledError:
            raise
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


def _damage(array: ArrayRecord, chunk: int, data: bytes) -> Iterator[Problem]:
    """Which chunks of a shard with a wrong hash fail."""
    key = array.shard_key
    codec = ChunkCodec("lz4", array.dtype, array.sides(chunk))
    n_bad = 0
    try:
        index = chunk_index(data, array.n_chunks(chunk))
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
            yield Problem(key, "bad-chunk", f"{error}; {REPAIR}")
    if not n_bad:
        detail = "its hash is not the manifest's, though every chunk passes its checksum"
        yield Problem(key, "bad-hash", f"{detail}; {REPAIR}")


def _table(store: Store, records: Sequence[VolumeRecord], chunk: int) -> list[Problem]:
    """Whether the chunk table is what the manifest and the shards make it."""
    try:
        manifest = store.get(own_key(store, MANIFEST))
        objects = table_objects(store, records, manifest, chunk, _table_format(store))
    except StalledError:
        raise
    except (OSError, Mim3dError, ValueError, KeyError) as error:
        remedy = "" if "--mend" in str(error) else f"; {MEND}"
        return [Problem(TABLE, "not-checked", f"cannot be made anew to compare: {error}{remedy}")]
    problems = []
    for name, parts in objects.items():
        key = own_key(store, name)
        if not store.exists(key):
            problems.append(Problem(name, "missing", f"the chunk table is not there; {MEND}"))
        elif store.get(key) != b"".join(map(bytes, parts)):
            detail = "is not what the manifest and the shards say"
            problems.append(Problem(name, "bad-table", f"{detail}; {MEND}"))
    return problems


def _table_format(store: Store) -> int:
    """Format of the table that is there, the newest where it does not tell."""
    if store.exists(own_key(store, TABLE)):
        return TABLE_FORMAT
    try:
        format = json.loads(store.get(own_key(store, HEAD)))["format"]
    except (OSError, ValueError, KeyError, TypeError):
        return TABLE_FORMAT
    return format if format in READABLE_FORMATS else TABLE_FORMAT


def _extra(store: Store, records: Sequence[VolumeRecord]) -> Iterator[Problem]:
    """Objects that nothing accounts for."""
    known = {f"{record.id}/{key}" for record in records for key in expected_keys(record)}
    known |= {"zarr.json", LOCK} | set(map(partial(own_key, store), OWN_FILES))
    known |= {*OLD_TABLE_FILES} if is_flat(store.exists) else {OWN_METADATA}
    ours = set(orphans(store, {record.id for record in records}))
    keys = list(store.walk())
    aside = set(filter(ASIDE.fullmatch, (key.split("/")[0] for key in keys)))
    for name in aside:
        remove = f"`mim3d remove {store.url} --volume {name}`"
        detail = "a volume whose manifest line was lost: convert its source, which drops this one"
        yield Problem(name, "set-aside", f"{detail}, or {remove} deletes it")
    for key in keys:
        if key in known or key.split("/")[0] in aside:
            continue
        if key.split("/")[0] in ours:
            detail = f"belongs to no committed volume: left by an interrupted conversion; {MEND}"
        else:
            detail = "was not written by a conversion: move it elsewhere"
        yield Problem(key, "orphan", detail)


def _left_out(store: Store) -> dict[str, str]:
    """What the last conversion left out, with the reason, as far as that is readable."""
    key = own_key(store, QUARANTINE)
    found = intact_rejections(store.get(key)) if store.exists(key) else ()
    return {each.path: each.detail for each in found}


def _sources(
    records: Sequence[VolumeRecord], budget: int, left_out: Mapping[str, str]
) -> Iterator[Problem]:
    """Source files that are gone or no longer what was converted."""
    hash_of: Callable[[str], str] = partial(source_hash, budget=budget)
    for record in records:
        for path, hash in record.source_files:
            try:
                same = hash_of(path) == hash
            except StalledError:
                raise
            except Mim3dError as error:
                yield Problem(path, "source-gone", str(error))
                continue
            if not same:
                detail = f"changed since {record.id} was converted"
                found = (f"{p}: {left_out[p]}" for p in record.source_paths if p in left_out)
                why = next(found, "")
                detail += (
                    f", and the last conversion kept the volume as it is, for {why}"
                    if why
                    else f"; {AGAIN}, which converts it anew"
                )
                yield Problem(path, "source-changed", detail)
