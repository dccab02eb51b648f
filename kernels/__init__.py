"""Fused Triton operations for masked modelling of volumes, each beside its PyTorch reference.

Files in reading order, as a batch meets them:
    backend          which implementation runs, and why
    patch_grid       patch arithmetic, argument checks, the references' views
    addressing       where a patch's voxels lie in memory, for kernels
    assemble         crops from decoded chunks (assemble_kernel: the kernel; bit_planes: its join)
    resample         crops turned and zoomed within their volumes, from the boxes they lie in
    masking          which patches stay visible
    patch_rows       visible patches from the raw volume, ready for the embedding
    decoder_tokens   visible and mask tokens with their positions
    patch_moments    the normalised targets
    masked_loss      the masked-voxel loss (masked_loss_kernel: loss and gradient in one pass)
    gradient_scale   the incoming scalar, applied without a host sync
    masked_norm      a CNN's norm over visible voxels (masked_norm_kernel: its passes)
    nt_xent          the contrastive control's loss across ranks
    codegen          compile any of it for a GPU that is not there

A kernel file is ordered device functions, host launch, registration.
"""

if __name__ != "mim3d.kernels":
    raise ImportError(
        f"this package is mim3d.kernels but was imported as {__name__!r}. Import mim3d.kernels "
        "(pip install -e . in the repository's root), and keep the root off PYTHONPATH: a plain "
        "'kernels' would shadow Hugging Face's package of that name."
    )

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
