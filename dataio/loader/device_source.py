"""The source of crops that are decoded on the device: threads fetch, the consumer assembles."""

from dataclasses import dataclass

import numpy as np
import torch

from mim3d.dataio.device.device_reader import DeviceReader, Fetched
from mim3d.dataio.errors import ChunkError
from mim3d.dataio.loader.crop_source import CropSource, RawBatch, Wanted
from mim3d.dataio.loader.crop_spec import CropJob
from mim3d.dataio.loader.sampler import Sampler


@dataclass
class DeviceBatch(RawBatch):
    """A batch whose compressed chunks are on the host, until `image` and `label` are assembled."""

    fetched: tuple[Fetched, Fetched | None] | None = None


class DeviceSource(CropSource):
    """As CropSource, but `image` and `label` are tensors on the reader's device."""

    def __init__(
        self, device_reader: DeviceReader, sampler: Sampler, job: CropJob, threads: int, ahead: int
    ) -> None:
        super().__init__(device_reader.reader, sampler, job, threads, ahead)
        self.device_reader = device_reader

    def _buffers(self, count: int) -> tuple[np.ndarray, np.ndarray | None]:
        """What a batch that could not be read hands to the graph: no memory unless it is used."""
        job = self.job
        image = np.zeros((count, job.channels, *job.crop_size), job.image_dtype)
        label = None
        if job.label_dtype is not None:
            label = np.zeros((count, *job.crop_size), job.label_dtype)
        return image, label

    def _new_batch(self, *parts: object) -> RawBatch:
        return DeviceBatch(*parts)  # type: ignore[arg-type]

    def _has_room(self) -> bool:
        return False  # which chunks a batch lacks is known when it is fetched

    def _parts(self, count: int) -> int:
        return 1

    def _fill(self, batch: RawBatch, members: range) -> None:
        """Fetch the whole batch; on a damaged chunk find the samples to replace and fetch again."""
        assert isinstance(batch, DeviceBatch)
        requests = [self._requests(batch, i, batch.samples, i) for i in members]
        try:
            batch.fetched = self._fetch(requests)
        except ChunkError:
            if not self.job.replace_errors:
                raise
            for i in members:
                try:
                    self._fetch([requests[i]])
                except ChunkError:
                    requests[i] = self._replace(batch, i)
            batch.fetched = self._fetch(requests)

    def _load(self, batch: RawBatch, i: int, wanted: Wanted) -> None:
        self._fetch([wanted])

    def _fetch(self, requests: list[Wanted]) -> tuple[Fetched, Fetched | None]:
        size = self.job.crop_size
        labels = [each.label for each in requests if each.label is not None]
        image = self.device_reader.fetch([each.image for each in requests], size)
        return image, self.device_reader.fetch(labels, size) if labels else None

    def _finish(self, batch: RawBatch) -> None:
        """Assemble on the consumer's thread, on the device's current stream."""
        assert isinstance(batch, DeviceBatch)
        assert batch.fetched is not None
        image, label = batch.fetched
        size = self.job.crop_size
        bits = self.job.image_dtype == "uint16"
        kind = torch.bfloat16 if bits else torch.float32
        crops = self.device_reader.assemble(image, size, kind)
        # As bits, as crops decoded on the CPU are: numpy has no bfloat16.
        batch.image = crops.view(torch.uint16) if bits else crops
        if label is not None and self.job.label_dtype is not None:
            dtype = getattr(torch, self.job.label_dtype)
            batch.label = self.device_reader.assemble(label, size, dtype)[:, 0]
        batch.fetched = None
