"""MONAI's SwinUNETR with its Swin taken out and a pretrained one put in.

Formula: Hatamizadeh et al. 2022, "Swin UNETR: Swin Transformers for Semantic Segmentation of
Brain Tumors in MRI Images".
"""

from collections.abc import Sequence

from torch import Tensor, nn

from mim3d.dataio.extras import extra
from mim3d.engine.errors import ConfigError
from mim3d.engine.models.config import SwinConfig, ViTConfig
from mim3d.engine.models.swin import STRIDE, SwinEncoder

with extra():
    from monai.networks.nets.swin_unetr import SwinUNETR


class SwinDecoder(nn.Module):
    """Volume (b, c, z, y, x) and the maps of every Swin stage to logits (b, k, z, y, x).

    `image_skip=False` gives the decoder zeros for its convolutions on the raw image: all that it
    knows of the image then comes through the encoder.
    """

    def __init__(
        self, swin: SwinConfig, vit: ViTConfig, classes: int, image_skip: bool = True
    ) -> None:
        super().__init__()
        if max(vit.crop_size) <= STRIDE:
            raise ConfigError(
                f"vit.crop_size {vit.crop_size} leaves Swin's deepest map one voxel, which "
                f"SwinUNETR cannot norm: take more than {STRIDE} voxels along some axis"
            )
        self.unetr = SwinUNETR(
            vit.channels,
            classes,
            feature_size=swin.feature_size,
            depths=swin.depths,
            num_heads=swin.heads,
            window_size=swin.window,
        )
        self.given = GivenMaps()
        self.unetr.add_module("swinViT", self.given)
        if not image_skip:
            self.unetr.add_module("encoder1", NoSkip(swin.feature_size))

    def forward(self, volume: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Run SwinUNETR's own forward pass on the given maps."""
        self.given.maps = list(maps)
        try:
            return self.unetr(volume)
        finally:
            self.given.maps = None


class GivenMaps(nn.Module):
    """Stands where SwinUNETR calls its Swin and hands over maps computed before."""

    maps: list[Tensor] | None = None

    def forward(self, volume: Tensor, normalize: bool) -> list[Tensor]:
        """The maps of every stage, as MONAI's SwinTransformer returns them."""
        assert self.maps is not None
        return self.maps


class NoSkip(nn.Module):
    """Zeros of the skip's shape."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def forward(self, volume: Tensor) -> Tensor:
        """Volume (b, c, z, y, x) to zeros (b, features, z, y, x)."""
        return volume.new_zeros(len(volume), self.features, *volume.shape[2:])


class SwinSegmentationNet(nn.Module):
    """A Swin encoder and its decoder: volume (b, c, z, y, x) to logits (b, k, z, y, x)."""

    def __init__(self, encoder: SwinEncoder, decoder: SwinDecoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, volume: Tensor) -> Tensor:
        """Logits of every voxel; maps are normed as SwinUNETR norms them."""
        return self.decoder(volume, self.encoder.swin(volume.contiguous(), True))
