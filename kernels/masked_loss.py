"""Masked-voxel loss straight from the raw volume, with its gradient in the same pass.

    masked_voxel_loss(prediction, volume, masked_ids, patch_size, kind="l1") -> scalar
    masked_channel_losses(...) -> (scalar, its part from each channel (c,), detached)
    counted_share(weight, masked_ids, patch_size) -> what part of the masked voxels counts

Patchified targets are never materialised: each program holds its patches' voxels in registers,
normalises them if asked, and writes d loss / d prediction beside one partial sum per channel of a
patch.
    l1         |d|                              gradient sign(d), sign(0) = 0
    l2         d^2                              2 d
    smooth_l1  d^2 / (2 beta) if |d| < beta     d / beta, clipped to [-1, 1]
               else |d| - beta / 2
with d = prediction - target. Normalised targets are MAE's: (v - mean) / sqrt(var + 1e-6) over the p
voxels of one channel of a patch, unbiased variance, in two passes with the first voxel subtracted.
The loss is sum(weight * term) / denominator; the denominator is a host number, so nothing waits
for the GPU. Partial sums are added in a fixed order: results repeat bit for bit. A voxel of weight
0 adds nothing whatever it or its prediction is (NaN too), has a gradient of exactly 0, and is not
among those that targets are normalised by; the mean over what counts is loss / counted_share.
"""

import math
from collections.abc import Sequence
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor

from mim3d.kernels.backend import choose, refuse_double_backward, refuse_forward_mode
from mim3d.kernels.gradient_scale import scale_gradient
from mim3d.kernels.masked_loss_kernel import empty_gradient, launch_loss, split_denominator
from mim3d.kernels.patch_grid import (
    affine_intensity,
    as_size,
    check_device,
    check_ids,
    check_range,
    check_sampling,
    check_volume,
    grid_shape,
    patch_index,
    patch_view,
    row_width,
    take_patches,
)
from mim3d.kernels.patch_moments import normalised_rows

KINDS = ("l1", "l2", "smooth_l1")


class LossOptions(TypedDict, total=False):
    """Options of the loss; see `masked_channel_losses` for their defaults and meaning."""

    kind: str
    beta: float
    normalise_target: bool
    weight: Tensor | None
    denominator: float | None
    scale: Tensor | None
    shift: Tensor | None
    flip: Tensor | None
    start: Tensor | None
    crop_size: Sequence[int] | None
    backend: str


def masked_voxel_loss(
    prediction: Tensor,
    volume: Tensor,
    masked_ids: Tensor,
    patch_size: Sequence[int],
    **options: Unpack[LossOptions],
) -> Tensor:
    """Loss over the masked patches' voxels as a float32 scalar, differentiable in `prediction`.

    Arguments as for `masked_channel_losses`.
    """
    return masked_channel_losses(prediction, volume, masked_ids, patch_size, **options)[0]


