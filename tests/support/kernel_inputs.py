"""Volumes and patch ids for tests of kernels."""

from collections.abc import Sequence

import torch
from torch import Tensor

DTYPES = (torch.uint8, torch.int16, torch.float16, torch.bfloat16, torch.float32)


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
