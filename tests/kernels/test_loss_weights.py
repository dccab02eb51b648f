"""Voxels that do not count: their gradient, what they may hold, and what targets are made of."""

import pytest
import torch
from kernel_inputs import TERMS, assert_close, random_ids, random_volume, value_and_gradient
from torch import Tensor

from mim3d.kernels import masked_loss_kernel, patch_moments
from mim3d.kernels.masked_loss import KINDS, counted_share, masked_voxel_loss
from mim3d.kernels.patch_grid import take_patches

SHAPE, PATCH, COUNT = (2, 2, 8, 10, 9), (4, 5, 3), 120
FORMS = ("token", "dense")


def weights_of(channels: int = 1) -> Tensor:
    """One patch counts in no voxel, one in a single one, others by halves."""
    weight = torch.rand(2, channels, *SHAPE[2:], generator=torch.Generator().manual_seed(5)) > 0.5
    weight[0, :, :4, :5, :3] = False
    weight[0, :, :4, :5, 3:6] = False
    weight[0, :, 1, 1, 4] = True
    return weight


def inputs(form: str, dtype=torch.int16) -> tuple[Tensor, Tensor, Tensor]:
    """Prediction, volume and all ids but one."""
    generator = torch.Generator().manual_seed(7)
    shape = SHAPE if form == "dense" else (2, 11, COUNT)
    prediction = torch.randn(shape, generator=generator)
    ids = random_ids(2, 12, 11)
    ids[0] = torch.arange(11)
    return prediction, random_volume(SHAPE, dtype), ids


def counted_loss(prediction, volume, ids, weight, kind, normalise) -> Tensor:
    """In float64, patch by patch: targets and terms from the voxels that count alone."""
    found = prediction.new_zeros(())
    rows = take_patches(volume.double(), ids, PATCH, SHAPE[2:], None, None).flatten(3)
    counts = take_patches(weight.expand(SHAPE), ids, PATCH, SHAPE[2:], None, None).flatten(3)
    if prediction.dim() == 5:
        prediction = take_patches(prediction, ids, PATCH, SHAPE[2:], None, None).flatten(2)
    guesses = prediction.unflatten(-1, (SHAPE[1], -1))
    for i in range(2):
        for j in range(ids.shape[1]):
            for c in range(SHAPE[1]):
                chosen = counts[i, j, c].bool()
                target = rows[i, j, c][chosen]
                if normalise and len(target):
                    variance = target.var() if len(target) > 1 else target.new_zeros(())
                    target = (target - target.mean()) / (variance + 1e-6).sqrt()
                found = found + TERMS[kind](guesses[i, j, c][chosen], target, reduction="sum")
    return found / (ids.numel() * COUNT)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("kind", "way"),
    [*((kind, "raw") for kind in KINDS), ("smooth_l1", "normalised"), ("l2", "chunked")],
)
def test_value_and_gradient(where, kind, way, form, monkeypatch):
    backend, device = where
    if way == "chunked":
        monkeypatch.setattr(masked_loss_kernel, "MAX_TILE", 32)
        monkeypatch.setattr(patch_moments, "BLOCK", 32)
    prediction, volume, ids = inputs(form)
    weight, normalise = weights_of(), way != "raw"
    got = value_and_gradient(
        masked_voxel_loss, prediction.to(device), volume.to(device), ids.to(device), PATCH,
        kind=kind, normalise_target=normalise, weight=weight.to(device), backend=backend,
    )  # fmt: skip
    wanted = value_and_gradient(
        counted_loss, prediction.double(), volume, ids, weight, kind, normalise
    )
    assert_close(got, wanted)
    assert not got[1][wanted[1] == 0].any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("way", ["raw", "normalised", "chunked"])
def test_what_does_not_count_may_hold_anything(where, way, form, monkeypatch):
    """NaN and infinities, in the volume and in the prediction: not one bit of the rest changes."""
    backend, device = where
    if way == "chunked":
        monkeypatch.setattr(masked_loss_kernel, "MAX_TILE", 32)
        monkeypatch.setattr(patch_moments, "BLOCK", 32)
    prediction, volume, ids = inputs(form, torch.float32)
    weight = weights_of(2)
    silent = ~weight
    if form == "token":
        rows = take_patches(silent, ids, PATCH, SHAPE[2:], None, None).flatten(2)
    else:
        rows = silent
    spoilt = torch.where(rows, float("inf"), prediction)
    strange = torch.where(silent, float("nan"), volume)
    results = [
        value_and_gradient(
            masked_voxel_loss, p.to(device), v.to(device), ids.to(device), PATCH, kind="l2",
            normalise_target=way != "raw", weight=weight.to(device), backend=backend,
        )
        for p, v in ((prediction, volume), (spoilt, strange))
    ]  # fmt: skip
    assert results[0][0].isfinite() and results[0][0] > 0
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert not results[1][1][rows].any()


def test_a_constant_patch_of_which_a_part_counts_has_targets_of_zero(where):
    backend, device = where
    _, _, ids = inputs("token")
    volume = torch.full(SHAPE, -1000.3)
    leaf = torch.zeros(2, 11, COUNT, device=device, requires_grad=True)
    loss = masked_voxel_loss(
        leaf, volume.to(device), ids.to(device), PATCH, normalise_target=True,
        weight=weights_of().to(device), backend=backend,
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert loss.item() == 0 and not gradient.any()


def test_the_mean_over_what_counts_is_nnssls(where):
    """LossMaskMSELoss of nnssl: sum(loss * mask) / sum(mask), mask = hidden and not anonymised."""
    backend, device = where
    prediction, volume, ids = inputs("dense", torch.float32)
    weight = weights_of()
    loss = masked_voxel_loss(
        prediction.to(device), volume.to(device), ids.to(device), PATCH, kind="l2",
        weight=weight.to(device), backend=backend,
    )  # fmt: skip
    share = counted_share(weight.to(device), ids.to(device), PATCH)
    hidden = torch.zeros(2, 12, dtype=torch.bool).scatter_(1, ids, True).unflatten(1, (2, 2, 3))
    for axis, patch in enumerate(PATCH, start=1):
        hidden = hidden.repeat_interleave(patch, dim=axis)
    mask = (hidden[:, None] & weight).double().expand(SHAPE)
    theirs = ((prediction.double() - volume.double()) ** 2 * mask).sum() / mask.sum()
    torch.testing.assert_close((loss / share).cpu().double(), theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32], ids=str)
def test_counted_share(dtype):
    _, _, ids = inputs("token")
    weight = weights_of().to(dtype)
    found = take_patches(weight.double(), ids, PATCH, SHAPE[2:], None, None)
    assert counted_share(weight, ids, PATCH).item() == pytest.approx(found.mean().item(), rel=1e-6)
    assert counted_share(torch.zeros_like(weight), ids, PATCH).item() == 0
    assert counted_share(torch.ones_like(weight), ids, PATCH).item() == 1
