"""The same operations as others compute them, in 3D: eager PyTorch, and clean forms to compile.

Each does what the named source does, step by step, so that its launches and passes over memory
are the source's; none is a copy. Class tokens and autocast are left out: they touch every variant
alike. All take the raw volume (b, c, z, y, x) and cast it, as those loaders do on the host.

    mae_*       facebookresearch/mae at efb2a806, models_mae.py, with a third axis
    medmim_*    chenz53/MIM-Med3D at aea62436, code/models/mae.py and
                code/experiments/ssl/mae_pretrain_main.py
    nnssl_*     MIC-DKFZ/nnssl at 70448644, src/nnssl/...: BaseEvaMAETrainer.py, mse_loss.py,
                evaMAE_module.py
    plain_*     the order of the first two, without their embedding
    clean_*     only the patches asked for, in as few passes as plain PyTorch allows
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

EPSILON = 1e-6


def mae_patchify(volume: Tensor, patch: Sequence[int]) -> Tensor:
    """(b, n, p*c), channels last inside a patch: `MaskedAutoencoderViT.patchify`, one copy."""
    b, c, z, y, x = volume.shape
    pz, py, px = patch
    tiles = volume.reshape(b, c, z // pz, pz, y // py, py, x // px, px)
    tiles = torch.einsum("bcipjqkr->bijkpqrc", tiles)
    return tiles.reshape(b, -1, c * pz * py * px)


def mae_masks(b: int, n: int, keep: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """(kept ids, float mask with 1 = removed, restoring ids): `random_masking`, two argsorts."""
    shuffle = torch.argsort(torch.rand(b, n, device=device), dim=1)
    restore = torch.argsort(shuffle, dim=1)
    mask = torch.ones([b, n], device=device)
    mask[:, :keep] = 0
    return shuffle[:, :keep], torch.gather(mask, dim=1, index=restore), restore


def medmim_masks(b: int, n: int, keep: int, device: str) -> tuple[Tensor, Tensor]:
    """(masked ids, unmasked ids): `MAE.forward`, one argsort."""
    order = torch.rand(b, n, device=device).argsort(dim=-1)
    return order[:, : n - keep], order[:, n - keep :]


def plain_rows(volume: Tensor, ids: Tensor, patch: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Rows of the chosen patches: patchify the whole volume, then index."""
    batch = torch.arange(len(ids), device=ids.device)[:, None]
    return mae_patchify(volume.float(), patch)[batch, ids].to(dtype)


def plain_rows_augmented(
    volume: Tensor, ids: Tensor, patch: Sequence[int], dtype: torch.dtype,
    scale: Tensor, shift: Tensor, flip: Tensor,
) -> Tensor:  # fmt: skip
    """The same after per-sample intensity and flips as separate transforms."""
    volume = volume.float() * scale.view(-1, 1, 1, 1, 1) + shift.view(-1, 1, 1, 1, 1)
    for axis in range(3):
        chosen = flip[:, axis].view(-1, 1, 1, 1, 1)
        volume = torch.where(chosen, volume.flip(axis + 2), volume)
    return plain_rows(volume, ids, patch, dtype)


def mae_embed(
    volume: Tensor, ids: Tensor, patch: Sequence[int], weight: Tensor, bias: Tensor, table: Tensor
) -> Tensor:
    """Visible tokens: a convolution embeds every patch, the kept ones are gathered.

    `forward_encoder` and timm's PatchEmbed, then `random_masking`'s gather; nnssl's EvaMAE embeds
    so too. weight (d, c*p), table (n, d).
    """
    kernel = weight.view(len(weight), volume.shape[1], *patch)
    cells = functional.conv3d(volume.to(weight.dtype), kernel, bias, stride=tuple(patch))
    tokens = cells.flatten(2).transpose(1, 2) + table
    return torch.gather(tokens, 1, ids.unsqueeze(-1).repeat(1, 1, tokens.shape[2]))


def medmim_embed(
    volume: Tensor, ids: Tensor, patch: Sequence[int], weight: Tensor, bias: Tensor, table: Tensor
) -> Tensor:
    """Visible tokens: patchify and embed every patch, add positions, index: `MAE.forward`."""
    batch = torch.arange(len(ids), device=ids.device)[:, None]
    patches = mae_patchify(volume.to(weight.dtype), patch)
    return (functional.linear(patches, weight, bias) + table)[batch, ids]


def mae_loss(prediction: Tensor, volume: Tensor, mask: Tensor, patch: Sequence[int]) -> Tensor:
    """`forward_loss` with norm_pix_loss: squared error of all tokens (b, n, p*c), then the mask."""
    target = mae_patchify(volume.float(), patch)
    mean = target.mean(dim=-1, keepdim=True)
    var = target.var(dim=-1, keepdim=True)
    target = (target - mean) / (var + EPSILON) ** 0.5
    loss = ((prediction - target) ** 2).mean(dim=-1)
    return (loss * mask).sum() / mask.sum()


