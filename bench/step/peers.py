"""MAE as it is commonly written in eager PyTorch, around the same encoder and decoder.

The formulation of facebookresearch/mae (models_mae.py), which nnssl and MIM-Med3D follow in 3D:
every patch is embedded by a convolution and three of four are thrown away, tokens are put back
in order for the decoder, the head paints visible patches too, and the target is patchified,
normalised and compared for all patches before the mask is applied.
"""

import torch
from torch import Tensor
from torch.nn import functional

from mim3d.dataio.loader.batch import Batch
from mim3d.engine.models.mae import MAE
from mim3d.engine.models.objective import StepOutput
from mim3d.kernels.masking import n_visible

LOSSES = {
    "l1": functional.l1_loss,
    "l2": functional.mse_loss,
    "smooth_l1": functional.smooth_l1_loss,
}


class EagerMAE(MAE):
    """The same weights and blocks, every other operation as the eager recipe has it."""

    def forward(self, batch: Batch, share: float = 1.0, measure: bool = False) -> StepOutput:
        """Loss over hidden voxels; masks are drawn by `torch.rand`, so they differ from MAE's."""
        volume, vit = batch.image, self.vit_config
        b, n, v = volume.shape[0], vit.n_patches, n_visible(vit.n_patches, self.config.mask_ratio)
        shuffle = torch.argsort(torch.rand(b, n, device=volume.device), dim=1)
        restore = torch.argsort(shuffle, dim=1)
        tokens = self.embed_all(volume)
        keep = shuffle[:, :v, None].expand(-1, -1, tokens.shape[-1])
        latent = self.encoder.encode(tokens.gather(1, keep))
        predicted = self.paint_all(latent, restore)
        mask = torch.ones(b, n, device=volume.device)
        mask[:, :v] = 0
        mask = mask.gather(1, restore)
        targets = self.all_targets(volume)
        per_voxel = LOSSES[self.config.loss](predicted.float(), targets, reduction="none")
        loss = (per_voxel.mean(-1) * mask).sum() / mask.sum() * share
        return StepOutput(loss, {})

    def embed_all(self, volume: Tensor) -> Tensor:
        """All tokens (b, n, d) by a strided convolution, with positions."""
        embed, vit = self.encoder.patch_embed, self.vit_config
        used = embed.weight[:, : vit.channels * vit.patch_voxels]
        kernel = used.reshape(vit.width, vit.channels, *vit.patch_size)
        cells = functional.conv3d(volume.to(kernel.dtype), kernel, embed.bias, vit.patch_size)
        tokens = cells.flatten(2).transpose(1, 2)
        return tokens + self.encoder.positions().to(tokens.dtype)

    def paint_all(self, latent: Tensor, restore: Tensor) -> Tensor:
        """Voxels (b, n, c*p) of every patch, in order."""
        visible = self.decoder_embed(latent)
        b, n = restore.shape
        hidden = self.mask_token.to(visible.dtype).expand(b, n - visible.shape[1], -1)
        tokens = torch.cat([visible, hidden], dim=1)
        tokens = tokens.gather(1, restore[..., None].expand(-1, -1, tokens.shape[-1]))
        tokens = tokens + self.decoder_positions.to(tokens.dtype)
        for block in self.decoder_blocks:
            tokens = block(tokens)
        return self.head(self.decoder_norm(tokens))

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
