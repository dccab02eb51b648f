"""Predictors that know nothing, as the floor a trained one must beat; and painted volumes."""

import torch
from torch import Tensor

from mim3d.engine.models.config import LossKind, ViTConfig
from mim3d.engine.models.objective import channel_name
from mim3d.kernels.masked_loss import masked_channel_losses
from mim3d.kernels.masking import PatchMasks
from mim3d.kernels.patch_moments import normalised_rows, row_moments
from mim3d.kernels.patch_rows import gather_patch_rows


@torch.no_grad()
def trivial_losses(
    volume: Tensor,
    masks: PatchMasks,
    vit: ViTConfig,
    loss: LossKind,
    normalise_target: bool,
    weight: Tensor | None = None,
) -> dict[str, Tensor]:
    """Losses of two predictors on the same hidden voxels, each a 0-d tensor; of several channels
    those of each too.

    `patch_mean` knows the mean of each channel of a hidden patch (zero where targets are
    normalised); `nearest_patch` copies the nearest visible patch. Under `weight` the mean is of
    what counts, and the losses are divided by the number of all hidden voxels.
    """
    near_ids = nearest_visible(masks, vit)
    near = voxel_rows(volume, near_ids, vit)
    if normalise_target:
        near = normalised_rows(near, vit.channels, weight_rows(weight, near_ids, vit))
        mean = torch.zeros_like(near)
    else:
        hidden = voxel_rows(volume, masks.masked_ids, vit)
        mean = patch_means(hidden, vit, weight_rows(weight, masks.masked_ids, vit))
    found: dict[str, Tensor] = {}
    for name, guess in (("patch_mean", mean), ("nearest_patch", near)):
        found[name], parts = masked_channel_losses(
            guess.contiguous(),
            volume,
            masks.masked_ids,
            vit.patch_size,
            kind=loss,
            normalise_target=normalise_target,
            weight=weight,
        )
        found |= per_channel(name, parts)
    return found


def per_channel(name: str, parts: Tensor, share: float = 1.0) -> dict[str, Tensor]:
    """Means over each channel's own voxels, of its parts (c,) of `share` of a mean over all; none
    for one channel."""
    if len(parts) == 1:
        return {}
    means = (parts.detach() * (len(parts) / share)).unbind()
    return {channel_name(name, channel): mean for channel, mean in enumerate(means)}


def patch_means(rows: Tensor, vit: ViTConfig, weights: Tensor | None) -> Tensor:
    """Rows (b, m, c*p) of the mean of each channel of a patch, over what counts."""
    apart = rows.unflatten(-1, (vit.channels, -1))
    if weights is None:
        means = apart.mean(-1, keepdim=True)
    else:
        first, rest, _ = row_moments(apart, weights.unflatten(-1, (vit.channels, -1)))
        means = first + rest
    return means.expand_as(apart).flatten(-2)


def weight_rows(weight: Tensor | None, patch_ids: Tensor, vit: ViTConfig) -> Tensor | None:
    """Weights (b, m, c*p) float32 of the voxels of the given patches."""
    if weight is None:
        return None
    b, _, *size = weight.shape
    return voxel_rows(weight.expand(b, vit.channels, *size), patch_ids, vit)


def voxel_rows(volume: Tensor, patch_ids: Tensor, vit: ViTConfig) -> Tensor:
    """Voxels (b, m, c*p) float32 of the given patches."""
    rows = gather_patch_rows(volume, patch_ids, vit.patch_size, out_dtype=torch.float32)
    return rows[..., : vit.channels * vit.patch_voxels]


def nearest_visible(masks: PatchMasks, vit: ViTConfig) -> Tensor:
    """Id (b, m) of the visible patch nearest to each hidden one, in voxels between centres."""
    edges = torch.tensor(vit.patch_size, dtype=torch.float32, device=masks.masked_ids.device)
    step = edges / edges.min()
    hidden = grid_places(masks.masked_ids, vit.grid) * step
    visible = grid_places(masks.visible_ids, vit.grid) * step
    nearest = torch.cdist(hidden, visible).argmin(-1)
    return masks.visible_ids.gather(1, nearest)


def grid_places(ids: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Places (b, n, 3) float32 on the patch grid (z, y, x)."""
    _, y, x = grid
    return torch.stack([ids // (y * x), ids // x % y, ids % x], dim=-1).float()


def paste_patches(
    volume: Tensor,
    predicted: Tensor,
    masks: PatchMasks,
    vit: ViTConfig,
    normalise_target: bool,
    weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The crop with hidden patches emptied, and with `predicted` (b, m, c*p) in their place.

    Predictions of normalised targets get the true mean and deviation back, as MAE's own pictures
    do: the model is never asked for them. Under `weight` they are of what counts.
    """
    if normalise_target:
        apart = (vit.channels, vit.patch_voxels)
        truth = voxel_rows(volume, masks.masked_ids, vit).unflatten(-1, apart)
        weights = weight_rows(weight, masks.masked_ids, vit)
        weights = None if weights is None else weights.unflatten(-1, apart)
        first, mean, deviation = row_moments(truth, weights)
        predicted = predicted.unflatten(-1, apart) * deviation + (first + mean)
        predicted = predicted.flatten(-2)
    empty = torch.full_like(predicted, float(volume.float().min()))
    return put_rows(volume, masks, empty, vit), put_rows(volume, masks, predicted, vit)


def put_rows(volume: Tensor, masks: PatchMasks, rows: Tensor, vit: ViTConfig) -> Tensor:
    """A float32 copy of `volume` whose hidden patches hold `rows` (b, m, c*p)."""
    b, c = volume.shape[:2]
    (gz, gy, gx), (pz, py, px) = vit.grid, vit.patch_size
    ids = torch.arange(vit.n_patches, device=volume.device).expand(b, -1)
    every = voxel_rows(volume, ids, vit)
    index = masks.masked_ids[..., None].expand(-1, -1, every.shape[-1])
    every = every.scatter(1, index, rows.to(every.dtype))
    tiles = every.reshape(b, gz, gy, gx, c, pz, py, px)
    return tiles.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(volume.shape)
