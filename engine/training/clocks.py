"""Time of a run: stages of one step, and all that was spent on training."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mim3d.engine.distributed.parallel import wait_for


class StageClock:
    """Seconds of each stage of a step: host time on a CPU, device events on a GPU.

    On a GPU it is active in logging steps only, and reading it waits for the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.active = False
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []

    def begin(self, active: bool) -> None:
        """Start a step."""
        self.active = active
        self._marks.clear()
        self.mark("")

    def mark(self, stage: str) -> None:
        """The stage that ends here."""
        if not self.active:
            return
        if self.on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((stage, event))
        else:
            self._marks.append((stage, time.perf_counter()))

    def read(self) -> dict[str, float]:
        """Seconds by stage of the step just done; stages of one name add up."""
        if self.on_gpu:
            torch.cuda.synchronize()
        spent: dict[str, float] = {}
        for (_, began), (stage, ended) in zip(self._marks, self._marks[1:], strict=False):
            if isinstance(began, torch.cuda.Event):
                assert isinstance(ended, torch.cuda.Event)
                seconds = began.elapsed_time(ended) / 1e3
            else:
                assert not isinstance(ended, torch.cuda.Event)
                seconds = ended - began
            spent[stage] = spent.get(stage, 0.0) + seconds
        return spent


class TrainingClock:
    """Seconds spent on training, earlier sittings included, without what is done while paused."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._before = 0.0
        self._began: float | None = None

    def start(self, before: float = 0.0) -> None:
        """Begin to count, on top of the seconds `before`."""
        self._before, self._began = before, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds up to now; 0 before the start."""
        return 0.0 if self._began is None else self._before + time.perf_counter() - self._began

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around scores and pictures, which are no training; waits for the device first."""
        wait_for(self.device)
        began = time.perf_counter()
        yield
        wait_for(self.device)
        if self._began is not None:
            self._began += time.perf_counter() - began
