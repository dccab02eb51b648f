"""Intensities on the way in: 64-bit integers, mixed channels, windows, NaN, negative slopes."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import zarr

from mim3d.dataio.chunks.decode import Rescale
from mim3d.dataio.convert import values
from mim3d.dataio.convert.run import ConversionReport, convert
from mim3d.dataio.corpus.chunk_table import ChunkTable
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.corpus.manifest import VolumeRecord
from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.inspect.verify import verify
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.reader.shard_reader import ShardReader
from mim3d.dataio.sources.source import Source
from mim3d.engine.commands.cli import main

SHAPE = (14, 15, 16)


def save(file: Path, voxels: np.ndarray, slope: float = 1.0, intercept: float = 0.0) -> str:
    """A .nii of stored voxels (x, y, z) with that scaling in its header."""
    image = nib.Nifti1Image(voxels, np.eye(4), dtype=voxels.dtype)
    image.to_filename(file)
    data = bytearray(file.read_bytes())
    data[112:120] = np.array([slope, intercept], "<f4").tobytes()
    file.write_bytes(data)
    return str(file)


def converted(
    tmp_path: Path, *paths: str, **options
) -> tuple[ConversionReport, VolumeRecord | None, np.ndarray]:
    """Report, record and stored voxels in the source's axes (c, x, y, z)."""
    report = convert([Source("a", paths)], tmp_path / "c", Conversion(**options), workers=1)
    records = Corpus.open(tmp_path / "c").records
    if not records:
        return report, None, np.empty(0)
    assert not verify(tmp_path / "c").problems
    stored = np.asarray(zarr.open_array(str(tmp_path / "c" / "a" / "0"), mode="r")[...])
    return report, records[0], stored.reshape(-1, *stored.shape[-3:]).transpose(0, 3, 2, 1)


@pytest.mark.parametrize(
    ("dtype", "low", "high", "wanted"),
    [
        ("int64", 0, 255, "uint8"),
        ("int64", -100, 100, "int8"),
        ("int64", -1024, 3071, "int16"),
        (">i8", 0, 40_000, "uint16"),
        ("int64", -70_000, 9, "int32"),
        ("uint64", 7, 2**32 - 1, "uint32"),
    ],
)
def test_64_bit_integers_become_the_smallest_that_hold_them(tmp_path, dtype, low, high, wanted):
    voxels = np.random.default_rng(0).integers(low, high, SHAPE, np.int64, endpoint=True)
    voxels.flat[:2] = low, high
    path = save(tmp_path / "a.nii", voxels.astype(dtype))
    report, record, got = converted(tmp_path, path)
    assert not report.rejections and record is not None
    np.testing.assert_array_equal(got[0].astype(np.int64), voxels)
    assert (got.dtype.name, record.dtype, record.cast_max_error) == (wanted, wanted, 0)
    assert record.source_dtype in ("int64", "uint64")
    assert any(f"stored as {wanted}" in found for found in record.warnings)
    corpus, out = str(tmp_path / "c"), str(tmp_path / "out")
    assert main(["inspect", corpus, "--out", out]) == 0
    assert main(["export-nifti", corpus, out]) == 0
    back = np.asarray(nib.load(tmp_path / "out/images/a.nii.gz").dataobj)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(back.astype(np.int64), voxels)


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_a_corpus_of_64_bit_integers_made_before_is_read(tmp_path, dtype, monkeypatch):
    monkeypatch.setattr(values, "_narrow_integers", lambda given, path: given)
    voxels = np.random.default_rng(0).integers(0, 2**40, SHAPE).astype(dtype)
    _, record, _ = converted(tmp_path, save(tmp_path / "a.nii", voxels))
    assert record is not None and record.dtype == dtype
    table = ChunkTable.open(tmp_path / "c")
    reader = ShardReader(table, tmp_path / "c")
    got = reader.read_box(0, (0, 0, 0), (16, 15, 14))[0]
    np.testing.assert_array_equal(got.transpose(2, 1, 0), voxels)
    crop = np.empty((1, 9, 9, 9), np.float32)
    reader.read_box(0, (1, 2, 3), (9, 9, 9), crop, rescale=Rescale(-np.inf, np.inf, 0.5, 1.0))
    wanted = voxels.transpose(2, 1, 0)[1:10, 2:11, 3:12].astype(np.float32) * 0.5 + 1
    np.testing.assert_allclose(crop[0], wanted, rtol=1e-6)
    corpus, out = str(tmp_path / "c"), str(tmp_path / "out")
    assert main(["inspect", corpus, "--out", out]) == 0
    assert main(["export-nifti", corpus, out]) == 0


def test_integers_beyond_32_bits_are_told(tmp_path):
    voxels = np.zeros(SHAPE, np.int64)
    voxels[0, 0, 0], voxels[1, 1, 1] = -1, 2**32
    report, record, _ = converted(tmp_path, save(tmp_path / "a.nii", voxels))
    assert record is None
    (rejection,) = report.rejections
    assert rejection.code == "too-wide"
    assert "-1 to 4294967296" in rejection.detail


def test_channels_of_several_integers_stay_exact(tmp_path):
    wide = np.full(SHAPE, 2**24 + 1, np.int32)
    small = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    paths = save(tmp_path / "a.nii", wide), save(tmp_path / "b.nii", small)
    _, record, got = converted(tmp_path, *paths)
    assert record is not None and (record.dtype, record.cast_max_error) == ("int32", 0)
    np.testing.assert_array_equal(got, np.stack([wide, small]))


