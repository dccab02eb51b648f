"""From a study's rows to the comparisons a report prints: targets, ratios, ledgers, finals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from statistics import fmean, stdev
from typing import Any

from mim3d.engine.analysis.fixed_target import fixed_target
from mim3d.engine.analysis.ledger import LEDGERS, UNITS, Spending, totals
from mim3d.engine.analysis.results import Group, Study
from mim3d.engine.analysis.speedup import (
    PairedDifference,
    PairedRatio,
    no_ratio,
    paired_by_seed,
    paired_difference,
)
from mim3d.engine.study.curves import Curve, Reach, area_under, best, best_trained, steps_to
from mim3d.engine.study.encoders import METHODS, SCRATCH

TARGETS = (0.8, 0.9, 0.95)
PRIMARY = 0.9
MIM = ("mae", "simmim")
CURVE_POINTS = 41
MIN_GAIN = 0.05
"""Score above an untrained model's from which a target counts: below, noise alone may cross it."""
Reaches = Mapping[int, Reach]


@dataclass(frozen=True)
class Target:
    """A share of scratch's best smoothed score (mean over seeds), as a score.

    `refused` says why it is none: an untrained model scores about as much, or nothing is known.
    """

    share: float
    score: float
    refused: str = ""


@dataclass(frozen=True)
class ArmSummary:
    """One arm in one group; `reaches` has, by target share, what each seed needed.

    `diverged` seeds count as never reaching a target; `missing` ones were not run or failed.
    """

    arm: str
    seeds: tuple[int, ...]
    final: Mapping[int, float]
    hd95: Mapping[int, float]
    area: Mapping[int, float]
    reaches: Mapping[float, Reaches]
    diverged: tuple[int, ...] = ()
    missing: tuple[int, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """How much faster `first` is than `second` in one group; ledgers are at the primary target.

    `along` has the ratio at many scores, `fixed` at the group's fixed one. `planned` is the number
    of seeds that either was to have.
    """

    first: str
    second: str
    at: Mapping[float, PairedRatio]
    along: Sequence[tuple[float, PairedRatio]]
    ledgers: Mapping[tuple[str, str], PairedRatio]
    final: PairedDifference
    area: PairedDifference
    planned: int
    fixed: PairedRatio
    encoder: str = ""
    """That both arms have, where arms of the study have several."""


@dataclass(frozen=True)
class GroupSummary:
    """All of one group; `fixed` is the target that tuning seeds set, where there are any."""

    group: Group
    reference: str
    targets: tuple[Target, ...]
    arms: tuple[ArmSummary, ...]
    comparisons: tuple[Comparison, ...]
    untrained: tuple[str, ...]
    curves: Mapping[str, Mapping[int, Curve]] = field(repr=False)
    fixed: Target | None = None

    def comparison(self, first: str, second: str) -> Comparison | None:
        """The comparison of two arms, None where it was not made."""
        found = (c for c in self.comparisons if (c.first, c.second) == (first, second))
        return next(found, None)


def summarise(study: Study) -> list[GroupSummary]:
    """Every group of the study; arms that did not learn their pretext are compared with nobody."""
    return [summarise_group(study, group) for group in study.groups()]


def summarise_group(study: Study, group: Group) -> GroupSummary:
    """Targets, arms and comparisons of one group."""
    settings = study.about.get("settings", {})
    window = int(settings.get("smoothing", 3))
    names = study.arms(group)
    curves = {arm: study.curves(group, arm, window) for arm in names}
    reference = SCRATCH if SCRATCH in names else names[0]
    base = untrained_score(study.chance(group), curves)
    targets = make_targets(curves[reference], settings.get("targets", TARGETS), base)
    arms = tuple(summarise_arm(study, group, arm, curves, targets) for arm in names)
    untrained = tuple(arm for arm in names if study.is_untrained(group, arm))
    flops_of = study.about.get("config", {}).get("flops_of", "mae")
    pairs = [pair for pair in pairs_of(names, flops_of) if not set(pair) & set(untrained)]
    sides = {arm: side(study, group, arm, curves) for arm in names}
    planned = len(study.planned(group))
    share = float(settings.get("primary", PRIMARY))
    score = fixed_target(study, group, reference, share, window)
    fixed = None if score is None else a_target(share, score, base)
    comparisons = tuple(
        compare(
            *(settings, targets, fixed, sides[first], sides[second], base, planned, group.encoder)
        )
        for first, second in pairs
    )
    return GroupSummary(group, reference, targets, arms, comparisons, untrained, curves, fixed)


def untrained_score(chance: float, curves: Mapping[str, Mapping[int, Curve]]) -> float:
    """What a model scores before it is trained: the best arm's mean at step 0, chance at least."""
    starts = [
        [curve.values[0] for curve in by_seed.values() if curve.steps[0] == 0]
        for by_seed in curves.values()
    ]
    return max([chance, *(fmean(values) for values in starts if values)])


def make_targets(
    reference: Mapping[int, Curve], shares: Sequence[float], base: float
) -> tuple[Target, ...]:
    """The shares of the reference's best smoothed score, averaged over its seeds.

    Refused within `MIN_GAIN` of `base`, what an untrained model scores.
    """
    if not reference:
        return tuple(Target(share, 0.0, "the reference arm has no scores") for share in shares)
    top = fmean(best_trained(curve) for curve in reference.values())
    return tuple(a_target(share, share * top, base) for share in shares)


def a_target(share: float, score: float, base: float) -> Target:
    """A target, refused within `MIN_GAIN` of what an untrained model scores."""
    if score >= base + MIN_GAIN:
        return Target(share, score)
    why = f"is no target: not {MIN_GAIN:g} above the {base:.3f} of an untrained model"
    return Target(share, score, f"{score:.3f} {why}")


def pairs_of(arms: Sequence[str], flops_of: str = "mae") -> list[tuple[str, str]]:
    """Comparisons of interest: all others over contrastive arms first, then each over scratch.

    An arm is compared with the contrastive arm of the same budget, crops or FLOPs, alone.
    """
    others = [arm for arm in arms if arm != SCRATCH]
    contrastive = [arm for arm in others if method_of(arm) == "simclr"]
    rivals = [arm for arm in others if arm not in contrastive]
    pairs = [
        (arm, c)
        for c, arm in product(contrastive, rivals)
        if budgets(arm, flops_of, arms) & budgets(c, flops_of, arms)
    ]
    if SCRATCH in arms:
        pairs += [(arm, SCRATCH) for arm in others]
    return pairs


def budgets(arm: str, flops_of: str, arms: Sequence[str]) -> frozenset[str]:
    """By which rules an arm's pretraining was sized; an arm by path was sized by nobody here."""
    if arm.endswith("-flops"):
        return frozenset({"flops"})
    if (arm in METHODS or f"{arm}-flops" in arms) and arm != flops_of:
        return frozenset({"crops"})
    return frozenset({"crops", "flops"})


def method_of(arm: str) -> str:
    """`simclr` of `simclr-flops`: the method an arm's name begins with."""
    return arm.split("-", 1)[0]


@dataclass(frozen=True)
class Side:
    """One arm of a comparison: its curves, what it spent, its scores, and which runs were lost."""

    arm: str
    curves: Mapping[int, Curve]
    spending: Spending
    final: Mapping[int, float]
    diverged: Reaches

    def reaches(self, score: float) -> dict[int, Reach]:
        """What each seed needed to a score."""
        return reaches_of(self.curves, self.diverged, score)

    @property
    def areas(self) -> dict[int, float]:
        """Area under each seed's curve."""
        return {seed: area_under(curve) for seed, curve in self.curves.items()}


def side(study: Study, group: Group, arm: str, curves: Mapping[str, Mapping[int, Curve]]) -> Side:
    """An arm of a group, ready to be compared."""
    lost = lost_runs(study.diverged(group, arm), curves)
    final = study.finals(group, arm)
    return Side(arm, curves[arm], study.spending(group, arm), final, lost)


def lost_runs(seeds: Sequence[int], curves: Mapping[str, Mapping[int, Curve]]) -> dict[int, Reach]:
    """Diverged runs: never at any target, for all of the group's budget."""
    budgets = [curve.budget for by_seed in curves.values() for curve in by_seed.values()]
    return dict.fromkeys(seeds, Reach(max(budgets, default=0.0), reached=False))


def reaches_of(curves: Mapping[int, Curve], diverged: Reaches, score: float) -> dict[int, Reach]:
    """What each seed needed to a score, diverged ones included."""
    found = {seed: steps_to(curve, score) for seed, curve in curves.items()}
    return dict(sorted({**diverged, **found}.items()))


def summarise_arm(
    study: Study,
    group: Group,
    arm: str,
    curves: Mapping[str, Mapping[int, Curve]],
    targets: Sequence[Target],
) -> ArmSummary:
    """Final scores, areas, and steps to each target."""
    own, diverged = curves[arm], study.diverged(group, arm)
    lost = lost_runs(diverged, curves)
    return ArmSummary(
        arm,
        tuple(own),
        study.finals(group, arm),
        study.finals(group, arm, "hd95"),
        {seed: area_under(curve) for seed, curve in own.items()},
        {t.share: {} if t.refused else reaches_of(own, lost, t.score) for t in targets},
        tuple(diverged),
        tuple(seed for seed in study.planned(group) if seed not in {*own, *diverged}),
    )


def compare(
    settings: Mapping[str, Any],
    targets: Sequence[Target],
    fixed: Target | None,
    first: Side,
    second: Side,
    base: float,
    planned: int,
    encoder: str,
) -> Comparison:
    """Everything about one pair of arms."""
    tasks = int(settings.get("tasks", 10))
    primary = primary_target(targets, float(settings.get("primary", PRIMARY)))
    return Comparison(
        first.arm,
        second.arm,
        {target.share: ratio_at(first, second, target) for target in targets},
        [(s, ratio_at(first, second, Target(0.0, s))) for s in grid_of(first, second, base)],
        {
            (ledger, unit): one_ledger(first, second, primary, ledger, unit, tasks)
            for ledger, unit in product(LEDGERS, UNITS)
        },
        paired_difference(first.final, second.final),
        paired_difference(first.areas, second.areas),
        planned,
        ratio_at(first, second, fixed) if fixed else no_ratio("no tuning run set a score"),
        encoder,
    )


def ratio_at(first: Side, second: Side, target: Target) -> PairedRatio:
    """Ratio of the steps that both arms needed to a target."""
    if target.refused:
        return no_ratio(target.refused)
    return paired_by_seed(first.reaches(target.score), second.reaches(target.score))


def grid_of(first: Side, second: Side, base: float) -> list[float]:
    """Scores that the ratio is shown against: from a third of the highest, above the untrained."""
    tops = [best(curve) for arm in (first, second) for curve in arm.curves.values()]
    grid = [
        max(tops, default=0.0) * k / CURVE_POINTS
        for k in range(CURVE_POINTS // 3, CURVE_POINTS + 1)
    ]
    return [score for score in grid if score >= base + MIN_GAIN]


def primary_target(targets: Sequence[Target], share: float) -> Target:
    """The target that the verdict is about, fixed before the study ran."""
    return min(targets, key=lambda target: abs(target.share - share))


def one_ledger(
    first: Side, second: Side, target: Target, ledger: str, unit: str, tasks: int
) -> PairedRatio:
    """Ratio of what both arms spent to the target by one ledger in one unit."""
    if target.refused:
        return no_ratio(target.refused)
    if ledger != LEDGERS[0] and not (first.spending.pretraining and second.spending.pretraining):
        return no_ratio("what a pretraining cost is not known")
    return paired_by_seed(
        *(
            totals(arm.spending, arm.reaches(target.score), ledger, unit, tasks)
            for arm in (first, second)
        )
    )


def mean_and_std(values: Mapping[int, float]) -> tuple[float, float]:
    """Mean over seeds and standard deviation (NaN of a single seed)."""
    numbers = list(values.values())
    if not numbers:
        return math.nan, math.nan
    return fmean(numbers), stdev(numbers) if len(numbers) > 1 else math.nan
