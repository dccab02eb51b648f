"""Crops from decoded chunks in one pass: unshuffle, assemble, crop, intensity, flip and cast.

    assemble_crops(chunks (n, chunk_bytes) uint8, table (b, c, nz, ny, nx), start (b, 3), ...)
        -> (b, c, z, y, x)

`chunks` are decompressed but still shuffled, by bytes or by bits, as blosc's streams are when they
leave a batched decompressor.
`table` says which row of `chunks` lies where in each sample's box of chunks, -1 = never stored
(reads as raw 0). `start` is the crop's first voxel in that box. Each output voxel is written once:
value -> clip to [clip_lo, clip_hi] -> * scale + shift -> flip -> cast, in float32, each operation
rounded on its own, so both backends give the same bits.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from mim3d.kernels.assemble_kernel import STORED_DTYPES, launch_assemble
from mim3d.kernels.backend import choose
from mim3d.kernels.patch_grid import (
    Size,
    as_size,
    check_device,
    check_per_sample,
    check_range,
    for_each_channel,
    take_crop,
)

BLOCK_BYTES = 65536  # blosc block, within which bytes or bits are shuffled
OUT_DTYPES = (*STORED_DTYPES, torch.bfloat16, torch.int64, torch.float64)
Shuffle = Literal["none", "byte", "bit"]
"""How a chunk's bytes lie: in order; byte k of all voxels of a block together; or bit k."""


def assemble_crops(
    chunks: Tensor,
    table: Tensor,
    start: Tensor,
    *,
    crop_size: Sequence[int],
    chunk_size: Sequence[int],
    dtype: torch.dtype,
    shuffle: Shuffle = "byte",
    block_bytes: int = BLOCK_BYTES,
    start_unit: int = 1,
    box: Tensor | None = None,
    pad: Tensor | None = None,
    clip: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    flip: Tensor | None = None,
    out_dtype: torch.dtype = torch.float32,
    backend: str = "auto",
) -> Tensor:
    """Crops (b, c, z, y, x) of `out_dtype` from decoded chunks of stored voxels of `dtype`.

    chunks (n, chunk_bytes) uint8, rows contiguous, any pitch; table (b, c, nz, ny, nx) int64.
    start (b, 3) int64 in units of `start_unit` voxels: 16 for starts snapped to 16 makes aligned
    loads possible. box (b, 2, 3) int64 first and end voxel of the volume in the chunk box; voxels
    outside it take pad (b, c) float32, a raw value. clip (b, c, 2), scale, shift (b, c) float32,
    each also without c, the same for all channels; flip (b, 3) bool. block_bytes is blosc's block
    length; by bits it must hold a multiple of 8 voxels.
    Integer outputs (labels) take neither clip nor scale nor shift. Rows that `table` names but
    `chunks` has not are refused on a CPU; on a GPU nothing looks, for that would wait for it.
    """
    crop, chunk = as_size(crop_size, "crop_size"), as_size(chunk_size, "chunk_size")
    _check(chunks, table, start, chunk, dtype, start_unit, block_bytes)
    _check_shuffle(shuffle, chunks, dtype, block_bytes)
    b = table.shape[0]
    check_per_sample(start, table, "start", (b, 3), torch.int64)
    check_per_sample(box, table, "box", (b, 2, 3), torch.int64)
    pad, scale, shift = (
        for_each_channel(each, table, name)
        for each, name in ((pad, "pad"), (scale, "scale"), (shift, "shift"))
    )
    clip = for_each_channel(clip, table, "clip", (2,))
    check_per_sample(flip, table, "flip", (b, 3), torch.bool)
    if (box is None) != (pad is None):
        raise ValueError("box and pad belong together: give both or neither")
    if out_dtype not in OUT_DTYPES:
        raise ValueError(f"out_dtype is {out_dtype}; one of {', '.join(map(str, OUT_DTYPES))}")
    if not out_dtype.is_floating_point and any(t is not None for t in (clip, scale, shift)):
        raise ValueError(f"out_dtype {out_dtype} is an integer: clip, scale and shift must be None")
    triton = choose(chunks, backend) == "triton"
    return torch.ops.mim3d.assemble_crops(
        chunks, table.contiguous(), start, box, pad, clip, scale, shift, flip,
        crop, chunk, dtype, shuffle, block_bytes, start_unit, out_dtype, triton,
    )  # fmt: skip


