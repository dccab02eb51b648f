"""Values that a crop's forward pass keeps for backward, by method and encoder, for a plan.

With recomputation a block keeps its input, and one block at a time all the rest.
"""

from mim3d.engine.models.config import MAEConfig, MethodConfig, ViTConfig, n_decoded
from mim3d.engine.models.registry import EncoderShape
from mim3d.engine.models.resenc.flops import activation_values as unet_values
from mim3d.engine.models.swin import swin_stages
from mim3d.kernels.masking import n_visible

ACTIVATION_WIDTHS = 17.0
"""Token widths that a block keeps for backward at mlp_ratio 4: its input, both norms' outputs,
qkv (3), attention's output twice, the middle residual, and the MLP's hidden values twice (8)."""
SWIN_TOKEN_WIDTHS, SWIN_WINDOW_WIDTHS = 11.0, 5.0
"""The same of MONAI's Swin blocks: widths a token, and widths a token of a padded window."""
Stack = tuple[int, int, float]
"""Blocks, tokens, and values that a block keeps of a token."""


def block_widths(vit: ViTConfig) -> float:
    """ACTIVATION_WIDTHS at the encoder's own mlp_ratio.

    A gated MLP keeps five hidden values (gate, its bend, value, product, normed), and its blocks
    five widths more: turned queries and keys, the inner norm's output, and two scaled branches.
    """
    if vit.mlp_layers == 3:
        return ACTIVATION_WIDTHS - 8 + 5 + 5 * vit.mlp_ratio
    return ACTIVATION_WIDTHS - 8 + 2 * vit.mlp_ratio


def mae_values(method: MAEConfig, shape: EncoderShape, recompute: bool) -> float:
    """MAE: an encoder over visible patches, a decoder over all, or a share of the hidden."""
    vit = shape.vit
    visible = n_visible(vit.n_patches, method.mask_ratio)
    hidden = n_decoded(vit.n_patches - visible, method.decode_fraction)
    stacks: list[Stack] = [
        (vit.depth, visible, vit.width * block_widths(vit)),
        (method.decoder_depth, visible + hidden, method.decoder_width * ACTIVATION_WIDTHS),
    ]
    ends = visible * vit.row_width + hidden * vit.channels * vit.patch_voxels
    return kept(stacks, block_widths(vit), recompute) + ends


def plain_values(method: MethodConfig, shape: EncoderShape, recompute: bool) -> float:
    """An encoder over every patch of every view; also of a plugin's method, which does not tell."""
    vit = shape.vit
    tokens = method.views * vit.n_patches
    stacks: list[Stack] = [(vit.depth, tokens, vit.width * block_widths(vit))]
    return kept(stacks, block_widths(vit), recompute) + tokens * vit.row_width


def kept(stacks: list[Stack], widths: float, recompute: bool) -> float:
    """Values of stacks of blocks, whose inputs are one part in `widths`."""
    if not recompute:
        return sum(depth * tokens * values for depth, tokens, values in stacks)
    inputs = sum(depth * tokens * values / widths for depth, tokens, values in stacks)
    return inputs + max(tokens * values for _, tokens, values in stacks)


def resenc_values(method: MethodConfig, shape: EncoderShape, recompute: bool) -> float:
    """A U-Net's, by view."""
    return method.views * unet_values(shape.backbone, shape.vit, recompute)


def swin_values(method: MethodConfig, shape: EncoderShape, recompute: bool) -> float:
    """A Swin encoder's: windows' attention matrices are kept too, as MONAI makes them.

    With recomputation MONAI keeps two inputs a block and the stage's mask of shifted windows.
    """
    total, largest = 0.0, 0.0
    stages = swin_stages(shape.backbone, shape.vit)
    for stage in stages:
        block = SWIN_TOKEN_WIDTHS * stage.tokens * stage.width
        block += SWIN_WINDOW_WIDTHS * stage.padded * stage.width
        block += stage.padded * stage.heads * stage.window
        if recompute:
            total += 2 * stage.depth * stage.tokens * stage.width + stage.padded * stage.window
        else:
            total += stage.depth * block
        total += 2 * stage.tokens * stage.width  # of the merging
        largest = max(largest, block)
    z, y, x = shape.vit.crop_size
    total += z * y * x * shape.vit.channels + stages[0].tokens * stages[0].width
    if recompute:
        total += largest
    return total * method.views
