"""What a Primus encoder can be told, and its four published sizes; imports no torch."""

from dataclasses import dataclass
from typing import Literal

from mim3d.dataio.finite import MOST_SIZE, refuse_outside
from mim3d.engine.errors import ConfigError
from mim3d.engine.models.config import ViTConfig

PRIMUS_SIZES: dict[str, tuple[int, int, int]] = {
    "S": (396, 12, 6),
    "B": (792, 12, 12),
    "M": (864, 16, 12),
    "L": (1056, 24, 16),
}
"""Width, depth and heads by name (dynamic_network_architectures 0.4.4, primus.py,
_PRIMUS_CONFIGS)."""
PUBLISHED_PATCH = (8, 8, 8)
"""Patch size of every published Primus."""


@dataclass(frozen=True)
class PrimusConfig(ViTConfig):
    """Shape of a Primus encoder (Wald et al. 2025): rotary positions, gated MLPs, registers."""

    patch_size: tuple[int, int, int] = PUBLISHED_PATCH
    """Voxels of one token; must divide crop_size on every axis."""
    width: int = 864
    """Features of a token."""
    depth: int = 16
    """Transformer blocks."""
    heads: int = 12
    """Attention heads; width / heads must be a multiple of 6 (a sine and a cosine for each of
    three axes)."""
    mlp_ratio: float = 8 / 3
    """Hidden features of a block's gated MLP, as a multiple of width."""
    position: Literal["sincos", "learned"] = "learned"
    """Absolute positions, beside the rotary ones: fixed sine-cosine or learned."""
    registers: int = 0
    """Tokens that stand for no patch, for the blocks to keep what is global in."""
    drop_path: float = 0.0
    """Chance that a sample skips the last block's branches; from 0 at the first it grows evenly."""
    layer_scale: float = 0.1
    """Start of the factors on each branch; 0 leaves them out."""
    inner_norm: bool = True
    """Norm attention's output before its projection."""

    def __post_init__(self) -> None:
        """Refuse what rotary positions cannot turn."""
        super().__post_init__()
        refuse_outside(self, "registers", most=MOST_SIZE, part="vit", kind=ConfigError)
        if self.width // self.heads % 6:
            raise ConfigError(
                f"vit.width {self.width} over vit.heads {self.heads} gives heads of "
                f"{self.width // self.heads} features, and Primus turns them by multiples of 6: "
                f"set vit.width to a multiple of {6 * self.heads}"
            )
        if self.registers < 0 or self.layer_scale < 0.0 or not 0.0 <= self.drop_path < 1.0:
            raise ConfigError(
                f"vit.registers {self.registers} and vit.layer_scale {self.layer_scale} must not "
                f"be negative, vit.drop_path {self.drop_path} must lie in [0, 1)"
            )

    @property
    def mlp_layers(self) -> int:
        """Linear layers of a block's MLP: gate, value and output."""
        return 3

    @property
    def extra_tokens(self) -> int:
        """Tokens beside the patches."""
        return self.registers

    @property
    def size_name(self) -> str | None:
        """Letter of the published size that this is, or None."""
        published = (PUBLISHED_PATCH, 8 / 3, 0, True)
        if (self.patch_size, self.mlp_ratio, self.registers, self.inner_norm) != published:
            return None
        shape = (self.width, self.depth, self.heads)
        found = [name for name, size in PRIMUS_SIZES.items() if size == shape]
        return found[0] if found and self.layer_scale > 0.0 else None


def primus(size: str, crop: int, channels: int = 1, drop_path: float = 0.0) -> PrimusConfig:
    """A published size on cubic crops: S, B, M or L."""
    width, depth, heads = PRIMUS_SIZES[size]
    return PrimusConfig(
        (crop, crop, crop),
        channels=channels,
        width=width,
        depth=depth,
        heads=heads,
        drop_path=drop_path,
    )
