# ruff: noqa: ANN001, ANN201 (Triton's device functions have no Python types)
"""The decoder's input: visible tokens, then mask tokens, each with its place's position added.

    decoder_tokens(visible (b, v, d), mask_token (d,), positions (n, d), visible_ids, masked_ids)
        -> (b, n, d)

Tokens stay in the masks' shuffled order (attention does not mind), so nothing is unshuffled and the
masked tokens are the tail [:, v:]. Differentiable in visible, mask_token and positions; the sums
over the batch run in a fixed order in float32, where index_add would use atomics.
"""

from typing import Any

import torch
from torch import Tensor

from mim3d.kernels.backend import (
    cdiv,
    choose,
    jit,
    next_power_of_2,
    on_device,
    refuse_double_backward,
    tl,
)
from mim3d.kernels.patch_grid import check_range

TILE = 4096  # elements a forward program handles
COLUMNS = 128  # features a backward program handles
SAMPLES = 16  # samples it sums at a time, so that many loads are in flight


@jit
def tokens_kernel(
    p_visible, p_mask_token, p_positions, p_visible_ids, p_masked_ids, p_tokens,
    n_rows, n_visible, n_masked,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ROWS tokens x BLOCK features. Grid (b * n / ROWS, WIDTH / BLOCK)."""
    i_row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    m_row = i_row < n_rows
    i_row = tl.where(m_row, i_row, 0)
    n_patches = n_visible + n_masked
    i_sample, i_token = i_row // n_patches, i_row % n_patches
    m_visible = i_token < n_visible
    i_seen = i_sample * n_visible + i_token
    i_hidden = i_sample * n_masked + i_token - n_visible
    seen = tl.load(p_visible_ids + i_seen, mask=m_visible, other=0)
    hidden = tl.load(p_masked_ids + i_hidden, mask=~m_visible, other=0)
    i_patch = tl.where(m_visible, seen, hidden)
    o_feature = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_feature = (o_feature < WIDTH)[None, :]
    mask = m_row[:, None] & m_feature
    o_position = i_patch[:, None] * WIDTH + o_feature[None, :]
    b_position = tl.load(p_positions + o_position, mask=mask, other=0).to(tl.float32)
    o_visible = i_seen.to(tl.int64)[:, None] * WIDTH + o_feature[None, :]
    b_token = tl.load(p_visible + o_visible, mask=mask & m_visible[:, None], other=0)
    b_mask = tl.load(p_mask_token + o_feature[None, :], mask=m_feature, other=0).to(tl.float32)
    b_token = tl.where(m_visible[:, None], b_token.to(tl.float32), b_mask) + b_position
    o_out = i_row.to(tl.int64)[:, None] * WIDTH + o_feature[None, :]
    tl.store(p_tokens + o_out, b_token.to(p_tokens.dtype.element_ty), mask=mask)


@jit
def sums_kernel(
    p_gradient, p_place, p_positions, p_hidden, n_samples, n_patches, n_visible,
    STEPS: tl.constexpr, SAMPLES: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient summed over the batch at one patch: all tokens, and masked ones. Grid (n, d).

    Samples are added in a fixed order, SAMPLES at a time; STEPS is rounded up to a power of two,
    so that few sizes of a batch compile anything new.
    """
    i_patch = tl.program_id(0)
    o_feature = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_feature = o_feature < WIDTH
    b_all, b_hidden = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for i_step in range(STEPS):
        i_sample = i_step * SAMPLES + tl.arange(0, SAMPLES)
        m_sample = i_sample < n_samples
        o_token = i_sample.to(tl.int64) * n_patches
        place = tl.load(p_place + o_token + i_patch, mask=m_sample, other=0)
        o_gradient = (o_token + place)[:, None] * WIDTH + o_feature[None, :]
        mask = m_sample[:, None] & m_feature[None, :]
        b_gradient = tl.load(p_gradient + o_gradient, mask=mask, other=0).to(tl.float32)
        b_all += tl.sum(b_gradient, axis=0)
        b_hidden += tl.sum(tl.where((place >= n_visible)[:, None], b_gradient, 0.0), axis=0)
    tl.store(p_positions + i_patch * WIDTH + o_feature, b_all, mask=m_feature)
    tl.store(p_hidden + i_patch * WIDTH + o_feature, b_hidden, mask=m_feature)


def decoder_tokens(
    visible: Tensor,
    mask_token: Tensor,
    positions: Tensor,
    visible_ids: Tensor,
    masked_ids: Tensor,
    *,
    backend: str = "auto",
) -> Tensor:
    """Tokens (b, v + m, d) in the dtype of `visible`, added in float32.

    visible (b, v, d) in the order of visible_ids (b, v); mask_token (d,); positions (n, d) with
    n = v + m, for visible_ids and masked_ids (b, m) int64 together name every patch once. Ids
    outside [0, n) are refused on a CPU; on a GPU nothing looks, for that would wait for it.
    """
    _check(visible, mask_token, positions, visible_ids, masked_ids)
    triton = choose(visible, backend) == "triton"
    return DecoderTokens.apply(visible, mask_token, positions, visible_ids, masked_ids, triton)


def _check(
    visible: Tensor, mask_token: Tensor, positions: Tensor, visible_ids: Tensor, masked_ids: Tensor
) -> None:
    if visible.dim() != 3 or positions.dim() != 2:
        raise ValueError(
            f"visible has shape {tuple(visible.shape)} and positions {tuple(positions.shape)}; "
            "(b, v, d) and (n, d) are needed"
        )
    b, v, d = visible.shape
    n = positions.shape[0]
    wanted = {
        "mask_token": (mask_token, (d,)),
        "positions": (positions, (n, d)),
        "visible_ids": (visible_ids, (b, v)),
        "masked_ids": (masked_ids, (b, n - v)),
    }
    for name, (tensor, shape) in wanted.items():
        if tuple(tensor.shape) != shape or tensor.device != visible.device:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)} on {tensor.device}; {shape} on "
                f"{visible.device} is needed for visible {tuple(visible.shape)} and {n} positions"
            )
    for name, ids in (("visible_ids", visible_ids), ("masked_ids", masked_ids)):
        if ids.dtype != torch.int64:
            raise ValueError(f"{name} has dtype {ids.dtype}; torch.int64 is needed")
    for name, values in (
        ("visible", visible), ("mask_token", mask_token), ("positions", positions),
    ):  # fmt: skip
        if not values.is_floating_point():
            raise ValueError(f"{name} has dtype {values.dtype}; a floating dtype is needed")


