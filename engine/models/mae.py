"""Masked autoencoder: the encoder sees visible patches only, a light decoder paints the rest."""

import torch
from torch import Tensor, nn

from mim3d.engine.models.config import MAEConfig, ViTConfig
from mim3d.engine.models.masked import MaskedMethod
from mim3d.engine.models.vit import Block, ViT3D, initialise_linear, sincos_positions
from mim3d.kernels.decoder_tokens import decoder_tokens
from mim3d.kernels.masking import PatchMasks
from mim3d.kernels.patch_rows import gather_patch_rows


def tokens_of(visible: Tensor, mask_token: Tensor, positions: Tensor, masks: PatchMasks) -> Tensor:
    """The decoder's input (b, v + m, d): visible tokens, then mask tokens of hidden patches.

    Where not all hidden patches are decoded they are gathered; the kernel takes all.
    """
    b, v, d = visible.shape
    ids, hidden = (masks.visible_ids, masks.masked_ids), masks.masked_ids.shape[1]
    if v + hidden == len(positions):
        return decoder_tokens(visible, mask_token, positions, *ids)
    blank = mask_token.to(visible.dtype).expand(b, hidden, d)
    return torch.cat([visible, blank], dim=1) + positions[torch.cat(ids, dim=1)].to(visible.dtype)


class MAE(MaskedMethod[MAEConfig]):
    """Encoder over visible patches, mask tokens, decoder, linear head over hidden patches."""

    decoder_positions: Tensor

    def __init__(self, config: MAEConfig, vit: ViTConfig, mask_seed: int = 0) -> None:
        super().__init__(config, vit, mask_seed)
        self.encoder = ViT3D(vit)
        self.decoder_embed = nn.Linear(vit.width, config.decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(config.decoder_width))
        table = sincos_positions(vit.grid, config.decoder_width)
        self.register_buffer("decoder_positions", table, persistent=False)
        self.decoder_blocks = nn.ModuleList(
            Block(config.decoder_width, config.decoder_heads, 4.0)
            for _ in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(config.decoder_width)
        self.head = nn.Linear(config.decoder_width, vit.channels * vit.patch_voxels)
        for part in (self.decoder_embed, self.decoder_blocks, self.head):
            part.apply(initialise_linear)
        nn.init.normal_(self.mask_token, std=0.02)

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
        """Hidden voxels (b, m, c*p) from visible tokens (b, v, d).

        Tokens stay in shuffled order, visible before hidden: attention does not mind, and the
        hidden ones are then the tail that goes through the head.
        """
        tokens = tokens_of(
            self.decoder_embed(latent), self.mask_token, self.decoder_positions, masks
        )
        for block in self.decoder_blocks:
            tokens = block(tokens)
        return self.head(self.decoder_norm(tokens[:, masks.visible_ids.shape[1] :]))
