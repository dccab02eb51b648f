"""The U-Net's decoder: from the encoder's maps, coarse to fine, to voxels."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from mim3d.engine.models.resenc.blocks import SLOPE, UpBlock
from mim3d.engine.models.resenc.config import ResEncConfig


class ResEncDecoder(nn.Module):
    """Maps of every stage, finest first, to logits or voxels (b, k, z, y, x).

    `seg_layers` has the reference's outputs of every stage, so that weights go over whole; only
    the finest is used and trained.
    """

    def __init__(self, config: ResEncConfig, outputs: int) -> None:
        super().__init__()
        widths = config.features[::-1]
        pairs = list(pairwise(widths))
        self.levels = nn.ModuleList(
            UpBlock(coarse, fine, config.decoder_convs) for coarse, fine in pairs
        )
        layers = [nn.Conv3d(fine, outputs, 1) for _, fine in pairs]
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight, a=SLOPE)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
            layer.requires_grad_(layer is layers[-1])
        self.seg_layers = nn.Sequential(*layers)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The finest output."""
        features = maps[-1]
        for level, skip in zip(self.levels, reversed(maps[:-1]), strict=True):
            features = level(features, skip)
        return self.seg_layers[-1](features)
