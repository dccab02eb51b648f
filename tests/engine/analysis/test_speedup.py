"""Speed-ups of synthetic arms whose true ratio is known."""

import math
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mim3d.engine.analysis.speedup import (
    MIN_PAIRS,
    PairedRatio,
    bootstrap_interval,
    holm,
    paired_by_seed,
    paired_difference,
    paired_ratio,
)
from mim3d.engine.study.curves import Curve, Reach, smooth, steps_to


def learner(rate: float, top: float = 0.8, budget: int = 400, every: int = 10) -> Curve:
    """Dice saturating exponentially; doubling `rate` halves every steps-to-target."""
    steps = tuple(float(s) for s in range(0, budget + 1, every))
    return Curve(steps, tuple(top * (1 - math.exp(-rate * s)) for s in steps))


def speedup_at(
    first: Mapping[int, Curve], second: Mapping[int, Curve], target: float
) -> PairedRatio:
    return paired_by_seed(
        {seed: steps_to(curve, target) for seed, curve in first.items()},
        {seed: steps_to(curve, target) for seed, curve in second.items()},
    )


def stretched(curve: Curve, factor: float) -> Curve:
    return Curve(tuple(step * factor for step in curve.steps), curve.values)


@given(
    st.floats(0.1, 10),
    st.lists(st.floats(0.005, 0.05), min_size=MIN_PAIRS, max_size=8),
    st.floats(0.05, 0.6),
)
@settings(max_examples=40, deadline=None)
def test_a_stretched_curve_is_slower_by_exactly_the_stretch(
    factor: float, rates: list[float], target: float
) -> None:
    fast = {seed: learner(rate) for seed, rate in enumerate(rates)}
    slow = {seed: stretched(curve, factor) for seed, curve in fast.items()}
    found = speedup_at(fast, slow, target)
    if found.bound == "exact":
        assert found.ratio == pytest.approx(factor, rel=1e-9)
        assert (found.low, found.high, found.p_value) == (None, None, None)
        assert "no spread" in found.why
    else:
        assert any(steps_to(curve, target).early for curve in [*fast.values(), *slow.values()])


@given(st.lists(st.tuples(st.floats(1, 1e4), st.floats(1, 1e4)), min_size=1, max_size=9))
@settings(max_examples=40, deadline=None)
def test_swapping_the_arms_inverts_the_ratio(costs: list[tuple[float, float]]) -> None:
    first = [Reach(a, reached=True) for a, _ in costs]
    second = [Reach(b, reached=True) for _, b in costs]
    one, other = paired_ratio(first, second), paired_ratio(second, first)
    assert one.ratio is not None
    assert other.ratio is not None
    assert one.ratio * other.ratio == pytest.approx(1.0)
    assert one.p_value == pytest.approx(other.p_value)
    assert (one.low is None) == (one.p_value is None)
    if len(costs) < MIN_PAIRS:
        assert one.low is None
    if one.low is not None and other.high is not None:
        assert one.low * other.high == pytest.approx(1.0)


def test_known_ratio_with_noise_is_inside_the_interval() -> None:
    rng = np.random.default_rng(7)
    rates = 0.01 * np.exp(rng.normal(0, 0.3, 10))
    fast = {
        i: smooth(learner(1.4 * r * math.exp(rng.normal(0, 0.05)))) for i, r in enumerate(rates)
    }
    slow = {i: smooth(learner(r)) for i, r in enumerate(rates)}
    found = speedup_at(fast, slow, 0.6)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 1.4 < found.high
    assert found.low > 1.2
    assert found.high < 1.65


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_ties_give_a_ratio_and_no_interval(factor: float) -> None:
    arms = {seed: learner(0.01 * (seed + 1)) for seed in range(5)}
    slow = {seed: stretched(curve, factor) for seed, curve in arms.items()}
    found = speedup_at(arms, slow, 0.5)
    assert found.ratio == pytest.approx(factor)
    assert (found.low, found.high, found.p_value) == (None, None, None)
    assert "every seed gives the same ratio" in found.why
    assert not found.above_one
    assert bootstrap_interval(found) == (None, None)


def test_crossings_inside_the_first_interval_are_bounds() -> None:
    quick = {s: Curve((0.0, 20.0, 40.0), (0.0, 0.8, 0.8)) for s in range(5)}
    nearly = {s: Curve((0.0, 20.0, 40.0), (0.0, 0.51, 0.8)) for s in range(5)}
    slow = {s: Curve((0.0, 20.0, 40.0), (0.0, 0.2 + 0.01 * s, 0.8)) for s in range(5)}
    both = speedup_at(quick, nearly, 0.5)
    assert (both.bound, both.ratio) == ("none", None)
    assert "5 of the first and 5 of the second were there by the first evaluation" in both.why
    one = speedup_at(quick, slow, 0.5)
    assert one.bound == "at least"
    assert "the first arm was there by the first evaluation in 5 of 5" in one.why
    assert speedup_at(slow, quick, 0.5).bound == "at most"


