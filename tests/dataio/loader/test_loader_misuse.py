"""The loader in the hands of a user: wrong input is told, an interrupt or a fork breaks nothing."""

import copy
import pickle
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mim3d.bench.corpora import anatomy_like, corpus_of
from mim3d.dataio.errors import CorpusError, Mim3dError
from mim3d.dataio.loader.loader import Batch, Loader, LoaderConfig

CROP = (12, 12, 12)
TWO_VIEWS = {"views": 2, "augment": "contrastive"}


def config_of(**options: Any) -> LoaderConfig:
    return LoaderConfig(**{"crop_size": CROP, "micro_batch": 4, **options})


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    volumes = [anatomy_like((16, 18, 20), i) for i in range(4)]
    folder = tmp_path_factory.mktemp("misuse")
    return corpus_of(folder / "c.zarr", volumes, subjects=["a", "b", "c", "d"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop_size": 96}, {"crop_size": (8.0, 8, 8)}, {"crop_size": "888"}, {"micro_batch": 4.0},
        {"micro_batch": "4"}, {"threads": 1.5}, {"cache_bytes": 1e9}, {"seed": 0.5}, {"seed": "x"},
        {"normalise": None}, {"normalise": "window:-inf:100"}, {"normalise": "window:0:1e39"},
        {"node_rotation": 0.5}, {"views": 2}, {"views": 2, "augment": "mim"},
        {"views": 2, "augment": "segmentation"},
    ],
)  # fmt: skip
def test_what_would_go_wrong_later_or_silently_is_refused(wrong):
    with pytest.raises(Mim3dError, match=next(iter(wrong))):
        config_of(**wrong)


@pytest.mark.parametrize("subjects", ["a", "ab", [1, 2], [b"a"]])
def test_subjects_are_a_collection_of_names(root, subjects):
    with pytest.raises(Mim3dError, match=r"subjects=.*collection of names"):
        Loader(root, config_of(), subjects=subjects)


