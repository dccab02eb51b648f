"""Dice and the 95th-percentile Hausdorff distance of one case, by class, background left out.

A class absent from truth and prediction alike has no score (NaN) and is left out of means; one
absent from the truth but predicted has Dice 0. A distance exists only where both are present.
"""

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class CaseScore:
    """Scores of one volume; entry i is class i + 1. `hd95` (mm) is empty where not computed."""

    volume: str
    dice: tuple[float, ...]
    hd95: tuple[float, ...] = ()

    @property
    def mean_dice(self) -> float:
        """Mean over the classes that have a score, NaN where none has."""
        return mean_of(self.dice)

    @property
    def mean_hd95(self) -> float:
        """Mean over the classes that have a distance, NaN where none has."""
        return mean_of(self.hd95)


def dice_by_class(prediction: np.ndarray, truth: np.ndarray, classes: int) -> tuple[float, ...]:
    """Dice of classes 1 .. classes-1 of two integer label volumes of one shape."""
    if prediction.shape != truth.shape:
        raise ValueError(f"shapes differ: prediction {prediction.shape}, truth {truth.shape}")
    joint = np.bincount(
        truth.ravel().astype(np.int64) * classes + prediction.ravel(), minlength=classes * classes
    )
    table = joint[: classes * classes].reshape(classes, classes)
    both, sizes = table.diagonal(), table.sum(0) + table.sum(1)
    return tuple(
        math.nan if sizes[k] == 0 else float(2 * both[k] / sizes[k]) for k in range(1, classes)
    )


def hd95_by_class(
    prediction: np.ndarray, truth: np.ndarray, classes: int, spacing_mm: Sequence[float]
) -> tuple[float, ...]:
    """Distances in mm, by MONAI, of classes 1 .. classes-1; NaN where undefined."""
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance

    wanted = [k for k in range(1, classes) if (prediction == k).any() and (truth == k).any()]
    found = dict.fromkeys(range(1, classes), math.nan)
    for k in wanted:
        box = _shared_box(prediction == k, truth == k)
        pair = [torch.from_numpy((volume[box] == k)[None, None]) for volume in (prediction, truth)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            distance = compute_hausdorff_distance(
                *pair, include_background=True, percentile=95, spacing=list(spacing_mm)
            )
        found[k] = float(distance[0, 0])
    return tuple(found[k] for k in range(1, classes))


def mean_over_cases(cases: Iterable[CaseScore]) -> float:
    """Mean over cases of each case's mean Dice; NaN where no case has any."""
    return mean_of([case.mean_dice for case in cases])


def class_means(rows: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Mean over cases of each class, leaving out cases without a score."""
    return tuple(mean_of(column) for column in zip(*rows, strict=True))


def mean_of(values: Sequence[float]) -> float:
    """Mean of the finite values, NaN where there is none."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _shared_box(one: np.ndarray, other: np.ndarray) -> tuple[slice, ...]:
    """Box around both masks with a voxel to spare: distances lie within, the rest costs time."""
    places = np.argwhere(one | other)
    low, high = places.min(0), places.max(0) + 1
    return tuple(slice(max(int(a) - 1, 0), int(b) + 1) for a, b in zip(low, high, strict=True))
