"""The work on one source: what is asked for, what became of it, and whether there is any.

A job and its result are plain data, so a process pool or a Dask cluster can carry them.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Literal

from mim3d.dataio.convert.known_sources import base_id, is_gone, parts_of
from mim3d.dataio.convert.volume_ids import label_facts, safe_id
from mim3d.dataio.corpus.arrays import damage
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.corpus.manifest import VolumeRecord
from mim3d.dataio.corpus.seen_files import SeenFile, stamp_of
from mim3d.dataio.errors import Rejection, SourceError
from mim3d.dataio.nifti.file import source_hash
from mim3d.dataio.nifti.merged import masks_of
from mim3d.dataio.sources.source import Source
from mim3d.dataio.storage.store import open_store

Look = Literal["none", "small", "all"]
"""Nothing of a volume; sizes, metadata and indexes (see `arrays.damage`); or every byte."""


@dataclass(frozen=True)
class Job:
    """One source, the id it got, and the records the corpus already has of it.

    With `only_hash` it asks for the hashes of the images, and nothing is converted. A source that
    is not `listed` stands in the corpus alone: its volume is looked at, and the source only where
    the volume is damaged. `damage` is what is known to be wrong with the volume; `look` says how
    much of it is read to find out. `seen` are the source's files as an earlier run saw them.
    Unless told to `accept_losses`, a volume is not made anew where it would lose a label, or be
    mended from other files than those it was made of.
    """

    source: Source
    id: str
    known: tuple[VolumeRecord, ...]
    destination: str
    conversion: Conversion
    only_hash: bool = False
    listed: bool = True
    damage: str = ""
    look: Look = "small"
    seen: Mapping[str, SeenFile] = field(default_factory=dict)
    accept_losses: bool = False


@dataclass(frozen=True)
class JobResult:
    """What became of a job: records to commit, or that nothing changed, or why it was rejected.

    An unchanged source may have records all the same: its files were moved, or its subject is told
    otherwise, while the volume stays as it is. `gone` are files of a source that was not listed
    and is no more; `mended` is what was wrong with a volume that was made anew, `damage` with one
    that could not be. `refused` says what was not done because it loses something, and can be
    asked for; `changed` are files that are other ones than when the volume was made before.
    """

    id: str
    records: tuple[VolumeRecord, ...] = ()
    rejections: tuple[Rejection, ...] = ()
    unchanged: bool = False
    bytes_in: int = 0
    voxel_bytes: int = 0
    stale: tuple[str, ...] = field(default=())
    hashes: tuple[str, ...] = field(default=())
    gone: tuple[str, ...] = ()
    mended: str = ""
    damage: str = ""
    refused: str = ""
    changed: tuple[str, ...] = ()
    seen: Mapping[str, SeenFile] = field(default_factory=dict)


def label_rejection(job: Job, error: SourceError, outcome: str) -> Rejection:
    """A label left out, with its image and what became of that."""
    image = job.source.images[0]
    which = "the image" if f" {image}:" in error.detail else f"the image {image}"
    return Rejection(error.path, error.code, f"{error.detail}; {which} {outcome}")


class FileHashes:
    """Hashes of source files: read where they are not as an earlier run saw them."""

    def __init__(self, job: Job) -> None:
        self._seen, self._budget = job.seen, job.conversion.byte_budget
        self.found: dict[str, SeenFile] = {}

    def of(self, path: str) -> str:
        """Hash of a file's bytes as they are; SourceError where it cannot be read."""
        before = stamp_of(parts_of(path))
        known = self._seen.get(path)
        hash = known.hash if known and before and known.stamp == before else ""
        hash = hash or source_hash(path, self._budget)
        self.note(path, before, hash)
        return hash

    def note(self, path: str, before: str, hash: str) -> None:
        """Keep the hash of what was read, if the file did not change meanwhile."""
        if before and stamp_of(parts_of(path)) == before:
            self.found[path] = SeenFile(before, hash)


def known_damage(job: Job) -> str:
    """What is wrong with the volumes the corpus has of a source; empty where nothing is."""
    if job.damage or job.look == "none":
        return job.damage
    store, chunk = open_store(job.destination), job.conversion.chunk
    found = (damage(store, record, chunk, thorough=job.look == "all") for record in job.known)
    return next(filter(None, found), "")