def _check(
    chunks: Tensor, table: Tensor, start: Tensor, chunk: Size, dtype: torch.dtype,
    start_unit: int, block_bytes: int,
) -> None:  # fmt: skip
    if dtype not in STORED_DTYPES:
        raise ValueError(f"dtype is {dtype}; one of {', '.join(map(str, STORED_DTYPES))}")
    nbytes = math.prod(chunk) * dtype.itemsize
    if chunks.dtype != torch.uint8 or chunks.dim() != 2 or chunks.shape[1] != nbytes:
        raise ValueError(
            f"chunks has shape {tuple(chunks.shape)} and dtype {chunks.dtype}; (n, {nbytes}) uint8 "
            f"is needed for chunks of {chunk} {dtype}"
        )
    if chunks.stride(1) != 1:
        raise ValueError(f"chunks has strides {chunks.stride()}; each row must be contiguous")
    if table.dim() != 5 or table.dtype != torch.int64 or 0 in table.shape[2:]:
        raise ValueError(
            f"table has shape {tuple(table.shape)} and dtype {table.dtype}; "
            "(b, c, nz, ny, nx) int64 is needed, at least one chunk along each axis"
        )
    check_device(table, chunks, "table")
    if start_unit < 1 or block_bytes < 1 or block_bytes % dtype.itemsize:
        raise ValueError(
            f"start_unit is {start_unit} and block_bytes {block_bytes}; both must be positive and "
            f"block_bytes a multiple of {dtype.itemsize}"
        )


def _check_shuffle(shuffle: str, chunks: Tensor, dtype: torch.dtype, block_bytes: int) -> None:
    if shuffle not in get_args(Shuffle):
        raise ValueError(f"shuffle is {shuffle!r}; one of {', '.join(get_args(Shuffle))}")
    eight = 8 * dtype.itemsize
    if shuffle == "bit" and (chunks.shape[1] % eight or block_bytes % eight):
        raise ValueError(
            f"chunks of {chunks.shape[1]} bytes in blocks of {block_bytes} cannot be shuffled by "
            f"bits: both must be multiples of {eight} for {dtype}"
        )


