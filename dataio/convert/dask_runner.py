"""Jobs over an existing Dask cluster whose workers see the same files; this process commits."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mim3d.dataio.convert.job import Job, JobResult
from mim3d.dataio.convert.work import run_job
from mim3d.dataio.errors import Mim3dError, Rejection
from mim3d.dataio.extras import extra
from mim3d.dataio.storage.store import open_store

if TYPE_CHECKING:
    from mim3d.dataio.convert.run import Runner

CONNECT_S = 15
SYNC_INTERVAL_S = 1.0
AHEAD = 3  # jobs in flight per thread of the cluster: enough to keep it busy, little to lose


def dask_runner(address: str) -> "Runner":
    """Runner of `convert` on the cluster at `address`, such as tcp://host:8786.

    Every thread of every worker converts one volume at a time. Workers that die are replaced by
    Dask; a source that kills several of them is rejected.
    """

    def run(jobs: Sequence[Job], workers: int) -> Iterator[JobResult]:
        del workers  # the cluster has as many as it has
        with connect(address) as client:
            yield from results_of(client, jobs)

    return run


def connect(address: str) -> Any:
    """Client of the scheduler; Mim3dError where it cannot be used, in one line."""
    with extra():
        from distributed import Client
        from distributed.comm import get_address_host
    try:
        # A client that was refused its address is closed at our end, for 30 s and with a traceback.
        get_address_host(address)
        client = Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise Mim3dError(
            f"{address}: no Dask scheduler answers ({type(error).__name__}); start one with "
            "`dask scheduler` and workers with `dask worker ADDRESS --nthreads 1`"
        ) from error
    try:
        check_workers(client, address)
    except Mim3dError:
        client.close()
        raise
    return client


def check_workers(client: Any, address: str) -> None:
    """There are workers, and they run this mim3d."""
    try:
        found = client.run(version, "mim3d", on_error="return")
    except Exception as error:
        raise Mim3dError(f"{address}: the workers do not answer ({error})") from error
    if not found:
        raise Mim3dError(
            f"{address}: the scheduler has no workers; start some with `dask worker {address}`"
        )
    ours = version("mim3d")
    for worker, theirs in found.items():
        if theirs != ours:
            raise Mim3dError(
                f"{address}: worker {worker} has mim3d {theirs!r}, this process {ours}; install "
                "the same version there"
            )


def results_of(client: Any, jobs: Sequence[Job]) -> Iterator[JobResult]:
    """Results as they come, each durable on its worker, a bounded number of jobs in flight."""
    from distributed import as_completed

    waiting = iter(jobs)
    by_key: dict[str, Job] = {}
    window = max(AHEAD * sum(client.nthreads().values()), 1)
    pending = as_completed(loop=client.loop)

    def submit(count: int) -> None:
        for job in islice(waiting, count):
            future = client.submit(run_job, anywhere(job), pure=False)
            by_key[future.key] = job
            pending.add(future)

    submit(window)
    done: list[JobResult] = []
    synced = time.monotonic()
    for future in pending:
        done.append(outcome(future, by_key.pop(future.key)))
        submit(1)
        if not by_key or time.monotonic() - synced > SYNC_INTERVAL_S:
            client.run(sync, anywhere(jobs[0]).destination)
            yield from done
            done.clear()
            synced = time.monotonic()


def sync(destination: str) -> None:
    """Make durable what this worker wrote: the committing process cannot flush another machine."""
    if "://" not in destination:
        open_store(destination).sync()


def anywhere(job: Job) -> Job:
    """The job with an absolute destination: workers have other working folders."""
    if "://" in job.destination:
        return job
    return replace(job, destination=str(Path(job.destination).absolute()))


def outcome(future: Any, job: Job) -> JobResult:
    """Result of a finished job; a source whose workers kept dying is rejected."""
    from distributed.scheduler import KilledWorker

    try:
        return future.result()
    except KilledWorker as error:
        detail = (
            f"the Dask workers converting it died ({error.allowed_failures + 1} times, often the "
            "memory limit of `dask worker --memory-limit`); try it alone with --workers 1"
        )
        rejection = Rejection(job.source.images[0], "worker-lost", detail)
        return JobResult(job.id, rejections=(rejection,))
