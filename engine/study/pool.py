"""Independent tasks, some at a time, each in a process with one thread; their lines reach us."""

import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from typing import Any

from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.progress import progress
from mim3d.engine.errors import TrainingError

STOP = None
Failures = dict[str, Exception]
"""Errors that a user can mend, by the task's name."""
SAVE_S = 60.0
"""Seconds that a worker whose parent died has to save a checkpoint."""


@dataclass(frozen=True)
class PoolTask:
    """A call of a top-level function with picklable arguments."""

    name: str
    call: Callable[..., None]
    arguments: tuple[Any, ...]


def run_tasks(tasks: Sequence[PoolTask], workers: int, title: str) -> Failures:
    """Run all tasks; returns the error of each that a user can mend, by name.

    Any other exception ends the rest. One worker runs in this process.
    """
    if not tasks:
        return {}
    if workers <= 1:
        return _run_here(tasks)
    return _run_apart(tasks, min(workers, len(tasks)), title)


def default_workers(device: str) -> int:
    """One per core on a CPU, one on a GPU."""
    import torch

    if device != "cpu" and torch.cuda.is_available():
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores or 1, 8))


def _run_here(tasks: Sequence[PoolTask]) -> Failures:
    failed: Failures = {}
    for index, task in enumerate(tasks):
        print(f"[{index + 1}/{len(tasks)}] {task.name}", flush=True)
        try:
            task.call(*task.arguments)
        except (Mim3dError, OSError) as error:
            failed[task.name] = error
            print(f"{task.name}: {error}", flush=True)
    return failed


def _run_apart(tasks: Sequence[PoolTask], workers: int, title: str) -> Failures:
    context = get_context("spawn")
    lines = context.Queue()
    failed: Failures = {}
    with progress(title, len(tasks), "runs") as shown, _one_thread_each():
        pool = ProcessPoolExecutor(workers, context, _begin_worker, (lines,))
        listener = threading.Thread(target=_pass_on, args=(lines, shown.note), daemon=True)
        listener.start()
        try:
            futures: dict[Future[None], str] = {
                pool.submit(_run_task, task.call, *task.arguments): task.name for task in tasks
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
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            lines.put(STOP)
            listener.join(timeout=5)
    return failed


@contextmanager
def _one_thread_each():  # noqa: ANN202
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