class DecoderTokens(torch.autograd.Function):
    """Outer function; the visible tokens' gradient is a slice, the mask token's a sum.

    Only a learned table needs the sums of each patch.
    """

    @staticmethod
    def forward(
        ctx: Any, visible: Tensor, mask_token: Tensor, positions: Tensor,
        visible_ids: Tensor, masked_ids: Tensor, triton: bool,
    ) -> Tensor:  # fmt: skip
        """Assembled tokens."""
        ctx.save_for_backward(visible_ids, masked_ids)
        ctx.triton, ctx.dtypes = triton, (mask_token.dtype, positions.dtype)
        return torch.ops.mim3d.decoder_tokens(
            visible, mask_token, positions, visible_ids, masked_ids, triton
        )

    @staticmethod
    def backward(
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None]:
        """Gradients of visible, mask_token and positions, where asked for."""
        refuse_double_backward("decoder_tokens")
        (gradient,) = grad_outputs
        visible_ids, masked_ids = ctx.saved_tensors
        visible = gradient[:, : visible_ids.shape[1]] if ctx.needs_input_grad[0] else None
        mask_token, positions = None, None
        if ctx.needs_input_grad[1] and not ctx.needs_input_grad[2]:
            wide = torch.float64 if gradient.dtype == torch.float64 else torch.float32
            hidden = gradient[:, visible_ids.shape[1] :].sum((0, 1), dtype=wide)
            mask_token = hidden.to(ctx.dtypes[0])
        if ctx.needs_input_grad[2]:
            everywhere, hidden = torch.ops.mim3d.decoder_token_sums(
                gradient.contiguous(), visible_ids, masked_ids, ctx.triton
            )
            mask_token, positions = hidden.sum(0).to(ctx.dtypes[0]), everywhere.to(ctx.dtypes[1])
        return visible, mask_token, positions, None, None, None


