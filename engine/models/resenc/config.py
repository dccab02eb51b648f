"""What a residual-encoder U-Net can be told, and its named sizes; imports no torch."""

from dataclasses import dataclass
from typing import Literal

from mim3d.dataio.finite import MOST_SIZE, refuse_outside
from mim3d.engine.errors import ConfigError
from mim3d.engine.models.config import SwinConfig, ViTConfig

Masking = Literal["dense", "sparse"]


@dataclass(frozen=True)
class ResEncConfig:
    """Shape of nnU-Net's ResidualEncoderUNet: 3^3 kernels, each stage but the first halves."""

    features: tuple[int, ...] = (32, 64, 128, 256, 320, 320)
    """Channels of each stage."""
    blocks: tuple[int, ...] = (1, 3, 4, 6, 6, 6)
    """Residual blocks of each stage."""
    decoder_convs: int = 1
    """Convolutions of each stage of the decoder."""
    masking: Masking = "dense"
    """dense: hidden voxels are zeros (as nnssl's MAE); sparse: they do not exist for the encoder
    (as SparK and S3D), whose norms heed visible voxels only."""

    def __post_init__(self) -> None:
        """A stage has features and blocks; a decoder needs two stages."""
        sizes = "features blocks decoder_convs"
        refuse_outside(self, sizes, most=MOST_SIZE, part="resenc", kind=ConfigError)
        if len(self.features) != len(self.blocks) or len(self.features) < 2:
            raise ConfigError(
                f"resenc.features {self.features} and resenc.blocks {self.blocks} must be as long "
                "as one another, and at least two"
            )
        if min(*self.features, *self.blocks, self.decoder_convs) < 1:
            raise ConfigError(
                f"resenc.features {self.features}, resenc.blocks {self.blocks} and "
                f"resenc.decoder_convs {self.decoder_convs} must be at least 1"
            )

    @property
    def stages(self) -> int:
        """Resolutions."""
        return len(self.features)

    @property
    def stride(self) -> int:
        """Voxels along the edge of the deepest map's cell."""
        return 2 ** (self.stages - 1)

    @property
    def width(self) -> int:
        """Features of the deepest map."""
        return self.features[-1]

    @property
    def is_published_l(self) -> bool:
        """Whether this is ResEnc-L as nnU-Net builds it by name."""
        shape = (self.features, self.blocks, self.decoder_convs)
        return shape == (RESENC_L.features, RESENC_L.blocks, RESENC_L.decoder_convs)

    def refuse_crop(self, vit: ViTConfig) -> None:
        """A ConfigError where the stages cannot halve the crop evenly."""
        for axis, size in zip("zyx", vit.crop_size, strict=True):
            if size % self.stride or size < 2 * self.stride:
                raise ConfigError(
                    f"vit.crop_size {vit.crop_size} must be a multiple of {self.stride} on axis "
                    f"{axis}, and at least {2 * self.stride}: {self.stages} stages halve it "
                    f"{self.stages - 1} times"
                )
        if any(patch & (patch - 1) for patch in vit.patch_size):
            raise ConfigError(
                f"vit.patch_size {vit.patch_size}, the blocks that are hidden, must be powers of "
                "two for a U-Net, whose stages halve them"
            )


RESENC_L = ResEncConfig()
"""nnssl's get_res_enc_l and nnU-Net's ResEncL: 102.349 M parameters with one channel each way."""
RESENC_S = ResEncConfig((16, 32, 64, 128, 160), (1, 2, 2, 2, 2))
"""For thousands of volumes and one GPU."""
RESENC_TINY = ResEncConfig((8, 16, 24), (1, 1, 1))
"""For a minute on a CPU."""
Backbone = SwinConfig | ResEncConfig
"""What may stand in the ViT's place."""
NO_SIMMIM = (
    "SimMIM's mask tokens are a transformer's: on a U-Net take a resenc recipe with mae, whose "
    "--resenc.masking dense paints from crops with holes"
)
IDLE_WITH_RESENC = ("width", "depth", "heads", "mlp_ratio", "position")
"""Fields of the ViT that decide nothing where a U-Net stands in its place."""
