"""Tasks over an existing Dask cluster whose workers see the same files: one task a worker."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import chdir
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from mim3d.dataio.convert.dask_runner import connect
from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.progress import progress
from mim3d.engine.distributed.stop import Flag, signals_set
from mim3d.engine.errors import ConfigError, StoppedError, TrainingError
from mim3d.engine.study.pool import Failures, Pool, PoolTask

LOOK_S = 0.1
SAVING = b"\nstopping; runs under way on the cluster go on; Ctrl-C again ends at once\n"


class DaskPool(Pool):
    """The cluster at an address such as tcp://host:8786; `out` is the folder of the study.

    A worker has one thread, as a task takes a core (or, by `dask cuda worker`, a GPU) to itself.
    Dask gives a dead worker's task to another one, which goes on from its last checkpoint; a task
    that kills several workers fails alone. Lines of a task stand in its worker's log.
    """

    def __init__(self, address: str, out: Path) -> None:
        self._client = connect(address)
        try:
            refuse_shared_workers(self._client.nthreads(), address)
            refuse_other_files(self._client, address, out)
        except Mim3dError:
            self.close()
            raise

    def run(self, tasks: Sequence[PoolTask], title: str) -> Failures:
        """As `Pool.run`; StoppedError where a signal ends it, while the cluster's runs go on."""
        if not tasks:
            return {}
        from distributed import as_completed

        failed: Failures = {}
        halt = Flag()
        with progress(title, len(tasks), "runs") as shown, signals_set(halt, SAVING):
            names = {self._submit(task): task.name for task in tasks}
            ended = as_completed(names, loop=self._client.loop)
            while not ended.is_empty():
                if halt.is_set():
                    raise StoppedError(
                        "told to stop; runs under way on the cluster go on to their end: run the "
                        "same command for the rest when they have ended"
                    )
                for future in ended.next_batch(block=False):
                    name = names[future]
                    try:
                        result_of(future, name)
                    except (Mim3dError, OSError) as error:
                        failed[name] = error
                        shown.note(f"{name}: {error}")
                    shown.advance(1, name)
                time.sleep(LOOK_S)
        return failed

    def _submit(self, task: PoolTask) -> Any:
        return self._client.submit(
            run_there, str(Path.cwd()), task.call, task.arguments, pure=False
        )

    def close(self) -> None:
        """Drop what waits; what runs ends by itself, and the next study finds its result."""
        self._client.close()


def run_there(folder: str, call: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """A task on a worker: paths are those of the study's process, and torch has one thread."""
    import torch

    torch.set_num_threads(1)
    with chdir(folder):
        call(*arguments)


def result_of(future: Any, name: str) -> None:
    """Raise what the task raised; TrainingError where its workers kept dying."""
    from distributed.scheduler import KilledWorker

    try:
        future.result()
    except KilledWorker as error:
        raise TrainingError(
            f"the Dask workers that ran {name} died ({error.allowed_failures + 1} times, often the "
            "memory limit of `dask worker --memory-limit`): raise it, or run the same command "
            "without --dask"
        ) from error


def refuse_shared_workers(threads: dict[str, int], address: str) -> None:
    """ConfigError where a worker would run several tasks in one process."""
    for worker, count in threads.items():
        if count != 1:
            raise ConfigError(
                f"{address}: worker {worker} has {count} threads, and a run wants a process to "
                f"itself: start it with `dask worker {address} --nthreads 1` (`--nworkers` for "
                "several on one machine)"
            )


def refuse_other_files(client: Any, address: str, out: Path) -> None:
    """ConfigError where a worker sees another folder at the study's path, or none."""
    with NamedTemporaryFile(prefix=".seen-by-", dir=out) as probe:
        for place in (str(Path.cwd()), str(Path(probe.name).absolute())):
            for worker, there in client.run(os.path.exists, place).items():
                if not there:
                    raise ConfigError(
                        f"{address}: worker {worker} does not see {place}: --out and the folder "
                        "this runs in must lie on a file system that all workers share"
                    )
