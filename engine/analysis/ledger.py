"""Three ledgers of what a target cost: fine-tuning alone, with pretraining, and shared by k tasks.

Each is kept in optimiser steps, FLOPs and seconds. Evaluation and compile time are left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from mim3d.engine.study.curves import Reach

UNITS = ("steps", "flops", "seconds")
LEDGERS = ("fine-tuning", "with pretraining", "amortised")


@dataclass(frozen=True)
class Cost:
    """Steps, FLOPs and seconds (training only)."""

    steps: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if min(self.steps, self.flops, self.seconds) < 0:
            raise ValueError(f"costs cannot be negative: {self}")

    def of(self, unit: str) -> float:
        """The amount in one of `UNITS`."""
        if unit not in UNITS:
            raise ValueError(f"unit must be one of {UNITS}, got {unit!r}")
        return float(getattr(self, unit))

    def per_step(self) -> "Cost":
        """This cost divided by its steps."""
        if self.steps <= 0:
            raise ValueError(f"no step was taken: {self}")
        return Cost(1.0, self.flops / self.steps, self.seconds / self.steps)


@dataclass(frozen=True)
class Spending:
    """One arm by seed: its pretraining and the cost of a fine-tuning step.

    `pretraining` has a zero cost for scratch, and no entry where what it cost is not known.
    """

    pretraining: Mapping[int, Cost]
    step: Mapping[int, Cost]


def totals(
    spending: Spending, reaches: Mapping[int, Reach], ledger: str, unit: str, tasks: int
) -> dict[int, Reach]:
    """By seed, what reaching the target cost in `unit` by the rules of `ledger`.

    Formula: pretraining * share + step * steps, with share 0, 1 or 1 / tasks. Seeds whose cost is
    not known are left out.
    """
    if ledger not in LEDGERS:
        raise ValueError(f"ledger must be one of {LEDGERS}, got {ledger!r}")
    share = {"fine-tuning": 0.0, "with pretraining": 1.0, "amortised": 1.0 / tasks}[ledger]
    fixed = {seed: share * spending.pretraining[seed].of(unit) for seed in spending.pretraining}
    if share == 0.0:
        fixed = dict.fromkeys(reaches, 0.0)
    return {
        seed: replace(reach, cost=fixed[seed] + reach.cost * spending.step[seed].of(unit))
        for seed, reach in reaches.items()
        if seed in fixed and seed in spending.step
    }
