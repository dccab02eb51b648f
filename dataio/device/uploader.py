"""Crops that the host decoded, to the device: pinned memory, copies that nobody waits for.

They cross the bus as they are wanted, or raw: in the dtype in which they are stored, where that is
shorter. Then the device clips, scales, pads and flips them, with the bits of the host's own work.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mim3d.dataio.device.crop_arguments import crop_arguments
from mim3d.dataio.device.device_copy import to_device
from mim3d.dataio.device.lanes import Lanes
from mim3d.dataio.device.stage_times import StageTimes
from mim3d.dataio.device.staged import Staged, staged
from mim3d.dataio.reader.shard_reader import Request
from mim3d.kernels.assemble import assemble_crops
from mim3d.kernels.assemble_kernel import STORED_DTYPES

WIDTHS = {"float32": 4, "uint16": 2}
"""Bytes of a voxel as crops are wanted; uint16 are the bits of bfloat16."""


def shorter_dtype(stored: np.dtype | None, wanted: str) -> str | None:
    """The dtype in which volumes are stored, where it makes crops shorter; else None."""
    if stored is None or getattr(torch, stored.name, None) not in STORED_DTYPES:
        return None
    return stored.name if stored.itemsize < WIDTHS[wanted] else None


class PinnedArray:
    """An array for the host to fill, in memory whose upload nobody waits for."""

    def __init__(self, lanes: Lanes, shape: tuple[int, ...], dtype: str) -> None:
        n = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.tensor = lanes.pinned(n).view(getattr(torch, np.dtype(dtype).name)).view(shape)
        self.array = self.tensor.numpy()


class Uploader:
    """Queues copies, and what is left to do to raw crops, on the side lane."""

    def __init__(self, lanes: Lanes) -> None:
        self.lanes = lanes
        self.times = StageTimes(lanes.device)

    def metrics(self) -> dict[str, float]:
        """Seconds on the device by stage."""
        return {f"device_{stage}_s": seconds for stage, seconds in self.times.totals().items()}

    def begin(
        self,
        image: Tensor,
        label: Tensor | None,
        raw: tuple[Sequence[Request], np.ndarray] | None,
        out_dtype: torch.dtype,
    ) -> Staged:
        """Have a batch's pinned `image` (b, c, z, y, x), and `label`, brought over.

        With `raw`, the requests and the volumes' shapes (b, 3), the image holds stored values,
        without flips; whatever it has outside the volumes does not count.
        """
        with self.lanes.side():
            self.times.start()
            moved = [self.lanes.upload(each) for each in (image, label) if each is not None]
            self.times.lap("copy")
            if raw is not None:
                moved[0] = self._finished(moved[0], *raw, out_dtype)
                self.times.lap("assemble")
            return staged(self.lanes, moved)

    def _finished(
        self, crops: Tensor, requests: Sequence[Request], shapes: np.ndarray, dtype: torch.dtype
    ) -> Tensor:
        """Stored values as they are wanted: a crop is one chunk, of one channel, in order."""
        b, c, *size = crops.shape
        arrays, unit = crop_arguments(requests, shapes, np.array([r.start for r in requests]))
        arrays["table"] = np.arange(b * c).reshape(b, c, 1, 1, 1)
        moved = to_device(list(arrays.values()), self.lanes)
        given: dict[str, Any] = dict(zip(arrays, moved, strict=True))
        return assemble_crops(
            crops.view(b * c, -1).view(torch.uint8),
            **given,
            crop_size=size,
            chunk_size=size,
            dtype=crops.dtype,
            shuffle="none",
            start_unit=unit,
            out_dtype=dtype,
        )
