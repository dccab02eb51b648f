"""Whether a corpus suits a model: its channels, and how many volumes are smaller than the crop."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from mim3d.dataio.chunk_table import ChunkTable
from mim3d.dataio.crop_job import choose_volumes
from mim3d.engine.errors import ConfigError
from mim3d.engine.vit import ViTConfig


@dataclass(frozen=True)
class CorpusFit:
    """What there is to say before the first crop is read."""

    volumes: int
    """Volumes of the chosen subjects."""
    padded: int
    """Of these, smaller than the crop on some axis: what is missing is padding, and is learned."""


def corpus_fit(
    table: ChunkTable, vit: ViTConfig, subjects: Collection[str] | None = None
) -> CorpusFit:
    """Count the volumes of `subjects` (None: all); ConfigError where their channels are others."""
    rows = choose_volumes(table, None, subjects)
    images = np.asarray(table.volumes["image"])[rows].astype(np.int64)
    channels = np.unique(np.asarray(table.arrays["channels"])[images])
    if channels.tolist() != [vit.channels]:
        raise ConfigError(
            f"vit.channels is {vit.channels}, the volumes of {table.root} have "
            f"{', '.join(map(str, channels))}: set --vit.channels, or choose subjects that have it"
        )
    shapes = np.asarray(table.volumes["shape"])[rows]
    return CorpusFit(len(rows), int((shapes < np.array(vit.crop_size)).any(axis=1).sum()))
