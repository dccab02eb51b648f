"""Arms, ratios, intervals and p values in words."""

import math
from collections.abc import Mapping, Sequence
from statistics import median

from mim3d.engine.analysis.results import encoder_title
from mim3d.engine.analysis.speedup import PairedDifference, PairedRatio
from mim3d.engine.analysis.summary import mean_and_std
from mim3d.engine.study.config import Row
from mim3d.engine.study.curves import Reach


def median_reach(reaches: Mapping[int, Reach]) -> str:
    """`120 (5/5)`, or `> 400 (2/5)` where the median run is censored.

    Of two middle runs of which one is censored the mean is a lower bound: `> 300 (1/2)`.
    """
    runs = list(reaches.values())
    if not runs:
        return "–"
    hit = sum(run.reached for run in runs)
    middle = median(run.cost if run.reached else math.inf for run in runs)
    shown = f"{middle:.0f}"
    if not math.isfinite(middle):
        # One that was there early may have needed nothing.
        least = median(0.0 if run.early else run.cost for run in runs)
        shown = f"> {least:.0f}"
    if any(run.early and run.cost >= middle for run in runs):
        shown = f"≤ {shown}"
    return f"{shown} ({hit}/{len(runs)})"


def plus_minus(values: Mapping[int, float], digits: int = 3) -> str:
    """`0.712 ± 0.010`, without the spread for one seed."""
    mean, deviation = mean_and_std(values)
    if math.isnan(mean):
        return "–"
    tail = "" if math.isnan(deviation) else f" ± {deviation:.{digits}f}"
    return f"{mean:.{digits}f}{tail}"


def difference(mean: float | None, p_value: float | None) -> str:
    """`+0.012`, with its p value where there is one."""
    if mean is None:
        return "–"
    return beside(mean, 0.0, 3, "+") + ("" if p_value is None else f"\n{p_in_words(p_value)}")


def paired_in_words(found: PairedDifference | None) -> str:
    """`+0.012`, with its interval below where there is one; a dash without a mean."""
    if found is None or found.mean is None or found.low is None or found.high is None:
        return difference(found and found.mean, None)
    return f"{difference(found.mean, None)}\n{ends_in_words(found.low, found.high)}"


def ends_in_words(low: float, high: float) -> str:
    """`-0.016 to +0.0003`: the ends of a difference's interval, each on its side of 0."""
    return f"{beside(low, 0.0, 3, '+')} to {beside(high, 0.0, 3, '+')}"


def number(value: float | None, digits: int) -> str:
    """A number with thousands separated, or a dash."""
    return "–" if value is None else f"{value:,.{digits}f}"


NAMES = {"scratch": "scratch", "mae": "MAE", "simmim": "SimMIM", "simclr": "SimCLR"}


def arm_name(arm: str) -> str:
    """How an arm is written: `MAE`, `SimCLR (equal FLOPs)`."""
    method, _, rest = arm.partition("-")
    name = NAMES.get(method)
    if name is None:
        return arm
    return f"{name} (equal FLOPs)" if rest == "flops" else " ".join(filter(None, [name, rest]))


def on_encoder(encoder: str) -> str:
    """` on Primus`; empty where all arms have one encoder."""
    return f" on {encoder_title(encoder)}" if encoder else ""


def pretrained_arm(pretraining: Row) -> str:
    """`MAE`, or `MAE on Primus`, of a pretraining's entry."""
    return arm_name(pretraining["arm"]) + on_encoder(pretraining.get("encoder", ""))


def p_of_ratio(found: PairedRatio, corrected: float | None = None) -> str:
    """The p of a ratio's t test, its own or `corrected`; of a bound it is itself an upper bound."""
    p_value = (found.p_value or 0.0) if corrected is None else corrected
    if found.bound == "exact" or p_value < 0.001:
        return p_in_words(p_value)
    return f"p ≤ {rounded_up(p_value)}"


def rounded_up(p_value: float) -> str:
    """An upper bound of p that rounding leaves one, with digits that show its side of 0.05."""
    for digits in range(3, 9):
        scale = 10.0**digits
        up = min(1.0, math.ceil(p_value * scale - 1e-6) / scale)
        if (up < 0.05) == (p_value < 0.05):
            return "1" if up == 1.0 else f"{up:.{digits}f}"
    return f"{p_value:g}"


def ratio_in_words(found: PairedRatio) -> str:
    """`1.42×`, `at least 1.42×`, or a dash."""
    if found.ratio is None:
        return "–"
    bound = "" if found.bound == "exact" else f"{found.bound} "
    return f"{bound}{found.ratio:.2f}×"


def interval_in_words(found: PairedRatio) -> str:
    """The 95 % interval as far as it is supported, or why there is none."""
    low, high = (None if end is None else beside(end, 1.0, 2) for end in (found.low, found.high))
    if low is not None and high is not None:
        return f"95 % interval {low} to {high}"
    if low is not None:
        return f"95 % interval from {low} up"
    if high is not None:
        return f"95 % interval up to {high}"
    return found.why


def beside(value: float, line: float, digits: int, sign: str = "") -> str:
    """A number with as many digits as show on which side of `line` it lies.

    `1.002`, for an interval from 1.00 up would not tell whether it leaves 1 out.
    """
    for more in range(digits, digits + 6):
        shown = f"{value:{sign}.{more}f}"
        if float(shown) != line:
            return shown
    return f"{value:{sign}.{digits}f}"


def seed_list(seeds: Sequence[int]) -> str:
    """`seed 3`, `seeds 0, 2`."""
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def p_in_words(p_value: float) -> str:
    """`p = 0.012`, `p < 0.001`, or `p = 0.0496`: rounding hides no side of 0.05."""
    return "p < 0.001" if p_value < 0.001 else f"p = {beside(p_value, 0.05, 3)}"
