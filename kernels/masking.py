# ruff: noqa: ANN001, ANN201 (Triton's device functions have no Python types)
"""Masks for masked modelling: which patches stay visible, bit-identical on every device.

    n_visible(n_patches, mask_ratio) -> int
    patch_masks(seed, sample, n_patches, n_visible, kind="random") -> PatchMasks

A patch's key is made of Philox4x32-10 words (Salmon et al. 2011, "Parallel random numbers: as easy
as 1, 2, 3") of counter (index, sample low, sample high, stream) under the 64-bit seed. Patches in
ascending (key, id) order: the first `n_visible` stay, the rest are masked, so counts are exact.

    kind      key                                     what stays visible
    random    word(patch)                             patches drawn without replacement
    block     word(unit of the patch), word(patch)    whole units of unit^3 patches (SimMIM)
    grid      word(place within its unit), ...        the same places of every unit (MAE's grid)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mim3d.kernels.backend import cdiv, choose, jit, next_power_of_2, on_device, tl
from mim3d.kernels.patch_grid import Size, as_size

KINDS = ("random", "block", "grid")
LOW_WORD = 0xFFFFFFFF
RANKED_PATCHES = 4096  # up to here the kernel counts ranks (n^2); beyond it sorts its keys


@dataclass(frozen=True)
class PatchMasks:
    """Visible and masked patches of a batch.

    visible_ids (b, v) int64 and masked_ids (b, m) int64, both in the shuffled order of the keys;
    masked (b, n) bool, True = removed.
    """

    visible_ids: Tensor
    masked_ids: Tensor
    masked: Tensor


@jit
def philox_block(seed, index, low, high, STREAM: tl.constexpr):
    """First Philox4x32-10 word (uint32) of counters (index, low, high, STREAM)."""
    zero = index * 0
    words = tl.philox(seed, index, low + zero, high + zero, zero + STREAM)
    return words[0]  # pyright: ignore[reportIndexIssue]


@jit
def patch_key(seed, i_sample, o_patch, gy, gx, UNIT: tl.constexpr, KIND: tl.constexpr, uy, ux):
    """Non-negative int64 sort keys of patches `o_patch` (int32 block) of one sample."""
    low = (i_sample & 0xFFFFFFFF).to(tl.uint32).to(tl.int32, bitcast=True)
    high = (i_sample >> 32).to(tl.int32)
    key = philox_block(seed, o_patch, low, high, 0).to(tl.int64)
    if KIND != "random":
        z = o_patch // (gy * gx)
        y = (o_patch // gx) % gy
        x = o_patch % gx
        if KIND == "block":
            group = ((z // UNIT) * uy + y // UNIT) * ux + x // UNIT
        else:
            group = ((z % UNIT) * UNIT + y % UNIT) * UNIT + x % UNIT
        first = philox_block(seed, group, low, high, 1)
        key = ((first >> 1).to(tl.int64) << 32) | key
    return key


@jit
def rank_kernel(
    p_sample, p_visible, p_hidden, p_masked, seed, n_visible, gy, gx, uy, ux,
    PATCHES: tl.constexpr, UNIT: tl.constexpr, KIND: tl.constexpr,
    BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Rank of each patch = how many keys are smaller; scatter its id there. Grid (b, n / BLOCK).

    The loop's bound is a constant: a run has one patch count, and triton 3.6's interpreter cannot
    loop to a runtime bound under numpy >= 2.4.
    """
    i_batch = tl.program_id(0).to(tl.int64)
    i_sample = tl.load(p_sample + i_batch)
    o_patch = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    key = patch_key(seed, i_sample, o_patch, gy, gx, UNIT, KIND, uy, ux)
    rank = tl.zeros([BLOCK], tl.int32)
    for i_column in range(0, PATCHES, COLUMNS):
        o_other = i_column + tl.arange(0, COLUMNS)
        other = patch_key(seed, i_sample, o_other, gy, gx, UNIT, KIND, uy, ux)
        smaller = other[None, :] < key[:, None]
        tied = (other[None, :] == key[:, None]) & (o_other[None, :] < o_patch[:, None])
        counts = (smaller | tied) & (o_other[None, :] < PATCHES)
        rank += tl.sum(counts.to(tl.int32), axis=1)
    m_patch = o_patch < PATCHES
    n_hidden = PATCHES - n_visible
    visible = m_patch & (rank < n_visible)
    hidden = m_patch & (rank >= n_visible)
    ids = o_patch.to(tl.int64)
    tl.store(p_visible + i_batch * n_visible + rank, ids, mask=visible)
    tl.store(p_hidden + i_batch * n_hidden + rank - n_visible, ids, mask=hidden)
    tl.store(p_masked + i_batch * PATCHES + o_patch, rank >= n_visible, mask=m_patch)


