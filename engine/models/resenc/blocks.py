"""The U-Net's parts: convolution and norm, residual block (ResNet-D), upward stage.

`visible` (b, z, y, x) bool names the voxels of a map that exist; None is all. What a part gives is
zero where they do not, so the next convolution reads nothing of them.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from mim3d.engine.arithmetic.recompute import Recomputed
from mim3d.kernels.masked_norm import masked_norm

SLOPE = 0.01
"""Of the leaky ReLU below zero."""
NO_BEND = 1.0


class Norm(nn.Module):
    """Instance norm's scale and shift; see `kernels.masked_norm`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, features: Tensor, visible: Tensor | None, slope: float) -> Tensor:
        """Normed, and bent below zero by `slope`."""
        return masked_norm(features, self.weight, self.bias, visible, slope=slope)


class ConvNorm(nn.Module):
    """Convolution, then norm and leaky ReLU in one pass (b, c, z, y, x)."""

    def __init__(
        self, wide_in: int, wide_out: int, kernel: int = 3, stride: int = 1, bias: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(wide_in, wide_out, kernel, stride, kernel // 2, bias=bias)
        self.norm = Norm(wide_out)
        nn.init.kaiming_normal_(self.conv.weight, a=SLOPE)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(
        self, features: Tensor, visible: Tensor | None = None, slope: float = SLOPE
    ) -> Tensor:
        """`visible` is of the result."""
        return self.norm(self.conv(features), visible, slope)


class ResidualBlock(Recomputed):
    """Two convolutions beside a skip.

    A skip that halves averages, then projects, if channels change (He et al. 2019, ResNet-D).
    """

    def __init__(self, wide_in: int, wide_out: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = ConvNorm(wide_in, wide_out, stride=stride)
        self.conv2 = ConvNorm(wide_out, wide_out)
        nn.init.zeros_(self.conv2.norm.weight)
        self.skip = (
            ConvNorm(wide_in, wide_out, kernel=1, bias=False) if wide_in != wide_out else None
        )

    def mix(self, features: Tensor, visible: Tensor | None = None) -> Tensor:
        """`visible` is of the result."""
        skip = features
        if self.stride > 1:
            skip = functional.avg_pool3d(skip, self.stride, self.stride)
        if self.skip is not None:
            skip = self.skip(skip, visible, NO_BEND)
        elif self.stride > 1 and visible is not None:
            skip = skip * visible[:, None]
        own = self.conv2(self.conv1(features, visible), visible, NO_BEND)
        return functional.leaky_relu(own + skip, SLOPE)


class UpBlock(Recomputed):
    """Doubles a map, joins the encoder's of that resolution, and convolves."""

    def __init__(self, wide_in: int, wide_out: int, convs: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(wide_in, wide_out, 2, 2)
        nn.init.kaiming_normal_(self.up.weight, a=SLOPE)
        assert self.up.bias is not None
        nn.init.zeros_(self.up.bias)
        widths = [2 * wide_out] + [wide_out] * convs
        self.convs = nn.Sequential(*(ConvNorm(widths[number], wide_out) for number in range(convs)))

    def mix(self, features: Tensor, skip: Tensor) -> Tensor:
        """`features` are coarse, `skip` is twice as fine."""
        return self.convs(torch.cat([self.up(features), skip], dim=1))
