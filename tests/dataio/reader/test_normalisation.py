"""Normalisation from table statistics: each mode on stored values with slope and intercept."""

import numpy as np
import pytest

from mim3d.dataio.corpus.channel_rows import CHANNEL_DTYPE
from mim3d.dataio.corpus.chunk_table import ChunkTable, PackedStrings
from mim3d.dataio.corpus.table_rows import ARRAY_DTYPE, VOLUME_DTYPE
from mim3d.dataio.errors import CorpusError, Mim3dError
from mim3d.dataio.reader.normalisation import intensities, largest

STATISTICS = {
    "minimum": -1000, "maximum": 3000, "mean": 10, "std": 400, "p005": -990, "p995": 1500,
    "foreground_mean": 100, "foreground_std": 200, "foreground_p005": -300,
    "foreground_p995": 900, "clipped_mean": 20, "clipped_std": 300,
    "foreground_clipped_mean": 110, "foreground_clipped_std": 160,
}  # fmt: skip
ONE = np.array([0])


def table_of(*channels, slope=1.0, intercept=0.0, n_channels=(1,)):
    """A table of volumes whose channels have these statistics, one after the other."""
    volumes, images = (
        np.zeros(len(n_channels), VOLUME_DTYPE),
        np.zeros(len(n_channels), ARRAY_DTYPE),
    )
    volumes["image"] = np.arange(len(n_channels))
    rows = np.zeros(len(channels), CHANNEL_DTYPE)
    for row, changed in zip(rows, channels, strict=True):
        for name, value in {**STATISTICS, **changed}.items():
            row[name] = value
    images["slope"], images["intercept"] = slope, intercept
    images["channels"] = n_channels
    none = np.empty(0)
    ids = PackedStrings(np.frombuffer(b"abc", np.uint8), np.arange(4))
    return ChunkTable("root", volumes, images, none, none, ids, ids, (), stored_channels=rows)


def apply(mode, real, slope=1.0, intercept=0.0, **changed):
    stored = ((np.asarray(real, np.float64) - intercept) / slope).astype(np.float32)
    table = table_of(changed, slope=slope, intercept=intercept)
    (rescale,) = intensities(mode, table, ONE).rescales(0)
    return rescale.apply(stored)


@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (0.5, -1024), (-2, 7)])
@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("none", [-1000, 100, 3000]),
        ("zscore", [-5.5, 0, 14.5]),
        ("clip-zscore", [(-300 - 110) / 160, -10 / 160, (900 - 110) / 160]),
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
    flat |= {"foreground_clipped_mean": 255, "foreground_clipped_std": 0}
    whole = {"minimum": 0, "maximum": 255, "p005": 0, "p995": 255, "mean": 75, "std": 100}
    whole |= {"clipped_mean": 75, "clipped_std": 100}
    got = apply("clip-zscore", [0.0, 255.0], **flat, **whole, foreground_p995=255)
    np.testing.assert_allclose(got, [-0.75, 1.8], atol=1e-6)


def test_percentiles_that_coincide_give_way_to_the_extremes():
    """Few bright voxels on a flat ground, as vessels are."""
    sparse = {"minimum": 0, "maximum": 1000, "p005": 0, "p995": 0}
    np.testing.assert_allclose(apply("percentile", [0.0, 500.0, 1000.0], **sparse), [-1, 0, 1])
    one = {**sparse, "foreground_p005": 900, "foreground_p995": 900, "mean": 2, "std": 40}
    spread = {"foreground_mean": 900, "foreground_std": 50}
    spread |= {"foreground_clipped_std": 0, "clipped_std": 0}
    got = apply("clip-zscore", [0.0, 1000.0], **one, **spread)
    np.testing.assert_allclose(got, [-18, 2], atol=1e-5)


def test_the_largest_magnitude_counts_clipping_and_scaling():
    table = table_of({}, slope=-2, intercept=7)
    for mode, want in {"none": 3000, "zscore": 14.5, "percentile": 1, "window:-160:240": 1}.items():
        found = largest(intensities(mode, table, ONE), table, ONE)
        np.testing.assert_allclose(found, [want], rtol=1e-5)


def test_padding_is_the_darkest_value():
    values = intensities("zscore", table_of({}, slope=2, intercept=-100), ONE)
    assert values.fills(0) == ((-1000 + 100) / 2,)


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
        intensities(mode, table_of({}), ONE)


def test_each_channel_has_its_own_statistics_and_only_chosen_volumes_are_looked_at():
    """Two volumes, of one channel and of three; the first has no statistics and is not chosen."""
    scales = (1.0, 100.0, 5000.0)
    channels = [{"mean": np.nan}] + [
        {name: value * scale for name, value in STATISTICS.items()} for scale in scales
    ]
    table = table_of(*channels, n_channels=(1, 3))
    for mode in ("zscore", "clip-zscore", "percentile"):
        values = intensities(mode, table, np.array([1]))
        rescales = values.rescales(1)
        assert len(rescales) == 3 and values.fills(1) == tuple(-1000 * scale for scale in scales)
        for scale, rescale in zip(scales, rescales, strict=True):
            np.testing.assert_allclose(rescale.scale * scale, rescales[0].scale, rtol=1e-6)
            np.testing.assert_allclose(rescale.shift, rescales[0].shift, rtol=1e-5, atol=1e-6)
    assert largest(intensities("none", table, np.array([1])), table, np.array([1])) == [15e6]


def test_a_channel_of_one_value_becomes_zero_and_the_others_stay_as_they_are():
    flat = dict.fromkeys(STATISTICS, 7.0) | {
        name: 0.0 for name in STATISTICS if name.endswith("std")
    }
    table = table_of({}, flat, n_channels=(2,))
    for mode in ("zscore", "clip-zscore", "percentile"):
        first, second = intensities(mode, table, ONE).rescales(0)
        assert second.apply(np.full(3, 7, np.float32)).tolist() == [0, 0, 0]
        assert np.isfinite(second).all() or mode == "zscore"
        assert first == intensities(mode, table_of({}), ONE).rescales(0)[0]


def test_statistics_that_are_missing_are_refused_with_the_volume_and_the_remedy():
    pooled = dict.fromkeys(STATISTICS, np.nan)
    table = table_of(pooled, pooled, {}, n_channels=(2, 1))
    with pytest.raises(CorpusError, match=r"volume a has 2 channels .* run the same `mim3d conv"):
        intensities("none", table, np.array([0, 1]))
    old = {name: np.nan for name in STATISTICS if "clipped" in name}
    table = table_of({}, old, n_channels=(1, 1))
    with pytest.raises(CorpusError, match=r"volume b, .* into a new folder, or use normalise='z"):
        intensities("clip-zscore", table, np.array([0, 1]))
    assert len(intensities("zscore", table, np.array([0, 1])).low) == 2
