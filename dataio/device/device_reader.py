"""Crops decoded on the device: compressed streams cross the bus once and may stay there.

Host side, on any thread: `fetch` finds the chunks of a batch, reads those not resident, checks
their crc32c and packs their streams into one buffer. Device side, on a lane beside the others:
`begin` has that buffer copied, every stream decompressed in one batched call, and the crops written
in one pass; whoever takes them has his own lane wait for that.
"""

import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mim3d.dataio.device.crop_arguments import crop_arguments
from mim3d.dataio.device.device_copy import to_device
from mim3d.dataio.device.holdings import HeldVoxels, Holding
from mim3d.dataio.device.inflate import Inflate
from mim3d.dataio.device.lanes import Lanes
from mim3d.dataio.device.stage_times import StageTimes
from mim3d.dataio.device.staged import Staged, staged
from mim3d.dataio.device.streams import FrameError, StreamPacker, Streams
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.geometry import Triple
from mim3d.dataio.reader.shard_reader import Request, ShardReader, StoredArray
from mim3d.kernels.assemble import assemble_crops

STAGES = ("copy", "inflate", "assemble")


@dataclass(frozen=True)
class Fetched:
    """What one batch needs: its boxes of chunks, and the compressed bytes not yet resident.

    `known` (n,) says which of its n chunks, those that are stored, were resident; their streams,
    as far as they have any, are `resident`, and those of the others, in `buffer`, `fresh`. `rows`
    (b, c, z, y, x) says which of the n each crop has where, -1 for none.
    """

    requests: list[Request]
    array: StoredArray
    known: np.ndarray
    rows: np.ndarray
    resident: Streams
    fresh: Streams
    buffer: torch.Tensor


class DeviceReader:
    """Reads crops of one size through the device's memory, in which `holding` keeps chunks.

    `hits` and `misses` count chunks. `inflate` decodes where the memory is.
    """

    def __init__(
        self, reader: ShardReader, lanes: Lanes, inflate: Inflate, holding: Holding
    ) -> None:
        self.reader, self.lanes, self.inflate, self.holding = reader, lanes, inflate, holding
        self.hits = self.misses = 0
        self.times = StageTimes(lanes.device)
        self._lock = threading.Lock()

    @property
    def holds_voxels(self) -> bool:
        """Whether what is kept is decoded."""
        return isinstance(self.holding, HeldVoxels)

    @property
    def resident_bytes(self) -> int:
        """Bytes of chunks on the device."""
        return self.holding.nbytes

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
        # Found now: on the consumer's thread it would hold up the device.
        known, resident = self.holding.find(ids, chunk_bytes(first))
        with self._lock:
            self.hits += len(resident.chunks)
            self.misses += len(ids) - len(resident.chunks)
        fresh, buffer = self._pack(ids[~known], arrays)
        return Fetched(requests, first, known, rows, resident, fresh, buffer)

    def assemble(
        self, fetched: Fetched, size: Triple, out_dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """Crops (b, c, z, y, x) on the device, for use on its current lane."""
        return self.begin(fetched, size, out_dtype).take()[0]

    def begin(
        self, fetched: Fetched, size: Triple, out_dtype: torch.dtype = torch.float32
    ) -> Staged:
        """Have the side lane make the crops; one thread at a time."""
        array = fetched.array
        self.inflate.check()
        layout = self._layout(fetched)
        with self.lanes.side():
            self.times.start()
            buffer = self.lanes.upload(fetched.buffer)
            self.times.lap("copy")
            chunks, places = self.holding.decoded(
                *(fetched.known, fetched.resident, fetched.fresh, buffer, chunk_bytes(array))
            )
            self.times.lap("inflate")
            crops = self._crops(fetched, chunks, places, layout, size, out_dtype)
            self.times.lap("assemble")
            return staged(self.lanes, [crops])

    def settle(self) -> None:
        """Wait for the device; ChunkError where a stream did not decode."""
        self.inflate.settle()

    def _layout(self, fetched: Fetched) -> tuple[int, bool]:
        """Bytes of a block, and whether bits were shuffled: of all chunks alike."""
        array = fetched.array
        layouts = np.concatenate([fetched.fresh.layouts, fetched.resident.layouts])
        if not len(layouts):
            return chunk_bytes(array), False
        if (layouts != layouts[0]).any():
            raise CorpusError(
                f"{array.path} and others of this batch: chunks are shuffled in different ways "
                f"(bytes of a block, by bits: {np.unique(layouts, axis=0).tolist()}); "
                "cache='device' needs all alike: use cache='host', or convert anew"
            )
        return int(layouts[0, 0]), bool(layouts[0, 1])

    def _crops(
        self,
        fetched: Fetched,
        chunks: torch.Tensor,
        places: np.ndarray,
        layout: tuple[int, bool],
        size: Triple,
        out_dtype: torch.dtype,
    ) -> torch.Tensor:
        array, requests = fetched.array, fetched.requests
        shapes = np.array([self.reader.array(r.row).shape for r in requests])
        starts = np.array([r.start for r in requests])
        arrays, unit = crop_arguments(requests, shapes, starts // array.chunk * array.chunk)
        # The row behind the last one is -1, so that -1 stays what it is.
        arrays["table"] = np.append(places, -1)[fetched.rows]
        moved = to_device(list(arrays.values()), self.lanes)
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
        stored_bytes = int(self.reader.table.sizes(numbers).sum())
        itemsize = first.dtype.itemsize
        packer = StreamPacker(len(numbers), stored_bytes, chunk_bytes(first), itemsize)
        buffer = self.lanes.pinned(packer.room)
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


def chunk_bytes(array: StoredArray) -> int:
    """Bytes of a decoded chunk."""
    return int(np.prod(array.chunk)) * array.dtype.itemsize


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
