# ruff: noqa: ANN001, ANN201 (Triton's device functions have no Python types)
"""The passes of `masked_norm` over a map of channels-last rows (b, n, c), and their launches.

    moments_kernel    count, mean and sum of squares of each chunk of rows, visible ones only
    merge_kernel      of all chunks: mean and reciprocal deviation (Chan et al. 1979)
    apply_kernel      normed, scaled, shifted, bent below zero, zero where hidden
    sums_kernel       of the gradient and of gradient times normed value, a chunk of rows each
    gradient_kernel   of the input

Forward a map is read twice and written once; backward it and its gradient are read twice each, and
one map is written.
"""

import torch
from torch import Tensor

from mim3d.kernels.backend import cdiv, jit, next_power_of_2, on_device, tl

ROWS, STEPS = 32, 32
"""Rows of a tile, and tiles that a program adds up."""
TILE = 2048
"""Elements that a program of the element-wise passes handles."""
COLUMNS = 64
"""Most channels of a program."""


@jit
def rows_of(p_visible, i_sample, i_tile, n_rows, MASKED: tl.constexpr, ROWS: tl.constexpr):
    """A tile's rows of the whole batch (int64), which of them exist, and which are visible too."""
    o_row = i_tile * ROWS + tl.arange(0, ROWS)
    m_row = o_row < n_rows
    i_row = i_sample.to(tl.int64) * n_rows + o_row
    m_seen = m_row
    if MASKED:
        m_seen = m_row & (tl.load(p_visible + i_row, mask=m_row, other=0) != 0)
    return i_row, m_row, m_seen


@jit
def channels_of(
    p_mean, p_scale, p_weight, p_bias, i_sample, o_channel, m_channel, WIDTH: tl.constexpr
):  # fmt: skip
    """Mean and scale of a sample's channels, their weight and bias, each [1, BLOCK] float32."""
    o_moment = i_sample.to(tl.int64) * WIDTH + o_channel
    mean = tl.load(p_mean + o_moment, mask=m_channel, other=0)
    scale = tl.load(p_scale + o_moment, mask=m_channel, other=0)
    weight = tl.load(p_weight + o_channel, mask=m_channel, other=0).to(tl.float32)
    bias = tl.load(p_bias + o_channel, mask=m_channel, other=0).to(tl.float32)
    return mean[None, :], scale[None, :], weight[None, :], bias[None, :]


@jit
def normed_and_gradient(
    p_features, p_gradient, o_value, mask, mean, scale, weight, bias, slope
):  # fmt: skip
    """Normed values of a tile, and the gradient of what they are scaled to, bent as that is."""
    b_value = tl.load(p_features + o_value, mask=mask, other=0).to(tl.float32)
    b_gradient = tl.load(p_gradient + o_value, mask=mask, other=0).to(tl.float32)
    normed = (b_value - mean) * scale
    return normed, tl.where(normed * weight + bias < 0.0, b_gradient * slope, b_gradient)


