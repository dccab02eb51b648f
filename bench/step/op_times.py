"""Each operation of a step by a clock of its own.

On a GPU an operation lies between two events, which are read when all is done. The device is held
up before the first, so that the host is ahead of it and no event waits for a launch.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mim3d.bench.timing import cuda_instant
from mim3d.dataio.loader.batch import Batch
from mim3d.engine.planning.laws import columns_of, names_of
from mim3d.engine.planning.operations import NOT_OPERATIONS, operation_of

Clock = Callable[[], Any]
"""A moment; later minus earlier is in seconds."""
HELD_CYCLES = 1 << 29
"""Of a GPU: a quarter of a second, about, in which the host sends off a step's operations."""


@dataclass(frozen=True)
class Signature:
    """Operations that are the same but for what is in their tensors."""

    names: tuple[str, ...]
    """Families, the most particular first."""
    columns: tuple[tuple[str, float], ...]
    size: float
    """Arithmetic, or bytes of a pass."""


@dataclass
class Tally:
    """Seconds and number of the operations of a signature."""

    seconds: float = 0.0
    calls: int = 0


@dataclass
class OperationTimes(TorchDispatchMode):
    """Times every operation that is dispatched while it is on."""

    clock: Clock
    """Of one operation; moments are subtracted when the step is over."""
    multiprocessors: int = 0
    backward: bool = False
    moments: list[tuple[Signature, Any, Any]] = field(default_factory=list)
    tallies: dict[Signature, Tally] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        began = self.clock()
        result = func(*args, **(kwargs or {}))
        ended = self.clock()
        if func.namespace in NOT_OPERATIONS:
            return result
        operation = operation_of(func, args, kwargs or {}, result, self.backward)
        if operation.kind != "view":
            columns = columns_of(operation, self.multiprocessors)
            size = operation.nbytes if operation.kind == "pass" else operation.flops
            key = Signature(names_of(operation), tuple(columns.items()), size)
            self.moments.append((key, began, ended))
        return result

    def add_up(self) -> None:
        """Make tallies of the moments."""
        for key, began, ended in self.moments:
            tally = self.tallies.setdefault(key, Tally())
            tally.seconds += ended - began
            tally.calls += 1

    @property
    def launches(self) -> int:
        """Operations that run something."""
        return sum(tally.calls for tally in self.tallies.values())

    @property
    def seconds(self) -> float:
        """Of all operations."""
        return sum(tally.seconds for tally in self.tallies.values())


@dataclass(frozen=True)
class Clocks:
    """What operations and whole steps are timed by."""

    operation: Clock
    whole: Clock
    name: str


def clocks_of(device: torch.device) -> Clocks:
    """Of a device; processor seconds where one thread computes."""
    if device.type == "cuda":

        def waited() -> float:
            torch.cuda.synchronize()
            return time.perf_counter()

        return Clocks(cuda_instant, waited, "events on the device")
    if torch.get_num_threads() == 1:
        return Clocks(time.process_time, time.process_time, "processor seconds of one thread")
    name = f"wall clock, {torch.get_num_threads()} threads"
    return Clocks(time.perf_counter, time.perf_counter, name)


def time_operations(
    module: torch.nn.Module, batch: Batch, clock: Clock, multiprocessors: int = 0
) -> OperationTimes:
    """Those of one forward and backward pass; gradients are there afterwards."""
    mode = OperationTimes(clock, multiprocessors)
    if batch.image.is_cuda:
        torch.cuda._sleep(HELD_CYCLES)
    with mode:
        loss = module(batch)[0]
        mode.backward = True
        loss.backward()
    mode.add_up()
    return mode
