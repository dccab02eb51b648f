"""How masked methods are configured: which patches are hidden, how painted ones are scored."""

from dataclasses import dataclass
from typing import Literal

from mim3d.dataio.loader.batch import Batch
from mim3d.engine.errors import ConfigError
from mim3d.engine.models.vit import ViTConfig
from mim3d.kernels.masking import PatchMasks, n_visible, patch_masks

LossKind = Literal["l1", "l2", "smooth_l1"]
MaskKind = Literal["random", "block", "grid"]


@dataclass(frozen=True)
class MaskConfig:
    """Which patches are hidden from the encoder, and how the painted ones are scored."""

    mask_ratio: float = 0.75
    """Share of patches that are hidden, in (0, 1)."""
    mask_kind: MaskKind = "random"
    """Independent patches, cubes of mask_unit patches (SimMIM), or a regular grid."""
    mask_unit: int = 1
    """Edge of a masked cube, or step of the grid, in patches, for mask_kind block and grid."""
    loss: LossKind = "l1"
    """Distance between predicted and hidden voxels."""
    normalise_target: bool = True
    """Subtract each hidden patch's mean and divide by its deviation before comparing."""

    def __post_init__(self) -> None:
        """Refuse ratios that hide nothing or all."""
        if not 0.0 < self.mask_ratio < 1.0:
            raise ConfigError(
                f"method.mask_ratio {self.mask_ratio} must lie between 0 and 1 (0.75 hides three"
                " patches of four)"
            )
        if self.mask_unit < 1:
            raise ConfigError(f"method.mask_unit {self.mask_unit} must be at least 1")
        if self.mask_kind == "grid" and self.mask_unit == 1:
            raise ConfigError(
                "method.mask_kind grid with method.mask_unit 1 is no grid but random patches: set "
                "mask_unit to 2 or more"
            )

    def draw(self, seed: int, batch: Batch, vit: ViTConfig) -> PatchMasks:
        """Masks of the batch's crops, by global sample index: the same on any device and rank."""
        return patch_masks(
            seed,
            batch.sample.to(batch.image.device, non_blocking=True),
            vit.n_patches,
            n_visible(vit.n_patches, self.mask_ratio),
            kind=self.mask_kind,
            grid=vit.grid,
            unit=self.mask_unit,
        )
