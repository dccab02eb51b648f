"""MAE as others write it, around the same encoder, decoder and weights: the yardsticks of a step.

    EagerMAE   facebookresearch/mae at efb2a806, models_mae.py, with a third axis
    MedMIM     chenz53/MIM-Med3D at aea62436, code/models/mae.py and
               code/experiments/ssl/mae_pretrain_main.py
    NnsslMAE   MIC-DKFZ/nnssl at 70448644, evaMAE_module.py, BaseEvaMAETrainer.py, mse_loss.py

Each does what its source does between volume and loss, step by step, its own loss included; none
is a copy. Blocks, widths and the last norm of the encoder are ours in all of them. nnssl paints
voxels by several transposed convolutions; here it is one, so its step is a lower bound.
"""

import torch
from torch import Tensor
from torch.nn import functional

from mim3d.bench.kernels.recipes import (
    mae_embed,
    mae_masks,
    mae_patchify,
    mae_tokens,
    medmim_masks,
    medmim_tokens,
    nnssl_loss,
    nnssl_tokens,
)
from mim3d.dataio.loader.batch import Batch
from mim3d.engine.models.mae import MAE
from mim3d.engine.models.objective import StepOutput
from mim3d.kernels.masking import n_visible

LOSSES = {
    "l1": functional.l1_loss,
    "l2": functional.mse_loss,
    "smooth_l1": functional.smooth_l1_loss,
}


class PeerMAE(MAE):
    """The same parameters under the same names; a peer overrides `forward`."""

    def visible(self) -> int:
        """How many patches of a crop the encoder sees."""
        return n_visible(self.vit_config.n_patches, self.config.mask_ratio)

    def embedding(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weight (d, c*p), bias and positions (n, d) of the patch embedding."""
        embed, vit = self.encoder.patch_embed, self.vit_config
        weight = embed.weight[:, : vit.channels * vit.patch_voxels]
        return weight, embed.bias, self.encoder.positions().to(weight.dtype)

    def embed_visible(self, volume: Tensor, ids: Tensor) -> Tensor:
        """Tokens (b, v, d) of `ids`: all patches embedded by a convolution, some kept."""
        return mae_embed(volume, ids, self.vit_config.patch_size, *self.embedding())

    def run_decoder(self, tokens: Tensor) -> Tensor:
        """Decoder blocks and norm, (b, n, d)."""
        for block in self.decoder_blocks:
            tokens = block(tokens)
        return self.decoder_norm(tokens)


class EagerMAE(PeerMAE):
    """All patches embedded, tokens put back in order, all painted, all compared, then the mask."""

    def forward(self, batch: Batch, share: float = 1.0, measure: bool = False) -> StepOutput:
        """Loss over hidden voxels; masks are drawn by `torch.rand`, so they differ from MAE's."""
        volume, n = batch.image, self.vit_config.n_patches
        kept, mask, restore = mae_masks(len(volume), n, self.visible(), str(volume.device))
        latent = self.decoder_embed(self.encoder.encode(self.embed_visible(volume, kept)))
        positions = self.decoder_positions.to(latent.dtype)
        tokens = mae_tokens(latent, self.mask_token.to(latent.dtype), positions, restore)
        predicted = self.head(self.run_decoder(tokens))
        per_voxel = LOSSES[self.config.loss](
            predicted.float(), self.all_targets(volume), reduction="none"
        )
        return StepOutput((per_voxel.mean(-1) * mask).sum() / mask.sum() * share, {})

    def all_targets(self, volume: Tensor) -> Tensor:
        """Patchified volume (b, n, c*p), each channel of a patch normalised where asked for."""
        b, c = volume.shape[:2]
        (gz, gy, gx), (pz, py, px) = self.vit_config.grid, self.vit_config.patch_size
        tiles = volume.reshape(b, c, gz, pz, gy, py, gx, px).permute(0, 2, 4, 6, 1, 3, 5, 7)
        target = tiles.reshape(b, gz * gy * gx, c, -1).float()
        if self.config.normalise_target:
            mean, var = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
            target = (target - mean) / (var + 1e-6).sqrt()
        return target.flatten(2)


class MedMIM(PeerMAE):
    """One patchify, a linear embedding of all patches, a head over hidden ones only, raw L1."""

    def forward(self, batch: Batch, share: float = 1.0, measure: bool = False) -> StepOutput:
        """Mean absolute error of hidden voxels, not normalised."""
        volume, n = batch.image, self.vit_config.n_patches
        patches = mae_patchify(volume, self.vit_config.patch_size)
        weight, bias, positions = self.embedding()
        tokens = functional.linear(patches.to(weight.dtype), weight, bias) + positions
        hidden, kept = medmim_masks(len(volume), n, self.visible(), str(volume.device))
        rows = torch.arange(len(volume), device=volume.device)[:, None]
        latent = self.decoder_embed(self.encoder.encode(tokens[rows, kept]))
        mask_token, table = (t.to(latent.dtype) for t in (self.mask_token, self.decoder_positions))
        decoded = self.run_decoder(medmim_tokens(latent, mask_token, table, kept, hidden))
        predicted = self.head(decoded[:, : hidden.shape[1]])
        loss = functional.l1_loss(predicted.float(), patches[rows, hidden].float())
        return StepOutput(loss * share, {})


class NnsslMAE(PeerMAE):
    """Tokens restored by a boolean mask, which waits for the device; dense voxels, masked MSE."""

    def forward(self, batch: Batch, share: float = 1.0, measure: bool = False) -> StepOutput:
        """Squared error of hidden voxels, not normalised."""
        volume, vit = batch.image, self.vit_config
        kept = mae_masks(len(volume), vit.n_patches, self.visible(), str(volume.device))[0]
        latent = self.decoder_embed(self.encoder.encode(self.embed_visible(volume, kept)))
        mask_token, table = (t.to(latent.dtype) for t in (self.mask_token, self.decoder_positions))
        decoded = self.run_decoder(nnssl_tokens(latent, mask_token, table, kept))
        dense = self.paint(decoded).float()
        loss = nnssl_loss(dense, volume, kept, vit.grid, vit.patch_size)
        return StepOutput(loss * share, {})

    def paint(self, tokens: Tensor) -> Tensor:
        """Dense voxels (b, c, z, y, x) by a transposed convolution."""
        vit = self.vit_config
        cells = tokens.transpose(1, 2).unflatten(2, vit.grid)
        kernel = self.head.weight.T.unflatten(1, (vit.channels, *vit.patch_size))
        bias = self.head.bias.unflatten(0, (vit.channels, *vit.patch_size))
        painted = functional.conv_transpose3d(cells, kernel, stride=vit.patch_size)
        return painted + bias.tile(1, *vit.grid)


PEERS: dict[str, type[PeerMAE]] = {
    "eager recipe": EagerMAE,
    "MIM-Med3D": MedMIM,
    "nnssl": NnsslMAE,
}
"""By the name of their row."""
