"""Instance norm over visible voxels only, with the leaky ReLU behind it, in one operation.

    masked_norm(features (b, c, z, y, x), weight (c,), bias (c,), visible=None) -> (b, c, z, y, x)

Each channel of a sample is normed by the mean and deviation of its visible voxels (all without
`visible`); hidden ones are zero in the result and take no part in any number. `slope` is that of
the leaky ReLU below zero, 1 for none. The result lies channels last in memory, as convolutions like
their maps. Moments and sums are float32 at least, in a fixed order.
Formula: Ulyanov et al. 2016, "Instance normalization"; the mask as in Tian et al. 2023, "SparK".
"""

from typing import Any

import torch
from torch import Tensor

from mim3d.kernels.backend import choose, refuse_double_backward
from mim3d.kernels.masked_norm_kernel import launch_apply, launch_gradient, launch_moments

EPS = 1e-5


def masked_norm(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    visible: Tensor | None = None,
    *,
    slope: float = 1.0,
    eps: float = EPS,
    backend: str = "auto",
) -> Tensor:
    """Normed `features` in their dtype; `visible` (b, z, y, x) bool on the same device."""
    _check(features, weight, bias, visible, slope)
    triton = choose(features, backend, weight.dtype, bias.dtype) == "triton"
    rows = features.permute(0, 2, 3, 4, 1).contiguous().flatten(1, 3)
    seen = None if visible is None else visible.contiguous().flatten(1)
    out = MaskedNorm.apply(rows, weight, bias, seen, slope, eps, triton)
    return out.unflatten(1, features.shape[2:]).permute(0, 4, 1, 2, 3)


def _check(
    features: Tensor, weight: Tensor, bias: Tensor, visible: Tensor | None, slope: float
) -> None:
    if features.dim() != 5 or not features.is_floating_point():
        raise ValueError(
            f"features has shape {tuple(features.shape)} and dtype {features.dtype}; a floating "
            "(b, c, z, y, x) is needed"
        )
    b, c, *space = features.shape
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tuple(tensor.shape) != (c,):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; ({c},) is needed")
    if visible is not None and (tuple(visible.shape) != (b, *space) or visible.dtype != torch.bool):
        raise ValueError(
            f"visible has shape {tuple(visible.shape)} and dtype {visible.dtype}; a bool "
            f"{(b, *space)} is needed for features {tuple(features.shape)}"
        )
    if not 0.0 <= slope <= 1.0:
        raise ValueError(f"slope is {slope}; it must lie in [0, 1], 1 being no bend")


class MaskedNorm(torch.autograd.Function):
    """Outer function over channels-last rows (b, n, c); keeps the input and its moments."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, visible: Tensor | None,
        slope: float, eps: float, triton: bool,
    ) -> Tensor:  # fmt: skip
        """Normed rows."""
        total, mean, scale = torch.ops.mim3d.masked_moments(features, visible, eps, triton)
        ctx.save_for_backward(features, weight, bias, visible, total, mean, scale)
        ctx.slope, ctx.triton = slope, triton
        return torch.ops.mim3d.masked_norm(
            features, visible, mean, scale, weight, bias, slope, triton
        )

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of features, weight and bias."""
        refuse_double_backward("masked_norm")
        features, weight, bias, visible, total, mean, scale = ctx.saved_tensors
        out, sums, products = torch.ops.mim3d.masked_norm_gradient(
            grad_outputs[0].contiguous(), features, visible, total, mean, scale, weight, bias,
            ctx.slope, ctx.triton,
        )  # fmt: skip
        d_weight, d_bias = products.sum(0).to(weight.dtype), sums.sum(0).to(bias.dtype)
        return out, d_weight, d_bias, None, None, None, None


def compute_dtype(features: Tensor) -> torch.dtype:
    """What the reference computes in."""
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def seen_rows(features: Tensor, visible: Tensor | None) -> Tensor:
    """Which rows (b, n, 1) take part, as 1 and 0."""
    if visible is None:
        return features.new_ones(1, 1, 1, dtype=compute_dtype(features))
    return visible[..., None].to(compute_dtype(features))