def medmim_loss(prediction: Tensor, volume: Tensor, ids: Tensor, patch: Sequence[int]) -> Tensor:
    """`MAEtrainer.training_step`: L1Loss of masked tokens against indexed raw patches."""
    batch = torch.arange(len(ids), device=ids.device)[:, None]
    patches = mae_patchify(volume.float(), patch)
    return functional.l1_loss(prediction.float(), patches[batch, ids])


def nnssl_mask(kept: Tensor, grid: Sequence[int], patch: Sequence[int]) -> Tensor:
    """Float voxels (b, 1, z, y, x), 1 = visible: `BaseEvaMAETrainer.create_mask`."""
    flat = torch.zeros(len(kept), grid[0] * grid[1] * grid[2], device=kept.device)
    mask = flat.scatter_(1, kept, 1.0).view(len(kept), *grid)
    for axis, p in enumerate(patch, start=1):
        mask = mask.repeat_interleave(p, dim=axis)
    return mask.unsqueeze(1)


def nnssl_loss(
    prediction: Tensor, volume: Tensor, kept: Tensor, grid: Sequence[int], patch: Sequence[int]
) -> Tensor:
    """`MAEMSELoss` on a dense prediction (b, c, z, y, x), with the mask its train_step makes."""
    mask = nnssl_mask(kept, grid, patch)
    loss = (prediction - volume.float()) ** 2
    return torch.sum(loss * (1 - mask)) / torch.sum(1 - mask)


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


def clean_embed(
    volume: Tensor, ids: Tensor, patch: Sequence[int], weight: Tensor, bias: Tensor, table: Tensor
) -> Tensor:
    """Visible tokens from visible rows only."""
    rows = clean_rows(volume, ids, patch, weight.dtype)
    return functional.linear(rows, weight, bias) + table[ids]


def clean_loss(prediction: Tensor, volume: Tensor, ids: Tensor, patch: Sequence[int]) -> Tensor:
    """Masked patches only, normalised, squared error."""
    target = clean_patches(volume, ids, patch).float()
    mean, var = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
    target = (target - mean) * torch.rsqrt(var + EPSILON)
    return (prediction.float() - target).square().mean()


def clean_raw_loss(prediction: Tensor, volume: Tensor, ids: Tensor, patch: Sequence[int]) -> Tensor:
    """Masked patches only, raw, absolute error."""
    return (prediction.float() - clean_patches(volume, ids, patch).float()).abs().mean()


def mae_tokens(visible: Tensor, mask_token: Tensor, positions: Tensor, restore: Tensor) -> Tensor:
    """`forward_decoder`'s start: repeated mask tokens behind, unshuffled, positions added."""
    b, v, d = visible.shape
    masks = mask_token.view(1, 1, d).repeat(b, restore.shape[1] - v, 1)
    tokens = torch.cat([visible, masks], dim=1)
    tokens = torch.gather(tokens, dim=1, index=restore.unsqueeze(-1).repeat(1, 1, d))
    return tokens + positions


def medmim_tokens(
    visible: Tensor, mask_token: Tensor, positions: Tensor, visible_ids: Tensor, masked_ids: Tensor
) -> Tensor:
    """`MAE.forward`'s decoder input: positions looked up, mask tokens first, order kept."""
    masks = mask_token.expand(*masked_ids.shape, -1).contiguous()
    masks = masks + functional.embedding(masked_ids, positions)
    return torch.cat((masks, visible + functional.embedding(visible_ids, positions)), dim=1)


def nnssl_tokens(visible: Tensor, mask_token: Tensor, positions: Tensor, kept: Tensor) -> Tensor:
    """`EvaMAE.restore_full_sequence`, then Eva's positions; its `torch.where` waits for the GPU."""
    (b, v, d), n = visible.shape, len(positions)
    masks = mask_token.view(1, 1, d).repeat(b, n - v, 1)
    restored = torch.zeros(b, n, d, device=visible.device, dtype=visible.dtype)
    batch = torch.arange(b, device=visible.device).unsqueeze(-1)
    seen = torch.zeros(b, n, dtype=torch.bool, device=visible.device)
    seen[batch, kept] = True
    restored[batch, kept] = visible
    restored[torch.where(~seen)] = masks.view(-1, d)
    return restored + positions


def clean_tokens(
    visible: Tensor, mask_token: Tensor, positions: Tensor, visible_ids: Tensor, masked_ids: Tensor
) -> Tensor:
    """Shuffled order kept: two gathers of positions and one concatenation."""
    return torch.cat([visible + positions[visible_ids], mask_token + positions[masked_ids]], 1)
