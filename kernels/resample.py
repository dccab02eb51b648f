# ruff: noqa: ANN001, ANN201 (Triton's device functions have no Python types)
"""Crops turned and zoomed within their volumes, from the boxes of voxels they lie in.

    resample_boxes(boxes (b, c, bz, by, bx), placing (b, 3, 4), extent (b, 2, 3), ...)
        -> (b, c, z, y, x)

Voxel o of a crop lies at `placing @ (o, 1)` in its box, in voxels, whole at their centres; `extent`
says from where to where the volume reaches there. An image's voxel is blended from its eight
neighbours, a label's is the nearest one's, and what lies outside the volume is filled. Positions
are float64 and voxels float32, each operation rounded on its own, in one order: both backends, and
the loader's compiled loop on a CPU, give the same bits.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mim3d.kernels.backend import cdiv, choose, jit, on_device, tl
from mim3d.kernels.patch_grid import as_size, check_device, check_per_sample, for_each_channel

IMAGE_DTYPES = (torch.float32,)
LABEL_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32)
TILE = 512  # voxels a program writes: of 1024 a thread would hold 164 registers
MOST = 2**31 - 1  # voxels of a box: their offsets are int32


@jit
def position(p_placing, z, y, x, AXIS: tl.constexpr):
    """Where voxels lie along an axis of their box, float64."""
    by_z, by_y = tl.load(p_placing + 4 * AXIS), tl.load(p_placing + 4 * AXIS + 1)
    by_x, first = tl.load(p_placing + 4 * AXIS + 2), tl.load(p_placing + 4 * AXIS + 3)
    return by_z * z + by_y * y + first + by_x * x


@jit
def within(p_extent, at, AXIS: tl.constexpr):
    """Which positions lie in the volume."""
    return (at >= tl.load(p_extent + AXIS)) & (at < tl.load(p_extent + 3 + AXIS))


@jit
def held(p_extent, at, n, AXIS: tl.constexpr):
    """Whole positions held within the volume and the box, int32; 0 for NaN."""
    last = tl.minimum(tl.load(p_extent + 3 + AXIS) - 0.5, (n - 1).to(tl.float64))
    index = tl.where(at > 0, at, 0.0)
    return tl.where(index < last, index, tl.maximum(last, 0.0)).to(tl.int32)


@jit
def blended(p_box, first, second, share, mask):
    """Between two neighbours each."""
    near = tl.load(p_box + first, mask=mask, other=0)
    return near + share * (tl.load(p_box + second, mask=mask, other=0) - near)


@jit
def resample_kernel(
    p_boxes, p_placing, p_extent, p_fill, p_out, n_channels, bz, by, bx, cz, cy, cx,
    NEAREST: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """TILE voxels of one sample's channel. Grid (voxels / tile, b * c)."""
    i_image = tl.program_id(1).to(tl.int64)
    i_sample = i_image // n_channels
    o_voxel = tl.program_id(0) * TILE + tl.arange(0, TILE)
    mask = o_voxel < cz * cy * cx
    z = (o_voxel // (cy * cx)).to(tl.float64)
    y, x = ((o_voxel // cx) % cy).to(tl.float64), (o_voxel % cx).to(tl.float64)
    p_placing, p_extent = p_placing + i_sample * 12, p_extent + i_sample * 6
    z, y, x = (
        position(p_placing, z, y, x, 0),
        position(p_placing, z, y, x, 1),
        position(p_placing, z, y, x, 2),
    )
    inside = mask & within(p_extent, z, 0) & within(p_extent, y, 1) & within(p_extent, x, 2)
    p_box = p_boxes + i_image * bz * by * bx
    if NEAREST:
        i_z = held(p_extent, tl.floor(z + 0.5), bz, 0)
        i_y = held(p_extent, tl.floor(y + 0.5), by, 1)
        i_x = held(p_extent, tl.floor(x + 0.5), bx, 2)
        b_value = tl.load(p_box + (i_z * by + i_y) * bx + i_x, mask=inside, other=0)
    else:
        z0, y0, x0 = tl.floor(z), tl.floor(y), tl.floor(x)
        share_z, share_y = (z - z0).to(tl.float32), (y - y0).to(tl.float32)
        share_x = (x - x0).to(tl.float32)
        row, under = held(p_extent, z0, bz, 0), held(p_extent, z0 + 1, bz, 0)
        near, far = held(p_extent, y0, by, 1), held(p_extent, y0 + 1, by, 1)
        left, right = held(p_extent, x0, bx, 2), held(p_extent, x0 + 1, bx, 2)
        o_row = (row * by + near) * bx
        b_near = blended(p_box, o_row + left, o_row + right, share_x, inside)
        o_row = (row * by + far) * bx
        b_far = blended(p_box, o_row + left, o_row + right, share_x, inside)
        b_value = b_near + share_y * (b_far - b_near)
        o_row = (under * by + near) * bx
        b_near = blended(p_box, o_row + left, o_row + right, share_x, inside)
        o_row = (under * by + far) * bx
        b_far = blended(p_box, o_row + left, o_row + right, share_x, inside)
        b_under = b_near + share_y * (b_far - b_near)
        b_value = b_value + share_z * (b_under - b_value)
        b_value = tl.where(inside, b_value, tl.load(p_fill + i_image))
    tl.store(p_out + i_image * cz * cy * cx + o_voxel, b_value, mask=mask)


def resample_boxes(
    boxes: Tensor,
    placing: Tensor,
    extent: Tensor,
    *,
    crop_size: Sequence[int],
    fill: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Crops (b, c, z, y, x) of the boxes' dtype.

    boxes (b, c, bz, by, bx): float32 images, which need fill (b, c) float32, or labels of uint8,
    int8, int16 or int32, without. placing (b, 3, 4) and extent (b, 2, 3) are float64 and finite,
    axes in the order z, y, x. A box may be larger than its crop needs, or hold nothing where no
    voxel of the crop lies in the volume.
    """
    crop = as_size(crop_size, "crop_size")
    if boxes.dim() != 5 or boxes.dtype not in (*IMAGE_DTYPES, *LABEL_DTYPES):
        known = ", ".join(map(str, (*IMAGE_DTYPES, *LABEL_DTYPES)))
        raise ValueError(
            f"boxes has shape {tuple(boxes.shape)} and dtype {boxes.dtype}; (b, c, z, y, x) of one "
            f"of {known} is needed"
        )
    if 0 in boxes.shape or math.prod(boxes.shape[2:]) > MOST or math.prod(crop) > MOST:
        raise ValueError(f"boxes {tuple(boxes.shape)} to crops of {crop}: 1 to {MOST} voxels each")
    b = boxes.shape[0]
    for given, name, shape in ((placing, "placing", (b, 3, 4)), (extent, "extent", (b, 2, 3))):
        check_per_sample(given, boxes, name, shape, torch.float64)
        check_device(given, boxes, name)
    if (fill is None) == (boxes.dtype in IMAGE_DTYPES):
        raise ValueError(f"fill is for images, which need it; boxes has dtype {boxes.dtype}")
    fill = for_each_channel(fill, boxes, "fill")
    triton = choose(boxes, backend) == "triton"
    return torch.ops.mim3d.resample_boxes(boxes, placing, extent, fill, crop, triton)


def reference(
    boxes: Tensor, placing: Tensor, extent: Tensor, fill: Tensor | None, crop_size: Sequence[int]
) -> Tensor:
    """The truth: every voxel's position, its neighbours by indexing, and three blends."""
    grid = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float64, device=boxes.device) for n in crop_size),
        indexing="ij",
    )
    along, inside = [], torch.ones(1, dtype=torch.bool, device=boxes.device)
    for axis in range(3):
        by_z, by_y, by_x, first = (placing[:, axis, k].view(-1, 1, 1, 1) for k in range(4))
        at = by_z * grid[0] + by_y * grid[1] + first + by_x * grid[2]
        low, high = (extent[:, end, axis].view(-1, 1, 1, 1) for end in range(2))
        inside = inside & (at >= low) & (at < high)
        along.append((at, (high - 0.5).clamp(0, boxes.shape[axis + 2] - 1)))
    inside = inside[:, None]
    if fill is None:
        z, y, x = (_held((at + 0.5).floor(), last) for at, last in along)
        return torch.where(inside, _taken(boxes, z, y, x), boxes.new_zeros(()))
    ends = [(_held(at.floor(), last), _held(at.floor() + 1, last)) for at, last in along]
    share_z, share_y, share_x = ((at - at.floor()).float()[:, None] for at, _ in along)
    planes = []
    for z in ends[0]:
        rows = []
        for y in ends[1]:
            near, far = (_taken(boxes, z, y, x) for x in ends[2])
            rows.append(near + share_x * (far - near))
        planes.append(rows[0] + share_y * (rows[1] - rows[0]))
    values = planes[0] + share_z * (planes[1] - planes[0])
    return torch.where(inside, values, fill[:, :, None, None, None])


def _held(index: Tensor, last: Tensor) -> Tensor:
    return torch.where(index > 0, index, 0.0).minimum(last).long()


def _taken(boxes: Tensor, z: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Voxels (b, c, z, y, x) at indices (b, z, y, x)."""
    sample = torch.arange(boxes.shape[0], device=boxes.device)[:, None, None, None]
    return boxes.permute(0, 2, 3, 4, 1)[sample, z, y, x].permute(0, 4, 1, 2, 3)


def launch_resample(
    boxes: Tensor, placing: Tensor, extent: Tensor, fill: Tensor | None, crop_size: Sequence[int]
) -> Tensor:
    """Run the kernel on checked arguments."""
    (b, c, bz, by, bx), (cz, cy, cx) = boxes.shape, crop_size
    out = torch.empty(b, c, cz, cy, cx, dtype=boxes.dtype, device=boxes.device)
    with on_device(boxes):
        resample_kernel[(cdiv(cz * cy * cx, TILE), b * c)](
            boxes, placing, extent, fill, out, c, bz, by, bx, cz, cy, cx,
            NEAREST=fill is None, TILE=TILE, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return out


def _resample(
    boxes: Tensor, placing: Tensor, extent: Tensor, fill: Tensor | None,
    crop_size: Sequence[int], triton: bool,
) -> Tensor:  # fmt: skip
    run = launch_resample if triton else reference
    whole = None if fill is None else fill.contiguous()
    found = run(boxes.contiguous(), placing.contiguous(), extent.contiguous(), whole, crop_size)
    return found.contiguous()


def _fake(
    boxes: Tensor, placing: Tensor, extent: Tensor, fill: Tensor | None,
    crop_size: Sequence[int], triton: bool,
) -> Tensor:  # fmt: skip
    return boxes.new_empty(*boxes.shape[:2], *crop_size)


torch.library.define(
    "mim3d::resample_boxes",
    "(Tensor boxes, Tensor placing, Tensor extent, Tensor? fill, int[] crop_size, bool triton)"
    " -> Tensor",
)
torch.library.impl("mim3d::resample_boxes", ("cpu", "cuda"), _resample)
torch.library.register_fake("mim3d::resample_boxes", _fake)
