# ruff: noqa: ANN001, ANN201 (Triton's device functions have no Python types)
"""Visible patches straight from the raw volume, as rows ready for the embedding GEMM.

    gather_patch_rows(volume (b, c, z, y, x), patch_ids (b, v), patch_size) -> (b, v, k)

One pass reads only the patches asked for: crop, flip and intensity (scale, shift of each channel)
are folded into addressing and registers. k = row_width(c, patch_size); the padding reads as zero.
Element order c, pz, py, px; ids count patches in C order over the crop's (z, y, x) grid.
There is no backward: volumes are data.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mim3d.kernels.addressing import (
    apply_affine,
    as_bytes,
    layout_of,
    load_voxels,
    of_channel,
    split_rows,
    written_elements,
)
from mim3d.kernels.backend import cdiv, choose, jit, next_power_of_2, on_device, tl
from mim3d.kernels.patch_grid import (
    affine_intensity,
    as_size,
    check_ids,
    check_range,
    check_sampling,
    check_volume,
    grid_shape,
    row_width,
    take_patches,
)

OUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
TILE = 4096  # elements a program handles


@jit
def gather_kernel(
    p_volume, p_ids, p_scale, p_shift, p_flip, p_start, p_rows, n_rows, n_ids,
    stride_b, stride_c, stride_z, stride_y, stride_x, gz, gy, gx, sz, sy, sx,
    CHANNELS: tl.constexpr, PZ: tl.constexpr, PY: tl.constexpr, PX: tl.constexpr,
    ALIGN: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Copy ROWS rows, a channel of a patch each, x BLOCK elements. Grid (rows / ROWS, chunks)."""
    COUNT: tl.constexpr = PZ * PY * PX
    i_row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    m_row = i_row < n_rows
    i_place, i_sample, channel = split_rows(i_row, n_ids, CHANNELS)
    i_patch = tl.load(p_ids + i_place, mask=m_row, other=0).to(tl.int32)
    o_element = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_voxel = m_row[:, None] & (o_element < COUNT)[None, :]
    i_sample = tl.where(m_row, i_sample, 0)
    p_voxels = of_channel(p_volume, channel, stride_c, ALIGN, CHANNELS, True)
    b_value = load_voxels(
        p_voxels, i_sample, i_patch, o_element, m_voxel, p_flip, p_start,
        stride_b, stride_z, stride_y, stride_x, gz, gy, gx, sz, sy, sx,
        PZ, PY, PX, ALIGN,
    )  # fmt: skip
    b_value = apply_affine(b_value, i_sample * CHANNELS + channel, p_scale, p_shift, True)
    b_value = tl.where(m_voxel, b_value, 0.0)
    o_row = i_place.to(tl.int64)[:, None] * WIDTH + o_element[None, :]
    m_out = m_row[:, None] & written_elements(o_element, channel, COUNT, WIDTH, CHANNELS)
    p_out = of_channel(p_rows, channel, 1, COUNT, CHANNELS, True)
    tl.store(p_out + o_row, b_value.to(p_rows.dtype.element_ty), mask=m_out)


