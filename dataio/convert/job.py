"""The work on one source, whole: read, check, encode, write. Runs in any process, commits nothing.

A job and its result are plain data, so a process pool or a Dask cluster can carry them.
"""

from dataclasses import dataclass, field, replace

from mim3d.dataio.chunks.codec import single_threaded
from mim3d.dataio.convert.label import Label, read_label
from mim3d.dataio.convert.volume import Volume, read_images, volumes
from mim3d.dataio.convert.volume_ids import safe_id
from mim3d.dataio.convert.volume_writer import volume_objects
from mim3d.dataio.corpus.arrays import stored_arrays
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.corpus.manifest import VolumeRecord
from mim3d.dataio.errors import Rejection, SourceError, StoreError
from mim3d.dataio.nifti.file import source_hash
from mim3d.dataio.sources.source import Source
from mim3d.dataio.storage.store import open_store


@dataclass(frozen=True)
class Job:
    """One source, the id it got, and the records the corpus already has of it.

    With `only_hash` it asks for the hashes of the images, and nothing is converted.
    """

    source: Source
    id: str
    known: tuple[VolumeRecord, ...]
    destination: str
    conversion: Conversion
    only_hash: bool = False


@dataclass(frozen=True)
class JobResult:
    """What became of a job: records to commit, or that nothing changed, or why it was rejected.

    An unchanged source may have records all the same: its files were moved, or its subject is told
    otherwise, while the volume stays as it is.
    """

    id: str
    records: tuple[VolumeRecord, ...] = ()
    rejections: tuple[Rejection, ...] = ()
    unchanged: bool = False
    bytes_in: int = 0
    voxel_bytes: int = 0
    stale: tuple[str, ...] = field(default=())
    hashes: tuple[str, ...] = field(default=())


class BadLabelsError(Exception):
    """Labels of a source that cannot be stored, by name; `at_once` if nothing was written yet."""

    def __init__(self, errors: dict[str, SourceError], at_once: bool) -> None:
        super().__init__(", ".join(errors))
        self.errors, self.at_once = errors, at_once


def run_job(job: Job) -> JobResult:
    """Convert one source into the store; a bad source is a rejection, a failing store raises."""
    single_threaded()
    stale = tuple(record.id for record in job.known)
    try:
        if job.only_hash:
            return JobResult(job.id, hashes=image_hashes(job))
        return replace(kept(job) or _convert(job), stale=stale)
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


def image_hashes(job: Job) -> tuple[str, ...]:
    """Hashes of a source's images as they are."""
    return tuple(source_hash(path, job.conversion.byte_budget) for path in job.source.images)


def kept(job: Job) -> JobResult | None:
    """The result where the corpus holds this source byte for byte; None where it must be converted.

    A label that cannot be read any more takes nothing away: its volume stays. Records of several
    channels that were not measured apart are made anew.
    """
    if not job.known or len(job.known) != job.known[0].n_frames or not _is_there(job):
        return None
    if any(record.is_pooled for record in job.known):
        return None
    images = image_hashes(job)
    labels: dict[str, str] = {}
    errors: dict[str, SourceError] = {}
    for name, path in job.source.labels.items():
        try:
            labels[safe_id(name)] = source_hash(path, job.conversion.byte_budget)
        except SourceError as error:
            errors[name] = error
    if lost := lost_labels(job, errors):
        return lost
    if any(
        r.source_hash != images or {a.name: a.source_hash for a in r.labels} != labels
        for r in job.known
    ):
        return None
    records = tuple(retold(record, job.source) for record in job.known)
    rejections = tuple(label_rejection(job, error, "stays as it is") for error in errors.values())
    changed = () if records == job.known else records
    return JobResult(job.id, changed, rejections, unchanged=True)


def lost_labels(job: Job, errors: dict[str, SourceError]) -> JobResult | None:
    """The result where labels of the volume became bad: as with a bad image, it stays."""
    have = {label.name for record in job.known for label in record.labels}
    if not have.intersection(map(safe_id, errors)):
        return None
    why = "keeps the volume it has (delete its folder in the corpus to convert without the label)"
    return JobResult(
        job.id, rejections=tuple(label_rejection(job, error, why) for error in errors.values())
    )


def label_rejection(job: Job, error: SourceError, outcome: str) -> Rejection:
    """A label left out, with its image and what became of that."""
    detail = f"{error.detail}; the image {job.source.images[0]} {outcome}"
    return Rejection(error.path, error.code, detail)


def retold(record: VolumeRecord, source: Source) -> VolumeRecord:
    """The record with the paths and particulars that the source has now."""
    paths = {safe_id(name): path for name, path in source.labels.items()}
    return replace(
        record,
        sources=source.images,
        subject=source.subject or source.id,
        group=source.group,
        split=source.split,
        labels=tuple(replace(a, source=paths.get(a.name, a.source)) for a in record.labels),
    )


def _is_there(job: Job) -> bool:
    """Whether the shards are still in the store: deleting a damaged volume is how it is mended."""
    store = open_store(job.destination)
    return all(store.exists(a.shard_key) for r in job.known for a in stored_arrays(r))


def _convert(job: Job) -> JobResult:
    """Convert a source, without those of its labels that are bad: they do not cost the image."""
    names = sorted(job.source.labels)
    if len({safe_id(name).casefold() for name in names}) < len(names):
        detail = f"labels {names} have the same name once made safe for a path"
        raise SourceError("label-name", job.source.images[0], f"{detail}; rename them")
    rejections: list[Rejection] = []
    source = job.source
    while True:
        try:
            return replace(_converted(job, source), rejections=tuple(rejections))
        except BadLabelsError as bad:
            intact = job.known and bad.at_once and _is_there(job)
            if intact and (lost := lost_labels(job, bad.errors)):
                return lost
            outcome = "was converted without it"
            rejections += [label_rejection(job, error, outcome) for error in bad.errors.values()]
            good = {n: path for n, path in source.labels.items() if n not in bad.errors}
            source = replace(source, labels=good)


def _converted(job: Job, source: Source) -> JobResult:
    """Write the volumes of a source; BadLabelsError before the first that cannot be whole."""
    conversion, store = job.conversion, open_store(job.destination)
    files = read_images(source, conversion)
    records, voxel_bytes = [], 0
    for volume in volumes(files, conversion):
        labels = _labels(source, volume, conversion, at_once=not records)
        id = job.id if volume.frame < 0 else f"{job.id}--t{volume.frame:03d}"
        objects, record = volume_objects(id, source, files, volume, labels, conversion)
        store.put_folder(id, objects)
        records.append(record())
        voxel_bytes += volume.values.voxels.nbytes + sum(label.voxels.nbytes for label in labels)
        del volume, labels, objects, record  # or the next frame would be made beside this one
    bytes_in = sum(file.nbytes for file in files)
    return JobResult(job.id, tuple(records), bytes_in=bytes_in, voxel_bytes=voxel_bytes)


def _labels(
    source: Source, volume: Volume, conversion: Conversion, *, at_once: bool
) -> list[Label]:
    labels: list[Label] = []
    errors: dict[str, SourceError] = {}
    for name in sorted(source.labels):
        path = source.labels[name]
        try:
            labels.append(read_label(safe_id(name), path, volume, source.images[0], conversion))
        except SourceError as error:
            errors[name] = error
    if errors:
        raise BadLabelsError(errors, at_once)
    return labels
