"""Sources to a corpus: the run around the jobs, which alone commits (see `corpus.writer`)."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from mim3d.dataio.convert.held_twice import refuse_held_twice
from mim3d.dataio.convert.job import Job, JobResult, source_of
from mim3d.dataio.convert.known_sources import (
    Fact,
    Group,
    HashesOf,
    base_id,
    in_words,
    named_classes,
    recognise,
    refuse_two_names,
)
from mim3d.dataio.convert.pool import run_jobs
from mim3d.dataio.convert.volume_ids import unique_ids
from mim3d.dataio.corpus.arrays import missized, stored_arrays
from mim3d.dataio.corpus.conversion import Conversion, Rerun
from mim3d.dataio.corpus.history import Barred, Event, removal, removed_before, voxel_hashes
from mim3d.dataio.corpus.manifest import VolumeRecord
from mim3d.dataio.corpus.names import own_key, store_around
from mim3d.dataio.corpus.seen_files import SEEN, merge_under_way
from mim3d.dataio.corpus.writer import CorpusWriter
from mim3d.dataio.errors import CorpusError, Rejection
from mim3d.dataio.progress import progress
from mim3d.dataio.sources.source import Source
from mim3d.dataio.storage.remote import ADDRESS
from mim3d.dataio.storage.store import Store, open_store

Runner = Callable[[Sequence[Job], int], Iterator[JobResult]]


@dataclass(frozen=True)
class ConversionReport:
    """What a run did; sizes in bytes, `bytes_in` as the files are, `voxel_bytes` decoded.

    `mended` are volumes that were damaged and were made anew, in words; `changed` files whose
    content is another than before, so that their volumes were converted anew; `gone` sources that
    are no more while their volumes are still there; `pruned` volumes that were taken out for that,
    each with its source, among the `n_removed` that were taken out; `unlisted` volumes whose
    sources are there and were not given now.
    `notes` say what was told of volumes before (whose, which split) and stays, and
    `told_otherwise` what is another now, and needs a look.
    `records` is all that the corpus holds now, by id.
    """

    n_converted: int
    n_unchanged: int
    n_quarantined: int
    n_volumes: int
    bytes_in: int
    voxel_bytes: int
    bytes_out: int
    seconds: float
    rejections: tuple[Rejection, ...] = field(default=())
    mended: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    told_otherwise: tuple[str, ...] = ()
    n_removed: int = 0
    pruned: tuple[str, ...] = ()
    unlisted: tuple[str, ...] = ()
    records: tuple[VolumeRecord, ...] = field(default=())


def convert(
    sources: Sequence[Source],
    destination: str | Path,
    conversion: Conversion | None = None,
    *,
    workers: int | None = None,
    skipped: Sequence[Rejection] = (),
    runner: Runner = run_jobs,
    rerun: Rerun | None = None,
) -> ConversionReport:
    """Convert sources into the corpus at `destination`, going on where an earlier run stopped.

    `skipped` are files a layout already left out; they join the quarantine. `runner` carries out
    the jobs: processes of this machine, or a cluster. Raises CorpusError if another process writes
    there, it is no corpus or has another recipe, and StoreError where it cannot be written.
    """
    conversion = conversion or Conversion()
    conversion.refuse_doubled_values()
    check_destination(str(destination))
    store = open_store(destination)
    rejections = {Rejection(s.path, s.code, s.detail) for s in skipped}
    with store.lock():
        refuse_half_merged(store)
        writer = CorpusWriter(store, conversion)
        writer.open()
        writer.set_aside()
        run = Run(writer, runner, workers or usable_cpus())
        jobs, duplicates = run.jobs(sources, rerun or Rerun())
        return run.carry_out(jobs, rejections.union(duplicates), prune=bool(rerun and rerun.prune))


class Run:
    """Jobs over a corpus that is open for writing, and what becomes of them."""

    def __init__(self, writer: CorpusWriter, runner: Runner, workers: int) -> None:
        self.writer, self.runner, self.workers = writer, runner, workers
        self.began = time.monotonic()
        self.results: list[JobResult] = []
        self.facts: list[Fact] = []
        self.by_names: list[Source] = []
        """New sources whose subject nobody told."""
        self._listed: set[str] = set()
        self._barred = Barred(writer.events)

    def jobs(self, sources: Sequence[Source], rerun: Rerun) -> tuple[list[Job], list[Rejection]]:
        """A job per source with its id and what is known of it, then one per volume that is none
        of theirs; repeated sources are rejected."""
        writer = self.writer
        hashes_of = hashes_by(self.runner, self.workers, writer.store, writer.conversion)
        sources, barred = self._without_removed(sources)
        found = recognise(sources, writer.records.values(), hashes_of, writer.conversion)
        refuse_two_names(named_classes(found, writer.store.url, writer.conversion))
        refuse_held_twice(found, writer.store.url, prune=rerun.prune)
        self.facts = found.facts
        if rerun.prune and writer.records and not any(group for _, group in found.sources):
            known = next(iter(writer.records.values()))
            raise CorpusError(
                f"{writer.store.url}: --prune, and none of the sources given is in the corpus: "
                f"name the folder that it was made of ({known.sources[0]} is of it), or take "
                f"volumes out by `mim3d remove {writer.store.url} --volume {known.id}`"
            )
        taken = [(base_id(r), r.source_paths) for r in writer.records.values()]
        new = [source for source, group in found.sources if not group]
        self.by_names = [source for source in new if not source.tells_subject]
        ids = iter(unique_ids(new, taken))
        of_corpus = self._job_of(rerun)
        jobs = [
            of_corpus(source, base_id(group[0]) if group else next(ids), group)
            for source, group in found.sources
        ]
        self._listed = {job.id for job in jobs}
        others = [
            replace(of_corpus(source_of(group), base_id(group[0]), group), listed=False)
            for group in found.others
        ]
        return jobs + others, found.duplicates + barred

    def _without_removed(self, sources: Sequence[Source]) -> tuple[list[Source], list[Rejection]]:
        """Sources without those that were removed on request, which are rejected."""
        kept, rejections = [], []
        for source in sources:
            subject = source.subject or source.id
            if event := self._barred.event(subject=subject, paths=source.images):
                rejections.append(self._removed(source.images[0], subject, event))
            else:
                kept.append(source)
        return kept, rejections

    def _removed(self, path: str, name: str, event: Event) -> Rejection:
        return Rejection(path, "removed", removed_before(name, event, self.writer.store.url))

    def _job_of(self, rerun: Rerun) -> Callable[[Source, str, Group], Job]:
        """What makes a job; of a bucket's volumes one listing tells the sizes."""
        store, seen = self.writer.store, self.writer.seen
        remote = bool(ADDRESS.match(store.url)) and bool(self.writer.records)
        sizes = store.sizes() if remote else None

        def job(source: Source, id: str, group: Group) -> Job:
            known = {} if rerun.rehash else {p: seen[p] for p in source.paths if p in seen}
            return Job(
                *(source, id, group, store.url, self.writer.conversion),
                look="all" if rerun.verify else "small" if sizes is None else "none",
                damage=missized_among(group, sizes),
                seen=known,
                accept_losses=rerun.accept_losses,
            )

        return job

    def carry_out(
        self, jobs: Sequence[Job], rejections: set[Rejection], *, prune: bool = False
    ) -> ConversionReport:
        """Do the jobs, commit what they give, and close the corpus."""
        voxel_bytes = 0
        with progress("convert", len(jobs), "volumes") as shown, self._committing():
            for result in self.runner(jobs, self.workers):
                self._take(result)
                rejections.update(self._rejections_of(self.results[-1]))
                voxel_bytes += result.voxel_bytes
                shown.advance(1, _rate(voxel_bytes, result, time.monotonic() - self.began))
        n_before = len(self.writer.records)
        pruned = self._prune() if prune else ()
        rejections.update(self.writer.lost())
        rejections.update(self.writer.close(rejections))
        return self._report(rejections, n_before - len(self.writer.records), pruned)

    @contextmanager
    def _committing(self) -> Iterator[None]:
        """Commit what was taken, also when the work ends by an error or by Ctrl-C."""
        try:
            yield
        finally:
            self.writer.commit()

    def _take(self, result: JobResult) -> None:
        """Keep a result; a source that became bad has no records and so keeps its earlier volume,
        unless nothing of that is left."""
        result = self._without_moved(result)
        self.results.append(result)
        self.writer.seen.update(result.seen)
        if result.damage:
            self.writer.damaged.update(result.stale)
            left = {id: self.writer.store.sizes(id) for id in result.stale}
            self.writer.remove([id for id in result.stale if not left[id] and not result.refused])
        self.writer.take(result.records, result.stale)

    def _without_moved(self, result: JobResult) -> JobResult:
        """The result, unless a source has the content of one that was removed, and had not before:
        what was there of a source that became such a copy is exchanged already, and goes."""
        hashes = [hash for record in result.records for hash in record.source_hash]
        event = self._barred.event(files=hashes, voxels=voxel_hashes(result.records))
        before = [self.writer.records[id] for id in result.stale if id in self.writer.records]
        if result.unchanged or event is None or any(map(self._barred.event_of, before)):
            return result
        for record in result.records:
            self.writer.store.delete(record.id)
        self.writer.remove(result.stale)
        removed = self._removed(result.records[0].sources[0], result.id, event)
        return replace(result, records=(), rejections=(*result.rejections, removed))

    def _rejections_of(self, result: JobResult) -> list[Rejection]:
        is_left = result.refused or any(map(self.writer.store.sizes, result.stale))
        if not result.damage or is_left:
            return list(result.rejections)
        detail = (
            "nothing is left of its folder, and its source cannot make it anew: it is no more in "
            "the corpus; bring the source back and convert it"
        )
        return [
            Rejection(each.path, "lost", f"volume {result.id}: {detail}")
            for each in result.rejections
        ]

    def _prune(self) -> tuple[str, ...]:
        ids = {id for result in self.results if result.gone for id in result.stale}
        gone = [record for id, record in self.writer.records.items() if id in ids]
        if gone:
            self.writer.add_events(removal("pruned", gone))
            self.writer.remove(ids)
        return tuple(sorted(f"{record.id} ({record.sources[0]})" for record in gone))

    def forgotten(self) -> list[str]:
        """A line where subjects stay as they were declared, and those of new sources are not."""
        stay = [fact for fact in self.facts if fact.what == "subject" and fact.stays]
        if not stay or not self.by_names:
            return []
        of = f"{len(stay)} earlier volumes (such as {stay[0].id}: {stay[0].before})"
        new = self.by_names[0]
        others = f"{len(self.by_names)} new ones (such as {new.images[0]}: {new.subject or new.id})"
        return [
            f"the subjects of {of} were declared, and those of {others} go by names: convert again "
            "with the same --subject, --subjects or --dataset, or --accept-doubts"
        ]

    def _report(
        self, rejections: set[Rejection], n_removed: int, pruned: tuple[str, ...]
    ) -> ConversionReport:
        done = [result for result in self.results if result.records and not result.unchanged]
        unchanged = [r for r in self.results if r.unchanged and r.id in self._listed]
        records = self.writer.records
        still_there = [r for r in self.results if records.keys() & {*r.stale}]
        gone = {path for result in still_there for path in result.gone}
        settled = {r.id for r in self.results if r.records or r.unchanged}
        notes, otherwise = in_words(f for f in self.facts if f.stays or f.id in settled)
        return ConversionReport(
            n_converted=sum(len(result.records) for result in done),
            n_unchanged=len(unchanged),
            n_quarantined=len(rejections),
            n_volumes=len(self.writer.records),
            bytes_in=sum(result.bytes_in for result in done),
            voxel_bytes=sum(result.voxel_bytes for result in done),
            bytes_out=sum(_stored_bytes(record) for result in done for record in result.records),
            seconds=time.monotonic() - self.began,
            rejections=tuple(sorted(rejections)),
            mended=tuple(sorted(r.mended for r in self.results if r.mended)),
            gone=tuple(sorted(gone)),
            unlisted=tuple(
                sorted(
                    id
                    for result in still_there
                    if result.id not in self._listed and not result.gone
                    for id in records.keys() & {*result.stale}
                )
            ),
            notes=tuple(notes),
            told_otherwise=(*otherwise, *self.forgotten()),
            changed=tuple(sorted(path for result in done for path in result.changed)),
            n_removed=n_removed,
            pruned=pruned,
            records=tuple(records[id] for id in sorted(records)),
        )