def test_a_run_without_evaluations_after_step_0_has_no_ratio() -> None:
    start = {s: Curve((0.0,), (0.9,)) for s in range(5)}
    found = speedup_at(start, start, 0.5)
    assert found.ratio is None
    assert "no evaluation after step 0" in found.why


def test_few_seeds_get_a_ratio_but_no_interval() -> None:
    for seeds, words in ((1, "one seed"), (4, "4 seeds")):
        fast = {seed: learner(0.02) for seed in range(seeds)}
        slow = {seed: learner(0.01) for seed in range(seeds)}
        found = speedup_at(fast, slow, 0.4)
        assert found.ratio == pytest.approx(2.0, rel=0.01)
        assert found.low is None
        assert found.high is None
        assert words in found.why


def test_a_slow_arm_that_never_arrives_bounds_from_below() -> None:
    fast = {seed: learner(0.02) for seed in range(5)}
    slow = {seed: learner(0.01, top=0.8 if seed else 0.3) for seed in range(5)}
    found = speedup_at(fast, slow, 0.5)
    assert found.bound == "at least"
    assert (found.pairs, found.complete) == (5, 4)
    assert (found.first_reached, found.second_reached) == (5, 4)
    assert found.ratio is not None
    assert found.ratio > 2.0
    assert found.low is not None
    assert found.high is None
    assert "1 of 5" in found.why


def test_a_first_arm_that_never_arrives_bounds_from_above() -> None:
    dead = {seed: learner(0.01, top=0.1) for seed in range(5)}
    live = {seed: learner(0.01 + 0.001 * seed) for seed in range(5)}
    found = speedup_at(dead, live, 0.5)
    assert found.bound == "at most"
    assert found.ratio is not None
    assert found.ratio < 1
    assert found.low is None
    assert found.high is not None


def test_bounds_that_point_both_ways_give_no_ratio() -> None:
    first = [Reach(10, True), Reach(100, False)]
    second = [Reach(100, False), Reach(10, True)]
    found = paired_ratio(first, second)
    assert (found.bound, found.ratio) == ("none", None)
    assert "1 only in the first, 1 only in the second" in found.why


def test_a_target_nobody_reaches_is_said() -> None:
    arms = {seed: learner(0.01) for seed in range(5)}
    found = speedup_at(arms, arms, 0.95)
    assert (found.bound, found.ratio, found.low) == ("none", None, None)
    assert "neither arm" in found.why


def test_a_pair_without_either_spoils_the_ratio() -> None:
    runs = [Reach(10, True), Reach(50, False)]
    assert paired_ratio(runs, runs).bound == "none"


def test_arms_without_a_common_seed() -> None:
    found = speedup_at({0: learner(0.01)}, {1: learner(0.01)}, 0.5)
    assert (found.pairs, found.bound) == (0, "none")
    with pytest.raises(ValueError, match="paired"):
        paired_ratio([Reach(1, True)], [])


def test_the_target_decides_the_ratio() -> None:
    early = {s: Curve((0.0, 10.0, 100.0), (0.0, 0.4, 0.6)) for s in range(5)}
    late = {s: Curve((0.0, 20.0, 100.0), (0.0, 0.4, 0.6)) for s in range(5)}
    assert speedup_at(early, late, 0.4).ratio == pytest.approx(2.0)
    assert speedup_at(early, late, 0.6).ratio == pytest.approx(1.0)


def test_paired_difference_finds_a_true_one_and_refuses_too_few() -> None:
    base = {seed: 0.5 + 0.1 * seed for seed in range(8)}
    better = {seed: value + 0.05 + 0.001 * (seed % 3) for seed, value in base.items()}
    found = paired_difference(better, base)
    assert found.p_value is not None
    assert found.p_value < 1e-6
    assert found.low is not None
    assert found.low > 0.04
    few = paired_difference({0: 0.6, 1: 0.7}, {0: 0.5, 1: 0.5})
    assert few.mean == pytest.approx(0.15)
    assert few.p_value is None
    assert "2 seeds" in few.why


def test_paired_difference_is_scipys_paired_t_test() -> None:
    rng = np.random.default_rng(1)
    one, other = rng.normal(0, 1, (2, 7))
    expected = stats.ttest_rel(one, other)
    found = paired_difference(dict(enumerate(one)), dict(enumerate(other)))
    assert found.p_value == pytest.approx(expected[1])


def test_a_censored_seed_needs_as_much_evidence_as_an_exact_one() -> None:
    first = [Reach(100.0, reached=True)] * 5
    second = [Reach(float(cost), reached=True) for cost in (102, 105, 110, 108)]
    exact = paired_ratio(first, [*second, Reach(200.0, reached=True)])
    censored = paired_ratio(first, [*second, Reach(200.0, reached=False)])
    assert exact.p_value == pytest.approx(0.216, abs=0.001)
    assert censored.p_value == pytest.approx(exact.p_value)
    assert censored.low == pytest.approx(exact.low)
    assert not exact.above_one
    assert not censored.above_one


