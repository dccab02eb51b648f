"""A corpus back to NIfTI: the voxels, affine, dtype and scaling that were converted, bit for bit.

Volumes go back to the axes of their source by the inverse permutation and flips; where the
conversion resampled or cropped them, they are written in the stored grid, and that is told.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
from nibabel.openers import Opener
from nibabel.spatialimages import HeaderDataError

from mim3d.dataio.chunk_table import ChunkTable
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.manifest import VolumeRecord
from mim3d.dataio.orientation import Reorientation, reorientation
from mim3d.dataio.shard_reader import ShardReader

NIFTI1_MAX = 32767
ALIGNED = 2  # code of a world that is known, but not whose
Axes = Literal["original", "stored"]


@dataclass(frozen=True)
class Exported:
    """One written volume: its files, and whether it lies in its source's own grid."""

    id: str
    files: tuple[Path, ...]
    in_source_grid: bool


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
    """Write `images/ID.nii.gz` and `labels/NAME/ID.nii.gz` for every record.

    Every chunk is checked on the way (ChunkError). Raises CorpusError rather than write over a
    file that is there already.
    """
    suffix = ".nii.gz" if compress else ".nii"
    done = []
    for record in records:
        done.append(export_volume(record, table, reader, destination, axes, suffix))
        if advance is not None:
            advance()
    return done


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
    file = destination / "images" / f"{record.id}{suffix}"
    voxels = turned(read_all(reader, row), change)
    code = record.affine_code or ALIGNED
    write_nifti(file, voxels, affine, code, (record.slope, record.intercept))
    files = [file]
    for label in record.labels:
        row = table.label_row(volume, label.name)
        file = destination / "labels" / label.name / f"{record.id}{suffix}"
        write_nifti(file, turned(read_all(reader, row), change), affine, code, (1.0, 0.0))
        files.append(file)
    in_source_grid = change is not None or record.original_orientation == "".join(
        nib.orientations.aff2axcodes(np.array(record.affine))
    )
    return Exported(record.id, tuple(files), in_source_grid)


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


def turned(voxels: np.ndarray, change: Reorientation | None) -> np.ndarray:
    """(c, z, y, x) to NIfTI's (x, y, z) or (x, y, z, 1, c), in the axes wanted."""
    channels = [channel.transpose(2, 1, 0) for channel in voxels]
    if change is not None:
        channels = [change.view(channel) for channel in channels]
    if len(channels) == 1:
        return channels[0]
    return np.stack(channels, axis=-1)[:, :, :, None, :]


def write_nifti(
    file: Path, voxels: np.ndarray, affine: np.ndarray, code: int, scaling: tuple[float, float]
) -> None:
    """Write stored voxels as they are: nibabel's own saving would scale and may change them."""
    if file.exists():
        raise CorpusError(f"{file}: is there already; name an empty folder")
    file.parent.mkdir(parents=True, exist_ok=True)
    header = header_of(voxels, affine, code, scaling)
    partial = file.with_name(f".partial-{file.name}")
    try:
        zipped = {"compresslevel": 1, "mtime": 0} if file.suffix == ".gz" else {}
        with Opener(str(partial), "wb", **zipped) as out:
            out.write(header.binaryblock)
            out.write(b"\0" * (int(header["vox_offset"]) - len(header.binaryblock)))
            for plane in voxels.T:  # the file's order is x fastest
                out.write(np.ascontiguousarray(plane).tobytes())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def header_of(
    voxels: np.ndarray, affine: np.ndarray, code: int, scaling: tuple[float, float]
) -> nib.Nifti1Header:
    """Header of stored voxels: sform exact, qform where a rotation can say it, scaling as it was.

    A float64 affine that float32 cannot hold loses what the format has no room for.
    """
    kind = nib.Nifti1Header if max(voxels.shape) <= NIFTI1_MAX else nib.Nifti2Header
    header = kind()
    header.set_data_shape(voxels.shape)
    header.set_data_dtype(voxels.dtype)
    header.set_sform(affine, code=code)
    try:
        header.set_qform(affine, code=code, strip_shears=False)
    except (HeaderDataError, np.linalg.LinAlgError):
        header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
    header.set_xyzt_units("mm", "sec")
    header["scl_slope"], header["scl_inter"] = scaling
    header["vox_offset"] = header.single_vox_offset
    header["magic"] = header.single_magic
    return header
