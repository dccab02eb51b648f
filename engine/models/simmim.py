"""SimMIM: the encoder sees every token, hidden ones replaced by a mask token; one linear head."""

import torch
from torch import Tensor, nn

from mim3d.engine.models.config import SimMIMConfig, ViTConfig
from mim3d.engine.models.masked import MaskedMethod
from mim3d.engine.models.registry import make_encoder
from mim3d.engine.models.vit import initialise_linear
from mim3d.kernels.masking import PatchMasks


class SimMIM(MaskedMethod[SimMIMConfig]):
    """Encoder over all tokens and a linear head over the hidden ones."""

    def __init__(self, config: SimMIMConfig, vit: ViTConfig, mask_seed: int = 0) -> None:
        super().__init__(config, vit, mask_seed)
        self.encoder = make_encoder(vit)
        self.mask_token = nn.Parameter(torch.zeros(vit.width))
        self.head = nn.Linear(vit.width, vit.channels * vit.patch_voxels)
        initialise_linear(self.head)
        nn.init.normal_(self.mask_token, std=0.02)

    def predict(self, volume: Tensor, masks: PatchMasks) -> Tensor:
        """Voxels (b, m, c*p) of the hidden patches, in the order of `masked_ids`."""
        rows = self.encoder.all_rows(volume)
        tokens = self.encoder.patch_embed(rows)
        tokens = torch.where(masks.masked[..., None], self.mask_token.to(tokens.dtype), tokens)
        tokens = self.encoder.encode(tokens + self.encoder.positions().to(tokens.dtype))
        index = masks.masked_ids[..., None].expand(-1, -1, tokens.shape[-1])
        return self.head(tokens.gather(1, index))
