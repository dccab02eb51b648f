"""Shares of data sets and chosen volumes: exact over an epoch, the same at any world size."""

import json
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from mim3d.dataio.convert.merge import merge
from mim3d.dataio.convert.run import convert
from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.loader.loader import Loader, LoaderConfig
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.sources.discover import discover
from mim3d.dataio.sources.source import Source

SIZE = (8, 8, 8)


def made(root: Path, name: str, n: int) -> Path:
    rng = np.random.default_rng(n)
    sources = []
    for number in range(n):
        path = root / f"{name}-{number}.nii"
        voxels = rng.normal(300, 90, (9, 10, 11 + number % 2)).astype(np.int16)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
        sources.append(Source(f"{name}{number}", (str(path),), subject=f"{name}{number}"))
    convert(sources, root / f"{name}.zarr", workers=1)
    return root / f"{name}.zarr"


@pytest.fixture(scope="module")
def merged(tmp_path_factory) -> Path:
    """Twelve volumes of `open`, four of `ours`."""
    root = tmp_path_factory.mktemp("shares")
    merge([made(root, "open", 12), made(root, "ours", 4)], root / "all.zarr")
    return root / "all.zarr"


def config(**settings) -> LoaderConfig:
    base = {"crop_size": SIZE, "micro_batch": 4, "normalise": "none", "threads": 1}
    return LoaderConfig(**base | settings)


def drawn_groups(corpus: Path, epochs: int = 1, **settings) -> Counter[str]:
    groups = {record.id: record.group for record in Corpus.open(corpus).records}
    with Loader(corpus, config(**settings)) as loader:
        samples = loader.sampler.samples(0, epochs * loader.sampler.epoch_samples)
        return Counter(groups[loader.corpus.table.volume_id(v)] for v in samples.volume.tolist())


@pytest.mark.parametrize("weighting", ["uniform", "voxels"])
def test_each_data_set_gets_its_share(merged, weighting):
    found = drawn_groups(merged, 10, weighting=weighting, shares=("open=1", "ours=3"))
    assert found == {"open": 40, "ours": 120}
    assert drawn_groups(merged) == {"open": 12, "ours": 4}
    assert drawn_groups(merged, 3, shares=("open=0", "ours=2")) == {"ours": 12}


def test_samples_with_shares_are_the_same_at_any_world_size_and_after_a_resume(merged):
    settings = {"shares": ("open=0.5", "ours=0.5"), "augment": "mim"}
    with Loader(merged, config(**settings)) as whole:
        first, second = next(whole), next(whole)
        state = whole.state_dict()
        third = next(whole)
    ranks = [Loader(merged, config(**{**settings, "micro_batch": 2}), rank=r, world=2)
             for r in range(2)]  # fmt: skip
    parts = [[next(rank) for rank in ranks] for _ in range(3)]
    for batch, halves in zip((first, second, third), parts, strict=True):
        assert torch.equal(batch.image, torch.cat([half.image for half in halves]))
    for rank in ranks:
        rank.load_state_dict(state)
    assert torch.equal(third.image, torch.cat([next(rank).image for rank in ranks]))
    for rank in ranks:
        rank.close()


def test_a_state_goes_to_no_loader_of_other_shares(merged):
    with Loader(merged, config(shares=("open=1", "ours=1"))) as loader:
        state = loader.state_dict()
    with (
        Loader(merged, config(shares=("open=1", "ours=2"))) as other,
        pytest.raises(Mim3dError, match="another order of samples"),
    ):
        other.load_state_dict(state)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"shares": ("open=1",)}, "shares do not name data set ours"),
        ({"shares": ("open=1", "ours=1", "x=1")}, "x=1.*has data set open, ours alone"),
        ({"where": ("dataset=closed",)}, "no volume .* has dataset 'closed'; it has open, ours"),
    ],
)
def test_what_the_corpus_has_not_is_one_line(merged, settings, told):
    with pytest.raises(Mim3dError, match=told):
        Loader(merged, config(**settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"shares": ("open",)}, {"shares": ("open=x",)}, {"shares": ("a=0",)},
        {"shares": ("a=-1", "b=2")}, {"shares": ("a=1", "a=2")}, {"shares": ("a=1",), "nodes": 2},
        {"where": ("colour=red",)}, {"where": ("dataset",)}, {"where": ("dataset=",)},
    ],
)  # fmt: skip
def test_words_that_tell_nothing_are_refused(settings):
    with pytest.raises(Mim3dError, match=r"shares|where"):
        LoaderConfig(**settings)


def test_volumes_chosen_by_what_a_collection_tells_of_them(tmp_path):
    """Of nnssl's collection data set, modality and session reach the loader."""
    rng = np.random.default_rng(0)
    datasets: dict = {}
    for dataset in ("ds1", "ds2"):
        for subject in ("1", "2"):
            for session in ("a", "b"):
                images = []
                for modality in ("T1w", "FLAIR"):
                    name = f"{dataset}-{subject}-{session}-{modality}.nii"
                    voxels = rng.normal(300, 90, (9, 9, 9)).astype(np.int16)
                    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / name)
                    images.append({"image_path": name, "name": name, "modality": modality})
                people = datasets.setdefault(dataset, {"subjects": {}})["subjects"]
                people.setdefault(subject, {"sessions": {}})["sessions"][session] = {
                    "images": images
                }
    collection = {"collection_index": 0, "collection_name": "c", "datasets": datasets}
    (tmp_path / "pretrain_data.json").write_text(json.dumps(collection))
    convert(discover(str(tmp_path)).sources, tmp_path / "c.zarr", workers=1)

    def chosen(*where: str) -> int:
        with Loader(tmp_path / "c.zarr", config(where=where)) as loader:
            return len(loader.sampler.volumes)

    assert chosen() == 16
    assert chosen("modality=T1w") == 8
    assert chosen("modality=T1w,FLAIR") == 16
    assert chosen("modality=T1w", "dataset=ds2", "session=a") == 2
    assert chosen("subject=ds1_1") == 4
    shares = {"shares": ("ds1=1", "ds2=3"), "where": ("modality=FLAIR",)}
    assert drawn_groups(tmp_path / "c.zarr", **shares) == {"ds1": 2, "ds2": 6}
