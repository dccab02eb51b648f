"""Interleaved rounds of steps, and what each contestant took in them."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from mim3d.bench.noise import in_turn, spread
from mim3d.bench.step.contestants import Contestant
from mim3d.bench.step.options import LR, StepBench
from mim3d.bench.timing import settle, wait_for
from mim3d.engine.training.train_step import Stepper


@dataclass(frozen=True)
class Timed:
    """Seconds of a step in each round: by the wall clock, of processors, waiting for data.

    Processor seconds are those of all threads of the process, the loader's too.
    """

    wall: tuple[float, ...]
    cpu: tuple[float, ...]
    waited: tuple[float, ...]
    optimiser_s: float = 0.0

    @property
    def step_s(self) -> float:
        """Median of the wall clock."""
        return spread(self.wall).median

    @property
    def waited_s(self) -> float:
        """Median of the waiting."""
        return spread(self.waited).median


def measure(
    options: StepBench, contestants: dict[str, Contestant], device: torch.device
) -> dict[str, Timed]:
    """Seconds per step of each contestant."""
    measure_rounds(options, contestants, device)
    return {
        name: Timed(
            tuple(one.wall),
            tuple(one.cpu),
            tuple(one.waited),
            0.0 if one.stepper is None else optimiser_seconds(one.stepper),
        )
        for name, one in contestants.items()
    }


def measure_rounds(
    options: StepBench, contestants: dict[str, Contestant], device: torch.device
) -> None:
    """Warm-up (which compiles), then rounds in turn, there and back; contestants keep them."""
    for one in contestants.values():
        seconds_per_step(one.run, options.warmup, device)
    for number in range(options.rounds):
        for name in in_turn(list(contestants), number):
            run_round(contestants[name], options.steps, device)


def run_round(one: Contestant, steps: int, device: torch.device) -> None:
    """One more round; what was read ahead is then left to settle, not to disturb the next one."""
    for _ in range(one.lead):
        one.run()
    wall, cpu, waited = seconds_per_step(one.run, steps, device)
    one.wall.append(wall)
    one.cpu.append(cpu)
    one.waited.append(waited)
    if one.lead and device.type == "cpu":  # on a GPU the driver's threads never rest
        settle()


def seconds_per_step(
    run: Callable[[], float], steps: int, device: torch.device
) -> tuple[float, float, float]:
    """Mean seconds of `steps` calls by wall clock and processors, and what they waited.

    The device is waited for at both ends.
    """
    wait_for(device.type)
    began, used = time.perf_counter(), time.process_time()
    waited = sum(run() for _ in range(steps))
    wait_for(device.type)
    wall, cpu = time.perf_counter() - began, time.process_time() - used
    return wall / steps, cpu / steps, waited / steps


def optimiser_seconds(stepper: Stepper) -> float:
    """The optimiser's part, the least of three measured steps."""
    parts = []
    for _ in range(3):
        stepper.step(LR, measure=True)
        parts.append(stepper.clock.read().get("optimiser", 0.0))  # none apart in a CUDA graph
    return min(parts)
