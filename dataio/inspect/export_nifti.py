"""A corpus back to NIfTI: the voxels, affine, dtype and scaling that were converted, bit for bit.

Volumes go back to the axes of their source by the inverse permutation and flips; where the
conversion resampled or cropped them, they are written in the stored grid, and that is told.

Channels go back as they came: those of one file along its fourth axis, those of several files to
one each, ID_0000, ID_0001, ... as nnU-Net has them. A MONAI datalist, dataset.json, says what
belongs together, with subject, group and split, so `mim3d convert` of the folder gives the same
volumes (with --time-axis channels where there is a fourth axis).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np

from mim3d.dataio.corpus.chunk_table import ChunkTable
from mim3d.dataio.corpus.manifest import VolumeRecord
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.geometry import Reorientation, reorientation
from mim3d.dataio.nifti.writing import made_header, write_image
from mim3d.dataio.reader.shard_reader import ShardReader

ALIGNED = 2  # code of a world that is known, but not whose
DATALIST = "dataset.json"
SECTIONS = {"val": "validation", "test": "test"}  # of a datalist; all else is `training`
Axes = Literal["original", "stored"]


@dataclass(frozen=True)
class Exported:
    """One written volume: its files, and whether it lies in its source's own grid."""

    id: str
    images: tuple[Path, ...]
    labels: dict[str, Path]
    in_source_grid: bool

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file written."""
        return (*self.images, *self.labels.values())


def export_corpus(
    records: Sequence[VolumeRecord],
    table: ChunkTable,
    reader: ShardReader,
    destination: Path,
    *,
    axes: Axes = "original",
    compress: bool = True,
    advance: Callable[[], None] | None = None,
) -> list[Exported]:
    """Write `images/ID.nii.gz` and `labels/NAME/ID.nii.gz` for every record, and dataset.json.

    Every chunk is checked on the way (ChunkError). Raises CorpusError rather than write over a
    file that is there already.
    """
    suffix = ".nii.gz" if compress else ".nii"
    if (destination / DATALIST).exists():
        raise CorpusError(f"{destination / DATALIST}: is there already; name an empty folder")
    done = []
    for record in records:
        done.append(export_volume(record, table, reader, destination, axes, suffix))
        if advance is not None:
            advance()
    (destination / DATALIST).write_text(datalist(records, done, destination))
    return done


def datalist(records: Sequence[VolumeRecord], done: Sequence[Exported], folder: Path) -> str:
    """What was written as a MONAI datalist, paths relative to the folder.

    A label is a path, or an object of paths by name where it is not one alone called `seg`.
    """
    sections: dict[str, list[dict[str, object]]] = {"training": []}
    for record, exported in zip(records, done, strict=True):
        images = [file.relative_to(folder).as_posix() for file in exported.images]
        labels = {n: file.relative_to(folder).as_posix() for n, file in exported.labels.items()}
        entry: dict[str, object] = {"image": images if len(images) > 1 else images[0]}
        if labels:
            entry["label"] = labels["seg"] if [*labels] == ["seg"] else labels
        entry |= {"id": record.id, "subject": record.subject}
        entry |= {"group": record.group} if record.group else {}
        sections.setdefault(SECTIONS.get(record.split, "training"), []).append(entry)
    return json.dumps(sections, indent=1)


def export_volume(
    record: VolumeRecord,
    table: ChunkTable,
    reader: ShardReader,
    destination: Path,
    axes: Axes,
    suffix: str,
) -> Exported:
    """Write one volume and its labels."""
    volume = table.index(record.id)
    change, affine = way_back(record) if axes == "original" else (None, np.array(record.affine))
    row = int(table.volumes["image"][volume])
    code = record.affine_code or ALIGNED
    images = []
    for name, voxels in image_files(record, turned(read_all(reader, row), change)):
        images.append(destination / "images" / f"{name}{suffix}")
        write_nifti(images[-1], voxels, affine, code, (record.slope, record.intercept))
    labels = {}
    for label in record.labels:
        row = table.label_row(volume, label.name)
        labels[label.name] = destination / "labels" / label.name / f"{record.id}{suffix}"
        (voxels,) = turned(read_all(reader, row), change)
        write_nifti(labels[label.name], voxels, affine, code, (1.0, 0.0))
    in_source_grid = change is not None or record.original_orientation == "".join(
        nib.orientations.aff2axcodes(np.array(record.affine))
    )
    return Exported(record.id, tuple(images), labels, in_source_grid)


def way_back(record: VolumeRecord) -> tuple[Reorientation | None, np.ndarray]:
    """Permutation and flips to the source's axes, and its affine; (None, stored affine) if the
    stored grid is another one (resampled or cropped)."""
    stored = np.array(record.affine)
    original = np.array(record.original_affine)
    change = reorientation(stored, record.original_orientation)
    x, y, z = (record.shape[2 - axis] for axis in change.axes)
    same = (x, y, z) == tuple(record.original_shape)
    shape = (record.shape[2], record.shape[1], record.shape[0])
    if not same or not np.allclose(change.affine(stored, shape), original, rtol=0, atol=1e-3):
        return None, stored
    return change, original


def read_all(reader: ShardReader, row: int) -> np.ndarray:
    """Whole array (c, z, y, x)."""
    return reader.read_box(row, (0, 0, 0), reader.array(row).shape)


def turned(voxels: np.ndarray, change: Reorientation | None) -> list[np.ndarray]:
    """Channels (x, y, z) of (c, z, y, x) voxels, in the axes wanted."""
    channels = [channel.transpose(2, 1, 0) for channel in voxels]
    return channels if change is None else [change.view(channel) for channel in channels]


def image_files(record: VolumeRecord, channels: list[np.ndarray]) -> list[tuple[str, np.ndarray]]:
    """Name without suffix and voxels of each image file: (x, y, z), or (x, y, z, c) in one."""
    if len(channels) == 1:
        return [(record.id, channels[0])]
    if len(record.sources) == len(channels):
        return [(f"{record.id}_{i:04d}", channel) for i, channel in enumerate(channels)]
    return [(record.id, np.stack(channels, axis=-1))]


def write_nifti(
    file: Path, voxels: np.ndarray, affine: np.ndarray, code: int, scaling: tuple[float, float]
) -> None:
    """Write stored voxels as they are; CorpusError rather than write over a file."""
    if file.exists():
        raise CorpusError(f"{file}: is there already; name an empty folder")
    write_image(file, made_header(voxels.shape, voxels.dtype, affine, code, scaling), voxels)
