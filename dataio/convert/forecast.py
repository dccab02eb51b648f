"""What a conversion would do, from the headers alone and a measured taste of the real work."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

from mim3d.dataio.chunks.pyramid import n_scales
from mim3d.dataio.convert.known_sources import in_words, is_gone, recognise
from mim3d.dataio.convert.label import read_labels
from mim3d.dataio.convert.pool import run_jobs
from mim3d.dataio.convert.run import check_destination, hashes_by, refuse_half_merged, usable_cpus
from mim3d.dataio.convert.volume import read_images, trust_of, volumes
from mim3d.dataio.convert.volume_writer import volume_objects
from mim3d.dataio.corpus.arrays import FILES_OF_A_CORPUS, n_files
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.corpus.manifest import intact_records
from mim3d.dataio.corpus.names import MANIFEST, TABLE, own_key
from mim3d.dataio.corpus.root import refuse_other_options, root_facts
from mim3d.dataio.corpus.writer import refuse_foreign
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

    `is_shared` tells that all frames have one label.
    """

    source: Source
    shape: tuple[int, int, int]
    n_frames: int
    dtype: str
    orientation: str
    voxel_bytes: int
    is_shared: bool = False


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


def forecast(sources: Sequence[Source], conversion: Conversion) -> Forecast:
    """Read every header, judge it as the conversion would, and convert a few in memory.

    Of remote sources nothing but headers is read: size and rate are then typical ones.
    """
    remote = any(is_remote(path) for source in sources for path in source.paths)
    with asking_threads(REMOTE_READS if remote else 1) as pool:
        looks = list(pool.map(lambda source: _look(source, conversion), sources))
    rejections = [rejection for _, found in looks for rejection in found]
    expected = [item for item, _ in looks if item is not None]
    if remote:
        return Forecast(tuple(expected), tuple(rejections), *TYPICAL, is_measured=False)
    tasted, rejected, bad = _taste(expected, conversion)
    kept = [item for item in expected if item.source.paths not in bad]
    return Forecast(tuple(kept), (*rejections, *rejected), *tasted)


@dataclass(frozen=True)
class Standing:
    """What a corpus that is there has to do with a conversion into it.

    Volumes of none of its sources, by id: those whose source is `gone` (with that), and those whose
    source is there and `unlisted`. `notes` and `told_otherwise` are as a conversion reports them.
    """

    gone: tuple[str, ...] = ()
    unlisted: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    told_otherwise: tuple[str, ...] = ()


def standing(
    sources: Sequence[Source], destination: str, conversion: Conversion, workers: int | None
) -> Standing:
    """Look at the destination and write nothing; CorpusError where a run would be refused.

    Sources are read where some are new and the files of others gone: they may have been moved.
    """
    check_destination(destination)
    store = open_store(destination)
    refuse_half_merged(store)
    key = own_key(store, MANIFEST)
    if not store.exists(key):
        if not store.exists("zarr.json") and not store.exists(own_key(store, TABLE)):
            refuse_foreign(store)
        return Standing()
    if (facts := root_facts(store)) is not None:  # or the conversion may mend them
        refuse_other_options(store.url, facts, conversion)
    records = intact_records(store.get(key))[0]
    hashes_of = hashes_by(run_jobs, workers or usable_cpus(), store, conversion)
    found = recognise(sources, records, hashes_of, conversion)
    others = [(r, any(map(is_gone, r.sources))) for group in found.others for r in group]
    notes, otherwise = in_words(found.facts)
    return Standing(
        tuple(sorted(f"{record.id} ({record.sources[0]})" for record, gone in others if gone)),
        tuple(sorted(record.id for record, gone in others if not gone)),
        *(tuple(notes), tuple(otherwise)),
    )


def _look(source: Source, conversion: Conversion) -> tuple[Expected | None, list[Rejection]]:
    """What a source would become, and what of it would be left out: all, or only bad labels."""
    try:
        return expect(source, conversion)
    except SourceError as error:
        return None, [Rejection.of(error)]


def expect(source: Source, conversion: Conversion) -> tuple[Expected, list[Rejection]]:
    """What a source would become by its headers, and its labels that they rule out.

    SourceError where they rule out the images.
    """
    header = read_header(source.images[0], conversion.byte_budget, trust_of(conversion))
    found = [header, *(_on_grid(p, header, source, conversion) for p in source.images[1:])]
    labels, rejections, is_shared = {}, [], False
    for name, path in source.labels.items():
        try:
            label = _on_grid(path, header, source, conversion)
        except SourceError as error:
            rejections.append(Rejection.of(error))
            continue
        found.append(label)
        labels[name] = path
        is_shared |= header.n_frames > 1 == label.n_frames and not masks_of(path)
    total = sum(each.end - each.offset for each in found)
    codes = axis_codes(header.affine)
    facts = header.shape, header.n_frames, header.dtype.name, codes, total, is_shared
    return Expected(replace(source, labels=labels), *facts), rejections


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
            stored += sum(converted_sizes(item.source, conversion, rejected))
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
    source: Source, conversion: Conversion, rejected: list[Rejection]
) -> Iterator[int]:
    """Stored bytes of each volume of a source, converted in memory; bad labels go to `rejected`."""
    files = read_images(source, conversion)
    for volume in volumes(files, conversion):
        labels, errors = read_labels(source, volume, conversion)
        rejected += map(Rejection.of, errors.values())
        objects, _ = volume_objects("taste", source, files, volume, labels, conversion)
        yield sum(memoryview(part).nbytes for parts in objects.values() for part in parts)


def volume_count(items: Sequence[Expected], conversion: Conversion) -> int:
    """Volumes the sources would make."""
    split = conversion.time_axis == "split"
    return sum(item.n_frames if split else 1 for item in items)


def megavoxels(item: Expected) -> float:
    """Size of a source in millions of voxels."""
    return prod(item.shape) * item.n_frames / 1e6
