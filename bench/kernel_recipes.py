"""The same operations as others write them, for 3D: eager PyTorch, and clean forms to compile.

    mae_*       facebookresearch/mae models_mae.py with a third axis: patchify everything, then mask
    medmim_*    MIM-Med3D (after lucidrains' vit-pytorch): patchify, index the masked patches
    nnssl_*     nnssl: dense prediction, voxel mask by repeat_interleave, mean over the masked
    clean_*     masked patches only, as few passes as plain PyTorch allows: what to torch.compile

All take the raw volume (b, c, z, y, x) as the loader leaves it and cast it themselves.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

EPSILON = 1e-6


def patchify(volume: Tensor, patch: Sequence[int]) -> Tensor:
    """(b, n, c*p) as MAE does it: reshape, permute, reshape (a copy)."""
    b, c, z, y, x = volume.shape
    pz, py, px = patch
    tiles = volume.reshape(b, c, z // pz, pz, y // py, py, x // px, px)
    return tiles.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(b, -1, c * pz * py * px)


def mae_masks(b: int, n: int, keep: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """random_masking: noise, two argsorts, a gather; (ids_keep, mask float, ids_restore)."""
    noise = torch.rand(b, n, device=device)
    shuffle = torch.argsort(noise, dim=1)
    restore = torch.argsort(shuffle, dim=1)
    mask = torch.ones(b, n, device=device)
    mask[:, :keep] = 0
    return shuffle[:, :keep], torch.gather(mask, 1, restore), restore


def mae_rows(volume: Tensor, ids: Tensor, patch: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Visible rows: cast, patchify all, gather the kept ones."""
    rows = patchify(volume.float(), patch)
    index = ids.unsqueeze(-1).repeat(1, 1, rows.shape[2])
    return torch.gather(rows, 1, index).to(dtype)


def mae_rows_augmented(
    volume: Tensor, ids: Tensor, patch: Sequence[int], dtype: torch.dtype,
    scale: Tensor, shift: Tensor, flip: Tensor,
) -> Tensor:  # fmt: skip
    """The same after per-sample intensity and flips as separate transforms."""
    volume = volume.float() * scale.view(-1, 1, 1, 1, 1) + shift.view(-1, 1, 1, 1, 1)
    for axis in range(3):
        chosen = flip[:, axis].view(-1, 1, 1, 1, 1)
        volume = torch.where(chosen, volume.flip(axis + 2), volume)
    return mae_rows(volume, ids, patch, dtype)


def mae_loss(prediction: Tensor, volume: Tensor, mask: Tensor, patch: Sequence[int]) -> Tensor:
    """forward_loss with norm_pix_loss: prediction (b, n, c*p) for all tokens, mask (b, n) float."""
    target = patchify(volume.float(), patch)
    mean = target.mean(dim=-1, keepdim=True)
    var = target.var(dim=-1, keepdim=True)
    target = (target - mean) / (var + EPSILON) ** 0.5
    loss = (prediction.float() - target).abs().mean(dim=-1)
    return (loss * mask).sum() / mask.sum()


def medmim_loss(prediction: Tensor, volume: Tensor, ids: Tensor, patch: Sequence[int]) -> Tensor:
    """Masked tokens only: patchify all, index the masked, normalise, F.l1_loss."""
    batch = torch.arange(len(ids), device=ids.device)[:, None]
    target = patchify(volume.float(), patch)[batch, ids]
    mean, var = target.mean(dim=-1, keepdim=True), target.var(dim=-1, keepdim=True)
    target = (target - mean) / (var + EPSILON) ** 0.5
    return torch.nn.functional.l1_loss(prediction.float(), target)


def nnssl_loss(
    prediction: Tensor, volume: Tensor, mask: Tensor, grid: Sequence[int], patch: Sequence[int]
) -> Tensor:
    """Dense prediction (b, c, z, y, x) and a voxel mask, raw targets."""
    voxels = mask.view(-1, 1, *grid)
    for axis, p in enumerate(patch):
        voxels = voxels.repeat_interleave(p, dim=axis + 2)
    loss = (prediction.float() - volume.float()).abs() * voxels
    return loss.sum() / voxels.sum()


def clean_patches(volume: Tensor, ids: Tensor, patch: Sequence[int]) -> Tensor:
    """(b, k, c*p) of chosen patches: one index into a view, nothing else is read."""
    view = volume
    for axis, p in zip((2, 4, 6), patch, strict=True):
        view = view.unflatten(axis, (-1, p))
    view = view.permute(0, 2, 4, 6, 1, 3, 5, 7)
    gy, gx = view.shape[2], view.shape[3]
    batch = torch.arange(len(ids), device=ids.device)[:, None]
    return view[batch, ids // (gy * gx), ids // gx % gy, ids % gx].flatten(2)


def clean_rows(volume: Tensor, ids: Tensor, patch: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Visible rows in one indexing."""
    return clean_patches(volume, ids, patch).to(dtype)


def clean_rows_augmented(
    volume: Tensor, ids: Tensor, patch: Sequence[int], dtype: torch.dtype,
    scale: Tensor, shift: Tensor, flip: Tensor,
) -> Tensor:  # fmt: skip
    """Flips inside the patch by index arithmetic, intensity on the picked rows only."""
    (b, k), c = ids.shape, volume.shape[1]
    sizes = volume.shape[2:]
    gy, gx = sizes[1] // patch[1], sizes[2] // patch[2]
    first = (ids // (gy * gx) * patch[0], ids // gx % gy * patch[1], ids % gx * patch[2])
    places = []
    for axis in range(3):
        place = first[axis][..., None] + torch.arange(patch[axis], device=ids.device)
        mirrored = sizes[axis] - 1 - place
        places.append(torch.where(flip[:, axis].view(-1, 1, 1), mirrored, place))
    z, y, x = (
        places[0][..., :, None, None],
        places[1][..., None, :, None],
        places[2][..., None, None, :],
    )
    sample = torch.arange(b, device=ids.device).view(-1, 1, 1, 1, 1)
    rows = [volume[sample, i, z, y, x] for i in range(c)]
    picked = torch.stack(rows, 2).reshape(b, k, -1).float()
    return (picked * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)).to(dtype)


def clean_loss(prediction: Tensor, volume: Tensor, ids: Tensor, patch: Sequence[int]) -> Tensor:
    """Masked patches only, normalised, L1."""
    target = clean_patches(volume, ids, patch).float()
    mean, var = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
    target = (target - mean) * torch.rsqrt(var + EPSILON)
    return (prediction.float() - target).abs().mean()


def mae_tokens(visible: Tensor, mask_token: Tensor, positions: Tensor, restore: Tensor) -> Tensor:
    """forward_decoder's start: repeat mask tokens, concatenate, unshuffle, add positions."""
    b, v, d = visible.shape
    masks = mask_token.view(1, 1, d).repeat(b, restore.shape[1] - v, 1)
    tokens = torch.cat([visible, masks], dim=1)
    tokens = torch.gather(tokens, 1, restore.unsqueeze(-1).repeat(1, 1, d))
    return tokens + positions


def clean_tokens(
    visible: Tensor, mask_token: Tensor, positions: Tensor, visible_ids: Tensor, masked_ids: Tensor
) -> Tensor:
    """Shuffled order kept: two gathers of positions and one concatenation."""
    return torch.cat([visible + positions[visible_ids], mask_token + positions[masked_ids]], 1)
