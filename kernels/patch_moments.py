# ruff: noqa: ANN001, ANN201 (Triton's device functions have no Python types)
"""Mean and deviation of one channel of a patch: the normalised targets of MAE, computed stably.

    normalised(values, ...)       in registers, for channels that fit one tile
    normalised_where(values, ...) the same over the voxels that count
    launch_moments(volume, ...)   (rows, 3) of first voxel, mean - first, 1 / sqrt(var + eps)
    normalised_rows(rows, c)      the reference, (b, m, c * p)
    row_moments(rows, weights)    first voxel, mean - first and deviation of each row

Channels differ in scale, so that statistics over all of them would make most of a target the offset
between them: each has its own. For one channel that is MAE's, over the whole patch.

Target = (v - mean) / sqrt(var + 1e-6), unbiased variance (facebookresearch/mae, norm_pix_loss).
Two passes with the first voxel subtracted: in float32 the plain mean of a constant patch of
-1000.3 is off by one rounding, which the tiny denominator would blow up to a target of 0.12.

Under weights both are over the voxels whose weight is not 0, so what does not count changes no
target, be it NaN. Their plain mean is subtracted in the first voxel's place, and then what rounding
left of it. One such voxel alone has a target of 0.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mim3d.kernels.addressing import (
    apply_affine,
    first_voxels,
    load_voxels,
    of_channel,
    split_rows,
)
from mim3d.kernels.backend import jit, tl

EPSILON = 1e-6  # added to the variance, as in MAE
BLOCK = 4096  # elements per step of the moments kernel


@jit
def normalised(b_value, m_voxel, b_first, COUNT: tl.constexpr, EPS: tl.constexpr):
    """(value - mean) / sqrt(var + eps) per row; two passes over registers, 0 where masked off."""
    shifted = tl.where(m_voxel, b_value - b_first, 0.0)
    mean = tl.sum(shifted, axis=1) / COUNT
    centred = tl.where(m_voxel, shifted - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, axis=1) / (COUNT - 1)
    return centred * (1.0 / tl.sqrt(variance + EPS))[:, None]


@jit
def normalised_where(b_value, m_counted, EPS: tl.constexpr):
    """The same over the voxels that count, however many a row has; elsewhere it means nothing.

    The mask is used first and never again: to hold it too would take as many registers as voxels.
    """
    count = tl.sum(tl.where(m_counted, 1.0, 0.0), axis=1)
    n, room = tl.maximum(count, 1.0), tl.maximum(count - 1.0, 1.0)
    plain = tl.sum(tl.where(m_counted, b_value, 0.0), axis=1) / n
    shifted = tl.where(m_counted, b_value - plain[:, None], 0.0)
    mean = tl.sum(shifted, axis=1) / n  # of rounding alone, so its square cancels nothing below
    squares = tl.sum(shifted * shifted, axis=1) - count * mean * mean
    deviation = tl.sqrt(tl.maximum(squares, 0.0) / room + EPS)
    return (shifted - mean[:, None]) * (1.0 / deviation)[:, None]


@jit
def counted_voxels(
    p_weights, i_sample, i_patch, o_element, mask, p_flip, p_start,
    weight_b, weight_z, weight_y, weight_x, gz, gy, gx, sz, sy, sx,
    PZ: tl.constexpr, PY: tl.constexpr, PX: tl.constexpr, WEIGHT_ALIGN: tl.constexpr,
):  # fmt: skip
    """Those of the voxels under a mask whose weight is not 0."""
    b_weight = load_voxels(
        p_weights, i_sample, i_patch, o_element, mask, p_flip, p_start,
        weight_b, weight_z, weight_y, weight_x, gz, gy, gx, sz, sy, sx, PZ, PY, PX, WEIGHT_ALIGN,
    )  # fmt: skip
    return mask & (b_weight != 0)


@jit
def moments_kernel(
    p_volume, p_ids, p_weight, p_scale, p_shift, p_flip, p_start, p_moments, n_ids,
    stride_b, stride_c, stride_z, stride_y, stride_x,
    weight_b, weight_c, weight_z, weight_y, weight_x, gz, gy, gx, sz, sy, sx,
    CHANNELS: tl.constexpr, PZ: tl.constexpr, PY: tl.constexpr, PX: tl.constexpr,
    ALIGN: tl.constexpr, WEIGHT_ALIGN: tl.constexpr, DENSE: tl.constexpr, EPS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Mean and 1 / sqrt(var + eps) of channels too large for one tile. Grid (rows,)."""
    COUNT: tl.constexpr = PZ * PY * PX
    i_row = tl.program_id(0) + tl.zeros([1], tl.int32)
    i_place, i_sample, channel = split_rows(i_row, n_ids, CHANNELS)
    i_factor = i_sample * CHANNELS + channel
    if DENSE:
        i_patch = i_place % n_ids
        m_scored = tl.load(p_ids + i_place) != 0
    else:
        i_patch = tl.load(p_ids + i_place).to(tl.int32)
        m_scored = i_patch >= 0
    p_voxels = of_channel(p_volume, channel, stride_c, ALIGN, CHANNELS, True)
    p_weights, count, room = p_weight, COUNT, COUNT - 1
    b_first = tl.zeros([1], tl.float32)
    mean, sums, found = b_first, b_first, b_first
    if p_weight is None:
        p_voxel = of_channel(p_volume, channel, stride_c, ALIGN, CHANNELS, False)
        b_first = first_voxels(
            p_voxel, i_sample, i_patch, m_scored, p_flip, p_start,
            stride_b, stride_z, stride_y, stride_x, gz, gy, gx, sz, sy, sx, PZ, PY, PX, ALIGN,
        )  # fmt: skip
        b_first = apply_affine(b_first, i_factor, p_scale, p_shift, False)
    else:
        p_weights = of_channel(p_weight, channel, weight_c, WEIGHT_ALIGN, CHANNELS, True)
    for i_pass in tl.static_range(0 if p_weight is not None else 1, 3):
        sums = tl.zeros([1], tl.float32)
        for i_block in range(0, COUNT, BLOCK):
            o_element = i_block + tl.arange(0, BLOCK)
            mask = m_scored[:, None] & (o_element < COUNT)[None, :]
            if p_weight is not None:
                mask = counted_voxels(
                    p_weights, i_sample, i_patch, o_element, mask, p_flip, p_start,
                    weight_b, weight_z, weight_y, weight_x, gz, gy, gx, sz, sy, sx,
                    PZ, PY, PX, WEIGHT_ALIGN,
                )  # fmt: skip
            b_value = load_voxels(
                p_voxels, i_sample, i_patch, o_element, mask, p_flip, p_start,
                stride_b, stride_z, stride_y, stride_x, gz, gy, gx, sz, sy, sx,
                PZ, PY, PX, ALIGN,
            )  # fmt: skip
            b_value = apply_affine(b_value, i_factor, p_scale, p_shift, True)
            centred = tl.where(mask, b_value - b_first[:, None] - mean[:, None], 0.0)
            sums += tl.sum(centred * centred if i_pass == 2 else centred, axis=1)
            if i_pass == 0:
                found += tl.sum(tl.where(mask, 1.0, 0.0), axis=1)
        if i_pass == 0:
            count, room = tl.maximum(found, 1.0), tl.maximum(found - 1.0, 1.0)
            b_first = sums / count
        if i_pass == 1:
            mean = sums / count
    p_row = p_moments + 3 * i_row.to(tl.int64)
    tl.store(p_row, b_first)
    tl.store(p_row + 1, mean)
    tl.store(p_row + 2, 1.0 / tl.sqrt(sums / room + EPS))


