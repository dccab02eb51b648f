"""Jobs over worker processes; a worker that dies costs one retry, never the run."""

import ctypes
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from typing import Any

from mim3d.dataio.convert.job import Job, JobResult
from mim3d.dataio.convert.work import run_job
from mim3d.dataio.errors import Rejection

TRIES = 2
AHEAD = 1
"""Jobs a worker holds beside its own: it need not wait while this process commits."""


def run_jobs(jobs: Sequence[Job], workers: int) -> Iterator[JobResult]:
    """Results as they come; in this process where one worker is asked for."""
    if workers <= 1 or len(jobs) <= 1:
        yield from map(run_job, jobs)
    else:
        yield from Pool(jobs, workers).results()


SINGLE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
PARENT_POLL_S = 0.2
PR_SET_PDEATHSIG = 1  # of Linux's prctl


class Worker:
    """A worker process as its parent sees it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        code = (
            f"from mim3d.dataio.convert.pool import serve; serve({theirs.fileno()}, {os.getpid()})"
        )
        environment = os.environ | dict.fromkeys(SINGLE_THREAD, "1")
        # Blocked, not ignored: a Ctrl-C meanwhile still reaches this process, and the worker's
        # Python, which inherits it, is out of its reach from its first instruction on.
        with theirs, blocked(signal.SIGINT):
            self.process = subprocess.Popen(
                [sys.executable, "-c", code], pass_fds=[theirs.fileno()], env=environment
            )
        self.connection = Connection(ours.detach())
        self.jobs: deque[tuple[Job, int]] = deque()

    def give(self, job: Job, tries: int) -> None:
        """Send a job, to be done after those it has; OSError if the process died."""
        self.jobs.append((job, tries))
        self.connection.send(job)

    def take(self) -> Any:
        """The result or the exception of the first job; EOFError or OSError if the process died."""
        return self.connection.recv()

    def end(self) -> None:
        """Stop the process now; what it was writing is under a temporary name."""
        self.connection.close()
        self.process.kill()
        self.process.wait()


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


@contextmanager
def blocked(number: signal.Signals) -> Iterator[None]:
    """Hold a signal back from this thread, and for good from processes started here."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def serve(descriptor: int, parent: int) -> None:
    """Loop of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _killed_with_parent()
    if os.getppid() != parent:  # it was gone before
        return
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    connection = Connection(descriptor)
    jobs: SimpleQueue[Job | None] = SimpleQueue()
    threading.Thread(target=_receive, args=(connection, jobs), daemon=True).start()
    while (job := jobs.get()) is not None:
        try:
            answer: Any = run_job(job)
        except Exception as error:
            answer = _sendable(error)
        connection.send(answer)


def _receive(connection: Connection, jobs: "SimpleQueue[Job | None]") -> None:
    """Take jobs at once, so that neither side waits to send while the other does."""
    try:
        while True:
            jobs.put(connection.recv())
    except (EOFError, OSError):
        jobs.put(None)


def _killed_with_parent() -> None:
    """Have Linux end this process at once when its parent is killed, so that it writes nothing
    beside whoever runs the same command again."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _die_with(parent: int) -> None:
    """The same where the kernel does not do it."""
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_S)
    os._exit(1)


def _sendable(error: Exception) -> Exception:
    """The exception, or one with its text where it does not survive the way."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
