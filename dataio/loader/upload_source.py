"""Crops decoded on the host, for a device: copied on a lane beside the consumer's."""

from dataclasses import dataclass, field

import numpy as np
import torch

from mim3d.dataio.device.lanes import Lanes
from mim3d.dataio.device.staged import Staged
from mim3d.dataio.device.uploader import PinnedArray, Uploader
from mim3d.dataio.loader.crop_source import STILL, RawBatch, ReadPlan, Wanted
from mim3d.dataio.loader.draws import Drawn
from mim3d.dataio.loader.staged_source import StagedBatch, StagedSource
from mim3d.dataio.reader.shard_reader import Request, ShardReader


@dataclass
class UploadBatch(StagedBatch):
    """A batch in pinned memory: `pinned` image and label, and the requests that were read."""

    pinned: tuple[PinnedArray, PinnedArray | None] | None = None
    requests: dict[int, Request] = field(default_factory=dict)


class UploadSource(StagedSource):
    """Threads fill pinned memory, the side lane copies.

    With `raw`, a dtype, they cross the bus as stored, and the device does the rest.
    """

    def __init__(self, reader: ShardReader, lanes: Lanes, plan: ReadPlan, raw: str | None) -> None:
        super().__init__(reader, lanes, plan)
        self.raw, self.uploader = raw, Uploader(lanes)

    def device_metrics(self) -> dict[str, float]:
        """Seconds of the device's stages."""
        return self.uploader.metrics()

    def _new_batch(self, what: Drawn, count: int) -> RawBatch:
        job = self.job
        shape = count, job.channels, *job.crop_size
        image = PinnedArray(self.lanes, shape, self.raw or job.image_dtype)
        label = None
        if job.label_dtype is not None:
            label = PinnedArray(self.lanes, (count, *job.crop_size), job.label_dtype)
        arrays = image.array, None if label is None else label.array
        parts = what.flips, what.views, what.placements
        return UploadBatch(what.samples, *arrays, *parts, pinned=(image, label))

    def _load(self, batch: RawBatch, i: int, wanted: Wanted) -> None:
        assert isinstance(batch, UploadBatch)
        if self.raw is not None:
            image = batch.requests[i] = wanted.image
            bare = image._replace(flip=STILL, rescale=None, fill=(0.0,) * len(image.fill))
            wanted = wanted._replace(image=bare)
        super()._load(batch, i, wanted)

    def _weighed_as_read(
        self, batch: RawBatch, i: int, image: Request
    ) -> tuple[Request, np.ndarray]:
        if self.raw is None:
            return super()._weighed_as_read(batch, i, image)
        assert isinstance(batch, UploadBatch)
        whole = batch.requests[i]
        assert whole.rescale is not None
        clips = tuple(each._replace(scale=1.0, shift=0.0) for each in whole.rescale)
        z, y, x = (slice(None, None, -1 if flip else 1) for flip in whole.flip)
        return image._replace(rescale=clips), batch.label[i][z, y, x]

    def _begin(self, batch: StagedBatch) -> Staged:
        assert isinstance(batch, UploadBatch)
        assert batch.pinned is not None
        (image, label), batch.pinned = batch.pinned, None
        raw = None
        if self.raw is not None:
            requests = [request for _, request in sorted(batch.requests.items())]
            raw = requests, np.array([self.reader.array(r.row).shape for r in requests])
        bits = self.job.image_dtype == "uint16"
        made = self.uploader.begin(
            *(image.tensor, None if label is None else label.tensor, raw),
            torch.bfloat16 if bits else torch.float32,
        )
        if raw is None or not bits:
            return made
        crops, *labels = made.tensors
        return Staged(self.lanes, (crops.view(torch.uint16), *labels), made.mark)
