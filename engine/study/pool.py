"""Independent tasks and where they run: `InProcess` here, else `Processes` or `DaskPool`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from mim3d.dataio.errors import Mim3dError
from mim3d.engine.distributed.stop import SAVING, Flag, signals_set
from mim3d.engine.errors import StoppedError

STOPPED = "told to stop, and what was under way is saved: run the same command to go on"
Failures = dict[str, Exception]
"""Errors that a user can mend, by the task's name."""


@dataclass(frozen=True)
class PoolTask:
    """A call of a top-level function with picklable arguments."""

    name: str
    call: Callable[..., None]
    arguments: tuple[Any, ...]


class Pool(ABC):
    """Where the tasks of every phase run; closed by `with`."""

    @abstractmethod
    def run(self, tasks: Sequence[PoolTask], title: str) -> Failures:
        """Run all tasks; returns the error of each that a user can mend, by name.

        Any other exception ends the rest, as does a signal that told this process to stop.
        """

    @abstractmethod
    def close(self) -> None:
        """Let the workers go."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class InProcess(Pool):
    """One task after the other, here."""

    def run(self, tasks: Sequence[PoolTask], title: str) -> Failures:
        """As `Pool.run`."""
        failed: Failures = {}
        halt = Flag()  # of its own: a run hears of a signal in its very last step too late
        with signals_set(halt, SAVING):
            for index, task in enumerate(tasks):
                print(f"[{index + 1}/{len(tasks)}] {task.name}", flush=True)
                try:
                    task.call(*task.arguments)
                except StoppedError:
                    raise  # the signal was meant for this process: for all that it runs
                except (Mim3dError, OSError) as error:
                    failed[task.name] = error
                    print(f"{task.name}: {error}", flush=True)
                if halt.is_set():
                    raise StoppedError(STOPPED)
        return failed

    def close(self) -> None:
        """There are none."""
