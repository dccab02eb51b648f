"""A torch.profiler window over a few steps, written as a trace that chrome://tracing opens."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from mim3d.engine.config import LogConfig
from mim3d.engine.process_group import Ranks


class CommunicationProbe:
    """Seconds of a step that collectives took, from one profiled step; they overlap with others.

    Nothing else can tell: collectives are issued inside forward and backward. Only with several
    ranks, and once a run.
    """

    def __init__(self, ranks: Ranks, at_step: int) -> None:
        self.at_step = at_step if ranks.world > 1 else 0
        self.on_gpu = ranks.device.type == "cuda"
        self.seconds: float | None = None

    @contextmanager
    def window(self, done: int) -> Iterator[None]:
        """Around the step that follows `done` finished ones."""
        if done + 1 != self.at_step:
            yield
            return
        with torch.profiler.profile() as profile:
            yield
            if self.on_gpu:
                torch.cuda.synchronize()
        prefix = "ncclDevKernel" if self.on_gpu else "gloo:"
        spent = [
            event.device_time_total if self.on_gpu else event.cpu_time_total
            for event in profile.key_averages()
            if event.key.startswith(prefix)
        ]
        self.seconds = sum(spent) / 1e6


class ProfileWindow:
    """Profiles steps `profile_step` to `profile_step + profile_steps - 1` on the first rank."""

    def __init__(self, config: LogConfig, out: Path, ranks: Ranks) -> None:
        self.first_step = config.profile_step if ranks.first else 0
        self.last_step = self.first_step + config.profile_steps - 1
        self.file = out / f"trace-step-{self.first_step:08d}.json.gz"
        self._profile: torch.profiler.profile | None = None

    @contextmanager
    def window(self, done: int) -> Iterator[None]:
        """Around the step that follows `done` finished ones."""
        step = done + 1
        if self.first_step and step == self.first_step:
            self._profile = torch.profiler.profile(record_shapes=True)
            self._profile.start()
        yield
        if self._profile is not None and step >= self.last_step:
            self._profile.stop()
            self._profile.export_chrome_trace(str(self.file))
            self._profile = None
