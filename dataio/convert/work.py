"""One source, whole: read, checked, encoded, written. Runs in any process, commits nothing."""

from collections.abc import Callable
from dataclasses import replace

from mim3d.dataio.chunks.codec import single_threaded
from mim3d.dataio.convert.job import (
    FileHashes,
    Job,
    JobResult,
    changed_files,
    gone_files,
    kept,
    known_damage,
    label_rejection,
    lost_labels,
    lost_masks,
    replaced_since,
    without_moved_labels,
)
from mim3d.dataio.convert.known_sources import parts_of
from mim3d.dataio.convert.label import Label, read_labels
from mim3d.dataio.convert.volume import Volume, read_images, volumes
from mim3d.dataio.convert.volume_ids import safe_id
from mim3d.dataio.convert.volume_writer import volume_objects
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.corpus.replacing import note_replacing
from mim3d.dataio.corpus.seen_files import stamp_of
from mim3d.dataio.errors import Rejection, SourceError, StoreError
from mim3d.dataio.sources.source import Source
from mim3d.dataio.storage.store import open_store


class BadLabelsError(Exception):
    """Labels of a source that cannot be stored, by name; `at_once` if nothing was written yet."""

    def __init__(self, errors: dict[str, SourceError], at_once: bool) -> None:
        super().__init__(", ".join(errors))
        self.errors, self.at_once = errors, at_once


def run_job(job: Job) -> JobResult:
    """Convert one source into the store; a bad source is a rejection, a failing store raises."""
    single_threaded()
    hashes = FileHashes(job)
    if job.only_hash:
        return _rejecting(job, lambda: JobResult(job.id, hashes=_image_hashes(job, hashes)))
    damage = known_damage(job) if job.known else ""
    result = _rejecting(job, lambda: _done(job, hashes, damage))
    stale = tuple(record.id for record in job.known)
    changed = () if result.unchanged else changed_files(job, result.records)
    result = replace(result, stale=stale, seen=hashes.found, changed=changed)
    if not damage:
        return result
    if result.records:
        return replace(result, mended=damage)
    rejections = tuple(
        beyond_mending(job, damage, each, result.refused) for each in result.rejections
    )
    return replace(result, damage=damage, gone=gone_files(job.source), rejections=rejections)


def _done(job: Job, hashes: FileHashes, damage: str) -> JobResult:
    job = without_moved_labels(job, hashes)
    if lost := lost_labels(job, lost_masks(job), damaged=bool(damage), what="the mask"):
        return lost
    if job.known and not damage and (held := kept(job, hashes)):
        return held
    if damage and not job.listed and (other := from_other_files(job, hashes)):
        return other
    return _convert(job, hashes, damage=damage)


def from_other_files(job: Job, hashes: FileHashes) -> JobResult | None:
    """The result where a volume would be mended from files that took the place of its own."""
    if job.accept_losses or not (found := replaced_since(job, hashes)):
        return None
    why = f"is another file than volume {job.id} was made of"
    rejections = tuple(Rejection(path, "source-changed", why) for path in found)
    return JobResult(job.id, rejections=rejections, refused="from the files there are now")


def beyond_mending(job: Job, damage: str, why: Rejection, refused: str) -> Rejection:
    """A damaged volume that its source cannot make what it was; `refused` is what it could be."""
    corpus, ids = job.destination, [record.id for record in job.known]
    mend = f"`mim3d verify {corpus} --mend`"
    choice = f"make it anew {refused} by {mend[:-1]} --accept-losses`, " if refused else ""
    detail = (
        f"volume {job.id} is damaged ({damage}), and its source cannot make it anew as it was "
        f"({why.path}: {why.detail}); bring that back and run {mend}, {choice}or "
        f"take the volume out by `mim3d remove {corpus} --volume {' '.join(ids)}`"
    )
    return Rejection(why.path, "damaged", detail)


def _image_hashes(job: Job, hashes: FileHashes) -> tuple[str, ...]:
    return tuple(map(hashes.of, job.source.images))


def _rejecting(job: Job, work: Callable[[], JobResult]) -> JobResult:
    """What the work gives; a rejection where the source is bad, whatever that shows itself by."""
    try:
        return work()
    except SourceError as error:
        return JobResult(job.id, rejections=(Rejection.of(error),))
    except StoreError:
        raise
    except MemoryError:
        detail = "did not fit into memory; use fewer --workers or a smaller --byte-budget"
        rejection = Rejection(job.source.images[0], "out-of-memory", detail)
        return JobResult(job.id, rejections=(rejection,))
    except Exception as error:
        # No reader foresees every broken file, and one of them must not end a run of thousands.
        detail = f"cannot be converted: {type(error).__name__}: {error}"
        rejection = Rejection(job.source.images[0], "unforeseen", detail)
        return JobResult(job.id, rejections=(rejection,))


def _convert(job: Job, hashes: FileHashes, *, damage: str) -> JobResult:
    """Convert a source, without those of its labels that are bad: they do not cost the image."""
    names = sorted(job.source.labels)
    if len({safe_id(name).casefold() for name in names}) < len(names):
        detail = f"labels {names} have the same name once made safe for a path"
        raise SourceError("label-name", job.source.images[0], f"{detail}; rename them")
    outcome = "was converted without it"
    rejections = [label_rejection(job, error, outcome) for _, error in lost_masks(job)]
    source = job.source
    while True:
        try:
            return replace(_converted(job, source, hashes), rejections=tuple(rejections))
        except BadLabelsError as bad:
            if bad.at_once and (lost := lost_labels(job, bad.errors.items(), damaged=bool(damage))):
                return lost
            rejections += [label_rejection(job, error, outcome) for error in bad.errors.values()]
            good = {n: path for n, path in source.labels.items() if n not in bad.errors}
            source = replace(source, labels=good)


def _converted(job: Job, source: Source, hashes: FileHashes) -> JobResult:
    """Write the volumes of a source; BadLabelsError before the first that cannot be whole."""
    conversion, store = job.conversion, open_store(job.destination)
    before = {path: stamp_of(parts_of(path)) for path in source.paths}
    files = read_images(source, conversion)
    records, voxel_bytes = [], 0
    known = {record.id for record in job.known}
    for volume in volumes(files, conversion):
        labels = _labels(source, volume, conversion, at_once=not records)
        id = job.id if volume.frame < 0 else f"{job.id}--t{volume.frame:03d}"
        objects, record = volume_objects(id, source, files, volume, labels, conversion)
        if id in known:
            note_replacing(store, [id])
        store.put_folder(id, objects)
        records.append(record())
        voxel_bytes += volume.values.voxels.nbytes + sum(label.voxels.nbytes for label in labels)
        del volume, labels, objects, record  # or the next frame would be made beside this one
    for path, hash in records[0].source_files if records else ():
        hashes.note(path, before[path], hash)
    bytes_in = sum(file.nbytes for file in files)
    return JobResult(job.id, tuple(records), bytes_in=bytes_in, voxel_bytes=voxel_bytes)


def _labels(
    source: Source, volume: Volume, conversion: Conversion, *, at_once: bool
) -> list[Label]:
    labels, errors = read_labels(source, volume, conversion)
    if errors:
        raise BadLabelsError(errors, at_once)
    return labels
