"""A finished corpus kept in order: what is damaged made anew from its sources, and volumes taken
out for good.
"""

import shlex
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from mim3d.dataio.convert.known_sources import base_id
from mim3d.dataio.convert.pool import run_jobs
from mim3d.dataio.convert.run import ConversionReport, Run, usable_cpus
from mim3d.dataio.corpus.conversion import Rerun
from mim3d.dataio.corpus.history import (
    Barred,
    Event,
    history_text,
    now,
    parse_history,
    removal,
)
from mim3d.dataio.corpus.manifest import VolumeRecord, intact_records
from mim3d.dataio.corpus.names import HEAD, MANIFEST, TABLE, own_key
from mim3d.dataio.corpus.quarantine import QUARANTINE, intact_rejections
from mim3d.dataio.corpus.root import recipe_of
from mim3d.dataio.corpus.seen_files import SEEN, remedy_of_unfinished
from mim3d.dataio.corpus.table_file import stored_head
from mim3d.dataio.corpus.writer import ASIDE, CorpusWriter
from mim3d.dataio.errors import CorpusError, Rejection
from mim3d.dataio.nifti.names import stem
from mim3d.dataio.storage.store import Store, open_store


def mend(
    corpus: str | Path,
    damaged: Collection[str] = (),
    *,
    workers: int | None = None,
    accept_losses: bool = False,
) -> ConversionReport:
    """Make volumes anew from the sources that the manifest tells of, and zarr.json, table and
    quarantine with them.

    `damaged` are ids found by reading everything (`inspect.verify`); what sizes, indexes and
    metadata show is found here. A volume stays as it is where a label's file is gone or a file is
    another one than it was made of, unless told to `accept_losses`; the report's rejections tell
    it. CorpusError where the manifest itself is damaged, or nothing tells how the corpus was made:
    only the same conversion mends that.
    """
    with _writing(corpus) as writer:
        run = Run(writer, run_jobs, workers or usable_cpus())
        jobs, _ = run.jobs([], Rerun(accept_losses=accept_losses))
        found = set(damaged)
        jobs = [
            replace(job, damage=job.damage or "damaged by what verify found")
            if found.intersection(record.id for record in job.known)
            else job
            for job in jobs
        ]
        earlier = earlier_rejections(writer.store)
        report = run.carry_out(jobs, {*earlier})
        new = tuple(rejection for rejection in report.rejections if rejection not in earlier)
        return replace(report, rejections=new)


def remove(
    corpus: str | Path, *, subjects: Collection[str] = (), volumes: Collection[str] = ()
) -> list[str]:
    """Take out all volumes of subjects, and single volumes, by id; returns the ids.

    The history tells of it, and no later conversion brings them back unless they are readmitted.
    For a name that was removed before there is nothing to do (`removed_on` tells when); what is
    left of the same content is told by `copies_left`. CorpusError where a name is none of the
    corpus.
    """
    with _writing(corpus) as writer:
        left = {name for r in writer.records.values() for name in (r.id, r.subject)}
        before = {name for event in Barred(writer.events).events for name in event.names} - left
        subjects, volumes = {*subjects} - before, {*volumes} - before
        if not subjects and not volumes:
            return []
        aside = {*filter(ASIDE.fullmatch, writer.store.folders())} & {*volumes}
        chosen = chosen_records(writer, set(subjects), set(volumes) - aside)
        earlier = earlier_rejections(writer.store)
        writer.add_events(*removals(chosen, subjects))
        writer.remove({record.id for record in chosen})
        for name in aside:
            writer.store.delete(name)
        paths = {path for record in chosen for path in record.source_paths}
        writer.close({rejection for rejection in earlier if rejection.path not in paths})
    return sorted([*(record.id for record in chosen), *aside])


def removals(chosen: Sequence[VolumeRecord], subjects: Collection[str]) -> list[Event]:
    """An event for each subject, and for each volume of no such subject, so that one can be let in
    again without the others."""
    found = [
        removal("removed", [record for record in chosen if record.subject == name], [name])
        for name in sorted(subjects)
    ]
    single = (record for record in chosen if record.subject not in subjects)
    return [*found, *(removal("removed", [record]) for record in single)]


def removed_on(corpus: str | Path, names: Collection[str]) -> dict[str, str]:
    """The day when names were removed on request, of those that were and not readmitted."""
    store = open_store(corpus)
    refuse_no_corpus(store)
    return {
        name: event.time[:10]
        for event in Barred(parse_history(history_text(store))).events
        for name in sorted(event.names.intersection(names))
    }


