"""Decoders from ViT tokens to voxel logits: UNETR for any patch size, and its kin without skips.

Level i of the pyramid has the patch's first factors multiplied out, level 0 is full resolution;
it carries `feature_size * 2**i` channels. Patch 16 at depth 12 uses MONAI's UNETR itself.
Formula: Hatamizadeh et al. 2022, "UNETR: Transformers for 3D Medical Image Segmentation".
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from mim3d.dataio.extras import extra
from mim3d.engine.errors import ConfigError
from mim3d.engine.models.config import ViTConfig
from mim3d.engine.models.vit import ViT3D

with extra():
    from monai.networks.blocks.dynunet_block import UnetOutBlock, UnetResBlock, get_conv_layer
    from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrUpBlock
    from monai.networks.nets.unetr import UNETR

NORM = "instance"
Factor = tuple[int, int, int]


def stage_factors(patch_size: Sequence[int]) -> list[Factor]:
    """Upsampling factors (z, y, x) of each stage from tokens to voxels, coarse first.

    Prime factors of the patch, largest first; an axis with fewer of them waits at the start, so
    that its coarser voxels are kept: (4, 8, 8) gives (1, 2, 2), (2, 2, 2), (2, 2, 2).
    """
    primes = [_prime_factors(size) for size in patch_size]
    count = max(map(len, primes))
    if count == 0:
        raise ConfigError(f"patch_size {tuple(patch_size)} has nothing to upsample")
    z, y, x = ([1] * (count - len(axis)) + axis for axis in primes)
    return list(zip(z, y, x, strict=True))


class UNETRDecoder(nn.Module):
    """Volume (b, c, z, y, x) and states of its encoder to logits (b, k, z, y, x).

    `image_skip=False` leaves out the full-resolution convolutions on the raw image: all that the
    decoder knows of the image then comes through the tokens.
    """

    def __init__(
        self, vit: ViTConfig, classes: int, feature_size: int = 16, image_skip: bool = True
    ) -> None:
        super().__init__()
        factors = stage_factors(vit.patch_size)
        top = len(factors)
        self.grid = vit.grid
        self.skip_depths = [level * vit.depth // top for level in range(1, top)]
        wide = [feature_size * 2**level for level in range(top)]
        self.token_skips = nn.ModuleList(
            TokenSkip(vit.width, wide[level], factors[: top - level]) for level in range(1, top)
        )
        self.image_skip = (
            UnetrBasicBlock(3, vit.channels, wide[0], 3, 1, NORM, res_block=True)
            if image_skip
            else None
        )
        ups: list[nn.Module] = []
        for (below, level), factor in zip(pairwise(range(top, -1, -1)), factors, strict=True):
            wide_in = vit.width if below == top else wide[below]
            if level or image_skip:
                ups.append(UnetrUpBlock(3, wide_in, wide[level], 3, factor, NORM, res_block=True))
            else:
                ups.append(_up(wide_in, wide[level], factor))
        self.ups = nn.ModuleList(ups)
        self.out = UnetOutBlock(3, wide[0], classes)

    def forward(self, volume: Tensor, states: Sequence[Tensor], last: Tensor) -> Tensor:
        """`states` are tokens (b, n, d) after every block, `last` the encoder's normed output."""
        skips: list[Tensor | None] = [None if self.image_skip is None else self.image_skip(volume)]
        for depth, skip in zip(self.skip_depths, self.token_skips, strict=True):
            skips.append(skip(to_grid(states[depth], self.grid)))
        features = to_grid(last, self.grid)
        for up, skip in zip(self.ups, reversed(skips), strict=True):
            features = up(features) if skip is None else up(features, skip)
        return self.out(features)


class TokenSkip(nn.Sequential):
    """Tokens on their grid (b, d, ...) upsampled to one level: UNETR's projection blocks."""

    def __init__(self, wide_in: int, wide_out: int, factors: Sequence[Factor]) -> None:
        first, *rest = factors
        super().__init__(
            _transposed(wide_in, wide_out, first), *(_up(wide_out, wide_out, f) for f in rest)
        )


class LinearDecoder(nn.Module):
    """One linear layer from each token to the logits of its voxels: the plainest probe."""

    def __init__(self, vit: ViTConfig, classes: int) -> None:
        super().__init__()
        self.grid, self.patch_size, self.classes = vit.grid, vit.patch_size, classes
        self.head = nn.Linear(vit.width, classes * vit.patch_voxels)

    def forward(self, volume: Tensor, states: Sequence[Tensor], last: Tensor) -> Tensor:
        """Logits (b, k, z, y, x) from `last` (b, n, d) alone."""
        b, (gz, gy, gx), (pz, py, px) = len(last), self.grid, self.patch_size
        tiles = self.head(last).view(b, gz, gy, gx, self.classes, pz, py, px)
        return tiles.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(
            b, self.classes, gz * pz, gy * py, gx * px
        )


class MonaiDecoder(nn.Module):
    """MONAI's UNETR with its transformer taken out and ours put in: patch 16, 12 blocks."""

    def __init__(self, vit: ViTConfig, classes: int, feature_size: int = 16) -> None:
        super().__init__()
        self.unetr = UNETR(
            vit.channels,
            classes,
            vit.crop_size,
            feature_size,
            hidden_size=vit.width,
            mlp_dim=vit.width,
            num_heads=vit.heads,
            norm_name=NORM,
        )
        self.given = GivenStates()
        self.unetr.add_module("vit", self.given)

    @staticmethod
    def fits(vit: ViTConfig) -> bool:
        """Whether MONAI's fixed patch size and depth are this encoder's."""
        return vit.patch_size == (16, 16, 16) and vit.depth == 12

    def forward(self, volume: Tensor, states: Sequence[Tensor], last: Tensor) -> Tensor:
        """Run UNETR's own forward pass on the given states."""
        self.given.states = (last, list(states))
        try:
            return self.unetr(volume)
        finally:
            self.given.states = None


class GivenStates(nn.Module):
    """Stands where UNETR calls its transformer and hands over states computed before."""

    states: tuple[Tensor, list[Tensor]] | None = None

    def forward(self, volume: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The last output and the hidden states, as MONAI's ViT returns them."""
        assert self.states is not None
        return self.states


class SegmentationNet(nn.Module):
    """An encoder and a decoder: volume (b, c, z, y, x) to logits (b, k, z, y, x)."""

    def __init__(self, encoder: ViT3D, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, volume: Tensor) -> Tensor:
        """Logits of every voxel."""
        states = self.encoder.hidden_states(volume)
        return self.decoder(volume, states, self.encoder.norm(states[-1]))


def to_grid(tokens: Tensor, grid: Factor) -> Tensor:
    """Tokens (b, n, d) as a feature volume (b, d, gz, gy, gx): a view, channels last in memory."""
    return tokens.view(len(tokens), *grid, tokens.shape[-1]).permute(0, 4, 1, 2, 3)


def _up(wide_in: int, wide_out: int, factor: Factor) -> nn.Sequential:
    return nn.Sequential(
        _transposed(wide_in, wide_out, factor), UnetResBlock(3, wide_out, wide_out, 3, 1, NORM)
    )


def _transposed(wide_in: int, wide_out: int, factor: Factor) -> nn.Module:
    return get_conv_layer(
        3, wide_in, wide_out, kernel_size=factor, stride=factor, conv_only=True, is_transposed=True
    )


def _prime_factors(size: int) -> list[int]:
    found: list[int] = []
    divisor = 2
    while size > 1:
        while size % divisor == 0:
            found.append(divisor)
            size //= divisor
        divisor += 1
    return sorted(found, reverse=True)
