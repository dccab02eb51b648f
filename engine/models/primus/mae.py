"""Masked autoencoder of Primus: encoder over visible patches, a shallow Primus as decoder.

The decoder is that of nnssl's EvaMAE, of rotary blocks over all places with learned positions of
its own, but for its end: a linear layer per token in the place of transposed convolutions, whose
first kernels are as wide as a patch in any case.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from mim3d.engine.errors import ConfigError
from mim3d.engine.models.config import MAEConfig
from mim3d.engine.models.mae import TokenMAE
from mim3d.engine.models.primus.blocks import NORM_EPS, PrimusBlock
from mim3d.engine.models.primus.config import PrimusConfig
from mim3d.engine.models.primus.encoder import Primus3D, initialise_blocks
from mim3d.engine.models.primus.rotary import rotary_table, turns_of
from mim3d.engine.models.vit import initialise_linear, set_drop_path
from mim3d.kernels.masking import PatchMasks


class PrimusMAE(TokenMAE):
    """MAE on a Primus: learned positions and rotary ones, and a decoder of its kind of blocks."""

    decoder_rotary: Tensor

    def __init__(self, config: MAEConfig, vit: PrimusConfig, mask_seed: int = 0) -> None:
        width = config.decoder_width
        table = rotary_table(vit.grid, head_width(config))
        super().__init__(
            config,
            mask_seed,
            Primus3D(vit),
            nn.Identity() if width == vit.width else nn.Linear(vit.width, width),
            decoder_blocks(config, vit),
            nn.LayerNorm(width, NORM_EPS),
        )
        self.register_buffer("decoder_rotary", table, persistent=False)
        self.decoder_pos_embed = nn.Parameter(torch.zeros(vit.n_patches, width))
        for part in (self.decoder_embed, self.head):
            part.apply(initialise_linear)
        nn.init.normal_(self.mask_token, std=1e-6)
        nn.init.trunc_normal_(self.decoder_pos_embed, std=0.02)

    def positions(self) -> Tensor:
        """Learned ones."""
        return self.decoder_pos_embed

    def attend(self, tokens: Tensor, masks: PatchMasks) -> Tensor:
        """Blocks that are told where each token stands."""
        ids = torch.cat([masks.visible_ids, masks.masked_ids], dim=1)
        turns = turns_of(self.decoder_rotary, ids, 0)
        for block in self.decoder_blocks:
            tokens = block(tokens, turns)
        return tokens


def head_width(config: MAEConfig) -> int:
    """Features of a decoder head, which rotary positions must be able to turn."""
    found = config.decoder_width // config.decoder_heads
    if found % 6:
        raise ConfigError(
            f"method.decoder_width {config.decoder_width} over method.decoder_heads "
            f"{config.decoder_heads} gives heads of {found} features, and Primus turns them by "
            f"multiples of 6: set method.decoder_width to a multiple of {6 * config.decoder_heads}"
        )
    return found


def decoder_blocks(config: MAEConfig, vit: PrimusConfig) -> nn.ModuleList:
    """Blocks like the encoder's, of the decoder's width."""
    shape = replace(vit, width=config.decoder_width, heads=config.decoder_heads)
    blocks = nn.ModuleList(PrimusBlock(shape) for _ in range(config.decoder_depth))
    set_drop_path(blocks, vit.drop_path)
    initialise_blocks(blocks)
    return blocks
