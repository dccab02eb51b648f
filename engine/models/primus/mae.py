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
from mim3d.engine.models.mae import tokens_of
from mim3d.engine.models.masked import MaskedMethod
from mim3d.engine.models.primus.blocks import NORM_EPS, PrimusBlock
from mim3d.engine.models.primus.config import PrimusConfig
from mim3d.engine.models.primus.encoder import Primus3D, drop_rates, initialise_blocks
from mim3d.engine.models.primus.rotary import rotary_table, turns_of
from mim3d.engine.models.vit import initialise_linear
from mim3d.kernels.masking import PatchMasks
from mim3d.kernels.patch_rows import gather_patch_rows


class PrimusMAE(MaskedMethod[MAEConfig]):
    """Encoder over visible patches, mask tokens, rotary decoder, linear head over hidden ones."""

    decoder_rotary: Tensor

    def __init__(self, config: MAEConfig, vit: PrimusConfig, mask_seed: int = 0) -> None:
        super().__init__(config, vit, mask_seed)
        width = config.decoder_width
        self.encoder = Primus3D(vit)
        same = width == vit.width
        self.decoder_embed = nn.Identity() if same else nn.Linear(vit.width, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(vit.n_patches, width))
        table = rotary_table(vit.grid, head_width(config))
        self.register_buffer("decoder_rotary", table, persistent=False)
        self.decoder_blocks = decoder_blocks(config, vit)
        self.decoder_norm = nn.LayerNorm(width, NORM_EPS)
        self.head = nn.Linear(width, vit.channels * vit.patch_voxels)
        for part in (self.decoder_embed, self.head):
            part.apply(initialise_linear)
        nn.init.normal_(self.mask_token, std=1e-6)
        nn.init.trunc_normal_(self.decoder_pos_embed, std=0.02)

    def predict(self, volume: Tensor, masks: PatchMasks) -> Tensor:
        """Voxels (b, m, c*p) of the hidden patches, in the order of `masked_ids`."""
        rows = gather_patch_rows(
            volume,
            masks.visible_ids,
            self.vit_config.patch_size,
            out_dtype=self.encoder.patch_embed.weight.dtype,
        )
        return self.decode(self.encoder.forward_rows(rows, masks.visible_ids), masks)

    def decode(self, latent: Tensor, masks: PatchMasks) -> Tensor:
        """Hidden voxels (b, m, c*p) from visible tokens (b, v, d); tokens stay shuffled."""
        tokens = tokens_of(
            self.decoder_embed(latent), self.mask_token, self.decoder_pos_embed, masks
        )
        ids = torch.cat([masks.visible_ids, masks.masked_ids], dim=1)
        turns = turns_of(self.decoder_rotary, ids, 0)
        for block in self.decoder_blocks:
            tokens = block(tokens, turns)
        return self.head(self.decoder_norm(tokens[:, masks.visible_ids.shape[1] :]))


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
    """Blocks like the encoder's, of the decoder's width, without registers."""
    shape = replace(
        vit,
        width=config.decoder_width,
        depth=max(config.decoder_depth, 1),
        heads=config.decoder_heads,
        registers=0,
    )
    rates = drop_rates(shape)[: config.decoder_depth]
    blocks = nn.ModuleList(PrimusBlock(shape, rate) for rate in rates)
    initialise_blocks(blocks)
    return blocks
