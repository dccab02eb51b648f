"""Learning rate as a pure function of the step.

The fall of wsd is 1 - sqrt (Hägele et al. 2024, "Scaling laws and compute-optimal training beyond
fixed training durations", section 3).
"""

import math

from mim3d.engine.training.config import ScheduleConfig


def lr_at(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """Rate of `step` (0-based) out of `steps`."""
    if step < schedule.warmup_steps:
        return schedule.lr * (step + 1) / schedule.warmup_steps
    if schedule.kind == "constant":
        return schedule.lr
    if schedule.kind == "wsd":
        start = schedule.decay_start(steps)
        done = min(max(step - start, 0) / max(steps - start, 1), 1.0)
        left = 1.0 - math.sqrt(done)
        return schedule.lr * (schedule.final_share + (1.0 - schedule.final_share) * left)
    left = max(steps - schedule.warmup_steps, 1)
    done = min((step - schedule.warmup_steps) / left, 1.0)
    cosine = 0.5 * (1.0 + math.cos(math.pi * done))
    return schedule.lr * (schedule.final_share + (1.0 - schedule.final_share) * cosine)
