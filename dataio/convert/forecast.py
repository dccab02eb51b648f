"""What a conversion would do, from the headers alone and a measured taste of the real work."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

from mim3d.dataio.chunks.pyramid import n_scales
from mim3d.dataio.convert.job import (
    FileHashes,
    Job,
    label_rejection,
    lost_labels,
    lost_masks,
    retold,
    without_moved_labels,
)
from mim3d.dataio.convert.known_sources import in_words, is_gone
from mim3d.dataio.convert.label import read_labels
from mim3d.dataio.convert.pool import run_jobs
from mim3d.dataio.convert.run import Run, check_destination, refuse_half_merged, usable_cpus
from mim3d.dataio.convert.volume import read_images, trust_of, volumes
from mim3d.dataio.convert.volume_ids import label_facts, safe_id
from mim3d.dataio.convert.volume_writer import volume_objects
from mim3d.dataio.corpus.arrays import FILES_OF_A_CORPUS, n_files
from mim3d.dataio.corpus.conversion import Conversion, Rerun
from mim3d.dataio.corpus.manifest import Intensity, LabelRecord, VolumeRecord
from mim3d.dataio.corpus.writer import CorpusWriter
from mim3d.dataio.errors import Rejection, SourceError
from mim3d.dataio.geometry import Grid, axis_codes
from mim3d.dataio.nifti.file import is_remote, read_header
from mim3d.dataio.nifti.header import NiftiHeader
from mim3d.dataio.nifti.merged import masks_of
from mim3d.dataio.sources.source import Source
from mim3d.dataio.storage.store import open_store
from mim3d.dataio.waiting import asking_threads

TASTES = 8
TASTE_BYTES = 1 << 28  # and no further taste after these, so that a look stays a look
REMOTE_READS = 16
STARTUP_S = 0.5  # until worker processes have imported what they need
TYPICAL = (0.45, 150e6)
"""Stored share and bytes per second of CT and MR with the default codec on one CPU."""


@dataclass(frozen=True)
class Expected:
    """One source that would be converted: shape (x, y, z), volumes it makes, bytes as now.

    `is_shared` tells that all frames have one label, `doubt` what of the header disagrees with
    itself, `notes` what else is worth knowing of it, and `stays` that the corpus' volume stays as
    it is, for a label of it is lost.
    """

    source: Source
    shape: tuple[int, int, int]
    n_frames: int
    dtype: str
    orientation: str
    voxel_bytes: int
    is_shared: bool
    job: Job
    doubt: str = ""
    notes: tuple[str, ...] = ()
    stays: bool = False


@dataclass(frozen=True)
class Forecast:
    """Sizes in bytes; `ratio` and `bytes_per_s` (of one worker) were measured on a few sources,
    unless those are remote."""

    expected: tuple[Expected, ...]
    rejections: tuple[Rejection, ...]
    ratio: float
    bytes_per_s: float
    is_measured: bool = True

    @property
    def voxel_bytes(self) -> int:
        """Decoded size of everything."""
        return sum(item.voxel_bytes for item in self.expected)

    def n_files(self, conversion: Conversion) -> int:
        """Files and folders of the corpus."""
        counts = (
            n_files(len(item.source.labels), conversion.layout, scales_of(item, conversion))
            * volume_count([item], conversion)
            for item in self.expected
        )
        return sum(counts) + FILES_OF_A_CORPUS

    @property
    def stored_bytes(self) -> float:
        """Estimated size of the corpus."""
        return self.voxel_bytes * self.ratio

    def seconds(self, workers: int) -> float:
        """Estimated duration."""
        n = max(1, min(workers, len(self.expected)))
        return (STARTUP_S if n > 1 else 0.0) + self.voxel_bytes / max(self.bytes_per_s, 1.0) / n


def scales_of(item: Expected, conversion: Conversion) -> int:
    """Coarser scales of each of its volumes, as far as the header tells its shape."""
    return n_scales(item.shape) if conversion.pyramid else 0


def forecast(jobs: Sequence[Job], conversion: Conversion) -> Forecast:
    """Read every header, judge it as the conversion would, and convert a few in memory.

    Of remote sources nothing but headers is read: size and rate are then typical ones.
    """
    remote = any(is_remote(path) for job in jobs for path in job.source.paths)
    with asking_threads(REMOTE_READS if remote else 1) as pool:
        looks = list(pool.map(_look, jobs))
    rejections = [rejection for _, found in looks for rejection in found]
    expected = [item for item, _ in looks if item is not None]
    if remote:
        return Forecast(tuple(expected), tuple(rejections), *TYPICAL, is_measured=False)
    tasted, rejected, bad = _taste(expected, conversion)
    kept = [item for item in expected if item.source.paths not in bad]
    return Forecast(tuple(kept), (*rejections, *rejected), *tasted)


@dataclass(frozen=True)
class Standing:
    """What a corpus that is there, or is not, has to do with a conversion into it.

    `jobs` are those of `run` that are of the sources given; `rejections` are left out before any is
    looked at. Volumes of none of the sources, by id: those whose source is `gone` (with that), and
    those whose source is there and `unlisted`; `others` are the records of those that stay.
    """

    run: Run
    jobs: tuple[Job, ...]
    rejections: tuple[Rejection, ...]
    gone: tuple[str, ...]
    unlisted: tuple[str, ...]
    others: tuple[VolumeRecord, ...]

    def in_words(self, expected: Sequence[Expected]) -> tuple[list[str], list[str]]:
        """Notes and what was told otherwise before, as a conversion reports them."""
        settled = {item.job.id for item in expected if not item.stays}
        notes, otherwise = in_words(f for f in self.run.facts if f.stays or f.id in settled)
        return notes, [*otherwise, *self.run.forgotten()]


def standing(
    sources: Sequence[Source],
    destination: str,
    conversion: Conversion,
    workers: int | None,
    rerun: Rerun | None = None,
) -> Standing:
    """Look at the destination and write nothing; CorpusError where a run would be refused.

    Sources are read where some are new and the files of others gone: they may have been moved.
    """
    check_destination(destination)
    store, rerun = open_store(destination), rerun or Rerun()
    refuse_half_merged(store)
    writer = CorpusWriter(store, conversion)
    writer.look()
    run = Run(writer, run_jobs, workers or usable_cpus())
    jobs, rejections = run.jobs(sources, rerun)
    others = [(r, any(map(is_gone, r.sources))) for j in jobs if not j.listed for r in j.known]
    return Standing(
        *(run, tuple(job for job in jobs if job.listed), tuple(rejections)),
        tuple(sorted(f"{record.id} ({record.sources[0]})" for record, gone in others if gone)),
        tuple(sorted(record.id for record, gone in others if not gone)),
        tuple(record for record, gone in others if not (gone and rerun.prune)),
    )


def records_after(
    there: Standing, expected: Sequence[Expected], conversion: Conversion
) -> list[VolumeRecord]:
    """What the corpus would hold, by id: volumes that stay as they are, and for the others what
    their sources and headers tell, without statistics."""
    found = {record.id: record for record in there.others}
    found |= {record.id: record for job in there.jobs for record in job.known}
    for item in expected:
        if item.stays:
            continue
        labels = set(map(safe_id, item.source.labels))
        known = item.job.known
        stay = [r for r in known if {a.name for a in r.labels} == labels and not r.is_pooled]
        if known and len(stay) == known[0].n_frames:
            made = [retold(record, item.source, conversion) for record in stay]
        else:
            made = foreseen(item, conversion)
        for record in known:
            del found[record.id]
        found |= {record.id: record for record in made}
    return [found[id] for id in sorted(found)]


def foreseen(item: Expected, conversion: Conversion) -> list[VolumeRecord]:
    """Records of the volumes that a source would become, as far as its headers tell."""
    source, is_split = item.source, conversion.time_axis == "split" and item.n_frames > 1
    nothing = Intensity(*[0.0] * 6)
    shape = (item.shape[2], item.shape[1], item.shape[0])
    box = ((0, 0, 0), shape)
    affine = (
        (1.0, 0.0, 0.0, 0.0),
        (0.0, 1.0, 0.0, 0.0),
        (0.0, 0.0, 1.0, 0.0),
        (0.0, 0.0, 0.0, 1.0),
    )
    found = []
    for frame in range(item.n_frames) if is_split else [-1]:
        own = str(frame) if is_split and not item.is_shared else ""
        labels = tuple(
            LabelRecord(
                *(safe_id(name), "uint8", {}, path, path, own, 0),
                dict(label_facts(source, name, conversion.values_of_label(safe_id(name))).names),
            )
            for name, path in source.labels.items()
        )
        channels = len(source.images) * (1 if is_split else item.n_frames)
        found.append(
            VolumeRecord(
                item.job.id if frame < 0 else f"{item.job.id}--t{frame:03d}",
                *(source.images, source.images, source.subject or source.id, source.group),
                *(source.split, shape, channels, item.dtype, 1.0, 0.0),
                *((1.0, 1.0, 1.0), affine, item.orientation, affine, item.shape, "", 0, 0.0),
                *(nothing, nothing, "", 0.0, box, 0, 0, item.dtype, 0.0, labels, "", 0, ""),
                *(
                    frame,
                    item.n_frames if is_split else 1,
                    (*item.notes, *filter(None, [item.doubt])),
                ),
                subject_from=source.subject_from,
                subject_doubt=source.doubt,
                channel_names=source.channel_names,
                header_doubt=item.doubt,
                layout=conversion.layout,
                session=source.session,
            )
        )
    return found


def _look(job: Job) -> tuple[Expected | None, list[Rejection]]:
    """What a source would become, and what of it would be left out: all, or only bad labels."""
    try:
        return expect(job)
    except SourceError as error:
        return None, [Rejection.of(error)]


def expect(job: Job) -> tuple[Expected, list[Rejection]]:
    """What a source would become by its headers, and its labels that they rule out.

    SourceError where they rule out the images.
    """
    job = without_moved_labels(job, FileHashes(job))
    source, conversion = job.source, job.conversion
    header = read_header(source.images[0], conversion.byte_budget, trust_of(conversion))
    found = [header, *(_on_grid(p, header, source, conversion) for p in source.images[1:])]
    labels, errors, is_shared = {}, {}, False
    for name, path in source.labels.items():
        try:
            label = _on_grid(path, header, source, conversion)
        except SourceError as error:
            errors[name] = error
            continue
        found.append(label)
        labels[name] = path
        is_shared |= header.n_frames > 1 == label.n_frames and not masks_of(path)
    total = sum(each.end - each.offset for each in found)
    codes = axis_codes(header.affine)
    facts = header.shape, header.n_frames, header.dtype.name, codes, total, is_shared
    masks = lost_masks(job)
    lost, rejections = bad_labels(job, masks, "the mask")
    if not lost:
        lost, of_labels = bad_labels(job, errors.items())
        rejections = of_labels if lost else [*rejections, *of_labels]
    stays = job.source.labels if lost else labels
    item = Expected(replace(source, labels=stays), *facts, job, header.doubt, header.notes, lost)
    return item, rejections


def bad_labels(
    job: Job, errors: Iterable[tuple[str, SourceError]], what: str = "the label"
) -> tuple[bool, list[Rejection]]:
    """Whether the volume stays for labels (or masks) that became bad, and what the conversion says
    of them."""
    found = list(errors)
    if lost := lost_labels(job, found, what=what):
        return True, list(lost.rejections)
    outcome = "was converted without it"
    return False, [label_rejection(job, error, outcome) for _, error in found]


def _on_grid(path: str, first: NiftiHeader, source: Source, conversion: Conversion) -> NiftiHeader:
    """Header of a channel or label; SourceError if its voxels are not on the first's grid."""
    header = read_header(path, conversion.byte_budget, trust_of(conversion))
    if difference := other_grid(first.grid, header.grid, path in source.images):
        detail = f"not on the grid of {source.images[0]}: {difference}"
        raise SourceError("other-grid", path, detail)
    return header


