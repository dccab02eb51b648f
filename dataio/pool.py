"""Jobs over worker processes; a worker that dies costs one retry, never the run."""

from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait

from mim3d.dataio.job import Job, JobResult, run_job
from mim3d.dataio.quarantine import Rejection
from mim3d.dataio.worker import Worker

TRIES = 2


def run_jobs(jobs: Sequence[Job], workers: int) -> Iterator[JobResult]:
    """Results as they come; in this process where one worker is asked for."""
    if workers <= 1 or len(jobs) <= 1:
        yield from map(run_job, jobs)
    else:
        yield from Pool(jobs, workers).results()


class Pool:
    """A queue of jobs and the workers on it."""

    def __init__(self, jobs: Sequence[Job], workers: int) -> None:
        self._waiting = deque((job, 1) for job in jobs)
        self._n_workers = min(workers, len(jobs))
        self._tries: dict[int, int] = {}
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
        return [worker for worker in self._workers if worker.job is not None]

    def _hand_out(self) -> None:
        idle = deque(worker for worker in self._workers if worker.job is None)
        while self._waiting and (idle or len(self._workers) < self._n_workers):
            if not idle:
                idle.append(Worker())
                self._workers.append(idle[0])
            worker = idle.popleft()
            job, tries = self._waiting.popleft()
            self._tries[id(worker)] = tries
            try:
                worker.give(job)
            except OSError:
                self._lost(worker)

    def _collect(self, worker: Worker) -> JobResult | None:
        try:
            answer = worker.take()
        except (EOFError, OSError):
            return self._lost(worker)
        worker.job = None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _lost(self, worker: Worker) -> JobResult | None:
        """Retry the job of a dead worker once; then its source is at fault."""
        job, tries = worker.job, self._tries.pop(id(worker))
        self._workers.remove(worker)
        worker.end()
        assert job is not None
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
