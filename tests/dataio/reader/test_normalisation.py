"""Normalisation from table statistics: each mode on stored values with slope and intercept."""

import numpy as np
import pytest

from mim3d.dataio.corpus.chunk_table import ARRAY_DTYPE, VOLUME_DTYPE
from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.reader.normalisation import intensities, largest

STATISTICS = {
    "minimum": -1000, "maximum": 3000, "mean": 10, "std": 400, "p005": -990, "p995": 1500,
    "foreground_mean": 100, "foreground_std": 200, "foreground_p005": -300,
    "foreground_p995": 900,
}  # fmt: skip


def rows(slope=1.0, intercept=0.0, **changed):
    volumes, images = np.zeros(1, VOLUME_DTYPE), np.zeros(1, ARRAY_DTYPE)
    for name, value in {**STATISTICS, **changed}.items():
        volumes[name] = value
    images["slope"], images["intercept"] = slope, intercept
    return volumes, images


def apply(mode, real, slope=1.0, intercept=0.0, **changed):
    stored = ((np.asarray(real, np.float64) - intercept) / slope).astype(np.float32)
    return intensities(mode, *rows(slope, intercept, **changed)).affine(0).apply(stored)


@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (0.5, -1024), (-2, 7)])
@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("none", [-1000, 100, 3000]),
        ("zscore", [-5.5, 0, 14.5]),
        ("clip-zscore", [-2, 0, 4]),
        ("percentile", [-1, (100 - 255) / 1245, 1]),
        ("window:-160:240", [-1, 0.3, 1]),
    ],
)
def test_modes(mode, expected, slope, intercept):
    got = apply(mode, [-1000, 100, 3000], slope, intercept)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)


def test_a_constant_volume_becomes_zero_not_nan():
    changed = dict.fromkeys(("foreground_std", "std"), 0.0)
    got = apply("zscore", [10.0, 10.0], foreground_mean=10, mean=10, **changed)
    assert got.tolist() == [0, 0]
    flat = dict.fromkeys(("minimum", "maximum", "p005", "p995"), 5)
    assert apply("percentile", [5.0], **flat).tolist() == [0]


def test_no_foreground_falls_back_to_the_whole_volume():
    got = apply("zscore", [10.0, 410.0], foreground_mean=np.nan, foreground_std=np.nan)
    np.testing.assert_allclose(got, [0, 1], atol=1e-6)


def test_a_foreground_of_one_value_does_not_make_the_volume_one_value():
    """A mask, or bone at the scanner's ceiling: clipping to it would leave nothing else."""
    flat = {"foreground_mean": 255, "foreground_std": 0, "foreground_p005": 255}
    whole = {"minimum": 0, "maximum": 255, "p005": 0, "p995": 255, "mean": 75, "std": 100}
    got = apply("clip-zscore", [0.0, 255.0], **flat, **whole, foreground_p995=255)
    np.testing.assert_allclose(got, [-0.75, 1.8], atol=1e-6)


def test_percentiles_that_coincide_give_way_to_the_extremes():
    """Few bright voxels on a flat ground, as vessels are."""
    sparse = {"minimum": 0, "maximum": 1000, "p005": 0, "p995": 0}
    np.testing.assert_allclose(apply("percentile", [0.0, 500.0, 1000.0], **sparse), [-1, 0, 1])
    one = {**sparse, "foreground_p005": 900, "foreground_p995": 900, "mean": 2, "std": 40}
    spread = {"foreground_mean": 900, "foreground_std": 50}
    got = apply("clip-zscore", [0.0, 1000.0], **one, **spread)
    np.testing.assert_allclose(got, [-18, 2], atol=1e-5)


def test_the_largest_magnitude_counts_clipping_and_scaling():
    volumes, images = rows(slope=-2, intercept=7)
    for mode, want in {"none": 3000, "zscore": 14.5, "percentile": 1, "window:-160:240": 1}.items():
        found = largest(intensities(mode, volumes, images), volumes, images)
        np.testing.assert_allclose(found, [want], rtol=1e-5)


def test_padding_is_the_darkest_value():
    values = intensities("zscore", *rows(slope=2, intercept=-100))
    assert values.fill[0] == (-1000 + 100) / 2


@pytest.mark.parametrize(
    "mode",
    [
        "z-score",
        "window",
        "window:5",
        "window:3:1",
        "window:a:b",
        "",
        "window:-inf:3",
        "window:0:1e39",
    ],
)
def test_unknown_modes_are_refused(mode):
    with pytest.raises(Mim3dError, match="normalise="):
        intensities(mode, *rows())