def test_channels_that_need_floats_record_their_largest_change(tmp_path):
    wide = np.full(SHAPE, 2**24 + 1, np.int32)
    half = np.full(SHAPE, 3, np.uint8)
    paths = save(tmp_path / "a.nii", wide), save(tmp_path / "b.nii", half, 0.5)
    _, record, got = converted(tmp_path, *paths)
    assert record is not None and record.dtype == "float32"
    assert record.cast_max_error == 1
    np.testing.assert_array_equal(got[1], 1.5)


def test_a_negative_slope_has_the_foreground_of_its_real_values(tmp_path):
    rng = np.random.default_rng(0)
    real = rng.integers(0, 20, (20, 22, 24)).astype(np.int16)
    real[4:16, 5:17, 6:18] += 900
    found = []
    for name, stored, slope in (("pos", real, 1.0), ("neg", -real, -1.0)):
        (tmp_path / name).mkdir()
        path = save(tmp_path / name / "a.nii", stored, slope)
        _, record, got = converted(tmp_path / name, path, foreground=True)
        assert record is not None and got.shape[1:] == (12, 12, 12)
        found.append((record.intensity, record.foreground, record.foreground_box))
        np.testing.assert_array_equal(record.slope * got[0], real[4:16, 5:17, 6:18])
        assert record.foreground_threshold < record.foreground.minimum
    assert found[0] == found[1]


def test_a_negative_slope_with_channels_and_kept_nan(tmp_path):
    real = np.random.default_rng(0).normal(0, 1, SHAPE).astype(np.float32)
    real[3:7, 4:8, 5:9] += 90
    real[0, 0, 0], real[5, 5, 5] = np.nan, np.inf
    paths = [
        save(tmp_path / f"{i}.nii", -voxels, -1.0) for i, voxels in enumerate((real, real / 2))
    ]
    _, record, _ = converted(tmp_path, *paths, nan_policy="keep")
    assert record is not None
    assert record.foreground_box == ((5, 4, 3), (9, 8, 7))


@pytest.mark.parametrize("intercept", [0.0, 10.0])
def test_nan_becomes_a_real_zero(tmp_path, intercept):
    voxels = np.ones(SHAPE, np.float32)
    voxels[2, 3, 4], voxels[5, 5, 5] = np.nan, np.inf
    path = save(tmp_path / "a.nii", voxels, 2.0, intercept)
    _, record, got = converted(tmp_path, path, nan_policy="zero")
    assert record is not None
    real = record.slope * got[0] + record.intercept
    assert (real[2, 3, 4], real[5, 5, 5], real[0, 0, 0]) == (0, 0, 2 + intercept)


@pytest.mark.parametrize("policy", ["keep", "zero"])
def test_a_volume_without_any_finite_voxel_is_told(tmp_path, policy):
    path = save(tmp_path / "a.nii", np.full(SHAPE, np.nan, np.float32))
    report, record, _ = converted(tmp_path, path, nan_policy=policy)
    assert record is None
    assert [r.code for r in report.rejections] == ["non-finite"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"nan_policy": "keep", "dtype": "int16"}, "dtype 'int16'"),
        ({"nan_policy": "keep", "dtype": "uint8"}, "dtype 'uint8'"),
        ({"nan_policy": "keep", "spacing_mm": (1.0, 1.0, 1.0)}, "resampling"),
        ({"window": (float("-inf"), 100.0)}, "finite"),
        ({"window": (float("nan"), 100.0)}, "finite"),
    ],
)
def test_what_cannot_be_is_refused_at_once(options, expected):
    with pytest.raises(Mim3dError, match=expected):
        Conversion(**options)


@pytest.mark.parametrize("window", [(300.0, 400.0), (-9.0, -1.0), (0.2, 0.8)])
def test_a_window_no_integer_lies_in_is_told(tmp_path, window):
    voxels = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(np.uint8)
    path = save(tmp_path / "a.nii", voxels)
    report, record, _ = converted(tmp_path, path, window=window)
    assert record is None
    (rejection,) = report.rejections
    assert rejection.code == "window"
    assert "uint8" in rejection.detail


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_a_window_between_integers_is_kept_where_the_dtype_can(tmp_path, dtype):
    voxels = (np.arange(np.prod(SHAPE)) % 3).reshape(SHAPE).astype(np.int16)
    path = save(tmp_path / "a.nii", voxels)
    _, record, got = converted(tmp_path, path, window=(0.2, 0.8), dtype=dtype)
    assert record is not None
    real = record.slope * got[0] + record.intercept
    np.testing.assert_allclose(real, np.clip(voxels, 0.2, 0.8), atol=1e-6)
    assert record.cast_max_error < 1e-6


@pytest.mark.parametrize("dtype", ["native", "float32", "uint8", "int16"])
def test_the_error_of_a_window_is_recorded(tmp_path, dtype):
    slope = float(np.float32(2.008))
    voxels = np.arange(-300, 300, dtype=np.int16).repeat(6).reshape(15, 15, 16)
    path = save(tmp_path / "a.nii", voxels, slope)
    _, record, got = converted(tmp_path, path, window=(-100.0, 240.0), dtype=dtype)
    assert record is not None
    wanted = np.clip(slope * voxels.astype(float), -100, 240)
    gap = np.abs(record.slope * got[0].astype(float) + record.intercept - wanted).max()
    assert gap <= record.cast_max_error * (1 + 1e-6) + 1e-9
    assert record.cast_max_error <= (slope if dtype != "float32" else 1e-4)
    assert record.cast_max_error > 0
