"""The masks of a batch, drawn as a `MaskConfig` says."""

from mim3d.dataio.loader.batch import Batch
from mim3d.engine.models.config import MaskConfig, ViTConfig
from mim3d.kernels.masking import PatchMasks, n_visible, patch_masks


def draw_masks(config: MaskConfig, seed: int, batch: Batch, vit: ViTConfig) -> PatchMasks:
    """Masks of the batch's crops, by global sample index: the same on any device and rank."""
    return patch_masks(
        seed,
        batch.sample.to(batch.image.device, non_blocking=True),
        vit.n_patches,
        n_visible(vit.n_patches, config.mask_ratio),
        kind=config.mask_kind,
        grid=vit.grid,
        unit=config.mask_unit,
    )
