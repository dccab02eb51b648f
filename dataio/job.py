"""The work on one source, whole: read, check, encode, write. Runs in any process, commits nothing.

A job and its result are plain data, so a process pool or a Dask cluster can carry them.
"""

from dataclasses import dataclass, field, replace

from mim3d.dataio.codec import single_threaded
from mim3d.dataio.conversion import Conversion
from mim3d.dataio.errors import SourceError
from mim3d.dataio.label import read_label
from mim3d.dataio.manifest import VolumeRecord
from mim3d.dataio.nifti_file import source_hash
from mim3d.dataio.quarantine import Rejection
from mim3d.dataio.source import Source
from mim3d.dataio.store import StoreError, open_store
from mim3d.dataio.volume import read_images, volumes
from mim3d.dataio.volume_ids import safe_id
from mim3d.dataio.volume_writer import stored_arrays, volume_objects


@dataclass(frozen=True)
class Job:
    """One source, the id it got, and the records the corpus already has of it."""

    source: Source
    id: str
    known: tuple[VolumeRecord, ...]
    destination: str
    conversion: Conversion


@dataclass(frozen=True)
class JobResult:
    """What became of a job: records to commit, or that nothing changed, or why it was rejected."""

    id: str
    records: tuple[VolumeRecord, ...] = ()
    rejections: tuple[Rejection, ...] = ()
    unchanged: bool = False
    bytes_in: int = 0
    voxel_bytes: int = 0
    stale: tuple[str, ...] = field(default=())


def run_job(job: Job) -> JobResult:
    """Convert one source into the store; a bad source is a rejection, a failing store raises."""
    single_threaded()
    stale = tuple(record.id for record in job.known)
    try:
        if job.known and is_unchanged(job):
            return JobResult(job.id, unchanged=True)
        return replace(_convert(job), stale=stale)
    except SourceError as error:
        return JobResult(job.id, rejections=(Rejection.of(error),), stale=stale)
    except StoreError:
        raise
    except MemoryError:
        detail = "did not fit into memory; use fewer --workers or a smaller --byte-budget"
        rejection = Rejection(job.source.images[0], "out-of-memory", detail)
        return JobResult(job.id, rejections=(rejection,), stale=stale)
    except Exception as error:
        # No reader foresees every broken file, and one of them must not end a run of thousands.
        detail = f"cannot be converted: {type(error).__name__}: {error}"
        rejection = Rejection(job.source.images[0], "unforeseen", detail)
        return JobResult(job.id, rejections=(rejection,), stale=stale)


def is_unchanged(job: Job) -> bool:
    """Whether the corpus holds this source, byte for byte and with the same particulars."""
    source, first = job.source, job.known[0]
    facts = (source.subject or source.id, source.group, source.split)
    if any((r.subject, r.group, r.split) != facts for r in job.known):
        return False
    if len(job.known) != first.n_frames or not _is_there(job):
        return False
    hashes = tuple(source_hash(path, job.conversion.byte_budget) for path in source.images)
    labels = {
        safe_id(name): source_hash(path, job.conversion.byte_budget)
        for name, path in source.labels.items()
    }
    return all(
        r.source_hash == hashes and {a.name: a.source_hash for a in r.labels} == labels
        for r in job.known
    )


def _is_there(job: Job) -> bool:
    """Whether the shards are still in the store: deleting a damaged volume is how it is mended."""
    store = open_store(job.destination)
    return all(store.exists(a.shard_key) for r in job.known for a in stored_arrays(r))


def _convert(job: Job) -> JobResult:
    source, conversion, store = job.source, job.conversion, open_store(job.destination)
    names = sorted(source.labels)
    if len({safe_id(name).casefold() for name in names}) < len(names):
        detail = f"labels {names} have the same name once made safe for a path"
        raise SourceError("label-name", source.images[0], f"{detail}; rename them")
    files = read_images(source, conversion)
    records, voxel_bytes = [], 0
    for volume in volumes(files, conversion):
        labels = [
            read_label(safe_id(name), source.labels[name], volume, source.images[0], conversion)
            for name in names
        ]
        id = job.id if volume.frame < 0 else f"{job.id}--t{volume.frame:03d}"
        objects, record = volume_objects(id, source, files, volume, labels, conversion)
        store.put_folder(id, objects)
        records.append(record())
        voxel_bytes += volume.values.voxels.nbytes + sum(label.voxels.nbytes for label in labels)
    bytes_in = sum(file.nbytes for file in files)
    return JobResult(job.id, tuple(records), bytes_in=bytes_in, voxel_bytes=voxel_bytes)
