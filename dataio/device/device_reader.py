"""Crops decoded on the device: compressed streams cross the bus once and may stay there.

Host side, on any thread: `fetch` finds the chunks of a batch, reads those not resident, checks
their crc32c and packs their streams into one buffer. Device side: `assemble` copies that buffer,
decompresses every stream in one batched call, and writes the crops in one pass.
"""

import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mim3d.dataio.corpus.chunk_table import ChunkTable
from mim3d.dataio.device.device_copy import pinned_bytes, to_device
from mim3d.dataio.device.inflate import Inflate
from mim3d.dataio.device.stage_times import StageTimes
from mim3d.dataio.device.streams import (
    ALIGN,
    FrameError,
    StreamPacker,
    Streams,
    StreamTable,
    packed_room,
)
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.geometry import Triple
from mim3d.dataio.reader.shard_reader import Request, ShardReader, StoredArray
from mim3d.kernels.assemble import assemble_crops

RUN = 16  # voxels
STAGES = ("copy", "inflate", "assemble")


@dataclass(frozen=True)
class Fetched:
    """What one batch needs: its boxes of chunks, and the compressed bytes not yet resident.

    `known` (n,) says which of its n chunks, those that are stored, were resident; their streams
    are `resident`, and those of the others, in `buffer`, `fresh`. `rows` (b, c, z, y, x) says
    which of the n each crop has where, -1 for none.
    """

    requests: list[Request]
    array: StoredArray
    known: np.ndarray
    rows: np.ndarray
    resident: Streams
    fresh: Streams
    buffer: torch.Tensor


