"""Channels of one volume: each normalised by itself, on every path a crop can take."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from old_corpus import made_before_channels
from skimage.filters import threshold_otsu

from mim3d.bench.corpora import anatomy_like, corpus_of
from mim3d.dataio.convert.run import convert
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.loader.config import LoaderConfig
from mim3d.dataio.loader.loader import Loader
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.reader.shard_reader import ShardReader
from mim3d.dataio.reader.whole_volume import read_volume
from mim3d.dataio.sources.source import Source
from mim3d.engine.commands.cli import main

SHAPE, CROP = (20, 33, 40), (16, 16, 32)
SCALES = (1.0, 100.0, 5000.0)
MODES = ("zscore", "clip-zscore", "percentile", "window:-1:700", "none")


def modalities(seed=0, dtype="float32", scales=SCALES) -> np.ndarray:
    """T1, T2 and FLAIR of one head, roughly: one outline, contrasts that differ, scales apart."""
    base = anatomy_like(SHAPE, seed, "float32")
    head, tissue = base > 300, base / 700
    contrasts = (tissue, (1.6 - tissue) * head, np.sqrt(np.abs(tissue)) * head)
    return np.stack([c * s for c, s in zip(contrasts, scales, strict=True)]).astype(dtype)


def whole(root: Path, volume: int, mode: str) -> np.ndarray:
    reader = ShardReader(Corpus.open(root).table, root)
    return read_volume(reader, volume, None, mode).image


def wanted(channel: np.ndarray, mode: str) -> np.ndarray:
    """The mode as its words have it, by numpy and scikit-image in float64."""
    values = channel.astype(np.float64)
    inside = values[values > threshold_otsu(values.ravel(), nbins=4096)]
    if mode == "zscore":
        return (values - inside.mean()) / inside.std()
    if mode == "clip-zscore":
        low, high = np.percentile(inside, [0.5, 99.5])
        inner = np.clip(inside, low, high)
        return (np.clip(values, low, high) - inner.mean()) / inner.std()
    if mode == "none":
        return values
    low, high = np.percentile(values, [0.5, 99.5]) if mode == "percentile" else (-1, 700)
    return np.clip((values - (low + high) / 2) / ((high - low) / 2), -1, 1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_each_channel_is_normalised_as_numpy_does_it(tmp_path, dtype, mode):
    scales = {"uint8": (50, 60, 100), "int16": (300, 3000, 15000), "float32": SCALES}[dtype]
    voxels = modalities(dtype=dtype, scales=scales)
    root = corpus_of(tmp_path / "c.zarr", [voxels])
    got = whole(root, 0, mode)
    for channel, image in zip(voxels, got, strict=True):
        # Thresholds are bins of two different histograms: a few voxels lie between them.
        np.testing.assert_allclose(image, wanted(channel, mode), rtol=2e-3, atol=0.02)


@settings(max_examples=12)
@given(st.integers(0, 2), st.floats(1e-3, 1e3), st.sampled_from(MODES[:3]))
def test_scaling_one_channel_changes_no_other_and_not_itself(tmp_path_factory, which, factor, mode):
    folder, voxels = tmp_path_factory.mktemp("s"), modalities()
    scaled = voxels.copy()
    scaled[which] *= np.float32(factor)
    root = corpus_of(folder / "c.zarr", [voxels, scaled])
    before, after = whole(root, 0, mode), whole(root, 1, mode)
    for channel in range(3):
        if channel == which:
            np.testing.assert_allclose(after[channel], before[channel], rtol=1e-3, atol=2e-3)
        else:
            np.testing.assert_array_equal(after[channel], before[channel])


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    """Three volumes of three channels at 1 : 100 : 5000, the last without its second modality."""
    volumes = [modalities(seed) for seed in range(3)]
    volumes[2][1] = 0
    labels = [(volume[0] > 0.9).astype(np.uint8) for volume in volumes]
    return corpus_of(tmp_path_factory.mktemp("c") / "c.zarr", volumes, labels)


def batches(root: Path, n: int = 3, **options):
    config = LoaderConfig(**{"crop_size": CROP, "micro_batch": 4, "seed": 1, **options})
    with Loader(root, config) as loader:
        return [next(loader) for _ in range(n)]


def test_crops_and_their_padding_are_those_of_the_whole_volumes(cohort):
    crop = (24, 16, 32)  # taller than the volumes: padded
    for batch in batches(cohort, crop_size=crop):
        assert torch.isfinite(batch.image).all()
        for image, volume, start in zip(batch.image, batch.volume, batch.start, strict=True):
            full = whole(cohort, int(volume), "zscore")
            air = full.reshape(3, -1).min(1)[:, None, None, None]
            z, y, x = start.tolist()
            padded = np.broadcast_to(air, (3, 100, 100, 100)).copy()
            padded[:, 30 : 30 + SHAPE[0], 30 : 30 + SHAPE[1], 30 : 30 + SHAPE[2]] = full
            want = padded[:, z + 30 : z + 54, y + 30 : y + 46, x + 30 : x + 62]
            np.testing.assert_array_equal(image, want)


@pytest.mark.parametrize("cache", ["host", "device"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("augment", ["none", "mim"])
def test_every_cache_gives_the_same_crops(cohort, cache, dtype, augment):
    options = {"dtype": dtype, "augment": augment, "label": "seg"}
    got = batches(cohort, cache=cache, **options)
    for plain, other in zip(batches(cohort, **options), got, strict=True):
        assert torch.equal(plain.image, other.image)
        assert plain.label is not None and other.label is not None
        assert torch.equal(plain.label, other.label)


def test_views_of_one_crop_have_all_channels_on_one_footing(cohort):
    for batch in batches(cohort, views=2, augment="contrastive"):
        for view in (batch.image, batch.second_view):
            assert view is not None and torch.isfinite(view).all()
            present = batch.volume != 2
            spread = view[present].std(dim=(0, 2, 3, 4))
            assert spread.max() < 5 * spread.min()


def test_a_missing_modality_is_zero_and_leaves_the_others_as_they_are(cohort):
    for mode in MODES[:3]:
        image = whole(cohort, 2, mode)
        assert not image[1].any() and np.isfinite(image).all()
        np.testing.assert_allclose(image[0], wanted(modalities(2)[0], mode), rtol=2e-3, atol=0.02)


def test_labels_are_untouched(cohort):
    for batch in batches(cohort, label="seg"):
        assert batch.label is not None
        for volume, start, label in zip(batch.volume, batch.start, batch.label, strict=True):
            (z, y, x), truth = start.tolist(), modalities(int(volume))[0] > 0.9
            part = truth[z : z + CROP[0], y : y + CROP[1], x : x + CROP[2]]
            np.testing.assert_array_equal(label, part)


def test_nan_that_is_kept_stays_in_its_channel_and_spoils_no_statistics(tmp_path):
    voxels = modalities()
    voxels[1, 2, 3, 4] = np.nan
    root = corpus_of(tmp_path / "c.zarr", [voxels], conversion=Conversion(nan_policy="keep"))
    image = whole(root, 0, "zscore")
    assert np.isnan(image).sum() == 1 and np.isnan(image[1, 2, 3, 4])
    np.testing.assert_allclose(image[2], wanted(voxels[2], "zscore"), rtol=2e-3, atol=0.02)


def test_one_hot_voxel_leaves_clip_zscore_as_it_is(tmp_path):
    voxels = modalities()[0]
    hot = voxels.copy()
    hot[10, 10, 10] = 1e6
    root = corpus_of(tmp_path / "c.zarr", [voxels, hot])
    plain, other = whole(root, 0, "clip-zscore"), whole(root, 1, "clip-zscore")
    assert other.std() == pytest.approx(plain.std(), rel=0.02)
    assert other.max() < 1.1 * plain.max()


def test_an_old_corpus_of_channels_is_refused_until_the_same_convert_measures_it(tmp_path):
    root = made_before_channels(corpus_of(tmp_path / "c.zarr", [modalities()]))
    for mode in MODES:
        with pytest.raises(CorpusError, match="run the same `mim3d convert` again") as found:
            batches(root, normalise=mode)
        assert "\n" not in str(found.value) and "v0000 has 3 channels" in str(found.value)
    images = tuple(map(str, sorted((tmp_path / "c.zarr-nifti").glob("*.nii"))))
    report = convert([Source("v0000", images, subject="s0000")], root, workers=1)
    assert (report.n_converted, report.n_unchanged) == (1, 0)
    assert torch.isfinite(batches(root)[0].image).all()


def test_an_old_corpus_of_one_channel_opens_as_before_but_for_clip_zscore(tmp_path):
    voxels = anatomy_like(SHAPE, 0)
    new = corpus_of(tmp_path / "new.zarr", [voxels])
    old = made_before_channels(corpus_of(tmp_path / "old.zarr", [voxels]))
    for mode in ("zscore", "percentile", "window:0:700", "none"):
        for a, b in zip(batches(new, normalise=mode), batches(old, normalise=mode), strict=True):
            assert torch.equal(a.image, b.image)
    with pytest.raises(CorpusError, match="into a new folder, or use normalise='zscore' or 'perc"):
        batches(old, normalise="clip-zscore")
    source, again = tmp_path / "old.zarr-nifti", tmp_path / "again.zarr"
    assert main(["convert", str(source), str(again)]) == 0
    assert torch.isfinite(batches(again, normalise="clip-zscore")[0].image).all()
