"""What the encoders and pretext methods can be told, checked once; imports no torch.

Each stands here, not beside its module, so that a command line can be drawn up without loading
what it will not run.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from mim3d.dataio.finite import MOST_SIZE, refuse_not_finite, refuse_outside
from mim3d.dataio.reader.voxel_weights import check_ignore
from mim3d.engine.errors import ConfigError


@dataclass(frozen=True)
class ViTConfig:
    """Shape of the encoder; `crop_size` and `patch_size` in voxels, array order (z, y, x)."""

    crop_size: tuple[int, int, int] = (96, 96, 96)
    """Voxels of the sub-volume fed to the model."""
    patch_size: tuple[int, int, int] = (16, 16, 16)
    """Voxels of one token; must divide crop_size on every axis."""
    channels: int = 1
    """Input channels (modalities)."""
    width: int = 768
    """Features of a token."""
    depth: int = 12
    """Transformer blocks."""
    heads: int = 12
    """Attention heads; must divide width."""
    mlp_ratio: float = 4.0
    """Hidden features of a block's MLP, as a multiple of width."""
    position: Literal["sincos", "learned"] = "sincos"
    """Fixed sine-cosine or learned positions."""

    def __post_init__(self) -> None:
        """Refuse shapes that do not tile, naming both values."""
        refuse_not_finite(self, "vit", ConfigError)
        sizes = "crop_size patch_size channels width depth heads mlp_ratio"
        refuse_outside(self, sizes, most=MOST_SIZE, part="vit", kind=ConfigError)
        refuse_outside(self, "mlp_ratio", above=0, part="vit", kind=ConfigError)
        for axis, crop, patch in zip("zyx", self.crop_size, self.patch_size, strict=True):
            if patch < 1 or crop < patch or crop % patch:
                raise ConfigError(
                    f"vit.patch_size {self.patch_size} must divide vit.crop_size {self.crop_size}"
                    f" on axis {axis}: choose a multiple of {max(patch, 1)} voxels"
                )
        if self.heads < 1 or self.width % self.heads:
            raise ConfigError(f"vit.heads {self.heads} must divide vit.width {self.width}")
        if min(self.channels, self.depth) < 1 or self.width < 6:
            raise ConfigError(
                f"vit.channels {self.channels} and vit.depth {self.depth} must be at least 1 and "
                f"vit.width {self.width} at least 6"
            )
        if not self.width * self.mlp_ratio >= 1.0:
            raise ConfigError(
                f"vit.mlp_ratio {self.mlp_ratio} of vit.width {self.width} is no feature"
            )

    @property
    def grid(self) -> tuple[int, int, int]:
        """Patches along z, y, x."""
        z, y, x = (c // p for c, p in zip(self.crop_size, self.patch_size, strict=True))
        return z, y, x

    @property
    def n_patches(self) -> int:
        """Tokens of a crop."""
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def patch_voxels(self) -> int:
        """Voxels of a patch in one channel."""
        return self.patch_size[0] * self.patch_size[1] * self.patch_size[2]

    @property
    def mlp_layers(self) -> int:
        """Linear layers of a block's MLP."""
        return 2

    @property
    def extra_tokens(self) -> int:
        """Tokens that the blocks see beside the patches."""
        return 0

    @property
    def row_width(self) -> int:
        """Elements of a patch row: channels * patch_voxels, padded to a multiple of 16."""
        from mim3d.kernels.patch_rows import row_width

        return row_width(self.channels, self.patch_size)


ALSO_SWINS = {"crop_size": "--swin.crop-size", "channels": "--swin.channels"}
"""Options of the vit that a Swin has too, as one who sets up a Swin looks for them."""
IDLE_WITH_SWIN = ("width", "depth", "heads", "mlp_ratio", "position")
"""Fields of the ViT that decide nothing where a Swin encoder stands in its place."""


@dataclass(frozen=True)
class SwinConfig:
    """Shape of MONAI's SwinTransformer, with SwinUNETR's names."""

    feature_size: int = 48
    """Features of the first stage; must be a multiple of 12."""
    depths: tuple[int, int, int, int] = (2, 2, 2, 2)
    """Blocks of each stage."""
    heads: tuple[int, int, int, int] = (3, 6, 12, 24)
    """Attention heads of each stage."""
    window: int = 7
    """Edge of the attention window, in tokens."""

    def __post_init__(self) -> None:
        """MONAI's SwinUNETR asks for multiples of 12."""
        sizes = "feature_size depths heads window"
        refuse_outside(self, sizes, most=MOST_SIZE, part="swin", kind=ConfigError)
        if self.feature_size < 12 or self.feature_size % 12:
            raise ConfigError(f"swin.feature_size {self.feature_size} must be a multiple of 12")
        if min(*self.depths, *self.heads, self.window) < 1:
            raise ConfigError(
                f"swin.depths {self.depths}, swin.heads {self.heads} and swin.window {self.window} "
                "must be at least 1"
            )
        for i_stage, heads in enumerate(self.heads):
            width = self.feature_size << i_stage
            if width % heads:
                raise ConfigError(
                    f"swin.heads {self.heads}: {heads} must divide the {width} features of stage "
                    f"{i_stage + 1} (swin.feature_size {self.feature_size})"
                )

    @property
    def width(self) -> int:
        """Features of the deepest map."""
        return 16 * self.feature_size


@dataclass(frozen=True)
class MethodConfig:
    """What a pretext method can be told; each has a class of its own.

    What is known of the method itself stands in class variables, which are no options.
    """

    name: ClassVar[str] = ""
    """What the method is called, in its registry and in every run's files."""
    views: ClassVar[int] = 1
    """Augmented views of each crop that it is given, 1 or 2."""
    paints: ClassVar[bool] = False
    """Whether it has pictures of what it was asked for (`Reconstructs`)."""
    contrasts: ClassVar[bool] = False
    """Whether its loss compares the crops of a micro-batch, so that it needs two of them, and how
    a global batch is parted belongs to the run."""


def n_decoded(hidden: int, fraction: float) -> int:
    """Hidden patches of a crop that are decoded, at least one."""
    return max(1, round(hidden * fraction))


LossKind = Literal["l1", "l2", "smooth_l1"]
MaskKind = Literal["random", "block", "grid"]


@dataclass(frozen=True)
class MaskConfig(MethodConfig):
    """Which patches are hidden from the encoder, and how the painted ones are scored."""

    paints: ClassVar[bool] = True
    mask_ratio: float = 0.75
    """Share of patches that are hidden, in (0, 1)."""
    mask_kind: MaskKind = "random"
    """Independent patches, cubes of mask_unit patches (SimMIM), or a regular grid."""
    mask_unit: int = 1
    """Edge of a masked cube, or step of the grid, in patches, for mask_kind block and grid."""
    loss: LossKind = "l1"
    """Distance between predicted and hidden voxels."""
    normalise_target: bool = True
    """Subtract the mean of each channel of a hidden patch and divide by its deviation before
    comparing."""
    ignore: tuple[str, ...] = ()
    """Hidden voxels that are not scored: padding (beyond the volume), air (not above the foreground
    threshold of any channel; padding too), label:NAME (where that label of the corpus is not 0), as
    in padding label:anonymization_mask, nnssl's masks of defacing. The loss is the mean over what
    is left, over all ranks and micro-batches; normalised targets are of what is left too."""

    def __post_init__(self) -> None:
        """Refuse ratios that hide nothing or all."""
        refuse_not_finite(self, "method", ConfigError)
        check_ignore(self.ignore, "method.ignore", ConfigError)
        refuse_outside(self, "mask_unit", most=MOST_SIZE, part="method", kind=ConfigError)
        if not 0.0 < self.mask_ratio < 1.0:
            raise ConfigError(
                f"method.mask_ratio {self.mask_ratio} must lie between 0 and 1 (0.75 hides three"
                " patches of four)"
            )
        if self.mask_unit < 1:
            raise ConfigError(f"method.mask_unit {self.mask_unit} must be at least 1")
        if self.mask_kind == "grid" and self.mask_unit == 1:
            raise ConfigError(
                "method.mask_kind grid with method.mask_unit 1 is no grid but random patches: set "
                "mask_unit to 2 or more"
            )


@dataclass(frozen=True)
class MAEConfig(MaskConfig):
    """Masked autoencoder (He et al. 2022) on volumes."""

    name: ClassVar[str] = "mae"
    decoder_width: int = 512
    """Features of a decoder token."""
    decoder_depth: int = 8
    """Decoder blocks."""
    decoder_heads: int = 16
    """Attention heads of the decoder; must divide decoder_width."""
    decode_fraction: float = 1.0
    """Share of the hidden patches, drawn anew for each crop, that are decoded and scored: an
    unbiased estimate of the loss over all, for less arithmetic."""

    def __post_init__(self) -> None:
        """Check the decoder's shape too."""
        super().__post_init__()
        if not 0.0 < self.decode_fraction <= 1.0:
            raise ConfigError(f"method.decode_fraction {self.decode_fraction} must lie in (0, 1]")
        if self.decode_fraction < 1.0 and self.mask_kind != "random":
            raise ConfigError(
                f"method.decode_fraction {self.decode_fraction} with method.mask_kind "
                f"{self.mask_kind} would score the patches beside visible ones more often: it goes "
                "with --method.mask-kind random"
            )
        sizes = "decoder_width decoder_depth decoder_heads"
        refuse_outside(self, sizes, most=MOST_SIZE, part="method", kind=ConfigError)
        if self.decoder_depth < 0 or self.decoder_width < 6:
            raise ConfigError(
                f"method.decoder_depth {self.decoder_depth} must not be negative and "
                f"method.decoder_width {self.decoder_width} at least 6"
            )
        if self.decoder_heads < 1 or self.decoder_width % self.decoder_heads:
            raise ConfigError(
                f"method.decoder_heads {self.decoder_heads} must divide method.decoder_width "
                f"{self.decoder_width}"
            )


@dataclass(frozen=True)
class SimMIMConfig(MaskConfig):
    """SimMIM (Xie et al. 2022) on volumes."""

    name: ClassVar[str] = "simmim"
    normalise_target: bool = False
    """Subtract the mean of each channel of a hidden patch and divide by its deviation before
    comparing."""


@dataclass(frozen=True)
class SimCLRConfig(MethodConfig):
    """SimCLR (Chen et al. 2020) on volumes, the contrastive control."""

    name: ClassVar[str] = "simclr"
    views: ClassVar[int] = 2
    contrasts: ClassVar[bool] = True
    temperature: float = 0.1
    """Divides the cosine similarities."""
    projection_width: int = 128
    """Features that are compared."""
    projection_hidden: int = 512
    """Hidden features of the projection head."""

    def __post_init__(self) -> None:
        """Refuse temperatures that divide by nothing."""
        refuse_not_finite(self, "method", ConfigError)
        sizes = "projection_width projection_hidden"
        refuse_outside(self, sizes, most=MOST_SIZE, part="method", kind=ConfigError)
        if not self.temperature > 0.0:
            raise ConfigError(f"method.temperature {self.temperature} must be positive")
        if min(self.projection_width, self.projection_hidden) < 1:
            raise ConfigError(
                f"method.projection_width {self.projection_width} and method.projection_hidden "
                f"{self.projection_hidden} must be at least 1"
            )


def method_name(method: MethodConfig) -> str:
    """mae, simmim, simclr, or the name of a plugin's."""
    return method.name
