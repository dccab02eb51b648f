"""Laws fitted to timed operations: non-negative least squares of relative errors.

An operation counts by the root of the time that all like it take: a law shall be right where the
seconds are, and not far off where they are few, for another model may have them there. Passes of a
name of which too few sizes were met, or which take too little time, share a law.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from mim3d.bench.step.op_times import Signature
from mim3d.engine.planning.laws import COLUMNS, Law

FEWEST = 3
"""Sizes of a name that a law of its own is fitted to."""
LEAST = 0.002
"""Share of all time that a name must take for one."""


@dataclass(frozen=True)
class Sample:
    """Operations of one signature: seconds of one, and how many there were."""

    signature: Signature
    seconds: float
    calls: float


def fitted_laws(samples: Sequence[Sample]) -> dict[str, Law]:
    """Laws of all families that the samples tell of."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        for name in sample.signature.names:
            groups.setdefault(name, []).append(sample)
    total = sum(sample.seconds * sample.calls for sample in samples)
    laws = {
        name: fitted(name, group)
        for name, group in groups.items()
        if " " not in name or enough(group, total)
    }
    others = [one for one in groups.get("pass", []) if one.signature.names[0] not in laws]
    if enough(others, total):
        laws["pass"] = fitted("pass", others)
    return laws


def enough(group: Sequence[Sample], total: float) -> bool:
    """Whether a name's operations are worth a law of their own."""
    sizes = {sample.signature.size for sample in group}
    return len(sizes) >= FEWEST and sum(s.seconds * s.calls for s in group) >= LEAST * total


def fitted(name: str, group: Sequence[Sample]) -> Law:
    """The law of one family."""
    columns = COLUMNS[name.split(" ", maxsplit=1)[0]]
    rows = [dict(sample.signature.columns) for sample in group]
    units = np.array([[row[column] for column in columns] for row in rows])
    seconds = np.array([sample.seconds for sample in group])
    calls = np.array([sample.calls for sample in group])
    found = solved(units, seconds, calls)
    # Squares of relative errors forgive what is too low: the sum of all is set right.
    found *= (calls * seconds).sum() / max(float((calls * (units @ found)).sum()), 1e-30)
    error = float((calls * np.abs(units @ found - seconds)).sum() / (calls * seconds).sum())
    return Law(
        dict(zip(columns, map(float, found), strict=True)),
        "measured",
        spread=error,
        largest=max(sample.signature.size for sample in group) or 1.0,
        samples=len(group),
    )


def solved(units: np.ndarray, seconds: np.ndarray, calls: np.ndarray) -> np.ndarray:
    """Seconds a unit (k,), none below 0, of rows (n, k) that were met `calls` times."""
    seconds = np.maximum(seconds, 1e-12)
    return least_squares(units, seconds, (calls * seconds) ** 0.25 / seconds)


def least_squares(units: np.ndarray, seconds: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Seconds a unit (k,), none below 0, by which rows (n, k) are nearest, each by its weight."""
    scale = np.maximum(np.abs(units).max(axis=0), 1e-30)
    found, _ = nnls(units / scale * weights[:, None], seconds * weights)
    return found / scale


def median_samples(rounds: Sequence[Mapping[Signature, tuple[float, int]]]) -> list[Sample]:
    """Of each signature the median over rounds of its mean, from seconds and calls of a round."""
    keys = dict.fromkeys(key for one in rounds for key in one)
    found = []
    for key in keys:
        met = [one[key] for one in rounds if key in one]
        means = [seconds / calls for seconds, calls in met]
        found.append(Sample(key, float(np.median(means)), float(np.median([c for _, c in met]))))
    return found
