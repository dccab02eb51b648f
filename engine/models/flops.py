"""Floating-point operations of a training crop, mask-aware, and the peaks to hold them against.

A multiply-add counts as two. Training counts the forward pass, the gradient of every activation
and of every weight: three times the forward pass, except the patch embedding, whose input needs
no gradient. Recomputed activations do not count: they are not work the model asked for.
"""

import re
from dataclasses import dataclass

from mim3d.engine.models.config import (
    MAEConfig,
    SimCLRConfig,
    SimMIMConfig,
    SwinConfig,
    ViTConfig,
)
from mim3d.engine.models.resenc.config import Backbone, ResEncConfig
from mim3d.engine.models.resenc.flops import decoder_flops, encoder_rest_flops, stem_flops
from mim3d.engine.models.swin import STRIDE, swin_stages
from mim3d.kernels.masking import n_visible

PEAK_BF16 = {
    "B200": 2.25e15,
    "GB200": 2.5e15,
    "GH200": 989.4e12,
    "H200": 989.4e12,
    "H200 NVL": 835.5e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835.5e12,
    "H100": 989.4e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "A10": 125e12,
    "A10G": 70e12,
    "L4": 121e12,
    "RTX 4090": 165.2e12,
    "RTX A6000": 154.8e12,
}
"""Dense bf16 tensor-core peak by whole words of the device's name, FLOP/s, from NVIDIA's sheets."""


@dataclass(frozen=True)
class CropFlops:
    """FLOPs of one crop: `forward` alone and a whole `training` step."""

    forward: float
    training: float


def crop_flops(method: MAEConfig | SimMIMConfig | SimCLRConfig, vit: ViTConfig) -> CropFlops:
    """FLOPs of pretraining on one crop; SimCLR's two views count as one crop."""
    n = vit.n_patches
    if isinstance(method, MAEConfig):
        visible = n_visible(n, method.mask_ratio)
        embed = linear_flops(visible, vit.row_width, vit.width)
        width = method.decoder_width
        rest = (
            vit.depth * vit_block_flops(visible, vit)
            + linear_flops(visible, vit.width, width)
            + method.decoder_depth * block_flops(n, width, 4.0)
            + linear_flops(n - visible, width, vit.channels * vit.patch_voxels)
        )
    elif isinstance(method, SimMIMConfig):
        hidden = n - n_visible(n, method.mask_ratio)
        embed = linear_flops(n, vit.row_width, vit.width)
        rest = vit.depth * vit_block_flops(n, vit)
        rest += linear_flops(hidden, vit.width, vit.channels * vit.patch_voxels)
    else:
        embed = 2 * linear_flops(n, vit.row_width, vit.width)
        rest = 2 * vit.depth * vit_block_flops(n, vit)
        rest += 2 * linear_flops(1, vit.width, method.projection_hidden)
        rest += 2 * linear_flops(1, method.projection_hidden, method.projection_width)
    return CropFlops(forward=embed + rest, training=2 * embed + 3 * rest)


def run_flops(
    method: MAEConfig | SimMIMConfig | SimCLRConfig,
    vit: ViTConfig,
    backbone: Backbone | None = None,
) -> float:
    """Training FLOPs of one crop for whichever encoder a run has."""
    if backbone is None:
        return crop_flops(method, vit).training
    if isinstance(backbone, ResEncConfig):
        return resenc_flops(method, backbone, vit)
    swin = backbone
    views = 2 if isinstance(method, SimCLRConfig) else 1
    embed, rest = swin_flops(swin, vit)
    cells = vit.crop_size[0] * vit.crop_size[1] * vit.crop_size[2] // STRIDE**3
    if isinstance(method, SimCLRConfig):
        rest += linear_flops(1, swin.width, method.projection_hidden)
        rest += linear_flops(1, method.projection_hidden, method.projection_width)
    else:
        rest += linear_flops(cells, swin.width, vit.channels * STRIDE**3)
    return views * (2 * embed + 3 * rest)


def resenc_flops(
    method: MAEConfig | SimMIMConfig | SimCLRConfig, resenc: ResEncConfig, vit: ViTConfig
) -> float:
    """Training FLOPs of one crop on a U-Net; of SimCLR both views of the encoder alone."""
    stem, rest = stem_flops(resenc, vit), encoder_rest_flops(resenc, vit)
    if not isinstance(method, SimCLRConfig):
        return 2 * stem + 3 * (rest + decoder_flops(resenc, vit, vit.channels))
    head = linear_flops(1, resenc.width, method.projection_hidden)
    head += linear_flops(1, method.projection_hidden, method.projection_width)
    return 2 * (2 * stem + 3 * (rest + head))


def swin_flops(swin: SwinConfig, vit: ViTConfig) -> tuple[float, float]:
    """Forward pass of a Swin encoder: its patch embedding, and all the rest.

    Windows that overhang the grid are padded, and the padding is computed too.
    """
    stages = swin_stages(swin, vit)
    embed = linear_flops(stages[0].tokens, 8 * vit.channels, swin.feature_size)
    rest = 0.0
    for stage in stages:
        width, padded = stage.width, stage.padded
        attention = linear_flops(padded, width, 4 * width) + 4.0 * padded * stage.window * width
        rest += stage.depth * (attention + 2 * linear_flops(stage.tokens, width, 4 * width))
        rest += linear_flops(stage.merged, 8 * width, 2 * width)
    return embed, rest


def encoder_flops(vit: ViTConfig, backbone: Backbone | None = None) -> CropFlops:
    """FLOPs of the encoder alone over every patch of a crop, as fine-tuning runs it."""
    if isinstance(backbone, ResEncConfig):
        embed, rest = stem_flops(backbone, vit), encoder_rest_flops(backbone, vit)
    elif backbone is None:
        embed = linear_flops(vit.n_patches, vit.row_width, vit.width)
        rest = vit.depth * vit_block_flops(vit.n_patches, vit)
    else:
        embed, rest = swin_flops(backbone, vit)
    return CropFlops(forward=embed + rest, training=2 * embed + 3 * rest)


def vit_block_flops(patches: int, vit: ViTConfig) -> float:
    """Forward pass of one block of an encoder that sees so many patches."""
    tokens = patches + vit.extra_tokens
    return block_flops(tokens, vit.width, vit.mlp_ratio, vit.mlp_layers)


def block_flops(tokens: int, width: int, mlp_ratio: float, mlp_layers: int = 2) -> float:
    """Forward pass of one block: qkv and projection, attention both ways, the MLP's layers."""
    attention = 4.0 * tokens * tokens * width
    dense = linear_flops(tokens, width, 4 * width)
    return attention + dense + mlp_layers * linear_flops(tokens, width, int(width * mlp_ratio))


def linear_flops(tokens: int, wide_in: int, wide_out: int) -> float:
    """Forward pass of a linear layer over `tokens` rows."""
    return 2.0 * tokens * wide_in * wide_out


def peak_bf16(device_name: str) -> float | None:
    """Dense bf16 peak of a device, FLOP/s; None where the data sheet is not known here.

    By whole words: an L40 is no L4, and a laptop's chip is not the desktop's of the same number.
    """
    if "Laptop" in device_name:
        return None
    for part in sorted(PEAK_BF16, key=len, reverse=True):
        if re.search(rf"\b{part}\b", device_name):
            return PEAK_BF16[part]
    return None