def launch_moments(
    volume: Tensor,
    ids: Tensor,
    weight: Tensor | None,
    sampling: Sequence[Tensor | None],
    strides: Sequence[int],
    place: Sequence[int],
    shape: Mapping[str, Any],
    dense: bool,
) -> Tensor:
    """Moments (rows, 3) float32 of each channel of the patches `ids` names; arguments as the loss
    kernel's, `strides` those of the volume and of the weight."""
    rows = ids.numel() * volume.shape[1]
    moments = torch.empty(rows, 3, dtype=torch.float32, device=volume.device)
    moments_kernel[(rows,)](
        volume, ids, weight, *sampling, moments, ids.shape[1], *strides, *place,
        **shape, DENSE=dense, EPS=EPSILON, BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
    return moments


def normalised_rows(rows: Tensor, channels: int, weights: Tensor | None = None) -> Tensor:
    """(v - mean) / sqrt(var + eps) over each channel's part of the last axis, c * p long.

    Under `weights`, as long, over the voxels whose weight is not 0; the others become 0.
    """
    if channels > 1:
        apart = (channels, -1)
        weights = None if weights is None else weights.unflatten(-1, apart)
        return normalised_rows(rows.unflatten(-1, apart), 1, weights).flatten(-2)
    first, mean, deviation = row_moments(rows, weights)
    found = (rows - first - mean) / deviation
    return found if weights is None else torch.where(weights != 0, found, 0.0)


def row_moments(rows: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """First voxel, mean less it, and deviation sqrt(var + eps) of the last axis, which is kept.

    The variance is unbiased. Under `weights` all are of the voxels whose weight is not 0, and their
    plain mean stands for the first voxel; of none of them 0, 0 and sqrt(eps).
    """
    if weights is None:
        first = rows[..., :1]
        shifted = rows - first
        mean, room = shifted.mean(-1, keepdim=True), rows.shape[-1] - 1
        centred = shifted - mean
    else:
        counted = weights != 0
        n = counted.sum(-1, keepdim=True)
        some, room = n.clamp(min=1), (n - 1).clamp(min=1)
        first = torch.where(counted, rows, 0.0).sum(-1, keepdim=True) / some
        shifted = torch.where(counted, rows - first, 0.0)
        mean = shifted.sum(-1, keepdim=True) / some
        centred = torch.where(counted, shifted - mean, 0.0)
    variance = centred.square().sum(-1, keepdim=True) / room
    return first, mean, (variance + EPSILON).sqrt()
