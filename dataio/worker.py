"""One worker process of the pool: receives jobs over a socket, sends results, dies with its parent.

Workers are started by `python -c`, not forked and not through `__main__`: the caller may hold
threads, a GPU or an unguarded script.
"""

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from mim3d.dataio.job import Job, run_job

SINGLE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
PARENT_POLL_S = 0.2


class Worker:
    """A worker process as its parent sees it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        code = f"from mim3d.dataio.worker import serve; serve({theirs.fileno()}, {os.getpid()})"
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


def _die_with(parent: int) -> None:
    """A worker whose parent was killed must not go on writing."""
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
