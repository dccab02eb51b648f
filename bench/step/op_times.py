"""Each operation of a step by a clock of its own, and the optimiser's update by the same."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mim3d.dataio.loader.batch import Batch
from mim3d.engine.planning.laws import columns_of, names_of
from mim3d.engine.planning.operations import NOT_OPERATIONS, operation_of

Clock = Callable[[], float]


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
    multiprocessors: int = 0
    backward: bool = False
    tallies: dict[Signature, Tally] = field(default_factory=dict)
    launches: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        began = self.clock()
        result = func(*args, **(kwargs or {}))
        seconds = self.clock() - began
        if func.namespace in NOT_OPERATIONS:
            return result
        operation = operation_of(func, args, kwargs or {}, result, self.backward)
        if operation.kind != "view":
            columns = columns_of(operation, self.multiprocessors)
            size = operation.nbytes if operation.kind == "pass" else operation.flops
            key = Signature(names_of(operation), tuple(columns.items()), size)
            tally = self.tallies.setdefault(key, Tally())
            tally.seconds += seconds
            tally.calls += 1
            self.launches += 1
        return result

    @property
    def seconds(self) -> float:
        """Of all operations."""
        return sum(tally.seconds for tally in self.tallies.values())


def clock_of(device: torch.device) -> tuple[Clock, str]:
    """What operations are timed by, and its name: processor seconds where one thread computes."""
    if device.type == "cuda":

        def device_clock() -> float:
            torch.cuda.synchronize()
            return time.perf_counter()

        return device_clock, "wall clock, the device waited for"
    if torch.get_num_threads() == 1:
        return time.process_time, "processor seconds of one thread"
    return time.perf_counter, f"wall clock, {torch.get_num_threads()} threads"


def time_operations(
    module: torch.nn.Module, batch: Batch, clock: Clock, multiprocessors: int = 0
) -> OperationTimes:
    """Those of one forward and backward pass; gradients are there afterwards."""
    mode = OperationTimes(clock, multiprocessors)
    with mode:
        loss = module(batch)[0]
        mode.backward = True
        loss.backward()
    return mode