def kept(job: Job, hashes: FileHashes) -> JobResult | None:
    """The result where the corpus holds this source byte for byte; None where it must be converted.

    A label that cannot be read any more takes nothing away: its volume stays. Records of several
    channels that were not measured apart are made anew.
    """
    if not job.listed:
        return JobResult(job.id, unchanged=True, gone=gone_files(job.source))
    if len(job.known) != job.known[0].n_frames or any(r.is_pooled for r in job.known):
        return None
    images = tuple(map(hashes.of, job.source.images))
    labels: dict[str, str] = {}
    errors: dict[str, SourceError] = {}
    for name, path in job.source.labels.items():
        try:
            labels[safe_id(name)] = hashes.of(path)
        except SourceError as error:
            errors[name] = error
    if lost := lost_labels(job, errors.items()):
        return lost
    if any(
        r.source_hash != images or {a.name: a.source_hash for a in r.labels} != labels
        for r in job.known
    ):
        return None
    records = tuple(retold(record, job.source, job.conversion) for record in job.known)
    rejections = tuple(label_rejection(job, error, "stays as it is") for error in errors.values())
    changed = () if records == job.known else records
    return JobResult(job.id, changed, rejections, unchanged=True)


def gone_files(source: Source) -> tuple[str, ...]:
    """Images of a source that are no more."""
    return tuple(filter(is_gone, source.images))


def lost_labels(
    job: Job,
    errors: Iterable[tuple[str, SourceError]],
    *,
    damaged: bool = False,
    what: str = "the label",
) -> JobResult | None:
    """The result where labels of the volume, or masks of them, became bad: as with a bad image, it
    stays."""
    have = {label.name for record in job.known for label in record.labels}
    named = [(safe_id(name), error) for name, error in errors]
    lost = sorted(have & {name for name, _ in named})
    if job.accept_losses or not lost:
        return None
    if damaged:
        found = tuple(Rejection.of(error) for _, error in named)
        return JobResult(job.id, rejections=found, refused=f"without label {', '.join(lost)}")
    why = f"keeps the volume it has (--accept-losses converts it without {what})"
    return JobResult(
        job.id, rejections=tuple(label_rejection(job, error, why) for _, error in named)
    )


def lost_masks(job: Job) -> list[tuple[str, SourceError]]:
    """Masks that a merged label had before and whose files are no more, each with its label."""
    now = {safe_id(name): dict(masks_of(path)) for name, path in job.source.labels.items()}
    lost = {
        mask: label.name
        for record in job.known
        for label in record.labels
        for number, mask in masks_of(label.source)
        if label.name in now and number not in now[label.name] and is_gone(mask)
    }
    return [(name, SourceError("missing", mask, "no such file")) for mask, name in lost.items()]


def replaced_since(job: Job, hashes: FileHashes) -> list[str]:
    """Files of the volume's source that are there and are not those it was made of."""
    found = []
    for path, hash in dict(pair for record in job.known for pair in record.source_files).items():
        try:
            if hashes.of(path) != hash:
                found.append(path)
        except SourceError:
            continue  # gone or unreadable, which converting it tells
    return found


def changed_files(job: Job, records: Sequence[VolumeRecord]) -> tuple[str, ...]:
    """Files that the volumes were made of before and are made of again, with other content."""
    before = dict(pair for record in job.known for pair in record.source_files)
    now = dict(pair for record in records for pair in record.source_files)
    return tuple(path for path, hash in before.items() if now.get(path, hash) != hash)


def without_moved_labels(job: Job, hashes: FileHashes) -> Job:
    """The job without labels whose file is no more and whose content has another name now."""
    labels = job.source.labels
    had = {label.name: label.source_hash for record in job.known for label in record.labels}
    gone = {name for name, path in labels.items() if safe_id(name) in had and is_gone(path)}
    if not gone or len(gone) == len(labels):
        return job
    content = set()
    for name in labels.keys() - gone:
        with suppress(SourceError):
            content.add(hashes.of(labels[name]))
    moved = {name for name in gone if had[safe_id(name)] in content}
    kept = {name: path for name, path in labels.items() if name not in moved}
    return replace(job, source=replace(job.source, labels=kept))


def retold(record: VolumeRecord, source: Source, conversion: Conversion) -> VolumeRecord:
    """The record with the paths and particulars that the source has now."""
    paths = {safe_id(name): path for name, path in source.labels.items()}
    return replace(
        record,
        sources=source.images,
        subject=source.subject or source.id,
        subject_from=source.subject_from,
        subject_doubt=source.doubt,
        group=source.group,
        split=source.split,
        session=source.session,
        channel_names=source.channel_names
        if len(source.channel_names) == record.channels
        else record.channel_names,
        labels=tuple(
            replace(
                a,
                source=paths.get(a.name, a.source),
                class_names=dict(sorted(label_facts(source, a.name, values).names.items())),
            )
            for a in record.labels
            for values in [conversion.values_of_label(a.name)]
        ),
    )


def source_of(group: tuple[VolumeRecord, ...]) -> Source:
    """The source that a group of records tells of, under its volume's id."""
    first = group[0]
    return Source(
        base_id(first),
        first.sources,
        {label.name: label.source for label in first.labels},
        first.subject,
        first.group,
        first.split,
        first.subject_from,
        first.subject_doubt,
        first.channel_names,
        {label.name: label.class_names for label in first.labels},
        {label.name: label.ignore for label in first.labels if label.ignore is not None},
        session=first.session,
    )
