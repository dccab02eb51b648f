"""Augmentation parameters drawn on the host: within bounds, pure, independent between views."""

import numpy as np
import pytest
import torch

from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.loader.batch import add_noise
from mim3d.dataio.transforms.augment import (
    AUGMENTATIONS,
    Augmentation,
    ViewDraws,
    augmentation,
    draw_flips,
    draw_view,
)

SIZE = (16, 24, 32)
SEEDS = np.arange(2000, dtype=np.uint64) * np.uint64(0x1234567890ABCDEF)


def test_no_augmentation_changes_nothing():
    drawn = draw_view(augmentation("none"), SEEDS, 0, SIZE)
    assert not draw_flips(augmentation("none"), SEEDS).any()
    assert not drawn.resized.any()
    assert not (drawn.turn_z | drawn.turn_y | drawn.turn_x | drawn.blurred).any()
    assert (drawn.gain == 1).all()
    assert (drawn.bias == 0).all()
    assert (drawn.noise_std == 0).all()


@pytest.mark.parametrize("name", ["mim", "contrastive", "segmentation"])
def test_parameters_keep_to_their_bounds_and_chances(name):
    kind = augmentation(name)
    drawn = draw_view(kind, SEEDS, 0, SIZE)
    flips = draw_flips(kind, SEEDS)
    assert abs(flips.mean(axis=0) - kind.flip).max() < 0.05
    assert kind.gain[0] <= drawn.gain.min() < drawn.gain.max() <= kind.gain[1]
    assert kind.bias[0] <= drawn.bias.min() < drawn.bias.max() <= kind.bias[1]
    turned = drawn.turn_z.astype(int) + drawn.turn_y + drawn.turn_x
    assert turned.max(initial=0) <= 1
    assert abs(turned.mean() - kind.rotate) < 0.05
    assert abs((drawn.noise_std > 0).mean() - kind.noise) < 0.05
    box = np.sort(np.stack([drawn.roi_start, drawn.roi_end]), axis=0)
    # A box that overhangs would make DALI's nearest-voxel resize read other memory.
    assert (box[0] >= 0).all()
    assert (box[1] <= np.array(SIZE) + 1e-4).all()


def test_per_view_flips_are_the_boxes_turned_round():
    kind = augmentation("contrastive")
    drawn = draw_view(kind, SEEDS, 1, SIZE)
    np.testing.assert_array_equal(draw_flips(kind, SEEDS, 1), drawn.roi_end < drawn.roi_start)


def test_draws_depend_on_the_seed_alone():
    kind = augmentation("contrastive")
    whole, part = draw_view(kind, SEEDS, 0, SIZE), draw_view(kind, SEEDS[40:44], 0, SIZE)
    np.testing.assert_array_equal(whole.matrix[40:44], part.matrix)
    np.testing.assert_array_equal(whole.roi_start[40:44], part.roi_start)
    np.testing.assert_array_equal(whole.noise_seed[40:44], part.noise_seed)


def test_views_are_independent():
    kind = augmentation("contrastive")
    first, second = (draw_view(kind, SEEDS, view, SIZE) for view in (0, 1))
    assert abs(np.corrcoef(first.gain, second.gain)[0, 1]) < 0.1


def test_rotations_are_rigid_and_keep_the_middle():
    drawn = draw_view(Augmentation(rotate=1, degrees=20), SEEDS, 0, SIZE)
    turn = drawn.matrix[:, :, :2].astype(np.float64)
    eye = turn @ turn.transpose(0, 2, 1)
    np.testing.assert_allclose(eye, np.broadcast_to(np.eye(2), eye.shape), atol=1e-6)
    assert np.degrees(np.arcsin(np.abs(turn[:, 0, 1]).max())) <= 20
    about_z = drawn.turn_z
    middle = np.array([16.0, 12.0])  # (x, y) of the plane across z
    moved = turn[about_z] @ middle + drawn.matrix[about_z, :, 2]
    np.testing.assert_allclose(moved, np.broadcast_to(middle, moved.shape), atol=1e-4)


@pytest.mark.parametrize(
    "wrong",
    [{"flip": 1.5}, {"magnification": (0.8, 1.2)}, {"side": (0.0, 1.0)}, {"blur": 0.5}],
)
def test_impossible_augmentations_are_refused(wrong):
    with pytest.raises(Mim3dError):
        Augmentation(**wrong)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(Mim3dError, match=", ".join(AUGMENTATIONS)):
        augmentation("heavy")


def test_noise_of_dalis_views_is_each_samples_own():
    drawn = draw_view(Augmentation(noise=0.5, noise_std=0.2), SEEDS[:8], 0, (8, 8, 8))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # a program may
    try:
        whole = torch.zeros(8, 1, 8, 8, 8, dtype=torch.float32)
        add_noise(whole, drawn)
    finally:
        torch.set_default_dtype(before)
    for i, std in enumerate(drawn.noise_std):
        assert float(whole[i].std()) == pytest.approx(float(std), rel=0.15)
        alone = torch.zeros(1, 1, 8, 8, 8)
        add_noise(alone, ViewDraws(*(each[i : i + 1] for each in vars(drawn).values())))
        assert torch.equal(alone[0], whole[i])
