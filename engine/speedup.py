"""How much faster one arm is than another: paired by seed, censoring told, intervals earned.

A ratio above 1 says that the first arm needed less. An arm that never reaches the target is
censored: its spending is only a lower bound, so the ratio becomes a bound ("at least", "at
most") or, where bounds point both ways, nothing. Intervals are given from `MIN_PAIRS` seeds on.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from mim3d.engine.curves import Curve, Reach, steps_to

MIN_PAIRS = 5
CLAIM_PAIRS = 10
LEVEL = 0.95
RESAMPLES = 9999


@dataclass(frozen=True)
class PairedRatio:
    """Geometric mean of `second / first` over pairs, and what it can carry.

    `bound` is "exact", "at least" (the second arm is censored in some pairs), "at most" (the
    first is) or "none" (`ratio` is None). `low` and `high` are the ends of the 95 % interval that
    the data support, one of them or both None otherwise, and `why` says so in words.
    """

    pairs: int
    complete: int
    first_reached: int
    second_reached: int
    bound: str
    ratio: float | None
    low: float | None
    high: float | None
    why: str
    per_pair: tuple[float, ...] = ()
    p_value: float | None = None

    @property
    def above_one(self) -> bool:
        """The interval lies above 1, and for exact ratios the t test agrees."""
        return self.low is not None and self.low > 1 and self._tested

    @property
    def below_one(self) -> bool:
        """The interval lies below 1, and for exact ratios the t test agrees."""
        return self.high is not None and self.high < 1 and self._tested

    @property
    def _tested(self) -> bool:
        return self.p_value is None or self.p_value < 1 - LEVEL


@dataclass(frozen=True)
class PairedDifference:
    """Mean of `first - second` over seeds with a t interval and p value where seeds suffice."""

    pairs: int
    mean: float | None
    low: float | None
    high: float | None
    p_value: float | None
    why: str


def paired_ratio(first: Sequence[Reach], second: Sequence[Reach]) -> PairedRatio:
    """Ratio of what two arms spent; entry i of both sequences is the same seed."""
    if len(first) != len(second):
        raise ValueError(f"arms must be paired: {len(first)} and {len(second)} runs")
    pairs = len(first)
    reached = sum(run.reached for run in first), sum(run.reached for run in second)
    complete = sum(a.reached and b.reached for a, b in zip(first, second, strict=True))
    bound, why = _bound(first, second)
    if bound == "none":
        return PairedRatio(pairs, complete, *reached, bound, None, None, None, why)
    ratios = tuple(b.cost / a.cost for a, b in zip(first, second, strict=True))
    ratio = math.exp(float(np.mean(np.log(ratios))))
    low, high, interval_why = _supported_interval(ratios, bound)
    why = " ".join(part for part in (why, interval_why) if part)
    p_value = None
    if bound == "exact" and pairs >= MIN_PAIRS:
        p_value = t_test(np.log(ratios)).p_value
    return PairedRatio(pairs, complete, *reached, bound, ratio, low, high, why, ratios, p_value)


def speedup_at(
    first: Mapping[int, Curve], second: Mapping[int, Curve], target: float
) -> PairedRatio:
    """Steps-to-target of `second` over `first` (smoothed curves by seed), over seeds both have."""
    seeds = sorted(first.keys() & second.keys())
    return paired_ratio(
        [steps_to(first[seed], target) for seed in seeds],
        [steps_to(second[seed], target) for seed in seeds],
    )


def ratio_curve(
    first: Mapping[int, Curve], second: Mapping[int, Curve], targets: Sequence[float]
) -> list[tuple[float, PairedRatio]]:
    """`speedup_at` for every target: the target decides the ratio, so all of it is shown."""
    return [(target, speedup_at(first, second, target)) for target in targets]


def paired_difference(first: Mapping[int, float], second: Mapping[int, float]) -> PairedDifference:
    """Paired t test of `first - second` over the seeds both have (two-sided)."""
    seeds = sorted(first.keys() & second.keys())
    pairs = len(seeds)
    if pairs == 0:
        return PairedDifference(0, None, None, None, None, "no seed was run for both arms")
    differences = np.array([first[seed] - second[seed] for seed in seeds])
    mean = float(differences.mean())
    if pairs < MIN_PAIRS:
        return PairedDifference(pairs, mean, None, None, None, too_few(pairs))
    return t_test(differences)


def t_test(differences: np.ndarray) -> PairedDifference:
    """Two-sided t test that the mean of paired differences is 0, with its 95 % interval."""
    pairs, mean = len(differences), float(differences.mean())
    if np.ptp(differences) == 0:
        why = "every seed gives the same difference: a t test has nothing to go by"
        return PairedDifference(pairs, mean, None, None, None, why)
    error = float(differences.std(ddof=1)) / math.sqrt(pairs)
    spread = stats.t(pairs - 1)
    half = float(spread.ppf(0.5 + LEVEL / 2)) * error
    p_value = 2.0 * float(spread.sf(abs(mean) / error))
    return PairedDifference(pairs, mean, mean - half, mean + half, p_value, "")


def too_few(pairs: int) -> str:
    """Why there is no interval, in words a report can print."""
    seeds = "one seed" if pairs == 1 else f"{pairs} seeds"
    return f"{seeds}: no interval can be supported (at least {MIN_PAIRS} are needed)"


def _bound(first: Sequence[Reach], second: Sequence[Reach]) -> tuple[str, str]:
    pairs = len(first)
    if pairs == 0:
        return "none", "no seed was run for both arms"
    reached = [(a.reached, b.reached) for a, b in zip(first, second, strict=True)]
    neither = reached.count((False, False))
    first_only, second_only = reached.count((True, False)), reached.count((False, True))
    if neither == pairs:
        return "none", "neither arm reached the target in any seed"
    if neither or (first_only and second_only):
        why = (
            f"no single ratio: of {pairs} seeds {reached.count((True, True))} reached it in both "
            f"arms, {first_only} only in the first, {second_only} only in the second, "
            f"{neither} in neither"
        )
        return "none", why
    if first_only:
        return "at least", f"the second arm did not reach it in {first_only} of {pairs} seeds."
    if second_only:
        return "at most", f"the first arm did not reach it in {second_only} of {pairs} seeds."
    return "exact", ""


def _supported_interval(
    ratios: Sequence[float], bound: str
) -> tuple[float | None, float | None, str]:
    """Both ends for exact ratios, the conservative end alone for bounds, none for few seeds."""
    if len(ratios) < MIN_PAIRS:
        return None, None, too_few(len(ratios))
    low, high = _bootstrap(np.log(ratios))
    if bound == "at least":
        return low, None, "Only the lower end of the interval is supported."
    if bound == "at most":
        return None, high, "Only the upper end of the interval is supported."
    return low, high, ""


def _bootstrap(logs: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the geometric mean; BCa, percentile where BCa is undefined."""
    if np.ptp(logs) == 0:
        return math.exp(logs[0]), math.exp(logs[0])
    ends = (math.nan, math.nan)
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = stats.bootstrap(
                (logs,),
                np.mean,
                confidence_level=LEVEL,
                n_resamples=RESAMPLES,
                method=method,
                rng=np.random.default_rng(0),
            ).confidence_interval
        ends = (float(found.low), float(found.high))
        if all(map(math.isfinite, ends)):
            break
    return math.exp(ends[0]), math.exp(ends[1])