def unshuffle(chunks: Tensor, itemsize: int, block_bytes: int, bits: bool = False) -> Tensor:
    """Bytes (n, chunk_bytes) back in order.

    Each blosc block is `itemsize` planes of a byte per voxel or, with `bits`, 8 * itemsize planes
    of a bit per voxel, the first voxel in the lowest bit.
    """
    whole = chunks.shape[1] // block_bytes * block_bytes
    parts = []
    for piece, block in ((chunks[:, :whole], block_bytes), (chunks[:, whole:], 0)):
        if piece.shape[1]:
            length = block or piece.shape[1]
            blocks = piece.shape[1] // length
            planes = piece.reshape(len(piece), blocks, itemsize, length // itemsize)
            planes = join_bits(planes) if bits else planes
            parts.append(planes.transpose(2, 3).reshape(piece.shape))
    return torch.cat(parts, 1)


def join_bits(planes: Tensor) -> Tensor:
    """(..., n) uint8 that hold 8 planes of n / 8 bytes, the lowest bit's first -> (..., n)."""
    eight = torch.arange(8, dtype=torch.uint8, device=planes.device)
    rows = planes.unflatten(-1, (8, -1))  # (..., bit, n / 8)
    bits = (rows[..., None] >> eight & 1).flatten(-2)  # (..., bit, n)
    return (bits << eight[:, None]).sum(-2, dtype=torch.uint8)


def reference(
    chunks: Tensor, table: Tensor, start: Tensor, box: Tensor | None, pad: Tensor | None,
    clip: Tensor | None, scale: Tensor | None, shift: Tensor | None, flip: Tensor | None,
    crop_size: Sequence[int], chunk_size: Sequence[int], dtype: torch.dtype, shuffle: str,
    block_bytes: int, start_unit: int, out_dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """The truth: unshuffle, view as voxels, lay out the chunk box, crop, intensity, flip, cast."""
    ordered = chunks
    if shuffle != "none":
        ordered = unshuffle(chunks, dtype.itemsize, block_bytes, bits=shuffle == "bit")
    voxels = ordered.contiguous().view(dtype).view(len(chunks), *chunk_size)
    compute = torch.int64 if _is_integer(dtype) and _is_integer(out_dtype) else torch.float32
    voxels = torch.cat([voxels.to(compute), voxels.new_zeros(1, *chunk_size, dtype=compute)])
    b, c, nz, ny, nx = table.shape
    laid = voxels[table]  # row -1 is the zeros
    laid = laid.permute(0, 1, 2, 5, 3, 6, 4, 7).reshape(
        b, c, nz * chunk_size[0], ny * chunk_size[1], nx * chunk_size[2]
    )
    values = take_crop(laid, start * start_unit, None, crop_size)
    per_channel = (b, c, 1, 1, 1)
    if box is not None and pad is not None:
        keep = _inside(box, start * start_unit, crop_size)[:, None]
        values = torch.where(keep, values, pad.to(compute).view(per_channel))
    if clip is not None:
        low, high = clip[..., 0].view(per_channel), clip[..., 1].view(per_channel)
        values = torch.where(values < low, low, values)
        values = torch.where(values > high, high, values)
    if scale is not None:
        values = values * scale.view(per_channel)
    if shift is not None:
        values = values + shift.view(per_channel)
    return take_crop(values, None, flip, crop_size).to(out_dtype).contiguous()


def _is_integer(dtype: torch.dtype) -> bool:
    return not dtype.is_floating_point


def _inside(box: Tensor, start: Tensor, crop_size: Sequence[int]) -> Tensor:
    """(b, z, y, x) bool: voxels of the crop that lie in the box."""
    keep = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=box.device)
    for axis, crop in enumerate(crop_size):
        place = start[:, axis, None] + torch.arange(crop, device=box.device)
        within = (place >= box[:, 0, axis, None]) & (place < box[:, 1, axis, None])
        shape = [len(box), 1, 1, 1]
        shape[axis + 1] = crop
        keep = keep & within.view(shape)
    return keep


def _assemble(
    chunks: Tensor, table: Tensor, start: Tensor, box: Tensor | None, pad: Tensor | None,
    clip: Tensor | None, scale: Tensor | None, shift: Tensor | None, flip: Tensor | None,
    crop_size: Sequence[int], chunk_size: Sequence[int], dtype: torch.dtype, shuffle: str,
    block_bytes: int, start_unit: int, out_dtype: torch.dtype, triton: bool,
) -> Tensor:  # fmt: skip
    check_range(table, -1, len(chunks), "table's rows")
    start = start.contiguous()
    box, pad, clip, scale, shift, flip = (
        t if t is None else t.contiguous() for t in (box, pad, clip, scale, shift, flip)
    )
    run = launch_assemble if triton else reference
    return run(
        chunks, table, start, box, pad, clip, scale, shift, flip,
        crop_size, chunk_size, dtype, shuffle, block_bytes, start_unit, out_dtype,
    )  # fmt: skip


def _fake(
    chunks: Tensor, table: Tensor, start: Tensor, box: Tensor | None, pad: Tensor | None,
    clip: Tensor | None, scale: Tensor | None, shift: Tensor | None, flip: Tensor | None,
    crop_size: Sequence[int], chunk_size: Sequence[int], dtype: torch.dtype, shuffle: str,
    block_bytes: int, start_unit: int, out_dtype: torch.dtype, triton: bool,
) -> Tensor:  # fmt: skip
    return chunks.new_empty(table.shape[0], table.shape[1], *crop_size, dtype=out_dtype)


torch.library.define(
    "mim3d::assemble_crops",
    "(Tensor chunks, Tensor table, Tensor start, Tensor? box, Tensor? pad, Tensor? clip,"
    " Tensor? scale, Tensor? shift, Tensor? flip, int[] crop_size, int[] chunk_size,"
    " ScalarType dtype, str shuffle, int block_bytes, int start_unit, ScalarType out_dtype,"
    " bool triton) -> Tensor",
)
torch.library.impl("mim3d::assemble_crops", ("cpu", "cuda"), _assemble)
torch.library.register_fake("mim3d::assemble_crops", _fake)
