"""A finished corpus kept in order: what is damaged made anew from its sources, and volumes taken
out for good.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

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
from mim3d.dataio.corpus.names import MANIFEST, own_key
from mim3d.dataio.corpus.quarantine import QUARANTINE, intact_rejections
from mim3d.dataio.corpus.root import recipe_of
from mim3d.dataio.corpus.seen_files import SEEN, remedy_of_unfinished
from mim3d.dataio.corpus.writer import CorpusWriter
from mim3d.dataio.errors import CorpusError, Rejection
from mim3d.dataio.storage.store import Store, open_store


def mend(
    corpus: str | Path, damaged: Collection[str] = (), *, workers: int | None = None
) -> ConversionReport:
    """Make volumes anew from the sources that the manifest tells of, and zarr.json, table and
    quarantine with them.

    `damaged` are ids found by reading everything (`inspect.verify`); what sizes, indexes and
    metadata show is found here. CorpusError where the manifest itself is damaged, or nothing tells
    how the corpus was made: only the same conversion mends that.
    """
    with _writing(corpus) as writer:
        run = Run(writer, run_jobs, workers or usable_cpus())
        jobs, _ = run.jobs([], Rerun())
        found = set(damaged)
        jobs = [
            replace(job, damage=job.damage or "damaged by what verify found")
            if found.intersection(record.id for record in job.known)
            else job
            for job in jobs
        ]
        return run.carry_out(jobs, earlier_rejections(writer.store))


def remove(
    corpus: str | Path, *, subjects: Collection[str] = (), volumes: Collection[str] = ()
) -> list[str]:
    """Take out all volumes of subjects, and single volumes, by id; returns the ids.

    The history tells of it, and no later conversion brings them back unless they are readmitted.
    What is left of the same content is told by `copies_left`. CorpusError where a name is none of
    the corpus.
    """
    with _writing(corpus) as writer:
        chosen = chosen_records(writer, set(subjects), set(volumes))
        earlier = earlier_rejections(writer.store)
        writer.add_event(removal("removed", chosen, subjects))
        writer.remove({record.id for record in chosen})
        paths = {path for record in chosen for path in record.source_paths}
        writer.close({rejection for rejection in earlier if rejection.path not in paths})
    return sorted(record.id for record in chosen)


def copies_left(corpus: str | Path) -> list[str]:
    """A line for each volume of the corpus that has the content of one that was removed."""
    store = open_store(corpus)
    barred = Barred(parse_history(history_text(store)))
    records, _ = intact_records(store.get(own_key(store, MANIFEST)))
    return barred.copies_held(records, str(corpus))


def readmit(corpus: str | Path, names: Collection[str]) -> None:
    """Let subjects and volumes that were removed be converted again."""
    with _writing(corpus) as writer:
        barred = {name for event in Barred(writer.events).events for name in event.names}
        if unknown := sorted(set(names) - barred):
            raise CorpusError(
                f"{corpus}: {', '.join(unknown)} was not removed; removed are: "
                f"{', '.join(sorted(barred)) or 'none'}"
            )
        subjects = tuple(sorted(names))
        writer.add_event(Event("readmitted", now(), subjects=subjects))
        writer.close(earlier_rejections(writer.store))


@contextmanager
def _writing(corpus: str | Path) -> Iterator[CorpusWriter]:
    """A corpus that is whole enough, opened for writing by its own recipe."""
    store = open_store(corpus)
    conversion = recipe_of(store)
    with store.lock():
        check_manifest_lines(store)
        writer = CorpusWriter(store, conversion)
        writer.open()
        yield writer


def chosen_records(
    writer: CorpusWriter, subjects: set[str], volumes: set[str]
) -> list[VolumeRecord]:
    """The records of these subjects and volumes; CorpusError naming those that are none."""
    records = list(writer.records.values())
    unknown = sorted(subjects - {r.subject for r in records}) + sorted(volumes - {*writer.records})
    if unknown:
        raise CorpusError(
            f"{writer.store.url}: has no {', '.join(map(repr, unknown))}; `mim3d inspect "
            f"{writer.store.url} --rows {len(records)}` lists its volumes"
        )
    return [r for r in records if r.subject in subjects or r.id in volumes]


def check_manifest_lines(store: Store) -> None:
    """CorpusError where lines are damaged or gone: their volumes would count as nobody's."""
    key = own_key(store, MANIFEST)
    text = store.get(key) if store.exists(key) else b""
    _, damaged = intact_records(text, f"{store.url}/{key}")
    if damaged:
        raise damaged[0]
    if not text.endswith(b"\n"):
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
