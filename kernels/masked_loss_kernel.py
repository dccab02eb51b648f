# ruff: noqa: ANN001, ANN201 (Triton's device functions have no Python types)
"""The masked-voxel loss as one Triton kernel: loss and gradient in a single pass.

    launch_loss(prediction, volume, masked_ids, ...) -> (loss, parts (c,), gradient)

One program takes ROWS whole channels of patches: their voxels are read once, stay in registers
through mean, variance and score, and the gradient is written where the prediction was read. Bytes
moved per masked voxel are those of volume + prediction + gradient. Patches beyond 16,384 voxels are
scored in chunks, with their moments from a kernel of their own. masked_loss.py holds the API and
reference.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mim3d.kernels.addressing import (
    Layout,
    apply_affine,
    as_bytes,
    first_voxels,
    layout_of,
    load_voxels,
    of_channel,
    plain_offsets,
    split_rows,
    walked_strides,
    written_elements,
)
from mim3d.kernels.backend import cdiv, jit, next_power_of_2, on_device, tl
from mim3d.kernels.patch_grid import grid_shape
from mim3d.kernels.patch_moments import (
    EPSILON,
    counted_voxels,
    launch_moments,
    normalised,
    normalised_where,
)

TILE = 4096  # elements a program handles where nothing forces more
MAX_TILE = 16384  # voxels of a patch whose statistics one program holds in registers


@jit
def loss_terms(difference, beta, KIND: tl.constexpr):
    """Term and its derivative, elementwise."""
    size = tl.abs(difference)
    sign = tl.where(difference > 0, 1.0, tl.where(difference < 0, -1.0, 0.0))
    if KIND == "l1":
        return size, sign
    if KIND == "l2":
        return difference * difference, 2.0 * difference
    near = size < beta
    term = tl.where(near, difference * difference / (2.0 * beta), size - 0.5 * beta)
    return term, tl.where(near, difference / beta, sign)


@jit
def load_prediction(
    p_prediction, i_sample, i_token, i_patch, channel, o_element, m_voxel,
    prediction_b, prediction_c, prediction_z, prediction_y, prediction_x, gy, gx,
    CHANNELS: tl.constexpr, PZ: tl.constexpr, PY: tl.constexpr, PX: tl.constexpr,
    ALIGN: tl.constexpr, DENSE: tl.constexpr,
):  # fmt: skip
    """Predicted voxels [ROWS, BLOCK] as float32, of tokens (b, m, k) or dense (b, c, z, y, x)."""
    if DENSE:
        offsets = plain_offsets(
            i_sample, i_patch, o_element, prediction_b, prediction_z, prediction_y, prediction_x,
            gy, gx, PZ, PY, PX, ALIGN,
        )  # fmt: skip
        p_channel = of_channel(p_prediction, channel, prediction_c, ALIGN, CHANNELS, True)
    else:
        row = i_sample.to(tl.int64) * prediction_b + i_token.to(tl.int64) * prediction_c
        offsets = (row * ALIGN)[:, None] + (o_element.to(tl.int64) * prediction_x)[None, :]
        p_channel = of_channel(p_prediction, channel, prediction_x, PZ * PY * PX, CHANNELS, True)
    return tl.load(p_channel + offsets, mask=m_voxel, other=0).to(tl.float32)


@jit
def store_gradient(
    p_gradient, b_gradient, i_sample, i_place, i_patch, channel, o_element, m_row,
    gradient_b, gradient_c, gradient_z, gradient_y, gradient_x, gy, gx,
    CHANNELS: tl.constexpr, PZ: tl.constexpr, PY: tl.constexpr, PX: tl.constexpr,
    ALIGN: tl.constexpr, WIDTH: tl.constexpr, DENSE: tl.constexpr,
):  # fmt: skip
    """Write the gradient [ROWS, BLOCK] where the prediction was read, and 0 into a token's pad."""
    COUNT: tl.constexpr = PZ * PY * PX
    b_gradient = b_gradient.to(p_gradient.dtype.element_ty)
    if DENSE:
        o_gradient = plain_offsets(
            i_sample, i_patch, o_element, gradient_b, gradient_z, gradient_y, gradient_x,
            gy, gx, PZ, PY, PX, ALIGN,
        )  # fmt: skip
        p_written = of_channel(p_gradient, channel, gradient_c, ALIGN, CHANNELS, True)
        mask = m_row[:, None] & (o_element < COUNT)[None, :]
    else:
        o_gradient = i_place.to(tl.int64)[:, None] * WIDTH + o_element[None, :]
        p_written = of_channel(p_gradient, channel, 1, COUNT, CHANNELS, True)
        mask = m_row[:, None] & written_elements(o_element, channel, COUNT, WIDTH, CHANNELS)
    tl.store(p_written + o_gradient, b_gradient, mask=mask)


