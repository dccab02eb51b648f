"""Resampling piece by piece gives what resampling whole volumes gives."""

import weakref
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from mim3d.dataio.convert import resample
from mim3d.dataio.convert.resample import (
    resample_channels,
    resample_label,
    resampled_grid,
)
from mim3d.dataio.geometry import Grid

CASES = [
    ((40, 44, 48), (2.0, 1.0, 1.7)),
    ((40, 44, 48), (0.5, 0.8, 0.6)),
    ((40, 44, 48), (1.0, 1.0, 1.0)),
    ((33, 20, 21), (4.3, 1.0, 0.9)),
    ((5, 44, 48), (1.3, 1.3, 1.3)),
    ((1, 20, 20), (0.5, 2.0, 2.0)),
    ((2, 20, 20), (0.5, 2.0, 2.0)),
    ((3, 9, 200), (0.3, 1.1, 5.0)),
]


def whole(voxels: np.ndarray, old: Grid, new: Grid, order: int) -> np.ndarray:
    """Smoothed and sampled in three dimensions at once, as scipy does it from end to end."""
    factors = np.array(new.spacing_mm) / np.array(old.spacing_mm)
    voxels = voxels.astype(np.float32)
    sigma = np.maximum(0, (factors - 1) / 2)
    if sigma.max() > 1e-3:
        voxels = ndimage.gaussian_filter(voxels, sigma, mode="nearest")
    offset: Any = (factors - 1) / 2
    return ndimage.affine_transform(
        voxels, factors, offset, output_shape=new.shape, order=order, mode="nearest"
    )


@pytest.mark.parametrize(("shape", "spacing"), CASES)
@pytest.mark.parametrize("block", [1 << 18, 700])
def test_images_equal_those_resampled_whole(shape, spacing, block, monkeypatch):
    monkeypatch.setattr(resample, "BLOCK_VOXELS", block)
    voxels = np.random.default_rng(0).integers(-900, 900, shape).astype(">i2")[:, ::-1]
    old = Grid(shape, np.eye(4))
    new = resampled_grid(old, spacing)
    (got,) = resample_channels([voxels[None]], old, new, 0.5, -7.0)
    real = voxels.astype(np.float32) * 0.5 - 7
    wanted = np.clip(whole(real, old, new, 3), real.min(), real.max())
    assert got.shape == new.shape
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6 * 900)


def label_whole(voxels: np.ndarray, old: Grid, new: Grid) -> np.ndarray:
    """For each class a share of the whole volume, and the largest wins."""
    best, wanted = np.full(new.shape, -1, np.float32), np.zeros(new.shape, voxels.dtype)
    for number in np.unique(voxels):
        share = whole(voxels == number, old, new, 1)
        wins = share > best + 1e-6
        wanted[wins], best[wins] = number, share[wins]
    return wanted