def gather_patch_rows(
    volume: Tensor,
    patch_ids: Tensor,
    patch_size: Sequence[int],
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    flip: Tensor | None = None,
    start: Tensor | None = None,
    crop_size: Sequence[int] | None = None,
    out_dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> Tensor:
    """Rows (b, v, k) of the patches `patch_ids` (b, v) int64.

    scale, shift (b, c), or (b,) for all channels, float32: value * scale + shift, in float32; flip
    (b, 3) bool over (z, y, x) of the crop; start (b, 3) int64, the crop's first voxel; crop_size
    defaults to the whole volume. Voxels where the crop overhangs the volume read as raw 0.
    out_dtype defaults to the volume's if floating, else bfloat16 on a GPU and float32 on a CPU.
    Both backends give the same bits. Ids outside the grid are refused on a CPU; on a GPU nothing
    looks, for that would wait for it.
    """
    check_volume(volume)
    check_ids(patch_ids, volume, "patch_ids")
    crop, scale, shift = check_sampling(volume, scale, shift, flip, start, crop_size)
    patch = as_size(patch_size, "patch_size")
    grid_shape(crop, patch)
    dtype = default_dtype(volume) if out_dtype is None else out_dtype
    if dtype not in OUT_DTYPES:
        raise ValueError(f"out_dtype is {dtype}; one of {', '.join(map(str, OUT_DTYPES))}")
    triton = choose(volume, backend, dtype) == "triton"
    return torch.ops.mim3d.gather_patch_rows(
        volume, patch_ids, scale, shift, flip, start, patch, crop, dtype, triton
    )


def default_dtype(volume: Tensor) -> torch.dtype:
    """Row dtype where the caller names none."""
    if volume.dtype.is_floating_point:
        return volume.dtype
    return torch.bfloat16 if volume.device.type == "cuda" else torch.float32


def reference(
    volume: Tensor, patch_ids: Tensor, scale: Tensor | None, shift: Tensor | None,
    flip: Tensor | None, start: Tensor | None,
    patch_size: Sequence[int], crop_size: Sequence[int], dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """The truth: take the patches, intensity, cast, pad."""
    picked = take_patches(volume, patch_ids, patch_size, crop_size, start, flip)
    compute = torch.float64 if torch.float64 in (dtype, volume.dtype) else torch.float32
    rows = affine_intensity(picked, scale, shift, compute).flatten(2).to(dtype)
    width = row_width(volume.shape[1], patch_size)
    return torch.nn.functional.pad(rows, (0, width - rows.shape[2]))


def tile(width: int) -> tuple[int, int]:
    """(ROWS, BLOCK) of a program: about 4096 elements, several small patches or part of one."""
    block = min(next_power_of_2(width), TILE)
    return TILE // block, block


def launch_gather(
    volume: Tensor, patch_ids: Tensor, scale: Tensor | None, shift: Tensor | None,
    flip: Tensor | None, start: Tensor | None,
    patch_size: Sequence[int], crop_size: Sequence[int], dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Run the kernel on checked arguments."""
    (b, channels), (_, v) = volume.shape[:2], patch_ids.shape
    width = row_width(channels, patch_size)
    rows = torch.empty(b, v, width, dtype=dtype, device=volume.device)
    room = width - (channels - 1) * math.prod(patch_size)
    n_rows, (per_program, block) = b * v * channels, tile(room)
    layout, (pz, py, px) = layout_of(volume, patch_size), patch_size
    with on_device(volume):
        gather_kernel[(cdiv(n_rows, per_program), cdiv(room, block))](
            volume, patch_ids.contiguous(), scale, shift, as_bytes(flip), start, rows, n_rows, v,
            *layout.strides, *grid_shape(crop_size, patch_size), *volume.shape[2:],
            CHANNELS=channels, PZ=pz, PY=py, PX=px, ALIGN=layout.align, WIDTH=width,
            ROWS=per_program, BLOCK=block, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return rows


def _gather(
    volume: Tensor, patch_ids: Tensor, scale: Tensor | None, shift: Tensor | None,
    flip: Tensor | None, start: Tensor | None,
    patch_size: Sequence[int], crop_size: Sequence[int], dtype: torch.dtype, triton: bool,
) -> Tensor:  # fmt: skip
    check_range(patch_ids, 0, math.prod(grid_shape(crop_size, patch_size)), "patch_ids")
    run = launch_gather if triton else reference
    scale, shift, start = (t if t is None else t.contiguous() for t in (scale, shift, start))
    return run(volume, patch_ids, scale, shift, flip, start, patch_size, crop_size, dtype)


def _fake(
    volume: Tensor, patch_ids: Tensor, scale: Tensor | None, shift: Tensor | None,
    flip: Tensor | None, start: Tensor | None,
    patch_size: Sequence[int], crop_size: Sequence[int], dtype: torch.dtype, triton: bool,
) -> Tensor:  # fmt: skip
    b, v = patch_ids.shape
    return volume.new_empty(b, v, row_width(volume.shape[1], patch_size), dtype=dtype)


torch.library.define(
    "mim3d::gather_patch_rows",
    "(Tensor volume, Tensor patch_ids, Tensor? scale, Tensor? shift, Tensor? flip, Tensor? start,"
    " int[] patch_size, int[] crop_size, ScalarType dtype, bool triton) -> Tensor",
)
torch.library.impl("mim3d::gather_patch_rows", ("cpu", "cuda"), _gather)
torch.library.register_fake("mim3d::gather_patch_rows", _fake)
