"""The invariant, end to end: scored voxels are exactly the hidden ones, on non-cubic crops.

One voxel is changed at a time; what then moves says who read it. The three operations must agree
on patch numbering, on flips and on starts, for any of them alone could be consistently wrong.
"""

import pytest
import torch

from mim3d.kernels.masked_loss import masked_voxel_loss
from mim3d.kernels.masking import KINDS, patch_masks
from mim3d.kernels.patch_grid import grid_shape
from mim3d.kernels.patch_rows import gather_patch_rows


def voxels_of(masks, crop, patch, device):
    """(z, y, x) bool over the crop, True = hidden, painted patch by patch in plain Python."""
    _, gy, gx = grid_shape(crop, patch)
    hidden = torch.zeros(crop, dtype=torch.bool)
    for patch_id in masks.masked_ids[0].tolist():
        z, y, x = (patch_id // (gy * gx), patch_id // gx % gy, patch_id % gx)
        pz, py, px = patch
        hidden[z * pz : z * pz + pz, y * py : y * py + py, x * px : x * px + px] = True
    return hidden.to(device)


def seen_and_scored(volume, masks, patch, **options):
    """Rows read by the encoder and the gradient of each hidden voxel's term, as two tensors."""
    rows = gather_patch_rows(volume, masks.visible_ids, patch, out_dtype=torch.float32, **options)
    prediction = torch.zeros(
        1, masks.masked_ids.shape[1], patch[0] * patch[1] * patch[2],
        device=volume.device, requires_grad=True,
    )  # fmt: skip
    loss = masked_voxel_loss(
        prediction, volume, masks.masked_ids, patch, kind="l2", denominator=1, **options
    )
    (gradient,) = torch.autograd.grad(loss, prediction)
    return rows, gradient


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_each_voxel_is_either_seen_or_scored(where, kind, sampled):
    backend, device = where
    crop, patch = (4, 6, 12), (2, 3, 2)
    n, space = 24, (7, 8, 13) if sampled else crop
    masks = patch_masks(
        5, torch.tensor([3], device=device), n, 7, kind=kind, grid=(2, 2, 6), unit=2,
        backend=backend,
    )  # fmt: skip
    options = {"backend": backend, "crop_size": crop}
    start, flip = torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 3, dtype=torch.bool)
    if sampled:
        start, flip = torch.tensor([[2, 1, 1]]), torch.tensor([[True, False, True]])
        options |= {"start": start.to(device), "flip": flip.to(device)}
    volume = torch.randn(1, 1, *space, device=device)
    hidden = voxels_of(masks, crop, patch, device)
    rows, gradient = seen_and_scored(volume, masks, patch, **options)
    generator = torch.Generator().manual_seed(0)
    for place in torch.randperm(crop[0] * crop[1] * crop[2], generator=generator)[:12].tolist():
        z, y, x = place // (crop[1] * crop[2]), place // crop[2] % crop[1], place % crop[2]
        source = [
            int(start[0, a]) + (crop[a] - 1 - v if flip[0, a] else v)
            for a, v in enumerate((z, y, x))
        ]
        changed = volume.clone()
        changed[0, 0, source[0], source[1], source[2]] += 1
        new_rows, new_gradient = seen_and_scored(changed, masks, patch, **options)
        terms, elements = (new_gradient != gradient).sum(), (new_rows != rows).sum()
        assert (terms.item(), elements.item()) == ((1, 0) if hidden[z, y, x] else (0, 1))
        if hidden[z, y, x]:
            patch_id = (z // 2 * 2 + y // 3) * 6 + x // 2
            token = masks.masked_ids[0].tolist().index(patch_id)
            element = (z % 2 * 3 + y % 3) * 2 + x % 2
            assert (new_gradient != gradient).nonzero().tolist() == [[0, token, element]]


def test_voxels_outside_the_crop_move_nothing(where):
    backend, device = where
    masks = patch_masks(1, torch.tensor([0], device=device), 8, 3, backend=backend)
    options = {
        "backend": backend, "crop_size": (4, 4, 4),
        "start": torch.tensor([[2, 2, 2]], device=device),
    }  # fmt: skip
    volume = torch.randn(1, 1, 8, 8, 8, device=device)
    changed = torch.randn(1, 1, 8, 8, 8, device=device)
    changed[..., 2:6, 2:6, 2:6] = volume[..., 2:6, 2:6, 2:6]
    for before, after in zip(
        seen_and_scored(volume, masks, (2, 2, 2), **options),
        seen_and_scored(changed, masks, (2, 2, 2), **options),
        strict=True,
    ):
        assert torch.equal(before, after)


def test_dense_predictions_are_scored_where_the_volume_is_hidden(where):
    backend, device = where
    crop, patch = (4, 6, 12), (2, 3, 2)
    masks = patch_masks(5, torch.tensor([3], device=device), 24, 7, backend=backend)
    prediction = torch.randn(1, 1, *crop, device=device, requires_grad=True)
    volume = torch.randn(1, 1, *crop, device=device)
    loss = masked_voxel_loss(prediction, volume, masks.masked_ids, patch, backend=backend)
    (gradient,) = torch.autograd.grad(loss, prediction)
    assert torch.equal(gradient[0, 0] != 0, voxels_of(masks, crop, patch, device))
