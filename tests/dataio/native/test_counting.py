"""Values counted in C, by bincount and by sorting; label maps told; equal statistics."""

from pathlib import Path

import numpy as np
import pytest
from built_extension import build_extension
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mim3d.dataio.convert import intensity
from mim3d.dataio.convert.intensity import (
    Distribution,
    otsu,
    profiles,
    statistics,
    tallied,
)
from mim3d.dataio.convert.measure import (
    FEW,
    MANY,
    VOXELS_A_VALUE,
    counted_values,
    few_values,
    measured,
)
from mim3d.dataio.convert.values import Values
from mim3d.dataio.native import extension

SOURCE = Path(extension.__file__).with_name("chunks.c")


@pytest.fixture(scope="module")
def loop(tmp_path_factory):
    """The extension, compiled from its source by this test."""
    return build_extension(SOURCE, tmp_path_factory.mktemp("ext"))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from(["u1", "i1", "<i2", ">i2", "<u2", "<i4", ">f4", "<f8", "<u8"]),
    n=st.integers(1, 3000),
    spread=st.integers(1, 70000),
    step=st.sampled_from([1, 2, -3]),
    seed=st.integers(0, 10**6),
)
def test_counts_are_those_of_unique(loop, dtype, n, spread, step, seed):
    values = np.random.default_rng(seed).integers(-spread, spread, n)
    voxels = values.astype("i8").astype(dtype)[::step]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(intensity, "chunk_loops", lambda: loop)
        found, counts = counted_values(voxels)
        patched.setattr(intensity, "chunk_loops", lambda: None)
        plain = counted_values(voxels)
    wanted, expected = np.unique(voxels, return_counts=True)
    np.testing.assert_array_equal(found, wanted.astype("f8"))
    np.testing.assert_array_equal(counts, expected)
    np.testing.assert_array_equal(found, plain[0])
    np.testing.assert_array_equal(counts, plain[1])
    assert found.dtype == plain[0].dtype == np.float64


def test_a_tally_writes_nothing_beyond_its_table(loop):
    voxels, counts = np.array([3, 4, 9], np.int16), np.zeros(3, np.int64)
    for least, n in ((4, 2), (3, 6), (-32768, 3), (65535, 1)):
        with pytest.raises(ValueError, match="do not fit"):
            loop.tally(voxels, True, least, np.zeros(n, np.int64))
    for words in (
        (voxels.astype("f4"), True, 3, counts),
        (voxels.reshape(1, 3), True, 3, counts),
        (voxels, True, 3, counts[:0]),
        (voxels, True, 3, counts.astype("i4")),
        (voxels, True, 1 << 20, counts),
    ):
        with pytest.raises(ValueError, match="do not fit"):
            loop.tally(*words)
    with pytest.raises((BufferError, ValueError)):
        loop.tally(voxels, True, 3, np.zeros(14, np.int64)[::2])
    loop.tally(voxels[:2], True, 3, counts)
    loop.tally(voxels[:1], True, 3, counts)
    assert counts.tolist() == [2, 1, 0]


def test_extremes_that_are_known_change_no_count():
    voxels = np.random.default_rng(0).integers(-900, 900, 5000).astype(np.int16)
    for known, found in zip(tallied(voxels, (-1024.0, 3071.0)), tallied(voxels), strict=True):
        np.testing.assert_array_equal(known, found)


def by_unique(voxels, slope, intercept):
    """few_values of a small channel, which is its own sample, by numpy's unique."""
    values, counts = np.unique(voxels, return_counts=True)
    real = slope * values.astype(np.float64) + intercept
    n = len(values)
    if not np.isfinite(real).all() or np.abs(np.rint(real) - real).max() > 1e-3:
        return 0
    if n < 2 or n > MANY or voxels.size < VOXELS_A_VALUE * n:
        return 0
    here, there = voxels[..., :-1], voxels[..., 1:]
    ground = values[counts.argmax()]
    inside = (here != ground) & (there != ground)
    alike = (here == there)[inside].mean() if inside.any() else 0.0
    return n if n <= FEW or alike >= 0.75 else 0


@settings(max_examples=150)
@given(
    dtype=st.sampled_from(["u1", "i1", "<i2", ">i2", "<i4", "<f4", ">f4"]),
    values=st.sampled_from([1, 2, 5, 33, 60, 120]),
    runs=st.sampled_from([1, 4, 8]),
    scaling=st.sampled_from([(1.0, 0.0), (0.5, 0.0), (-2.0, 7.0), (1.0, 0.25)]),
    nan=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_label_maps_are_told_as_by_unique(dtype, values, runs, scaling, nan, seed):
    coarse = np.random.default_rng(seed).integers(0, values, (8, 16, 16 // runs * 4))
    voxels = np.repeat(coarse, runs, axis=2).astype(dtype)
    if nan and voxels.dtype.kind == "f":
        voxels[3, 4, 5] = np.nan
    assert few_values(voxels, *scaling) == by_unique(voxels, *scaling)


@settings(max_examples=100)
@given(n=st.integers(1, 4000), far=st.sampled_from([0.0, 1e6]), seed=st.integers(0, 10**6))
def test_values_that_stand_for_one_voxel_need_no_counts(n, far, seed):
    values = np.random.default_rng(seed).normal(0, 50, n)
    values[0] += far
    values.sort()
    bare, counted = Distribution(values), Distribution.of(values, np.ones(n, np.int64))
    assert bare.size == counted.size == n
    for share in (0.0, 0.5, 50.0, 99.5, 100.0):
        assert bare.percentile(share) == counted.percentile(share)
    assert bare.moments() == counted.moments()
    low, high = np.percentile(values, (0.5, 99.5))
    inner = bare.clipped(low, high)
    np.testing.assert_array_equal(inner.values, np.clip(values, low, high))
    assert inner.moments() == counted.clipped(low, high).moments()
    assert np.isclose(bare.excess(low, high), np.abs(values - inner.values).mean())
    assert bare.above(0.0).moments() == counted.above(0.0).moments()
    assert bare.mirrored().moments() == counted.mirrored().moments()
    if values[0] < values[-1]:
        assert otsu(bare) == otsu(counted)


@settings(max_examples=60)
@given(
    bad=st.sampled_from([np.nan, np.inf, -np.inf]),
    where=st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(0, 6)),
    slope=st.sampled_from([1.0, -2.0]),
    order=st.permutations([0, 1, 2]),
    seed=st.integers(0, 10**6),
)
def test_what_is_not_finite_is_in_no_statistic_wherever_it_is(bad, where, slope, order, seed):
    voxels = np.random.default_rng(seed).normal(0, 9, (5, 6, 7)).astype(np.float32)
    voxels[where] = bad
    found = measured(Values(voxels.transpose(order), slope, 1.0)).whole
    finite = voxels.transpose(order)[np.isfinite(voxels.transpose(order))]
    assert found == statistics(finite, (float(finite.min()), float(finite.max())), slope, 1.0)
    extremes = profiles(voxels)
    assert not np.isfinite([extremes.minimum, extremes.maximum]).all()
