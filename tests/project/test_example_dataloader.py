"""The example of torch's DataLoader: stopped anywhere and run again, it brings every crop once."""

import runpy
from pathlib import Path

import pytest

from mim3d.bench.corpora import anatomy_like, corpus_of

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "torch_dataloader.py"


@pytest.mark.parametrize("stop_after", [2, 6, 8, 12])
def test_it_goes_on_with_the_very_next_crop(tmp_path, stop_after):
    root = corpus_of(tmp_path / "c.zarr", [anatomy_like((34, 34, 34), i) for i in range(8)])
    run = runpy.run_path(str(EXAMPLE))["run"]
    state = tmp_path / "position.pt"
    first = run(str(root), 2, state, stop_after)
    assert len(first) == stop_after
    assert first + run(str(root), 2, state) == list(range(16))
    assert run(str(root), 2, state) == []
