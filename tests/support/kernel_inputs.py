"""What tests of kernels share: volumes and patch ids, and how a loss is compared."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

DTYPES = (torch.uint8, torch.int16, torch.float16, torch.bfloat16, torch.float32)
TERMS: dict[str, Callable[..., Tensor]] = {
    "l1": functional.l1_loss,
    "l2": functional.mse_loss,
    "smooth_l1": functional.smooth_l1_loss,
}
"""Of each kind of loss, torch's own."""


def random_volume(shape: Sequence[int], dtype: torch.dtype = torch.int16, seed: int = 0) -> Tensor:
    """Voxels over much of the dtype's range."""
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).mul(50).to(dtype)
    low = 0 if dtype == torch.uint8 else -1000
    return torch.randint(low, 255, shape, generator=generator, dtype=dtype)


def random_ids(b: int, n: int, k: int, seed: int = 0) -> Tensor:
    """(b, k) ids, of which no sample has any twice."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(n, generator=generator)[:k] for _ in range(b)])


def value_and_gradient(
    function: Callable[..., Tensor], prediction: Tensor, *arguments: Any, **options: Any
) -> tuple[Tensor, Tensor]:
    """A loss and its gradient by the prediction, both float64 on the CPU."""
    leaf = prediction.clone().requires_grad_()
    loss = function(leaf, *arguments, **options)
    loss.backward()
    assert leaf.grad is not None
    return loss.detach().cpu().double(), leaf.grad.cpu().double()


def assert_close(
    got: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor], gradient_tolerance: float = 5e-6
) -> None:
    """Losses to a few roundings of float32, gradients as a share of the largest."""
    torch.testing.assert_close(got[0], wanted[0], rtol=1e-6, atol=0)
    worst = (got[1] - wanted[1]).abs().max() / wanted[1].abs().max()
    assert worst <= gradient_tolerance
