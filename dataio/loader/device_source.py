"""Crops decoded on the device, out of compressed chunks that threads fetch."""

from dataclasses import dataclass

import numpy as np
import torch

from mim3d.dataio.device.device_copy import to_device
from mim3d.dataio.device.device_reader import DeviceReader, Fetched
from mim3d.dataio.device.staged import Staged, staged
from mim3d.dataio.errors import ChunkError
from mim3d.dataio.geometry import Triple
from mim3d.dataio.loader.crop_source import RawBatch, ReadPlan, Wanted, filled
from mim3d.dataio.loader.draws import Drawn
from mim3d.dataio.loader.staged_source import StagedBatch, StagedSource
from mim3d.dataio.reader.voxel_weights import VoxelWeights
from mim3d.dataio.transforms.placement import Placement
from mim3d.kernels.resample import resample_boxes


@dataclass(frozen=True)
class PartLabels:
    """Chunks of one kind of label: places in the part of the crops that have it, and the size of
    the largest of their boxes."""

    members: list[int]
    fetched: Fetched
    size: Triple

    @property
    def kind(self) -> torch.dtype:
        """What keeps every class apart from 0."""
        return torch.uint8 if self.fetched.array.dtype == "uint8" else torch.int16


@dataclass(frozen=True)
class Part:
    """Crops that are made alike: places of the batch, and the chunks of their boxes.

    Boxes are the crops, or, with `placements`, what crops turned within their volumes lie in;
    `size` is the largest box's.
    """

    members: list[int]
    image: Fetched
    labels: list[PartLabels]
    size: Triple
    placements: list[Placement]


@dataclass
class DeviceBatch(StagedBatch):
    """A batch whose compressed chunks were fetched: of crops as they lie, and of turned ones."""

    fetched: tuple[Part, ...] = ()


