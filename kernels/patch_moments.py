# ruff: noqa: ANN001, ANN201 (Triton's device functions have no Python types)
"""Mean and deviation of one channel of a patch: the normalised targets of MAE, computed stably.

    normalised(values, ...)       in registers, for channels that fit one tile
    launch_moments(volume, ...)   (rows, 3) of first voxel, mean - first, 1 / sqrt(var + eps)
    normalised_rows(rows, c)      the reference, (b, m, c * p)

Channels differ in scale, so that statistics over all of them would make most of a target the offset
between them: each has its own. For one channel that is MAE's, over the whole patch.

Target = (v - mean) / sqrt(var + 1e-6), unbiased variance (facebookresearch/mae, norm_pix_loss).
Two passes with the first voxel subtracted: in float32 the plain mean of a constant patch of
-1000.3 is off by one rounding, which the tiny denominator would blow up to a target of 0.12.
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
def moments_kernel(
    p_volume, p_ids, p_scale, p_shift, p_flip, p_start, p_moments, n_ids,
    stride_b, stride_c, stride_z, stride_y, stride_x, gz, gy, gx, sz, sy, sx,
    CHANNELS: tl.constexpr, PZ: tl.constexpr, PY: tl.constexpr, PX: tl.constexpr,
    ALIGN: tl.constexpr, DENSE: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr,
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
    p_voxel = of_channel(p_volume, channel, stride_c, ALIGN, CHANNELS, False)
    b_first = first_voxels(
        p_voxel, i_sample, i_patch, m_scored, p_flip, p_start,
        stride_b, stride_z, stride_y, stride_x, gz, gy, gx, sz, sy, sx, PZ, PY, PX, ALIGN,
    )  # fmt: skip
    b_first = apply_affine(b_first, i_factor, p_scale, p_shift, False)
    p_voxels = of_channel(p_volume, channel, stride_c, ALIGN, CHANNELS, True)
    mean, sums = tl.zeros([1], tl.float32), tl.zeros([1], tl.float32)
    for i_pass in tl.static_range(2):
        sums = tl.zeros([1], tl.float32)
        for i_block in range(0, COUNT, BLOCK):
            o_element = i_block + tl.arange(0, BLOCK)
            mask = m_scored[:, None] & (o_element < COUNT)[None, :]
            b_value = load_voxels(
                p_voxels, i_sample, i_patch, o_element, mask, p_flip, p_start,
                stride_b, stride_z, stride_y, stride_x, gz, gy, gx, sz, sy, sx,
                PZ, PY, PX, ALIGN,
            )  # fmt: skip
            b_value = apply_affine(b_value, i_factor, p_scale, p_shift, True)
            centred = tl.where(mask, b_value - b_first[:, None] - mean[:, None], 0.0)
            sums += tl.sum(centred * centred if i_pass else centred, axis=1)
        if i_pass == 0:
            mean = sums / COUNT
    p_row = p_moments + 3 * i_row.to(tl.int64)
    tl.store(p_row, b_first)
    tl.store(p_row + 1, mean)
    tl.store(p_row + 2, 1.0 / tl.sqrt(sums / (COUNT - 1) + EPS))


def launch_moments(
    volume: Tensor,
    ids: Tensor,
    sampling: Sequence[Tensor | None],
    strides: Sequence[int],
    place: Sequence[int],
    shape: Mapping[str, Any],
    dense: bool,
) -> Tensor:
    """Moments (rows, 3) float32 of each channel of the patches `ids` names; arguments as the loss
    kernel's."""
    rows = ids.numel() * volume.shape[1]
    moments = torch.empty(rows, 3, dtype=torch.float32, device=volume.device)
    moments_kernel[(rows,)](
        volume, ids, *sampling, moments, ids.shape[1], *strides, *place,
        **shape, DENSE=dense, EPS=EPSILON, BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
    return moments


def normalised_rows(rows: Tensor, channels: int) -> Tensor:
    """(v - mean) / sqrt(var + eps) over each channel's part of the last axis, c * p long.

    The first voxel is subtracted, the variance unbiased.
    """
    if channels > 1:
        return normalised_rows(rows.unflatten(-1, (channels, -1)), 1).flatten(-2)
    shifted = rows - rows[..., :1]
    centred = shifted - shifted.mean(-1, keepdim=True)
    variance = centred.square().sum(-1, keepdim=True) / (rows.shape[-1] - 1)
    return centred / (variance + EPSILON).sqrt()