def moments(
    features: Tensor, visible: Tensor | None, eps: float, triton: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and reciprocal deviation (b, c) of the visible rows."""
    if triton:
        return launch_moments(features, visible, eps)
    b, n, c = features.shape
    seen = seen_rows(features, visible)
    total = seen.expand(b, n, 1).sum(1).expand(b, c).contiguous()
    some = total.clamp(min=1.0)
    wide = features.to(seen.dtype)
    held = wide if visible is None else torch.where(visible[..., None], wide, 0.0)
    mean = held.sum(1) / some
    apart = held - mean[:, None]
    if visible is not None:
        apart = apart * seen
    variance = apart.square().sum(1) / some
    return total, mean, (variance + eps).rsqrt()


def normed_rows(
    features: Tensor, visible: Tensor | None, mean: Tensor, scale: Tensor, weight: Tensor,
    bias: Tensor, slope: float, triton: bool,
) -> Tensor:  # fmt: skip
    """Rows normed, scaled, shifted and bent; zero where hidden."""
    if triton:
        return launch_apply(features, visible, mean, scale, weight, bias, slope)
    wide = features.to(mean.dtype)
    out = (wide - mean[:, None]) * (scale * weight.to(mean.dtype))[:, None] + bias.to(mean.dtype)
    if slope != 1.0:
        out = torch.where(out >= 0.0, out, out * slope)
    if visible is not None:
        out = torch.where(visible[..., None], out, 0.0)
    return out.to(features.dtype)


def gradient_rows(
    gradient: Tensor, features: Tensor, visible: Tensor | None, total: Tensor, mean: Tensor,
    scale: Tensor, weight: Tensor, bias: Tensor, slope: float, triton: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradient of the rows, and its sums (b, c) alone and times the normed values."""
    if triton:
        return launch_gradient(gradient, features, visible, total, mean, scale, weight, bias, slope)
    wide, factor = features.to(mean.dtype), weight.to(mean.dtype)
    normed = (wide - mean[:, None]) * scale[:, None]
    own = gradient.to(mean.dtype)
    if slope != 1.0:
        own = torch.where(normed * factor + bias.to(mean.dtype) < 0.0, own * slope, own)
    if visible is not None:
        seen = visible[..., None]
        own, normed = torch.where(seen, own, 0.0), torch.where(seen, normed, 0.0)
    sums, products = own.sum(1), (own * normed).sum(1)
    some = total.clamp(min=1.0)
    out = own - (sums / some)[:, None] - normed * (products / some)[:, None]
    out = out * (scale * factor)[:, None]
    if visible is not None:
        out = torch.where(visible[..., None], out, 0.0)
    return out.to(features.dtype), sums, products


def _fake_moments(
    features: Tensor, visible: Tensor | None, eps: float, triton: bool
) -> tuple[Tensor, Tensor, Tensor]:
    b, _, c = features.shape
    made = [features.new_empty(b, c, dtype=compute_dtype(features)) for _ in range(3)]
    return made[0], made[1], made[2]


def _fake_norm(
    features: Tensor, visible: Tensor | None, mean: Tensor, scale: Tensor, weight: Tensor,
    bias: Tensor, slope: float, triton: bool,
) -> Tensor:  # fmt: skip
    return torch.empty_like(features)


def _fake_gradient(
    gradient: Tensor, features: Tensor, visible: Tensor | None, total: Tensor, mean: Tensor,
    scale: Tensor, weight: Tensor, bias: Tensor, slope: float, triton: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(features), torch.empty_like(mean), torch.empty_like(mean)


MOMENTS = "Tensor mean, Tensor scale, Tensor weight, Tensor bias, float slope, bool triton"
torch.library.define(
    "mim3d::masked_moments",
    "(Tensor features, Tensor? visible, float eps, bool triton) -> (Tensor, Tensor, Tensor)",
)
torch.library.impl("mim3d::masked_moments", ("cpu", "cuda"), moments)
torch.library.register_fake("mim3d::masked_moments", _fake_moments)
torch.library.define(
    "mim3d::masked_norm", f"(Tensor features, Tensor? visible, {MOMENTS}) -> Tensor"
)
torch.library.impl("mim3d::masked_norm", ("cpu", "cuda"), normed_rows)
torch.library.register_fake("mim3d::masked_norm", _fake_norm)
torch.library.define(
    "mim3d::masked_norm_gradient",
    f"(Tensor gradient, Tensor features, Tensor? visible, Tensor total, {MOMENTS})"
    " -> (Tensor, Tensor, Tensor)",
)
torch.library.impl("mim3d::masked_norm_gradient", ("cpu", "cuda"), gradient_rows)
torch.library.register_fake("mim3d::masked_norm_gradient", _fake_gradient)
