"""Learning rate as a pure function of the step."""

import math
from dataclasses import dataclass
from typing import Literal

from mim3d.engine.errors import ConfigError


@dataclass(frozen=True)
class ScheduleConfig:
    """Linear warm-up, then a cosine down to a share of the peak, or constant."""

    lr: float = 1.5e-4
    """Peak learning rate."""
    kind: Literal["cosine", "constant"] = "cosine"
    """Course after the warm-up."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    final_share: float = 0.0
    """Share of the peak that the cosine falls to; it arrives where a step more would begin."""

    def __post_init__(self) -> None:
        """Refuse rates that cannot train."""
        finite = math.isfinite(self.lr) and self.lr > 0.0
        if not finite or not 0.0 <= self.final_share <= 1.0 or self.warmup_steps < 0:
            raise ConfigError(
                f"schedule.lr {self.lr} must be positive, schedule.final_share {self.final_share} "
                f"in [0, 1] and schedule.warmup_steps {self.warmup_steps} not negative"
            )


def lr_at(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """Rate of `step` (0-based) out of `steps`."""
    if step < schedule.warmup_steps:
        return schedule.lr * (step + 1) / schedule.warmup_steps
    if schedule.kind == "constant":
        return schedule.lr
    left = max(steps - schedule.warmup_steps, 1)
    done = min((step - schedule.warmup_steps) / left, 1.0)
    cosine = 0.5 * (1.0 + math.cos(math.pi * done))
    return schedule.lr * (schedule.final_share + (1.0 - schedule.final_share) * cosine)
