"""Small arrays to a device: together in one copy, which never makes the host wait.

A copy from ordinary memory may wait until the device has come so far; one from pinned memory is
queued.
"""

from collections.abc import Sequence

import numpy as np
import torch

from mim3d.dataio.device.lanes import Lanes

ALIGN = 256  # bytes: what begins there may be loaded in words of any width


def to_device(arrays: Sequence[np.ndarray], lanes: Lanes) -> list[torch.Tensor]:
    """Copies of the arrays on the device, of their shapes and dtypes, on its current lane."""
    begins = np.cumsum([0, *(-(-array.nbytes // ALIGN) * ALIGN for array in arrays)]).tolist()
    host = lanes.pinned(begins[-1])
    memory = host.numpy()
    for begin, array in zip(begins, arrays, strict=False):
        memory[begin : begin + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view("u1")
    moved = lanes.upload(host)
    return [
        moved[begin : begin + array.nbytes].view(torch_dtype(array)).view(array.shape)
        for begin, array in zip(begins, arrays, strict=False)
    ]


def torch_dtype(array: np.ndarray) -> torch.dtype:
    """torch's name for an array's dtype."""
    return getattr(torch, array.dtype.name)
