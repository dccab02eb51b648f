# ruff: noqa: ANN001, ANN201 (Triton's device functions have no Python types)
"""Where a patch's voxels lie in memory: the addressing every volume-reading kernel shares.

Device functions for tiles of ROWS rows, a channel of a patch each, x BLOCK elements in pz, py, px
order, and `Layout`, the host's description of a volume: strides in units of ALIGN elements, so that
the compiler sees the alignment and loads 16 bytes at a time, which a plain stride of, say, 24 would
forbid.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mim3d.kernels.backend import jit, tl


@jit
def element_zyx(o_element, PZ: tl.constexpr, PY: tl.constexpr, PX: tl.constexpr):
    """Place (z, y, x) inside the patch of elements in pz, py, px order."""
    return (o_element // (PY * PX)) % PZ, (o_element // PX) % PY, o_element % PX


@jit
def patch_zyx(i_patch, gy, gx, PZ: tl.constexpr, PY: tl.constexpr, PX: tl.constexpr):
    """First voxel (z, y, x) of patches, in the crop's frame."""
    return i_patch // (gy * gx) * PZ, (i_patch // gx) % gy * PY, i_patch % gx * PX


@jit
def row_offset(
    i_sample, z, y, x, stride_b, stride_z, stride_y, stride_x, ALIGN: tl.constexpr
):  # fmt: skip
    """Element offset (int64) of voxels (z, y, x) of channel 0."""
    outer = i_sample.to(tl.int64) * stride_b + z.to(tl.int64) * stride_z
    return (outer + y.to(tl.int64) * stride_y) * ALIGN + x.to(tl.int64) * stride_x


@jit
def split_rows(i_row, n_ids, CHANNELS: tl.constexpr):
    """Patch (i_sample * n_ids + its place), sample and channel of rows, a channel of a patch each:
    row = patch * CHANNELS + channel."""
    i_place = i_row // CHANNELS
    return i_place, i_place // n_ids, i_row % CHANNELS


@jit
def of_channel(p_tensor, channel, stride_c, ALIGN: tl.constexpr, CHANNELS: tl.constexpr,
               TILE: tl.constexpr):  # fmt: skip
    """Pointer to each row's channel, [ROWS, 1] if TILE, else [ROWS]; the tensor's own for one."""
    if CHANNELS > 1:
        offset = channel.to(tl.int64) * stride_c * ALIGN
        p_tensor += offset[:, None] if TILE else offset
    return p_tensor


@jit
def written_elements(o_element, channel, COUNT: tl.constexpr, WIDTH: tl.constexpr,
                     CHANNELS: tl.constexpr):  # fmt: skip
    """Elements that each row writes of a token WIDTH wide, [1 or ROWS, BLOCK]: its COUNT voxels,
    and where it is the last channel the padding too."""
    ROOM: tl.constexpr = WIDTH - (CHANNELS - 1) * COUNT
    mask = (o_element < ROOM)[None, :]
    if (CHANNELS > 1) & (ROOM > COUNT):
        mask = mask & ((o_element < COUNT)[None, :] | (channel == CHANNELS - 1)[:, None])
    return mask


