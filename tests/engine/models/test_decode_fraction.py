"""A share of the hidden patches decoded: which, how they are scored, and what it saves."""

from dataclasses import replace

import pytest
import torch

from mim3d.dataio.loader.batch import Batch
from mim3d.engine.errors import ConfigError
from mim3d.engine.models.build import build_method
from mim3d.engine.models.config import MAEConfig, ViTConfig, n_decoded
from mim3d.engine.models.flops import crop_flops
from mim3d.engine.models.masked import MaskedMethod
from mim3d.engine.models.masks import draw_masks
from mim3d.engine.models.primus.config import PrimusConfig
from mim3d.engine.pretrain.config import config_identity
from mim3d.engine.pretrain.recipes import recipe

SIZES = {"crop_size": (16, 16, 32), "patch_size": (4, 8, 8), "width": 24, "depth": 1, "heads": 2}
ENCODERS = [ViTConfig(**SIZES), PrimusConfig(**SIZES)]
MAE = MAEConfig(decoder_width=24, decoder_depth=1, decoder_heads=2, loss="l2",
                normalise_target=False, decode_fraction=0.25)  # fmt: skip


def make_batch(image: torch.Tensor, first: int = 0) -> Batch:
    zeros = torch.zeros(len(image), dtype=torch.int64)
    return Batch(image, None, None, zeros, zeros[:, None], torch.arange(len(image)) + first, 0)


def module_of(vit: ViTConfig, method: MAEConfig = MAE) -> MaskedMethod:
    module = build_method(method, vit, None, 0)
    assert isinstance(module, MaskedMethod)
    return module


@pytest.mark.parametrize("vit", ENCODERS, ids=["vit", "primus"])
def test_masks_stay_and_a_share_of_the_hidden_patches_is_scored(vit: ViTConfig) -> None:
    module = module_of(vit)
    batch = make_batch(torch.randn(3, 1, *vit.crop_size))
    whole, part = draw_masks(MAE, 0, batch, vit), module.scored(batch)
    assert torch.equal(part.visible_ids, whole.visible_ids)
    assert torch.equal(part.masked, whole.masked)
    kept = n_decoded(whole.masked_ids.shape[1], 0.25)
    assert part.masked_ids.shape == (3, kept)
    assert whole.masked.gather(1, part.masked_ids).all()
    painted = module.predict(batch.image, part)
    difference = (painted - rows_of(batch.image, part.masked_ids, vit)).square().mean()
    torch.testing.assert_close(module(batch).loss, difference)
    module(batch).loss.backward()
    assert all(p.grad is not None for p in module.parameters())


def rows_of(image: torch.Tensor, ids: torch.Tensor, vit: ViTConfig) -> torch.Tensor:
    (gz, gy, gx), (pz, py, px) = vit.grid, vit.patch_size
    tiles = image.reshape(len(image), 1, gz, pz, gy, py, gx, px).permute(0, 2, 4, 6, 1, 3, 5, 7)
    rows = tiles.reshape(len(image), vit.n_patches, -1)
    return rows.gather(1, ids[..., None].expand(-1, -1, rows.shape[-1]))


def test_the_estimate_has_no_bias() -> None:
    """With predictions held at zero the loss is the mean square of what is scored."""
    vit = ENCODERS[0]
    image = torch.randn(1, 1, *vit.crop_size, generator=torch.Generator().manual_seed(0))
    image *= torch.linspace(0.0, 3.0, 32)
    batch = make_batch(image.expand(4000, -1, -1, -1, -1))
    squares = rows_of(image, torch.arange(vit.n_patches)[None], vit).square().mean(-1)[0]
    masks, part = draw_masks(MAE, 0, batch, vit), module_of(vit).scored(batch)
    whole, found = squares[masks.masked_ids].mean(1), squares[part.masked_ids].mean(1)
    apart = found - whole
    assert abs(float(apart.mean())) < 4.0 * float(apart.std()) / len(apart) ** 0.5
    counts = torch.bincount(part.masked_ids.flatten(), minlength=vit.n_patches).float()
    expected = part.masked_ids.numel() / vit.n_patches
    assert float((counts - expected).abs().max()) < 5.0 * expected**0.5


@pytest.mark.parametrize("vit", ENCODERS, ids=["vit", "primus"])
def test_all_of_them_is_what_it_was(vit: ViTConfig) -> None:
    """The path that gathers some gives, of all, what the kernel gives of all."""
    module = module_of(vit, replace(MAE, decode_fraction=1.0))
    batch = make_batch(torch.randn(2, 1, *vit.crop_size))
    masks = module.scored(batch)
    assert torch.equal(masks.masked_ids, draw_masks(MAE, 0, batch, vit).masked_ids)
    with pytest.MonkeyPatch.context() as patch:
        wanted = module.predict(batch.image, masks)
        patch.setattr("mim3d.engine.models.mae.decoder_tokens", plain_tokens)
        torch.testing.assert_close(module.predict(batch.image, masks), wanted)


def plain_tokens(visible, mask_token, positions, visible_ids, masked_ids):
    blank = mask_token.expand(len(visible), masked_ids.shape[1], -1)
    return torch.cat([visible, blank], 1) + positions[torch.cat([visible_ids, masked_ids], 1)]


def test_a_quarter_makes_a_step_at_patch_8_half_as_dear_again() -> None:
    config = recipe("openmind-primus-m-mae")
    assert isinstance(config.method, MAEConfig)
    less = replace(config.method, decode_fraction=0.25)
    ratio = crop_flops(config.method, config.vit).training / crop_flops(less, config.vit).training
    assert ratio == pytest.approx(1.5, abs=0.1)


def test_what_would_be_biased_is_refused_and_runs_of_before_stay_what_they_were() -> None:
    with pytest.raises(ConfigError, match=r"--method\.mask-kind random"):
        replace(MAE, mask_kind="block", mask_unit=2)
    with pytest.raises(ConfigError, match=r"must lie in \(0, 1\]"):
        replace(MAE, decode_fraction=0.0)
    plain = recipe("demo-mae")
    assert "decode_fraction" not in config_identity(plain)["method"]
    assert isinstance(plain.method, MAEConfig)
    changed = replace(plain, method=replace(plain.method, decode_fraction=0.5))
    assert config_identity(changed)["method"]["decode_fraction"] == 0.5