def missized_among(group: Group, sizes: dict[str, int] | None) -> str:
    """What a listing of the corpus shows to be wrong with volumes; empty where nothing is."""
    if sizes is None:
        return ""
    return next(filter(None, (missized(record, sizes) for record in group)), "")


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


def check_destination(destination: str) -> None:
    """CorpusError where a destination can be no folder."""
    if not destination.strip():
        raise CorpusError("the destination's name is empty; name a folder for the corpus")
    if "://" not in destination and Path(destination).is_file():
        raise CorpusError(
            f"{destination}: is a file, and a corpus is a folder; name a new one (and quote a glob "
            "of sources: '*.nii.gz')"
        )
    if "://" not in destination and (outer := store_around(Path(destination).resolve().parent)):
        raise CorpusError(
            f"{destination}: lies in the corpus {outer}, which deletes what is not its own; "
            "name a folder elsewhere"
        )


def refuse_half_merged(store: Store) -> None:
    """CorpusError where a merge did not end: it would not know what a conversion put there."""
    key = own_key(store, SEEN)
    if command := merge_under_way(store.get(key)) if store.exists(key) else "":
        raise CorpusError(f"{store.url}: a merge did not finish; run `{command}` again first")


def _stored_bytes(record: VolumeRecord) -> int:
    return sum(array.nbytes for array in stored_arrays(record))


def _rate(voxel_bytes: int, latest: JobResult, seconds: float) -> str:
    rate = voxel_bytes / 1e6 / max(seconds, 1e-9)
    return f"{rate:.0f} MB/s, last {latest.voxel_bytes / 1e6:.1f} MB"


def usable_cpus() -> int:
    """CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
