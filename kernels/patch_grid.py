"""Patch arithmetic shared by every operation: grids, row widths, checks and the reference's views.

    row_width(channels, patch_size) -> int      c * p padded to 16 elements
    grid_shape(crop_size, patch_size) -> (gz, gy, gx)
    patch_view(crop, patch_size) -> (b, gz, gy, gx, c, pz, py, px), no copy
    take_crop(volume, start, flip, crop_size) -> (b, c, z, y, x)
    take_patches(volume, ids, ...) -> (b, k, c, pz, py, px)
    check_sampling(...) -> ValueError with both values where an argument does not fit
    check_range(ids, ...) -> the same for values, where looking does not wait for a GPU

Patches are numbered in C order over the (z, y, x) grid of the crop; inside a patch the order is
c, pz, py, px. A crop is cut first and flipped second, so patch ids always mean places in the crop.
Voxels of a crop that overhang the volume read as raw 0.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

ROW_MULTIPLE = 16  # elements; odd row strides defeat vector loads and tensor cores
VOLUME_DTYPES = (
    torch.uint8,
    torch.int16,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
)

Size = tuple[int, int, int]


def as_size(values: Sequence[int] | torch.Size, name: str) -> Size:
    """Three positive ints in (z, y, x) order; ValueError otherwise."""
    if isinstance(values, int | float):
        raise ValueError(f"{name} is {values}; three sizes are needed: ({values},) * 3 for a cube")
    if len(values) != 3 or any(value < 1 or int(value) != value for value in values):
        raise ValueError(
            f"{name} is {tuple(values)}; three positive whole sizes (z, y, x) are needed"
        )
    return int(values[0]), int(values[1]), int(values[2])


def grid_shape(crop_size: Sequence[int], patch_size: Sequence[int]) -> Size:
    """Patches per axis (gz, gy, gx); ValueError where the patch does not divide the crop."""
    cz, cy, cx = as_size(crop_size, "crop_size")
    pz, py, px = as_size(patch_size, "patch_size")
    if cz % pz or cy % py or cx % px:
        raise ValueError(
            f"patch_size {(pz, py, px)} does not divide crop_size {(cz, cy, cx)} on every axis"
        )
    return cz // pz, cy // py, cx // px


def row_width(channels: int, patch_size: Sequence[int]) -> int:
    """Elements of one patch row, c * pz * py * px rounded up to a multiple of 16."""
    n = channels * math.prod(as_size(patch_size, "patch_size"))
    return -(-n // ROW_MULTIPLE) * ROW_MULTIPLE


def check_volume(volume: Tensor, name: str = "volume") -> None:
    """ValueError unless the tensor is (b, c, z, y, x) of a readable dtype."""
    if volume.dim() != 5:
        raise ValueError(f"{name} has shape {tuple(volume.shape)}; (b, c, z, y, x) is needed")
    if volume.dtype not in VOLUME_DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in VOLUME_DTYPES)
        raise ValueError(f"{name} has dtype {volume.dtype}; one of {names} is needed")
    if volume.requires_grad:
        raise ValueError(f"{name} requires a gradient, but volumes are data here: detach it")


def check_ids(ids: Tensor, volume: Tensor, name: str) -> None:
    """ValueError unless ids are (b, k) int64 on the volume's device with k >= 1."""
    if ids.dim() != 2 or ids.shape[0] != volume.shape[0] or ids.shape[1] < 1:
        raise ValueError(
            f"{name} has shape {tuple(ids.shape)} for a volume of shape {tuple(volume.shape)}; "
            f"({volume.shape[0]}, count >= 1) is needed"
        )
    if ids.dtype != torch.int64:
        raise ValueError(f"{name} has dtype {ids.dtype}; torch.int64 is needed")
    check_device(ids, volume, name)


def check_range(ids: Tensor, low: int, high: int, name: str) -> None:
    """ValueError where ids on a CPU leave [low, high); on a GPU to look would be to wait for it."""
    if ids.device.type != "cpu" or ids.numel() == 0:
        return
    least, most = (int(value) for value in ids.aminmax())
    if least < low or most >= high:
        raise ValueError(f"{name} reach from {least} to {most}; they must lie in [{low}, {high})")


def check_device(tensor: Tensor, volume: Tensor, name: str) -> None:
    """ValueError unless both are on one device."""
    if tensor.device != volume.device:
        raise ValueError(f"{name} is on {tensor.device} but what it goes with on {volume.device}")


def check_sampling(
    volume: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    flip: Tensor | None,
    start: Tensor | None,
    crop_size: Sequence[int] | None,
) -> tuple[Size, Tensor | None, Tensor | None]:
    """Check the per-sample arguments against the volume: the crop size (cz, cy, cx), and scale and
    shift of each channel (b, c).

    scale, shift: (b, c) or (b,) float32; flip: (b, 3) bool; start: (b, 3) int64, voxels, (z, y, x).
    """
    b = volume.shape[0]
    scale = for_each_channel(scale, volume, "scale")
    shift = for_each_channel(shift, volume, "shift")
    check_per_sample(flip, volume, "flip", (b, 3), torch.bool)
    check_per_sample(start, volume, "start", (b, 3), torch.int64)
    space = as_size(volume.shape[2:], "the volume's space")
    if crop_size is None:
        return space, scale, shift
    crop = as_size(crop_size, "crop_size")
    if start is None and any(c > s for c, s in zip(crop, space, strict=True)):
        raise ValueError(f"crop_size {crop} is larger than the volume's {space} and start is None")
    return crop, scale, shift


