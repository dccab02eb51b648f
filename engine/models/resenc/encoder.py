"""The residual encoder: a volume to maps of falling resolution, over all voxels or visible ones."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from mim3d.engine.errors import ConfigError
from mim3d.engine.models.config import ViTConfig
from mim3d.engine.models.resenc.blocks import ConvNorm, ResidualBlock
from mim3d.engine.models.resenc.config import ResEncConfig


class Stage(nn.Module):
    """Residual blocks of one resolution, the first of which may halve the map."""

    def __init__(self, wide_in: int, wide_out: int, blocks: int, stride: int) -> None:
        super().__init__()
        first = ResidualBlock(wide_in, wide_out, stride)
        rest = (ResidualBlock(wide_out, wide_out) for _ in range(blocks - 1))
        self.blocks = nn.ModuleList([first, *rest])

    def forward(self, features: Tensor, visible: Tensor | None = None) -> Tensor:
        """One block after the other."""
        for block in self.blocks:
            features = block(features, visible)
        return features


class ResEncEncoder(nn.Module):
    """Volume (b, c, z, y, x) to tokens (b, n, width) of the deepest map; `maps` gives all maps."""

    def __init__(self, config: ResEncConfig, vit: ViTConfig) -> None:
        super().__init__()
        config.refuse_crop(vit)
        self.config, self.vit_config = config, vit
        widths = config.features
        self.stem = ConvNorm(vit.channels, widths[0])
        self.stages = nn.ModuleList(
            Stage(wide_in, wide_out, blocks, stride=2 if number else 1)
            for number, ((wide_in, wide_out), blocks) in enumerate(
                zip(pairwise((widths[0], *widths)), config.blocks, strict=True)
            )
        )

    def forward(self, volume: Tensor) -> Tensor:
        """Tokens of the deepest map, in C order."""
        return self.maps(volume)[-1].flatten(2).transpose(1, 2)

    def maps(self, volume: Tensor, visible: Tensor | None = None) -> list[Tensor]:
        """Maps of every stage, finest first; `visible` (b, z, y, x) bool of the voxels that exist.

        A cell of a coarse map exists where any of its voxels does. Maps are zero elsewhere, and
        no voxel that does not exist has a part in any number.
        """
        wanted = (self.vit_config.channels, *self.vit_config.crop_size)
        if tuple(volume.shape[1:]) != wanted:
            raise ConfigError(
                f"a volume of shape {tuple(volume.shape)} was given to an encoder for (b, "
                f"{', '.join(map(str, wanted))})"
            )
        if visible is not None:
            volume = torch.where(visible[:, None], volume, 0.0)
        volume = volume.to(self.stem.conv.weight.dtype, memory_format=torch.channels_last_3d)
        features = self.stem(volume, visible)
        found: list[Tensor] = []
        for number, stage in enumerate(self.stages):
            if number:
                visible = coarser(visible)
            features = stage(features, visible)
            found.append(features)
        return found


def coarser(visible: Tensor | None) -> Tensor | None:
    """Which cells of a map half as fine hold anything visible, (b, z/2, y/2, x/2)."""
    if visible is None:
        return None
    return functional.max_pool3d(visible.float(), 2, 2).bool()
