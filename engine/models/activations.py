"""Values that a crop's forward pass keeps for backward, by method and encoder, for a plan.

    recompute_costs(method, shape) -> {"none": ..., "selective": ..., "full": ...}

With recomputation a block keeps its input, or what products gave too, and one block at a time all
the rest.
"""

from dataclasses import dataclass
from typing import get_args

from mim3d.dataio.registry import resolved
from mim3d.engine.arithmetic.config import Recompute
from mim3d.engine.models.config import MAEConfig, MethodConfig, ViTConfig, n_decoded
from mim3d.engine.models.flops import block_flops, linear_flops
from mim3d.engine.models.registry import EncoderShape, way_of
from mim3d.engine.models.resenc.flops import activation_values as unet_values
from mim3d.engine.models.swin import swin_stages
from mim3d.kernels.masking import n_visible

ACTIVATION_WIDTHS = 17.0
"""Token widths that a block keeps for backward at mlp_ratio 4: its input, both norms' outputs,
qkv (3), attention's output twice, the middle residual, and the MLP's hidden values twice (8)."""
SWIN_TOKEN_WIDTHS, SWIN_WINDOW_WIDTHS = 11.0, 5.0
"""The same of MONAI's Swin blocks: widths a token, and widths a token of a padded window."""


@dataclass(frozen=True)
class Stack:
    """Blocks of one shape: how many, their tokens, features of a token, widths kept of each."""

    depth: int
    tokens: int
    width: int
    mlp_ratio: float = 4.0
    mlp_layers: int = 2
    widths: float = ACTIVATION_WIDTHS

    @property
    def products(self) -> float:
        """Widths that products and attention give: qkv, mix, projection, the MLP's layers."""
        return 3 + 1 + 1 + (self.mlp_layers - 1) * self.mlp_ratio + 1

    def kept(self, recompute: Recompute) -> float:
        """Values that all blocks keep between forward and backward."""
        widths = {"none": self.widths, "selective": 1.0 + self.products, "full": 1.0}[recompute]
        return self.depth * self.tokens * self.width * widths

    @property
    def block(self) -> float:
        """Values of one block, all of them."""
        return self.tokens * self.width * self.widths

    @property
    def flops_again(self) -> float:
        """Forward pass of all blocks but for the last product of each, which backward needs not."""
        last = linear_flops(self.tokens, int(self.width * self.mlp_ratio), self.width)
        block = block_flops(self.tokens, self.width, self.mlp_ratio, self.mlp_layers)
        return self.depth * (block - last)


@dataclass(frozen=True)
class RecomputeCost:
    """What a policy of `parallel.recompute` takes for one crop."""

    kept_values: float
    """Held at the end of the forward pass, with one block's as they are rebuilt."""
    rebuilt_values: float
    """Computed again in backward: each is written and read once more."""
    extra_flops: float
    """Of products that are computed again; of a U-Net and Swin at most."""


def recompute_costs(method: MethodConfig, shape: EncoderShape) -> dict[Recompute, RecomputeCost]:
    """Each policy's cost, the least arithmetic first; those that the encoder's blocks know."""
    way = way_of(method, shape)
    count, flops = resolved(way.activations), resolved(way.flops)(method, shape)
    everything = count(method, shape, "none")
    again = flops.training - 2.0 * flops.forward  # all but the embedding's
    if not shape.backbone:
        again = sum(stack.flops_again for stack in stacks_of(method, shape))
    costs: dict[Recompute, RecomputeCost] = {}
    for policy in get_args(Recompute):
        if policy == "selective" and shape.kind == "swin":
            continue  # MONAI's blocks rebuild all or nothing
        kept = count(method, shape, policy)
        extra = again if policy == "full" else 0.0
        costs[policy] = RecomputeCost(kept, max(everything - kept, 0.0), extra)
    return costs


def block_widths(vit: ViTConfig) -> float:
    """ACTIVATION_WIDTHS at the encoder's own mlp_ratio.

    A gated MLP keeps five hidden values (gate, its bend, value, product, normed), and its blocks
    five widths more: turned queries and keys, the inner norm's output, and two scaled branches.
    """
    if vit.mlp_layers == 3:
        return ACTIVATION_WIDTHS - 8 + 5 + 5 * vit.mlp_ratio
    return ACTIVATION_WIDTHS - 8 + 2 * vit.mlp_ratio


def encoder_stack(vit: ViTConfig, tokens: int) -> Stack:
    """The encoder's blocks over so many tokens."""
    return Stack(vit.depth, tokens, vit.width, vit.mlp_ratio, vit.mlp_layers, block_widths(vit))


def stacks_of(method: MethodConfig, shape: EncoderShape) -> list[Stack]:
    """Blocks of a transformer's run: MAE's two stacks, else the encoder over every patch."""
    vit = shape.vit
    if not isinstance(method, MAEConfig):
        return [encoder_stack(vit, method.views * vit.n_patches)]
    visible = n_visible(vit.n_patches, method.mask_ratio)
    tokens = visible + n_decoded(vit.n_patches - visible, method.decode_fraction)
    decoder = Stack(method.decoder_depth, tokens, method.decoder_width)
    return [encoder_stack(vit, visible), decoder]


def mae_values(method: MAEConfig, shape: EncoderShape, recompute: Recompute) -> float:
    """MAE: an encoder over visible patches, a decoder over all, or a share of the hidden."""
    vit = shape.vit
    visible = n_visible(vit.n_patches, method.mask_ratio)
    hidden = n_decoded(vit.n_patches - visible, method.decode_fraction)
    ends = visible * vit.row_width + hidden * vit.channels * vit.patch_voxels
    return kept(stacks_of(method, shape), recompute) + ends


def plain_values(method: MethodConfig, shape: EncoderShape, recompute: Recompute) -> float:
    """An encoder over every patch of every view; also of a plugin's method, which does not tell."""
    vit = shape.vit
    tokens = method.views * vit.n_patches
    return kept(stacks_of(method, shape), recompute) + tokens * vit.row_width


def kept(stacks: list[Stack], recompute: Recompute) -> float:
    """Values of stacks of blocks, and where some are rebuilt, of the largest block."""
    rebuilt = max(stack.block - stack.kept(recompute) / max(stack.depth, 1) for stack in stacks)
    return sum(stack.kept(recompute) for stack in stacks) + rebuilt


def resenc_values(method: MethodConfig, shape: EncoderShape, recompute: Recompute) -> float:
    """A U-Net's, by view."""
    return method.views * unet_values(shape.backbone, shape.vit, recompute)


def swin_values(method: MethodConfig, shape: EncoderShape, recompute: Recompute) -> float:
    """A Swin encoder's: windows' attention matrices are kept too, as MONAI makes them.

    With recomputation, which is of whole blocks, MONAI keeps two inputs a block and the stage's
    mask of shifted windows.
    """
    total, largest = 0.0, 0.0
    stages = swin_stages(shape.backbone, shape.vit)
    for stage in stages:
        block = SWIN_TOKEN_WIDTHS * stage.tokens * stage.width
        block += SWIN_WINDOW_WIDTHS * stage.padded * stage.width
        block += stage.padded * stage.heads * stage.window
        if recompute != "none":
            total += 2 * stage.depth * stage.tokens * stage.width + stage.padded * stage.window
        else:
            total += stage.depth * block
        total += 2 * stage.tokens * stage.width  # of the merging
        largest = max(largest, block)
    z, y, x = shape.vit.crop_size
    total += z * y * x * shape.vit.channels + stages[0].tokens * stages[0].width
    if recompute != "none":
        total += largest
    return total * method.views
