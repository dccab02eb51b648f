"""Tasks in spawned processes with one thread each; the lines they print reach us."""

import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from typing import Any

from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.progress import Progress, progress
from mim3d.engine.errors import TrainingError
from mim3d.engine.study.pool import Failures, Pool, PoolTask

STOP = None
SAVE_S = 60.0
"""Seconds that a worker whose parent died has to save a checkpoint."""


class Processes(Pool):
    """Spawned processes with one thread each, the same for all phases: they import torch once.

    They start with the first task, and their lines come out here.
    """

    def __init__(self, workers: int) -> None:
        context = get_context("spawn")
        self._lines = context.Queue()
        self._pool = ProcessPoolExecutor(workers, context, _begin_worker, (self._lines,))

    def run(self, tasks: Sequence[PoolTask], title: str) -> Failures:
        """As `Pool.run`; TrainingError where a worker dies."""
        if not tasks:
            return {}
        with progress(title, len(tasks), "runs") as shown, self._lines_to(shown.note):
            return self._run(tasks, shown)

    def _run(self, tasks: Sequence[PoolTask], shown: Progress) -> Failures:
        failed: Failures = {}
        with _one_thread_each():
            futures: dict[Future[None], str] = {
                self._pool.submit(_run_task, task.call, *task.arguments): task.name
                for task in tasks
            }
        for future in as_completed(futures):
            name = futures[future]
            try:
                future.result()
            except BrokenProcessPool as error:
                raise TrainingError(
                    f"a worker process died during {name} or a run beside it, perhaps for want "
                    "of memory: run the same command again, with --workers 1 if it recurs"
                ) from error
            except (Mim3dError, OSError) as error:
                failed[name] = error
                shown.note(f"{name}: {error}")
            shown.advance(1, name)
        return failed

    @contextmanager
    def _lines_to(self, note: Callable[[str], None]) -> Iterator[None]:
        listener = threading.Thread(target=_pass_on, args=(self._lines, note), daemon=True)
        listener.start()
        try:
            yield
        finally:
            self._lines.put(STOP)
            listener.join(timeout=5)

    def close(self) -> None:
        """Wait for running tasks; those that wait are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def default_workers(device: str) -> int:
    """One per core on a CPU, one on a GPU."""
    import torch

    if device != "cpu" and torch.cuda.is_available():
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores or 1, 8))


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Children inherit one OpenMP thread: several would fight over the cores."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _run_task(call: Callable[..., None], *arguments: Any) -> None:
    """Run a task, unless the study that asked for it is gone: then nobody waits for more."""
    parent = parent_process()
    if parent is not None and not parent.is_alive():
        os._exit(1)
    call(*arguments)


def _follow_parent() -> None:
    """Wait for the parent's end; then let this worker save what it has, and end it too."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(SAVE_S)
    os._exit(1)


def _begin_worker(lines: Any) -> None:
    import torch

    threading.Thread(target=_follow_parent, daemon=True).start()

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.stdout = LineSender(lines.put)


def _pass_on(lines: Any, note: Callable[[str], None]) -> None:
    while (line := lines.get()) is not STOP:
        note(line)


class LineSender(io.TextIOBase):
    """Standard output of a worker: whole lines are handed on."""

    def __init__(self, send: Callable[[str], None]) -> None:
        super().__init__()
        self._send, self._rest = send, ""

    def writable(self) -> bool:
        """It can be written to."""
        return True

    def isatty(self) -> bool:
        """No bars, please: two would overwrite each other."""
        return False

    def write(self, text: str) -> int:
        """Hand on every complete line."""
        *whole, self._rest = (self._rest + text).split("\n")
        for line in whole:
            self._send(line)
        return len(text)
