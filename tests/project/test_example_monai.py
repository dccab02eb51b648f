"""The example of the README runs as it stands, learns, and goes on from its checkpoint."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from mim3d.bench.corpora import anatomy_like, corpus_of

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "monai_training.py"


@pytest.mark.slow
def test_a_monai_loop_learns_from_the_loader(tmp_path):
    volumes = [anatomy_like((40, 40, 40), i) for i in range(4)]
    labels = [(volume > 600).astype(np.uint8) + (volume > 720) for volume in volumes]
    root = corpus_of(tmp_path / "c.zarr", volumes, labels)
    train = runpy.run_path(str(EXAMPLE))["train"]
    torch.manual_seed(0)
    first = train(str(root), 25, 3, tmp_path / "state.pt")
    assert np.mean(first[-5:]) < 0.9 * np.mean(first[:5])
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["loader"]["sample"] == 100
    train(str(root), 2, 3, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["loader"]["sample"] == 108
    assert train(str(root), 0, 3, tmp_path / "state.pt") == []
