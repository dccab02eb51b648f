"""From a study's rows to the comparisons a report prints: targets, ratios, ledgers, finals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from statistics import fmean, stdev

from mim3d.engine.curves import Curve, Reach, area_under, best, steps_to
from mim3d.engine.ledger import LEDGERS, UNITS, ledger_ratio, totals
from mim3d.engine.speedup import (
    PairedDifference,
    PairedRatio,
    paired_difference,
    ratio_curve,
    speedup_at,
)
from mim3d.engine.study_results import SCRATCH, Group, Study

TARGETS = (0.8, 0.9, 0.95)
PRIMARY = 0.9
MIM = ("mae", "simmim")
CURVE_POINTS = 41


@dataclass(frozen=True)
class Target:
    """A share of scratch's best smoothed score (mean over seeds), as a score."""

    share: float
    score: float


@dataclass(frozen=True)
class ArmSummary:
    """One arm in one group; `reaches` has, by target share, what each seed needed."""

    arm: str
    seeds: tuple[int, ...]
    final: Mapping[int, float]
    hd95: Mapping[int, float]
    area: Mapping[int, float]
    reaches: Mapping[float, Mapping[int, Reach]]


@dataclass(frozen=True)
class Comparison:
    """How much faster `first` is than `second` in one group; ledgers are at the primary target."""

    first: str
    second: str
    at: Mapping[float, PairedRatio]
    along: Sequence[tuple[float, PairedRatio]]
    ledgers: Mapping[tuple[str, str], PairedRatio]
    final: PairedDifference
    area: PairedDifference


@dataclass(frozen=True)
class GroupSummary:
    """All of one group."""

    group: Group
    reference: str
    targets: tuple[Target, ...]
    arms: tuple[ArmSummary, ...]
    comparisons: tuple[Comparison, ...]
    untrained: tuple[str, ...]
    curves: Mapping[str, Mapping[int, Curve]] = field(repr=False)

    def comparison(self, first: str, second: str) -> Comparison | None:
        """The comparison of two arms, None where it was not made."""
        found = (c for c in self.comparisons if (c.first, c.second) == (first, second))
        return next(found, None)


def summarise(study: Study) -> list[GroupSummary]:
    """Every group of the study; arms whose pretext was not learned are compared with nobody."""
    return [summarise_group(study, group) for group in study.groups()]


def summarise_group(study: Study, group: Group) -> GroupSummary:
    """Targets, arms and comparisons of one group."""
    settings = study.about.get("settings", {})
    window = int(settings.get("smoothing", 3))
    names = study.arms(group)
    curves = {arm: study.curves(group, arm, window) for arm in names}
    reference = SCRATCH if SCRATCH in names else names[0]
    targets = make_targets(curves[reference], settings.get("targets", TARGETS))
    arms = tuple(summarise_arm(study, group, arm, curves[arm], targets) for arm in names)
    valid = [arm for arm in names if trained(study, group, arm)]
    pairs = [pair for pair in pairs_of(names) if set(pair) <= set(valid)]
    comparisons = tuple(compare(study, group, curves, targets, *pair) for pair in pairs)
    untrained = tuple(arm for arm in names if arm not in valid)
    return GroupSummary(group, reference, targets, arms, comparisons, untrained, curves)


def make_targets(reference: Mapping[int, Curve], shares: Sequence[float]) -> tuple[Target, ...]:
    """The shares of the reference's best smoothed score, averaged over its seeds."""
    top = fmean(best(curve) for curve in reference.values())
    return tuple(Target(share, share * top) for share in shares)


def pairs_of(arms: Sequence[str]) -> list[tuple[str, str]]:
    """Comparisons of interest: masked over contrastive first, then each over scratch."""
    others = [arm for arm in arms if arm != SCRATCH]
    contrastive = [arm for arm in others if method_of(arm) == "simclr"]
    masked = [arm for arm in others if method_of(arm) in MIM]
    pairs = [(m, c) for c, m in product(contrastive, masked)]
    if SCRATCH in arms:
        pairs += [(arm, SCRATCH) for arm in others]
    return pairs


def method_of(arm: str) -> str:
    """`simclr` of `simclr-flops`: the method an arm's name begins with."""
    return arm.split("-", 1)[0]


def trained(study: Study, group: Group, arm: str) -> bool:
    """Whether the arm may be compared: it has no pretext task, or has learned it."""
    pretraining = study.pretraining_of(arm, group.variant)
    return pretraining is None or bool(pretraining["trained"])


def summarise_arm(
    study: Study, group: Group, arm: str, curves: Mapping[int, Curve], targets: Sequence[Target]
) -> ArmSummary:
    """Final scores, areas, and steps to each target."""
    return ArmSummary(
        arm,
        tuple(curves),
        study.finals(group, arm),
        study.finals(group, arm, "hd95"),
        {seed: area_under(curve) for seed, curve in curves.items()},
        {
            target.share: {seed: steps_to(curve, target.score) for seed, curve in curves.items()}
            for target in targets
        },
    )


def compare(
    study: Study,
    group: Group,
    curves: Mapping[str, Mapping[int, Curve]],
    targets: Sequence[Target],
    first: str,
    second: str,
) -> Comparison:
    """Everything about one pair of arms."""
    one, other = curves[first], curves[second]
    highest = max(best(curve) for arm in (one, other) for curve in arm.values())
    grid = [highest * k / CURVE_POINTS for k in range(CURVE_POINTS // 3, CURVE_POINTS + 1)]
    settings = study.about.get("settings", {})
    tasks = int(settings.get("tasks", 10))
    primary = primary_target(targets, float(settings.get("primary", PRIMARY)))
    return Comparison(
        first,
        second,
        {target.share: speedup_at(one, other, target.score) for target in targets},
        ratio_curve(one, other, grid),
        {
            (ledger, unit): one_ledger(
                study, group, (first, one), (second, other), primary, ledger, unit, tasks
            )
            for ledger, unit in product(LEDGERS, UNITS)
        },
        paired_difference(study.finals(group, first), study.finals(group, second)),
        paired_difference(
            {seed: area_under(curve) for seed, curve in one.items()},
            {seed: area_under(curve) for seed, curve in other.items()},
        ),
    )


def primary_target(targets: Sequence[Target], share: float) -> Target:
    """The target that the verdict is about, fixed before the study ran."""
    return min(targets, key=lambda target: abs(target.share - share))


def one_ledger(
    study: Study,
    group: Group,
    first: tuple[str, Mapping[int, Curve]],
    second: tuple[str, Mapping[int, Curve]],
    target: Target,
    ledger: str,
    unit: str,
    tasks: int,
) -> PairedRatio:
    """Ratio of what both arms spent to the target by one ledger in one unit."""
    sides = []
    for arm, curves in (first, second):
        reaches = {seed: steps_to(curve, target.score) for seed, curve in curves.items()}
        sides.append(totals(study.spending(group, arm), reaches, ledger, unit, tasks))
    return ledger_ratio(*sides)


def mean_and_spread(values: Mapping[int, float]) -> tuple[float, float]:
    """Mean over seeds and standard deviation (NaN of a single seed)."""
    numbers = list(values.values())
    if not numbers:
        return math.nan, math.nan
    return fmean(numbers), stdev(numbers) if len(numbers) > 1 else math.nan
