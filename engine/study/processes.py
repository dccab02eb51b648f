"""Tasks in spawned processes with one thread each; the lines they print reach us.

Told to stop (SIGTERM, SIGUSR1, a first Ctrl-C), they save what they are at; what waits is dropped.
"""

import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from typing import Any

from mim3d.dataio.convert.pool import blocked
from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.progress import Progress, progress
from mim3d.engine.distributed.stop import Flag, signals_set
from mim3d.engine.errors import StoppedError, TrainingError
from mim3d.engine.study.pool import STOPPED, Failures, Pool, PoolTask
from mim3d.engine.variables import variables_kept

STOP = None
THREADS = "OMP_NUM_THREADS"
SAVE_S = 60.0
"""Seconds that a worker whose parent died has to save a checkpoint."""
LOOK_S = 0.5
"""How often is looked for a signal, and how often a worker's run is told of one."""
SAVING = b"\nstopping after the steps under way, and saving them; Ctrl-C again ends at once\n"


class Processes(Pool):
    """Spawned processes with one thread each, the same for all phases: they import torch once.

    They start with the first task, and their lines come out here.
    """

    def __init__(self, workers: int) -> None:
        context = get_context("spawn")
        self._lines = context.Queue()
        # A worker that is killed amid a line leaves the queue locked: our end must not wait for it.
        self._lines.cancel_join_thread()
        # Workers have the other end alone, so closing this one reaches them all, as our death does.
        self._ending, self._stop = context.Pipe(duplex=False)
        self._breaking, self._broken = context.Pipe(duplex=False)
        given = self._lines, self._ending, self._breaking
        self._pool = ProcessPoolExecutor(workers, context, _begin_worker, given)

    def run(self, tasks: Sequence[PoolTask], title: str) -> Failures:
        """As `Pool.run`; TrainingError where a worker dies, StoppedError where a signal ends it."""
        if not tasks:
            return {}
        halt = Flag()
        with (
            progress(title, len(tasks), "runs") as shown,
            self._lines_to(shown.note),
            signals_set(halt, SAVING),
        ):
            failed = self._run(tasks, shown, halt)
        if halt.is_set():
            raise StoppedError(STOPPED)
        return failed

    def _run(self, tasks: Sequence[PoolTask], shown: Progress, halt: Flag) -> Failures:
        failed: Failures = {}
        # Workers inherit both: no Ctrl-C of a terminal ends them while they import.
        with variables_kept(THREADS), blocked(signal.SIGINT):
            os.environ[THREADS] = "1"  # several would fight over the cores
            futures: dict[Future[None], str] = {
                self._pool.submit(_run_task, task.call, *task.arguments): task.name
                for task in tasks
            }
        running = set(futures)
        while running:
            done, running = wait(running, LOOK_S, FIRST_COMPLETED)
            for future in done:
                if not self._was_stopped(future, futures[future], halt):
                    self._note(future, futures[future], failed, shown)
            if halt.is_set():
                self._stop.close()  # workers drop what waits; to cancel it here would race a break
        return failed

    def _was_stopped(self, future: Future[None], name: str, halt: Flag) -> bool:
        """Whether a task ended because we were told to stop; TrainingError where its worker died.

        A scheduler signals all processes of a job, of which an idle worker dies, and we may hear of
        that first.
        """
        error = future.exception()
        if not isinstance(error, BrokenProcessPool):
            return isinstance(error, StoppedError)
        self._broken.close()
        if not halt.is_set():
            time.sleep(LOOK_S)
        if halt.is_set():
            return True
        raise TrainingError(
            f"a worker process died during {name} or a run beside it, perhaps for want of memory: "
            "run the same command again, with --workers 1 if it recurs"
        ) from error

    def _note(self, future: Future[None], name: str, failed: Failures, shown: Progress) -> None:
        """Say that a task has ended, and how."""
        error = future.exception()
        if isinstance(error, (Mim3dError, OSError)):
            failed[name] = error
            shown.note(f"{name}: {error}")
        elif error is not None:
            raise error
        shown.advance(1, name)

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
        for end in (self._ending, self._stop, self._breaking, self._broken):
            end.close()


def default_workers(device: str) -> int:
    """One per core on a CPU, one on a GPU."""
    import torch

    if device != "cpu" and torch.cuda.is_available():
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores or 1, 8))


_halt = threading.Event()
"""Set in a worker whose study was told to stop, or is gone."""


def _run_task(call: Callable[..., None], *arguments: Any) -> None:
    """Run a task, unless the study that asked for it is told to stop, or gone."""
    if _is_orphan():
        os._exit(1)
    if _halt.is_set():
        raise StoppedError("not begun")
    try:
        call(*arguments)
    except StoppedError:
        if not _halt.is_set():  # not by the study, which must hear of it: by our end
            os._exit(1)
        raise


def _is_orphan() -> bool:
    """Whether the study's process is gone."""
    parent = parent_process()
    return parent is not None and not parent.is_alive()


def _follow_stop(ending: Connection) -> None:
    """Wait for the study's word to stop; pass it on to the run under way, or about to begin."""
    with suppress(EOFError, OSError):
        ending.recv_bytes()
    _halt.set()
    while True:
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(LOOK_S)


def _follow_end(breaking: Connection) -> None:
    """Where a worker beside us died, or the study: end, as soon as the run under way has saved.

    Of a worker's death the executor tells by one SIGTERM, which a run takes for its own, and then
    waits for our end while we wait for a task, behind the lock of a queue that the dead one may
    have held.
    """
    with suppress(EOFError, OSError):
        breaking.recv_bytes()
    left_s = SAVE_S
    while left_s > 0:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(LOOK_S)
        left_s -= LOOK_S * _is_orphan()
    os._exit(1)


def _begin_worker(lines: Any, ending: Connection, breaking: Connection) -> None:
    import torch

    # What a terminal's Ctrl-C means is for the study to say. SIGUSR1 is how we pass that on to a
    # run, which listens to it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    threading.Thread(target=_follow_stop, args=(ending,), daemon=True).start()
    threading.Thread(target=_follow_end, args=(breaking,), daemon=True).start()
    torch.set_num_threads(1)
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
