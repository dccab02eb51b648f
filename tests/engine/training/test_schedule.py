from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mim3d.engine.errors import ConfigError
from mim3d.engine.training.config import ScheduleConfig
from mim3d.engine.training.schedule import lr_at


def test_warm_up_then_cosine_by_hand():
    schedule = ScheduleConfig(lr=1.0, warmup_steps=4, final_share=0.2)
    rates = [lr_at(schedule, step, 12) for step in range(12)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[8] == pytest.approx(0.2 + 0.8 * 0.5)
    assert lr_at(schedule, 12, 12) == pytest.approx(0.2)


def test_constant_stays():
    schedule = ScheduleConfig(lr=0.3, kind="constant", warmup_steps=2)
    assert {lr_at(schedule, step, 10) for step in range(2, 10)} == {0.3}


def test_warm_up_then_stable_then_a_fall_by_hand():
    schedule = ScheduleConfig(lr=1.0, kind="wsd", warmup_steps=2, final_share=0.2, decay_share=0.4)
    rates = [lr_at(schedule, step, 10) for step in range(11)]
    assert rates[:2] == [0.5, 1.0]
    assert rates[2:7] == [1.0] * 5
    assert schedule.decay_start(10) == 6
    assert rates[7] == pytest.approx(0.2 + 0.8 * 0.5)  # a quarter of the way: 1 - sqrt(1/4)
    assert rates[10] == pytest.approx(0.2)


@given(st.integers(0, 20), st.integers(1, 60), st.integers(1, 60), st.floats(0, 1))
def test_up_to_the_decay_a_longer_run_has_the_same_rates(warmup, steps, more, share):
    for kind in ("constant", "wsd"):
        schedule = ScheduleConfig(lr=2.0, kind=kind, warmup_steps=warmup, decay_share=share)
        stable = schedule.decay_start(steps)
        for step in range(min(stable, steps)):
            assert lr_at(schedule, step, steps) == lr_at(schedule, step, steps + more)


@given(
    warmup=st.integers(0, 50),
    steps=st.integers(1, 200),
    share=st.floats(0, 1),
    kind=st.sampled_from(["cosine", "constant", "wsd"]),
)
def test_rates_stay_between_nothing_and_the_peak(warmup, steps, share, kind):
    schedule = ScheduleConfig(lr=2.0, kind=kind, warmup_steps=warmup, final_share=share)
    rates = [lr_at(schedule, step, steps) for step in range(steps)]
    assert all(0.0 <= rate <= 2.0 for rate in rates)
    after = rates[warmup:]
    assert all(b <= a for a, b in pairwise(after))


@pytest.mark.parametrize(
    "change", [{"lr": 0.0}, {"final_share": 1.5}, {"warmup_steps": -1}, {"decay_share": 1.5}]
)
def test_impossible_rates_are_refused(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        ScheduleConfig(**change)
