"""Statistics of each channel: against numpy in float64, missing modalities, NaN, hot voxels."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from skimage.filters import threshold_otsu

from mim3d.bench.corpora import anatomy_like, corpus_of
from mim3d.dataio.convert.measure import measured
from mim3d.dataio.convert.run import convert
from mim3d.dataio.convert.values import Values
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.corpus.manifest import Intensity, VolumeRecord, parse_entry, record_line
from mim3d.dataio.inspect.doubts import corpus_doubts, flat_channels, flattened
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.sources.source import Source
from mim3d.engine.commands.cli import main

SHAPE = (20, 24, 28)  # fewer voxels than the lattice takes: statistics are of all of them
SCALES = (1.0, 100.0, 5000.0)


def modalities(dtype="float32", shape=SHAPE) -> np.ndarray:
    """Three channels (c, z, y, x) of one anatomy, the same but for their scale."""
    return np.stack([anatomy_like(shape, 0, "float32") * s / 500 for s in SCALES]).astype(dtype)


def check(found: Intensity, values: np.ndarray) -> None:
    """Compare with numpy in float64."""
    values = values.astype(np.float64)
    p005, p995 = np.percentile(values, [0.5, 99.5])
    inner = np.clip(values, p005, p995)
    want = (values.min(), values.max(), values.mean(), values.std(), p005, p995)
    got = (found.minimum, found.maximum, found.mean, found.std, found.p005, found.p995)
    np.testing.assert_allclose(got, want, rtol=1e-9)
    assert found.clipped_mean == pytest.approx(inner.mean(), rel=1e-9)
    assert found.clipped_std == pytest.approx(inner.std(), rel=1e-9)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
@pytest.mark.parametrize("slope", [1.0, -0.5])
def test_each_channel_is_measured_as_numpy_measures_it(dtype, slope):
    scale = {"uint8": 0.02, "int16": 1, "float32": 1}[dtype]
    voxels = (modalities() * scale).astype(dtype)
    found = measured(Values(voxels, slope, 3.0))
    assert len(found.by_channel) == 3
    for channel, each in zip(voxels, found.by_channel, strict=True):
        real = slope * channel.astype(np.float64) + 3
        check(each.whole, real)
        inside = real[real > each.threshold] if each.rule == "otsu" else real
        check(each.foreground, inside)
    check(found.whole.whole, slope * voxels.astype(np.float64) + 3)


def test_a_channels_threshold_is_otsus_of_that_channel_and_the_box_is_around_any():
    voxels = np.zeros((3, *SHAPE), np.float32)
    voxels[0, 2:9, 3:9, 4:9] = 1
    voxels[1, 5:12, 5:13, 5:14] = 100
    voxels[2] = 7  # one value everywhere has no foreground
    found = measured(Values(voxels, 1.0, 0.0))
    for channel, each in zip(voxels[:2], found.by_channel, strict=False):
        assert ((channel > each.threshold) == (channel > threshold_otsu(channel))).all()
    assert [each.rule for each in found.by_channel] == ["otsu", "otsu", "all"]
    assert found.box == ((2, 3, 4), (12, 13, 14))


def test_one_channel_is_measured_as_before_and_told_once():
    voxels = anatomy_like(SHAPE, 3)
    alone, stacked = measured(Values(voxels, 1, 0)), measured(Values(voxels[None], 1, 0))
    assert alone.by_channel == () and alone.whole == stacked.whole and alone.box == stacked.box


def converted(tmp_path: Path, volumes: list[np.ndarray], **options) -> list[VolumeRecord]:
    root = corpus_of(tmp_path / "c.zarr", volumes, conversion=Conversion(**options))
    return Corpus.open(root).records


def test_records_and_table_have_every_channel(tmp_path):
    three, one = modalities("int16"), anatomy_like(SHAPE, 5)
    records = converted(tmp_path, [three, one])
    assert [len(record.by_channel) for record in records] == [3, 0]
    assert [len(record.channel_records) for record in records] == [3, 1]
    assert [parse_entry(record_line(record)) for record in records] == records
    table = Corpus.open(tmp_path / "c.zarr").table
    assert table.n_channels.tolist() == [3, 1] and table.first_channel.tolist() == [0, 3]
    every = [channel for record in records for channel in record.channel_records]
    for row, channel in zip(table.channels, every, strict=True):
        assert row["mean"] == np.float32(channel.intensity.mean)
        assert row["clipped_std"] == np.float32(channel.intensity.clipped_std or 0)
        assert row["foreground_clipped_mean"] == np.float32(channel.foreground.clipped_mean or 0)


@pytest.mark.parametrize("policy", ["zero", "keep"])
def test_a_missing_modality_is_told_and_has_no_nan(tmp_path, policy):
    """A channel of zeros, and one that is NaN everywhere."""
    voxels = modalities()
    voxels[1] = 0
    voxels[2] = np.nan
    (record,) = converted(tmp_path, [voxels], nan_policy=policy)
    assert record.constant_channels == [1, 2]
    found = [word for word in record.warnings if "is it missing?" in word]
    assert [word[:14] for word in found] == ["channel 1 of 3", "channel 2 of 3"]
    for channel in record.by_channel[1:]:
        assert channel.foreground_rule == "all" and channel.intensity.std == 0
        assert channel.intensity.mean == 0
    check(record.by_channel[0].intensity, voxels[0])


def test_convert_and_inspect_say_which_channels_are_missing(tmp_path, capsys):
    cases = tmp_path / "imagesTs"
    cases.mkdir()
    for case in range(2):
        for c in range(3):
            voxels = anatomy_like(SHAPE, 3 * case + c) * (case + c != 1)
            image = nib.Nifti1Image(voxels.T, np.eye(4))  # type: ignore[no-untyped-call]
            image.to_filename(cases / f"case{case}_{c:04d}.nii.gz")
    (tmp_path / "dataset.json").write_text(
        '{"channel_names": {"0": "T1", "1": "T2", "2": "FLAIR"}, "labels": {"background": 0},'
        ' "numTraining": 0, "file_ending": ".nii.gz"}'
    )
    root = tmp_path / "c.zarr"
    assert main(["convert", str(tmp_path), str(root)]) == 0
    assert "2 volumes (such as case0): channel 1 of 3 is 0 everywhere" in capsys.readouterr().out
    assert main(["inspect", str(root), "--no-pictures"]) == 0
    out = capsys.readouterr().out
    assert "2 volumes lack one" in out and "case0: channel 1 of 3 is 0 everywhere" in out
    assert [record.constant_channels for record in Corpus.open(root).records] == [[1], [0]]


def test_voxels_that_are_nan_leave_their_channel_alone(tmp_path):
    voxels = modalities()
    voxels[2, 3:6] = np.nan
    (record,) = converted(tmp_path, [voxels], nan_policy="keep")
    check(record.by_channel[2].intensity, voxels[2][np.isfinite(voxels[2])])
    check(record.by_channel[0].intensity, voxels[0])


def test_channels_that_one_scale_of_integers_flattens_are_doubted(tmp_path):
    quantised = converted(tmp_path, [modalities()], dtype="uint8")
    (line,) = flattened(quantised)
    assert "v0000, channel 0, 1" in line and "--dtype float32 or native" in line
    assert corpus_doubts(quantised) == (line,)
    for dtype in ("float32", "native"):
        assert flattened(converted(tmp_path / dtype, [modalities()], dtype=dtype)) == []
    windowed = converted(tmp_path / "w", [modalities()], window=(500.0, 900.0))
    assert windowed[0].constant_channels == [] and flat_channels(windowed[0]) == [0, 1]
    even = [modalities() / np.array(SCALES, np.float32)[:, None, None, None]]
    assert flattened(converted(tmp_path / "even", even, dtype="int16")) == []


def test_frames_as_channels_are_measured_apart(tmp_path):
    frames = np.stack([modalities()[0] * k for k in (1, 2, 3)], -1)
    path = tmp_path / "four.nii"
    nib.Nifti1Image(frames, np.eye(4)).to_filename(path)  # type: ignore[no-untyped-call]
    options = Conversion(time_axis="channels")
    convert([Source("a", (str(path),))], tmp_path / "c", options, workers=1)
    (record,) = Corpus.open(tmp_path / "c").records
    means = [channel.intensity.mean for channel in record.by_channel]
    np.testing.assert_allclose(np.array(means) / means[0], [1, 2, 3], rtol=1e-6)


def test_one_hot_voxel_does_not_move_clipped_statistics():
    voxels = np.random.default_rng(0).normal(4, 1.27, (40, 40, 40)).astype(np.float32)
    cool = measured(Values(voxels, 1.0, 0.0)).whole.foreground
    voxels[20, 20, 20] = 1e6
    hot = measured(Values(voxels, 1.0, 0.0)).whole.foreground
    assert hot.std > 1000 * cool.std
    assert hot.clipped_std == pytest.approx(cool.clipped_std, rel=0.01)
    assert hot.clipped_mean == pytest.approx(cool.clipped_mean, rel=0.01)
