"""Fixed sine-cosine positions of patches on a 3D grid."""

import math

import torch
from torch import Tensor


def sincos_positions(grid: tuple[int, int, int], width: int, base: float = 10_000.0) -> Tensor:
    """Positions (n, width) float32 of the patches of a `grid` (z, y, x), in C order.

    Each axis has `width // 6` frequencies, a sine and a cosine of each (Vaswani et al. 2017,
    section 3.5, once per axis); where 6 does not divide `width` the last columns are zero.
    """
    n_frequencies = width // 6
    if n_frequencies < 1:
        raise ValueError(f"sin-cos positions need a width of at least 6, got {width}")
    rates = torch.exp(-math.log(base) * torch.arange(n_frequencies) / n_frequencies)
    axes = torch.meshgrid(*(torch.arange(size) for size in grid), indexing="ij")
    angles = torch.stack(axes, dim=-1).reshape(-1, 3, 1) * rates
    table = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)
    return torch.nn.functional.pad(table, (0, width - table.shape[1]))


def resize_positions(table: Tensor, old: tuple[int, int, int], new: tuple[int, int, int]) -> Tensor:
    """Trilinearly resize learned positions (n_old, d) of grid `old` to grid `new`: (n_new, d)."""
    if old == new:
        return table
    volume = table.reshape(1, *old, -1).permute(0, 4, 1, 2, 3)
    resized = torch.nn.functional.interpolate(
        volume.float(), size=new, mode="trilinear", align_corners=False
    )
    return resized.flatten(2)[0].T.to(table.dtype)
