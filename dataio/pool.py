"""Jobs over worker processes; a worker that dies costs one retry, never the run."""

from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait

from mim3d.dataio.job import Job, JobResult, run_job
from mim3d.dataio.quarantine import Rejection
from mim3d.dataio.worker import Worker

TRIES = 2
AHEAD = 1
"""Jobs a worker holds beside its own: it need not wait while this process commits."""


def run_jobs(jobs: Sequence[Job], workers: int) -> Iterator[JobResult]:
    """Results as they come; in this process where one worker is asked for."""
    if workers <= 1 or len(jobs) <= 1:
        yield from map(run_job, jobs)
    else:
        yield from Pool(jobs, workers).results()


class Pool:
    """A queue of jobs and the workers on it, each with its next job at hand while it works."""

    def __init__(self, jobs: Sequence[Job], workers: int) -> None:
        self._waiting = deque((job, 1) for job in jobs)
        self._n_workers = min(workers, len(jobs))
        self._workers: list[Worker] = []

    def results(self) -> Iterator[JobResult]:
        """Run everything; StoreError and other failures of a worker's store are raised here."""
        try:
            while self._waiting or self._busy():
                self._hand_out()
                ready = wait([worker.connection for worker in self._busy()])
                for worker in [w for w in self._busy() if w.connection in ready]:
                    result = self._collect(worker)
                    if result is not None:
                        yield result
        finally:
            for worker in self._workers:
                worker.end()

    def _busy(self) -> list[Worker]:
        return [worker for worker in self._workers if worker.jobs]

    def _hand_out(self) -> None:
        """A job for every idle worker, then one ahead while all will have enough to do."""
        while self._waiting and len(self._workers) < self._n_workers:
            worker = Worker()
            self._workers.append(worker)
            self._give(worker)
        for ahead in range(AHEAD + 1):
            for worker in [w for w in self._workers if len(w.jobs) == ahead]:
                if len(self._waiting) > ahead * self._n_workers:
                    self._give(worker)

    def _give(self, worker: Worker) -> None:
        try:
            worker.give(*self._waiting.popleft())
        except OSError:
            self._lost(worker)

    def _collect(self, worker: Worker) -> JobResult | None:
        try:
            answer = worker.take()
        except (EOFError, OSError):
            return self._lost(worker)
        worker.jobs.popleft()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _lost(self, worker: Worker) -> JobResult | None:
        """Retry the job a dead worker was at once; then its source is at fault."""
        (job, tries), *untouched = worker.jobs
        self._waiting.extendleft(reversed(untouched))
        self._workers.remove(worker)
        worker.end()
        if tries < TRIES:
            self._waiting.append((job, tries + 1))
            return None
        detail = (
            f"the process converting it died {tries} times (code {worker.process.returncode}; "
            "-9 is often the kernel's memory limit); try it alone with --workers 1"
        )
        return JobResult(
            job.id, rejections=(Rejection(job.source.images[0], "worker-lost", detail),)
        )