@pytest.mark.parametrize(("shape", "spacing"), CASES)
@pytest.mark.parametrize("slab", [1 << 19, 2000])
def test_labels_equal_those_resampled_whole(shape, spacing, slab, monkeypatch):
    monkeypatch.setattr(resample, "SLAB_VOXELS", slab)
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 4, [-(-n // 7) for n in shape])
    voxels = np.kron(coarse, np.ones((7, 7, 7), int))[tuple(slice(n) for n in shape)]
    voxels = voxels.astype(np.uint8)[::-1]
    old = Grid(shape, np.eye(4))
    new = resampled_grid(old, spacing)
    np.testing.assert_array_equal(resample_label(voxels, old, new), label_whole(voxels, old, new))


@pytest.mark.parametrize(("shape", "spacing"), CASES)
@pytest.mark.parametrize("slab", [1 << 19, 3000])
def test_small_classes_equal_those_resampled_whole(shape, spacing, slab, monkeypatch):
    """Boxes of 1 to 5 voxels anywhere, at the faces too, over each other and of any number."""
    monkeypatch.setattr(resample, "SLAB_VOXELS", slab)
    rng = np.random.default_rng(1)
    voxels = np.zeros(shape, np.int16)
    for number in rng.choice(np.arange(-5, 900), 40, replace=False):
        start = [int(rng.integers(0, n)) for n in shape]
        voxels[tuple(slice(a, a + int(rng.integers(1, 6))) for a in start)] = number
    old = Grid(shape, np.eye(4))
    new = resampled_grid(old, spacing)
    np.testing.assert_array_equal(resample_label(voxels, old, new), label_whole(voxels, old, new))


def test_each_class_is_worked_out_where_it_is(monkeypatch):
    voxels = np.zeros((60, 60, 60), np.uint8)
    for number in range(1, 61):
        z, y, x = np.unravel_index(number, (4, 4, 4))
        voxels[15 * z : 15 * z + 5, 15 * y : 15 * y + 5, 15 * x : 15 * x + 5] = number
    sizes, share = [], resample._share
    monkeypatch.setattr(
        resample, "_share", lambda inside, *rest: sizes.append(inside.size) or share(inside, *rest)
    )
    old = Grid(voxels.shape, np.eye(4))
    resample_label(voxels, old, resampled_grid(old, (2.0, 2.0, 2.0)))
    assert len(sizes) == 61
    assert sum(sizes) < 3 * voxels.size  # 61 without boxes


def test_many_classes_take_the_nearest():
    voxels = np.arange(20 * 20 * 20, dtype=np.uint16).reshape(20, 20, 20)
    old = Grid(voxels.shape, np.eye(4))
    np.testing.assert_array_equal(resample_label(voxels, old, old), voxels)


def test_channels_are_resampled_each_on_its_own():
    rng = np.random.default_rng(0)
    stack = rng.normal(0, 50, (3, 12, 14, 16)).astype(np.float32)
    old = Grid((12, 14, 16), np.eye(4))
    new = resampled_grid(old, (0.7, 1.4, 1.0))
    got = resample_channels([stack], old, new, 2.0, 1.0)
    for channel, wanted in zip(got, stack, strict=True):
        (alone,) = resample_channels([wanted[None]], old, new, 2.0, 1.0)
        np.testing.assert_array_equal(channel, alone)


def test_nothing_but_nan_stays_nan():
    old = Grid((6, 6, 6), np.eye(4))
    new = resampled_grid(old, (2.0, 1.0, 1.0))
    assert np.isnan(resample_channels([np.full((1, 6, 6, 6), np.nan, np.float32)], old, new)).all()


SIZES = st.tuples(*[st.integers(1, 9)] * 3)


@settings(max_examples=60)
@given(
    n_channels=st.integers(1, 3),
    shape=SIZES,
    spacing=st.tuples(*[st.sampled_from([0.3, 0.7, 1.0, 1.1, 2.5])] * 3),
    dtype=st.sampled_from(["u1", ">i2", "<f4", "i4", ">f8"]),
    flip=st.booleans(),
)
def test_the_result_overwrites_no_voxel_before_it_was_read(n_channels, shape, spacing, dtype, flip):
    rng = np.random.default_rng(0)
    stack = rng.integers(0, 200, (n_channels, *shape)).astype(dtype)
    stack = stack[..., ::-1] if flip else stack
    old = Grid(shape, np.eye(4))
    new = resampled_grid(old, spacing)

    def apart(given: list[np.ndarray], new: Grid) -> tuple[np.ndarray, np.ndarray]:
        size = (n_channels + 1) * max(old.shape[0], new.shape[0]) * prod(new.shape[1:])
        return given.pop().copy(), np.empty(size, np.float32)

    kept = stack.copy()
    got = resample_channels([stack], old, new, 0.5, -3.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resample, "_moved", apart)
        wanted = resample_channels([stack], old, new, 0.5, -3.0)
    np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(stack, kept)
    assert got.shape == (n_channels, *new.shape)
    assert got.flags.c_contiguous
    assert got.flags.writeable


def test_what_is_resampled_is_let_go():
    given = [np.zeros((1, 6, 7, 8), np.int16)]
    gone = weakref.ref(given[0])
    old = Grid((6, 7, 8), np.eye(4))
    inside: list[bool] = []

    def look(*args: Any, **words: Any) -> np.ndarray:
        inside.append(gone() is None)
        return args[3]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resample, "_sampled", look)
        resample_channels(given, old, old, 1.0, 0.0)
    assert given == []
    assert inside == [True] * 6
