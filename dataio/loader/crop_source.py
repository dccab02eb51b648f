"""Crops read ahead by threads: normalised arrays, with flips and intensities folded in."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from mim3d.dataio.errors import ChunkError
from mim3d.dataio.geometry import Triple
from mim3d.dataio.loader.buffer_pool import BufferPool
from mim3d.dataio.loader.crop_spec import CropJob, image_request, label_requests
from mim3d.dataio.loader.draws import Drawn, draws
from mim3d.dataio.loader.read_threads import ReadThreads, Work
from mim3d.dataio.loader.sampler import Sampler, Samples
from mim3d.dataio.reader.shard_reader import Request, ShardReader
from mim3d.dataio.reader.voxel_weights import VoxelWeights
from mim3d.dataio.transforms.augment import ViewDraws, draw_placements
from mim3d.dataio.transforms.placement import Placement, Placements
from mim3d.dataio.transforms.resampling import resample_image, resample_label

Labels = tuple[Request | None, ...]
REPLACEMENTS = 16
HELD = 4  # batches that a consumer holds at a time, as DALI's queue and a training step do
STILL = (False, False, False)
MOST_BATCHES, MOST_CROPS = 16, 128
"""Of which a store is asked for the chunks before anything else: whichever are more."""


class Wanted(NamedTuple):
    """What is read for one crop: of image and label, or of each label that marks what is ignored
    (None where the volume has none), and how it lies in the box that is read of them (None: the box
    is the crop)."""

    image: Request
    labels: Labels
    placement: Placement | None


@dataclass
class RawBatch:
    """Arrays of one batch, and the samples they were read for.

    `image` (b, c, z, y, x) float32, or uint16 for the bits of bfloat16; `label` (b, z, y, x), or
    weights in its place, or None: numpy on the host, from a pool that has them back when nobody
    holds them, or tensors on a device. `flips` (b, 3) bool are along z, y, x, `placements` of crops
    that are turned within their volumes. `error` is what reading raised, if anything.
    """

    samples: Samples
    image: Any
    label: Any
    flips: np.ndarray
    views: list[ViewDraws]
    placements: Placements | None = None
    error: BaseException | None = None


@dataclass(frozen=True)
class ReadPlan:
    """What one rank reads, by how many threads, and how many batches before they are asked for."""

    sampler: Sampler
    job: CropJob
    threads: int
    ahead: int


class CropSource:
    """Reads the batches of one rank in order, ahead of who takes them."""

    notes: tuple[str, ...] = ()
    """Lines that say where what is read stays."""

    def __init__(self, reader: ShardReader, plan: ReadPlan) -> None:
        self.reader, self.sampler, self.job = reader, plan.sampler, plan.job
        self.replaced = 0
        self.crops = 0
        self.wait_s = 0.0
        self._n_threads, self._ahead = plan.threads, plan.ahead
        self._threads = ReadThreads(plan.threads)
        self._pools: dict[int, tuple[BufferPool, BufferPool | None]] = {}
        self._pending: dict[int, tuple[RawBatch, Work]] = {}
        self._own = threading.local()

    def batches(self, first: int, stride: int, count: int) -> Iterator[RawBatch]:
        """Yield batches of `count` samples from global index `first`, `stride` apart, for ever."""
        self._cancel()
        drawn = draws(self.sampler, self.job, first, stride, count)
        announced: dict[int, Drawn] = {}
        number = submitted = 0
        while True:
            first = max([*announced, submitted - 1]) + 1
            self._announce(announced, drawn, first, number + max(MOST_BATCHES, MOST_CROPS // count))
            while submitted < number + self._ahead:
                what = announced.pop(submitted, None) or drawn(submitted)
                self._submit(submitted, what, count)
                submitted += 1
            batch = self._take(number)
            self.crops += count
            yield batch
            number += 1

    def close(self) -> None:
        """Stop the threads; waits for crops being read."""
        self._cancel()
        self._threads.close()
        self.reader.close()

    def _cancel(self) -> None:
        for _, work in self._pending.values():
            work.drop()
        self.reader.withdraw()
        for _, work in self._pending.values():
            work.wait()
        self._pending = {}

    def _buffers(self, count: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Image and label of a new batch, undefined as yet."""
        if count not in self._pools:
            size, label = self.job.crop_size, self.job.label_dtype
            spare = self._ahead + HELD
            image = BufferPool((count, self.job.channels, *size), self.job.image_dtype, spare)
            labels = None if label is None else BufferPool((count, *size), label, spare)
            self._pools[count] = image, labels
        images, labels = self._pools[count]
        return images.take(), None if labels is None else labels.take()

    def _announce(
        self, announced: dict[int, Drawn], drawn: Callable[[int], Drawn], first: int, end: int
    ) -> None:
        """Have the chunks of batches from `first` to `end` fetched, as far as they may be."""
        while first < end and self._has_room():
            what = announced[first] = drawn(first)
            rows = [self.job.image_rows, *self.job.label_rows]
            for i, volume in enumerate(what.samples.volume.tolist()):
                start, size = self._box_of(what, i)
                for row in (int(each[volume]) for each in rows if 0 not in size):
                    if row >= 0:
                        self.reader.announce(row, start, size)
            first += 1

    def _box_of(self, what: Drawn, i: int) -> tuple[Triple, Triple]:
        """Start and size of the box that is read for sample i."""
        placement = None if what.placements is None else what.placements.of(i)
        if placement is not None:
            return placement.start, placement.size
        z, y, x = what.samples.start[i].tolist()
        return (z, y, x), self.job.crop_size

    def _has_room(self) -> bool:
        """Whether chunks of further batches should be asked for by now."""
        return self.reader.shards.has_room()

    def _submit(self, number: int, what: Drawn, count: int) -> None:
        batch = self._new_batch(what, count)
        parts = self._parts(count)
        calls = [partial(self._fill, batch, range(part, count, parts)) for part in range(parts)]
        self._pending[number] = batch, self._threads.start(calls)

    def _new_batch(self, what: Drawn, count: int) -> RawBatch:
        """A batch to be read, with what it is read into."""
        buffers = self._buffers(count)
        return RawBatch(what.samples, *buffers, what.flips, what.views, what.placements)

    def _parts(self, count: int) -> int:
        """Into how many tasks a batch is cut."""
        return min(self._n_threads, count)

    def _fill(self, batch: RawBatch, members: range) -> None:
        for i in members:
            try:
                self._load(batch, i, self._requests(batch, i, batch.samples, i))
            except ChunkError:
                if not self.job.replace_errors:
                    raise
                self._replace(batch, i)

    def _take(self, number: int) -> RawBatch:
        """A batch, once it is read; what that raised is its `error`."""
        batch, work = self._pending.pop(number)
        began = time.perf_counter()
        batch.error = work.wait()
        self.wait_s += time.perf_counter() - began
        return batch

    def settle(self) -> None:
        """Wait for what a device was given; an error where it failed. The host has no such."""

    def device_metrics(self) -> dict[str, float]:
        """What a device kept, and its seconds by stage; nothing of the host's."""
        return {}

    def _replace(self, batch: RawBatch, i: int) -> Wanted:
        """Load the sample's deterministic stand-ins until one is sound; its requests."""
        for attempt in range(1, REPLACEMENTS + 1):
            other = self.sampler.replacement(int(batch.samples.sample[i]), attempt)
            requests = self._requests(batch, i, other, 0)
            try:
                self._load(batch, i, requests)
            except ChunkError as error:
                if attempt == REPLACEMENTS:
                    others = f"so are all {REPLACEMENTS} crops that could stand in for it"
                    raise ChunkError(f"{error} ({others})") from error
                continue
            batch.samples.volume[i], batch.samples.start[i] = other.volume[0], other.start[0]
            self.replaced += 1
            return requests
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _requests(self, batch: RawBatch, i: int, samples: Samples, at: int) -> Wanted:
        """Crops of sample `at` of `samples`, augmented as place `i` of the batch."""
        job = self.job
        volume = int(samples.volume[at])
        z, y, x = samples.start[at].tolist()
        mirrored, gain, bias = STILL, 1.0, 0.0
        if not job.augmentation.per_view:
            along_z, along_y, along_x = batch.flips[i].tolist()
            mirrored = (along_z, along_y, along_x)
            gain, bias = float(batch.views[0].gain[i]), float(batch.views[0].bias[i])
        start, placement = (z, y, x), self._placement(batch, i, samples, at)
        if placement is not None:  # which has the flips in its matrix
            start, mirrored = placement.start, STILL
        image = image_request(job, volume, start, mirrored, gain, bias)
        return Wanted(image, label_requests(job, volume, start, mirrored), placement)

    def _placement(self, batch: RawBatch, i: int, samples: Samples, at: int) -> Placement | None:
        """How that crop lies in its volume: drawn anew for a stand-in, by the same numbers."""
        if batch.placements is None or samples is batch.samples:
            return None if batch.placements is None else batch.placements.of(i)
        one, job = slice(at, at + 1), self.job
        drawn = draw_placements(
            *(job.augmentation, batch.samples.augment_seed[i : i + 1], samples.start[one]),
            *(job.crop_size, batch.flips[i : i + 1], job.volumes[samples.volume[one]]),
        )
        return None if drawn is None else drawn.of(0)

    def _load(self, batch: RawBatch, i: int, wanted: Wanted) -> None:
        """Read the crops into place `i` of the batch."""
        image, labels, placement = wanted
        if placement is not None:
            self._load_moved(batch, i, image, labels, placement)
            return
        size = self.job.crop_size
        self.reader.read_box(
            image.row, image.start, size, batch.image[i],
            fill=image.fill, flip=image.flip, rescale=image.rescale,
        )  # fmt: skip
        if self.job.weights is not None:
            request, counted = self._weighed_as_read(batch, i, image)
            mark_counted(self.job.weights, request, batch.image[i], counted)
            self._ignore(labels, size, batch.label[i])
        elif batch.label is not None:
            (label,) = filter(None, labels)
            target = batch.label[i][None]
            self.reader.read_box(label.row, label.start, size, target, flip=label.flip)

    def _weighed_as_read(
        self, batch: RawBatch, i: int, image: Request
    ) -> tuple[Request, np.ndarray]:
        """What crop `i` was read by, with its intensities, and its weights in that order."""
        return image, batch.label[i]

    def _ignore(self, labels: Labels, size: Triple, counted: np.ndarray) -> None:
        """Take out of what counts (z, y, x) what labels mark."""
        for label in filter(None, labels):
            room = self._room((1, *size), self.reader.array(label.row).dtype)
            (marked,) = self.reader.read_box(label.row, label.start, size, room, flip=label.flip)
            clear = np.equal(marked, 0, out=marked.view(bool) if marked.itemsize == 1 else None)
            np.logical_and(counted.view(bool), clear, out=counted.view(bool))

    def _load_moved(
        self, batch: RawBatch, i: int, image: Request, labels: Labels, at: Placement
    ) -> None:
        """Read the boxes in which the crops lie, and make the crops from them."""
        box = self._room((self.job.channels, *at.size), np.dtype(np.float32))
        if not at.is_empty:
            self.reader.read_box(image.row, at.start, at.size, box, rescale=image.rescale)
        resample_image(box, at, filled(image), batch.image[i])
        if self.job.weights is not None:
            counted = np.empty(at.size, np.uint8)
            if not at.is_empty:
                mark_counted(self.job.weights, image, box, counted)
                self._ignore(labels, at.size, counted)
            move_counted(self.job.weights, counted, at, batch.label[i])
        elif batch.label is not None:
            (label,) = filter(None, labels)
            part = self._room((1, *at.size), batch.label.dtype)
            if not at.is_empty:
                self.reader.read_box(label.row, at.start, at.size, part)
            resample_label(part[0], at, batch.label[i])

    def _room(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """This thread's array of that shape, undefined: kept, for fresh memory is slow."""
        nbytes = int(np.prod(shape)) * dtype.itemsize
        room: np.ndarray | None = getattr(self._own, "room", None)
        if room is None or nbytes > len(room):
            room = self._own.room = np.empty(nbytes, np.uint8)
        return room[:nbytes].view(dtype).reshape(shape)


def mark_counted(
    weights: VoxelWeights, image: Request, voxels: np.ndarray, out: np.ndarray
) -> None:
    """Write 1 into `out` (z, y, x) where the voxels (c, z, y, x) of a crop count, and 0 elsewhere,
    but for what labels mark."""
    if weights.thresholds is None:
        out[...] = 1
    else:
        found = out.view(bool)
        sign, least = weights.foreground(image)
        above = np.greater if sign > 0 else np.less
        above(voxels[0], np.float32(sign * least[0]), out=found)
        for channel, value in zip(voxels[1:], least[1:], strict=True):
            found |= above(channel, np.float32(sign * value))
    size = (out.shape[0], out.shape[1], out.shape[2])
    for axis, part in enumerate(weights.part(image, size)):
        along = np.moveaxis(out, axis, 0)
        along[: part.start] = along[part.stop :] = 0


def move_counted(weights: VoxelWeights, box: np.ndarray, at: Placement, out: np.ndarray) -> None:
    """Weights (z, y, x) of a crop that lies so in its box, as a label is moved; beyond the volume
    nothing counts, or all where padding does."""
    if weights.padding:
        resample_label(box, at, out)
    else:
        resample_label(1 - box, at, out)
        np.subtract(1, out, out=out)


def filled(image: Request) -> tuple[float, ...]:
    """What lies outside a volume, of each channel, as it comes out."""
    if image.rescale is None:
        return image.fill
    return tuple(
        float(rescale.apply(np.array([fill], np.float32))[0])
        for rescale, fill in zip(image.rescale, image.fill, strict=True)
    )
