"""The loader as a whole: exact resume, world sizes, labels, views, failure, shutdown."""

import gc
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from mim3d.bench.corpora import anatomy_like, corpus_of
from mim3d.dataio.errors import ChunkError, CorpusError, Mim3dError
from mim3d.dataio.loader import config
from mim3d.dataio.loader.loader import Batch, Loader, LoaderConfig
from mim3d.dataio.reader import shard_reader
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.transforms.augment import Augmentation

CROP = (24, 20, 16)
SHAPES = [(40, 33, 45), (30, 30, 30), (18, 40, 40), (50, 20, 16), (33, 34, 35)]
MODES = {
    "plain": {},
    "mim": {"augment": "mim"},
    "two views": {"views": 2, "augment": "contrastive"},
    "labelled": {"label": "seg", "augment": "segmentation", "foreground_fraction": 0.5},
}


@pytest.fixture(scope="module")
def volumes() -> list[np.ndarray]:
    return [anatomy_like(shape, i) for i, shape in enumerate(SHAPES)]


@pytest.fixture(scope="module")
def root(tmp_path_factory, volumes) -> Path:
    labels = [(volume > 650).astype(np.uint8) + (volume > 700) for volume in volumes]
    folder = tmp_path_factory.mktemp("loader")
    return corpus_of(folder / "c.zarr", volumes, labels, subjects=["a", "a", "b", "c", "d"])


def config_of(**options) -> LoaderConfig:
    return LoaderConfig(**{"crop_size": CROP, "micro_batch": 4, **options})


def take(loader: Loader, n: int) -> list[Batch]:
    return [next(loader) for _ in range(n)]


def same(a: Batch, b: Batch) -> bool:
    pairs = [(getattr(a, name), getattr(b, name)) for name in Batch.__dataclass_fields__]
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs)


def test_crops_are_the_normalised_voxels_of_their_boxes(root, volumes):
    with Loader(root, config_of(seed=3, threads=2)) as loader:
        table = loader.corpus.table
        for batch in take(loader, 6):
            assert batch.image.shape == (4, 1, *CROP)
            assert batch.image.dtype == torch.float32
            for i in range(4):
                row = int(batch.volume[i])
                voxels = volumes[row].astype(np.float32)
                start = batch.start[i].tolist()
                pad = [
                    (max(-a, 0), max(a + s - n, 0))
                    for a, s, n in zip(start, CROP, voxels.shape, strict=True)
                ]
                padded = np.pad(voxels, pad, constant_values=voxels.min())
                begin = [a + p[0] for a, p in zip(start, pad, strict=True)]
                crop = padded[tuple(slice(a, a + s) for a, s in zip(begin, CROP, strict=True))]
                statistics = table.volumes[row]
                want = (crop - statistics["foreground_mean"]) / statistics["foreground_std"]
                np.testing.assert_allclose(batch.image[i, 0], want, atol=2e-5)


@pytest.mark.parametrize("mode", MODES)
def test_resume_is_exact_in_the_middle_of_an_epoch(root, mode):
    config = config_of(**MODES[mode])
    with Loader(root, config) as loader:
        take(loader, 3)
        state = loader.state_dict()
        expected = take(loader, 4)
        loader.load_state_dict(state)
        again = take(loader, 4)
    with Loader(root, config) as fresh:
        fresh.load_state_dict(state)
        resumed = take(fresh, 4)
    for a, b, c in zip(expected, again, resumed, strict=True):
        assert same(a, b)
        assert same(a, c)
    assert [batch.step for batch in expected] == [3, 4, 5, 6]


@pytest.mark.parametrize("mode", MODES)
def test_ranks_together_read_the_single_process_batch(root, mode):
    with Loader(root, config_of(**MODES[mode])) as whole:
        expected = take(whole, 3)
    loaders = [
        Loader(root, config_of(**{**MODES[mode], "micro_batch": 2}), rank=r, world=2)
        for r in (0, 1)
    ]
    parts = [take(loader, 3) for loader in loaders]
    for step in range(3):
        for name in ("image", "second_view", "label", "volume", "start", "sample"):
            want = getattr(expected[step], name)
            got = [getattr(part[step], name) for part in parts]
            assert (
                all(each is None for each in got)
                if want is None
                else torch.equal(torch.cat(got), want)
            )
    for loader in loaders:
        loader.close()


def test_a_run_goes_on_with_the_same_samples_at_another_world_size(root):
    with Loader(root, config_of()) as loader:
        take(loader, 3)
        state = loader.state_dict()
        expected = torch.cat([batch.sample for batch in take(loader, 2)])
    loaders = [Loader(root, config_of(micro_batch=1), rank=r, world=2) for r in (0, 1)]
    got = []
    for loader in loaders:
        loader.load_state_dict(state)
    for _ in range(4):
        got += [next(loader).sample for loader in loaders]
    assert torch.equal(torch.cat(got), expected)
    for loader in loaders:
        loader.close()


