"""Masked autoencoders on the U-Net, dense and sparse.

    dense    hidden voxels are zeros; the whole U-Net paints the crop (nnssl's BaseMAETrainer)
    sparse   the encoder sees visible voxels only, at every scale (Tian et al. 2023, SparK; nnssl's
             EfficientSpark3D): a learned vector a stage fills what its maps lack, and the decoder
             paints the crop from filled maps

Either way the loss is over the hidden voxels alone, and no skip carries one of them.
"""

import torch
from torch import Tensor, nn

from mim3d.engine.models.config import MAEConfig, ViTConfig
from mim3d.engine.models.masked import MaskedMethod
from mim3d.engine.models.resenc.config import ResEncConfig
from mim3d.engine.models.resenc.decoder import ResEncDecoder
from mim3d.engine.models.resenc.encoder import ResEncEncoder, coarser
from mim3d.kernels.masking import PatchMasks


class ResEncMAE(MaskedMethod[MAEConfig]):
    """The U-Net as a painter of hidden voxels."""

    def __init__(
        self, config: MAEConfig, resenc: ResEncConfig, vit: ViTConfig, mask_seed: int = 0
    ) -> None:
        super().__init__(config, vit, mask_seed)
        self.encoder = ResEncEncoder(resenc, vit)
        self.decoder = ResEncDecoder(resenc, vit.channels)
        self.mask_tokens = None
        if resenc.masking == "sparse":
            self.mask_tokens = nn.ParameterList(
                nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))
                for width in resenc.features
            )

    def predict(self, volume: Tensor, masks: PatchMasks) -> Tensor:
        """Every voxel (b, c, z, y, x), painted from the visible ones."""
        visible = visible_voxels(masks, self.vit_config)
        if self.mask_tokens is None:
            maps = self.encoder.maps(torch.where(visible[:, None], volume, 0.0))
        else:
            maps = self.fill(self.encoder.maps(volume, visible), visible)
        return self.decoder(maps).contiguous()

    def fill(self, maps: list[Tensor], visible: Tensor) -> list[Tensor]:
        """Maps with a stage's own vector where nothing was seen."""
        assert self.mask_tokens is not None
        seen: Tensor | None = visible
        filled: list[Tensor] = []
        for number, (features, token) in enumerate(zip(maps, self.mask_tokens, strict=True)):
            seen = coarser(seen) if number else seen
            assert seen is not None
            whole = token.to(features.dtype)[None, :, None, None, None]
            filled.append(torch.where(seen[:, None], features, whole))
        return filled


def visible_voxels(masks: PatchMasks, vit: ViTConfig) -> Tensor:
    """Which voxels (b, z, y, x) of a crop are not hidden."""
    found = ~masks.masked.unflatten(1, vit.grid)
    for axis, patch in enumerate(vit.patch_size, start=1):
        found = found.repeat_interleave(patch, dim=axis)
    return found