class DeviceReader:
    """Reads crops of one size through the device's memory, `budget` bytes of it resident.

    Chunks stay once they are in (an epoch is a scan: dropping for newer ones would never hit).
    `hits` and `misses` count chunks. `inflate` decodes where the memory is.
    """

    def __init__(
        self, reader: ShardReader, device: torch.device, inflate: Inflate, budget: int
    ) -> None:
        self.reader, self.device, self.inflate = reader, device, inflate
        self.hits = self.misses = 0
        self.times = StageTimes(device)
        room = max(min(budget, corpus_room(reader.table)), ALIGN)
        self._arena = torch.empty(room, dtype=torch.uint8, device=device)
        self._used = 0
        self._resident = StreamTable(len(reader.table.chunks))
        self._written: Any = None  # the event after what was kept last, on a GPU
        self._lock = threading.Lock()

    @property
    def resident_bytes(self) -> int:
        """Bytes of compressed chunks on the device."""
        return self._used

    def metrics(self) -> dict[str, float]:
        """Hits and misses in chunks, resident bytes, and seconds on the device by stage."""
        spent = self.times.totals()
        return {
            **{f"device_{stage}_s": spent.get(stage, 0.0) for stage in STAGES},
            "cache_hits": float(self.hits),
            "cache_misses": float(self.misses),
            "cache_evicted": 0.0,
            "cache_bytes": float(self.resident_bytes),
        }

    def fetch(self, requests: list[Request], size: Triple | np.ndarray) -> Fetched:
        """Read what is not resident; every request must be of one dtype and chunk size.

        `size` is one for all boxes, or (b, 3); `assemble` is then asked for the largest.
        """
        arrays = [self.reader.array(request.row) for request in requests]
        first = arrays[0]
        for array in arrays:
            if (array.dtype, array.chunk, array.channels) != (
                first.dtype,
                first.chunk,
                first.channels,
            ):
                raise CorpusError(
                    f"{array.path} is {array.dtype} in chunks of {array.chunk}, {first.path} "
                    f"{first.dtype} in {first.chunk}: cache='device' needs all volumes alike; "
                    "use cache='host', or convert with one --dtype"
                )
        tables = chunk_tables(arrays, np.array([r.start for r in requests]), size)
        ids = np.unique(tables)
        ids = ids[np.searchsorted(ids, 0) :]
        ids = ids[self.reader.table.sizes(ids) > 0]
        rows = np.searchsorted(ids, tables)
        rows = np.where(np.append(ids, -1)[rows] == tables, rows, -1)
        rows[tables < 0] = -1
        with self._lock:  # found now: on the consumer's thread it would hold up the device
            known = self._resident.has(ids)
            resident = self._resident.find(ids[known])
            self.hits += len(resident.chunks)
            self.misses += len(ids) - len(resident.chunks)
        fresh, buffer = self._pack(ids[~known], arrays)
        return Fetched(requests, first, known, rows, resident, fresh, buffer)

    def assemble(
        self, fetched: Fetched, size: Triple, out_dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """Crops (b, c, z, y, x) on the device, on its current stream."""
        array = fetched.array
        layout = self._layout(fetched)
        self.times.start()
        staged = fetched.buffer.to(self.device, non_blocking=True)
        self._admit(fetched, staged)
        self.times.lap("copy")
        chunk_bytes = int(np.prod(array.chunk)) * array.dtype.itemsize
        chunks = torch.empty(
            (max(len(fetched.known), 1), chunk_bytes), dtype=torch.uint8, device=self.device
        )
        self._inflate(np.flatnonzero(~fetched.known), fetched.fresh, staged, chunks)
        self._inflate(np.flatnonzero(fetched.known), fetched.resident, self._arena, chunks)
        self.times.lap("inflate")
        crops = self._crops(fetched, chunks, layout, size, out_dtype)
        self.times.lap("assemble")
        return crops

    def _layout(self, fetched: Fetched) -> tuple[int, bool]:
        """Bytes of a block, and whether bits were shuffled: of all chunks alike."""
        array = fetched.array
        layouts = np.concatenate([fetched.fresh.layouts, fetched.resident.layouts])
        if not len(layouts):
            return int(np.prod(array.chunk)) * array.dtype.itemsize, False
        if (layouts != layouts[0]).any():
            raise CorpusError(
                f"{array.path} and others of this batch: chunks are shuffled in different ways "
                f"(bytes of a block, by bits: {np.unique(layouts, axis=0).tolist()}); "
                "cache='device' needs all alike: use cache='host', or convert anew"
            )
        return int(layouts[0, 0]), bool(layouts[0, 1])

    def _inflate(
        self, places: np.ndarray, streams: Streams, buffer: torch.Tensor, chunks: torch.Tensor
    ) -> None:
        """Decode every stream of a buffer into its chunk's row of `chunks`, in one call."""
        if not len(streams.rows):
            return
        offset, nbytes, at, size = streams.rows.T
        target = chunks.data_ptr() + places[streams.owners] * chunks.shape[1] + at
        self.inflate(streams.codec, buffer.data_ptr() + offset, nbytes, target, size)

    def _crops(
        self,
        fetched: Fetched,
        chunks: torch.Tensor,
        layout: tuple[int, bool],
        size: Triple,
        out_dtype: torch.dtype,
    ) -> torch.Tensor:
        array, requests = fetched.array, fetched.requests
        shapes = np.array([self.reader.array(r.row).shape for r in requests])
        starts = np.array([r.start for r in requests])
        origin = starts // array.chunk * array.chunk
        # Snapped starts let the kernel read runs of voxels instead of single ones.
        unit = RUN if not ((starts - origin) % RUN).any() else 1
        arrays = {
            "table": fetched.rows,
            "start": (starts - origin) // unit,
            "box": np.stack([-origin, shapes - origin], axis=1),
            "pad": np.array([r.fill for r in requests], np.float32),  # (b, c), as all below
            "flip": np.array([r.flip for r in requests]),
        }
        rescales = [r.rescale for r in requests if r.rescale is not None]
        if rescales:
            arrays["scale"] = np.array([[a.scale for a in each] for each in rescales], np.float32)
            arrays["shift"] = np.array([[a.shift for a in each] for each in rescales], np.float32)
        if any(a.clips for each in rescales for a in each):
            arrays["clip"] = np.array([[a[:2] for a in each] for each in rescales], np.float32)
        moved = to_device(list(arrays.values()), self.device)
        given: dict[str, Any] = dict(zip(arrays, moved, strict=True))
        return assemble_crops(
            chunks,
            **given,
            crop_size=size,
            chunk_size=array.chunk,
            dtype=getattr(torch, array.dtype.name),
            shuffle="bit" if layout[1] else "byte",
            block_bytes=layout[0],
            start_unit=unit,
            out_dtype=out_dtype,
        )

    def _pack(self, numbers: np.ndarray, arrays: list[StoredArray]) -> tuple[Streams, torch.Tensor]:
        """Read chunks, check them, and lay their streams into one aligned buffer."""
        first = arrays[0]
        chunk_bytes = int(np.prod(first.chunk)) * first.dtype.itemsize
        stored_bytes = int(self.reader.table.sizes(numbers).sum())
        packer = StreamPacker(len(numbers), stored_bytes, chunk_bytes, first.dtype.itemsize)
        buffer = pinned_bytes(packer.room, self.device)
        packer.buffer = buffer.numpy()
        wanted = []
        for array in sorted({a.row: a for a in arrays}.values(), key=lambda a: a.first_chunk):
            end = array.first_chunk + array.chunks_per_channel * array.channels
            mine = numbers[(numbers >= array.first_chunk) & (numbers < end)] - array.first_chunk
            wanted.append((array, mine))
        if self.reader.shards.has_room():  # a store is asked for all before any is waited for
            for array, mine in wanted:
                self.reader.announce_chunks(array, mine)
        for array, mine in wanted:
            pack_chunks(self.reader, array, mine, packer)
        return packer.streams(numbers), buffer[: max(packer.used, 1)]

    def _admit(self, fetched: Fetched, staged: torch.Tensor) -> None:
        """Keep what came in, as far as the budget goes: all chunks of the buffer or none."""
        fresh = fetched.fresh
        if self._written is not None:
            # What was kept on another stream is whole before this one reads it.
            torch.cuda.current_stream(self.device).wait_event(self._written)
        if not len(fresh.chunks):
            return
        with self._lock:
            n = len(staged)
            # Of two batches on their way with a chunk in common only the first is kept: the next
            # one that is fetched brings what is missing yet, and nothing is kept twice.
            if self._used + n > len(self._arena) or self._resident.has(fresh.chunks).any():
                return
            self._arena[self._used : self._used + n].copy_(staged)
            self._resident.add(fresh, self._used)
            self._used += -(-n // ALIGN) * ALIGN
        if self.device.type == "cuda":
            self._written = torch.cuda.current_stream(self.device).record_event()


def pack_chunks(
    reader: ShardReader, array: StoredArray, chunks: np.ndarray, packer: StreamPacker
) -> None:
    """Give the stored bytes of chunks (numbers in the array, ascending) to the packer.

    Absent chunks are left out. A damaged one is a ChunkError that names it.
    """
    began = time.perf_counter()
    present, views = reader.stored(array, chunks)
    try:
        packer.add(views)
    except FrameError as error:
        raise reader.chunk_error(array, int(present[error.index]), error) from error
    reader.read_s += time.perf_counter() - began


def corpus_room(table: ChunkTable) -> int:
    """Bytes that all chunks of a corpus may take when resident: a larger arena would stay empty."""
    arrays = np.asarray(table.arrays)
    itemsizes = [np.dtype(name.decode()).itemsize for name in arrays["dtype"]]
    chunk_bytes = int((arrays["chunk"].astype(np.int64).prod(axis=1) * itemsizes).max())
    chunks, stored = int(arrays["n_chunks"].sum()), int(arrays["shard_bytes"].sum())
    # Each buffer that is kept begins anew at ALIGN, and holds a chunk at least.
    return packed_room(chunks, stored, chunk_bytes, max(itemsizes)) + chunks * ALIGN


def chunk_tables(
    arrays: list[StoredArray], starts: np.ndarray, size: Triple | np.ndarray
) -> np.ndarray:
    """Numbers in the corpus' table (b, c, nz, ny, nx) of the chunks from the one a start lies in.

    `starts` (b, 3), `size` one for all or (b, 3), arrays of one chunk size and number of channels.
    As many as a box of the largest size may touch; -1 for those that a box does not touch (snapped
    ones need fewer), and beyond an array.
    """
    sizes = np.broadcast_to(np.asarray(size, np.int64), starts.shape)
    chunk, channels = np.array(arrays[0].chunk), np.arange(arrays[0].channels)
    counts = -(-np.array([array.shape for array in arrays]) // chunk)  # (b, 3)
    first, last = starts // chunk, (starts + sizes - 1) // chunk
    # A size of 0 touches none, though the voxel before it may lie in the first chunk.
    end = np.where((sizes > 0).all(1, keepdims=True), np.minimum(counts, last + 1), 0)
    most = np.maximum(sizes.max(0), 1)
    places, inside = [], []
    for axis, steps in enumerate(-(-(most - 1) // chunk) + 1):
        shape = [len(arrays), 1, 1, 1, 1]
        shape[axis + 2] = steps
        place = (first[:, axis, None] + np.arange(steps)).reshape(shape)
        places.append(place)
        inside.append((place >= 0) & (place < end[:, axis].reshape(-1, 1, 1, 1, 1)))
    ny, nx = (counts[:, axis].reshape(-1, 1, 1, 1, 1) for axis in (1, 2))
    number = (places[0] * ny + places[1]) * nx + places[2]
    begin = np.array([array.first_chunk for array in arrays]).reshape(-1, 1, 1, 1, 1)
    each = np.array([array.chunks_per_channel for array in arrays]).reshape(-1, 1, 1, 1, 1)
    number = begin + channels[:, None, None, None] * each + number
    return np.where(inside[0] & inside[1] & inside[2], number, -1)
