"""The scans of SRC: files in any layout that `convert` knows, or the volumes of a corpus."""

import posixpath
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mim3d.dataio.convert.known_sources import parts_of
from mim3d.dataio.convert.volume import trust_of
from mim3d.dataio.convert.volume_ids import safe_id, unique_ids, with_ids
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.corpus.manifest import VolumeRecord
from mim3d.dataio.corpus.root import conversion_of
from mim3d.dataio.corpus.seen_files import SETTLED_NS, stamp_of
from mim3d.dataio.errors import Rejection, SourceError
from mim3d.dataio.geometry import Triple
from mim3d.dataio.nifti.names import stem
from mim3d.dataio.reader.corpus import Corpus, is_address, opened_corpus
from mim3d.dataio.reader.normalisation import intensities
from mim3d.dataio.reader.shard_reader import ShardReader, Shards
from mim3d.dataio.sources.discover import discover
from mim3d.dataio.sources.options import SourceOptions
from mim3d.dataio.sources.source import Discovery, Source
from mim3d.dataio.sources.tree import is_corpus
from mim3d.engine.errors import ConfigError
from mim3d.engine.predict.channels import with_channels
from mim3d.engine.predict.config import ScanOptions
from mim3d.engine.predict.own_grid import own_grid
from mim3d.engine.predict.scratch import converted
from mim3d.engine.runs.scan_recipe import ScanRecipe

Before = Mapping[tuple[str, ...], str]
SAME_SCAN = ("orientation", "spacing_mm", "dtype", "window", "foreground")
"""What of a recipe decides the voxels that a network sees."""