def test_an_epoch_over_all_ranks_visits_every_volume_once(root):
    loaders = [Loader(root, config_of(micro_batch=1), rank=r, world=5) for r in range(5)]
    for _ in range(3):
        assert sorted(int(next(loader).volume) for loader in loaders) == [0, 1, 2, 3, 4]
    assert loaders[0].epoch == 3
    for loader in loaders:
        loader.close()


@pytest.mark.parametrize("mode", MODES)
def test_batches_that_are_kept_stay_what_they_were(root, mode):
    with Loader(root, config_of(**MODES[mode])) as loader:
        kept = [next(loader) for _ in range(15)]
        copies = [batch.image.clone() for batch in kept]
        take(loader, 10)
    again = Loader(root, config_of(**MODES[mode]))
    for batch, copy in zip(kept, copies, strict=True):
        assert torch.equal(batch.image, copy)
        assert same(batch, next(again))
    again.close()


def test_labels_belong_to_their_images(root, volumes):
    options = {"label": "seg", "normalise": "none", "foreground_fraction": 1.0, "snap": 1}
    with Loader(root, config_of(**options)) as loader:
        for batch in take(loader, 4):
            assert batch.label is not None
            assert batch.label.dtype == torch.uint8
            image = batch.image[:, 0]
            want = (image > 650).to(torch.uint8) + (image > 700).to(torch.uint8)
            assert torch.equal(batch.label, want)
            assert (batch.label > 0).flatten(1).any(1).all()


def test_two_views_differ_and_show_the_same_place(root):
    with Loader(root, config_of(views=2, augment="contrastive")) as loader:
        batch = next(loader)
    assert batch.second_view is not None
    assert batch.second_view.shape == batch.image.shape
    assert not torch.allclose(batch.image, batch.second_view, atol=0.1)


@pytest.mark.parametrize("mode", MODES)
def test_crops_decoded_on_the_device_are_the_same_bits(root, mode):
    with (
        Loader(root, config_of(**MODES[mode])) as host,
        Loader(root, config_of(**MODES[mode], cache="device")) as device,
    ):
        for a, b in zip(take(host, 8), take(device, 8), strict=True):
            assert same(a, b)
        metrics = device.metrics()
    assert metrics["cache_hits"] > 0
    assert metrics["cache_bytes"] > 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_other_dtypes_are_the_float_crops_rounded(root, dtype):
    with Loader(root, config_of()) as exact, Loader(root, config_of(dtype=dtype)) as rounded:
        a, b = next(exact).image, next(rounded).image
    assert b.dtype == getattr(torch, dtype)
    assert torch.equal(a.to(b.dtype), b)


def test_subjects_choose_volumes(root):
    with Loader(root, config_of(), subjects={"a", "d"}) as loader:
        seen = {int(v) for batch in take(loader, 5) for v in batch.volume}
    assert seen == {0, 1, 4}
    with pytest.raises(CorpusError, match="no subject z"):
        Loader(root, config_of(), subjects={"a", "z"})
    with pytest.raises(CorpusError, match="no volume left"):
        Loader(root, config_of(), subjects=set())


def test_a_missing_label_names_the_labels_there_are(root):
    with pytest.raises(CorpusError, match=r"no label 'tumour'; its labels: seg"):
        Loader(root, config_of(label="tumour"))


def test_channels_are_kept(tmp_path):
    voxels = [np.stack([anatomy_like((30, 30, 30), 9 * i + c) for c in range(2)]) for i in range(2)]
    root = corpus_of(tmp_path / "c.zarr", voxels)
    for mode in ("plain", "two views"):
        options = {"normalise": "none", "crop_size": (30, 30, 30), **MODES[mode]}
        with Loader(root, config_of(**options)) as loader:
            batch = next(loader)
        assert batch.image.shape == (4, 2, 30, 30, 30)
        if mode == "plain":
            want = np.stack([voxels[int(v)] for v in batch.volume]).astype(np.float32)
            np.testing.assert_array_equal(batch.image, want)


def test_a_state_of_another_corpus_or_seed_is_refused(root):
    with Loader(root, config_of()) as loader:
        state = loader.state_dict()
    with Loader(root, config_of(seed=1)) as other, pytest.raises(Mim3dError, match=r"seed=0.* 1"):
        other.load_state_dict(state)
    with (
        Loader(root, config_of(), subjects=["a"]) as other,
        pytest.raises(Mim3dError, match="volumes=5"),
    ):
        other.load_state_dict(state)


@pytest.fixture
def damaged(tmp_path, volumes, spoil) -> Path:
    """Five volumes, the shard of the third spoilt in every chunk."""
    root = corpus_of(tmp_path / "bad.zarr", volumes)
    spoil(root, 2)
    return root


def test_a_damaged_chunk_raises_at_its_own_batch(damaged):
    with Loader(damaged, config_of(micro_batch=1)) as loader:
        due = loader.sampler.samples(0, 5).volume.tolist().index(2)
        take(loader, due)
        with pytest.raises(ChunkError, match="volume v0002"):
            next(loader)
        assert loader.state_dict()["sample"] == due


