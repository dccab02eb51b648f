"""MRI artefacts through the loader: of each sample its own, on images alone, in every order."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mim3d.bench.corpora import anatomy_like, corpus_of
from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.loader.batch import add_artefacts
from mim3d.dataio.loader.loader import Batch, Loader, LoaderConfig
from mim3d.dataio.transforms.artefacts import NAMES, parsed_artefacts

CROP = (12, 10, 16)
ALL = tuple(f"{name}=0.6" for name in NAMES)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    volumes = [anatomy_like((24, 20, 26), i) for i in range(4)]
    labels = [(volume > 650).astype(np.uint8) for volume in volumes]
    return corpus_of(tmp_path_factory.mktemp("artefacts") / "c.zarr", volumes, labels)


def batches(root: Path, n: int = 3, **options: Any) -> list[Batch]:
    rank, world = options.pop("rank", 0), options.pop("world", 1)
    config = LoaderConfig(**{"crop_size": CROP, "micro_batch": 4, "snap": 4, **options})
    with Loader(root, config, rank=rank, world=world) as loader:
        return [next(loader) for _ in range(n)]


@pytest.mark.parametrize("augment", ["none", "mim", "segmentation", "spatial-segmentation"])
def test_images_change_and_labels_do_not(root, augment):
    plain = batches(root, label="seg", augment=augment)
    changed = batches(root, label="seg", augment=augment, artefacts=ALL)
    for a, b in zip(plain, changed, strict=True):
        assert a.label is not None and b.label is not None
        assert torch.equal(a.label, b.label)
        assert b.image.isfinite().all()
        same = (a.image == b.image).flatten(1).all(1)
        assert not same.all()
    nothing = batches(root, label="seg", augment=augment, artefacts=("gamma=0",))
    assert all(torch.equal(a.image, b.image) for a, b in zip(plain, nothing, strict=True))


def test_they_follow_from_the_sample_alone(root):
    whole = batches(root, artefacts=ALL, augment="spatial", threads=2)
    ranks = [
        batches(root, artefacts=ALL, augment="spatial", micro_batch=2, rank=rank, world=2)
        for rank in range(2)
    ]
    for step, batch in enumerate(whole):
        assert torch.equal(batch.image, torch.cat([ranks[rank][step].image for rank in range(2)]))


def test_each_of_two_views_has_its_own(root):
    for batch in batches(root, views=2, artefacts=("bias-field=1",), augment="contrastive"):
        assert batch.second_view is not None
        assert not torch.equal(batch.image, batch.second_view)


def test_a_view_on_a_gpu_is_given_them_by_the_same_call(root):
    """What the loader does on a GPU after DALI, here on a CPU."""
    plain = batches(root, 1)[0].image
    seeds = np.arange(4, dtype=np.uint64)
    kind, together, alone = parsed_artefacts(ALL), plain.clone(), plain.clone()
    add_artefacts(together, seeds, kind)
    for i in range(4):
        add_artefacts(alone[i : i + 1], seeds[i : i + 1], kind)
    assert torch.equal(together, alone)
    assert not torch.equal(together, plain)


def test_rounding_comes_last(root):
    full = batches(root, 1, artefacts=ALL)[0].image
    half = batches(root, 1, artefacts=ALL, dtype="bfloat16")[0].image
    assert torch.equal(full.bfloat16(), half)


def test_a_wrong_word_is_refused_at_once():
    with pytest.raises(Mim3dError, match="artefacts='rain=1': write NAME=CHANCE"):
        LoaderConfig(artefacts=("rain=1",))
