"""Crops from their boxes equal scipy's of whole volumes; compiled loops equal numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import affine_transform

from mim3d.dataio.native.extension import view_loops
from mim3d.dataio.transforms.placement import N_DRAWS, Placement, Spatial, place
from mim3d.dataio.transforms.resampling import (
    image_of,
    label_of,
    resample_image,
    resample_label,
)

loops = view_loops()
KIND = Spatial(rotate=1.0, degrees=60.0, zoom=0.7, scale=(0.5, 2.0))
FILL = -7.5


def placement(crop, shape, start, flips, spacing, seed) -> Placement:
    u = np.random.default_rng(seed).random((N_DRAWS, 1))
    given_ = (np.array([each]) for each in (start, flips, spacing, shape))
    start, flips, spacing, shape = given_
    found = place(KIND, u, start, crop, flips, spacing, shape).of(0)
    assert found is not None
    return found


def box_of(volume: np.ndarray, at: Placement) -> np.ndarray:
    part = tuple(slice(a, a + n) for a, n in zip(at.start, at.size, strict=True))
    return np.ascontiguousarray(volume[(..., *part)])


def positions(at: Placement, crop) -> np.ndarray:
    moved = np.einsum("ij,jzyx->izyx", at.matrix, np.indices(crop))
    return moved + at.offset[:, None, None, None]


cases = given(
    crop=st.tuples(*[st.integers(1, 12)] * 3),
    shape=st.tuples(*[st.integers(1, 16)] * 3),
    start=st.tuples(*[st.integers(-8, 8)] * 3),
    flips=st.tuples(*[st.booleans()] * 3),
    spacing=st.tuples(*[st.sampled_from([0.4, 1.0, 3.0])] * 3),
    channels=st.integers(1, 3),
    dtype=st.sampled_from(["u1", "i2", "f4"]),
    seed=st.integers(0, 2**32 - 1),
)


@cases
@settings(max_examples=150, deadline=None)
def test_a_crop_is_scipys_of_the_whole_volume(
    crop, shape, start, flips, spacing, channels, dtype, seed
):
    rng = np.random.default_rng(seed)
    volume = (rng.standard_normal((channels, *shape)) * 50 + 100).clip(0, 255).astype(dtype)
    at = placement(crop, shape, start, flips, spacing, seed)
    got = np.empty((channels, *crop), np.float32)
    resample_image(box_of(volume, at).astype(np.float32), at, [FILL] * channels, got)
    place_ = positions(at, crop)
    last = np.array(shape)[:, None, None, None] - 1
    inside = ((place_ >= 0) & (place_ <= last)).all(0)
    outside = ((place_ < -0.5 - 1e-9) | (place_ > last + 0.5 + 1e-9)).any(0)
    for channel, voxels in enumerate(volume.astype(np.float64)):
        wanted = affine_transform(
            voxels, at.matrix, at.offset.tolist(), output_shape=crop, order=1, mode="nearest"
        )
        assert np.abs(got[channel] - wanted)[~outside].max(initial=0) <= 1e-4 * 255
        assert np.abs(got[channel] - wanted)[inside].max(initial=0) <= 1e-4 * 255
    assert (got[:, outside] == FILL).all()


@cases
@settings(max_examples=100, deadline=None)
def test_a_label_is_scipys_of_the_whole_volume(
    crop, shape, start, flips, spacing, channels, dtype, seed
):
    volume = np.random.default_rng(seed).integers(0, 7, shape).astype(dtype)
    at = placement(crop, shape, start, flips, spacing, seed)
    got = np.full(crop, 99, dtype)
    resample_label(box_of(volume, at), at, got)
    wanted = affine_transform(
        volume, at.matrix, at.offset.tolist(), output_shape=crop, order=0, mode="nearest"
    )
    place_ = positions(at, crop)
    end = np.array(shape)[:, None, None, None] - 0.5
    clear = (np.abs(place_ % 1 - 0.5) > 1e-6).all(0)  # of ties between two voxels
    inside = ((place_ >= -0.5) & (place_ < end)).all(0)
    assert (got[inside & clear] == wanted[inside & clear]).all()
    assert (got[~inside & clear] == 0).all()


@pytest.mark.skipif(loops is None, reason="the loops in C are not built")
@cases
@settings(max_examples=60, deadline=None)
def test_the_compiled_loops_give_numpys_bits(
    crop, shape, start, flips, spacing, channels, dtype, seed
):
    rng = np.random.default_rng(seed)
    volume = rng.standard_normal((channels, *shape)).astype(np.float32)
    label = rng.integers(0, 200, shape).astype(dtype)
    at = placement(crop, shape, start, flips, spacing, seed)
    if at.is_empty:
        return
    box, part = box_of(volume, at), box_of(label, at)
    fill = np.arange(channels, dtype=np.float32)
    for instructions in ("plain", ""):
        loops.instructions(instructions)
        got, marked = np.empty((channels, *crop), np.float32), np.empty(crop, dtype)
        resample_image(box, at, fill.tolist(), got)
        resample_label(part, at, marked)
        np.testing.assert_array_equal(got, image_of(box, at, fill, got.shape))
        np.testing.assert_array_equal(marked, label_of(part, at, crop))
    loops.instructions("")


def test_a_crop_beside_its_volume_is_fill():
    at = placement((4, 4, 4), (9, 9, 9), (60, 0, 0), (False,) * 3, (1, 1, 1), 0)
    assert at.is_empty
    got, marked = np.zeros((2, 4, 4, 4), np.float32), np.ones((4, 4, 4), np.uint8)
    resample_image(np.empty((2, 0, 0, 0), np.float32), at, [1.0, 2.0], got)
    resample_label(np.empty((0, 0, 0), np.uint8), at, marked)
    assert (got[0] == 1).all()
    assert (got[1] == 2).all()
    assert not marked.any()


@pytest.mark.skipif(loops is None, reason="the loops in C are not built")
@pytest.mark.parametrize("huge", [1e9, 1e300, 1.7e308])
def test_huge_positions_stay_within_the_box(huge):
    box, out = np.ones((1, 3, 4, 5), np.float32), np.zeros((1, 6, 6, 6), np.float32)
    ends = (-np.inf,) * 3, (np.inf,) * 3
    for numbers in ((huge, -huge, huge, 0.0) * 3, (-huge, huge, -huge, huge) * 3):
        loops.place(box, (numbers, *ends), np.zeros(1, np.float32), out)
        assert np.isin(out[np.isfinite(out)], (0, 1)).all()
        loops.place(box, (numbers, *ends), None, out)
        assert np.isin(out, (0, 1)).all()


@pytest.mark.skipif(loops is None, reason="the loops in C are not built")
def test_arrays_that_do_not_fit_are_refused():
    still = ((1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0), (-0.5,) * 3, (2.5,) * 3)
    box, out, fill = (
        np.zeros((2, 3, 3, 3), np.float32),
        np.zeros((2, 4, 4, 4), np.float32),
        np.zeros(2, np.float32),
    )
    loops.place(box, still, fill, out)
    wrong = (
        (box[:1], still, fill, out), (box, still, fill[:1], out), (box, still, None, out),
        (box.astype(np.float64), still, fill, out), (box[0], still, fill, out),
        (box.astype(np.int16), still, fill, out.astype(np.int16)), (box[:, :0], still, fill, out),
    )  # fmt: skip
    for each in wrong:
        with pytest.raises(ValueError, match="do not fit"):
            loops.place(*each)
    nan = ((float("nan"),) * 12, *still[1:])
    with pytest.raises(ValueError, match="not finite"):
        loops.place(box, nan, fill, out)
