"""Learning rate as a pure function of the step.

The fall of wsd is 1 - sqrt (Hägele et al. 2024, "Scaling laws and compute-optimal training beyond
fixed training durations", section 3).
"""

import math
from dataclasses import replace

from mim3d.engine.training.config import ScheduleConfig

POLY = 0.9
"""Exponent of nnU-Net's PolyLRScheduler."""


def lr_at(schedule: ScheduleConfig, step: int, steps: int, head_steps: int = 0) -> float:
    """Rate of `step` (0-based) out of `steps`.

    In the first `head_steps`, where a head trains alone, it rises to the peak; then the schedule
    begins.
    """
    if schedule.epoch_steps > 1:
        length, warmup = schedule.epoch_steps, schedule.warmup_steps
        schedule = replace(schedule, epoch_steps=1, warmup_steps=warmup // length)
        step, steps, head_steps = step // length, -(-steps // length), head_steps // length
    if step < head_steps:
        return schedule.lr * (step + 1) / head_steps
    step, steps = step - head_steps, steps - head_steps
    if step < schedule.warmup_steps:
        return schedule.lr * (step + 1) / schedule.warmup_steps
    if schedule.kind == "constant":
        return schedule.lr
    start = schedule.decay_start(steps) if schedule.kind == "wsd" else schedule.warmup_steps
    done = min(max(step - start, 0) / max(steps - start, 1), 1.0)
    left = {
        "wsd": 1.0 - math.sqrt(done),
        "cosine": 0.5 * (1.0 + math.cos(math.pi * done)),
        "poly": (1.0 - done) ** POLY,
    }[schedule.kind]
    return schedule.lr * (schedule.final_share + (1.0 - schedule.final_share) * left)
