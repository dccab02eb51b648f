"""Views made on a CPU: compiled loops equal numpy, both equal DALI, and noise is a normal one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.ndimage import gaussian_filter

from mim3d.dataio.native.extension import view_loops
from mim3d.dataio.transforms.augment import Augmentation, ViewDraws, augmentation, draw_view
from mim3d.dataio.transforms.dali import DaliGraph, feed_order
from mim3d.dataio.transforms.graph import GraphSpec
from mim3d.dataio.transforms.views import (
    ViewMaker,
    ViewPlan,
    label_of,
    noise_of,
    normal_quantiles,
    plans,
    view_of,
)

loops = view_loops()
BATCH = 6
STILL = ViewPlan(False, (0, 0, 0), (1, 1, 1), -1, (1, 0, 0, 0, 1, 0), (), 1.0, 0.0, 0.0, 0)


def drawn(kind: Augmentation, size: tuple[int, int, int], seed: int = 0) -> ViewDraws:
    return draw_view(kind, np.arange(seed, seed + BATCH, dtype=np.uint64), 0, size)


def without_noise(kind: Augmentation) -> Augmentation:
    return replace(kind, noise=0.0)


@pytest.mark.skipif(loops is None, reason="the loops in C are not built")
@given(
    size=st.tuples(*[st.integers(1, 11)] * 3),
    channels=st.integers(1, 3),
    name=st.sampled_from(["contrastive", "segmentation"]),
    seed=st.integers(0, 2**63),
    instructions=st.sampled_from(["plain", ""]),
)
@settings(max_examples=60, deadline=None)
def test_the_compiled_loops_give_numpys_bits(size, channels, name, seed, instructions):
    kind = replace(augmentation(name), rotate=0.7, degrees=90.0)
    rng = np.random.default_rng(seed % 2**32)
    image = rng.standard_normal((BATCH, channels, *size)).astype(np.float32)
    label = rng.integers(-5, 300, (BATCH, *size)).astype(rng.choice(["u1", "i1", "i2", "i4"]))
    maker = ViewMaker()
    loops.instructions(instructions)
    try:
        for i, plan in enumerate(plans(drawn(kind, size, seed), kind.per_view)):
            got, turned = np.empty_like(image[i]), np.empty_like(label[i])
            maker.image(image[i], plan, got)
            maker.label(label[i], plan, turned)
            np.testing.assert_array_equal(got, view_of(image[i], plan), strict=True)
            np.testing.assert_array_equal(turned, label_of(label[i], plan), strict=True)
    finally:
        loops.instructions("")


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("name", ["contrastive", "segmentation"])
@pytest.mark.parametrize("size", [(12, 16, 20), (9, 7, 8)])
def test_views_and_labels_are_dalis(name, channels, size):
    kind = replace(without_noise(augmentation(name)), rotate=0.8)
    rng = np.random.default_rng(0)
    image = rng.standard_normal((BATCH, channels, *size)).astype(np.float32)
    label = None if kind.per_view else rng.integers(0, 200, (BATCH, *size)).astype(np.uint8)
    views = drawn(kind, size)
    dtype = None if label is None else "uint8"
    spec = GraphSpec(BATCH, channels, size, 1, dtype, kind, None, 1)
    graph = DaliGraph(spec, lambda _: feed_order(spec, image, label, [views]))
    wanted, *turned = graph.run()
    graph.close()
    for i, plan in enumerate(plans(views, kind.per_view)):
        np.testing.assert_allclose(
            view_of(image[i], plan), wanted[i].numpy(), atol=1e-4
        )  # float32 positions
        if label is not None:
            same = label_of(label[i], plan) == turned[0][i].numpy()
            assert same.mean() > 0.995  # a nearest voxel may be either of two


def test_no_change_is_no_change():
    image = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    got = np.empty_like(image)
    ViewMaker().image(image, STILL, got)
    np.testing.assert_array_equal(got, image)


def test_a_constant_stays_one_under_every_interpolation():
    image = np.full((1, 6, 7, 8), 3.0, np.float32)
    kind = replace(without_noise(augmentation("contrastive")), rotate=1.0, blur=1.0)
    kind = replace(kind, gain=(1.0, 1.0), bias=(0.0, 0.0))
    for plan in plans(drawn(kind, (6, 7, 8)), per_view=True):
        np.testing.assert_allclose(view_of(image, plan), 3.0, rtol=1e-6)


def test_the_blur_is_scipys_gaussian_of_radius_two():
    image = np.random.default_rng(0).standard_normal((1, 11, 9, 7)).astype(np.float32)
    sigma = np.full(BATCH, 0.8, np.float32)
    views = replace(drawn(augmentation("contrastive"), (11, 9, 7)), sigma=sigma)
    taps = next(plan.taps for plan in plans(views, per_view=True) if plan.taps)
    wanted = gaussian_filter(image[0].astype(float), 0.8, mode="mirror", radius=2)
    np.testing.assert_allclose(view_of(image, replace(STILL, taps=taps))[0], wanted, atol=1e-6)


def test_noise_is_normal_independent_and_a_function_of_its_seed():
    plan = replace(STILL, noise=0.5, seed=7)
    noise = noise_of((1, 40, 50, 60), plan)
    assert noise.dtype == np.float32
    assert stats.kstest(noise.ravel()[:20000] / 0.5, "norm").pvalue > 0.01
    assert float(noise.std()) == pytest.approx(0.5, rel=0.01)
    flat = noise.ravel()
    for lag in (1, 2, 3, 4, 5, 60):
        assert abs(np.corrcoef(flat[:-lag], flat[lag:])[0, 1]) < 0.015
    np.testing.assert_array_equal(noise, noise_of((1, 40, 50, 60), plan))
    other = noise_of((1, 40, 50, 60), replace(plan, seed=8))
    assert abs(np.corrcoef(flat, other.ravel())[0, 1]) < 0.015


def test_quantiles_are_scipys():
    n = 1 << 16
    wanted = stats.norm.ppf((np.arange(n) + 0.5) / n)
    np.testing.assert_allclose(normal_quantiles(), wanted, atol=1e-6)


@pytest.mark.skipif(loops is None, reason="the loops in C are not built")
@pytest.mark.parametrize(
    "change",
    [
        {"out": np.empty((1, 2, 3, 5), np.float32)},
        {"out": np.empty((2, 3, 4), np.float32)},
        {"image": np.empty((1, 2, 3, 4), np.float64)},
        {"geometry": (True, (0.0, 0.0, 0.0), (1.0, np.nan, 1.0), -1, (1.0, 0, 0, 0, 1, 0))},
        {"geometry": (False, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 3, (1.0, 0, 0, 0, 1, 0))},
        {"geometry": (False, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 0, (np.inf, 0, 0, 0, 1, 0))},
        {"quantiles": np.zeros(5, np.float32)},
    ],
)
def test_what_does_not_fit_is_refused(change):
    image = np.zeros((1, 2, 3, 4), np.float32)
    whole = {
        "image": image, "geometry": STILL.geometry, "blurred": False, "taps": (1.0, 0.0, 0.0),
        "gain": 1.0, "bias": 0.0, "noise": 0.0, "seed": 0, "quantiles": normal_quantiles(),
        "out": np.empty_like(image), "room": np.empty(1 << 16, np.uint8),
    }  # fmt: skip
    assert loops.view(*whole.values()) is None
    with pytest.raises(ValueError, match="do not fit"):
        loops.view(*(whole | change).values())


@pytest.mark.skipif(loops is None, reason="the loops in C are not built")
def test_too_little_room_is_told_and_nothing_written():
    image, out = np.ones((1, 2, 3, 4), np.float32), np.zeros((1, 2, 3, 4), np.float32)
    what = image, STILL.geometry, False, (1.0, 0.0, 0.0), 1.0, 0.0, 0.0, 0, normal_quantiles(), out
    wanted = loops.view(*what, np.empty(1, np.uint8))
    assert wanted > 2 * image.nbytes
    assert not out.any()
    assert loops.view(*what, np.empty(wanted, np.uint8)) is None
    assert out.all()


@pytest.mark.skipif(loops is None, reason="the loops in C are not built")
@pytest.mark.parametrize("axis", [-1, 0, 1, 2])
@pytest.mark.parametrize("huge", [1e9, 1e300, 1.7e308])
def test_huge_geometry_stays_within_the_crop(axis, huge):
    """Sums beyond double are NaN, and a NaN read as an index was 2^31 voxels away."""
    turn, ends = (huge, -huge, 0.0, -huge, huge, 0.0), ((-huge, huge, 0.0), (huge, -huge, huge))
    image, label = np.ones((1, 9, 5, 7), np.float32), np.ones((9, 5, 7), np.int16)
    for resized in (False, True):
        plan = replace(
            STILL, resized=resized, start=ends[0], end=ends[1], axis=axis, turn=turn, taps=(1, 0, 0)
        )
        got, turned = np.zeros_like(image), np.zeros_like(label)
        ViewMaker().image(image, plan, got)
        ViewMaker().label(label, plan, turned)
        assert np.isin(got[np.isfinite(got)], 1).all()
        assert (turned == 1).all()


def test_boxes_that_overhang_repeat_the_border():
    image = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    plan = replace(STILL, resized=True, start=(-5.0, -5.0, -5.0), end=(9.0, 9.0, 9.0))
    got = np.empty_like(image)
    ViewMaker().image(image, plan, got)
    np.testing.assert_array_equal(got, view_of(image, plan))
    assert 0 <= got.min() <= got.max() <= 23
    assert torch.from_numpy(got).isfinite().all()