def refuse_no_corpus(store: Store) -> None:
    """CorpusError where there is no corpus at all."""
    own = (own_key(store, name) for name in (MANIFEST, TABLE, HEAD))
    if not any(map(store.exists, ("zarr.json", *own))):
        raise CorpusError(
            f"{store.url}: is no corpus, or is not there; name one (DST of `convert`)"
        )


def copies_left(corpus: str | Path) -> list[str]:
    """A line for each volume of the corpus that has the content of one that was removed."""
    store = open_store(corpus)
    barred = Barred(parse_history(history_text(store)))
    records, _ = intact_records(store.get(own_key(store, MANIFEST)))
    return barred.copies_held(records, str(corpus))


def readmit(corpus: str | Path, names: Collection[str]) -> None:
    """Let subjects and volumes that were removed be converted again."""
    with _writing(corpus) as writer:
        events = Barred(writer.events).events
        barred = {name for event in events for name in event.subjects or event.volumes}
        for event in events:
            if event.subjects and (inner := {*event.volumes} & {*names} - barred):
                raise CorpusError(
                    f"{corpus}: {min(inner)} was removed with all of {event.subjects[0]!r}: "
                    f"`mim3d remove {corpus} --readmit {shlex.quote(event.subjects[0])}` lets all "
                    "of that subject in again"
                )
        if unknown := sorted(set(names) - barred):
            raise CorpusError(
                f"{corpus}: {', '.join(unknown)} was not removed; removed are: "
                f"{', '.join(sorted(barred)) or 'none'}"
            )
        subjects = tuple(sorted(names))
        writer.add_events(Event("readmitted", now(), subjects=subjects))
        writer.close(earlier_rejections(writer.store))


@contextmanager
def _writing(corpus: str | Path) -> Iterator[CorpusWriter]:
    """A corpus that is whole enough, opened for writing by its own recipe."""
    store = open_store(corpus)
    refuse_no_corpus(store)
    conversion = recipe_of(store)
    with store.lock():
        check_manifest_lines(store)
        writer = CorpusWriter(store, conversion)
        writer.open()
        writer.refuse_unlisted()
        yield writer


def chosen_records(
    writer: CorpusWriter, subjects: set[str], volumes: set[str]
) -> list[VolumeRecord]:
    """The records of these subjects and volumes; CorpusError naming those that are none."""
    records = list(writer.records.values())
    people = {record.subject for record in records}
    unknown = [("subject", name) for name in sorted(subjects - people)]
    unknown += [("volume", name) for name in sorted(volumes - {*writer.records})]
    if unknown:
        near = next(filter(None, (meant(name, records) for _, name in unknown)), "")
        raise CorpusError(
            f"{writer.store.url}: has no {', '.join(f'{kind} {name!r}' for kind, name in unknown)}"
            f"{near}; `mim3d inspect {writer.store.url} --rows {len(records)}` lists its volumes "
            "and their subjects"
        )
    return [r for r in records if r.subject in subjects or r.id in volumes]


def meant(name: str, records: Collection[VolumeRecord]) -> str:
    """The volume that a name nearly is: in other letters, by its file, or all frames of one."""
    key = name.casefold()
    for record in records:
        files = {known for path in record.sources for known in (path, Path(path).name, stem(path))}
        known = {record.id, base_id(record), record.subject, *files}
        if key in map(str.casefold, known):
            return f" (--volume {record.id} or --subject {record.subject} may be meant)"
    return ""


def is_emptied(store: Store, manifest: bytes) -> bool:
    """Whether a manifest is empty for all volumes were taken out, as the table tells too."""
    return not manifest and stored_head(store).get("manifest_bytes") == 0


def check_manifest_lines(store: Store) -> None:
    """CorpusError where lines are damaged or gone: their volumes would count as nobody's."""
    key = own_key(store, MANIFEST)
    text = store.get(key) if store.exists(key) else b""
    _, damaged = intact_records(text, f"{store.url}/{key}")
    if damaged:
        raise damaged[0]
    if not text.endswith(b"\n") and not (store.exists(key) and is_emptied(store, text)):
        key_of_seen = own_key(store, SEEN)
        seen = store.get(key_of_seen) if store.exists(key_of_seen) else b""
        raise CorpusError(
            f"{store.url}/{key}: {'ends within a line' if text else 'is missing or empty'}; "
            f"{remedy_of_unfinished(seen)}, which makes anew what it told of"
        )


def earlier_rejections(store: Store) -> set[Rejection]:
    """What the conversion left out, as far as its list is readable, without volumes that were
    damaged then: they are looked at again."""
    key = own_key(store, QUARANTINE)
    if not store.exists(key):
        return set()
    found = intact_rejections(store.get(key))
    return {rejection for rejection in found if rejection.code not in ("damaged", "lost")}
