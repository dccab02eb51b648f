# ruff: noqa: ANN001, ANN201 (Triton's device functions have no Python types)
"""Unshuffle, assemble, crop, intensity, flip and cast as one Triton kernel; API in assemble.py.

    launch_assemble(chunks, table, start, ...) -> (b, c, z, y, x)

Programs follow the output: each voxel is looked up (crop -> chunk -> byte planes), so nothing is
filled beforehand and nothing is written twice. Runs of LANES voxels stay inside one chunk row, and
where the crop, the chunk and the starts are multiples of 16, every byte plane is read 16 at a time,
and every bit plane 16 voxels at a time, as one word of 16 bits.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mim3d.kernels.backend import cdiv, jit, on_device, tl
from mim3d.kernels.bit_planes import join_planes

STORED_DTYPES = {
    torch.uint8: "uint8",
    torch.int8: "int8",
    torch.uint16: "uint16",
    torch.int16: "int16",
    torch.float16: "float16",
    torch.int32: "int32",
    torch.float32: "float32",
}
TILE = 2048  # voxels a program writes
SHUFFLES = {"none": 0, "byte": 1, "bit": 2}


@jit
def word_of_bytes(p_chunk, o_element, mask, ITEM: tl.constexpr, SHUFFLE: tl.constexpr,
                  CHUNK_BYTES: tl.constexpr, BLOCK_BYTES: tl.constexpr):  # fmt: skip
    """Little-endian bytes of elements as uint32, gathered from their planes of bytes."""
    if SHUFFLE == 1 and ITEM > 1:
        per_block: tl.constexpr = BLOCK_BYTES // ITEM
        i_block = o_element // per_block
        place = i_block * BLOCK_BYTES + o_element % per_block
        stride = per_block
        if CHUNK_BYTES % BLOCK_BYTES != 0:
            last = (CHUNK_BYTES - CHUNK_BYTES % BLOCK_BYTES) // BLOCK_BYTES
            stride = tl.where(i_block < last, per_block, CHUNK_BYTES % BLOCK_BYTES // ITEM)
    else:
        place, stride = o_element * ITEM, 1
    word = tl.load(p_chunk + place, mask=mask, other=0).to(tl.uint32)
    for i_byte in tl.static_range(1, ITEM):  # pyright: ignore[reportGeneralTypeIssues]
        part = tl.load(p_chunk + place + i_byte * stride, mask=mask, other=0).to(tl.uint32)
        word |= part << (8 * i_byte)
    return word


@jit
def word_of_bits(p_chunk, o_first, stored, ITEM: tl.constexpr, CHUNK_BYTES: tl.constexpr,
                 BLOCK_BYTES: tl.constexpr, LANES: tl.constexpr):  # fmt: skip
    """The same (runs, LANES) from planes of bits, LANES elements from each of `o_first`."""
    o_lane = tl.arange(0, LANES)
    per_block: tl.constexpr = BLOCK_BYTES // ITEM
    i_block = o_first // per_block
    place, pitch = o_first % per_block, per_block // 8
    if CHUNK_BYTES % BLOCK_BYTES != 0:
        last = (CHUNK_BYTES - CHUNK_BYTES % BLOCK_BYTES) // BLOCK_BYTES
        pitch = tl.where(i_block < last, per_block // 8, CHUNK_BYTES % BLOCK_BYTES // ITEM // 8)
    p_plane = p_chunk + i_block * BLOCK_BYTES
    if LANES == 16:  # a run is two bytes of each plane
        word = join_planes(p_plane + place // 8, pitch, stored, ITEM)
    else:
        word = tl.zeros((o_first.shape[0], LANES), tl.uint32)
        o_bit = place[:, None] + o_lane[None, :]
        p_byte = p_plane[:, None] + o_bit // 8
        for i_bit in range(8 * ITEM):  # not unrolled: so many loads in flight would spill
            row = tl.load(p_byte, mask=stored[:, None], other=0).to(tl.uint32)
            word |= (row >> (o_bit % 8) & 1) << i_bit
            p_byte += pitch if CHUNK_BYTES % BLOCK_BYTES == 0 else pitch[:, None]
    return word


@jit
def stored_word(
    p_chunk, o_first, stored, ITEM: tl.constexpr, SHUFFLE: tl.constexpr,
    CHUNK_BYTES: tl.constexpr, BLOCK_BYTES: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Elements (runs, LANES) as uint32, however they were shuffled."""
    if SHUFFLE == 2:
        word = word_of_bits(p_chunk, o_first, stored, ITEM, CHUNK_BYTES, BLOCK_BYTES, LANES)
    else:
        word = word_of_bytes(
            p_chunk[:, None], o_first[:, None] + tl.arange(0, LANES)[None, :], stored[:, None],
            ITEM, SHUFFLE, CHUNK_BYTES, BLOCK_BYTES,
        )  # fmt: skip
    return word


