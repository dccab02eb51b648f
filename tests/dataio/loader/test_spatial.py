"""Crops turned within their volumes, through the loader: scipy's voxels, exactly their boxes read,
the same samples at any world size and after a resume."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nibabel.nifti1 import Nifti1Image
from s3_server import s3_server, use_s3
from scipy.ndimage import affine_transform

from mim3d.dataio.convert.run import convert
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.loader import config
from mim3d.dataio.loader.loader import Batch, Loader, LoaderConfig
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.reader.shard_reader import ShardReader
from mim3d.dataio.sources.source import Source
from mim3d.dataio.transforms.augment import Augmentation, augmentation, draw_flips, draw_placements
from mim3d.dataio.transforms.placement import Spatial

CROP = (20, 24, 16)
SHAPES = [(40, 33, 45), (30, 30, 30), (18, 40, 40), (50, 20, 16)]
SPACINGS = [(1.0, 1.0, 1.0), (3.0, 0.8, 0.8), (1.0, 2.0, 1.0), (2.5, 1.2, 0.7)]
ALWAYS = Augmentation(
    flip=0.5, spatial=Spatial(rotate=1.0, degrees=30.0, zoom=0.5, scale=(0.7, 1.4))
)


def corpus(folder: Path, dtype: str, channels: int = 1) -> Path:
    """Volumes whose voxels are no cubes, with labels."""
    rng, sources = np.random.default_rng(0), []
    for i, (shape, spacing) in enumerate(zip(SHAPES, SPACINGS, strict=True)):
        affine = np.diag([*spacing[::-1], 1.0])
        files = []
        for channel in range(channels):
            voxels = (rng.standard_normal(shape) * 40 + 120 + 20 * channel).clip(0, 255)
            files.append(str(folder / f"v{i}-{channel}.nii"))
            Nifti1Image(voxels.astype(dtype).T, affine).to_filename(files[-1])
        marks = (rng.random(shape) < 0.01).astype(np.uint8) * (1 + (i % 2))
        label = str(folder / f"v{i}-seg.nii")
        Nifti1Image(marks.T, affine).to_filename(label)
        sources.append(Source(f"v{i}", tuple(files), {"seg": label}, subject=f"s{i}"))
    convert(sources, folder / "c.zarr", Conversion(), workers=1)
    return folder / "c.zarr"


@pytest.fixture(scope="module", params=[("int16", 1), ("uint8", 1), ("float32", 2)], ids=str)
def root(request, tmp_path_factory) -> Path:
    return corpus(tmp_path_factory.mktemp("spatial"), *request.param)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return corpus(tmp_path_factory.mktemp("spatial"), "int16")


@pytest.fixture
def always(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(config, "augmentation", lambda _name: ALWAYS)
    yield


def options(**more: Any) -> LoaderConfig:
    return LoaderConfig(**{"crop_size": CROP, "micro_batch": 3, "normalise": "none", **more})


def whole(root: Path, row: int, name: str = "image") -> tuple[np.ndarray, float]:
    """Stored voxels (c, z, y, x) of a volume, and the fill of its image."""
    table = Corpus.open(root).table
    at = int(table.volumes["image"][row]) + (name != "image")
    array = ShardReader(table, root).array(at)
    return ShardReader(table, root).read_box(at, (0, 0, 0), array.shape), 0.0


def test_crops_and_labels_are_scipys_of_the_whole_volume(root, always):
    with Loader(root, options(label="seg", threads=2)) as loader:
        table = loader.corpus.table
        for _ in range(3):
            batch = next(loader)
            assert batch.label is not None
            samples = loader.sampler.at(batch.sample.numpy())
            flips = draw_flips(ALWAYS, samples.augment_seed)
            found = draw_placements(
                *(ALWAYS, samples.augment_seed, samples.start, CROP, flips),
                table.volumes[samples.volume],
            )
            assert found is not None
            for i, row in enumerate(batch.volume.tolist()):
                at = found.of(i)
                assert at is not None
                voxels = whole(root, row)[0].astype(np.float64)
                places = np.einsum("ij,jzyx->izyx", at.matrix, np.indices(CROP))
                places += at.offset[:, None, None, None]
                last = np.array(at.shape)[:, None, None, None] - 1
                inside = ((places >= 0) & (places <= last)).all(0)
                outside = ((places < -0.501) | (places > last + 0.501)).any(0)
                given = {"output_shape": CROP, "mode": "nearest"}
                for channel, stored in enumerate(voxels):
                    wanted = affine_transform(
                        stored, at.matrix, at.offset.tolist(), order=1, **given
                    )
                    got = batch.image[i, channel].numpy()
                    assert np.abs(got - wanted)[inside].max(initial=0) <= 1e-4 * 255
                    air = table.channels["minimum"][table.first_channel[row] + channel]
                    assert (got[outside] == np.float32(air)).all()
                marks = affine_transform(
                    whole(root, row, "seg")[0][0], at.matrix, at.offset.tolist(), order=0, **given
                )
                assert (batch.label[i].numpy() == marks)[inside].mean() > 0.999  # but for ties
                assert not batch.label[i].numpy()[outside].any()


def test_exactly_the_box_is_read_and_what_lies_still_is_read_as_before(plain, monkeypatch):
    monkeypatch.setattr(config, "augmentation", lambda _name: replace(ALWAYS, spatial=SOMETIMES))
    reads, read_box = [], ShardReader.read_box

    def watched(self: ShardReader, row: int, start: Any, size: Any, *rest: Any, **more: Any) -> Any:
        reads.append((tuple(start), tuple(size)))
        return read_box(self, row, start, size, *rest, **more)

    monkeypatch.setattr(ShardReader, "read_box", watched)
    with Loader(plain, options(prefetch=1)) as loader:
        batches = [next(loader) for _ in range(8)]
        bytes_read = loader.metrics()["bytes_read"]
        table, wanted, touched = loader.corpus.table, [], 0
        for batch in batches:
            samples = loader.sampler.at(batch.sample.numpy())
            flips = draw_flips(ALWAYS, samples.augment_seed)
            found = draw_placements(
                *(replace(ALWAYS, spatial=SOMETIMES), samples.augment_seed, samples.start, CROP),
                *(flips, table.volumes[samples.volume]),
            )
            assert found is not None
            for i, row in enumerate(samples.volume.tolist()):
                at = found.of(i)
                start = tuple(samples.start[i].tolist()) if at is None else at.start
                size = CROP if at is None else at.size
                wanted.append((start, size))
                array = loader._source.reader.array(int(table.volumes["image"][row]))
                sizes = table.ranges(array.row)[1]
                touched += int(sizes[array.chunks(0, start, size)].sum())
        moved = sum(size != CROP for _, size in wanted)
        assert 4 < moved < 20
    assert reads[: len(wanted)] == wanted
    read_ahead = len(reads) - len(wanted)
    assert read_ahead <= 3
    assert bytes_read <= 1.1 * touched * len(reads) / len(wanted)


SOMETIMES = Spatial(rotate=0.3, degrees=30.0, zoom=0.3, scale=(0.7, 1.4))


def take(loader: Loader, n: int) -> list[Batch]:
    return [next(loader) for _ in range(n)]


def test_a_resume_and_other_world_sizes_give_the_same_samples(plain, always):
    with Loader(plain, options(label="seg", seed=4)) as loader:
        first = take(loader, 2)
        state = loader.state_dict()
        then = take(loader, 2)
    with Loader(plain, options(label="seg", seed=4, threads=2)) as loader:
        loader.load_state_dict(state)
        for a, b in zip(then, take(loader, 2), strict=True):
            assert torch.equal(a.image, b.image)
            assert a.label is not None and b.label is not None
            assert torch.equal(a.label, b.label)
    ranks = []
    for rank in range(3):
        single = options(label="seg", seed=4, micro_batch=1)
        with Loader(plain, single, rank=rank, world=3) as loader:
            ranks.append(take(loader, 2))
    for step, batch in enumerate(first):
        together = torch.cat([ranks[rank][step].image for rank in range(3)])
        assert torch.equal(batch.image, together)


@pytest.mark.parametrize("keeps", ["voxels", "chunks"])
def test_crops_made_on_the_device_are_the_same_bits(root, monkeypatch, keeps):
    """Boxes of several sizes in a batch, beside crops that lie as they are; kept chunks too."""
    kind = replace(ALWAYS, spatial=SOMETIMES, gain=(0.8, 1.2), bias=(-0.2, 0.2))
    monkeypatch.setattr(config, "augmentation", lambda _name: kind)
    same = {"label": "seg", "normalise": "clip-zscore", "micro_batch": 5}
    device_options = options(**same, cache="device", device_keeps=keeps, cache_bytes=1 << 26)
    with Loader(root, options(**same)) as host, Loader(root, device_options) as device:
        for _ in range(5):
            here, there = next(host), next(device)
            assert here.label is not None and there.label is not None
            assert torch.equal(here.image, there.image)
            assert torch.equal(here.label, there.label)
        assert device.metrics()["cache_hits"] > 0


@pytest.mark.gpu
def test_crops_made_on_a_gpu_are_the_same_bits(plain, monkeypatch):
    pytest.importorskip("nvidia.libnvcomp")
    monkeypatch.setattr(config, "augmentation", lambda _name: replace(ALWAYS, spatial=SOMETIMES))
    with (
        Loader(plain, options(label="seg")) as host,
        Loader(plain, options(label="seg", cache="device"), device="cuda") as device,
        Loader(plain, options(label="seg"), device="cuda") as uploaded,
    ):
        for _ in range(5):
            here, there, other = next(host), next(device), next(uploaded)
            for each in (there, other):
                assert torch.equal(here.image, each.image.cpu())
                assert here.label is not None and each.label is not None
                assert torch.equal(here.label, each.label.cpu())


def test_foreground_stays_in_the_middle(plain, always):
    """Where the volume's border leaves room for it: the middle of a crop is turned about itself."""
    crop = (8, 8, 8)
    config_ = options(label="seg", crop_size=crop, snap=1, foreground_fraction=1.0, micro_batch=8)
    with Loader(plain, config_) as loader:
        hits = free = 0
        for _ in range(12):
            batch = next(loader)
            assert batch.label is not None
            shapes = loader.corpus.table.volumes["shape"][batch.volume.numpy()].astype(int)
            start = batch.start.numpy()
            inner = ((start > 0) & (start + 8 < shapes)).all(1)
            near = batch.label[:, 2:7, 2:7, 2:7].reshape(8, -1).amax(1).numpy() > 0
            hits, free = hits + int(near[inner].sum()), free + int(inner.sum())
    assert free > 20
    assert hits / free > 0.9  # a zoom that takes in more steps over single voxels


