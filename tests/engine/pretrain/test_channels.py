"""Pretraining on volumes of several channels, whose scales are 1 : 100 : 5000."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from small_run import small_config

from mim3d.bench.corpora import anatomy_like, corpus_of
from mim3d.dataio.loader.batch import Batch
from mim3d.engine.commands.cli import main
from mim3d.engine.models.config import MAEConfig, SimMIMConfig, ViTConfig
from mim3d.engine.models.mae import MAE
from mim3d.engine.models.masks import draw_masks
from mim3d.engine.models.simmim import SimMIM
from mim3d.engine.models.trivial import paste_patches, trivial_losses, voxel_rows
from mim3d.engine.pretrain.pretrain import run_pretrain
from mim3d.engine.runs.encoder_file import read_card
from mim3d.engine.training.metrics import read_rows

SCALES = (1.0, 100.0, 5000.0)
VIT = ViTConfig((8, 12, 16), (4, 6, 4), channels=3, width=24, depth=1, heads=2)


def batch_of(volume: torch.Tensor) -> Batch:
    b = volume.shape[0]
    zeros = torch.zeros(b, dtype=torch.int64)
    return Batch(volume, None, None, zeros, torch.zeros(b, 3).long(), torch.arange(b), 0)


def volume_of(seed: int = 0) -> torch.Tensor:
    """(2, 3, 8, 12, 16) float64, channels on scales and offsets of their own."""
    noise = torch.randn(2, 3, 8, 12, 16, generator=torch.Generator().manual_seed(seed)).double()
    wide = torch.tensor(SCALES).double().view(3, 1, 1, 1)
    return (noise + torch.tensor([0.0, 7.0, -3.0]).view(3, 1, 1, 1)) * wide


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Four volumes; one lacks its last modality."""
    scale = np.array(SCALES, np.float32)[:, None, None, None]
    shape = (34, 36, 40)
    volumes = [
        np.stack([anatomy_like(shape, 3 * i + c, "float32") for c in range(3)]) * scale
        for i in range(4)
    ]
    volumes[3][2] = 0
    return corpus_of(tmp_path_factory.mktemp("c") / "c.zarr", volumes)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("kind", ["mae", "simmim"])
def test_the_loss_of_each_channel_is_its_own_and_their_mean_is_the_loss(kind, normalise):
    torch.manual_seed(0)
    if kind == "mae":
        config = MAEConfig(
            decoder_width=24,
            decoder_depth=1,
            decoder_heads=2,
            loss="l2",
            normalise_target=normalise,
        )
        model = MAE(config, VIT).double()
    else:
        config = SimMIMConfig(loss="l2", normalise_target=normalise)
        model = SimMIM(config, VIT).double()
    batch = batch_of(volume_of())
    out = model(batch, share=0.25, measure=True)
    losses = [out.metrics[f"loss_channel_{c}"] for c in range(3)]
    torch.testing.assert_close(torch.stack(losses).mean() * 0.25, out.loss)
    masks = draw_masks(model.config, 0, batch, VIT)
    predicted = model.predict(batch.image, masks).unflatten(-1, (3, -1))
    truth = voxel_rows(batch.image, masks.masked_ids, VIT).double().unflatten(-1, (3, -1))
    if normalise:
        truth = (truth - truth.mean(-1, keepdim=True)) / (truth.var(-1, keepdim=True) + 1e-6).sqrt()
    wanted = (predicted - truth).square().mean((0, 1, 3))
    torch.testing.assert_close(torch.stack(losses), wanted, rtol=1e-5, atol=0)


def test_trivial_predictors_know_each_channels_own_mean():
    volume, config = volume_of(), MAEConfig()
    masks = draw_masks(config, 0, batch_of(volume), VIT)
    found = trivial_losses(volume, masks, VIT, "l2", False)
    truth = voxel_rows(volume, masks.masked_ids, VIT).double().unflatten(-1, (3, -1))
    wanted = (truth - truth.mean(-1, keepdim=True)).square().mean((0, 1, 3))
    got = torch.stack([found[f"patch_mean_channel_{c}"] for c in range(3)])
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=0)
    assert found["patch_mean"] == pytest.approx(float(wanted.mean()), rel=1e-5)
    assert {"nearest_patch", "nearest_patch_channel_2"} <= found.keys()


def test_normalised_targets_have_no_offset_between_channels():
    """Zero is then each channel's own patch mean, and costs 1 in L2 whatever the scales are."""
    volume, config = volume_of(), MAEConfig()
    masks = draw_masks(config, 0, batch_of(volume), VIT)
    found = trivial_losses(volume, masks, VIT, "l2", True)
    voxels = VIT.patch_voxels
    for c in range(3):
        assert found[f"patch_mean_channel_{c}"] == pytest.approx(1 - 1 / voxels, rel=1e-4)


def test_pasted_predictions_get_each_channels_own_mean_and_deviation_back():
    volume, config = volume_of(), MAEConfig()
    masks = draw_masks(config, 0, batch_of(volume), VIT)
    truth = voxel_rows(volume, masks.masked_ids, VIT).double().unflatten(-1, (3, -1))
    deviation = (truth.var(-1, keepdim=True) + 1e-6).sqrt()
    perfect = ((truth - truth.mean(-1, keepdim=True)) / deviation).flatten(-2)
    _, painted = paste_patches(volume, perfect, masks, VIT, True)
    torch.testing.assert_close(painted.double(), volume, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("method", ["mae", "simmim", "simclr"])
def test_a_run_tells_every_channel_and_the_volumes_that_lack_one(corpus, tmp_path, method, capfd):
    config = small_config(corpus, method)
    config = dataclasses.replace(
        config,
        vit=dataclasses.replace(config.vit, channels=3),
        data=dataclasses.replace(config.data, held_out_subjects=("s0000",), held_out_crops=4),
    )
    result = run_pretrain(config, tmp_path / "run")
    out, err = capfd.readouterr()
    assert "1 of 3 volumes lack a channel" in out + err
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    verdict = result.figures["pretext"]
    assert read_card(tmp_path / "run")[1]["statistics"] == 2
    if method == "simclr":
        assert "channels" not in verdict
        return
    for row in rows:
        parts = [row[f"loss_channel_{c}"] for c in range(3)]
        assert row["loss"] == pytest.approx(np.mean(parts), rel=1e-5)
        floors = [row[f"patch_mean_channel_{c}"] for c in range(3)]
        assert row["patch_mean"] == pytest.approx(np.mean(floors), rel=1e-5)
    assert len(verdict["channels"]) == len(verdict["held_out"]["channels"]) == 3
    assert rows[-1]["held_out_loss_channel_1"] == verdict["held_out"]["channels"][1]["loss"]
    behind = [each["loss"] >= each["patch_mean"] > 0 for each in verdict["channels"]]
    assert verdict["behind"] == [c for c in range(3) if behind[c]]
    assert not (verdict["learned"] and any(behind))


def test_one_channel_has_no_figures_by_channel():
    vit = dataclasses.replace(VIT, channels=1)
    model = SimMIM(SimMIMConfig(), vit)
    out = model(batch_of(torch.randn(2, 1, 8, 12, 16)), measure=True)
    assert set(out.metrics) == {"patch_mean", "nearest_patch"}


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_help_says_what_zscore_is(command, capsys):
    with pytest.raises(SystemExit):
        main([command, {"pretrain": "demo-mae", "finetune": "demo"}[command], "--help"])
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "zscore: mean and deviation of the foreground, voxels above Otsu's threshold" in words
    assert "Each channel by itself" in words
