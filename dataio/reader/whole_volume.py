"""Whole volumes for validation, inspection and export: normalised as the loader's crops are."""

from dataclasses import dataclass

import numpy as np

from mim3d.dataio.corpus.chunk_table import ChunkTable, label_arrays
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.reader.normalisation import intensities
from mim3d.dataio.reader.shard_reader import ShardReader


@dataclass(frozen=True)
class WholeVolume:
    """One volume: `image` (c, z, y, x) float32, `label` (z, y, x) in its stored dtype or None."""

    id: str
    subject: str
    image: np.ndarray
    label: np.ndarray | None
    spacing_mm: tuple[float, float, float]


def read_volume(
    reader: ShardReader, volume: int, label: str | None = None, normalise_as: str = "zscore"
) -> WholeVolume:
    """Read row `volume` of the table whole; CorpusError where it lacks the asked-for label."""
    table = reader.table
    record = table.volumes[volume]
    row = int(record["image"])
    z, y, x = (int(size) for size in record["shape"])
    values = intensities(normalise_as, table, np.array([volume]))
    image = reader.read_box(row, (0, 0, 0), (z, y, x), rescale=values.rescales(volume))
    spacing = tuple(float(size) for size in record["spacing_mm"])
    return WholeVolume(
        id=table.volume_id(volume),
        subject=table.subject(volume),
        image=image,
        label=None if label is None else _read_label(reader, table, volume, label),
        spacing_mm=(spacing[0], spacing[1], spacing[2]),
    )


def _read_label(reader: ShardReader, table: ChunkTable, volume: int, label: str) -> np.ndarray:
    row = int(label_arrays(table, label)[volume])
    if row < 0:
        raise CorpusError(f"{table.root}: volume {table.volume_id(volume)} has no label {label!r}")
    return reader.read_box(row, (0, 0, 0), reader.array(row).shape)[0]
