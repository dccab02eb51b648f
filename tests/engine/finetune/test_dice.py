"""Dice and HD95 by hand and against MONAI."""

import math

import numpy as np
import pytest
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.meandice import compute_dice

from mim3d.engine.finetune.dice import (
    CaseScore,
    class_means,
    dice_by_class,
    hd95_by_class,
    mean_over_cases,
)


def random_labels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4, (7, 9, 8)).astype(np.uint8)


def one_hot(labels: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.from_numpy(labels).long(), 4).movedim(-1, 0)[None]


def test_dice_is_monais() -> None:
    prediction, truth = random_labels(0), random_labels(1)
    expected = compute_dice(one_hot(prediction), one_hot(truth), include_background=False)[0]
    assert dice_by_class(prediction, truth, 4) == pytest.approx(expected.tolist())


def test_dice_by_hand_and_its_empty_cases() -> None:
    truth = np.array([[[0, 1, 1, 2]]])
    prediction = np.array([[[0, 1, 0, 3]]])
    one, two, three, four = dice_by_class(prediction, truth, 5)
    assert one == pytest.approx(2 / 3)
    assert (two, three) == (0.0, 0.0)
    assert math.isnan(four)
    with pytest.raises(ValueError, match="shapes"):
        dice_by_class(prediction, truth[..., :2], 5)


def test_hd95_of_a_shift_is_the_shift_in_mm() -> None:
    truth, prediction = np.zeros((2, 12, 12, 12), np.uint8)
    truth[3:7, 3:7, 3:7] = 1
    prediction[5:9, 3:7, 3:7] = 1
    one, two = hd95_by_class(prediction, truth, 3, (1.5, 1.0, 1.0))
    assert one == pytest.approx(3.0)
    assert math.isnan(two)


def test_hd95_of_the_box_is_that_of_the_volume() -> None:
    rng = np.random.default_rng(2)
    truth, prediction = (rng.random((2, 14, 15, 16)) > 0.97).astype(np.uint8)
    expected = compute_hausdorff_distance(
        torch.from_numpy(prediction)[None, None].bool(),
        torch.from_numpy(truth)[None, None].bool(),
        include_background=True,
        percentile=95,
        spacing=[2.0, 1.0, 0.5],
    )
    assert hd95_by_class(prediction, truth, 2, (2.0, 1.0, 0.5))[0] == pytest.approx(
        float(expected[0, 0])
    )


def test_means_leave_out_what_has_no_score() -> None:
    cases = [CaseScore("a", (0.5, math.nan)), CaseScore("b", (0.7, 0.9))]
    assert mean_over_cases(cases) == pytest.approx((0.5 + 0.8) / 2)
    assert class_means([case.dice for case in cases]) == pytest.approx((0.6, 0.9))
    assert math.isnan(mean_over_cases([CaseScore("c", (math.nan,))]))