@jit
def key_kernel(
    p_sample, p_key, seed, n_patches, gy, gx, uy, ux,
    UNIT: tl.constexpr, KIND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Keys alone, for grids too large to rank in one pass. Grid (b, n / BLOCK)."""
    i_batch = tl.program_id(0).to(tl.int64)
    i_sample = tl.load(p_sample + i_batch)
    o_patch = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    key = patch_key(seed, i_sample, o_patch, gy, gx, UNIT, KIND, uy, ux)
    tl.store(p_key + i_batch * n_patches + o_patch, key, mask=o_patch < n_patches)


def n_visible(n_patches: int, mask_ratio: float) -> int:
    """Patches kept: floor(n * (1 - mask_ratio)) as MAE has it, at least 1 and at most n - 1."""
    if not 0 < mask_ratio < 1:
        raise ValueError(f"mask_ratio is {mask_ratio}; it must lie in (0, 1)")
    if n_patches < 2:
        raise ValueError(f"n_patches is {n_patches}; masking needs at least 2")
    kept = math.floor(n_patches * (1 - mask_ratio) + 1e-9)  # 1000 * (1 - 0.9) is 99.99...
    return min(max(kept, 1), n_patches - 1)


def patch_masks(
    seed: int,
    sample: Tensor,
    n_patches: int,
    n_visible: int,
    *,
    kind: str = "random",
    grid: Sequence[int] | None = None,
    unit: int = 1,
    backend: str = "auto",
) -> PatchMasks:
    """Masks that depend on (seed, sample) alone, whatever the batch, rank or device.

    seed in [0, 2^63); sample (b,) int64 global sample numbers; grid (gz, gy, gx) patches per axis
    and unit (patches per unit edge, at least 2 for "grid") are for kinds "block" and "grid".
    """
    shape = _check(seed, sample, n_patches, n_visible, kind, grid, unit)
    triton = choose(sample, backend) == "triton"
    visible, hidden, masked = torch.ops.mim3d.patch_masks(
        sample.contiguous(), seed, n_patches, n_visible, kind, shape, unit, triton
    )
    return PatchMasks(visible, hidden, masked)


def _check(
    seed: int,
    sample: Tensor,
    n_patches: int,
    n_visible: int,
    kind: str,
    grid: Sequence[int] | None,
    unit: int,
) -> Size:
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed is {seed}; it must lie in [0, 2**63)")
    if sample.dim() != 1 or sample.dtype != torch.int64:
        raise ValueError(
            f"sample has shape {tuple(sample.shape)} and dtype {sample.dtype}; (b,) int64 needed"
        )
    if not 1 <= n_visible < n_patches:
        raise ValueError(f"n_visible is {n_visible}; it must lie in [1, n_patches = {n_patches})")
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; one of {', '.join(KINDS)}")
    # A unit of one patch has one place, which all patches share: the draw would be random's.
    least = 2 if kind == "grid" else 1
    if unit < least:
        raise ValueError(
            f"unit is {unit}; kind={kind!r} needs at least {least} patches a unit edge"
        )
    if kind == "random":
        return 1, 1, n_patches
    if grid is None:
        raise ValueError(f"kind={kind!r} needs grid=(z, y, x), patches per axis; got {grid}")
    shape = as_size(grid, "grid")
    if math.prod(shape) != n_patches:
        raise ValueError(
            f"grid {shape} has {math.prod(shape)} patches but n_patches is {n_patches}"
        )
    return shape


def philox_word(seed: int, index: Tensor, sample: Tensor, stream: int) -> Tensor:
    """First 32-bit word of Philox4x32-10 as int64, broadcasting index against sample."""
    c0, sample = torch.broadcast_tensors(index, sample)
    c1, c2 = sample & LOW_WORD, (sample >> 32) & LOW_WORD
    c3 = torch.full_like(c0, stream)
    k0, k1 = seed & LOW_WORD, seed >> 32
    for _ in range(10):
        # The int64 products wrap, but their 64 bits are the unsigned ones.
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1 = ((b >> 32) & LOW_WORD) ^ c1 ^ k0, b & LOW_WORD
        c2, c3 = ((a >> 32) & LOW_WORD) ^ c3 ^ k1, a & LOW_WORD
        k0, k1 = (k0 + 0x9E3779B9) & LOW_WORD, (k1 + 0xBB67AE85) & LOW_WORD
    return c0


def patch_keys(seed: int, sample: Tensor, kind: str, grid: Size, unit: int) -> Tensor:
    """Sort keys (b, n) int64, the reference of `patch_key`."""
    patch = torch.arange(math.prod(grid), device=sample.device)[None]
    key = philox_word(seed, patch, sample[:, None], 0)
    if kind == "random":
        return key
    _, gy, gx = grid
    z, y, x = patch // (gy * gx), patch // gx % gy, patch % gx
    if kind == "block":
        group = (z // unit * cdiv(gy, unit) + y // unit) * cdiv(gx, unit) + x // unit
    else:
        group = (z % unit * unit + y % unit) * unit + x % unit
    first = philox_word(seed, group, sample[:, None], 1)
    return (first >> 1 << 32) | key


def _split(keys: Tensor, n_visible: int) -> tuple[Tensor, Tensor, Tensor]:
    order = torch.sort(keys, dim=1, stable=True).indices
    visible, hidden = order[:, :n_visible].contiguous(), order[:, n_visible:].contiguous()
    masked = torch.ones_like(keys, dtype=torch.bool).scatter_(1, visible, False)
    return visible, hidden, masked


def launch_masks(
    sample: Tensor, seed: int, n: int, n_visible: int, kind: str, grid: Size, unit: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Rank in the kernel, or have it make keys and sort them. `grid` is in patches."""
    b = sample.shape[0]
    _, gy, gx = grid
    uy, ux = cdiv(gy, unit), cdiv(gx, unit)
    if n > RANKED_PATCHES:
        keys = sample.new_empty(b, n)
        with on_device(sample):
            key_kernel[(b, cdiv(n, 1024))](
                sample, keys, seed, n, gy, gx, uy, ux, UNIT=unit, KIND=kind, BLOCK=1024, num_warps=4
            )
        return _split(keys, n_visible)
    visible, hidden = sample.new_empty(b, n_visible), sample.new_empty(b, n - n_visible)
    masked = torch.empty(b, n, dtype=torch.bool, device=sample.device)
    block, columns = rank_blocks(n)
    with on_device(sample):
        rank_kernel[(b, cdiv(n, block))](
            sample, visible, hidden, masked, seed, n_visible, gy, gx, uy, ux,
            PATCHES=n, UNIT=unit, KIND=kind, BLOCK=block, COLUMNS=columns, num_warps=4,
        )  # fmt: skip
    return visible, hidden, masked


def rank_blocks(n_patches: int) -> tuple[int, int]:
    """(BLOCK, COLUMNS) of the rank kernel: 2048 comparisons a step, 16 a thread."""
    return min(64, next_power_of_2(n_patches)), 32


def _patch_masks(
    sample: Tensor, seed: int, n_patches: int, n_visible: int,
    kind: str, grid: Sequence[int], unit: int, triton: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    shape = as_size(grid, "grid")
    if triton:
        return launch_masks(sample, seed, n_patches, n_visible, kind, shape, unit)
    return _split(patch_keys(seed, sample, kind, shape, unit), n_visible)


def _fake(
    sample: Tensor, seed: int, n_patches: int, n_visible: int,
    kind: str, grid: Sequence[int], unit: int, triton: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    b = sample.shape[0]
    masked = torch.empty(b, n_patches, dtype=torch.bool, device=sample.device)
    return sample.new_empty(b, n_visible), sample.new_empty(b, n_patches - n_visible), masked


torch.library.define(
    "mim3d::patch_masks",
    "(Tensor sample, int seed, int n_patches, int n_visible, str kind, int[] grid, int unit,"
    " bool triton) -> (Tensor, Tensor, Tensor)",
)
torch.library.impl("mim3d::patch_masks", ("cpu", "cuda"), _patch_masks)
torch.library.register_fake("mim3d::patch_masks", _fake)