@pytest.mark.parametrize("cache", ["none", "host", "device"])
def test_damaged_crops_are_replaced_alike_on_any_number_of_ranks_and_counted(damaged, cache):
    options = {"on_error": "replace", "augment": "mim", "cache": cache}
    with Loader(damaged, config_of(**options, micro_batch=5)) as whole:
        batches = take(whole, 4)
        assert whole.metrics()["replaced"] >= 4
    loaders = [
        Loader(damaged, config_of(**options, micro_batch=1), rank=r, world=5) for r in range(5)
    ]
    for batch in batches:
        assert 2 not in batch.volume
        assert torch.isfinite(batch.image).all()
        got = torch.cat([next(loader).image for loader in loaders])
        assert torch.equal(got, batch.image)
    for loader in loaders:
        loader.close()


def test_where_no_sound_crop_is_left_that_is_told(damaged):
    with (
        Loader(damaged, config_of(on_error="replace"), subjects=["s0002"]) as loader,
        pytest.raises(ChunkError, match=r"volume v0002, .* all 16 crops"),
    ):
        next(loader)


def test_a_vanished_shard_is_never_replaced(damaged):
    (damaged / Corpus.open(damaged).table.shard_path(2)).unlink()
    with (
        Loader(damaged, config_of(on_error="replace")) as loader,
        pytest.raises(CorpusError, match="not on disk"),
    ):
        take(loader, 5)


@pytest.mark.parametrize("compiled", [True, False])
def test_metrics_add_up(root, monkeypatch, compiled):
    """Chunk by chunk too, as zstd is read, and lz4 where no compiler was."""
    if not compiled:
        monkeypatch.setattr(shard_reader, "fits_loop", lambda *_: False)
    with Loader(root, config_of(augment="mim")) as loader:
        take(loader, 5)
        metrics = loader.metrics()
    assert metrics["crops"] >= 20
    assert metrics["bytes_read"] > 0
    assert min(metrics["read_s"], metrics["decode_s"], metrics["augment_s"]) > 0
    assert metrics["replaced"] == 0


def test_closing_leaves_no_thread_and_no_file(root):
    def files() -> int:
        return len(psutil.Process().open_files())

    config = config_of(threads=2, views=2, augment="contrastive")
    corpus = Corpus.open(root)
    gc.collect()  # tables of earlier loaders
    others = set(threading.enumerate())  # that other tests left: any may end meanwhile
    with Loader(corpus, config) as loader:  # torch and DALI start what they keep for ever
        next(loader)
    threads, before = psutil.Process().num_threads(), files()
    for _ in range(3):
        loader = Loader(corpus, config)
        take(loader, 2)
        loader.close()
        loader.close()
    deadline = time.monotonic() + 120  # the system forgets a joined thread a moment later
    while psutil.Process().num_threads() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert psutil.Process().num_threads() <= threads
    assert files() <= before
    own = set(threading.enumerate()) - others
    assert not [t for t in own if t.name.startswith("mim3d")]
    with pytest.raises(RuntimeError, match="closed"):
        next(loader)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["mim", "two views"])
def test_memory_and_threads_stay_flat_over_many_batches(root, mode):
    gc.collect()  # a loader that an earlier test left in a cycle would end its threads meanwhile
    process = psutil.Process()
    small = config_of(**MODES[mode], crop_size=(8, 8, 8), micro_batch=2)
    with Loader(root, small) as loader:
        take(loader, 1000)
        before, threads = process.memory_info().rss, process.num_threads()
        for _ in range(10_000):
            next(loader)
        grown = process.memory_info().rss - before
        # What other files' tests left of obstore's pool may come and go; a leak would be thousands.
        assert process.num_threads() < threads + 10
    assert grown < 8 << 20


@pytest.mark.parametrize(
    "wrong",
    [
        {"micro_batch": 0}, {"crop_size": (8, 8)}, {"views": 3}, {"dtype": "int8"},
        {"cache": "disk"}, {"on_error": "skip"}, {"weighting": "age"}, {"normalise": "z"},
        {"augment": "heavy"}, {"foreground_fraction": 0.5}, {"label": "seg", "views": 2},
        {"foreground_fraction": 2.0, "label": "seg"}, {"threads": 0}, {"prefetch": 0},
    ],
)  # fmt: skip
def test_impossible_configurations_are_refused(wrong):
    with pytest.raises(Mim3dError, match=next(iter(wrong))):
        config_of(**wrong)


def test_a_rank_outside_the_world_is_refused(root):
    with pytest.raises(Mim3dError, match="rank=2"):
        Loader(root, config_of(), rank=2, world=2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_noise_on_a_cpu_is_the_views_whatever_else_is_done(root, monkeypatch, dtype):
    def first(**kind: Any) -> Batch:
        monkeypatch.setattr(config, "augmentation", lambda _name: Augmentation(**kind))
        with Loader(root, config_of(dtype=dtype)) as loader:
            return next(loader)

    still, noisy = first(), first(noise=1.0, noise_std=0.1)
    turned = first(noise=1.0, noise_std=0.1, rotate=1.0, degrees=0.0)
    assert not torch.equal(still.image, noisy.image)
    torch.testing.assert_close(noisy.image, turned.image)
