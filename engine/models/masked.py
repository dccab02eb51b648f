"""What MAE and SimMIM share: draw masks, ask for the hidden voxels, score exactly those."""

from abc import abstractmethod
from dataclasses import replace
from typing import Generic, TypeVar

import torch
from torch import Tensor

from mim3d.dataio.loader.batch import Batch
from mim3d.engine.models.config import MAEConfig, MaskConfig, ViTConfig, n_decoded
from mim3d.engine.models.masks import draw_masks
from mim3d.engine.models.objective import Objective, StepOutput
from mim3d.engine.models.trivial import paste_patches, per_channel, trivial_losses, voxel_rows
from mim3d.kernels.masked_loss import counted_share, masked_channel_losses
from mim3d.kernels.masking import PatchMasks

Config = TypeVar("Config", bound=MaskConfig)


class MaskedMethod(Objective, Generic[Config]):
    """A module that paints hidden patches; a method says how in `predict`."""

    def __init__(self, config: Config, vit: ViTConfig, mask_seed: int) -> None:
        super().__init__()
        self.config, self.vit_config, self.mask_seed = config, vit, mask_seed

    @abstractmethod
    def predict(self, volume: Tensor, masks: PatchMasks) -> Tensor:
        """Hidden voxels (b, m, c*p) in the order of `masked_ids`, or all, (b, c, z, y, x)."""

    def forward(self, batch: Batch, share: float = 1.0, measure: bool = False) -> StepOutput:
        """Loss over the hidden voxels of `batch.image` (b, c, z, y, x) that count.

        `share` is this micro-batch's part of the global batch. `measure` adds the losses of
        trivial predictors. The loss of each channel is told where there are several.
        """
        vit, config = self.vit_config, self.config
        masks = self.scored(batch)
        loss, parts = masked_channel_losses(
            self.predict(batch.image, masks),
            batch.image,
            masks.masked_ids,
            vit.patch_size,
            kind=config.loss,
            normalise_target=config.normalise_target,
            weight=batch.weight,
            denominator=masks.masked_ids.numel() * vit.channels * vit.patch_voxels / share,
        )
        metrics = per_channel("loss", parts, share)
        if measure:
            metrics |= self.baselines(batch)
        return StepOutput(loss, metrics, self.counted(batch, masks, share))

    @torch.no_grad()
    def counted(self, batch: Batch, masks: PatchMasks, share: float) -> Tensor | None:
        """What part of the global batch's hidden voxels counts and is in this micro-batch; None
        where nothing is ignored."""
        if batch.weight is not None:
            return share * counted_share(batch.weight, masks.masked_ids, self.vit_config.patch_size)
        return torch.full((), share, device=batch.image.device) if self.config.ignore else None

    def scored(self, batch: Batch) -> PatchMasks:
        """The masks, with those hidden patches alone that are decoded and scored.

        Hidden patches come in a random order, so the first of them are a sample without bias.
        """
        masks = draw_masks(self.config, self.mask_seed, batch, self.vit_config)
        fraction = self.config.decode_fraction if isinstance(self.config, MAEConfig) else 1.0
        if fraction == 1.0:
            return masks
        kept = n_decoded(masks.masked_ids.shape[1], fraction)
        return replace(masks, masked_ids=masks.masked_ids[:, :kept].contiguous())

    @torch.no_grad()
    def baselines(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of trivial predictors on the same hidden voxels; needs no weights."""
        vit, config = self.vit_config, self.config
        masks = self.scored(batch)
        return trivial_losses(
            batch.image, masks, vit, config.loss, config.normalise_target, batch.weight
        )

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Crops with hidden patches emptied and painted: two (b, c, z, y, x) float32 volumes."""
        vit = self.vit_config
        masks = draw_masks(self.config, self.mask_seed, batch, vit)
        painted = self.predict(batch.image, masks).float()
        if painted.dim() == 5:
            painted = voxel_rows(painted, masks.masked_ids, vit)
        normalised = self.config.normalise_target
        return paste_patches(batch.image, painted, masks, vit, normalised, batch.weight)