def test_a_crop_that_cannot_be_read_gives_way_to_one_that_is_turned_too(
    plain, tmp_path, always, spoil
):
    root = Path(shutil.copytree(plain, tmp_path / "c.zarr"))
    spoil(root, 2)
    with Loader(root, options(on_error="replace", label="seg")) as loader:
        batches = take(loader, 6)
        assert loader.metrics()["replaced"] > 0
        assert all(2 not in batch.volume.tolist() for batch in batches)
    with Loader(root, options(on_error="replace", label="seg", threads=2)) as again:
        for a, b in zip(batches, take(again, 6), strict=True):
            assert torch.equal(a.image, b.image)


@pytest.mark.parametrize("name", ["spatial", "spatial-segmentation", "spatial-upright"])
def test_the_named_kinds_run_as_configured(plain, name):
    kind = augmentation(name)
    assert kind.spatial == Spatial(rotate=0.2, degrees=30.0, zoom=0.2, scale=(0.7, 1.4))
    assert not (kind.rotate or kind.zoom)
    with Loader(plain, options(augment=name, dtype="bfloat16", normalise="zscore")) as loader:
        batch = next(loader)
    assert batch.image.dtype == torch.bfloat16
    assert batch.image.float().isfinite().all()


def test_what_cannot_be_together_is_refused():
    for wrong in ({"per_view": True}, {"rotate": 0.5}, {"zoom": 0.5}):
        with pytest.raises(Mim3dError, match="spatial goes with no"):
            replace(Augmentation(spatial=Spatial()), **wrong)
    with pytest.raises(Mim3dError, match="views=2 with augment='spatial'"):
        options(augment="spatial", views=2)


def test_crops_of_a_bucket_are_those_of_the_folder(plain, monkeypatch, tmp_path):
    """Whose boxes are asked for ahead, as other crops are."""
    obstore = pytest.importorskip("obstore.store")
    with s3_server("turned") as address:
        use_s3(address, monkeypatch)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        bucket = obstore.S3Store("turned", virtual_hosted_style_request=False)
        for file in sorted(plain.rglob("*")):
            if file.is_file():
                bucket.put(f"c.zarr/{file.relative_to(plain)}", file.read_bytes())
        kind = replace(ALWAYS, spatial=SOMETIMES)
        monkeypatch.setattr(config, "augmentation", lambda _name: kind)
        with (
            Loader(plain, options(label="seg")) as here,
            Loader("s3://turned/c.zarr", options(label="seg")) as there,
        ):
            for _ in range(4):
                a, b = next(here), next(there)
                assert torch.equal(a.image, b.image)
                assert a.label is not None and b.label is not None
                assert torch.equal(a.label, b.label)
