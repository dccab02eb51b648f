"""Conversion on a real Dask cluster: a scheduler and two worker processes, started here."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import dask_cluster
import pytest
from dask_cluster import connect_when_ready, start_worker, stop

from mim3d.dataio.convert.dask_runner import connect, outcome, results_of
from mim3d.dataio.convert.job import Job
from mim3d.dataio.convert.run import convert
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.corpus.seen_files import SEEN
from mim3d.dataio.errors import Mim3dError, StoreError
from mim3d.dataio.sources.discover import discover
from mim3d.dataio.sources.phantom import make_cohort
from mim3d.engine.commands.cli import main

pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with dask_cluster.cluster(tmp_path_factory.mktemp("dask")) as address:
        yield address


def tree_hash(root: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(p for p in root.rglob("*") if p.is_file() and p.name != SEEN):
        digest.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()


@pytest.mark.slow
def test_a_cluster_makes_the_same_corpus(cluster, tmp_path, monkeypatch):
    cohort = make_cohort(tmp_path / "cohort", 12)
    (cohort / "imagesTr" / "phantom_003.nii.gz").write_bytes(b"\x1f\x8b not gzip")
    found = discover(str(cohort))
    convert(found.sources, tmp_path / "local.zarr", workers=1)
    monkeypatch.chdir(tmp_path)  # a relative destination must mean the same to every worker
    words = ["convert", str(cohort), "cluster.zarr", "--dask", cluster]
    assert main(words) == 3
    assert tree_hash(tmp_path / "cluster.zarr") == tree_hash(tmp_path / "local.zarr")
    assert main(words) == 3  # unchanged sources are skipped there too
    assert tree_hash(tmp_path / "cluster.zarr") == tree_hash(tmp_path / "local.zarr")


def jobs_of(cohort: Path, destination: Path) -> list[Job]:
    sources = discover(str(cohort)).sources
    return [Job(s, s.id, (), str(destination), Conversion()) for s in sources]


@pytest.mark.slow
def test_a_lost_worker_loses_no_job(cluster, tmp_path):
    doomed = start_worker(cluster, tmp_path / "doomed.log")
    (tmp_path / "c.zarr").mkdir()
    jobs = jobs_of(make_cohort(tmp_path / "cohort", 24), tmp_path / "c.zarr")
    try:
        with connect_when_ready(cluster, 3) as client:
            results = results_of(client, jobs)
            found = [next(results)]
            doomed.kill()
            found += list(results)
    finally:
        stop(doomed)
    assert sorted(r.id for r in found) == sorted(j.id for j in jobs)
    assert all(r.records for r in found)


@pytest.mark.slow
def test_a_destination_that_cannot_be_written_stops_the_run(cluster, tmp_path):
    jobs = jobs_of(make_cohort(tmp_path / "cohort", 2), Path("/proc/c.zarr"))
    with connect(cluster) as client, pytest.raises(StoreError, match=r"/proc/c\.zarr"):
        list(results_of(client, jobs))


def test_a_source_that_kills_its_workers_is_rejected(tmp_path):
    from distributed.scheduler import KilledWorker

    class Future:
        def result(self):
            raise KilledWorker("run_job", None, 3)  # pyright: ignore[reportArgumentType]

    job = jobs_of(make_cohort(tmp_path / "cohort", 1), tmp_path / "c.zarr")[0]
    (rejection,) = outcome(Future(), job).rejections
    assert (rejection.path, rejection.code) == (job.source.images[0], "worker-lost")


def test_no_scheduler_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("mim3d.dataio.convert.dask_runner.CONNECT_S", 1)
    with pytest.raises(Mim3dError, match="no Dask scheduler answers"):
        connect("tcp://127.0.0.1:9")
    with pytest.raises(Mim3dError, match="no Dask scheduler answers"):
        connect("not an address")


@pytest.mark.parametrize("address", ["nonsense", "nonsense:abc", "http://here:8786", "tcp://here"])
def test_a_client_is_not_made_of_what_is_no_address(monkeypatch, address):
    """One that is refused hangs for half a minute where the command ends, and shows a traceback."""
    monkeypatch.setattr("distributed.Client", lambda *_, **__: pytest.fail("a client was made"))
    with pytest.raises(Mim3dError, match="no Dask scheduler answers"):
        connect(address)