@jit
def plain_offsets(
    i_sample, i_patch, o_element, stride_b, stride_z, stride_y, stride_x, gy, gx,
    PZ: tl.constexpr, PY: tl.constexpr, PX: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Element offsets [ROWS, BLOCK] (int64) of patches in a crop that starts at 0, unflipped.

    All strides but stride_x count units of ALIGN elements.
    """
    z0, y0, x0 = patch_zyx(i_patch, gy, gx, PZ, PY, PX)
    row = row_offset(i_sample, z0, y0, x0, stride_b, stride_z, stride_y, stride_x, ALIGN)
    z, y, x = element_zyx(o_element, PZ, PY, PX)
    outer = z.to(tl.int64) * stride_z + y.to(tl.int64) * stride_y
    return row[:, None] + (outer * ALIGN + x.to(tl.int64) * stride_x)[None, :]


@jit
def sampled_axis(i_sample, first, inner, p_flip, p_start, crop, space, AXIS: tl.constexpr):
    """Voxel index along one axis [ROWS, BLOCK] after flip and start, and whether it is inside."""
    place = first[:, None] + inner[None, :]
    if p_flip is not None:
        flipped = tl.load(p_flip + i_sample * 3 + AXIS).to(tl.int1)
        place = tl.where(flipped[:, None], crop - 1 - place, place)
    place = place.to(tl.int64)
    if p_start is not None:
        place += tl.load(p_start + i_sample * 3 + AXIS)[:, None]
    return place, (place >= 0) & (place < space)


@jit
def sampled_offsets(
    i_sample, i_patch, o_element, p_flip, p_start, stride_b, stride_z, stride_y, stride_x,
    gz, gy, gx, sz, sy, sx,
    PZ: tl.constexpr, PY: tl.constexpr, PX: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Element offsets [ROWS, BLOCK] and inside-mask of patches in flipped crops at given starts."""
    z0, y0, x0 = patch_zyx(i_patch, gy, gx, PZ, PY, PX)
    z_in, y_in, x_in = element_zyx(o_element, PZ, PY, PX)
    z, in_z = sampled_axis(i_sample, z0, z_in, p_flip, p_start, gz * PZ, sz, 0)
    y, in_y = sampled_axis(i_sample, y0, y_in, p_flip, p_start, gy * PY, sy, 1)
    x, in_x = sampled_axis(i_sample, x0, x_in, p_flip, p_start, gx * PX, sx, 2)
    row = i_sample.to(tl.int64)[:, None] * stride_b
    return (row + z * stride_z + y * stride_y) * ALIGN + x * stride_x, in_z & in_y & in_x


@jit
def load_voxels(
    p_volume, i_sample, i_patch, o_element, mask, p_flip, p_start,
    stride_b, stride_z, stride_y, stride_x, gz, gy, gx, sz, sy, sx,
    PZ: tl.constexpr, PY: tl.constexpr, PX: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Raw voxels [ROWS, BLOCK] of the channels at `p_volume` as float32; 0 where `mask` is off or
    the crop overhangs."""
    if (p_flip is None) & (p_start is None):
        offsets = plain_offsets(
            i_sample, i_patch, o_element, stride_b, stride_z, stride_y, stride_x, gy, gx,
            PZ, PY, PX, ALIGN,
        )  # fmt: skip
        return tl.load(p_volume + offsets, mask=mask, other=0).to(tl.float32)
    offsets, inside = sampled_offsets(
        i_sample, i_patch, o_element, p_flip, p_start, stride_b, stride_z, stride_y, stride_x,
        gz, gy, gx, sz, sy, sx, PZ, PY, PX, ALIGN,
    )  # fmt: skip
    return tl.load(p_volume + offsets, mask=mask & inside, other=0).to(tl.float32)


@jit
def first_voxels(
    p_volume, i_sample, i_patch, mask, p_flip, p_start, stride_b, stride_z, stride_y, stride_x,
    gz, gy, gx, sz, sy, sx,
    PZ: tl.constexpr, PY: tl.constexpr, PX: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Raw first voxel of each patch [ROWS] as float32; 0 where it overhangs."""
    z, y, x = patch_zyx(i_patch, gy, gx, PZ, PY, PX)
    if p_flip is not None:
        z = tl.where(tl.load(p_flip + i_sample * 3) != 0, gz * PZ - 1 - z, z)
        y = tl.where(tl.load(p_flip + i_sample * 3 + 1) != 0, gy * PY - 1 - y, y)
        x = tl.where(tl.load(p_flip + i_sample * 3 + 2) != 0, gx * PX - 1 - x, x)
    if p_start is not None:
        z = z + tl.load(p_start + i_sample * 3)
        y = y + tl.load(p_start + i_sample * 3 + 1)
        x = x + tl.load(p_start + i_sample * 3 + 2)
        mask &= (z >= 0) & (z < sz) & (y >= 0) & (y < sy) & (x >= 0) & (x < sx)
    row = row_offset(i_sample, z, y, x, stride_b, stride_z, stride_y, stride_x, ALIGN)
    return tl.load(p_volume + row, mask=mask, other=0).to(tl.float32)


@jit
def apply_affine(values, i_factor, p_scale, p_shift, TILE: tl.constexpr):
    """values * scale + shift, `i_factor` of each row; values [ROWS, BLOCK] if TILE, else [ROWS].

    Factors are loaded once per row: broadcasting the index first would load them per element.
    """
    if p_scale is not None:
        scale = tl.load(p_scale + i_factor)
        values = values * (scale[:, None] if TILE else scale)
    if p_shift is not None:
        shift = tl.load(p_shift + i_factor)
        values = values + (shift[:, None] if TILE else shift)
    return values


@dataclass(frozen=True)
class Layout:
    """Strides of a (b, c, z, y, x) tensor for a kernel; b, c, z, y count units of `align`."""

    b: int
    c: int
    z: int
    y: int
    x: int
    align: int

    @property
    def strides(self) -> tuple[int, int, int, int, int]:
        """(b, c, z, y, x) as the kernels take them."""
        return self.b, self.c, self.z, self.y, self.x


def walked_strides(tensor: Tensor) -> list[int]:
    """Strides, 0 along axes of length 1, where they say nothing.

    One channel stored last, as DALI hands volumes over, has a channel stride of 1: taken at its
    word it would defeat every wide load.
    """
    return [0 if n == 1 else s for n, s in zip(tensor.shape, tensor.stride(), strict=True)]


def layout_of(tensor: Tensor, patch_size: Sequence[int]) -> Layout:
    """Layout with the largest power of two up to 16 that divides outer strides and patch width."""
    b, c, z, y, x = walked_strides(tensor)
    x = 1 if tensor.shape[4] == 1 else x
    align = 16
    if x != 1 or tensor.data_ptr() % 16:
        align = 1
    while align > 1 and any(value % align for value in (b, c, z, y, patch_size[2])):
        align //= 2
    return Layout(b // align, c // align, z // align, y // align, x, align)


def as_bytes(flip: Tensor | None) -> Tensor | None:
    """Bool flags as contiguous uint8, which every Triton version loads alike."""
    return None if flip is None else flip.contiguous().view(torch.uint8)
