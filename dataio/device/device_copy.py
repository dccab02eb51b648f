"""Small arrays to a device: together in one copy, which never makes the host wait.

A copy from ordinary memory may wait until the device has come so far; one from pinned memory is
queued. The pinned buffer is torch's, which uses it again only once the copy is done.
"""

from collections.abc import Sequence

import numpy as np
import torch

ALIGN = 256  # bytes: what begins there may be loaded in words of any width


def pinned_bytes(n: int, device: torch.device) -> torch.Tensor:
    """Host memory (n,) uint8, undefined, pinned where `device` is a GPU."""
    return torch.empty(n, dtype=torch.uint8, pin_memory=device.type == "cuda")


def to_device(arrays: Sequence[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """Copies of the arrays on `device`, of their shapes and dtypes, on its current stream."""
    begins = np.cumsum([0, *(-(-array.nbytes // ALIGN) * ALIGN for array in arrays)]).tolist()
    host = pinned_bytes(begins[-1], device)
    memory = host.numpy()
    for begin, array in zip(begins, arrays, strict=False):
        memory[begin : begin + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view("u1")
    moved = host.to(device, non_blocking=True)
    return [
        moved[begin : begin + array.nbytes].view(torch_dtype(array)).view(array.shape)
        for begin, array in zip(begins, arrays, strict=False)
    ]


def torch_dtype(array: np.ndarray) -> torch.dtype:
    """torch's name for an array's dtype."""
    return getattr(torch, array.dtype.name)
