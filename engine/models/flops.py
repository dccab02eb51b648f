"""Floating-point operations of a training crop, mask-aware, and the peaks to hold them against.

A multiply-add counts as two. Training counts the forward pass, the gradient of every activation
and of every weight: three times the forward pass, except the patch embedding, whose input needs
no gradient. Recomputed activations do not count: they are not work the model asked for.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

from mim3d.dataio.registry import resolved
from mim3d.engine.models.config import (
    MAEConfig,
    MethodConfig,
    SimCLRConfig,
    SimMIMConfig,
    SwinConfig,
    ViTConfig,
    n_decoded,
)
from mim3d.engine.models.registry import ENCODERS, EncoderShape, way_of
from mim3d.engine.models.resenc.flops import decoder_flops
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


def crop_flops(method: MethodConfig, vit: ViTConfig, backbone: Any = None) -> CropFlops:
    """FLOPs of pretraining on one crop; a method's two views count as one crop.

    `backbone` is the configuration of an encoder in the ViT's place, such as a SwinConfig.
    """
    shape = EncoderShape(vit, backbone)
    return resolved(way_of(method, shape).flops)(method, shape)


def run_flops(method: MethodConfig, vit: ViTConfig, backbone: Any = None) -> float:
    """Training FLOPs of one crop for whichever encoder a run has."""
    return crop_flops(method, vit, backbone).training


def trained(embed: float, rest: float) -> CropFlops:
    """Both figures from the forward pass of the patch embedding, and of all the rest."""
    return CropFlops(forward=embed + rest, training=2 * embed + 3 * rest)


def encoder_parts(shape: EncoderShape) -> tuple[float, float]:
    """Forward pass of an encoder over every patch of a crop: its patch embedding, and the rest."""
    return resolved(ENCODERS[shape.kind].flops)(*shape.parts)


def mae_flops(method: MAEConfig, shape: EncoderShape) -> CropFlops:
    """MAE: the encoder over visible patches, the decoder over all, or a share of the hidden."""
    vit, width = shape.vit, method.decoder_width
    visible = n_visible(vit.n_patches, method.mask_ratio)
    decoded = n_decoded(vit.n_patches - visible, method.decode_fraction)
    rest = (
        vit.depth * vit_block_flops(visible, vit)
        + linear_flops(visible, vit.width, width)
        + method.decoder_depth * block_flops(visible + decoded, width, 4.0)
        + linear_flops(decoded, width, vit.channels * vit.patch_voxels)
    )
    return trained(linear_flops(visible, vit.row_width, vit.width), rest)


def mae_resenc_flops(method: MAEConfig, shape: EncoderShape) -> CropFlops:
    """MAE on a U-Net: encoder and decoder over whole maps, whatever is hidden."""
    embed, rest = encoder_parts(shape)
    return trained(embed, rest + decoder_flops(shape.backbone, shape.vit, shape.vit.channels))


def simmim_flops(method: SimMIMConfig, shape: EncoderShape) -> CropFlops:
    """SimMIM: the encoder over all patches, a head over hidden ones, or over Swin's cells."""
    vit = shape.vit
    embed, rest = encoder_parts(shape)
    if shape.kind == "swin":
        cells = math.prod(vit.crop_size) // STRIDE**3
        head = linear_flops(cells, shape.width, vit.channels * STRIDE**3)
    else:
        hidden = vit.n_patches - n_visible(vit.n_patches, method.mask_ratio)
        head = linear_flops(hidden, vit.width, vit.channels * vit.patch_voxels)
    return trained(embed, rest + head)


def simclr_flops(method: SimCLRConfig, shape: EncoderShape) -> CropFlops:
    """SimCLR: encoder and projection of two views."""
    embed, rest = encoder_parts(shape)
    rest += linear_flops(1, shape.width, method.projection_hidden)
    rest += linear_flops(1, method.projection_hidden, method.projection_width)
    return trained(method.views * embed, method.views * rest)


def unknown_method_flops(method: MethodConfig, shape: EncoderShape) -> CropFlops:
    """A plugin's method that does not tell: its encoder alone, on every patch of every view."""
    embed, rest = encoder_parts(shape)
    return trained(method.views * embed, method.views * rest)


def vit_flops(vit: ViTConfig) -> tuple[float, float]:
    """Forward pass of a transformer: its patch embedding, and all the rest."""
    n = vit.n_patches
    return linear_flops(n, vit.row_width, vit.width), vit.depth * vit_block_flops(n, vit)


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


def encoder_flops(vit: ViTConfig, backbone: Any = None) -> CropFlops:
    """FLOPs of the encoder alone over every patch of a crop, as fine-tuning runs it."""
    return trained(*encoder_parts(EncoderShape(vit, backbone)))


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
