"""Whether arms had converged when their budget ended, and which classes they never found."""

from collections.abc import Mapping
from typing import cast

import numpy as np

from mim3d.engine.analysis.results import Group, Study
from mim3d.engine.analysis.summary import GroupSummary
from mim3d.engine.study.curves import Curve, band

RISING = 0.02
"""Score gained over the last fifth of the steps from which an arm had not converged."""
LAST = 0.8
NOTHING = 0.005
"""Dice of a class below which it was not found."""


def unconverged(group: GroupSummary) -> dict[str, float]:
    """By arm, what its mean smoothed curve gained over the last fifth, where that is `RISING`."""
    gains = {arm: late_gain(curves) for arm, curves in group.curves.items() if curves}
    return {arm: gain for arm, gain in gains.items() if gain >= RISING}


def late_gain(curves: Mapping[int, Curve]) -> float:
    """Mean score at the end less that at four fifths of the steps."""
    found = band(list(curves.values()))
    before = float(np.interp(LAST * found.steps[-1], found.steps, found.mean))
    return found.mean[-1] - before


def never_found(study: Study, group: Group) -> dict[str, list[int]]:
    """By arm, the classes (from 1) whose final Dice is nothing in every seed."""
    found = {arm: classes_never_found(study, group, arm) for arm in study.arms(group)}
    return {arm: classes for arm, classes in found.items() if classes}


def classes_never_found(study: Study, group: Group, arm: str) -> list[int]:
    """The same of one arm; a class that no scored subject has is not counted."""
    found: dict[int, list[float]] = {}
    for by_class in study.finals(group, arm, "dice_by_class").values():
        for k, dice in enumerate(cast("list[float | None]", by_class), 1):
            if dice is not None:
                found.setdefault(k, []).append(dice)
    return sorted(k for k, values in found.items() if max(values) < NOTHING)
