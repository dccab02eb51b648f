"""MAE and SimMIM: exactly the hidden voxels are scored, and they can be learned."""

import math

import pytest
import torch

from mim3d.dataio.loader.batch import Batch
from mim3d.engine.errors import ConfigError
from mim3d.engine.models.config import (
    MAEConfig,
    SimMIMConfig,
    SwinConfig,
    ViTConfig,
)
from mim3d.engine.models.mae import MAE
from mim3d.engine.models.masks import draw_masks
from mim3d.engine.models.simmim import SimMIM
from mim3d.engine.models.swin import SwinSimMIM
from mim3d.engine.models.trivial import nearest_visible, put_rows, trivial_losses, voxel_rows
from mim3d.kernels.masking import PatchMasks

VIT = ViTConfig((8, 12, 16), (4, 6, 4), channels=2, width=24, depth=1, heads=2)


def make_batch(volume):
    b = volume.shape[0]
    zeros = torch.zeros(b, dtype=torch.int64)
    return Batch(volume, None, None, zeros, torch.zeros(b, 3).long(), torch.arange(b), 0)


def make(kind, **fields):
    torch.manual_seed(0)
    if kind == "mae":
        return MAE(MAEConfig(decoder_width=24, decoder_depth=1, decoder_heads=2, **fields), VIT)
    return SimMIM(SimMIMConfig(**fields), VIT)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("kind", ["mae", "simmim"])
def test_scored_voxels_are_exactly_the_hidden_ones(kind, normalise):
    """With the prediction held, a voxel moves the loss if and only if it is hidden.

    And with the loss's target held, a voxel moves the prediction if and only if it is visible.
    """
    model = make(kind, normalise_target=normalise, mask_ratio=0.6, loss="l2").double()
    volume = torch.randn(2, 2, 8, 12, 16, dtype=torch.float64)
    batch = make_batch(volume)
    masks = draw_masks(model.config, 0, batch, VIT)
    predicted = model.predict(volume, masks).detach()
    hidden_voxels = put_rows(
        torch.zeros_like(volume), masks, torch.ones_like(predicted), VIT
    ).bool()

    def loss(changed):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model, "predict", lambda volume, masks: predicted)
            return model(make_batch(changed)).loss.item()

    at_rest = loss(volume)
    generator = torch.Generator().manual_seed(3)
    for flat in torch.randperm(volume.numel(), generator=generator)[:40].tolist():
        changed = volume.clone()
        changed.view(-1)[flat] += 0.5
        hidden = bool(hidden_voxels.view(-1)[flat])
        assert (loss(changed) != at_rest) == hidden
        assert bool((model.predict(changed, masks) != predicted).any()) != hidden


@pytest.mark.parametrize("kind", ["mae", "simmim"])
def test_masks_follow_the_sample_and_not_its_place(kind):
    model = make(kind)
    volume = torch.randn(3, 2, 8, 12, 16)
    batch = make_batch(volume)
    whole = draw_masks(model.config, 7, batch, VIT).masked
    batch.sample = torch.tensor([2, 0, 1])
    assert torch.equal(draw_masks(model.config, 7, batch, VIT).masked, whole[[2, 0, 1]])
    assert not torch.equal(draw_masks(model.config, 8, batch, VIT).masked, whole[[2, 0, 1]])


@pytest.mark.parametrize("kind", ["mae", "simmim"])
def test_share_splits_the_global_mean(kind):
    model = make(kind)
    volume = torch.randn(4, 2, 8, 12, 16)
    whole = model(make_batch(volume)).loss
    halves = []
    for part in (slice(0, 2), slice(2, 4)):
        batch = make_batch(volume[part])
        batch.sample = torch.arange(4)[part]
        halves.append(model(batch, share=0.5).loss)
    torch.testing.assert_close(halves[0] + halves[1], whole)


@pytest.mark.parametrize("kind", ["mae", "simmim"])
def test_a_smooth_volume_is_learned_far_below_the_trivial_predictors(kind):
    model = make(kind, normalise_target=False, mask_ratio=0.5)
    z, y, x = torch.meshgrid(*(torch.linspace(0, 3, s) for s in (8, 12, 16)), indexing="ij")
    volume = torch.stack([torch.sin(z + y), torch.cos(x)])[None].repeat(2, 1, 1, 1, 1)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(120):
        batch = make_batch(volume)
        batch.sample = torch.arange(2) + 2 * step
        optimiser.zero_grad()
        model(batch).loss.backward()
        optimiser.step()
    out = model(make_batch(volume), measure=True)
    assert out.loss < 0.5 * out.metrics["patch_mean"]
    assert out.loss < 0.5 * out.metrics["nearest_patch"]


