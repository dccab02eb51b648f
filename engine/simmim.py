"""SimMIM: the encoder sees every token, hidden ones replaced by a mask token; one linear head."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mim3d.dataio.batch import Batch
from mim3d.engine.methods import LossKind, MaskConfig, StepOutput
from mim3d.engine.trivial import paste_patches, trivial_losses
from mim3d.engine.vit import ViT3D, ViTConfig, initialise_linear
from mim3d.kernels.masked_loss import masked_voxel_loss
from mim3d.kernels.masking import PatchMasks


@dataclass(frozen=True)
class SimMIMConfig(MaskConfig):
    """SimMIM (Xie et al. 2022) on volumes."""

    loss: LossKind = "l1"
    """Distance between predicted and hidden voxels."""
    normalise_target: bool = False
    """Subtract each hidden patch's mean and divide by its deviation before comparing."""


class SimMIM(nn.Module):
    """Encoder over all tokens and a linear head over the hidden ones."""

    def __init__(self, config: SimMIMConfig, vit: ViTConfig, mask_seed: int = 0) -> None:
        super().__init__()
        self.config, self.vit_config, self.mask_seed = config, vit, mask_seed
        self.encoder = ViT3D(vit)
        self.mask_token = nn.Parameter(torch.zeros(vit.width))
        self.head = nn.Linear(vit.width, vit.channels * vit.patch_voxels)
        initialise_linear(self.head)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, batch: Batch, share: float = 1.0, measure: bool = False) -> StepOutput:
        """Loss over the hidden voxels of `batch.image` (b, c, z, y, x); see `MAE.forward`."""
        masks = self.config.draw(self.mask_seed, batch, self.vit_config)
        predicted = self.predict(batch.image, masks)
        loss = masked_voxel_loss(
            predicted,
            batch.image,
            masks.masked_ids,
            self.vit_config.patch_size,
            kind=self.config.loss,
            normalise_target=self.config.normalise_target,
            denominator=predicted.numel() / share,
        )
        metrics: dict[str, Tensor] = {}
        if measure:
            metrics = trivial_losses(
                batch.image, masks, self.vit_config, self.config.loss, self.config.normalise_target
            )
        return StepOutput(loss, metrics)

    def predict(self, volume: Tensor, masks: PatchMasks) -> Tensor:
        """Voxels (b, m, c*p) of the hidden patches, in the order of `masked_ids`."""
        rows = self.encoder.all_rows(volume)
        tokens = self.encoder.patch_embed(rows)
        tokens = torch.where(masks.masked[..., None], self.mask_token.to(tokens.dtype), tokens)
        tokens = self.encoder.encode(tokens + self.encoder.positions().to(tokens.dtype))
        index = masks.masked_ids[..., None].expand(-1, -1, tokens.shape[-1])
        return self.head(tokens.gather(1, index))

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Crops with hidden patches emptied and painted: two (b, c, z, y, x) float32 volumes."""
        masks = self.config.draw(self.mask_seed, batch, self.vit_config)
        predicted = self.predict(batch.image, masks).float()
        return paste_patches(
            batch.image, predicted, masks, self.vit_config, self.config.normalise_target
        )
