"""Crops read ahead by threads: normalised arrays, with flips and intensities folded in."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mim3d.dataio.errors import ChunkError
from mim3d.dataio.loader.augment import ViewDraws
from mim3d.dataio.loader.buffer_pool import BufferPool
from mim3d.dataio.loader.crop_spec import CropJob, image_request, label_request
from mim3d.dataio.loader.draws import Drawn, draws
from mim3d.dataio.loader.read_threads import ReadThreads, Work
from mim3d.dataio.loader.sampler import Sampler, Samples
from mim3d.dataio.reader.shard_reader import Request, ShardReader

REPLACEMENTS = 16
HELD = 4  # batches that a consumer holds at a time, as DALI's queue and a training step do
STILL = (False, False, False)
MOST_ANNOUNCED = 16  # batches, of which a store is asked for the chunks before anything else


@dataclass
class RawBatch:
    """Arrays of one batch, and the samples they were read for.

    `image` (b, c, z, y, x) float32, or uint16 for the bits of bfloat16; `label` (b, z, y, x) or
    None: numpy on the host, from a pool that has them back when nobody holds them, or tensors on a
    device. `flips` (b, 3) bool are along z, y, x. `error` is what reading raised, if anything.
    """

    samples: Samples
    image: Any
    label: Any
    flips: np.ndarray
    views: list[ViewDraws]
    error: BaseException | None = None


class CropSource:
    """Reads the batches of one rank in order, `ahead` of them before they are asked for."""

    def __init__(
        self,
        reader: ShardReader,
        sampler: Sampler,
        job: CropJob,
        threads: int,
        ahead: int,
    ) -> None:
        self.reader, self.sampler, self.job = reader, sampler, job
        self.replaced = 0
        self.crops = 0
        self.wait_s = 0.0
        self._n_threads, self._ahead = threads, ahead
        self._threads = ReadThreads(threads)
        self._pools: dict[int, tuple[BufferPool, BufferPool | None]] = {}
        self._pending: dict[int, tuple[RawBatch, Work]] = {}

    def batches(self, first: int, stride: int, count: int) -> Iterator[RawBatch]:
        """Yield batches of `count` samples from global index `first`, `stride` apart, for ever."""
        self._cancel()
        drawn = draws(self.sampler, self.job, first, stride, count)
        announced: dict[int, Drawn] = {}
        number = submitted = 0
        while True:
            self._announce(announced, drawn, max([*announced, submitted - 1]) + 1, number)
            while submitted < number + self._ahead:
                what = announced.pop(submitted, None) or drawn(submitted)
                self._submit(submitted, what, count)
                submitted += 1
            batch, work = self._pending.pop(number)
            began = time.perf_counter()
            batch.error = work.wait()
            self.wait_s += time.perf_counter() - began
            self.crops += count
            if batch.error is None:
                self._finish(batch)
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
        self, announced: dict[int, Drawn], drawn: Callable[[int], Drawn], first: int, number: int
    ) -> None:
        """Have the chunks of batches from `first` on fetched, as far ahead as they may be."""
        while first < number + MOST_ANNOUNCED and self._has_room():
            what = announced[first] = drawn(first)
            size, rows = self.job.crop_size, [self.job.image_rows, self.job.label_rows]
            for volume, (z, y, x) in zip(
                what.samples.volume.tolist(), what.samples.start.tolist(), strict=True
            ):
                for row in (int(each[volume]) for each in rows if each is not None):
                    self.reader.announce(row, (z, y, x), size)
            first += 1

    def _has_room(self) -> bool:
        """Whether chunks of further batches should be asked for by now."""
        return self.reader.shards.has_room()

    def _submit(self, number: int, what: Drawn, count: int) -> None:
        batch = self._new_batch(what.samples, *self._buffers(count), what.flips, what.views)
        parts = self._parts(count)
        calls = [partial(self._fill, batch, range(part, count, parts)) for part in range(parts)]
        self._pending[number] = batch, self._threads.start(calls)

    def _new_batch(self, *parts: object) -> RawBatch:
        return RawBatch(*parts)  # type: ignore[arg-type]

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

    def _finish(self, batch: RawBatch) -> None:
        """What is left to do on the consumer's thread: nothing on the host."""

    def _replace(self, batch: RawBatch, i: int) -> tuple[Request, Request | None]:
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

    def _requests(
        self, batch: RawBatch, i: int, samples: Samples, at: int
    ) -> tuple[Request, Request | None]:
        """Crops of sample `at` of `samples`, augmented as place `i` of the batch."""
        job = self.job
        volume = int(samples.volume[at])
        z, y, x = samples.start[at].tolist()
        mirrored, gain, bias = STILL, 1.0, 0.0
        if not job.augmentation.per_view:
            along_z, along_y, along_x = batch.flips[i].tolist()
            mirrored = (along_z, along_y, along_x)
            gain, bias = float(batch.views[0].gain[i]), float(batch.views[0].bias[i])
        image = image_request(job, volume, (z, y, x), mirrored, gain, bias)
        if job.label_rows is None:
            return image, None
        return image, label_request(job, volume, (z, y, x), mirrored)

    def _load(self, batch: RawBatch, i: int, requests: tuple[Request, Request | None]) -> None:
        """Read the crops into place `i` of the batch."""
        image, label = requests
        size = self.job.crop_size
        self.reader.read_box(
            image.row, image.start, size, batch.image[i],
            fill=image.fill, flip=image.flip, rescale=image.rescale,
        )  # fmt: skip
        if label is not None and batch.label is not None:
            target = batch.label[i][None]
            self.reader.read_box(label.row, label.start, size, target, flip=label.flip)