def check_per_sample(
    tensor: Tensor | None, volume: Tensor, name: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """ValueError unless an optional tensor has this shape, dtype and the volume's device.

    Nor may it require a gradient: none would arrive, and nothing would say so.
    """
    if tensor is None:
        return
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)} and dtype {tensor.dtype}; "
            f"{shape} and {dtype} are needed"
        )
    check_device(tensor, volume, name)
    if tensor.requires_grad:
        raise ValueError(f"{name} requires a gradient, but it is data here: detach it")


def for_each_channel(
    given: Tensor | None, volume: Tensor, name: str, rest: tuple[int, ...] = ()
) -> Tensor | None:
    """(b, c, *rest) float32: as given, or what is given for each sample, (b, *rest), repeated.

    ValueError where it is neither; `volume` is (b, c, ...).
    """
    b, c = volume.shape[:2]
    if given is not None and given.dim() == 1 + len(rest):
        check_per_sample(given, volume, name, (b, *rest), torch.float32)
        return given[:, None].expand(b, c, *rest)
    check_per_sample(given, volume, name, (b, c, *rest), torch.float32)
    return given


def take_crop(
    volume: Tensor, start: Tensor | None, flip: Tensor | None, crop_size: Sequence[int]
) -> Tensor:
    """Cut, then flip, a crop per sample: (b, c, z, y, x), a view where neither is asked for."""
    cz, cy, cx = crop_size
    if start is None and flip is None:
        return volume[:, :, :cz, :cy, :cx]
    places, inside = [], []
    for axis, (crop, space) in enumerate(zip(crop_size, volume.shape[2:], strict=True)):
        place = torch.arange(crop, device=volume.device).expand(volume.shape[0], crop)
        if flip is not None:
            place = torch.where(flip[:, axis, None], crop - 1 - place, place)
        if start is not None:
            place = place + start[:, axis, None]
        inside.append((place >= 0) & (place < space))
        places.append(place.clamp(0, space - 1))
    z, y, x = places[0][:, :, None, None], places[1][:, None, :, None], places[2][:, None, None, :]
    sample = torch.arange(volume.shape[0], device=volume.device)[:, None, None, None]
    crop = volume.permute(0, 2, 3, 4, 1)[sample, z, y, x].permute(0, 4, 1, 2, 3)
    in_z, in_y, in_x = inside
    keep = in_z[:, None, :, None, None] & in_y[:, None, None, :, None] & in_x[:, None, None, None]
    return torch.where(keep, crop, crop.new_zeros(()))


def patch_view(crop: Tensor, patch_size: Sequence[int]) -> Tensor:
    """View (b, gz, gy, gx, c, pz, py, px) of a crop (b, c, z, y, x); never copies."""
    view = crop
    for axis, p in zip((2, 4, 6), patch_size, strict=True):
        view = view.unflatten(axis, (-1, p))
    return view.permute(0, 2, 4, 6, 1, 3, 5, 7)


def patch_index(ids: Tensor, grid: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Index (sample, iz, iy, ix), each broadcastable to (b, k), of patch ids in `patch_view`."""
    _, gy, gx = grid
    sample = torch.arange(ids.shape[0], device=ids.device)[:, None]
    return sample, ids // (gy * gx), ids // gx % gy, ids % gx


def take_patches(
    volume: Tensor,
    ids: Tensor,
    patch_size: Sequence[int],
    crop_size: Sequence[int],
    start: Tensor | None,
    flip: Tensor | None,
) -> Tensor:
    """Chosen patches (b, k, c, pz, py, px) of the cut and flipped crop; reads nothing else."""
    index = patch_index(ids, grid_shape(crop_size, patch_size))
    if start is None and flip is None:
        return patch_view(take_crop(volume, None, None, crop_size), patch_size)[index]
    places, inside = [], []
    for axis, p in enumerate(patch_size):
        shape = [1, 1, 1, 1, 1]
        shape[axis + 2] = p
        steps = torch.arange(p, device=volume.device).view(shape)
        place = index[axis + 1][..., None, None, None] * p + steps
        if flip is not None:
            mirrored = crop_size[axis] - 1 - place
            place = torch.where(flip[:, axis].view(-1, 1, 1, 1, 1), mirrored, place)
        if start is not None:
            place = place + start[:, axis].view(-1, 1, 1, 1, 1)
        space = volume.shape[axis + 2]
        inside.append((place >= 0) & (place < space))
        places.append(place.clamp(0, space - 1))
    z, y, x = places
    sample = index[0][..., None, None, None]
    picked = volume.permute(0, 2, 3, 4, 1)[sample, z, y, x].permute(0, 1, 5, 2, 3, 4)
    keep = (inside[0] & inside[1] & inside[2])[:, :, None]
    return torch.where(keep, picked, picked.new_zeros(()))


def affine_intensity(
    patches: Tensor, scale: Tensor | None, shift: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """values * scale + shift of patches (b, k, c, pz, py, px), factors (b, c), in `dtype`.

    Each operation is rounded on its own.
    """
    values = patches.to(dtype)
    shape = (values.shape[0], 1, values.shape[2], 1, 1, 1)
    if scale is not None:
        values = values * scale.to(dtype).reshape(shape)
    if shift is not None:
        values = values + shift.to(dtype).reshape(shape)
    return values
