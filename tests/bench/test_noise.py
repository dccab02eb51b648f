"""Ratios know their noise: what is resolved is so, and what is not is called so."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mim3d.bench.noise import as_json, compared, in_turn, spread

TIMES = st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=2, max_size=9)


@given(TIMES)
def test_the_interval_is_scipys_paired_t_of_the_logarithms(pairs):
    over, under = (list(side) for side in zip(*pairs, strict=True))
    found = compared(over, under)
    logs = np.log(np.array(over) / np.array(under))
    assert found.value == pytest.approx(math.exp(logs.mean()))
    if logs.std() > 1e-9:
        low, high = stats.ttest_1samp(logs, 0.0).confidence_interval(0.95)
        assert found.low == pytest.approx(math.exp(low))
        assert found.high == pytest.approx(math.exp(high))
    assert found.rounds == pytest.approx(tuple(np.exp(logs)))


@given(TIMES)
def test_a_ratio_and_its_inverse_have_one_verdict(pairs):
    over, under = (list(side) for side in zip(*pairs, strict=True))
    one, other = compared(over, under), compared(under, over)
    assert one.resolved == other.resolved
    assert one.value * other.value == pytest.approx(1)


def test_noise_larger_than_the_difference_is_unresolved():
    found = compared([1.0, 2.1, 0.9], [1.0, 1.1, 1.2])  # a busy machine's
    assert not found.resolved
    assert found.text().endswith("unresolved")
    clear = compared([2.0, 2.1, 1.9], [1.0, 1.1, 0.9])
    assert clear.resolved
    assert "unresolved" not in clear.text()


def test_noise_that_both_sides_share_does_not_hide_a_difference():
    slow = [1.0, 3.0, 1.5, 2.0]
    assert compared([1.1 * s for s in slow], slow).resolved


def test_what_cannot_be_is_noise_however_narrow_its_interval():
    found = compared([1.9, 1.91], [1.0, 1.0], limit=1.0)
    assert found.low is not None
    assert found.low > 1
    assert not found.resolved
    assert found.text().endswith("unresolved: more than 1 cannot be, so it is noise")
    assert compared([0.5, 0.51], [1.0, 1.0], limit=1.0).resolved


def test_one_round_resolves_nothing():
    found = compared([5.0], [1.0])
    assert (found.value, found.low, found.resolved) == (5.0, None, False)
    assert "one round" in found.text()
    assert as_json({"a": found})["a"]["resolved"] is False


def test_a_figure_is_told_with_its_range():
    assert spread([0.3, 0.1, 0.2]).text(10, 1) == "2.0 (1.0 to 3.0)"
    assert spread([0.3, 0.1, 0.2]).share == pytest.approx(1.0)
    with pytest.raises(ValueError, match="at least one round"):
        spread([])


def test_turns_go_there_and_back():
    assert [in_turn("abc", i) for i in range(3)] == [list("abc"), list("cba"), list("abc")]
