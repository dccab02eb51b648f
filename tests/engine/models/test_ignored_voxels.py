"""Voxels that a masked method ignores: its loss, floors and pictures are of the others alone."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mim3d.dataio.loader.batch import Batch
from mim3d.engine.errors import ConfigError
from mim3d.engine.models.build import build_method
from mim3d.engine.models.config import MAEConfig, SimMIMConfig, SwinConfig, ViTConfig
from mim3d.engine.models.masked import MaskedMethod
from mim3d.engine.models.primus.config import PrimusConfig
from mim3d.engine.models.resenc.config import ResEncConfig
from mim3d.engine.models.trivial import paste_patches, voxel_rows
from mim3d.kernels.masked_loss import KINDS

VIT = ViTConfig((8, 16, 16), (4, 8, 4), channels=2, width=24, depth=1, heads=2)
RESENC = ResEncConfig((4, 6, 8), (1, 1, 1))
MAE = MAEConfig(decoder_width=24, decoder_depth=1, decoder_heads=4, ignore=("air",))
WAYS = {
    "mae": (MAE, VIT, None),
    "share of the hidden": (replace(MAE, decode_fraction=0.5), VIT, None),
    "simmim": (SimMIMConfig(ignore=("air",)), VIT, None),
    "primus": (
        replace(MAE, decoder_heads=4),
        PrimusConfig((8, 16, 16), (4, 8, 4), channels=2, width=24, depth=1, heads=2),
        None,
    ),
    "dense resenc": (MAE, VIT, RESENC),
    "sparse resenc": (MAE, VIT, replace(RESENC, masking="sparse")),
    "swin": (
        SimMIMConfig(ignore=("air",)),
        ViTConfig((32, 32, 32), (16, 16, 16), channels=2, width=12, depth=1, heads=2),
        SwinConfig(feature_size=12, depths=(1, 1, 1, 1), heads=(1, 2, 2, 4), window=4),
    ),
}


def method(way: str, **changes: Any) -> Any:
    config, vit, backbone = WAYS[way]
    torch.manual_seed(0)
    return build_method(replace(config, **changes), vit, backbone, 0).double()


def batch_of(model: Any, weight: Tensor | None = None, n: int = 3) -> Batch:
    vit = model.vit_config
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(n, vit.channels, *vit.crop_size, generator=generator, dtype=torch.float64)
    zeros = torch.zeros(n, dtype=torch.int64)
    return Batch(image, None, None, zeros, zeros[:, None], torch.arange(n), 0, weight)


def weight_of(model: Any, n: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    found = torch.rand(n, 1, *model.vit_config.crop_size, generator=generator) > 0.4
    found[:, :, :4, :8] = False
    return found.to(torch.uint8)


def oracle(model: MaskedMethod, batch: Batch) -> Tensor:
    """Mean squared difference over hidden voxels that count, targets by these alone, in float64."""
    vit, masks = model.vit_config, model.scored(batch)
    assert batch.weight is not None
    apart = (vit.channels, -1)
    counted = voxel_rows(batch.weight.expand(batch.image.shape), masks.masked_ids, vit).bool()
    counted, total = counted.unflatten(-1, apart), batch.image.new_zeros(())
    truth = voxel_rows(batch.image, masks.masked_ids, vit).double().unflatten(-1, apart)
    painted = model.predict(batch.image, masks)
    if painted.dim() == 5:
        painted = voxel_rows(painted.detach(), masks.masked_ids, vit)
    painted = painted[..., : vit.channels * vit.patch_voxels].unflatten(-1, apart)
    for i, j, c in torch.cartesian_prod(*map(torch.arange, counted.shape[:3])).tolist():
        chosen = counted[i, j, c]
        values = truth[i, j, c][chosen]
        if model.config.normalise_target and len(values):
            variance = values.var() if len(values) > 1 else values.new_zeros(())
            values = (values - values.mean()) / (variance + 1e-6).sqrt()
        total = total + (painted[i, j, c][chosen] - values).square().sum()
    return total / counted.sum()


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_the_loss_is_the_mean_over_what_counts(way: str, normalise: bool) -> None:
    model = method(way, loss="l2", normalise_target=normalise)
    batch = batch_of(model, weight_of(model))
    out = model(batch, share=0.25)
    assert out.counted is not None and 0 < out.counted < 0.25
    wanted = oracle(model, batch)
    torch.testing.assert_close((out.loss / out.counted).double(), wanted, rtol=2e-6, atol=0)
    means = [out.metrics[f"loss_channel_{c}"] * 0.25 / out.counted for c in range(2)]
    torch.testing.assert_close(torch.stack(means).mean().double(), wanted, rtol=2e-6, atol=0)


@pytest.mark.parametrize("way", WAYS)
def test_a_crop_of_which_nothing_counts_is_not_there(way: str) -> None:
    """Loss and gradients are those of the other two crops alone; of none at all they are 0."""
    model = method(way)
    weight = weight_of(model)
    weight[1] = 0
    whole = batch_of(model, weight)
    kept = torch.tensor([0, 2])
    others = replace(whole, image=whole.image[kept], weight=weight[kept], sample=whole.sample[kept])

    def gradients(batch: Batch) -> list[Tensor]:
        model.zero_grad()
        out = model(batch)
        loss = out.loss / out.counted.clamp(min=1e-9)
        loss.backward()
        return [loss, *(p.grad for p in model.parameters() if p.requires_grad)]

    for found, wanted in zip(gradients(whole), gradients(others), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-9)
    weight[:] = 0
    assert model(whole).counted == 0
    assert not any(found.any() for found in gradients(whole))


@pytest.mark.parametrize("way", ["mae", "sparse resenc"])
@pytest.mark.parametrize("kind", KINDS)
def test_floors_are_of_the_same_voxels(way: str, kind: str) -> None:
    """What is ignored moves no floor, and of normalised targets a floor of 0 costs what it says."""
    model = method(way, loss=kind)
    weight = weight_of(model)
    batch = batch_of(model, weight)
    out = model(batch, measure=True)
    masks, strange = model.scored(batch), batch.image.clone()
    strange[(weight == 0).expand_as(strange)] = 1e4
    again = model.baselines(replace(batch, image=strange))
    assert again["patch_mean"] == out.metrics["patch_mean"]
    assert out.metrics["nearest_patch"] > out.metrics["patch_mean"]
    if kind == "l2":
        rows = voxel_rows(weight, masks.masked_ids, replace(model.vit_config, channels=1))
        n = rows.sum(-1)
        spread = ((n - 1).clamp(min=0)).sum() / n.sum()  # unbiased variance is 1
        found = out.metrics["patch_mean"] / out.counted
        assert found == pytest.approx(float(spread), rel=1e-4)


def test_a_floor_of_raw_targets_knows_the_mean_of_what_counts() -> None:
    model = method("simmim", loss="l2")
    weight = weight_of(model)
    batch = batch_of(model, weight)
    batch.image[(weight == 0).expand_as(batch.image)] = 1e4
    out = model(batch, measure=True)
    assert 0.8 < out.metrics["patch_mean"] / out.counted < 1.0


def test_painted_patches_get_the_mean_and_deviation_of_what_counts_back() -> None:
    model = method("mae")
    weight = weight_of(model)
    batch, vit = batch_of(model, weight), model.vit_config
    batch.image = 7 + 3 * batch.image
    batch.image[(weight == 0).expand_as(batch.image)] = -50.0
    masks = model.scored(batch)
    nothing = torch.zeros_like(voxel_rows(batch.image, masks.masked_ids, vit))
    _, painted = paste_patches(batch.image, nothing, masks, vit, True, weight)
    rows = voxel_rows(weight.expand_as(batch.image), masks.masked_ids, vit).unflatten(-1, (2, -1))
    found = voxel_rows(painted, masks.masked_ids, vit).unflatten(-1, (2, -1))[rows.sum(-1) > 9]
    assert (found > 3).all()
    assert model.reconstruct(batch)[1].isfinite().all()


def test_nothing_is_told_of_what_counts_where_nothing_is_ignored() -> None:
    model = method("mae", ignore=())
    assert model(batch_of(model)).counted is None
    ignoring = method("mae")
    assert ignoring(batch_of(ignoring), share=0.5).counted == 0.5
    assert ignoring(batch_of(ignoring)).loss == model(batch_of(model)).loss


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("bone",), "method.ignore='bone': padding, air or label:NAME"),
        (("label:",), "method.ignore='label:'"),
        (("air", "air"), "method.ignore='air air' names one of them twice"),
    ],
)
def test_words_that_tell_nothing_are_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MAEConfig(ignore=words)
