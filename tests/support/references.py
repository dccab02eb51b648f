"""dynamic_network_architectures, which the encoders are compared with, imported beside any torch.

It imports timm, which imports torchvision. The index's torchvision is built for CUDA: beside a
CPU build of torch its library does not load, and then its Python part fails for want of the
operators. Declared here by name, they are found; nothing that is tested calls one.
"""

import sys

import torch

OPERATORS = (
    *("nms", "qnms", "box_iou_rotated", "roi_align", "_roi_align_backward", "qroi_align"),
    *("ps_roi_align", "_ps_roi_align_backward", "roi_pool", "_roi_pool_backward"),
    *("ps_roi_pool", "_ps_roi_pool_backward", "deform_conv2d", "_deform_conv2d_backward"),
)
_declared: list[torch.library.Library] = []


def prepare_torchvision() -> None:
    """Make `import torchvision` work in this process, whichever torch is installed."""
    try:
        import torchvision  # pyright: ignore
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in OPERATORS:
            library.define(f"{name}(Tensor input) -> Tensor")
        _declared.append(library)
        import torchvision  # noqa: F401  # pyright: ignore