def masked_channel_losses(
    prediction: Tensor,
    volume: Tensor,
    masked_ids: Tensor,
    patch_size: Sequence[int],
    *,
    kind: str = "l1",
    beta: float = 1.0,
    normalise_target: bool = False,
    weight: Tensor | None = None,
    denominator: float | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    flip: Tensor | None = None,
    start: Tensor | None = None,
    crop_size: Sequence[int] | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Loss as a scalar, differentiable in `prediction`, and each channel's part of it (c,), not.

    prediction: (b, m, k) for the masked tokens in the order of masked_ids, k = c * p or the padded
    row_width, or dense (b, c, z, y, x) over the crop, of which only masked patches count (their
    ids must not repeat). volume (b, c, z, y, x), masked_ids (b, m) int64; weight per voxel
    (b, 1 or c, z, y, x), bool or of a volume's dtype, cut and flipped with the volume. denominator
    defaults to b * m * c * p, weighted or not; under data parallelism pass the global count and sum
    gradients over ranks. scale, shift, flip, start, crop_size as for gather_patch_rows. float64
    predictions give float64.
    """
    check_volume(volume)
    check_ids(masked_ids, volume, "masked_ids")
    crop, scale, shift = check_sampling(volume, scale, shift, flip, start, crop_size)
    patch = as_size(patch_size, "patch_size")
    _check_prediction(prediction, volume, masked_ids, patch, crop)
    if weight is not None:
        weight = _checked_weight(weight, volume)
    n_voxels = patch[0] * patch[1] * patch[2]
    if kind not in KINDS or not 0 < beta < math.inf:
        raise ValueError(
            f"kind is {kind!r} and beta {beta}; one of {', '.join(KINDS)}, finite beta > 0"
        )
    if normalise_target and n_voxels < 2:
        raise ValueError("normalise_target needs patches of at least 2 voxels a channel")
    if denominator is None and not masked_ids.shape[0]:
        raise ValueError("the batch is empty: give a denominator, or there is nothing to divide by")
    # Left open where it may be, so that a compiled graph serves batches of any size.
    count = None if denominator is None else float(denominator)
    if count is None and prediction.dtype == torch.float16:
        count = float(masked_ids.numel() * volume.shape[1] * n_voxels)
    if count is not None and not 0 < count < math.inf:
        raise ValueError(f"denominator is {count}; it must be positive and finite")
    triton = choose(prediction, backend, volume.dtype) == "triton"
    arguments = (
        volume, masked_ids, weight, scale, shift, flip, start,
        patch, crop, kind, float(beta), normalise_target, count,
    )  # fmt: skip
    refuse_forward_mode("masked_voxel_loss", prediction)
    if prediction.requires_grad and torch.is_grad_enabled():
        left_to_apply = (
            1.0 if count is None else split_denominator(prediction.dtype, kind, count)[1]
        )
        loss, parts = MaskedVoxelLoss.apply(prediction, arguments, left_to_apply, triton)
    else:
        loss, parts, _ = torch.ops.mim3d.masked_voxel_loss(prediction, *arguments, False, triton)
    return loss, parts if volume.shape[1] > 1 else loss.detach().view(1)


def _check_prediction(
    prediction: Tensor, volume: Tensor, ids: Tensor, patch: Sequence[int], crop: Sequence[int]
) -> None:
    (b, c), m = volume.shape[:2], ids.shape[1]
    n_voxels = c * patch[0] * patch[1] * patch[2]
    shapes = [(b, m, n_voxels), (b, m, row_width(c, patch)), (b, c, *crop)]
    if tuple(prediction.shape) not in shapes:
        raise ValueError(
            f"prediction has shape {tuple(prediction.shape)}; tokens {shapes[0]} or {shapes[1]}, "
            f"or dense {shapes[2]} are needed"
        )
    if not prediction.dtype.is_floating_point:
        raise ValueError(f"prediction has dtype {prediction.dtype}; a floating dtype is needed")
    check_device(prediction, volume, "prediction")
    grid_shape(crop, patch)


def _checked_weight(weight: Tensor, volume: Tensor) -> Tensor:
    if weight.dtype == torch.bool:
        weight = weight.view(torch.uint8)
    check_volume(weight, "weight")
    wanted = tuple(volume.shape)
    if tuple(weight.shape) not in {wanted, (wanted[0], 1, *wanted[2:])}:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; {wanted} or one channel is needed"
        )
    check_device(weight, volume, "weight")
    return weight


class MaskedVoxelLoss(torch.autograd.Function):
    """Outer function: keeps the gradient of the forward pass and scales it by what arrives."""

    @staticmethod
    def forward(
        ctx: Any, prediction: Tensor, arguments: tuple[Any, ...], left_to_apply: float, triton: bool
    ) -> tuple[Tensor, Tensor]:
        """Loss and its parts; the gradient is computed beside it and saved."""
        run = torch.ops.mim3d.masked_voxel_loss
        loss, parts, gradient = run(prediction, *arguments, True, triton)
        ctx.save_for_backward(gradient)
        ctx.left_to_apply, ctx.triton = left_to_apply, triton
        ctx.mark_non_differentiable(parts)
        return loss, parts

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        """The saved gradient times the incoming scalar."""
        refuse_double_backward("masked_voxel_loss")
        (gradient,) = ctx.saved_tensors
        factor = grad_outputs[0]
        if ctx.left_to_apply != 1.0:
            factor = factor * ctx.left_to_apply
        return scale_gradient(gradient, factor, ctx.triton), None, None, None


def reference(
    prediction: Tensor, volume: Tensor, masked_ids: Tensor, weight: Tensor | None,
    scale: Tensor | None, shift: Tensor | None, flip: Tensor | None, start: Tensor | None,
    patch_size: Sequence[int], crop_size: Sequence[int], kind: str, beta: float,
    normalise: bool, denominator: float, with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The truth: pick the masked patches, normalise, score, differentiate by hand."""
    dtype = torch.float64 if prediction.dtype == torch.float64 else torch.float32
    index, channels = patch_index(masked_ids, grid_shape(crop_size, patch_size)), volume.shape[1]
    patches = take_patches(volume, masked_ids, patch_size, crop_size, start, flip)
    target = affine_intensity(patches, scale, shift, dtype).flatten(2)
    weights = None
    if weight is not None:
        weight = weight.expand(volume.shape)
        weights = take_patches(weight, masked_ids, patch_size, crop_size, start, flip)
        weights = weights.flatten(2).to(dtype)
    if normalise:
        target = normalised_rows(target, channels, weights)
    dense = prediction.dim() == 5
    n_voxels = target.shape[2]
    picked = patch_view(prediction, patch_size)[index].flatten(2) if dense else prediction
    term, slope = reference_terms(picked[..., :n_voxels].to(dtype) - target, kind, beta)
    if weights is not None:
        term, slope = (torch.where(weights != 0, t * weights, 0.0) for t in (term, slope))
    if channels == 1:
        loss, parts = term.sum() / denominator, term.new_empty(0)
    else:
        parts = term.unflatten(2, (channels, -1)).sum((0, 1, 3)) / denominator
        loss = parts.sum()
    if not with_gradient:
        return loss, parts, prediction.new_empty(0)
    slope = (slope * split_denominator(prediction.dtype, kind, denominator)[0]).to(prediction.dtype)
    gradient = empty_gradient(prediction).zero_()
    if dense:
        patch_view(gradient, patch_size)[index] = slope.view(patches.shape)
    else:
        gradient[..., :n_voxels] = slope
    return loss, parts, gradient


def counted_share(weight: Tensor, masked_ids: Tensor, patch_size: Sequence[int]) -> Tensor:
    """Sum of the weights over the masked patches' voxels as a share of their number, float32, 0-d.

    `weight` (b, c, z, y, x), bool or a number, over the crop.
    """
    patches = patch_view(weight, patch_size).flatten(1, 3).flatten(2)  # copied: sums are faster
    whole = not weight.dtype.is_floating_point
    sums = patches.sum(-1, dtype=torch.int64 if whole else torch.float64)
    total = sums.gather(1, masked_ids).sum(dtype=torch.float64)
    return (total / (masked_ids.numel() * patches.shape[-1])).float()


def reference_terms(difference: Tensor, kind: str, beta: float) -> tuple[Tensor, Tensor]:
    """Term and derivative of each difference; see the table above."""
    if kind == "l1":
        return difference.abs(), difference.sign()
    if kind == "l2":
        return difference.square(), 2 * difference
    size = difference.abs()
    near = size < beta
    term = torch.where(near, difference.square() / (2 * beta), size - 0.5 * beta)
    return term, (difference / beta).clamp(-1, 1)


def _masked_voxel_loss(
    prediction: Tensor, volume: Tensor, masked_ids: Tensor, weight: Tensor | None,
    scale: Tensor | None, shift: Tensor | None, flip: Tensor | None, start: Tensor | None,
    patch_size: Sequence[int], crop_size: Sequence[int], kind: str, beta: float,
    normalise: bool, denominator: float | None, with_gradient: bool, triton: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    if denominator is None:
        denominator = float(masked_ids.numel() * volume.shape[1] * math.prod(patch_size))
    check_range(masked_ids, 0, math.prod(grid_shape(crop_size, patch_size)), "masked_ids")
    run = launch_loss if triton else reference
    scale, shift, start = (t if t is None else t.contiguous() for t in (scale, shift, start))
    return run(
        prediction, volume, masked_ids, weight, scale, shift, flip, start,
        patch_size, crop_size, kind, beta, normalise, denominator, with_gradient,
    )  # fmt: skip


def _fake(
    prediction: Tensor, volume: Tensor, masked_ids: Tensor, weight: Tensor | None,
    scale: Tensor | None, shift: Tensor | None, flip: Tensor | None, start: Tensor | None,
    patch_size: Sequence[int], crop_size: Sequence[int], kind: str, beta: float,
    normalise: bool, denominator: float | None, with_gradient: bool, triton: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dtype = torch.float64 if prediction.dtype == torch.float64 else torch.float32
    channels = volume.shape[1]
    loss = prediction.new_empty((), dtype=dtype)
    parts = prediction.new_empty(channels if channels > 1 else 0, dtype=dtype)
    gradient = empty_gradient(prediction) if with_gradient else prediction.new_empty(0)
    return loss, parts, gradient


torch.library.define(
    "mim3d::masked_voxel_loss",
    "(Tensor prediction, Tensor volume, Tensor masked_ids, Tensor? weight, Tensor? scale,"
    " Tensor? shift, Tensor? flip, Tensor? start, int[] patch_size, int[] crop_size, str kind,"
    " float beta, bool normalise, float? denominator, bool with_gradient, bool triton)"
    " -> (Tensor, Tensor, Tensor)",
)
torch.library.impl("mim3d::masked_voxel_loss", ("cpu", "cuda"), _masked_voxel_loss)
torch.library.register_fake("mim3d::masked_voxel_loss", _fake)