@dataclass(frozen=True)
class Scan:
    """One scan to be done: `stamp` tells whether it is as it was, `paths` are its files.

    `labels` are the label files that the source tells, by name.
    """

    id: str
    subject: str
    paths: tuple[str, ...]
    stamp: str
    labels: dict[str, str]
    hashes: tuple[str, ...] = ()
    """Of its files, where they are known without reading them."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.paths[0] if self.paths else self.id


class OpenVolume:
    """A volume as a network sees it, read some planes at a time."""

    def __init__(
        self, record: VolumeRecord, reader: ShardReader, recipe: ScanRecipe, made: Conversion
    ) -> None:
        self.record, self.reader, self.trust = record, reader, trust_of(made)
        self.row = reader.table.index(record.id)
        self.image = int(reader.table.volumes[self.row]["image"])
        if record.channels != recipe.channels:
            names = f" ({', '.join(recipe.channel_names)})" if recipe.channel_names else ""
            raise SourceError(
                "channels",
                record.sources[0],
                f"has {record.channels} channels, and the network was trained on "
                f"{recipe.channels}{names}: name the files of one scan CASE_0000, CASE_0001, ..., "
                "or list them in a table",
            )
        if made.nan_policy == "keep" and record.n_nan + record.n_inf:
            raise SourceError(
                "non-finite",
                record.sources[0],
                f"holds {record.n_nan} NaN and {record.n_inf} infinite voxels, of which a network "
                "makes nothing: name its file as SRC with --nan-policy zero, which takes them as 0",
            )
        values = intensities(recipe.normalise, reader.table, np.array([self.row]))
        self.rescales = values.rescales(self.row)

    @property
    def shape(self) -> Triple:
        """(z, y, x) of the stored voxels."""
        return self.record.shape

    def planes(self, start: int, end: int) -> Tensor:
        """Planes [start, end) as (c, z, y, x) float32, normalised."""
        _, y, x = self.shape
        box = self.reader.read_box(
            self.image, (start, 0, 0), (end - start, y, x), rescale=self.rescales
        )
        return torch.from_numpy(box)


class Scans(Protocol):
    """What SRC holds; `left_out` could not even be tried, `doubts` are for a person, and `notes`
    say what names were taken for. `all` are `scans` before some were asked for by their ids, and
    `root` is the folder that they lie in.
    `conversion` is how they are read, `header_remedy` what to do where a header is in doubt."""

    scans: list[Scan]
    all: list[Scan]
    root: str
    conversion: Conversion
    header_remedy: str
    left_out: list[Rejection]
    doubts: list[str]
    notes: list[str]

    def opened(self, scan: Scan) -> AbstractContextManager[list[OpenVolume]]:
        """The volumes of a scan (several of a time series); SourceError where it is broken."""
        ...

    def stored_label(self, scan: Scan, label: str) -> np.ndarray | None:
        """A label (z, y, x) that is kept beside the scan, on its own grid; None where none is."""
        ...


class FileScans:
    """Scans that are files; `before` are the ids that files have in DST already."""

    header_remedy = "look which is right, and say so by --believe sform, qform or pixdim"

    def __init__(
        self,
        found: Discovery,
        recipe: ScanRecipe,
        conversion: Conversion,
        folder: Path,
        before: Before = MappingProxyType({}),
    ) -> None:
        self.recipe, self.conversion, self.folder = recipe, conversion, folder
        ids = own_ids(found.sources, before)
        self.sources = dict(zip(ids, found.sources, strict=True))
        self.scans = [file_scan(id, source) for id, source in self.sources.items()]
        self.all, self.root = self.scans, found.root
        self.left_out = list(found.skipped)
        # `convert` can be told that its doubts were looked at.
        warnings = (line.replace(", or --accept-doubts", "") for line in found.warnings)
        self.doubts = [*warnings, *renamed(self.sources)]
        self.notes = list(found.notes)

    @contextmanager
    def opened(self, scan: Scan) -> Iterator[list[OpenVolume]]:
        """Convert, read, and forget."""
        source = self.sources[scan.id]
        with ExitStack() as stack:
            corpus = stack.enter_context(converted(source, scan.id, self.conversion, self.folder))
            reader = stack.enter_context(closing(ShardReader(corpus.table, corpus.root)))
            yield [
                OpenVolume(record, reader, self.recipe, self.conversion)
                for record in corpus.records
            ]

    def stored_label(self, scan: Scan, label: str) -> np.ndarray | None:
        """Files keep none."""
        return None


class CorpusScans:
    """Volumes of a corpus that is there."""

    header_remedy = "look which is right, and name its file as SRC, with --believe"

    def __init__(self, corpus: Corpus, shards: Shards, recipe: ScanRecipe) -> None:
        self.corpus, self.recipe = corpus, recipe
        where = corpus.address or str(corpus.root)
        self.conversion = conversion_of(corpus.attributes, where)
        self.reader = ShardReader(corpus.table, corpus.root, shards)
        self.all = self.scans = [volume_scan(record) for record in corpus.records]
        self.root = folder_of([path for scan in self.scans for path in scan.paths])
        self.left_out: list[Rejection] = []
        self.notes: list[str] = []
        self.doubts = other_recipe(where, self.conversion, recipe.conversion)

    @cached_property
    def records(self) -> dict[str, VolumeRecord]:
        """By id."""
        return {record.id: record for record in self.corpus.records}

    @contextmanager
    def opened(self, scan: Scan) -> Iterator[list[OpenVolume]]:
        """The one volume."""
        record = self.records[scan.id]
        yield [OpenVolume(record, self.reader, self.recipe, self.conversion)]

    def stored_label(self, scan: Scan, label: str) -> np.ndarray | None:
        """The label in the corpus where its voxels are the scan's own: not resampled, not cut."""
        record = self.records[scan.id]
        grid = own_grid(record)
        if label not in scan.labels or not grid.is_exact or not grid.is_covered:
            return None
        row = self.reader.table.label_row(self.reader.table.index(scan.id), label)
        voxels = self.reader.read_box(row, (0, 0, 0), self.reader.array(row).shape)[0]
        own = np.zeros(grid.own.shape, voxels.dtype)
        grid.turned(own)[...] = voxels
        return own


@contextmanager
def opened_scans(
    place: str,
    recipe: ScanRecipe,
    options: ScanOptions,
    folder: Path,
    ids: Sequence[str] = (),
    before: Before = MappingProxyType({}),
) -> Iterator[Scans]:
    """The scans of a corpus, or of files in any layout; `folder` is for what goes with a scan, and
    `before` are the ids that files have there.

    CorpusError or SourceError where there are none, ConfigError for an id that is not among them,
    or for options of files where SRC is a corpus.
    """
    with ExitStack() as stack:
        scans: Scans
        if names_corpus(place):
            if options.given:
                raise ConfigError(
                    f"{options.given[0]} says how files are read, and {place} is a corpus, whose "
                    "files were read when it was made: name them as SRC, or leave it out"
                )
            corpus, shards = stack.enter_context(opened_corpus(place))
            corpus_scans = CorpusScans(corpus, shards, recipe)
            stack.enter_context(closing(corpus_scans.reader))
            scans = corpus_scans
        else:
            found = discover(place, options.layout, SourceOptions(channels=options.channels))
            found = with_channels(found, recipe)
            conversion = options.applied_to(recipe.conversion)
            scans = FileScans(found, recipe, conversion, folder, before)
        scans.scans = with_ids(
            {scan.id: scan for scan in scans.scans}, ids, place, "scan", ConfigError
        )
        yield scans


