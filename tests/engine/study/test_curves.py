"""Learning curves with known answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mim3d.engine.study.curves import (
    Curve,
    Reach,
    area_under,
    band,
    best,
    best_trained,
    smooth,
    steps_to,
)

LINE = Curve((0.0, 10.0, 20.0, 30.0), (0.0, 0.2, 0.4, 0.6))

values = st.lists(st.floats(0, 1), min_size=1, max_size=30)


def test_crossing_is_linear_between_evaluations() -> None:
    assert steps_to(LINE, 0.3) == Reach(15.0, reached=True)
    assert steps_to(LINE, 0.6) == Reach(30.0, reached=True)


def test_unreached_is_censored_at_the_budget() -> None:
    assert steps_to(LINE, 0.61) == Reach(30.0, reached=False)


def test_reached_from_the_start_counts_at_the_first_evaluation_after_it() -> None:
    assert steps_to(LINE, 0.0) == Reach(10.0, reached=True, early=True)
    assert steps_to(Curve((0.0,), (1.0,)), 0.5) == Reach(0.0, reached=True, early=True)


def test_a_crossing_within_the_first_interval_is_only_an_upper_bound() -> None:
    assert steps_to(LINE, 0.1) == Reach(10.0, reached=True, early=True)
    assert steps_to(LINE, 0.2) == Reach(10.0, reached=True)


def test_the_best_of_training_leaves_the_untrained_score_out() -> None:
    assert best_trained(Curve((0.0, 10.0, 20.0), (0.05, 0.0, 0.02))) == 0.02
    assert best_trained(Curve((0.0,), (0.05,))) == 0.05


def test_first_crossing_wins_over_later_ones() -> None:
    wavy = Curve((0.0, 1.0, 2.0, 3.0), (0.0, 0.5, 0.1, 0.9))
    assert steps_to(wavy, 0.5) == Reach(1.0, reached=True)


def test_smoothing_by_hand() -> None:
    curve = Curve((0.0, 1.0, 2.0, 3.0, 4.0), (0.0, 0.9, 0.0, 0.3, 0.6))
    assert smooth(curve, 3).values == pytest.approx((0.0, 0.3, 0.4, 0.3, 0.6))
    assert smooth(curve, 1) == curve
    with pytest.raises(ValueError, match="odd"):
        smooth(curve, 2)


@given(values, st.sampled_from([1, 3, 5]))
def test_smoothing_stays_within_the_values(heights: list[float], window: int) -> None:
    curve = Curve(tuple(map(float, range(len(heights)))), tuple(heights))
    smoothed = smooth(curve, window)
    assert len(smoothed.values) == len(heights)
    assert min(heights) - 1e-12 <= min(smoothed.values)
    assert best(smoothed) <= best(curve) + 1e-12


@given(values, st.floats(0, 1), st.floats(0, 1))
def test_a_higher_target_never_costs_less(heights: list[float], one: float, two: float) -> None:
    curve = Curve(tuple(10.0 * i for i in range(len(heights))), tuple(heights))
    low, high = steps_to(curve, min(one, two)), steps_to(curve, max(one, two))
    assert low.reached or not high.reached
    assert low.cost <= high.cost + 1e-9


def test_area_is_the_mean_height() -> None:
    assert area_under(LINE) == pytest.approx(0.3)
    assert area_under(Curve((5.0,), (0.7,))) == 0.7


def test_band_keeps_the_shared_steps() -> None:
    found = band([LINE, Curve((0.0, 20.0), (0.2, 0.8))])
    assert found.steps == (0.0, 20.0)
    assert found.mean == pytest.approx((0.1, 0.6))
    assert (found.low, found.high) == ((0.0, 0.4), (0.2, 0.8))
    with pytest.raises(ValueError, match="share no step"):
        band([LINE, Curve((1.0,), (0.0,))])


@pytest.mark.parametrize(
    ("steps", "heights"),
    [((), ()), ((1.0, 1.0), (0.0, 0.0)), ((0.0,), (float("nan"),)), ((0.0, 1.0), (0.0,))],
)
def test_impossible_curves_are_refused(
    steps: tuple[float, ...], heights: tuple[float, ...]
) -> None:
    with pytest.raises(ValueError, match=r"curve|steps|values"):
        Curve(steps, heights)
