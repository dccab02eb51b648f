"""Rotary positions in three dimensions, as EVA's are in two.

A head's features fall into pairs; pair k of axis a is turned by the angle `place_a / 10000^(k/K)`
with K = features / 6 pairs an axis (Su et al. 2021, "RoFormer"; timm's RotaryEmbeddingCat with
`in_pixels=False`, on the grid of the crop itself).
"""

import torch
from torch import Tensor

BASE = 10_000.0


def rotary_angles(grid: tuple[int, int, int], head_width: int) -> Tensor:
    """Angles (n, head_width / 2) float32 of the patches of a `grid` (z, y, x), in C order."""
    bands = head_width // 6
    rates = 1.0 / BASE ** (torch.arange(bands).float() / bands)
    axes = torch.meshgrid(*(torch.arange(size).float() for size in grid), indexing="ij")
    return (torch.stack(axes, dim=-1)[..., None] * rates).reshape(-1, 3 * bands)


def rotary_table(grid: tuple[int, int, int], head_width: int) -> Tensor:
    """Cosines and sines (2, n, head_width / 2) of `rotary_angles`."""
    angles = rotary_angles(grid, head_width)
    return torch.stack([angles.cos(), angles.sin()])


def turns_of(table: Tensor, ids: Tensor | None, extra: int) -> Tensor:
    """Cosines and sines (2, b or 1, 1, n, head_width / 2) for tokens of patches `ids` (b, n).

    Without `ids` all patches in order. `extra` tokens that stand before them are not turned.
    """
    turns = table[:, None] if ids is None else table[:, ids]
    if extra:
        still = turns.new_zeros(2, turns.shape[1], extra, turns.shape[-1])
        still[0] = 1.0
        turns = torch.cat([still, turns], dim=2)
    return turns[:, :, None]


def turn(features: Tensor, turns: Tensor) -> Tensor:
    """Turn the pairs (2i, 2i + 1) of features (b, heads, n, d), in float32, back in their type."""
    cos, sin = turns
    first, second = features.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.flatten(-2).to(features.dtype)
