"""Masked autoencoder: the encoder sees visible patches only, a light decoder paints the rest."""

from abc import abstractmethod

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


class TokenMAE(MaskedMethod[MAEConfig]):
    """Encoder over visible patches, mask tokens, decoder, linear head over hidden patches.

    A kind builds its modules, draws their weights, and says where its decoder's patches stand
    (`positions`) and how its blocks `attend`.
    """

    def __init__(
        self, config: MAEConfig, mask_seed: int, encoder: ViT3D, embed: nn.Module,
        blocks: nn.ModuleList, norm: nn.LayerNorm,
    ) -> None:  # fmt: skip
        vit, width = encoder.config, config.decoder_width
        super().__init__(config, vit, mask_seed)
        self.encoder, self.decoder_embed = encoder, embed
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.decoder_blocks, self.decoder_norm = blocks, norm
        self.head = nn.Linear(width, vit.channels * vit.patch_voxels)

    @abstractmethod
    def positions(self) -> Tensor:
        """Positions (n, decoder_width) of all patches in the decoder."""

    @abstractmethod
    def attend(self, tokens: Tensor, masks: PatchMasks) -> Tensor:
        """The decoder's blocks over tokens (b, v + m, d), visible patches before hidden ones."""

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
        tokens = tokens_of(self.decoder_embed(latent), self.mask_token, self.positions(), masks)
        tokens = self.attend(tokens, masks)
        return self.head(self.decoder_norm(tokens[:, masks.visible_ids.shape[1] :]))


class MAE(TokenMAE):
    """MAE on a ViT: fixed positions, and a decoder of the encoder's kind of blocks."""

    decoder_positions: Tensor

    def __init__(self, config: MAEConfig, vit: ViTConfig, mask_seed: int = 0) -> None:
        width, heads = config.decoder_width, config.decoder_heads
        super().__init__(
            config,
            mask_seed,
            ViT3D(vit),
            nn.Linear(vit.width, width),
            nn.ModuleList(Block(width, heads, 4.0) for _ in range(config.decoder_depth)),
            nn.LayerNorm(width),
        )
        table = sincos_positions(vit.grid, width)
        self.register_buffer("decoder_positions", table, persistent=False)
        for part in (self.decoder_embed, self.decoder_blocks, self.head):
            part.apply(initialise_linear)
        nn.init.normal_(self.mask_token, std=0.02)

    def positions(self) -> Tensor:
        """Fixed ones."""
        return self.decoder_positions

    def attend(self, tokens: Tensor, masks: PatchMasks) -> Tensor:
        """Blocks that do not ask where a token stands."""
        for block in self.decoder_blocks:
            tokens = block(tokens)
        return tokens