def test_trivial_losses_have_their_meaning():
    """Zero for normalised targets costs sqrt(2/pi) a voxel in L1 on Gaussian noise, 1 in L2."""
    vit = ViTConfig((32, 32, 32), (8, 8, 8), width=12, depth=1, heads=2)
    volume = torch.randn(4, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    masks = draw_masks(MAEConfig(), 0, make_batch(volume), vit)
    l2 = trivial_losses(volume, masks, vit, "l2", True)
    l1 = trivial_losses(volume, masks, vit, "l1", True)
    assert l2["patch_mean"] == pytest.approx(1.0, abs=0.01)
    assert l2["nearest_patch"] == pytest.approx(2.0, abs=0.02)
    assert l1["patch_mean"] == pytest.approx(math.sqrt(2 / math.pi), abs=0.01)


def test_nearest_visible_patch_by_hand():
    visible = torch.tensor([[0, 11]])
    hidden = torch.tensor([[1, 10, 4, 7]])
    masks = PatchMasks(visible, hidden, torch.zeros(1, 12, dtype=torch.bool))
    cubes = ViTConfig((24, 16, 16), (8, 8, 8), width=24, heads=2)
    assert nearest_visible(masks, cubes).tolist() == [[0, 11, 0, 11]]


def test_nearest_is_in_voxels_not_in_patches():
    """Two flat patches away along z is nearer than one patch along x."""
    flat = ViTConfig((12, 16, 32), (4, 16, 16), width=24, heads=2)  # grid (3, 1, 2)
    masks = PatchMasks(torch.tensor([[1, 4]]), torch.tensor([[0]]), torch.zeros(1, 6).bool())
    assert nearest_visible(masks, flat).tolist() == [[4]]


def test_rows_put_back_restore_the_volume():
    volume = torch.randn(2, 2, 8, 12, 16)
    masks = draw_masks(MAEConfig(), 0, make_batch(volume), VIT)
    rows = voxel_rows(volume, masks.masked_ids, VIT)
    assert torch.equal(put_rows(volume, masks, rows, VIT), volume)


@pytest.mark.parametrize("normalise", [False, True])
def test_reconstruction_keeps_visible_voxels(normalise):
    model = make("mae", normalise_target=normalise)
    volume = torch.randn(2, 2, 8, 12, 16)
    batch = make_batch(volume)
    masked, painted = model.reconstruct(batch)
    masks = draw_masks(model.config, 0, batch, VIT)
    visible = voxel_rows(painted, masks.visible_ids, VIT)
    assert torch.equal(visible, voxel_rows(volume, masks.visible_ids, VIT))
    assert not torch.equal(painted, volume)
    assert (voxel_rows(masked, masks.masked_ids, VIT) == volume.min()).all()


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.2, 1.5])
def test_ratio_must_hide_some(ratio):
    with pytest.raises(ConfigError, match=f"mask_ratio {ratio}"):
        MAEConfig(mask_ratio=ratio)


def test_block_masks_hide_whole_cubes():
    vit = ViTConfig((32, 32, 32), (4, 4, 4), width=12, depth=1, heads=2)
    config = SimMIMConfig(mask_ratio=0.5, mask_kind="block", mask_unit=2)
    masks = draw_masks(config, 0, make_batch(torch.zeros(1, 1, 32, 32, 32)), vit)
    cubes = masks.masked.reshape(4, 2, 4, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(64, 8)
    assert (cubes.all(1) | ~cubes.any(1)).all()
    assert masks.masked.sum() == 256


@pytest.mark.slow
def test_swin_simmim_scores_hidden_voxels_and_learns():
    vit = ViTConfig((32, 32, 32), (16, 16, 16), width=12, depth=1, heads=2)
    torch.manual_seed(0)
    model = SwinSimMIM(SimMIMConfig(mask_ratio=0.5), SwinConfig(feature_size=12), vit)
    z, y, x = torch.meshgrid(*(torch.linspace(0, 3, 32),) * 3, indexing="ij")
    volume = (torch.sin(z + y) + torch.cos(x))[None, None].repeat(2, 1, 1, 1, 1)
    batch = make_batch(volume)
    masks = draw_masks(model.config, 0, batch, vit)
    predicted = model.predict(volume, masks)
    assert predicted.shape == volume.shape
    changed = put_rows(volume, masks, voxel_rows(volume, masks.masked_ids, vit) + 1.0, vit)
    torch.testing.assert_close(model.predict(changed, masks), predicted)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first = model(batch).loss.item()
    for _ in range(30):
        optimiser.zero_grad()
        model(batch).loss.backward()
        optimiser.step()
    assert model(batch).loss < 0.5 * first
    _, painted = model.reconstruct(batch)
    assert painted.shape == volume.shape
