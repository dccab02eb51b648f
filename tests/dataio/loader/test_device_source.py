"""Crops decoded on a device, from the loader's side: errors in their turn, hand-over, and a GPU."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mim3d.bench.corpora import anatomy_like, corpus_of
from mim3d.dataio.device.device_reader import DeviceReader
from mim3d.dataio.device.staged import Staged
from mim3d.dataio.errors import ChunkError
from mim3d.dataio.loader.loader import Loader, LoaderConfig
from mim3d.dataio.transforms import dali as dali_graph
from mim3d.dataio.transforms.augment import augmentation, draw_view
from mim3d.dataio.transforms.dali import feed_order
from mim3d.dataio.transforms.graph import DirectGraph, GraphSpec

CROP = (24, 20, 32)
SHAPES = [(40, 33, 45), (30, 30, 36), (18, 40, 40), (50, 20, 16), (33, 34, 35)]
MODES = {
    "plain": {},
    "mim": {"augment": "mim", "normalise": "clip-zscore"},
    "labelled": {"label": "seg", "augment": "none", "foreground_fraction": 0.5},
}


def corpus(folder: Path, shapes=SHAPES) -> Path:
    volumes = [anatomy_like(shape, i) for i, shape in enumerate(shapes)]
    labels = [(volume > 650).astype(np.uint8) + (volume > 700) for volume in volumes]
    return corpus_of(folder / "c.zarr", volumes, labels)


@pytest.mark.parametrize("mode", ["segmentation", "contrastive", "mim"])
def test_a_damaged_chunk_raises_at_its_own_batch_through_every_graph(tmp_path, mode, spoil):
    """DALI is fed batches ahead: the one that failed must pass it and be named in its turn."""
    root = corpus(tmp_path)
    spoil(root, 2)
    options = {
        "segmentation": {"label": "seg", "augment": "segmentation"},
        "contrastive": {"views": 2, "augment": "contrastive"},
        "mim": {"augment": "mim"},
    }[mode]
    config = LoaderConfig(crop_size=CROP, micro_batch=1, cache="device", **options)
    with Loader(root, config) as loader:
        due = loader.sampler.samples(0, 5).volume.tolist().index(2)
        for _ in range(due):
            next(loader)
        with pytest.raises(ChunkError, match="volume v0002"):
            next(loader)


def test_crops_on_the_gpu_that_want_no_operator_need_no_dali(monkeypatch):
    """Handed over as they are, in turn: DALI would copy every crop once more."""
    monkeypatch.setattr(dali_graph, "_build", lambda *_: pytest.fail("a pipeline was built"))
    spec = GraphSpec(2, 1, CROP, 1, "uint8", augmentation("mim"), 0, 1, device_input=True)
    batches = [(torch.full((2, 1, *CROP), float(i)), torch.zeros(2, *CROP)) for i in range(3)]
    views = [draw_view(augmentation("mim"), np.arange(2, dtype=np.uint64), 0, CROP)]
    assert spec.is_direct
    graph = DirectGraph(spec, lambda i: feed_order(spec, *batches[i], views))
    for image, label in batches:
        got, got_label = graph.run()
        assert got is image
        assert got_label is label


@pytest.mark.parametrize("keeps", ["voxels", "chunks"])
@pytest.mark.parametrize("mode", MODES)
def test_bfloat16_is_written_at_once_and_rounds_as_on_the_cpu(tmp_path, mode, keeps, monkeypatch):
    root = corpus(tmp_path)
    options = {"crop_size": CROP, "micro_batch": 3, "dtype": "bfloat16", **MODES[mode]}
    kinds, plain = [], DeviceReader.begin

    def watched(*given: Any) -> Staged:
        kinds.append(given[3])
        return plain(*given)

    monkeypatch.setattr(DeviceReader, "begin", watched)
    with (
        Loader(root, LoaderConfig(**options)) as host,
        Loader(root, LoaderConfig(**options, cache="device", device_keeps=keeps)) as device,
    ):
        for _ in range(6):
            here, there = next(host), next(device)
            assert there.image.dtype == torch.bfloat16
            assert torch.equal(here.image, there.image)
    assert torch.bfloat16 in kinds


CACHES = [
    {"cache": "device", "device_keeps": "voxels"},
    {"cache": "device", "device_keeps": "chunks"},
    {"cache": "host"},
    {"cache": "none", "dtype": "bfloat16"},
]


@pytest.mark.gpu
@pytest.mark.parametrize("cache", CACHES, ids=lambda cache: " ".join(cache.values()))
@pytest.mark.parametrize("mode", MODES)
def test_on_a_gpu_the_loader_gives_the_same_bits_without_dali(tmp_path, mode, cache):
    """While slow work holds up torch's stream, so that no host sync hides a race."""
    if cache["cache"] == "device":
        pytest.importorskip("nvidia.libnvcomp")
    root = corpus(tmp_path)
    options = {"crop_size": CROP, "micro_batch": 3, "threads": 2, **MODES[mode], **cache}
    host = Loader(root, LoaderConfig(**{**options, "cache": "none"}))
    device = Loader(root, LoaderConfig(**options), device="cuda")
    slow = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    kept = []
    with host, device:
        next(device)  # compiles
        device.load_state_dict(host.state_dict())
        for _ in range(12):
            slow.random_()
            torch.cuda.set_sync_debug_mode("error")
            try:
                batch = next(device)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            kept.append(replace(batch, image=batch.image + 0))
        for there in kept:
            here = next(host)
            assert there.image.is_cuda
            assert torch.equal(here.image, there.image.cpu())
            assert (there.label is None) == (here.label is None)
            if here.label is not None and there.label is not None:
                assert torch.equal(here.label, there.label.cpu())
            assert torch.equal(here.sample, there.sample)