def names_corpus(place: str) -> bool:
    """Whether SRC is a corpus: a folder that is one, or an address that ends as one does."""
    if is_address(place):
        return place.rstrip("/").endswith(".zarr")
    return is_corpus(place)


def own_ids(sources: Sequence[Source], before: Before) -> list[str]:
    """An id for each source, no two equal. One that it had before stays; else it is that of a file
    called exactly so before that of one called nearly so."""
    kept = [(before[s.images], s.paths) for s in sources if s.images in before]
    exact = sorted(range(len(sources)), key=lambda i: not is_exact(sources[i]))
    ids = dict(zip(exact, unique_ids([sources[i] for i in exact], kept), strict=True))
    return [ids[i] for i in range(len(sources))]


def is_exact(source: Source) -> bool:
    """Whether a file's id is its name."""
    return stem(source.images[0]) == safe_id(source.id)


def renamed(sources: Mapping[str, Source]) -> list[str]:
    """A line for each scan whose id another one has."""
    owners = {id.casefold(): source for id, source in sources.items()}
    lines = []
    for id, source in sources.items():
        wanted = safe_id(source.id)
        if id != wanted and (owner := owners.get(wanted.casefold())):
            lines.append(
                f"{source.images[0]} is called {id} in DST, as {wanted} is {owner.images[0]}: "
                "rename one, they differ in case, accents or signs alone"
            )
    return lines


def file_scan(id: str, source: Source) -> Scan:
    """A scan of files."""
    parts = tuple(part for path in source.images for part in parts_of(path))
    stamp = settled_stamp(parts)
    return Scan(id, source.subject or id, source.images, stamp, dict(source.labels))


def settled_stamp(parts: tuple[str, ...]) -> str:
    """How files are now; those that were written just before are given a moment to be told by."""
    found = stamp_of(parts)
    if found or not all(Path(part).is_file() for part in parts):
        return found
    time.sleep(SETTLED_NS / 1e9)
    return stamp_of(parts)


def volume_scan(record: VolumeRecord) -> Scan:
    """A scan of a corpus."""
    labels = {label.name: label.source for label in record.labels}
    facts = (record.id, record.subject, record.sources, record.shard_sha256, labels)
    return Scan(*facts, record.source_hash)


def folder_of(paths: Sequence[str]) -> str:
    """The folder that all paths are in; empty of none, or where they share none."""
    try:
        return posixpath.commonpath([posixpath.dirname(path) for path in paths])
    except ValueError:
        return ""


def other_recipe(where: str, found: Conversion, wanted: Conversion) -> list[str]:
    """A line where a corpus was made otherwise than the one that a network learned from."""
    differ = [
        f"{name} {getattr(found, name)!r}, not {getattr(wanted, name)!r}"
        for name in SAME_SCAN
        if getattr(found, name) != getattr(wanted, name)
    ]
    if not differ:
        return []
    return [
        f"{where} was made with {', '.join(differ)} as the corpus of the run: do not count on it; "
        "name the files of the scans, which are then read as the run's were"
    ]


def refuse_inside(destination: Path, place: str) -> None:
    """A ConfigError where results would lie among the scans, to be taken for scans next time, or
    where a file is in the place of their folder."""
    if destination.is_file():
        raise ConfigError(f"{destination} is a file: name a folder for the results")
    if is_address(place):
        return
    source = Path(place).expanduser().resolve()
    inside = destination.resolve()
    if source.is_dir() and (inside == source or source in inside.parents):
        raise ConfigError(
            f"{destination} lies in {place}, whose files are scans: choose a folder outside it"
        )
