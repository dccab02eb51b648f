"""Speed-ups of synthetic arms whose true ratio is known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mim3d.engine.curves import Curve, Reach, smooth
from mim3d.engine.speedup import (
    MIN_PAIRS,
    paired_difference,
    paired_ratio,
    ratio_curve,
    speedup_at,
)


def learner(rate: float, top: float = 0.8, budget: int = 400, every: int = 10) -> Curve:
    """Dice saturating exponentially; doubling `rate` halves every steps-to-target."""
    steps = tuple(float(s) for s in range(0, budget + 1, every))
    return Curve(steps, tuple(top * (1 - math.exp(-rate * s)) for s in steps))


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
    assert found.bound == "exact"
    assert found.ratio == pytest.approx(factor, rel=1e-9)
    assert found.low == pytest.approx(factor, rel=1e-6)
    assert found.high == pytest.approx(factor, rel=1e-6)


@given(st.lists(st.tuples(st.floats(1, 1e4), st.floats(1, 1e4)), min_size=1, max_size=9))
@settings(max_examples=40, deadline=None)
def test_swapping_the_arms_inverts_the_ratio(costs: list[tuple[float, float]]) -> None:
    first = [Reach(a, reached=True) for a, _ in costs]
    second = [Reach(b, reached=True) for _, b in costs]
    one, other = paired_ratio(first, second), paired_ratio(second, first)
    assert one.ratio is not None
    assert other.ratio is not None
    assert one.ratio * other.ratio == pytest.approx(1.0)
    assert (one.low is None) == (len(costs) < MIN_PAIRS)


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


def test_ties_give_one_and_a_closed_interval() -> None:
    arms = {seed: learner(0.01 * (seed + 1)) for seed in range(5)}
    found = speedup_at(arms, arms, 0.5)
    assert (found.ratio, found.low, found.high) == (1.0, 1.0, 1.0)


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
    live = {seed: learner(0.01) for seed in range(5)}
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
    curve = ratio_curve(early, late, [0.2, 0.6])
    assert curve[0][1].ratio == pytest.approx(2.0)
    assert curve[1][1].ratio == pytest.approx(1.0)


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


def test_words_of_significance_want_interval_and_test() -> None:
    rng = np.random.default_rng(11)
    false_alarms = 0
    for _ in range(100):
        logs = rng.normal(0.0, 0.2, 5)
        found = paired_ratio(
            [Reach(1.0, True)] * 5, [Reach(float(math.exp(x)), True) for x in logs]
        )
        assert not (found.above_one and found.below_one)
        false_alarms += found.above_one or found.below_one
    assert false_alarms <= 10  # 5 expected; the interval alone gives twice to thrice as many


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
    assert hits >= 49  # 95 % nominal; bootstrap with 10 pairs is somewhat narrow
