"""Whether crops of one batch share chunks, which flatters a loader that decodes each chunk once.

On the device a chunk is decoded once for all crops of a batch that touch it. Over few volumes that
is most of them: 25 decoded for each crop that touches 216, where a large corpus would need 200.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mim3d.bench.corpora import VOLUMES
from mim3d.dataio.device.device_reader import chunk_tables
from mim3d.dataio.loader.batch import Batch
from mim3d.dataio.loader.loader import Loader
from mim3d.dataio.reader.shard_reader import ShardReader

LEAST_SHARE = 0.8
"""Of what a crop touches: below it a figure tells of the bench's few volumes, not of the loader."""


@dataclass(frozen=True)
class Sharing:
    """Stored chunks decoded for each crop, and those that a crop touches."""

    decoded: float
    touched: float

    @property
    def flatters(self) -> bool:
        """Whether figures with so few chunks are refused."""
        return self.decoded < LEAST_SHARE * self.touched

    def text(self) -> str:
        """For example "180 of the 216 chunks that a crop touches decoded for it"."""
        text = f"{self.decoded:.0f} of the {self.touched:.0f} chunks that a crop touches decoded"
        return f"{text} for it" + (f": REFUSED, {REMEDY}" if self.flatters else "")


REMEDY = f"crops share the rest; take more volumes (at least {VOLUMES}) or fewer crops a batch"


def sharing_of(loader: Loader, batches: Sequence[Batch]) -> Sharing:
    """Chunks decoded so far and touched by the crops of some batches.

    A loader without a cache on the device decodes what each crop touches; one that keeps voxels
    there gathers each crop by itself, and decodes nothing once all are there.
    """
    touched = float(np.mean(chunks_touched(loader, batches)))
    metrics = loader.metrics()
    if loader.config.cache != "device" or loader.keeps_voxels:
        return Sharing(touched, touched)
    return Sharing((metrics["cache_hits"] + metrics["cache_misses"]) / metrics["crops"], touched)


def chunks_touched(loader: Loader, batches: Sequence[Batch]) -> np.ndarray:
    """Stored chunks of the image below each crop; those of air are not stored."""
    table = loader.corpus.table
    reader = ShardReader(table, loader.corpus.root)
    counts = []
    for batch in batches:
        for volume, start in zip(batch.volume.tolist(), batch.start.numpy(), strict=True):
            array = reader.array(int(table.volumes["image"][volume]))
            numbers = chunk_tables([array], start[None], loader.config.crop_size)
            counts.append(int((table.sizes(numbers[numbers >= 0]) > 0).sum()))
    return np.array(counts)
