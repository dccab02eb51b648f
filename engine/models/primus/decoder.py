"""Primus's own decoder: transposed convolutions from tokens to voxel logits, no skips.

Formula: PatchDecode of dynamic_network_architectures 0.4.4, under whose names its weights stand.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mim3d.engine.errors import ConfigError
from mim3d.engine.models.config import ViTConfig
from mim3d.engine.models.primus.encoder import NEGATIVE_SLOPE

NORM_EPS = 1e-6


class ChannelNorm(nn.Module):
    """Norm over the channels of each voxel of a map (b, c, z, y, x)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor) -> Tensor:
        """Normed by mean and deviation over c, then scaled and shifted."""
        last = nn.functional.layer_norm(
            features.movedim(1, -1), self.weight.shape, self.weight, self.bias, NORM_EPS
        )
        return last.movedim(-1, 1)


class PatchDecoder(nn.Module):
    """Logits (b, k, z, y, x) from an encoder's last tokens (b, n, d) alone."""

    def __init__(self, vit: ViTConfig, classes: int) -> None:
        super().__init__()
        self.grid = vit.grid
        strides = patch_strides(vit.patch_size)
        widths = decoder_widths(vit.width, classes, len(strides))
        stages: list[nn.Module] = []
        for number, stride in enumerate(strides):
            up = nn.ConvTranspose3d(widths[number], widths[number + 1], stride, stride)
            nn.init.kaiming_normal_(up.weight, a=NEGATIVE_SLOPE)
            assert up.bias is not None
            nn.init.zeros_(up.bias)
            last = number == len(strides) - 1
            stages.append(
                up if last else nn.Sequential(up, ChannelNorm(widths[number + 1]), nn.GELU())
            )
        self.decode = nn.Sequential(*stages)

    def forward(self, volume: Tensor, states: Sequence[Tensor], last: Tensor) -> Tensor:
        """`last` are the encoder's normed tokens; volume and states are other decoders'."""
        grid = last.view(len(last), *self.grid, last.shape[-1]).permute(0, 4, 1, 2, 3)
        return self.decode(grid)


def patch_strides(patch_size: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """Upsampling factors (z, y, x) of each stage, coarse first."""
    if any(size & (size - 1) for size in patch_size) or max(patch_size) < 2:
        raise ConfigError(
            f"vit.patch_size {patch_size}: Primus's decoder doubles its grid at each stage, so "
            "patches must be powers of two, one at least 2; take --head unetr, which has any"
        )
    count = int(math.log2(max(patch_size)))
    strides = []
    for number in reversed(range(count)):
        z, y, x = (2 if size / 2**number % 2 == 0 else 1 for size in patch_size)
        strides.append((z, y, x))
    return strides


def decoder_widths(width: int, classes: int, stages: int) -> list[int]:
    """Channels from the tokens to the logits, falling evenly, in multiples of 8."""
    fall = (width / (2 * classes)) ** (1 / stages)
    between = [width / fall ** (stage + 1) for stage in range(stages)]
    rounded = [int(max(8, round((value + 1e-6) / 8) * 8)) for value in between]
    return [width, *rounded[:-1], classes]
