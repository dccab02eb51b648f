"""Counter-based random numbers: frozen values, spread, independence of streams."""

import numpy as np

from mim3d.dataio.transforms.counter_random import below, bits, permutation, uniform

INDEX = np.arange(20_000)
FROZEN = ["af9f631756781f75", "94d194f4bd3bf36c", "fa35f810f23babde"]
FROZEN_ORDER = [1, 7, 2, 4, 5, 6, 0, 3]


def test_values_never_change():
    # A resumed run of next year must draw what last year's drew.
    drawn = bits(7, 3, np.array([0, 1, 2**40]))
    assert [f"{int(value):016x}" for value in drawn] == FROZEN
    assert permutation(1, 2, 8).tolist() == FROZEN_ORDER


def test_uniform_fills_the_unit_interval_evenly():
    counts, _ = np.histogram(uniform(0, 0, INDEX), bins=20, range=(0, 1))
    # 1000 expected per bin, deviation 31.
    assert counts.min() > 850
    assert counts.max() < 1150


def test_streams_and_seeds_are_uncorrelated():
    base = uniform(0, 0, INDEX)
    for other in (uniform(0, 1, INDEX), uniform(1, 0, INDEX), uniform(0, 0, INDEX + 1)):
        assert abs(np.corrcoef(base, other)[0, 1]) < 0.03


def test_many_streams_in_one_call_equal_one_call_each():
    together = bits(5, np.arange(4)[:, None], INDEX[:10])
    for stream in range(4):
        np.testing.assert_array_equal(together[stream], bits(5, stream, INDEX[:10]))


def test_below_reaches_every_value_and_no_more():
    drawn = below(3, 1, INDEX, 7)
    assert set(drawn.tolist()) == set(range(7))


def test_permutation_is_one_and_differs_between_streams():
    first, second = permutation(0, 0, 1000), permutation(0, 1, 1000)
    assert sorted(first.tolist()) == list(range(1000))
    assert (first != second).mean() > 0.9


def test_negative_and_huge_seeds_are_fine():
    assert len({int(bits(seed, 0, np.array([0]))[0]) for seed in (-1, 0, 2**70 + 5, 5)}) == 3