class DeviceSource(StagedSource):
    """Threads fetch, the side lane decodes; `notes` say what the device keeps."""

    def __init__(self, device_reader: DeviceReader, plan: ReadPlan, notes: tuple[str, ...]) -> None:
        super().__init__(device_reader.reader, device_reader.lanes, plan)
        self.device_reader, self.notes = device_reader, notes

    def settle(self) -> None:
        """Wait for the device; a ChunkError where a stream did not decode."""
        self.device_reader.settle()

    def device_metrics(self) -> dict[str, float]:
        """Of the device's cache and stages."""
        return self.device_reader.metrics()

    def _new_batch(self, what: Drawn, count: int) -> RawBatch:
        return DeviceBatch(what.samples, None, None, what.flips, what.views, what.placements)

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

    def _fetch(self, requests: list[Wanted]) -> tuple[Part, ...]:
        still = [i for i, each in enumerate(requests) if each.placement is None]
        moved = [i for i, each in enumerate(requests) if each.placement is not None]
        return tuple(self._fetch_part(requests, part) for part in (still, moved) if part)

    def _fetch_part(self, requests: list[Wanted], members: list[int]) -> Part:
        mine = [requests[i] for i in members]
        placements = [each.placement for each in mine if each.placement is not None]
        sizes = np.array([each.size for each in placements] or [self.job.crop_size] * len(mine))
        image = self.device_reader.fetch([each.image for each in mine], sizes)
        labels: list[PartLabels] = []
        for kind in zip(*(each.labels for each in mine), strict=True):
            there = {i: label for i, label in enumerate(kind) if label is not None}
            if there:
                own = sizes[list(there)]
                fetched = self.device_reader.fetch(list(there.values()), own)
                labels.append(PartLabels(list(there), fetched, _largest(own)))
        return Part(members, image, labels, _largest(sizes), placements)

    def _begin(self, batch: StagedBatch) -> Staged:
        assert isinstance(batch, DeviceBatch)
        parts, batch.fetched = batch.fetched, ()
        made = [self._begin_part(part) for part in parts]
        if len(parts) == 1:
            return made[0]
        with self.lanes.side():
            whole = [each.new_empty(len(batch.flips), *each.shape[1:]) for each in made[0].tensors]
            for part, staged_part in zip(parts, made, strict=True):
                for target, crops in zip(whole, staged_part.tensors, strict=True):
                    for i, crop in zip(part.members, crops, strict=True):
                        target[i].copy_(crop)
            return staged(self.lanes, whole)

    def _begin_part(self, part: Part) -> Staged:
        """Image, then label if any, of the crops of a part."""
        bits = self.job.image_dtype == "uint16"
        kind = torch.bfloat16 if bits else torch.float32
        made = self.device_reader.begin(part.image, part.size, kind)
        # As bits, as crops decoded on the CPU are: numpy has no bfloat16.
        crops = [each.view(torch.uint16) if bits else each for each in made.tensors]
        if self.job.weights is not None:
            made = self._weighed(self.job.weights, part, crops[0])
            crops.append(made.tensors[0])
        elif self.job.label_dtype is not None:
            dtype = getattr(torch, self.job.label_dtype)
            (label,) = part.labels
            made = self.device_reader.begin(label.fetched, part.size, dtype)
            crops.append(made.tensors[0])
        if part.placements:
            return self._turned(part, crops)
        return Staged(self.lanes, tuple(_without_channel(crops)), made.mark)

    def _weighed(self, weights: VoxelWeights, part: Part, boxes: torch.Tensor) -> Staged:
        """1 where voxels of boxes (b, c, z, y, x) float32 count, (b, 1, z, y, x) uint8; where
        padding does and boxes are to be turned, 1 where voxels do not."""
        marked: list[tuple[int, torch.Tensor]] = []
        for label in part.labels:
            made = self.device_reader.begin(label.fetched, label.size, label.kind)
            marked += zip(label.members, made.tensors[0], strict=True)
        b, c, *size = boxes.shape
        requests = part.image.requests
        with self.lanes.side():
            found = torch.ones((b, 1, *size), dtype=torch.uint8, device=boxes.device)
            if weights.thresholds is not None:
                signs, least = zip(*map(weights.foreground, requests), strict=True)
                arrays = [np.array(each, np.float32) for each in (signs, least)]
                sign, value = to_device(arrays, self.lanes)
                above = boxes * sign.view(b, 1, 1, 1, 1) > value.view(b, c, 1, 1, 1)
                found = above.any(1, keepdim=True).to(torch.uint8)
            for i, request in enumerate(requests):
                for axis, inside in enumerate(weights.part(request, part.size), start=1):
                    along = found[i].movedim(axis, 0)
                    along[: inside.start] = along[inside.stop :] = 0
            for i, mask in marked:
                z, y, x = mask.shape[1:]  # its own box: what the part's has beyond is nobody's
                found[i, :, :z, :y, :x] *= mask == 0
            return staged(self.lanes, [1 - found if self._is_inverted(part) else found])

    def _is_inverted(self, part: Part) -> bool:
        """Whether weights are turned the other way up: beyond the volume all count."""
        weights = self.job.weights
        return bool(part.placements) and weights is not None and not weights.padding

    def _turned(self, part: Part, boxes: list[torch.Tensor]) -> Staged:
        """Crops out of the boxes in which they lie, of image and label."""
        arrays = [
            np.stack([each.within_box for each in part.placements]),
            np.stack([each.extent for each in part.placements]),
            np.array([filled(request) for request in part.image.requests], np.float32),
        ]
        with self.lanes.side():
            placing, extent, fill = to_device(arrays, self.lanes)
            crops = [
                resample_boxes(
                    each, placing, extent, crop_size=self.job.crop_size, fill=None if i else fill
                )
                for i, each in enumerate(boxes)
            ]
            if self._is_inverted(part):
                crops[1] = 1 - crops[1]
            return staged(self.lanes, _without_channel(crops))


def _largest(sizes: np.ndarray) -> Triple:
    """Of boxes (b, 3), one voxel at least."""
    z, y, x = np.maximum(sizes.max(0), 1).tolist()
    return z, y, x


def _without_channel(crops: list[torch.Tensor]) -> list[torch.Tensor]:
    """The image as it is, the label (b, 1, z, y, x), if any, without its channel."""
    return [each[:, 0] if i else each for i, each in enumerate(crops)]