@jit
def moments_kernel(
    p_features, p_visible, p_count, p_mean, p_square, n_rows, n_chunks, WIDTH: tl.constexpr,
    MASKED: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """STEPS tiles of ROWS rows x BLOCK channels. Grid (b * chunks, WIDTH / BLOCK)."""
    i_sample, i_chunk = tl.program_id(0) // n_chunks, tl.program_id(0) % n_chunks
    o_channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_channel = o_channel < WIDTH
    count, mean = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    square = tl.zeros([BLOCK], tl.float32)
    for i_step in range(STEPS):
        i_tile = i_chunk * STEPS + i_step
        i_row, _, m_seen = rows_of(p_visible, i_sample, i_tile, n_rows, MASKED, ROWS)
        mask = m_seen[:, None] & m_channel[None, :]
        o_value = i_row[:, None] * WIDTH + o_channel[None, :]
        b_value = tl.load(p_features + o_value, mask=mask, other=0).to(tl.float32)
        more = tl.sum(m_seen.to(tl.float32), axis=0)
        own = tl.sum(b_value, axis=0) / tl.maximum(more, 1.0)
        apart = tl.where(mask, b_value - own[None, :], 0.0)
        total = count + more
        share = more / tl.maximum(total, 1.0)
        delta = own - mean
        square += tl.sum(apart * apart, axis=0) + delta * delta * count * share
        mean += delta * share
        count = total
    o_out = tl.program_id(0).to(tl.int64) * WIDTH + o_channel
    tl.store(p_count + o_out, count, mask=m_channel)
    tl.store(p_mean + o_out, mean, mask=m_channel)
    tl.store(p_square + o_out, square, mask=m_channel)


@jit
def merge_kernel(
    p_count, p_mean, p_square, p_total, p_centre, p_scale, n_chunks, eps,
    WIDTH: tl.constexpr, CHUNKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Chunks of one sample together. Grid (b, WIDTH / BLOCK)."""
    i_sample = tl.program_id(0).to(tl.int64)
    o_channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_channel = o_channel < WIDTH
    o_chunk = tl.arange(0, CHUNKS)
    mask = (o_chunk < n_chunks)[:, None] & m_channel[None, :]
    o_part = (i_sample * n_chunks + o_chunk)[:, None] * WIDTH + o_channel[None, :]
    b_count = tl.load(p_count + o_part, mask=mask, other=0)
    b_mean = tl.load(p_mean + o_part, mask=mask, other=0)
    b_square = tl.load(p_square + o_part, mask=mask, other=0)
    total = tl.sum(b_count, axis=0)
    some = tl.maximum(total, 1.0)
    mean = tl.sum(b_mean * (b_count / some[None, :]), axis=0)
    apart = tl.where(mask, b_mean - mean[None, :], 0.0)
    variance = tl.sum(b_square + b_count * apart * apart, axis=0) / some
    o_out = i_sample * WIDTH + o_channel
    tl.store(p_total + o_out, total, mask=m_channel)
    tl.store(p_centre + o_out, mean, mask=m_channel)
    tl.store(p_scale + o_out, 1.0 / tl.sqrt(variance + eps), mask=m_channel)


@jit
def apply_kernel(
    p_features, p_visible, p_mean, p_scale, p_weight, p_bias, p_out, n_rows, n_tiles, slope,
    WIDTH: tl.constexpr, MASKED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ROWS rows x BLOCK channels. Grid (b * tiles, WIDTH / BLOCK)."""
    i_sample, i_tile = tl.program_id(0) // n_tiles, tl.program_id(0) % n_tiles
    o_channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_channel = o_channel < WIDTH
    i_row, m_row, m_seen = rows_of(p_visible, i_sample, i_tile, n_rows, MASKED, ROWS)
    mask, seen = m_row[:, None] & m_channel[None, :], m_seen[:, None] & m_channel[None, :]
    o_value = i_row[:, None] * WIDTH + o_channel[None, :]
    b_value = tl.load(p_features + o_value, mask=seen, other=0).to(tl.float32)
    mean, scale, weight, bias = channels_of(
        p_mean, p_scale, p_weight, p_bias, i_sample, o_channel, m_channel, WIDTH
    )  # fmt: skip
    normed = (b_value - mean) * scale * weight + bias
    normed = tl.where(normed >= 0.0, normed, normed * slope)
    normed = tl.where(seen, normed, 0.0)
    tl.store(p_out + o_value, normed.to(p_out.dtype.element_ty), mask=mask)


@jit
def sums_kernel(
    p_features, p_visible, p_mean, p_scale, p_weight, p_bias, p_gradient, p_sum, p_product,
    n_rows, n_chunks, slope, WIDTH: tl.constexpr, MASKED: tl.constexpr,
    ROWS: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """STEPS tiles of ROWS rows x BLOCK channels. Grid (b * chunks, WIDTH / BLOCK)."""
    i_sample, i_chunk = tl.program_id(0) // n_chunks, tl.program_id(0) % n_chunks
    o_channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_channel = o_channel < WIDTH
    mean, scale, weight, bias = channels_of(
        p_mean, p_scale, p_weight, p_bias, i_sample, o_channel, m_channel, WIDTH
    )  # fmt: skip
    b_sum, b_product = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for i_step in range(STEPS):
        i_tile = i_chunk * STEPS + i_step
        i_row, _, m_seen = rows_of(p_visible, i_sample, i_tile, n_rows, MASKED, ROWS)
        mask = m_seen[:, None] & m_channel[None, :]
        o_value = i_row[:, None] * WIDTH + o_channel[None, :]
        normed, b_gradient = normed_and_gradient(
            p_features, p_gradient, o_value, mask, mean, scale, weight, bias, slope
        )  # fmt: skip
        b_sum += tl.sum(b_gradient, axis=0)
        b_product += tl.sum(tl.where(mask, b_gradient * normed, 0.0), axis=0)
    o_out = tl.program_id(0).to(tl.int64) * WIDTH + o_channel
    tl.store(p_sum + o_out, b_sum, mask=m_channel)
    tl.store(p_product + o_out, b_product, mask=m_channel)


@jit
def gradient_kernel(
    p_features, p_visible, p_mean, p_scale, p_weight, p_bias, p_gradient, p_sum, p_product,
    p_total, p_out, n_rows, n_tiles, slope,
    WIDTH: tl.constexpr, MASKED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ROWS rows x BLOCK channels. Grid (b * tiles, WIDTH / BLOCK)."""
    i_sample, i_tile = tl.program_id(0) // n_tiles, tl.program_id(0) % n_tiles
    o_channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_channel = o_channel < WIDTH
    i_row, m_row, m_seen = rows_of(p_visible, i_sample, i_tile, n_rows, MASKED, ROWS)
    mask, seen = m_row[:, None] & m_channel[None, :], m_seen[:, None] & m_channel[None, :]
    o_value = i_row[:, None] * WIDTH + o_channel[None, :]
    mean, scale, weight, bias = channels_of(
        p_mean, p_scale, p_weight, p_bias, i_sample, o_channel, m_channel, WIDTH
    )  # fmt: skip
    o_moment = i_sample.to(tl.int64) * WIDTH + o_channel
    some = tl.maximum(tl.load(p_total + o_moment, mask=m_channel, other=1), 1.0)
    b_sum = tl.load(p_sum + o_moment, mask=m_channel, other=0) / some
    b_product = tl.load(p_product + o_moment, mask=m_channel, other=0) / some
    normed, b_gradient = normed_and_gradient(
        p_features, p_gradient, o_value, seen, mean, scale, weight, bias, slope
    )  # fmt: skip
    b_out = b_gradient - b_sum[None, :] - normed * b_product[None, :]
    b_out = tl.where(seen, b_out * (scale * weight), 0.0)
    tl.store(p_out + o_value, b_out.to(p_out.dtype.element_ty), mask=mask)


def launch_moments(
    features: Tensor, visible: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and reciprocal deviation (b, c) float32 of rows (b, n, c)."""
    b, n, c = features.shape
    block, chunks = min(next_power_of_2(c), COLUMNS), cdiv(n, ROWS * STEPS)
    parts = [features.new_empty(b, chunks, c, dtype=torch.float32) for _ in range(3)]
    found = [features.new_empty(b, c, dtype=torch.float32) for _ in range(3)]
    with on_device(features):
        moments_kernel[(b * chunks, cdiv(c, block))](
            features, visible, *parts, n, chunks, WIDTH=c, MASKED=visible is not None,
            ROWS=ROWS, STEPS=STEPS, BLOCK=block, num_warps=4,
        )  # fmt: skip
        narrow = min(block, max(1, 4096 // next_power_of_2(chunks)))
        merge_kernel[(b, cdiv(c, narrow))](
            *parts, *found, chunks, eps, WIDTH=c, CHUNKS=next_power_of_2(chunks), BLOCK=narrow,
            num_warps=4,
        )  # fmt: skip
    total, mean, scale = found
    return total, mean, scale


def launch_apply(
    features: Tensor, visible: Tensor | None, mean: Tensor, scale: Tensor,
    weight: Tensor, bias: Tensor, slope: float,
) -> Tensor:  # fmt: skip
    """The normed map, in the dtype of `features` (b, n, c)."""
    b, n, c = features.shape
    out = torch.empty_like(features)
    block = min(next_power_of_2(c), COLUMNS)
    rows = TILE // block
    tiles = cdiv(n, rows)
    with on_device(features):
        apply_kernel[(b * tiles, cdiv(c, block))](
            features, visible, mean, scale, weight, bias, out, n, tiles, slope,
            WIDTH=c, MASKED=visible is not None, ROWS=rows, BLOCK=block, num_warps=4,
        )  # fmt: skip
    return out


def launch_gradient(
    gradient: Tensor, features: Tensor, visible: Tensor | None, total: Tensor, mean: Tensor,
    scale: Tensor, weight: Tensor, bias: Tensor, slope: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradient of the map, and the sums (b, c) that are those of bias and weight."""
    b, n, c = features.shape
    block, chunks = min(next_power_of_2(c), COLUMNS), cdiv(n, ROWS * STEPS)
    parts = [features.new_empty(b, chunks, c, dtype=torch.float32) for _ in range(2)]
    out = torch.empty_like(features)
    rows = TILE // block
    tiles = cdiv(n, rows)
    common = (features, visible, mean, scale, weight, bias, gradient)
    with on_device(features):
        sums_kernel[(b * chunks, cdiv(c, block))](
            *common, *parts, n, chunks, slope, WIDTH=c, MASKED=visible is not None,
            ROWS=ROWS, STEPS=STEPS, BLOCK=block, num_warps=4,
        )  # fmt: skip
        sums, products = (part.sum(1) for part in parts)
        gradient_kernel[(b * tiles, cdiv(c, block))](
            *common, sums, products, total, out, n, tiles, slope, WIDTH=c,
            MASKED=visible is not None, ROWS=rows, BLOCK=block, num_warps=4,
        )  # fmt: skip
    return out, sums, products