@jit
def loss_kernel(
    p_prediction, p_volume, p_ids, p_weight, p_scale, p_shift, p_flip, p_start, p_moments,
    p_partial, p_gradient, n_rows, n_ids, inverse_denominator, gradient_scale, beta,
    stride_b, stride_c, stride_z, stride_y, stride_x,
    weight_b, weight_c, weight_z, weight_y, weight_x,
    prediction_b, prediction_c, prediction_z, prediction_y, prediction_x,
    gradient_b, gradient_c, gradient_z, gradient_y, gradient_x,
    gz, gy, gx, sz, sy, sx,
    CHANNELS: tl.constexpr, PZ: tl.constexpr, PY: tl.constexpr, PX: tl.constexpr,
    ALIGN: tl.constexpr, WEIGHT_ALIGN: tl.constexpr, PREDICTION_ALIGN: tl.constexpr,
    GRADIENT_ALIGN: tl.constexpr, WIDTH: tl.constexpr, DENSE: tl.constexpr, KIND: tl.constexpr,
    NORMALISE: tl.constexpr, EPS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Partial loss and gradient of ROWS rows x BLOCK elements. Grid (rows / ROWS, chunks).

    A row is one channel of a patch, the channels of a patch one after the other.
    Token form: p_ids (b, m) int64 names each patch, prediction_b/c/x are its strides.
    Dense form: of all patches; p_ids (b, n) uint8 says which count, others get gradient 0.
    """
    COUNT: tl.constexpr = PZ * PY * PX
    i_row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    m_row = i_row < n_rows
    i_row = tl.where(m_row, i_row, 0)
    i_place, i_sample, channel = split_rows(i_row, n_ids, CHANNELS)
    i_factor = i_sample * CHANNELS + channel
    m_scored = m_row
    if DENSE:
        i_patch = i_place % n_ids
        m_scored = m_row & (tl.load(p_ids + i_place) != 0)
    else:
        i_patch = tl.load(p_ids + i_place).to(tl.int32)
    o_element = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_element = o_element < COUNT
    m_voxel = m_scored[:, None] & m_element[None, :]
    b_prediction = load_prediction(
        p_prediction, i_sample, i_place - i_sample * n_ids, i_patch, channel, o_element, m_voxel,
        prediction_b, prediction_c, prediction_z, prediction_y, prediction_x, gy, gx,
        CHANNELS, PZ, PY, PX, PREDICTION_ALIGN, DENSE,
    )  # fmt: skip
    p_voxels = of_channel(p_volume, channel, stride_c, ALIGN, CHANNELS, True)
    b_target = load_voxels(
        p_voxels, i_sample, i_patch, o_element, m_voxel, p_flip, p_start,
        stride_b, stride_z, stride_y, stride_x, gz, gy, gx, sz, sy, sx,
        PZ, PY, PX, ALIGN,
    )  # fmt: skip
    b_target = apply_affine(b_target, i_factor, p_scale, p_shift, True)
    m_counted, p_weights = m_voxel, p_weight
    if p_weight is not None:
        p_weights = of_channel(p_weight, channel, weight_c, WEIGHT_ALIGN, CHANNELS, True)
    if NORMALISE == "inline" and p_weight is not None:
        b_counted = counted_voxels(
            p_weights, i_sample, i_patch, o_element, m_voxel, p_flip, p_start,
            weight_b, weight_z, weight_y, weight_x, gz, gy, gx, sz, sy, sx,
            PZ, PY, PX, WEIGHT_ALIGN,
        )  # fmt: skip
        b_target = normalised_where(b_target, b_counted, EPS)
    elif NORMALISE == "inline":
        p_voxel = of_channel(p_volume, channel, stride_c, ALIGN, CHANNELS, False)
        b_first = first_voxels(
            p_voxel, i_sample, i_patch, m_scored, p_flip, p_start,
            stride_b, stride_z, stride_y, stride_x, gz, gy, gx, sz, sy, sx, PZ, PY, PX, ALIGN,
        )  # fmt: skip
        b_first = apply_affine(b_first, i_factor, p_scale, p_shift, False)[:, None]
        b_target = normalised(b_target, m_voxel, b_first, COUNT, EPS)
    if NORMALISE == "given":
        p_row = p_moments + 3 * i_row.to(tl.int64)
        b_target -= tl.load(p_row)[:, None]
        b_target = (b_target - tl.load(p_row + 1)[:, None]) * tl.load(p_row + 2)[:, None]
    term, slope = loss_terms(b_prediction - b_target, beta, KIND)
    if p_weight is not None:  # read again: to hold it would take as many registers as voxels
        b_weight = load_voxels(
            p_weights, i_sample, i_patch, o_element, m_voxel, p_flip, p_start,
            weight_b, weight_z, weight_y, weight_x, gz, gy, gx, sz, sy, sx,
            PZ, PY, PX, WEIGHT_ALIGN,
        )  # fmt: skip
        m_counted = m_voxel & (b_weight != 0)
        term, slope = term * b_weight, slope * b_weight
    partial = tl.sum(tl.where(m_counted, term, 0.0), axis=1) * inverse_denominator
    i_part = i_row.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    tl.store(p_partial + i_part, partial, mask=m_row)
    if p_gradient is not None:
        store_gradient(
            p_gradient, tl.where(m_counted, slope * gradient_scale, 0.0),
            i_sample, i_place, i_patch, channel, o_element, m_row,
            gradient_b, gradient_c, gradient_z, gradient_y, gradient_x, gy, gx,
            CHANNELS, PZ, PY, PX, GRADIENT_ALIGN, WIDTH, DENSE,
        )  # fmt: skip


def tile(n_voxels: int, normalise: bool, weighted: bool = False) -> tuple[int, int, int]:
    """(ROWS, BLOCK, num_warps): 32 elements a thread, whole rows where statistics need them.

    16 a thread where statistics are of what counts, which takes a mask beside every voxel.
    """
    block = min(next_power_of_2(n_voxels), MAX_TILE if normalise else TILE)
    warps = max(4, block // 1024)
    return max(1, TILE // block), block, 2 * warps if normalise and weighted else warps


def launch_loss(
    prediction: Tensor, volume: Tensor, masked_ids: Tensor, weight: Tensor | None,
    scale: Tensor | None, shift: Tensor | None, flip: Tensor | None, start: Tensor | None,
    patch_size: Sequence[int], crop_size: Sequence[int], kind: str, beta: float,
    normalise: bool, denominator: float, with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Run the kernel on checked arguments: the loss, its part from each channel (c,) and the
    gradient; empty are the parts of one channel, and a gradient that is not asked for."""
    channels, (pz, py, px) = volume.shape[1], patch_size
    grid, dense = grid_shape(crop_size, patch_size), prediction.dim() == 5
    n_voxels = pz * py * px
    width = channels * n_voxels if dense else prediction.shape[2]
    ids = masked_flags(masked_ids, grid) if dense else masked_ids.contiguous()
    n_rows, room = ids.numel() * channels, width - (channels - 1) * n_voxels
    rows, block, warps = tile(room, normalise, weight is not None)
    chunks = cdiv(room, block)
    partial = torch.empty(n_rows, chunks, dtype=torch.float32, device=volume.device)
    gradient = empty_gradient(prediction) if with_gradient else None
    sampling = (scale, shift, as_bytes(flip), start)
    layout = layout_of(volume, patch_size)
    weights = layout if weight is None else layout_of(weight.expand(volume.shape), patch_size)
    predicted = layout_of(prediction, patch_size) if dense else token_layout(prediction)
    written = layout_of(gradient, patch_size) if dense and gradient is not None else layout
    place = (*grid, *volume.shape[2:])
    shape = {"CHANNELS": channels, "PZ": pz, "PY": py, "PX": px, "ALIGN": layout.align}
    with on_device(volume):
        moments, mode = None, "inline" if normalise else "no"
        if normalise and chunks > 1:
            mode = "given"
            strides = (*layout.strides, *weights.strides)
            moments = launch_moments(
                volume, ids, weight, sampling, strides, place,
                {**shape, "WEIGHT_ALIGN": weights.align}, dense,
            )  # fmt: skip
        loss_kernel[(cdiv(n_rows, rows), chunks)](
            prediction, volume, ids, weight, *sampling, moments, partial, gradient,
            n_rows, ids.shape[1], 1.0 / denominator,
            split_denominator(prediction.dtype, kind, denominator)[0], beta,
            *layout.strides, *weights.strides, *predicted.strides, *written.strides, *place,
            **shape, WEIGHT_ALIGN=weights.align, PREDICTION_ALIGN=predicted.align,
            GRADIENT_ALIGN=written.align, WIDTH=width, DENSE=dense, KIND=kind, NORMALISE=mode,
            EPS=EPSILON, ROWS=rows, BLOCK=block, num_warps=warps,
        )  # fmt: skip
    gradient = prediction.new_empty(0) if gradient is None else gradient
    if channels == 1:
        return partial.sum(), partial.new_empty(0), gradient
    parts = partial.view(-1, channels, chunks).sum((0, 2))
    return parts.sum(), parts, gradient


def token_layout(prediction: Tensor) -> Layout:
    """Strides (b, m, k) of token predictions in a kernel's (b, c, ., ., x) places."""
    b, m, k = walked_strides(prediction)
    k = 1 if prediction.shape[2] == 1 else k
    align = 16
    if k != 1:
        align = 1
    while align > 1 and (b % align or m % align):
        align //= 2
    return Layout(b // align, m // align, 0, 0, k, align)


def masked_flags(masked_ids: Tensor, grid: Sequence[int]) -> Tensor:
    """(b, n) uint8, 1 where a patch is masked."""
    n = grid[0] * grid[1] * grid[2]
    flags = torch.zeros(masked_ids.shape[0], n, dtype=torch.uint8, device=masked_ids.device)
    return flags.scatter_(1, masked_ids, 1)


def empty_gradient(prediction: Tensor) -> Tensor:
    """Room for the gradient: rows contiguous for tokens, the prediction's order if dense."""
    if prediction.dim() == 5:
        return torch.empty_like(prediction)
    return torch.empty_like(prediction, memory_format=torch.contiguous_format)


def split_denominator(dtype: torch.dtype, kind: str, denominator: float) -> tuple[float, float]:
    """Factors (applied in the kernel, left to the backward) whose product is 1 / denominator.

    float16 would underflow at 1 / denominator, so it is applied together with the loss scale; until
    then l2's slope of twice the difference, up to 2^18 where an int16 volume is scored raw, is
    kept below float16's end at 2^16.
    """
    if dtype != torch.float16:
        return 1.0 / denominator, 1.0
    held = 0.0625 if kind == "l2" else 1.0
    return held, 1.0 / denominator / held
