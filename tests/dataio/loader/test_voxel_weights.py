"""Weights of crops against whole volumes: padding, air and what labels mark, cut as crops are."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from mim3d.dataio.convert.run import convert
from mim3d.dataio.errors import CorpusError, Mim3dError
from mim3d.dataio.loader.batch import Batch
from mim3d.dataio.loader.loader import Loader, LoaderConfig
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.reader.voxel_weights import between
from mim3d.dataio.sources.source import Source
from mim3d.dataio.transforms.augment import Augmentation

SIZE = (12, 16, 10)
SHAPES = [(20, 24, 28), (9, 30, 18), (33, 14, 7)]
Arrays = dict[str, np.ndarray]


def body(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """Something bright in noise, near one corner."""
    rng = np.random.default_rng(seed)
    voxels = rng.normal(20, 6, shape)
    inside = tuple(slice(1, 3 * n // 4) for n in shape)
    voxels[inside] += rng.normal(300, 60, voxels[inside].shape)
    return voxels


def saved(path: Path, voxels: np.ndarray, slope: float = 1.0) -> str:
    """A NIfTI file of (z, y, x) voxels whose real values are slope times those stored."""
    image = nib.Nifti1Image(voxels.transpose(2, 1, 0), np.eye(4))
    if slope != 1.0:
        image = nib.Nifti1Image(np.asarray(voxels.transpose(2, 1, 0), np.int16), np.eye(4))
        image.header.set_slope_inter(slope, 0)
    nib.save(image, path)
    return str(path)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> dict[str, Path]:
    """Whole numbers, floats, values that fall as they are stored; two channels, one of which a
    volume lacks. The first two volumes have masks, of which one is int16 and marks by -3."""
    root = tmp_path_factory.mktemp("weights")
    made = {}
    for kind in ("int16", "float32", "falling", "channels"):
        sources = []
        for k, shape in enumerate(SHAPES):
            name = root / f"{kind}-{k}"
            voxels, images = body(shape, k), []
            if kind == "falling":
                images.append(saved(Path(f"{name}.nii"), np.rint(-voxels / 2), slope=-2.0))
            else:
                dtype = np.float32 if kind == "float32" else np.int16
                images.append(saved(Path(f"{name}.nii"), voxels.astype(dtype)))
            if kind == "channels":
                other = np.zeros(shape) if k == 1 else body(shape, k + 10)[::-1, ::-1]
                images.append(saved(Path(f"{name}-1.nii"), other.astype(np.int16)))
            labels = {}
            if k < 2:
                mask = np.zeros(shape, np.int16 if k else np.uint8)
                mask[2:9, :5, 3:9] = -3 if k else 1
                labels["anonymization_mask"] = saved(Path(f"{name}-mask.nii"), mask)
            sources.append(Source(f"v{k}", tuple(images), labels))
        report = convert(sources, root / f"{kind}.zarr", workers=1)
        assert report.n_volumes == 3 and not report.rejections
        made[kind] = root / f"{kind}.zarr"
    return made


def config(**settings) -> LoaderConfig:
    return LoaderConfig(**{"crop_size": SIZE, "micro_batch": 6, "snap": 1} | settings)


def batches(corpus: Path, n: int = 3, **settings) -> list[Batch]:
    with Loader(corpus, config(**settings)) as loader:
        return [next(loader) for _ in range(n)]


def whole(corpus: Path) -> list[Arrays]:
    """Of every volume what is foreground and what is not masked, from its own voxels."""
    found = []
    with Loader(corpus, config(normalise="none")) as loader:
        reader, table = loader._source.reader, loader.corpus.table
        records = {record.id: record for record in Corpus.open(corpus).records}
        for volume in range(table.n_volumes):
            record = records[table.volume_id(volume)]
            row = int(table.volumes["image"][volume])
            stored = reader.read_box(row, (0, 0, 0), record.shape).astype(np.float64)
            real = stored * record.slope + record.intercept
            shown = np.zeros(record.shape, bool)
            for channel, each in zip(real, record.channel_records, strict=True):
                if each.foreground_rule != "all":
                    shown |= channel > each.foreground_threshold
            clear = np.ones(record.shape, bool)
            if record.labels:
                mask = reader.read_box(row + 1, (0, 0, 0), record.shape)[0]
                clear = mask == 0
            found.append({"air": shown, "label": clear, "padding": np.ones(record.shape, bool)})
    return found


def cut(volume: np.ndarray, start: list[int], beyond: bool) -> np.ndarray:
    """A crop of a volume, `beyond` where it overhangs."""
    margin = 40
    padded = np.pad(volume, margin, constant_values=beyond)
    begin = [margin + s for s in start]
    return padded[tuple(slice(s, s + n) for s, n in zip(begin, SIZE, strict=True))]


def wanted(corpus: Path, batch: Batch, ignored: tuple[str, ...]) -> np.ndarray:
    volumes, crops = whole(corpus), []
    for volume, start in zip(batch.volume.tolist(), batch.start.tolist(), strict=True):
        counts = np.ones(SIZE, bool)
        for word in ignored:
            kind = word.split(":")[0]
            counts &= cut(volumes[volume][kind], start, kind == "label")
        crops.append(counts)
    return np.stack(crops)[:, None]


ALL = ("padding", "air", "label:anonymization_mask")


@pytest.mark.parametrize(
    ("ignored", "cache"),
    [
        *((ignored, "none") for ignored in (ALL[:1], ALL[1:2], ALL[2:], ALL)),
        *((ignored, "device") for ignored in (ALL[:1], ALL[1:2])),
    ],
)
@pytest.mark.parametrize("kind", ["int16", "float32", "falling", "channels"])
def test_crops_count_as_their_volumes_do(corpora, kind, ignored, cache):
    corpus = corpora[kind]
    for batch in batches(corpus, ignore=ignored, cache=cache):
        weight = np.ones((6, 1, *SIZE)) if batch.weight is None else batch.weight.numpy()
        assert weight.dtype == np.uint8 or batch.weight is None
        assert batch.label is None
        np.testing.assert_array_equal(weight, wanted(corpus, batch, ignored))


@pytest.mark.parametrize("ignored", [ALL[:1], ALL])
def test_weights_are_flipped_with_their_voxels(corpora, ignored):
    """And gain and bias move no threshold."""
    plain = batches(corpora["float32"], ignore=ignored, augment="none")
    moved = batches(corpora["float32"], ignore=ignored, augment="mim")
    label = batches(corpora["float32"], augment="mim", n=1)
    assert torch.equal(label[0].image, moved[0].image)
    for before, after in zip(plain, moved, strict=True):
        assert before.weight is not None and after.weight is not None
        for image, changed, weight, other in zip(
            before.image, after.image, before.weight, after.weight, strict=True
        ):
            for axes in ([], [1], [2], [3], [1, 2], [1, 3], [2, 3], [1, 2, 3]):
                pair = torch.stack([image.flip(axes).flatten(), changed.flatten()])
                if torch.corrcoef(pair)[0, 1] > 0.9999:
                    assert torch.equal(weight.flip(axes), other)
                    break
            else:
                raise AssertionError("no flip gives this crop")


@pytest.fixture(scope="module")
def masked(tmp_path_factory) -> Path:
    """Two volumes with a mask `m`, one smaller than a crop, and `whole`, of all that they have."""
    root = tmp_path_factory.mktemp("masked")
    sources = []
    for k, shape in enumerate([(20, 24, 28), (9, 24, 18)]):
        labels = {
            "m": saved(root / f"m{k}.nii", (body(shape, 5) > 200).astype(np.uint8)),
            "whole": saved(root / f"w{k}.nii", np.ones(shape, np.uint8)),
        }
        image = saved(root / f"{k}.nii", body(shape, k).astype(np.int16))
        sources.append(Source(str(k), (image,), labels))
    convert(sources, root / "c.zarr", workers=1)
    return root / "c.zarr"


@pytest.mark.parametrize(
    ("augment", "cache"),
    [
        ("segmentation", "none"),
        ("segmentation", "device"),
        ("spatial-segmentation", "none"),
        ("spatial-segmentation", "device"),
    ],
)
def test_weights_are_moved_as_labels_are(masked, augment, cache):
    """Under flips, zoom and rotation, within the crop and within the volume."""
    settings: dict[str, Any] = {"augment": augment, "cache": cache, "micro_batch": 8, "n": 4}
    whole = batches(masked, label="whole", **settings)
    labels = batches(masked, label="m", **settings)
    ignored = {
        words: batches(masked, ignore=words, **settings)
        for words in (("label:m",), ("padding",), ("padding", "label:m"))
    }
    for k, (full, label) in enumerate(zip(whole, labels, strict=True)):
        assert full.label is not None and label.label is not None
        wanted = {
            ("label:m",): label.label == 0,
            ("padding",): full.label == 1,
            ("padding", "label:m"): (full.label == 1) & (label.label == 0),
        }
        for words, counted in wanted.items():
            found = ignored[words][k]
            assert torch.equal(found.image, label.image)
            assert found.weight is not None
            assert torch.equal(found.weight[:, 0], counted.to(torch.uint8)), words


def test_air_is_what_was_air_before_it_was_turned(masked):
    """So what is blended from both sides of its edge is of the side that is nearer."""
    plain = batches(masked, augment="spatial", ignore=("air",), micro_batch=8)
    for batch in plain:
        assert batch.weight is not None
        share = batch.weight.float().mean((1, 2, 3, 4))
        assert ((share > 0) & (share < 1)).all()
        bright = batch.image[batch.weight.bool()].mean()
        assert bright > 2 + batch.image[~batch.weight.bool()].mean()


@pytest.mark.parametrize("normalise", ["none", "clip-zscore", "percentile", "window:100:400"])
def test_where_a_normalisation_clips_what_it_clips_low_is_air(corpora, normalise):
    for kind in ("int16", "falling"):
        corpus = corpora[kind]
        for batch in batches(corpus, ignore=("air",), normalise=normalise, augment="none"):
            assert batch.weight is not None
            foreground = wanted(corpus, batch, ("air",))
            weight = batch.weight.numpy().astype(bool)
            darkest = batch.image.amin((1, 2, 3, 4), keepdim=True).numpy()
            if normalise in ("none", "percentile"):
                np.testing.assert_array_equal(weight, foreground)
            assert not (weight & ~foreground).any()
            assert (batch.image.numpy()[foreground & ~weight] <= darkest.max()).all()


def test_an_inverted_contrast_ignores_the_same(corpora, monkeypatch):
    kind = Augmentation(gain=(-1.2, -0.8), bias=(-0.1, 0.1))
    monkeypatch.setattr(LoaderConfig, "augmentation", property(lambda config: kind))
    for name in ("int16", "falling"):
        for cache in ("none", "device"):
            for batch in batches(corpora[name], ignore=("air",), cache=cache):
                assert batch.weight is not None
                found = wanted(corpora[name], batch, ("air",))
                np.testing.assert_array_equal(batch.weight.numpy(), found)


def test_weights_are_the_same_at_any_world_size_and_after_a_resume(corpora):
    settings = {"ignore": ALL, "augment": "mim", "micro_batch": 4}
    with Loader(corpora["int16"], config(**settings)) as one:
        first = next(one)
        state = one.state_dict()
        second = next(one)
    ranks = [
        Loader(corpora["int16"], config(**settings | {"micro_batch": 2}), rank=r, world=2)
        for r in range(2)
    ]

    def halves() -> torch.Tensor:
        parts = [next(rank).weight for rank in ranks]
        return torch.cat([part for part in parts if part is not None])

    assert first.weight is not None and torch.equal(first.weight, halves())
    for rank in ranks:
        rank.load_state_dict(state)
    assert second.weight is not None and torch.equal(second.weight, halves())
    for rank in ranks:
        rank.close()


def test_bfloat16_crops_have_the_weights_of_float32(corpora):
    for batch in batches(corpora["int16"], ignore=("air",), dtype="bfloat16"):
        assert batch.image.dtype == torch.bfloat16 and batch.weight is not None
        found = wanted(corpora["int16"], batch, ("air",))
        np.testing.assert_array_equal(batch.weight.numpy(), found)


def test_masks_of_two_kinds_send_the_cache_to_the_host(corpora):
    with (
        pytest.warns(match="labels 'anonymization_mask' of int16, uint8"),
        Loader(corpora["int16"], config(ignore=ALL, cache="device")) as loader,
    ):
        assert loader.config.cache == "host"


def test_volumes_without_a_mask_and_those_it_covers_are_told(tmp_path):
    image = [saved(tmp_path / f"{k}.nii", body((12, 12, 12), k).astype(np.int16)) for k in range(3)]
    full = saved(tmp_path / "full.nii", np.ones((12, 12, 12), np.uint8))
    sources = [Source("a", (image[0],), {"m": full}), Source("b", (image[1],))]
    convert(sources, tmp_path / "c.zarr", workers=1)
    settings = {"ignore": ("label:m",), "crop_size": (12, 8, 10)}
    with Loader(tmp_path / "c.zarr", config(**settings)) as loader:
        assert loader.weights is not None
        assert loader.weights.remarks(2) == [
            "1 of 2 volumes have no label 'm': nothing of them is ignored by it",
            "label 'm' covers 1 of 2 volumes whole: their crops are drawn, and none of their "
            "voxels is scored",
        ]
        batch = next(loader)
        assert batch.weight is not None
        by_volume = batch.weight.amin((1, 2, 3, 4)), batch.weight.amax((1, 2, 3, 4))
        covered = batch.volume == loader.corpus.table.index("a")
        for extreme in by_volume:
            assert torch.equal(extreme == 0, covered)
    with pytest.raises(CorpusError, match=r"has no label 'x'; its labels: m"):
        Loader(tmp_path / "c.zarr", config(ignore=("label:x",)))
    for subject, why in (("b", "is of none"), ("a", "covers all")):
        with pytest.raises(Mim3dError, match=f"label 'm', which is to be ignored, {why} of the 1"):
            Loader(tmp_path / "c.zarr", config(ignore=("label:m",)), subjects=[subject])
        Loader(tmp_path / "c.zarr", config(ignore=()), subjects=[subject]).close()


@pytest.mark.parametrize("kind", ["constant", "one voxel"])
def test_a_volume_without_foreground(tmp_path, kind):
    """Nothing of a constant volume is air; of one with a single bright voxel all but that is."""
    voxels = np.full((12, 12, 12), 7, np.int16)
    if kind == "one voxel":
        voxels[5, 5, 5] = 900
    convert([Source("a", (saved(tmp_path / "a.nii", voxels),))], tmp_path / "c.zarr", workers=1)
    (batch,) = batches(tmp_path / "c.zarr", n=1, ignore=("air",), crop_size=(12, 12, 16))
    assert batch.weight is not None
    each = batch.weight.sum((1, 2, 3, 4), dtype=torch.int64)
    assert (each == (12**3 if kind == "constant" else 1)).all()


def test_no_label_goes_beside_weights():
    others: list[dict[str, Any]] = [{"label": "seg"}, {"views": 2, "augment": "contrastive"}]
    for other in others:
        with pytest.raises(Mim3dError, match="goes with one view and no label"):
            LoaderConfig(ignore=("air",), **other)


def test_thresholds_lie_between_whole_numbers():
    assert between(99.2, falling=False) == 99.5  # above it: 100 and more
    assert between(100.0, falling=False) == 100.5
    assert between(100.0 - 1e-9, falling=False) == 100.5  # rounded, on its way through real values
    assert between(-100.0, falling=True) == -100.5  # below it: -101 and less
    assert between(-99.2, falling=True) == -99.5