def test_more_censored_seeds_are_tested_more_strictly() -> None:
    first = [Reach(100.0, reached=True)] * 6
    costs = [150.0, 170.0, 160.0, 150.0, 200.0, 200.0]
    p_values = []
    for censored in range(4):
        second = [Reach(cost, i < 6 - censored) for i, cost in enumerate(costs)]
        p_values.append(paired_ratio(first, second).p_value)
    assert p_values == pytest.approx([p_values[0] * k for k in (1, 1, 2, 4)])


def test_the_interval_is_scipys_t_interval_and_agrees_with_its_p() -> None:
    rng = np.random.default_rng(5)
    for shift in (0.0, 0.1, 0.2, 0.3):
        logs = rng.normal(shift, 0.2, 6)
        found = paired_ratio([Reach(1.0, True)] * 6, [Reach(math.exp(x), True) for x in logs])
        expected = stats.ttest_1samp(logs, 0.0)
        ends, p_value = expected.confidence_interval(0.95), float(np.asarray(expected)[1])
        assert found.p_value == pytest.approx(p_value)
        assert (found.low, found.high) == pytest.approx((math.exp(ends.low), math.exp(ends.high)))
        assert (found.above_one or found.below_one) == (p_value < 0.05)


def test_the_bootstrap_is_reported_beside_it() -> None:
    logs = np.random.default_rng(2).normal(0.3, 0.2, 6)
    runs = [Reach(math.exp(x), True) for x in logs]
    found = paired_ratio([Reach(1.0, True)] * 6, runs)
    low, high = bootstrap_interval(found)
    assert found.low is not None
    assert found.high is not None
    assert low is not None
    assert high is not None
    assert found.low < low < high < found.high
    bound = paired_ratio([Reach(1.0, True)] * 6, [*runs[:5], Reach(runs[5].cost, False)])
    assert bootstrap_interval(bound) == (low, None)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.02, None]) == [pytest.approx(0.04), None]
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    for wrong in (float("nan"), -0.1, 1.1):
        with pytest.raises(ValueError, match="from 0 to 1"):
            holm([0.01, wrong, 0.03])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_lies_between_each_p_and_bonferroni(p_values: list[float]) -> None:
    for p, corrected in zip(p_values, holm(p_values), strict=True):
        assert corrected is not None
        assert p <= corrected <= min(1.0, len(p_values) * p) or corrected == max(
            c for c in holm(p_values) if c is not None and c <= corrected
        )


def test_paired_difference_of_ties_and_of_nothing() -> None:
    same = dict.fromkeys(range(6), 0.5)
    assert paired_difference(same, same).p_value is None
    assert paired_difference(same, same).mean == 0.0
    assert paired_difference({0: 1.0}, {1: 1.0}).mean is None


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(60):
        logs = rng.normal(math.log(1.3), 0.2, 10)
        found = paired_ratio(
            [Reach(1.0, True)] * 10, [Reach(float(math.exp(x)), True) for x in logs]
        )
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 1.3 <= found.high
    assert hits >= 53  # 57 expected, standard deviation 1.7


def null_ratios(pairs: int, censored: float, studies: int, seed: int) -> list[PairedRatio]:
    """Ratios of two arms that do not differ; a share `censored` of runs exceeds the budget."""
    rng = np.random.default_rng([pairs, seed])
    costs = np.exp(rng.normal(0.0, 0.35, (2, studies, pairs)))
    budget = np.quantile(costs, 1 - censored) if censored else np.inf
    arms = [
        [[Reach(float(min(c, budget)), reached=c <= budget) for c in study] for study in arm]
        for arm in costs
    ]
    return [paired_ratio(one, other) for one, other in zip(*arms, strict=True)]


@pytest.mark.parametrize("pairs", [5, 10])
@pytest.mark.parametrize("censored", [0.0, 0.05, 0.2, 0.4])
def test_false_alarms_stay_near_five_in_a_hundred(pairs: int, censored: float) -> None:
    """Among all comparisons, and among the exact ones and those that get a bound by themselves."""
    found = null_ratios(pairs, censored, 1500, 1)
    for kinds in ({"exact"}, {"at least", "at most"}, {"exact", "at least", "at most", "none"}):
        alarms = [f.above_one or f.below_one for f in found if f.bound in kinds]
        if len(alarms) >= 100:
            spread = (0.05 * 0.95 / len(alarms)) ** 0.5
            assert sum(alarms) / len(alarms) <= 0.05 + 3 * spread, kinds
    assert not any(f.above_one and f.below_one for f in found)


def test_a_true_difference_is_found_though_runs_are_censored() -> None:
    rng = np.random.default_rng(4)
    hits = 0
    for _ in range(100):
        first = np.exp(rng.normal(np.log(100), 0.1, 10))
        second = np.exp(rng.normal(np.log(150), 0.1, 10))
        budget = 170.0
        runs = [[Reach(float(min(c, budget)), c <= budget) for c in arm] for arm in (first, second)]
        hits += paired_ratio(*runs).above_one
    assert hits >= 95
