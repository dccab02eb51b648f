"""MONAI's Swin encoder in the ViT's place, for SimMIM and SimCLR as the paper has them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mim3d.engine.errors import ConfigError
from mim3d.engine.models.config import SimMIMConfig, SwinConfig, ViTConfig
from mim3d.engine.models.masked import MaskedMethod
from mim3d.engine.models.vit import initialise_linear
from mim3d.kernels.masking import PatchMasks

STRIDE = 32
"""Voxels of the deepest feature map's cell: patches of 2, then four mergings."""


@dataclass(frozen=True)
class SwinStage:
    """One of the four stages on a crop: what FLOPs and memory are counted from."""

    depth: int
    heads: int
    width: int
    tokens: int
    padded: int
    """Tokens once windows that overhang the grid are padded."""
    window: int
    """Tokens of a window."""
    merged: int
    """Tokens after the merging that ends the stage."""


def swin_stages(swin: SwinConfig, vit: ViTConfig) -> list[SwinStage]:
    """The stages of a Swin encoder on `vit.crop_size`."""
    sizes, width = [size // 2 for size in vit.crop_size], swin.feature_size
    stages: list[SwinStage] = []
    for depth, heads in zip(swin.depths, swin.heads, strict=True):
        edges = [min(swin.window, size) for size in sizes]
        covered = [-(-size // edge) * edge for size, edge in zip(sizes, edges, strict=True)]
        halved = [-(-size // 2) for size in sizes]
        counts = (math.prod(axis) for axis in (sizes, covered, edges, halved))
        stages.append(SwinStage(depth, heads, width, *counts))
        sizes, width = halved, width * 2
    return stages


class SwinEncoder(nn.Module):
    """Volume (b, c, z, y, x) to tokens (b, n, 16 * feature_size), one per 32^3 voxels."""

    def __init__(self, config: SwinConfig, vit: ViTConfig) -> None:
        super().__init__()
        from monai.networks.nets.swin_unetr import SwinTransformer

        for axis, size in zip("zyx", vit.crop_size, strict=True):
            if size % STRIDE:
                raise ConfigError(
                    f"vit.crop_size {vit.crop_size} must be a multiple of {STRIDE} on axis {axis} "
                    "for Swin: four mergings halve it"
                )
        self.config, self.vit_config = config, vit
        self.swin = SwinTransformer(
            in_chans=vit.channels,
            embed_dim=config.feature_size,
            window_size=(config.window,) * 3,
            patch_size=(2, 2, 2),
            depths=config.depths,
            num_heads=config.heads,
        )

    def forward(self, volume: Tensor) -> Tensor:
        """Tokens of the deepest map, in C order."""
        return self.deepest(volume).flatten(2).transpose(1, 2)

    def deepest(
        self, volume: Tensor, masked: Tensor | None = None, mask_token: Tensor | None = None
    ) -> Tensor:
        """Deepest map (b, d, z/32, y/32, x/32), normed; see SwinTransformer.forward.

        Tokens under `masked` (b, z, y, x) on the grid of 2^3 patches become `mask_token`.
        """
        net = self.swin
        tokens = net.patch_embed(volume.to(net.patch_embed.proj.weight.dtype))
        if masked is not None and mask_token is not None:
            token = mask_token.to(tokens.dtype)[:, None, None, None]
            tokens = torch.where(masked[:, None], token, tokens)
        for stage in (net.layers1, net.layers2, net.layers3, net.layers4):
            tokens = stage[0](tokens.contiguous())
        return net.proj_out(tokens, True)


class SwinSimMIM(MaskedMethod[SimMIMConfig]):
    """SimMIM on Swin: mask tokens before the first stage, one linear head on the deepest map."""

    def __init__(
        self, config: SimMIMConfig, swin: SwinConfig, vit: ViTConfig, mask_seed: int = 0
    ) -> None:
        super().__init__(config, vit, mask_seed)
        self.encoder = SwinEncoder(swin, vit)
        self.mask_token = nn.Parameter(torch.zeros(swin.feature_size))
        self.head = nn.Linear(swin.width, vit.channels * STRIDE**3)
        initialise_linear(self.head)
        nn.init.normal_(self.mask_token, std=0.02)

    def predict(self, volume: Tensor, masks: PatchMasks) -> Tensor:
        """Every voxel (b, c, z, y, x), painted from the deepest map."""
        vit = self.vit_config
        b, c = volume.shape[:2]
        masked = masks.masked.reshape(b, *vit.grid)
        for axis, patch in enumerate(vit.patch_size, start=1):
            masked = masked.repeat_interleave(patch // 2, dim=axis)
        deepest = self.encoder.deepest(volume, masked, self.mask_token)
        z, y, x = deepest.shape[2:]
        cells = self.head(deepest.permute(0, 2, 3, 4, 1))
        tiles = cells.reshape(b, z, y, x, c, STRIDE, STRIDE, STRIDE)
        return tiles.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(volume.shape)
