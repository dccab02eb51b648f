"""Seconds per stage of work on a device, without waiting for the device."""

import time
from collections import deque
from typing import Any

import torch


class StageTimes:
    """Adds up how long stages of one stream of work take on `device`.

    On a GPU a lap is the time between two CUDA events, read when the device has passed them; on a
    CPU it is wall-clock time. A batch is `start()`, then `lap(stage)` at the end of each stage.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._device = device
        self._totals: dict[str, float] = {}
        self._pending: deque[tuple[str, Any, Any]] = deque()
        self._last: Any = None

    def start(self) -> None:
        """The next stage begins now, or when the device gets here."""
        self._last = self._now()

    def lap(self, stage: str) -> None:
        """The stage that began last ends here, and the next one begins."""
        began, self._last = self._last, self._now()
        if self._on_gpu:
            self._pending.append((stage, began, self._last))
            self._collect()
        else:
            self._add(stage, self._last - began)

    def totals(self) -> dict[str, float]:
        """Seconds of each stage, as far as the device has come."""
        self._collect()
        return dict(self._totals)

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _collect(self) -> None:
        while self._pending and self._pending[0][2].query():
            stage, began, ended = self._pending.popleft()
            self._add(stage, began.elapsed_time(ended) / 1e3)

    def _add(self, stage: str, seconds: float) -> None:
        self._totals[stage] = self._totals.get(stage, 0.0) + seconds
