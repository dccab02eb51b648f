"""Learning rate as a pure function of the step."""

import math

from mim3d.engine.training.config import ScheduleConfig


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
