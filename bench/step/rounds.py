"""Interleaved rounds of steps, and what each contestant took in them."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from mim3d.bench.step.contestants import Contestant
from mim3d.bench.step.options import LR, StepBench
from mim3d.bench.timing import wait_for
from mim3d.engine.training.train_step import Stepper


@dataclass(frozen=True)
class Timed:
    """Best seconds per step of one contestant, the optimiser's part, its waiting, all rounds."""

    step_s: float
    optimiser_s: float = 0.0
    waited_s: float = 0.0
    rounds: tuple[float, ...] = ()


def measure(
    options: StepBench, contestants: dict[str, Contestant], device: torch.device
) -> dict[str, Timed]:
    """Seconds per step: warm-up (which compiles), then rounds in turn, the best of each."""
    for one in contestants.values():
        seconds_per_step(one.run, options.warmup, device)
    for _ in range(options.rounds):
        for one in contestants.values():
            seconds, waited = seconds_per_step(one.run, options.steps, device)
            one.rounds.append(seconds)
            if seconds < one.best_s:
                one.best_s, one.waited_s = seconds, waited
    return {
        name: Timed(
            one.best_s,
            0.0 if one.stepper is None else optimiser_seconds(one.stepper),
            one.waited_s,
            tuple(one.rounds),
        )
        for name, one in contestants.items()
    }


def seconds_per_step(
    run: Callable[[], float], steps: int, device: torch.device
) -> tuple[float, float]:
    """Mean seconds of `steps` calls, the device waited for at both ends, and what they waited."""
    wait_for(device.type)
    began = time.perf_counter()
    waited = sum(run() for _ in range(steps))
    wait_for(device.type)
    return (time.perf_counter() - began) / steps, waited / steps


def optimiser_seconds(stepper: Stepper) -> float:
    """The optimiser's part, the least of three measured steps."""
    parts = []
    for _ in range(3):
        stepper.step(LR, measure=True)
        parts.append(stepper.clock.read()["optimiser"])
    return min(parts)
