"""A finished corpus kept in order: what is damaged made anew from its sources."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from mim3d.dataio.convert.pool import run_jobs
from mim3d.dataio.convert.run import ConversionReport, Rerun, Run, usable_cpus
from mim3d.dataio.corpus.manifest import MANIFEST, intact_records
from mim3d.dataio.corpus.quarantine import QUARANTINE, intact_rejections
from mim3d.dataio.corpus.root import recipe_of
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
    store = open_store(corpus)
    conversion = recipe_of(store)
    with store.lock():
        check_manifest_lines(store)
        run = Run(CorpusWriter(store, conversion), run_jobs, workers or usable_cpus())
        run.writer.open()
        jobs, _ = run.jobs([], Rerun())
        found = set(damaged)
        jobs = [
            replace(job, damage=job.damage or "damaged by what verify found")
            if found.intersection(record.id for record in job.known)
            else job
            for job in jobs
        ]
        return run.carry_out(jobs, told_before(store))


def check_manifest_lines(store: Store) -> None:
    """CorpusError where lines are damaged or gone: their volumes would count as nobody's."""
    text = store.get(MANIFEST) if store.exists(MANIFEST) else b""
    _, damaged = intact_records(text, f"{store.url}/{MANIFEST}")
    if damaged:
        raise damaged[0]
    if not text.endswith(b"\n"):
        raise CorpusError(
            f"{store.url}/{MANIFEST}: {'ends within a line' if text else 'is missing or empty'}; "
            "run the same `mim3d convert` again, which makes anew what it told of"
        )


def told_before(store: Store) -> set[Rejection]:
    """What the conversion left out, as far as its list is readable, without volumes that were
    damaged then: they are looked at again."""
    if not store.exists(QUARANTINE):
        return set()
    return {
        r for r in intact_rejections(store.get(QUARANTINE)) if r.code not in ("damaged", "lost")
    }