def assemble_tokens(
    visible: Tensor, mask_token: Tensor, positions: Tensor,
    visible_ids: Tensor, masked_ids: Tensor, triton: bool,
) -> Tensor:  # fmt: skip
    """Forward pass of either implementation on checked arguments."""
    if not triton:
        compute = torch.float64 if visible.dtype == torch.float64 else torch.float32
        table = positions.to(compute)
        hidden = mask_token.to(compute) + table[masked_ids]
        seen = visible.to(compute) + table[visible_ids]
        return torch.cat([seen, hidden], 1).to(visible.dtype)
    (b, v, width), m = visible.shape, masked_ids.shape[1]
    tokens = visible.new_empty(b, v + m, width)
    block = min(next_power_of_2(width), 1024)
    rows, n_rows = TILE // block, b * (v + m)
    with on_device(visible):
        tokens_kernel[(cdiv(n_rows, rows), cdiv(width, block))](
            visible.contiguous(), mask_token.contiguous(), positions.contiguous(),
            visible_ids.contiguous(), masked_ids.contiguous(), tokens, n_rows, v, m,
            WIDTH=width, ROWS=rows, BLOCK=block, num_warps=4,
        )  # fmt: skip
    return tokens


def sum_tokens(
    gradient: Tensor, visible_ids: Tensor, masked_ids: Tensor, triton: bool
) -> tuple[Tensor, Tensor]:
    """Gradient (b, n, d) summed over the batch: (n, d) of all tokens and of masked ones."""
    b, n, width = gradient.shape
    v = visible_ids.shape[1]
    order = torch.cat([visible_ids, masked_ids], 1)
    place = order.argsort(1)  # token of each patch; a scatter raises in deterministic mode
    if not triton:
        compute = torch.float64 if gradient.dtype == torch.float64 else torch.float32
        by_patch = gradient.to(compute).gather(1, place[..., None].expand(b, n, width))
        return by_patch.sum(0), torch.where(place[..., None] >= v, by_patch, 0.0).sum(0)
    everywhere = torch.empty(n, width, dtype=torch.float32, device=gradient.device)
    hidden = torch.empty_like(everywhere)
    with on_device(gradient):
        sums_kernel[(n, cdiv(width, COLUMNS))](
            gradient, place, everywhere, hidden, b, n, v,
            STEPS=next_power_of_2(cdiv(b, SAMPLES)), SAMPLES=SAMPLES, WIDTH=width, BLOCK=COLUMNS,
            num_warps=4,
        )  # fmt: skip
    return everywhere, hidden


def _decoder_tokens(
    visible: Tensor, mask_token: Tensor, positions: Tensor,
    visible_ids: Tensor, masked_ids: Tensor, triton: bool,
) -> Tensor:  # fmt: skip
    for name, ids in (("visible_ids", visible_ids), ("masked_ids", masked_ids)):
        check_range(ids, 0, len(positions), name)
    return assemble_tokens(visible, mask_token, positions, visible_ids, masked_ids, triton)


def _fake_tokens(
    visible: Tensor, mask_token: Tensor, positions: Tensor,
    visible_ids: Tensor, masked_ids: Tensor, triton: bool,
) -> Tensor:  # fmt: skip
    b, v, width = visible.shape
    return visible.new_empty(b, v + masked_ids.shape[1], width)


def _fake_sums(
    gradient: Tensor, visible_ids: Tensor, masked_ids: Tensor, triton: bool
) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if gradient.dtype == torch.float64 else torch.float32
    everywhere = gradient.new_empty(gradient.shape[1:], dtype=dtype)
    return everywhere, torch.empty_like(everywhere)


torch.library.define(
    "mim3d::decoder_tokens",
    "(Tensor visible, Tensor mask_token, Tensor positions, Tensor visible_ids, Tensor masked_ids,"
    " bool triton) -> Tensor",
)
torch.library.impl("mim3d::decoder_tokens", ("cpu", "cuda"), _decoder_tokens)
torch.library.register_fake("mim3d::decoder_tokens", _fake_tokens)
torch.library.define(
    "mim3d::decoder_token_sums",
    "(Tensor gradient, Tensor visible_ids, Tensor masked_ids, bool triton) -> (Tensor, Tensor)",
)
torch.library.impl("mim3d::decoder_token_sums", ("cpu", "cuda"), sum_tokens)
torch.library.register_fake("mim3d::decoder_token_sums", _fake_sums)