@jit
def typed_value(word, STORED: tl.constexpr):
    """The stored number: float32 for floats, int32 for integers."""
    if STORED == "float32":
        value = word.to(tl.float32, bitcast=True)
    elif STORED == "float16":
        value = word.to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
    elif STORED == "int16":
        value = word.to(tl.uint16).to(tl.int16, bitcast=True).to(tl.int32)
    elif STORED == "int8":
        value = word.to(tl.uint8).to(tl.int8, bitcast=True).to(tl.int32)
    else:
        value = word.to(tl.int32, bitcast=True)
    return value


@jit
def as_int32(bound):
    """A bound (int64) held within int32, so that one meant as none stays one."""
    return tl.minimum(tl.maximum(bound, -2147483648), 2147483647).to(tl.int32)


@jit
def assemble_kernel(
    p_chunks, p_table, p_start, p_box, p_pad, p_clip, p_scale, p_shift, p_flip, p_out,
    pitch, n_channels, nz, ny, nx, cz, cy, cx,
    KZ: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr, START_UNIT: tl.constexpr,
    ITEM: tl.constexpr, STORED: tl.constexpr, SHUFFLE: tl.constexpr, CHUNK_BYTES: tl.constexpr,
    BLOCK_BYTES: tl.constexpr, SEGMENTS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """SEGMENTS runs of LANES voxels of one sample's channel. Grid (voxels / tile, b * c).

    A run never crosses a chunk: LANES divides the crop, the chunk and START_UNIT.
    """
    i_image = tl.program_id(1).to(tl.int64)
    i_sample = i_image // n_channels
    i_run = tl.program_id(0) * SEGMENTS + tl.arange(0, SEGMENTS)
    runs = cx // LANES
    z, y, x = i_run // (runs * cy), (i_run // runs) % cy, (i_run % runs) * LANES
    m_run = z < cz
    zs = z + tl.load(p_start + i_sample * 3).to(tl.int32) * START_UNIT
    ys = y + tl.load(p_start + i_sample * 3 + 1).to(tl.int32) * START_UNIT
    xs = x + tl.load(p_start + i_sample * 3 + 2).to(tl.int32) * START_UNIT
    inside = m_run & (zs >= 0) & (zs < nz * KZ) & (ys >= 0) & (ys < ny * KY)
    inside &= (xs >= 0) & (xs < nx * KX)
    p_box_of_chunks = p_table + i_image * nz * ny * nx
    o_table = (zs // KZ * ny + ys // KY) * nx + xs // KX
    i_chunk = tl.load(p_box_of_chunks + o_table, mask=inside, other=-1)
    stored = inside & (i_chunk >= 0)
    o_lane = tl.arange(0, LANES)
    o_first = ((zs % KZ) * KY + ys % KY) * KX + (xs % KX) // LANES * LANES
    p_chunk = p_chunks + tl.where(stored, i_chunk, 0) * pitch
    word = stored_word(p_chunk, o_first, stored, ITEM, SHUFFLE, CHUNK_BYTES, BLOCK_BYTES, LANES)
    b_value = typed_value(word, STORED)
    if p_out.dtype.element_ty.is_floating():
        b_value = b_value.to(tl.float32)
    if p_box is not None:
        p_low, p_high = p_box + i_sample * 6, p_box + i_sample * 6 + 3
        within = (zs >= as_int32(tl.load(p_low))) & (zs < as_int32(tl.load(p_high)))
        within &= (ys >= as_int32(tl.load(p_low + 1))) & (ys < as_int32(tl.load(p_high + 1)))
        b_x = xs[:, None] + o_lane[None, :]
        m_box = (
            within[:, None]
            & (b_x >= as_int32(tl.load(p_low + 2)))
            & (b_x < as_int32(tl.load(p_high + 2)))
        )
        b_pad = tl.load(p_pad + i_image).to(b_value.dtype)
        b_value = tl.where(m_box, b_value, b_pad)
    if p_clip is not None:
        low, high = tl.load(p_clip + i_image * 2), tl.load(p_clip + i_image * 2 + 1)
        b_value = tl.where(b_value < low, low, b_value)
        b_value = tl.where(b_value > high, high, b_value)
    if p_scale is not None:
        b_value = b_value * tl.load(p_scale + i_image)
    if p_shift is not None:
        b_value = b_value + tl.load(p_shift + i_image)
    b_out_x = x[:, None] + o_lane[None, :]
    if p_flip is not None:
        z = tl.where(tl.load(p_flip + i_sample * 3).to(tl.int1), cz - 1 - z, z)
        y = tl.where(tl.load(p_flip + i_sample * 3 + 1).to(tl.int1), cy - 1 - y, y)
        flip_x = tl.load(p_flip + i_sample * 3 + 2).to(tl.int1)
        b_out_x = tl.where(flip_x, cx - 1 - b_out_x, b_out_x)
        o_out = ((z * cy + y) * cx)[:, None] + b_out_x
    else:
        o_out = i_run[:, None] * LANES + o_lane[None, :]
    p_image = p_out + i_image * cz * cy * cx
    tl.store(p_image + o_out, b_value.to(p_out.dtype.element_ty), mask=m_run[:, None])


def launch_assemble(
    chunks: Tensor, table: Tensor, start: Tensor, box: Tensor | None, pad: Tensor | None,
    clip: Tensor | None, scale: Tensor | None, shift: Tensor | None, flip: Tensor | None,
    crop_size: Sequence[int], chunk_size: Sequence[int], dtype: torch.dtype, shuffle: str,
    block_bytes: int, start_unit: int, out_dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Run the kernel on checked arguments."""
    (b, c, nz, ny, nx), (cz, cy, cx) = table.shape, crop_size
    out = torch.empty(b, c, cz, cy, cx, dtype=out_dtype, device=chunks.device)
    lanes = math.gcd(16, start_unit, cx, chunk_size[2])
    if shuffle == "bit":  # words of 16 bits lie at even addresses, and in one block
        lanes = math.gcd(lanes, block_bytes // dtype.itemsize)
        lanes = min(lanes, 8) if chunks.stride(0) % 2 or chunks.data_ptr() % 2 else lanes
    with on_device(chunks):
        # Only a grid's first axis holds more than 65,535 tiles: a crop of 512^3 has 65,536.
        assemble_kernel[(cdiv(cz * cy * cx, TILE), b * c)](
            chunks, table, start, box, pad, clip, scale, shift,
            None if flip is None else flip.view(torch.uint8), out,
            chunks.stride(0), c, nz, ny, nx, cz, cy, cx,
            KZ=chunk_size[0], KY=chunk_size[1], KX=chunk_size[2], START_UNIT=start_unit,
            ITEM=dtype.itemsize, STORED=STORED_DTYPES[dtype], SHUFFLE=SHUFFLES[shuffle],
            CHUNK_BYTES=chunks.shape[1], BLOCK_BYTES=min(block_bytes, chunks.shape[1]),
            SEGMENTS=TILE // lanes, LANES=lanes, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return out