@pytest.mark.parametrize("device", ["mps", "meta"])
def test_a_device_that_crops_cannot_go_to_is_refused(root, device):
    with pytest.raises(Mim3dError, match=f"device='{device}'"):
        Loader(root, config_of(), device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_where_there_is_none_is_told(root):
    with pytest.raises(Mim3dError, match="device='cuda:0': torch finds no CUDA device"):
        Loader(root, config_of(), device="cuda:0")


def test_ranks_as_the_environment_has_them_are_told(root):
    with pytest.raises(Mim3dError, match="rank='0'"):
        Loader(root, config_of(), rank="0", world="1")  # type: ignore[arg-type]


def test_float16_that_would_be_infinite_is_refused(tmp_path):
    voxels = (anatomy_like((16, 16, 16), 0).clip(0).astype(np.uint16) * 90).clip(0, 65535)
    root = corpus_of(tmp_path / "c.zarr", [voxels])
    wrong = config_of(dtype="float16", normalise="none")
    with pytest.raises(CorpusError, match=r"volume v0000 reach .*beyond 65504.*bfloat16"):
        Loader(root, wrong)
    with Loader(root, config_of(dtype="float16")) as loader:
        assert torch.isfinite(next(loader).image).all()


@pytest.mark.parametrize("options", [{}, TWO_VIEWS], ids=["plain", "two views"])
def test_after_an_interrupt_the_loader_goes_on_with_the_batch_that_was_due(
    root, options, monkeypatch
):
    with Loader(root, config_of(**options)) as loader:
        expected = [next(loader) for _ in range(8)]
    with Loader(root, config_of(**options)) as loader:
        got = [next(loader) for _ in range(2)]
        buffers = loader._source._buffers

        def interrupted(count: int) -> Any:
            monkeypatch.setattr(loader._source, "_buffers", buffers)
            raise KeyboardInterrupt

        monkeypatch.setattr(loader._source, "_buffers", interrupted)
        with pytest.raises(KeyboardInterrupt):
            while len(got) < 8:
                got.append(next(loader))
        assert loader.state_dict()["step"] == len(got)
        got += [next(loader) for _ in range(8 - len(got))]
    for a, b in zip(got, expected, strict=True):
        assert a.step == b.step
        assert torch.equal(a.sample, b.sample)
        assert torch.equal(a.image, b.image)


def test_threads_that_share_a_loader_get_each_batch_once(root):
    got: list[Batch] = []
    with Loader(root, config_of(threads=2)) as loader:

        def take() -> None:
            got.extend(next(loader) for _ in range(25))

        consumers = [threading.Thread(target=take) for _ in range(4)]
        for each in consumers:
            each.start()
        for each in consumers:
            each.join()
    assert sorted(int(batch.sample[0]) for batch in got) == list(range(0, 400, 4))


def test_a_loader_is_not_copied_or_pickled(root):
    with Loader(root, config_of()) as loader:
        for duplicate in (copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="hand over the corpus' path"):
                duplicate(loader)


def test_a_forked_process_is_told_to_make_its_own(root):
    """It would wait for ever for threads that did not come along."""
    code = (
        "import os, sys\n"
        "from mim3d.dataio.loader.loader import Loader, LoaderConfig\n"
        f"loader = Loader({str(root)!r}, LoaderConfig(crop_size={CROP}, micro_batch=2))\n"
        "next(loader)\n"
        "if os.fork() == 0:\n"
        "    try:\n"
        "        next(loader)\n"
        "    except ValueError as error:\n"
        "        loader.close()\n"
        "        os.write(1, str(error).encode())\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "next(loader)\n"
        "loader.close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert "make a Loader in each process" in done.stdout


@pytest.mark.parametrize("options", [{}, TWO_VIEWS], ids=["plain", "two views"])
def test_a_program_ends_that_never_closed_its_loader(root, options):
    code = (
        "from mim3d.dataio.loader.loader import Loader, LoaderConfig\n"
        f"config = LoaderConfig(crop_size={CROP}, micro_batch=2, threads=2, **{options!r})\n"
        f"loader = Loader({str(root)!r}, config)\n"
        "next(loader)\n"
        "raise SystemExit(5)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 5, done.stderr


def test_a_program_may_change_its_folder(root, monkeypatch, tmp_path):
    monkeypatch.chdir(root.parent)
    with Loader(root.name, config_of()) as loader:
        monkeypatch.chdir(tmp_path)
        assert next(loader).n_crops == 4


def test_batches_that_were_kept_and_let_go_are_not_held(root):
    with Loader(root, config_of()) as loader:
        kept = [next(loader) for _ in range(40)]
        arrays = [weakref.ref(batch.image.numpy().base) for batch in kept]
        storages = {batch.image.data_ptr() for batch in kept}
        assert len(storages) == 40
        del kept
        loader.load_state_dict(loader.state_dict())
        pool = loader._source._pools[4][0]
        assert len(pool._made) <= 8
        assert sum(ref() is not None for ref in arrays) <= 8


def test_noise_does_not_depend_on_torchs_default_dtype(root):
    def images() -> list[torch.Tensor]:
        with Loader(root, config_of(**TWO_VIEWS)) as loader:
            return [next(loader).image for _ in range(4)]

    before = torch.get_default_dtype()
    expected = images()
    try:
        torch.set_default_dtype(torch.float64)
        got = images()
    finally:
        torch.set_default_dtype(before)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_two_loaders_of_different_graphs_live_side_by_side(root):
    def alone(options: dict[str, Any]) -> list[torch.Tensor]:
        with Loader(root, config_of(**options)) as loader:
            return [next(loader).image for _ in range(5)]

    kinds = [TWO_VIEWS, {"augment": "segmentation", "dtype": "bfloat16"}, {}]
    expected = [alone(options) for options in kinds]
    loaders = [Loader(root, config_of(**options)) for options in kinds]
    for step in range(5):
        for loader, images in zip(loaders, expected, strict=True):
            assert torch.equal(next(loader).image, images[step])
        if step == 3:
            loaders.pop(0).close()
            expected.pop(0)
    for loader in loaders:
        loader.close()
