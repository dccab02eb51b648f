"""Which source reads a loader's crops, and where what it reads is kept."""

import numpy as np

from mim3d.dataio.device.device_fit import DeviceRoom, array_rows, keeping, stored_dtype
from mim3d.dataio.device.device_reader import DeviceReader
from mim3d.dataio.device.holdings import HeldChunks, HeldVoxels
from mim3d.dataio.device.inflate import NvcompInflate, inflate_on_host
from mim3d.dataio.device.lanes import Lanes
from mim3d.dataio.device.uploader import shorter_dtype
from mim3d.dataio.loader.config import DISK, LoaderConfig
from mim3d.dataio.loader.crop_source import CropSource, ReadPlan
from mim3d.dataio.loader.device_source import DeviceSource
from mim3d.dataio.loader.upload_source import UploadSource
from mim3d.dataio.reader.chunk_cache import ChunkCache
from mim3d.dataio.reader.disk_cache import DiskCache
from mim3d.dataio.reader.shard_reader import ShardReader


def chunk_cache(config: LoaderConfig, *, remote: bool) -> ChunkCache | None:
    """Where compressed chunks are kept; `auto` keeps those of a store, as the page cache keeps
    files. None: nowhere on the host."""
    if config.cache.startswith(DISK):
        folder = config.cache.removeprefix(DISK)
        return DiskCache(folder, config.cache_bytes, config.cache_policy)
    if config.cache == "host" or (config.cache == "auto" and remote):
        return ChunkCache(config.cache_bytes, config.cache_policy)
    return None


def make_source(
    config: LoaderConfig,
    reader: ShardReader,
    lanes: Lanes,
    plan: ReadPlan,
    volumes: np.ndarray,
    labels: list[str],
) -> CropSource:
    """What reads crops of `volumes` (table rows), and these labels, to where they are wanted."""
    if config.cache == "device":
        arrays = np.concatenate([*array_rows(reader.table, volumes, labels).values()])
        return device_source(config, reader, lanes, plan, arrays)
    if not lanes.overlaps:
        return CropSource(reader, plan)
    # Crops that turn within their volumes are blended by the host, of normalised voxels.
    moves = plan.job.augmentation.spatial is not None
    stored = None if moves else stored_dtype(reader.table, volumes)
    return UploadSource(reader, lanes, plan, shorter_dtype(stored, plan.job.image_dtype))


def device_source(
    config: LoaderConfig, reader: ShardReader, lanes: Lanes, plan: ReadPlan, arrays: np.ndarray
) -> DeviceSource:
    """One through the device's cache, of `arrays` (rows of the table's)."""
    on_gpu = lanes.device.type == "cuda"
    inflate = NvcompInflate(lanes) if on_gpu else inflate_on_host
    room = DeviceRoom(config.cache_bytes, lanes.free_bytes())
    kept = keeping(config.device_keeps, reader.table, arrays, room, str(lanes.device))
    if kept.places is None:
        holding = HeldChunks(reader.table, room.nbytes, inflate, lanes)
    else:
        holding = HeldVoxels(kept.places, inflate, lanes)
    return DeviceSource(DeviceReader(reader, lanes, inflate, holding), plan, (kept.line,))
