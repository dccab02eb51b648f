"""FLOPs of the residual-encoder U-Net on a crop, as torch's counter has them.

Convolutions alone count, a multiply-add as two; masking saves none, for they run over whole maps.
Training counts the forward pass three times but for the stem, whose input needs no gradient.
"""

import math

from mim3d.engine.arithmetic.config import Recompute
from mim3d.engine.models.config import ViTConfig
from mim3d.engine.models.resenc.config import ResEncConfig


def conv_flops(voxels: int, wide_in: int, wide_out: int, kernel: int = 3) -> float:
    """Forward pass of a convolution whose result has so many voxels."""
    return 2.0 * voxels * wide_in * wide_out * kernel**3


def stem_flops(config: ResEncConfig, vit: ViTConfig) -> float:
    """Forward pass of the first convolution."""
    return conv_flops(math.prod(vit.crop_size), vit.channels, config.features[0])


def encoder_rest_flops(config: ResEncConfig, vit: ViTConfig) -> float:
    """Forward pass of the encoder behind the stem."""
    total, wide_in = 0.0, config.features[0]
    for number, (width, blocks) in enumerate(zip(config.features, config.blocks, strict=True)):
        voxels = math.prod(vit.crop_size) // 8**number
        total += conv_flops(voxels, wide_in, width)
        total += (2 * blocks - 1) * conv_flops(voxels, width, width)
        if wide_in != width:
            total += conv_flops(voxels, wide_in, width, kernel=1)
        wide_in = width
    return total


def encoder_parts(config: ResEncConfig, vit: ViTConfig) -> tuple[float, float]:
    """Forward pass of the encoder: its stem, and all the rest."""
    return stem_flops(config, vit), encoder_rest_flops(config, vit)


def decoder_flops(config: ResEncConfig, vit: ViTConfig, outputs: int) -> float:
    """Forward pass of the decoder."""
    total = 0.0
    for number in reversed(range(config.stages - 1)):
        voxels, width = math.prod(vit.crop_size) // 8**number, config.features[number]
        total += 2.0 * voxels * config.features[number + 1] * width
        total += conv_flops(voxels, 2 * width, width)
        total += (config.decoder_convs - 1) * conv_flops(voxels, width, width)
    return total + conv_flops(math.prod(vit.crop_size), config.features[0], outputs, kernel=1)


def activation_values(config: ResEncConfig, vit: ViTConfig, recompute: Recompute) -> float:
    """Values that a crop's U-Net keeps for backward: each convolution's input and result.

    With recomputation the input of every block (selective: and each convolution's result), and the
    one block whole of which most is rebuilt.
    """
    voxels, rebuilt = math.prod(vit.crop_size), 0.0
    kept = 2.0 * voxels * config.features[0] + voxels * vit.channels
    for number, (width, blocks) in enumerate(zip(config.features, config.blocks, strict=True)):
        here = voxels / 8**number * width
        block = 5.0 * here  # input, two results, the first normed, the sum
        held = {"none": block, "selective": 3.0 * here, "full": here}[recompute]
        kept += held * blocks
        rebuilt = max(rebuilt, block - held)
    for number in range(config.stages - 1):
        here = voxels / 8**number * config.features[number]
        block = (3.0 + 2.0 * config.decoder_convs) * here  # doubled, joined (2), results
        results = (3.0 + config.decoder_convs) * here
        held = {"none": block, "selective": results, "full": 2.0 * here}[recompute]
        kept += held
        rebuilt = max(rebuilt, block - held)
    return kept + rebuilt
