"""Crops decoded on the device: compressed streams cross the bus once and may stay there.

Host side, on any thread: `fetch` finds the chunks of a batch, reads those not resident, checks
their crc32c and packs their streams into one buffer. Device side: `assemble` copies that buffer,
decompresses every stream in one batched call, and writes the crops in one pass.
"""

import threading
from dataclasses import dataclass

import numpy as np
import torch

from mim3d.dataio.chunk_boxes import Triple
from mim3d.dataio.crop_request import Request
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.inflate import Inflate
from mim3d.dataio.shard_reader import ShardReader, StoredArray
from mim3d.dataio.stage_times import StageTimes
from mim3d.dataio.stream_pack import ALIGN, StreamPacker
from mim3d.dataio.stream_table import Streams, StreamTable
from mim3d.kernels.assemble import assemble_crops

RUN = 16  # voxels
STAGES = ("copy", "inflate", "assemble")


@dataclass(frozen=True)
class Fetched:
    """What one batch needs: its boxes of chunks, and the compressed bytes not yet resident.

    `chunks` (n,) are the numbers in the corpus' table of all chunks that are not absent,
    ascending; `tables` (b, c, z, y, x) the numbers of each crop's; `fresh` lies in `buffer`.
    """

    requests: list[Request]
    array: StoredArray
    chunks: np.ndarray
    tables: np.ndarray
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
        self._arena = torch.empty(max(budget, ALIGN), dtype=torch.uint8, device=device)
        self._used = 0
        self._resident = StreamTable(len(reader.table.chunks))
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

    def fetch(self, requests: list[Request], size: Triple) -> Fetched:
        """Read what is not resident; every request must be of one dtype and chunk size."""
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
        grid = tuple(-(-(s - 1) // c) + 1 for s, c in zip(size, first.chunk, strict=True))
        tables = np.stack(
            [chunk_table(a, r.start, grid) for a, r in zip(arrays, requests, strict=True)]
        )
        ids = np.unique(tables[tables >= 0])
        ids = ids[self.reader.table.sizes(ids) > 0]
        with self._lock:
            missing = ids[~self._resident.has(ids)]
            self.hits += len(ids) - len(missing)
            self.misses += len(missing)
        fresh, buffer = self._pack(missing, arrays)
        return Fetched(requests, first, ids, tables, fresh, buffer)

    def assemble(
        self, fetched: Fetched, size: Triple, out_dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """Crops (b, c, z, y, x) on the device, on its current stream."""
        array = fetched.array
        self.times.start()
        staged = fetched.buffer.to(self.device, non_blocking=True)
        with self._lock:
            kept = np.setdiff1d(fetched.chunks, fetched.fresh.chunks, assume_unique=True)
            resident = self._resident.find(kept)
        self._admit(fetched, staged)
        self.times.lap("copy")
        chunk_bytes = int(np.prod(array.chunk)) * array.dtype.itemsize
        chunks = torch.empty(
            (max(len(fetched.chunks), 1), chunk_bytes), dtype=torch.uint8, device=self.device
        )
        self._inflate(fetched.chunks, (fetched.fresh, staged), chunks)
        self._inflate(fetched.chunks, (resident, self._arena), chunks)
        self.times.lap("inflate")
        layouts = np.unique(np.concatenate([fetched.fresh.layouts, resident.layouts]), axis=0)
        if len(layouts) > 1:
            raise CorpusError(
                f"{array.path} and others of this batch: chunks are shuffled in different ways "
                f"(bytes of a block, by bits: {layouts.tolist()}); cache='device' needs all alike: "
                "use cache='host', or convert anew"
            )
        layout = (int(layouts[0, 0]), bool(layouts[0, 1])) if len(layouts) else (chunk_bytes, False)
        crops = self._crops(fetched, chunks, layout, size, out_dtype)
        self.times.lap("assemble")
        return crops

    def _inflate(
        self, numbers: np.ndarray, stored: tuple[Streams, torch.Tensor], chunks: torch.Tensor
    ) -> None:
        """Decode every stream of a buffer into its chunk's row, in one call."""
        streams, buffer = stored
        if not len(streams.rows):
            return
        place = np.searchsorted(numbers, streams.chunks)[streams.owners]
        offset, nbytes, at, size = streams.rows.T
        target = chunks.data_ptr() + place * chunks.shape[1] + at
        self.inflate(streams.codec, buffer.data_ptr() + offset, nbytes, target, size)

    def _crops(
        self,
        fetched: Fetched,
        chunks: torch.Tensor,
        layout: tuple[int, bool],
        size: Triple,
        out_dtype: torch.dtype,
    ) -> torch.Tensor:
        array, requests, device = fetched.array, fetched.requests, self.device
        shapes = np.array([self.reader.array(r.row).shape for r in requests])
        starts = np.array([r.start for r in requests])
        origin = starts // array.chunk * array.chunk
        # Snapped starts let the kernel read runs of voxels instead of single ones.
        unit = RUN if not ((starts - origin) % RUN).any() else 1
        rows = np.searchsorted(fetched.chunks, fetched.tables)
        known = np.append(fetched.chunks, -1)[rows] == fetched.tables
        rows = np.where(known & (fetched.tables >= 0), rows, -1)
        box = np.stack([-origin, shapes - origin], axis=1)

        def put(values: object, dtype: torch.dtype) -> torch.Tensor:
            return torch.as_tensor(np.asarray(values), dtype=dtype).to(device, non_blocking=True)

        affines = [r.affine for r in requests if r.affine is not None]
        f32 = torch.float32
        return assemble_crops(
            chunks,
            put(rows, torch.int64),
            put((starts - origin) // unit, torch.int64),
            crop_size=size,
            chunk_size=array.chunk,
            dtype=getattr(torch, array.dtype.name),
            shuffle="bit" if layout[1] else "byte",
            block_bytes=layout[0],
            start_unit=unit,
            box=put(box, torch.int64),
            pad=put([r.fill for r in requests], f32),
            clip=put([a[:2] for a in affines], f32) if any(a.clips for a in affines) else None,
            scale=put([a.scale for a in affines], f32) if affines else None,
            shift=put([a.shift for a in affines], f32) if affines else None,
            flip=put([r.flip for r in requests], torch.bool),
            out_dtype=out_dtype,
        )

    def _pack(self, numbers: np.ndarray, arrays: list[StoredArray]) -> tuple[Streams, torch.Tensor]:
        """Read chunks, check them, and lay their streams into one aligned buffer."""
        first = arrays[0]
        chunk_bytes = int(np.prod(first.chunk)) * first.dtype.itemsize
        stored_bytes = int(self.reader.table.sizes(numbers).sum())
        packer = StreamPacker(len(numbers), stored_bytes, chunk_bytes, first.dtype.itemsize)
        pinned = self.device.type == "cuda"
        buffer = torch.empty(packer.room, dtype=torch.uint8, pin_memory=pinned)
        packer.buffer = buffer.numpy()
        for array in sorted({a.row: a for a in arrays}.values(), key=lambda a: a.first_chunk):
            end = array.first_chunk + array.chunks_per_channel * array.channels
            mine = numbers[(numbers >= array.first_chunk) & (numbers < end)] - array.first_chunk
            self.reader.pack_chunks(array, mine, packer)
        return packer.streams(numbers), buffer[: max(packer.used, 1)]

    def _admit(self, fetched: Fetched, staged: torch.Tensor) -> None:
        """Keep what came in, as far as the budget goes: all chunks of the buffer or none."""
        fresh = fetched.fresh
        with self._lock:
            n = len(staged)
            # What another batch brought meanwhile is not kept twice.
            if self._used + n > len(self._arena) or self._resident.has(fresh.chunks).all():
                return
            self._arena[self._used : self._used + n].copy_(staged)
            self._resident.add(fresh, self._used)
            self._used += -(-n // ALIGN) * ALIGN


def chunk_table(array: StoredArray, start: Triple, grid: tuple[int, ...]) -> np.ndarray:
    """Numbers in the corpus' table (c, nz, ny, nx) of the chunks from the one `start` lies in.

    -1 beyond the array.
    """
    counts = [-(-n // c) for n, c in zip(array.shape, array.chunk, strict=True)]
    axes = [np.arange(a // c, a // c + g) for a, c, g in zip(start, array.chunk, grid, strict=True)]
    z, y, x = axes[0][:, None, None], axes[1][:, None], axes[2]
    inside = (z >= 0) & (z < counts[0]) & (y >= 0) & (y < counts[1]) & (x >= 0) & (x < counts[2])
    number = (z * counts[1] + y) * counts[2] + x
    channel = np.arange(array.channels)[:, None, None, None] * array.chunks_per_channel
    return np.where(inside, array.first_chunk + channel + number, -1)
