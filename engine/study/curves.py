"""Learning curves: smoothing, the steps a curve needs to a target, the area under it.

Pure arithmetic on evaluations `(step, value)`; higher values are better (Dice, accuracy).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Curve:
    """Evaluations of one run: `steps` strictly increasing, `values` finite, at least one."""

    steps: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.values) or not self.steps:
            raise ValueError(
                f"a curve needs as many values as steps and at least one of each: "
                f"{len(self.steps)} steps, {len(self.values)} values"
            )
        if any(
            later <= earlier for earlier, later in zip(self.steps, self.steps[1:], strict=False)
        ):
            raise ValueError(f"steps must increase strictly: {self.steps}")
        if not np.isfinite(self.values).all():
            raise ValueError(f"values must be finite: {self.values}")

    @property
    def budget(self) -> float:
        """The last step evaluated: what was spent when a target was not reached."""
        return self.steps[-1]


@dataclass(frozen=True)
class Reach:
    """What one run spent to a target.

    `reached` False: it spent at least `cost` without reaching it (right-censored). `early` True:
    it was there by the first evaluation after step 0 and spent at most `cost` (left-censored).
    """

    cost: float
    reached: bool
    early: bool = False


def smooth(curve: Curve, window: int = 3) -> Curve:
    """Centred moving mean over `window` evaluations (odd); shorter, still centred, at the ends."""
    if window < 1 or window % 2 == 0:
        raise ValueError(f"smoothing window must be odd and positive, got {window}")
    last = len(curve.values) - 1
    means = []
    for index in range(last + 1):
        half = min(window // 2, index, last - index)
        means.append(float(np.mean(curve.values[index - half : index + half + 1])))
    return Curve(curve.steps, tuple(means))


def steps_to(curve: Curve, target: float) -> Reach:
    """First step at which the curve is at `target`, linear between evaluations.

    A crossing before the first evaluation after step 0 is `early`: the grid tells nothing finer,
    so its cost is that evaluation's step, an upper bound.
    """
    finest = next((step for step in curve.steps if step > 0), curve.steps[0])
    for index, (step, value) in enumerate(zip(curve.steps, curve.values, strict=True)):
        if value < target:
            continue
        if index == 0:
            return Reach(finest, reached=True, early=True)
        before_step, before = curve.steps[index - 1], curve.values[index - 1]
        share = (target - before) / (value - before)
        crossing = before_step + share * (step - before_step)
        return Reach(max(crossing, finest), reached=True, early=crossing < finest)
    return Reach(curve.budget, reached=False)


def best(curve: Curve) -> float:
    """Highest value of the curve."""
    return max(curve.values)


def best_trained(curve: Curve) -> float:
    """Highest value after step 0, where training has changed something; the value if one only."""
    trained = [v for step, v in zip(curve.steps, curve.values, strict=True) if step > 0]
    return max(trained or curve.values)


def area_under(curve: Curve) -> float:
    """Mean height of the curve over its steps (trapezoids over the span); the value if one only."""
    if len(curve.steps) == 1:
        return curve.values[0]
    span = curve.steps[-1] - curve.steps[0]
    return float(np.trapezoid(curve.values, curve.steps) / span)


@dataclass(frozen=True)
class Band:
    """Mean of several curves on one grid, with the lowest and highest value at each step."""

    steps: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def band(curves: Sequence[Curve]) -> Band:
    """Mean, minimum and maximum over the steps that all `curves` were evaluated at."""
    if not curves:
        raise ValueError("a band needs at least one curve")
    shared = sorted(set.intersection(*(set(curve.steps) for curve in curves)))
    if not shared:
        raise ValueError("the curves share no step")
    tables = [dict(zip(curve.steps, curve.values, strict=True)) for curve in curves]
    grid = np.array([[table[step] for step in shared] for table in tables])
    return Band(
        tuple(shared),
        tuple(map(float, grid.mean(0))),
        tuple(map(float, grid.min(0))),
        tuple(map(float, grid.max(0))),
    )
