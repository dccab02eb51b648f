"""Sources to a corpus: the run around the jobs, which alone commits.

Commit protocol: a volume's folder is written whole under a temporary name and renamed; at most a
second later everything written is synced and manifest lines are appended. chunks.json, which makes
the chunk table valid, goes first and comes last. At the end the manifest is rewritten sorted, so
the result does not depend on the order of the work or on how often it was interrupted.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mim3d.dataio.convert.job import Job, JobResult
from mim3d.dataio.convert.known_sources import HashesOf, base_id, recognise, record_paths
from mim3d.dataio.convert.pool import run_jobs
from mim3d.dataio.convert.volume_ids import unique_ids
from mim3d.dataio.corpus import ome
from mim3d.dataio.corpus.chunk_table import HEAD
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.corpus.manifest import (
    MANIFEST,
    VolumeRecord,
    intact_records,
    latest,
    manifest_bytes,
    record_line,
)
from mim3d.dataio.corpus.quarantine import QUARANTINE, quarantine_bytes
from mim3d.dataio.corpus.root import check_recipe, root_document
from mim3d.dataio.corpus.table_writer import write_table
from mim3d.dataio.errors import CorpusError, Rejection
from mim3d.dataio.progress import progress
from mim3d.dataio.sources.source import Source
from mim3d.dataio.storage.store import LOCK, Store, open_store

COMMIT_INTERVAL_S = 1.0
Runner = Callable[[Sequence[Job], int], Iterator[JobResult]]


@dataclass(frozen=True)
class ConversionReport:
    """What a run did; sizes in bytes, `bytes_in` as the files are, `voxel_bytes` decoded."""

    n_converted: int
    n_unchanged: int
    n_quarantined: int
    n_volumes: int
    bytes_in: int
    voxel_bytes: int
    bytes_out: int
    seconds: float
    rejections: tuple[Rejection, ...] = field(default=())


def convert(
    sources: Sequence[Source],
    destination: str | Path,
    conversion: Conversion | None = None,
    *,
    workers: int | None = None,
    skipped: Sequence[Rejection] = (),
    runner: Runner = run_jobs,
) -> ConversionReport:
    """Convert sources into the corpus at `destination`, going on where an earlier run stopped.

    `skipped` are files a layout already left out; they join the quarantine. `runner` carries out
    the jobs: processes of this machine, or a cluster. Raises CorpusError if another process writes
    there, it is no corpus or has another recipe, and StoreError where it cannot be written.
    """
    began = time.monotonic()
    conversion = conversion or Conversion()
    check_destination(str(destination))
    store = open_store(destination)
    with store.lock():
        run = Run(store, conversion)
        run.open()
        n_workers = workers or usable_cpus()
        jobs, duplicates = run.jobs(sources, hashes_by(runner, n_workers, store, conversion))
        rejections = {Rejection(s.path, s.code, s.detail) for s in skipped} | set(duplicates)
        results: list[JobResult] = []
        voxel_bytes = 0
        with progress("convert", len(jobs), "volumes") as shown, run.committing():
            for result in runner(jobs, n_workers):
                run.take(result)
                rejections.update(result.rejections)
                results.append(result)
                voxel_bytes += result.voxel_bytes
                shown.advance(1, _rate(voxel_bytes, result, time.monotonic() - began))
        rejections.update(run.lost())
        run.close(rejections)
    done = [result for result in results if result.records and not result.unchanged]
    return ConversionReport(
        n_converted=sum(len(result.records) for result in done),
        n_unchanged=sum(result.unchanged for result in results),
        n_quarantined=len(rejections),
        n_volumes=len(run.records),
        bytes_in=sum(result.bytes_in for result in done),
        voxel_bytes=sum(result.voxel_bytes for result in done),
        bytes_out=sum(_stored_bytes(record) for result in done for record in result.records),
        seconds=time.monotonic() - began,
        rejections=tuple(sorted(rejections)),
    )


class Run:
    """A corpus opened for writing: what it holds, and how that grows by one result."""

    def __init__(self, store: Store, conversion: Conversion) -> None:
        self.store, self.conversion = store, conversion
        self.records: dict[str, VolumeRecord] = {}
        self._unlisted: list[str] = []
        self._pending: list[JobResult] = []
        self._committed = time.monotonic()

    def open(self) -> None:
        """Check what stands there, drop what was never committed, and mark the table stale."""
        if self.store.exists("zarr.json"):
            check_recipe(self.store, self.conversion)
            self._recover()
        else:
            _refuse_foreign(self.store)
            document = root_document(self.conversion, version("mim3d"))
            self.store.replace("zarr.json", [ome.json_bytes(document)])
        self.store.delete(HEAD)
        for name in orphans(self.store, self.records):
            self.store.delete(name)

    def lost(self) -> list[Rejection]:
        """Volumes whose manifest line was damaged and whose source was not among the jobs."""
        detail = "its manifest line was damaged and its source not among those given: convert it"
        return [Rejection(id, "lost", detail) for id in self._unlisted if id not in self.records]

    def _recover(self) -> None:
        text = self.store.get(MANIFEST) if self.store.exists(MANIFEST) else b""
        records, damaged = intact_records(text, f"{self.store.url}/{MANIFEST}")
        self.records = {record.id: record for record in latest(records)}
        whole = text.endswith(b"\n")
        if damaged or (not whole and self.store.exists(HEAD)):  # of a corpus that was complete
            self._unlisted = orphans(self.store, self.records)
        if damaged or (text and not whole):
            # A torn last line would swallow the next one appended.
            self._rewrite()

    def _rewrite(self) -> bytes:
        text = manifest_bytes(self.records.values())
        self.store.replace(MANIFEST, [text])
        return text

    def jobs(
        self, sources: Sequence[Source], hashes_of: HashesOf
    ) -> tuple[list[Job], list[Rejection]]:
        """A job per source with its id and what is known of it; repeated sources are rejected."""
        found = recognise(sources, self.records.values(), hashes_of)
        taken = [(base_id(r), record_paths(r)) for r in self.records.values()]
        new = [source for source, group in found.sources if not group]
        ids = iter(unique_ids(new, taken))
        jobs = [
            Job(
                source,
                base_id(group[0]) if group else next(ids),
                group,
                self.store.url,
                self.conversion,
            )
            for source, group in found.sources
        ]
        return jobs, found.duplicates

    @contextmanager
    def committing(self) -> Iterator[None]:
        """Commit what was taken, also when the work ends by an error or by Ctrl-C."""
        try:
            yield
        finally:
            self.commit()

    def take(self, result: JobResult) -> None:
        """Keep a result for the next commit, at most a second away."""
        if result.records:
            self._pending.append(result)
        if time.monotonic() - self._committed > COMMIT_INTERVAL_S:
            self.commit()

    def commit(self) -> None:
        """Sync the data of all results taken, then append their lines.

        A source that became bad has no records here and so keeps its earlier volume.
        """
        if self._pending:
            self.store.sync()
        new = {record.id: record for result in self._pending for record in result.records}
        gone = {id for result in self._pending for id in result.stale} - set(new)
        self.records.update(new)
        if gone:
            self.records = {id: r for id, r in self.records.items() if id not in gone}
            self._rewrite()
        elif new:
            lines = "".join(record_line(record) + "\n" for record in new.values())
            self.store.append(MANIFEST, lines.encode())
        for id in gone:
            self.store.delete(id)
        self._pending.clear()
        self._committed = time.monotonic()

    def close(self, rejections: set[Rejection]) -> None:
        """Write quarantine, sorted manifest and chunk table, in this order."""
        self.store.replace(QUARANTINE, [quarantine_bytes(rejections)])
        text = self._rewrite()
        ordered = [self.records[id] for id in sorted(self.records)]
        write_table(self.store, ordered, text, self.conversion.chunk)


def hashes_by(runner: Runner, workers: int, store: Store, conversion: Conversion) -> HashesOf:
    """What reads sources for their hashes alone, by the processes that convert."""

    def hashes_of(sources: Sequence[Source]) -> dict[tuple[str, ...], tuple[str, ...]]:
        jobs = [
            Job(replace(source, labels={}), str(i), (), store.url, conversion, only_hash=True)
            for i, source in enumerate(sources)
        ]
        found = {}
        with progress("look for moved files", len(jobs), "sources") as shown:
            for result in runner(jobs, workers):
                found[jobs[int(result.id)].source.images] = result.hashes
                shown.advance()
        return found

    return hashes_of


def orphans(store: Store, records: Mapping[str, Any]) -> list[str]:
    """Volumes an interrupted run left without a manifest line."""
    return [n for n in store.folders() if n not in records and _is_volume(store, n)]


def _is_volume(store: Store, name: str) -> bool:
    """Whether a folder was written by a conversion; anything else is somebody's own."""
    if not store.exists(f"{name}/zarr.json"):
        return False
    try:
        return "mim3d" in json.loads(store.get(f"{name}/zarr.json"))["attributes"]
    except (ValueError, KeyError, TypeError):
        return False


def check_destination(destination: str) -> None:
    """CorpusError where a destination can be no folder."""
    if not destination.strip():
        raise CorpusError("the destination's name is empty; name a folder for the corpus")
    if "://" not in destination and Path(destination).is_file():
        raise CorpusError(
            f"{destination}: is a file, and a corpus is a folder; name a new one (and quote a glob "
            "of sources: '*.nii.gz')"
        )


def _refuse_foreign(store: Store) -> None:
    """A folder with anything else in it is not ours to tidy."""
    other = next((key for key in store.walk() if key != LOCK), None)
    if other is not None:
        raise CorpusError(
            f"{store.url}: not a corpus, but not empty either (it holds {other}); "
            "choose a new destination"
        )


def _stored_bytes(record: VolumeRecord) -> int:
    return record.shard_bytes + sum(label.shard_bytes for label in record.labels)


def _rate(voxel_bytes: int, latest: JobResult, seconds: float) -> str:
    rate = voxel_bytes / 1e6 / max(seconds, 1e-9)
    return f"{rate:.0f} MB/s, last {latest.voxel_bytes / 1e6:.1f} MB"


def usable_cpus() -> int:
    """CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
