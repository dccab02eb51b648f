from .assemble import assemble_crops
from .masked_loss import masked_channel_losses, masked_voxel_loss
from .masking import patch_masks
from .nt_xent import nt_xent
from .patch_rows import gather_patch_rows

__all__ = [
    "assemble_crops",
    "gather_patch_rows",
    "masked_channel_losses",
    "masked_voxel_loss",
    "nt_xent",
    "patch_masks",
]
