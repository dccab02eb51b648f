"""Encoder and decoder together, for segmentation."""

from torch import Tensor, nn

from mim3d.engine.models.resenc.decoder import ResEncDecoder
from mim3d.engine.models.resenc.encoder import ResEncEncoder


class ResEncNet(nn.Module):
    """A residual-encoder U-Net: volume (b, c, z, y, x) to logits (b, k, z, y, x)."""

    def __init__(self, encoder: ResEncEncoder, decoder: ResEncDecoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, volume: Tensor) -> Tensor:
        """Logits of every voxel."""
        return self.decoder(self.encoder.maps(volume))
