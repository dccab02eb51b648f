"""Runs in which no voxel counts end in one line, and those whose crops are constant say so."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from small_run import small_config

from mim3d.dataio.convert.run import convert
from mim3d.dataio.sources.discover import discover
from mim3d.engine.commands import cli
from mim3d.engine.errors import TrainingError
from mim3d.engine.pretrain.unscored import Unscored
from mim3d.engine.training.metrics import read_rows

SMALL = """
    --vit.crop-size 16 16 16 --vit.patch-size 8 8 8 --vit.width 24 --vit.depth 1 --vit.heads 2
    --method.decoder-width 24 --method.decoder-depth 1 --method.decoder-heads 2
    --log.picture-every 0 --log.every 1 --schedule.warmup-steps 1 --data.augment none
""".split()  # noqa: SIM905  read as words of a command


def corpus_of(folder: Path, *edges: int) -> Path:
    """Volumes of air, 0, that hold noise of about 300 in a cube of these edges."""
    for i, edge in enumerate(edges):
        voxels = np.zeros((48, 48, 48), np.int16)
        cube = (slice(edge), slice(edge), slice(edge))
        voxels[cube] = np.random.default_rng(i).normal(300, 40, (edge, edge, edge))
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / f"s{i}.nii.gz")
    convert(discover(str(folder)).sources, folder / "c.zarr", workers=1)
    return folder / "c.zarr"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus_of(tmp_path_factory.mktemp("whole"), 44)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of nine volumes eight show hardly anything."""
    return corpus_of(tmp_path_factory.mktemp("sparse"), *[2] * 8, 46)


def pretrained(corpus: Path, out: Path, *more: str, batch: int = 2, steps: int = 2) -> int:
    words = ["pretrain", "demo-mae", "--data.corpus", str(corpus), "--out", str(out), *SMALL]
    return cli.main([*words, "--global-batch", str(batch), "--steps", str(steps), *more])


def test_a_window_above_all_tissue_ends_the_run_in_one_line_and_its_remedies_work(
    whole, tmp_path, capfd
):
    run = tmp_path / "run"
    air, wrong = ("--method.ignore", "air"), ("--data.normalise", "window:3000:4000")
    assert pretrained(whole, run, *air, *wrong) == 2
    said = capfd.readouterr()
    assert "nan" not in said.out + said.err
    (line,) = (line for line in said.err.splitlines() if line.startswith("mim3d pretrain: "))
    assert "no voxel of the crops of steps 1 to 2 is scored (--method.ignore air)" in line
    assert "all that --data.normalise window:3000:4000 clips low counts as air" in line
    assert not (run / "encoder.safetensors").exists()
    assert pretrained(whole, run, *air, "--data.normalise", "zscore") == 0  # in the same place
    assert (run / "encoder.safetensors").exists()
    assert pretrained(whole, tmp_path / "given", *air, "--data.normalise", "window:0:500") == 0
    assert pretrained(whole, tmp_path / "all", *wrong) == 0


def test_crops_of_air_alone_end_the_run_and_foreground_weighting_goes_on(sparse, tmp_path, capfd):
    given = ("--method.ignore", "air", "--log.max-bad-steps", "3")
    assert pretrained(sparse, tmp_path / "run", *given, batch=1, steps=40) == 2
    err = capfd.readouterr().err
    assert "steps 1 to 3 is scored" in err
    assert "crops may show air alone: --data.weighting foreground draws more" in err
    near = (*given, "--data.weighting", "foreground")
    assert pretrained(sparse, tmp_path / "near", *near, batch=1, steps=4) == 0
    assert all(row["counted"] > 0 for row in read_rows(tmp_path / "near" / "metrics.jsonl"))
    assert pretrained(sparse, tmp_path / "more", *given, batch=16, steps=3) == 0


def after(hook: Unscored, counted: list[float], due: bool = True) -> None:
    for share in counted:
        figures = SimpleNamespace(counted=torch.tensor(share))
        trainer: Any = SimpleNamespace(figures=figures, due=due, steps=100, step=hook.steps + 1)
        hook.after_step(trainer)


def test_a_resumed_run_counts_on_until_a_first_voxel_is_scored():
    config = small_config("c")
    hook = Unscored(config)
    after(hook, [0.0] * 9)
    again = Unscored(config)
    again.load_state(hook.state())
    with pytest.raises(TrainingError, match="steps 1 to 10 is scored"):
        after(again, [0.0])
    after(hook, [1e-6], due=False)
    assert hook.state() == {}
    later = Unscored(config)
    later.load_state({})
    after(later, [0.0] * 20)
    after(hook, [0.0] * 20)


def test_a_verdict_on_constant_crops_is_none_and_names_what_helps(sparse, tmp_path, capfd):
    assert pretrained(sparse, tmp_path / "run", batch=1) == 0
    out = capfd.readouterr().out
    assert "the last rows' crops are constant, so no verdict (where they are air, " in out
    near = ("--data.weighting", "foreground")
    for words in (near, ("--method.ignore", "air")):
        assert pretrained(sparse, tmp_path / words[1], *words, batch=4, steps=6) == 0
        out = capfd.readouterr().out
        assert "each patch's mean" in out and "so no verdict" not in out
