"""A torch.profiler window over a few steps, written as a trace that chrome://tracing opens."""

from collections.abc import Callable
from pathlib import Path

import torch

from mim3d.engine.distributed.process_group import Ranks
from mim3d.engine.training.config import LogConfig
from mim3d.engine.training.trainer import Hook, Trainer


class Profile(Hook):
    """Profiles steps `profile_step` to `profile_step + profile_steps - 1` on the first rank.

    A run that ends sooner, at its last of `steps` or by a signal, leaves the trace of what it did.

    `settle` waits for collectives of other threads: one that begins inside the window and ends
    after it can crash the process (seen with gloo).
    """

    doing = "tracing"

    def __init__(
        self, config: LogConfig, out: Path, ranks: Ranks, steps: int, settle: Callable[[], None]
    ) -> None:
        self.settle = settle
        self.first_step = config.profile_step if ranks.first else 0
        self.last_step = min(self.first_step + config.profile_steps - 1, steps)
        self.file = out / f"trace-step-{self.first_step:08d}.json.gz"
        self._profile: torch.profiler.profile | None = None

    def before_step(self, trainer: Trainer) -> None:
        """Open the window before its first step."""
        if self.first_step and trainer.step + 1 == self.first_step:
            self.settle()
            self._profile = torch.profiler.profile(record_shapes=True)
            self._profile.start()

    def after_step(self, trainer: Trainer) -> None:
        """Close it after its last."""
        if trainer.step >= self.last_step:
            self.write()

    def end(self, trainer: Trainer) -> None:
        """Close a window that the run's end has cut short."""
        self.write()

    def write(self) -> None:
        """Write the trace of a window that is open."""
        if self._profile is None:
            return
        self.settle()
        self._profile.stop()
        self._profile.export_chrome_trace(str(self.file))
        self._profile = None
