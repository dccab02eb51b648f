"""Where turned and zoomed crops lie: rigid in millimetres, about the middle, within their boxes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.transforms.placement import N_DRAWS, ZOOM, Placements, Spatial, place, rotations

ALWAYS = Spatial(rotate=1.0, degrees=30.0, zoom=1.0, scale=(0.7, 1.4))
CROP = (12, 9, 14)


def placed(kind=ALWAYS, n=1, crop=CROP, start=(3, -2, 5), spacing=(1, 1, 1), shape=(40, 30, 50),
           flips=(False, False, False), seed=0) -> Placements:  # fmt: skip
    u = np.random.default_rng(seed).random((N_DRAWS, n))
    starts, spacings, shapes, mirrored = (
        np.tile(each, (n, 1)) for each in (start, spacing, shape, flips)
    )
    return place(kind, u, starts, crop, mirrored, spacings, shapes)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (3, 0.5, 0.8)])
def test_rotations_are_rigid_in_millimetres_and_keep_the_middle(spacing):
    kind = Spatial(rotate=1.0, degrees=30.0)
    found = placed(kind, 50, spacing=spacing)
    mm = np.diag(spacing) @ found.matrix @ np.diag(1 / np.array(spacing))
    np.testing.assert_allclose(
        mm @ mm.transpose(0, 2, 1), np.tile(np.eye(3), (50, 1, 1)), atol=1e-12
    )
    np.testing.assert_allclose(np.linalg.det(mm), 1)
    middle = (np.array(CROP) - 1) / 2
    np.testing.assert_allclose(
        found.matrix @ middle + found.offset, np.tile(np.array([3, -2, 5]) + middle, (50, 1))
    )


def test_a_rotation_about_one_axis_leaves_that_axis():
    for axis in range(3):
        angles = np.zeros((3, 1))
        angles[axis] = 0.4
        turned = rotations(angles)[0]
        along = np.eye(3)[axis]
        np.testing.assert_allclose(turned @ along, along)
        assert abs(np.trace(turned) - 1 - 2 * np.cos(0.4)) < 1e-12


def test_chances_and_scales_are_batchgenerators():
    found = placed(Spatial(rotate=0.2, degrees=30.0, zoom=0.2, scale=(0.7, 1.4)), 20_000)
    assert abs(found.moved.mean() - 0.36) < 0.01
    scale = np.cbrt(np.linalg.det(placed(Spatial(zoom=1.0, scale=(0.7, 1.4)), 20_000).matrix))
    assert 0.7 <= scale.min() < 0.71 < 1.39 < scale.max() <= 1.4
    assert abs((scale < 1).mean() - 0.5) < 0.02


def test_without_chances_nothing_moves():
    assert not placed(Spatial(), 100).moved.any()
    assert placed(Spatial()).of(0) is None


def test_a_flip_mirrors_the_crop_about_its_middle():
    plain, flipped = placed(), placed(flips=(True, False, True))
    ends = np.array([CROP[0] - 1, 4, CROP[2] - 1])
    np.testing.assert_allclose(
        flipped.matrix[0] @ [0, 4, 0] + flipped.offset[0], plain.matrix[0] @ ends + plain.offset[0]
    )
    np.testing.assert_array_equal(plain.start, flipped.start)
    np.testing.assert_array_equal(plain.size, flipped.size)


@given(
    crop=st.tuples(*[st.integers(1, 20)] * 3),
    shape=st.tuples(*[st.integers(1, 30)] * 3),
    start=st.tuples(*[st.integers(-40, 40)] * 3),
    spacing=st.tuples(*[st.floats(0.2, 5)] * 3),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=200, deadline=None)
def test_boxes_lie_in_the_volume_and_hold_every_neighbour(crop, shape, start, spacing, seed):
    found = placed(ALWAYS, 1, crop, start, spacing, shape, seed=seed)
    low, end = found.start[0], found.start[0] + found.size[0]
    at = np.einsum("ij,jzyx->zyxi", found.matrix[0], np.indices(crop)) + found.offset[0]
    at = at.reshape(-1, 3)
    inside = ((at >= -0.5) & (at < np.array(shape) - 0.5)).all(1)
    one = found.of(0)
    assert one is not None
    if one.is_empty:
        assert not inside.any()
        return
    assert (low >= 0).all() and (end <= shape).all() and (low < end).all()
    neighbours = np.floor(at[inside])[:, None] + np.array([[0], [1]])
    neighbours = np.clip(neighbours, 0, np.array(shape) - 1)
    assert ((neighbours >= low) & (neighbours < end)).all()
    # And no voxel more than rounding asks for.
    tight_low = np.clip(np.floor(at.min(0) - 1e-5), 0, np.array(shape) - 1)
    tight_end = np.clip(np.floor(at.max(0) + 1e-5) + 2, tight_low + 1, shape)
    assert (low >= tight_low).all() and (end <= tight_end).all()


def test_samples_are_placed_alike_alone_and_together():
    u = np.random.default_rng(1).random((N_DRAWS, 8))
    u[ZOOM, ::2] = 0.9
    start, spacing = np.arange(24).reshape(8, 3), np.tile([2.0, 1.0, 1.0], (8, 1))
    flips, shape = np.zeros((8, 3), bool), np.tile([40, 40, 40], (8, 1))
    whole = place(ALWAYS, u, start, CROP, flips, spacing, shape)
    for i in range(8):
        one = slice(i, i + 1)
        alone = place(ALWAYS, u[:, one], start[one], CROP, flips[one], spacing[one], shape[one])
        for name in vars(alone):
            np.testing.assert_array_equal(getattr(alone, name)[0], getattr(whole, name)[i])


@pytest.mark.parametrize(
    "wrong",
    [{"rotate": 1.1}, {"zoom": -1}, {"degrees": 181}, {"scale": (0, 1)}, {"scale": (1.4, 0.7)},
     {"degrees": float("nan")}, {"scale": (1.0, 99.0)}],
)  # fmt: skip
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(Mim3dError, match=next(iter(wrong))):
        Spatial(**wrong)
