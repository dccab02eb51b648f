"""The Lightning example: a fit that is ended anywhere and gone on with sees every crop once."""

import runpy
from pathlib import Path

import pytest
import torch
from references import prepare_torchvision

from mim3d.bench.corpora import anatomy_like, corpus_of

prepare_torchvision()  # which Lightning's metrics import where it is installed
lightning = pytest.importorskip("lightning")
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "lightning_training.py"
QUIET = {"logger": False, "accelerator": "cpu", "devices": 1}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    volumes = [anatomy_like((34, 35, 36), i) for i in range(9)]
    return corpus_of(tmp_path_factory.mktemp("lightning") / "c.zarr", volumes)


@pytest.fixture(scope="module")
def fit():
    return runpy.run_path(str(EXAMPLE))["fit"]


@pytest.fixture(scope="module")
def whole(fit, root, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("whole")
    trainer = fit(str(root), max_epochs=2, default_root_dir=folder, **QUIET)
    assert trainer.lightning_module.seen == list(range(16))  # two passes of four batches
    return trainer.lightning_module


@pytest.mark.slow
@pytest.mark.parametrize("ended", [1, 3, 4, 6])
def test_a_fit_goes_on_with_the_very_next_crop(fit, root, whole, tmp_path, ended):
    saved = tmp_path / "state.ckpt"
    torch.manual_seed(0)
    every = lightning.pytorch.callbacks.ModelCheckpoint(
        dirpath=tmp_path, filename="state", every_n_train_steps=ended
    )
    first = fit(str(root), max_steps=ended, callbacks=[every], **QUIET)
    second = fit(str(root), saved, max_epochs=2, **{**QUIET, "enable_checkpointing": False})
    seen = first.lightning_module.seen + second.lightning_module.seen
    assert seen == whole.seen
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, second.lightning_module.state_dict()[name]), name
