"""Sources of crops that end on a device, a batch ahead of whoever takes them.

Threads read; the consumer's thread queues the device's part on a lane beside his own. When it takes
a batch the next one, if it is read by then, is queued at once, and so is made while this one is
worked on. The device waits for no host, and the host for a device only where it is far behind.
"""

from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

import torch

from mim3d.dataio.device.lanes import Lanes
from mim3d.dataio.device.staged import Staged
from mim3d.dataio.loader.crop_source import CropSource, RawBatch, ReadPlan
from mim3d.dataio.reader.shard_reader import ShardReader

RUN_AHEAD = 2  # batches whose work the host has queued and the device not finished


@dataclass
class StagedBatch(RawBatch):
    """A batch whose `image` and `label` are on the host until the side lane was given it.

    `staged` is what that lane makes of it: image, then label if any.
    """

    staged: Staged | None = None


class StagedSource(CropSource, ABC):
    """As CropSource, but `image` and `label` are tensors on the device, made a batch ahead."""

    def __init__(self, reader: ShardReader, lanes: Lanes, plan: ReadPlan) -> None:
        # One more is read ahead: while one is being made, as many as elsewhere are being read.
        super().__init__(reader, replace(plan, ahead=plan.ahead + lanes.overlaps))
        self.lanes = lanes
        self._begun: dict[int, StagedBatch] = {}
        self._taken: deque[Any] = deque()

    @abstractmethod
    def _begin(self, batch: StagedBatch) -> Staged:
        """Queue the device's part of a batch that was read, on the side lane."""

    def _take(self, number: int) -> RawBatch:
        """A batch for the consumer's lane; the next one is begun where it is read by now."""
        batch = self._begun.pop(number, None) or self._made(number)
        if self.lanes.overlaps and self._is_read(number + 1):
            self._begun[number + 1] = self._made(number + 1)
        self._throttle()
        made, batch.staged = batch.staged, None
        if made is not None:
            batch.image, *label = made.take()
            batch.label = label[0] if label else None
        return batch

    def _throttle(self) -> None:
        """Keep the host from running further ahead than what a step queues can hide.

        Memory of batches that the device has not come to yet is nobody else's, and a host that
        repeats a step by one call would queue hundreds.
        """
        self._taken.append(self.lanes.record())  # behind it is the work on this batch
        if len(self._taken) > RUN_AHEAD:
            self.lanes.throttle(self._taken.popleft())

    def _is_read(self, number: int) -> bool:
        """Whether a batch waits to be begun."""
        return number in self._pending and self._pending[number][1].is_done

    def _made(self, number: int) -> StagedBatch:
        """A batch that the side lane was given; what went wrong is its `error`, for its turn."""
        batch = super()._take(number)
        assert isinstance(batch, StagedBatch)
        try:
            if batch.error is None:
                batch.staged = self._begin(batch)
        except Exception as error:
            batch.error = error
        if batch.error is not None:
            batch.image, batch.label = self._nothing(len(batch.flips))
        return batch

    def _nothing(self, count: int) -> tuple[Any, Any]:
        """What a batch that could not be made hands to the graph, which is fed ahead."""
        job, label = self.job, None
        kind, device = getattr(torch, job.image_dtype), self.lanes.device
        image = torch.zeros((count, job.channels, *job.crop_size), dtype=kind, device=device)
        if job.label_dtype is not None:
            kind = getattr(torch, job.label_dtype)
            label = torch.zeros((count, *job.crop_size), dtype=kind, device=device)
        return image, label

    def _cancel(self) -> None:
        self._begun.clear()
        self._taken.clear()
        super()._cancel()
