"""Batches of crops on the device from a corpus, in an order that one integer describes.

    with Loader("corpus.zarr", LoaderConfig(crop_size=(96, 96, 96), micro_batch=8)) as loader:
        for batch in loader:
            loss = model(batch.image)

The loader is infinite: it goes on into the next epoch, shuffled anew. With `epochs=1` a `for` is a
pass of `len(loader)` batches, the next `for` the next pass, and one that goes on from a state
finishes the pass that was under way. It is an IterableDataset too: in torch's DataLoader with
`batch_size=None, num_workers=0`, and whole in Lightning, whose checkpoints keep its state.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import torch
from torch.utils.data import IterableDataset

from mim3d.dataio.device.device_fit import fitting_cache
from mim3d.dataio.device.lanes import lanes_of
from mim3d.dataio.errors import ChunkError, Mim3dError
from mim3d.dataio.loader.batch import Batch, add_artefacts, add_noise, finish, label_or_weight
from mim3d.dataio.loader.config import LoaderConfig
from mim3d.dataio.loader.crop_source import RawBatch, ReadPlan
from mim3d.dataio.loader.crop_spec import crop_job, make_sampler, volumes_drawn
from mim3d.dataio.loader.device_source import DeviceSource
from mim3d.dataio.loader.source_choice import chunk_cache, make_source
from mim3d.dataio.loader.state import run_order
from mim3d.dataio.loader.view_graph import ViewGraph
from mim3d.dataio.reader.corpus import Corpus, opened_corpus
from mim3d.dataio.reader.shard_reader import ShardReader
from mim3d.dataio.reader.voxel_weights import voxel_weights
from mim3d.dataio.transforms.dali import DaliGraph, GraphSpec, feed_order
from mim3d.dataio.transforms.graph import DirectGraph

__all__ = ["Batch", "Loader", "LoaderConfig"]


class Loader(IterableDataset[Batch]):
    """An iterator of `Batch`es of one rank, endless or in passes of so many `epochs`.

    Global batch k of a run holds samples `k * world * micro_batch` onward, and rank r the r-th
    slice of it, so ranks never overlap and the union is the same at any world size. `subjects`
    keeps only volumes of those subjects. `device` is "cpu" or "cuda[:n]". `corpus` is a folder, an
    address such as s3://bucket/corpus.zarr, or an opened corpus. Threads may share a loader; each
    process makes its own. A pass has as many whole batches as its epochs fill, at least one; what
    they do not fill begins the next pass.
    """

    def __init__(
        self,
        corpus: str | Path | Corpus,
        config: LoaderConfig,
        *,
        rank: int = 0,
        world: int = 1,
        device: str | torch.device = "cpu",
        subjects: Collection[str] | None = None,
        epochs: int | None = None,
    ) -> None:
        if epochs is not None and not (isinstance(epochs, Integral) and epochs >= 1):
            raise Mim3dError(
                f"epochs={epochs!r} must be a whole number of at least 1, or None for no end"
            )
        self.epochs = epochs
        if not (isinstance(rank, Integral) and isinstance(world, Integral) and 0 <= rank < world):
            raise Mim3dError(f"rank={rank!r} is not a whole number below world={world!r}")
        self.device = _usable(torch.device(device))
        self._opened = ExitStack()
        self.corpus, shards = self._opened.enter_context(opened_corpus(corpus, config.limits))
        self.config, self.rank, self.world = config, rank, world
        table = self.corpus.table
        volumes, weights = volumes_drawn(self.corpus, config, subjects)
        self.weights = voxel_weights(self.corpus, config.ignore, volumes)
        kept = fitting_cache(config.cache, table, volumes, self._labels)
        config = self.config = replace(config, cache=kept)
        self.sampler = make_sampler(table, config, volumes, world, weights)
        self._order = run_order(table, config, volumes, world)
        self._job = crop_job(table, config, volumes, self.weights)
        cache = chunk_cache(config, remote=self.corpus.address is not None)
        reader = ShardReader(table, self.corpus.root, shards, cache)
        self._spec = self._graph_spec()
        if self._reads_bfloat16:
            self._job = replace(self._job, image_dtype="uint16")
        plan = ReadPlan(self.sampler, self._job, config.threads, config.prefetch)
        self._source = make_source(
            config, reader, lanes_of(self.device), plan, volumes, self._labels
        )
        self.notes = self._source.notes
        self._graph: DaliGraph | DirectGraph | ViewGraph | None = None
        self._in_flight: deque[RawBatch] = deque()
        self._step = self._sample = 0
        self._augment_s = 0.0
        self._closed = self._failed = False
        self._lock = threading.RLock()
        self._process = os.getpid()

    @property
    def keeps_voxels(self) -> bool:
        """Whether a device keeps decoded voxels: once they are in, batches decode nothing."""
        source = self._source
        return isinstance(source, DeviceSource) and source.device_reader.holds_voxels

    @property
    def epoch(self) -> float:
        """Epochs delivered so far, all ranks together."""
        return self._sample / self.sampler.epoch_samples

    def __iter__(self) -> Iterator[Batch]:
        return self if self.epochs is None else self._pass(len(self))

    def __len__(self) -> int:
        """Batches of a pass; a TypeError where there is no end."""
        if self.epochs is None:
            raise TypeError("this loader has no end and so no length: give epochs=1 for passes")
        return max(1, self.epochs * self.sampler.epoch_samples // self._stride)

    def __bool__(self) -> bool:
        return True

    def _pass(self, length: int) -> Iterator[Batch]:
        """The rest of the pass in which the loader stands."""
        end = (self._sample // self._stride // length + 1) * length * self._stride
        while self._sample < end:
            yield next(self)
        self.settle()

    def __next__(self) -> Batch:
        self._check_process()
        with self._lock:
            place = self._step, self._sample
            try:
                return self._next()
            except BaseException as error:
                # Ctrl-C too: what was read ahead is out of step, so the next call begins anew.
                self._failed |= isinstance(error, ChunkError)
                self._step, self._sample = place
                self._stop()
                raise

    def state_dict(self) -> dict[str, int]:
        """Where the next batch begins: `sample` (global) alone decides, `step` only counts."""
        return self._order.state(self._sample, self._step)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go to where `state` was taken, possibly by a loader of another world size.

        Mim3dError where its seed, volumes, weighting or nodes are not this loader's.
        """
        sample, step = self._order.place(state)
        with self._lock:
            self._stop()
            self._step, self._sample = step, sample

    def metrics(self) -> dict[str, float]:
        """Totals so far; seconds of reading and decoding add up over threads."""
        reader = self._source.reader
        return {
            "crops": float(self._source.crops),
            "read_s": reader.read_s,
            "decode_s": reader.decode_s,
            "augment_s": self._augment_s,
            "wait_s": self._source.wait_s,
            "bytes_read": float(reader.bytes_read),
            "replaced": float(self._source.replaced),
            **reader.metrics(),
            **self._source.device_metrics(),
        }

    def settle(self) -> None:
        """Wait for the device; a ChunkError where a batch handed over did not decode there.

        Batches come before the device has made them: before what was learned from them is saved,
        and at the end of a pass, this tells that they were sound. Without a GPU they always are.
        """
        with self._lock:
            try:
                self._source.settle()
            except ChunkError:
                self._failed = True
                self._stop()  # what was made ahead may be wrong too
                raise

    def close(self) -> None:
        """Stop all threads; a ChunkError, once all is closed, where `settle` has one not yet told.

        Safe to call twice.
        """
        if os.getpid() != self._process:
            return  # the threads are another process'
        with self._lock:
            untold = not (self._closed or self._failed)
            self._closed = True
            self._stop()
            self._source.close()
            self._opened.close()
            if untold:
                self.settle()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except ChunkError as found:
            if error is None:
                raise
            error.add_note(str(found))

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Loader has threads and open files and cannot be copied or pickled: hand over the "
            "corpus' path and the LoaderConfig, and make a Loader there"
        )

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise Mim3dError(
                f"this loader was made in process {self._process}, this is {os.getpid()}, and its "
                "threads did not come along: make a Loader in each process, with its own rank "
                "(under a DataLoader use num_workers=0: the loader reads ahead by itself)"
            )

    def _next(self) -> Batch:
        graph = self._graph or self._start()
        began, waited = time.perf_counter(), self._source.wait_s
        tensors = graph.run()
        raw = self._in_flight.popleft()
        if raw.error is not None:
            raise raw.error
        batch = self._batch(raw, tensors)
        self._augment_s += time.perf_counter() - began - (self._source.wait_s - waited)
        self._step += 1
        self._sample += self._stride
        return batch

    @property
    def _stride(self) -> int:
        return self.world * self.config.micro_batch

    @property
    def _reads_bfloat16(self) -> bool:
        """Whether crops can be rounded while they are read: nothing later wants float32."""
        kind = self._job.augmentation
        changes = kind.noise or kind.artefacts.possible or kind.intensity is not None
        changes = changes or kind.spatial is not None or self._job.weights is not None
        return self.config.dtype == "bfloat16" and self._spec.is_direct and not changes

    @property
    def _labels(self) -> list[str]:
        """Names of the labels that are read."""
        if self.weights is not None:
            return list(self.weights.labels)
        return [] if self.config.label is None else [self.config.label]

    def _graph_spec(self) -> GraphSpec:
        config, on_gpu = self.config, self.device.type == "cuda"
        return GraphSpec(
            batch=config.micro_batch,
            channels=self._job.channels,
            crop_size=config.crop_size,
            views=config.views,
            label_dtype=self._job.label_dtype,
            augmentation=self._job.augmentation,
            device_id=(self.device.index or 0) if on_gpu else None,
            threads=config.threads,
            device_input=on_gpu,
        )

    def _start(self) -> DaliGraph | DirectGraph | ViewGraph:
        if self._closed:
            raise RuntimeError("this loader is closed")
        first = self._sample + self.rank * self.config.micro_batch
        batches = self._source.batches(first, self._stride, self.config.micro_batch)

        def feed(_iteration: int) -> list[Any]:
            raw = next(batches)
            self._in_flight.append(raw)
            if kind is ViewGraph:
                return [raw.image, *([] if raw.label is None else [raw.label]), *raw.views]
            return feed_order(self._spec, raw.image, raw.label, raw.views)

        made = ViewGraph if self._spec.device_id is None else DaliGraph
        kind = DirectGraph if self._spec.is_direct else made
        self._graph = kind(self._spec, feed)
        return self._graph

    def _stop(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.close()
        self._in_flight.clear()

    def _batch(self, raw: RawBatch, tensors: list[torch.Tensor]) -> Batch:
        label = tensors.pop() if raw.label is not None else None
        label, weight = label_or_weight(self._job, raw.samples, raw.flips, label, self.device)
        images = []
        for image, view in zip(tensors, raw.views, strict=True):
            if self._spec.device_id is not None:
                add_noise(image, view)
                if self._job.augmentation.artefacts.possible:
                    add_artefacts(image, view.noise_seed, self._job.augmentation.artefacts)
            intensity = self._job.augmentation.intensity
            images.append(finish(image, view.noise_seed, self.config.dtype, intensity))
        return Batch(
            image=images[0],
            second_view=images[1] if len(images) > 1 else None,
            label=label,
            volume=torch.from_numpy(raw.samples.volume),
            start=torch.from_numpy(raw.samples.start),
            sample=torch.from_numpy(raw.samples.sample),
            step=self._step,
            weight=weight,
        )


def _usable(device: torch.device) -> torch.device:
    """The device, or a Mim3dError where crops cannot go there."""
    if device.type not in ("cpu", "cuda"):
        raise Mim3dError(f"device={str(device)!r}: the loader feeds cpu and cuda[:n]")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise Mim3dError(f"device={str(device)!r}: torch finds no CUDA device; use device='cpu'")
    return device
