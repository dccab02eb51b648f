"""Many tensors as views of one, so that one kernel takes them all.

Each begins at a multiple of ALIGNED values: kernels load whole vectors, and torch's matrix products
ask for it. What lies between is zero and stays so.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

ALIGNED = 64


def padded(count: int) -> int:
    """A number of values, rounded up to where the next tensor begins."""
    return -(-count // ALIGNED) * ALIGNED


def flat_like(tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Zeros that have room for all of them, on their device."""
    count = sum(padded(tensor.numel()) for tensor in tensors)
    return torch.zeros(count, dtype=dtype, device=tensors[0].device)


def views_of(flat: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The part of `flat` that is each tensor's, in its shape."""
    found, start = [], 0
    for tensor in tensors:
        found.append(flat[start : start + tensor.numel()].view(tensor.shape))
        start += padded(tensor.numel())
    return found