def other_grid(first: Grid, other: Grid, is_channel: bool) -> str:
    """What sets the grid of a channel, or of a label that may be turned, apart from an image's."""
    difference = first.difference(other)
    return "" if difference and not is_channel and other.is_same_space(first) else difference


def _taste(
    expected: Sequence[Expected], conversion: Conversion
) -> tuple[tuple[float, float], list[Rejection], set[tuple[str, ...]]]:
    """Stored share and bytes per second over a few sources of all sizes, written nowhere; what
    turned out bad on the way, and the paths of sources that will not be converted."""
    by_size = sorted(expected, key=lambda item: item.voxel_bytes)
    step = max(1, -(-len(by_size) // TASTES))
    voxel_bytes, stored, seconds = 0, 0, 1e-9
    rejected: list[Rejection] = []
    bad: set[tuple[str, ...]] = set()
    for item in by_size[step // 2 :: step]:
        if voxel_bytes > TASTE_BYTES:
            break
        began = time.perf_counter()
        try:
            stored += sum(converted_sizes(item, conversion, rejected))
        except SourceError as error:
            rejected.append(Rejection.of(error))
            bad.add(item.source.paths)
            continue
        seconds += time.perf_counter() - began
        voxel_bytes += item.voxel_bytes
    return (
        (stored / voxel_bytes, voxel_bytes / seconds) if voxel_bytes else (0.0, 1.0),
        rejected,
        bad,
    )


def converted_sizes(
    item: Expected, conversion: Conversion, rejected: list[Rejection]
) -> Iterator[int]:
    """Stored bytes of each volume of a source, converted in memory; bad labels go to `rejected`."""
    source = item.source
    files = read_images(source, conversion)
    for volume in volumes(files, conversion):
        labels, errors = read_labels(source, volume, conversion)
        rejected += bad_labels(item.job, errors.items())[1]
        objects, _ = volume_objects("taste", source, files, volume, labels, conversion)
        yield sum(memoryview(part).nbytes for parts in objects.values() for part in parts)


def volume_count(items: Sequence[Expected], conversion: Conversion) -> int:
    """Volumes the sources would make."""
    split = conversion.time_axis == "split"
    return sum(item.n_frames if split else 1 for item in items)


def megavoxels(item: Expected) -> float:
    """Size of a source in millions of voxels."""
    return prod(item.shape) * item.n_frames / 1e6
