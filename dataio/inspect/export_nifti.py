"""A corpus back to NIfTI: the voxels, affine, dtype and scaling that were converted, bit for bit.

Volumes go back to the axes of their source by the inverse permutation and flips; where the
conversion resampled or cropped them, they are written in the stored grid, and that is told.

Channels go back as they came: those of one file along its fourth axis, those of several files to
one each, ID_0000, ID_0001, ... as nnU-Net has them. A MONAI datalist, dataset.json, says what
belongs together, with subject, group and split, so `mim3d convert` of the folder gives the same
volumes (with --time-axis channels where there is a fourth axis).

Nothing is written over a file, into a corpus, or where the sources are.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np

from mim3d.dataio.corpus.chunk_table import ChunkTable
from mim3d.dataio.corpus.manifest import VolumeRecord
from mim3d.dataio.corpus.names import store_around
from mim3d.dataio.errors import CorpusError, Rejection, StoreError, first_line
from mim3d.dataio.geometry import Reorientation, reorientation
from mim3d.dataio.nifti.file import is_remote
from mim3d.dataio.nifti.writing import made_header, write_image
from mim3d.dataio.reader.shard_reader import ShardReader

DATALIST = "dataset.json"
SECTIONS = {"val": "validation", "test": "test"}  # of a datalist; all else is `training`
Axes = Literal["original", "stored"]


@dataclass(frozen=True)
class Exported:
    """One written volume: its files, and whether it lies in its source's own grid.

    `is_guessed` tells that its source said nothing of its world, and that the files had to.
    """

    id: str
    images: tuple[Path, ...]
    labels: dict[str, Path]
    in_source_grid: bool
    is_guessed: bool = False

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
    failed: list[Rejection] | None = None,
) -> list[Exported]:
    """Write `images/ID.nii.gz` and `labels/NAME/ID.nii.gz` for every record, and dataset.json.

    Every chunk is checked on the way. A volume that cannot be written is noted in `failed`, and the
    others are done; without that list the error is raised. Raises CorpusError for no records, and
    rather than write among other files.
    """
    suffix = ".nii.gz" if compress else ".nii"
    if not records:
        raise CorpusError(f"{table.root}: no volumes to write")
    refuse_place(destination, records)
    destination.mkdir(parents=True, exist_ok=True)
    whole, done = [], []
    for record in records:
        try:
            done.append(export_volume(record, table, reader, destination, axes, suffix))
            whole.append(record)
        except (StoreError, OSError):
            raise
        except Exception as error:  # as in a conversion: one volume must not end the others
            if failed is None:
                raise
            code = "damaged" if isinstance(error, CorpusError) else "unforeseen"
            failed.append(Rejection(record.id, code, first_line(error)))
        if advance is not None:
            advance()
    (destination / DATALIST).write_text(datalist(whole, done, destination))
    return done


def refuse_place(destination: Path, records: Sequence[VolumeRecord]) -> None:
    """A CorpusError where what would be written is in the folder already, or sources are in it, or
    it is in a corpus."""
    place = destination.resolve()
    if place.exists() and not place.is_dir():
        raise CorpusError(f"{destination}: is a file; name an empty folder")
    if around := store_around(place):
        raise CorpusError(f"{destination}: lies in the corpus {around}; name a folder elsewhere")
    for folder in source_folders(records):
        if place in (folder, *folder.parents):
            raise CorpusError(f"{destination}: the sources are in {folder}; name an empty folder")
    for name in (DATALIST, "images", "labels"):
        if (place / name).exists():
            raise CorpusError(f"{destination / name}: is there already; name an empty folder")


def source_folders(records: Iterable[VolumeRecord]) -> list[Path]:
    """The folders that hold source files."""
    paths = {path for record in records for path in record.source_paths if not is_remote(path)}
    return sorted({folder.resolve() for folder in {Path(path).parent for path in paths}})


def source_folder_above(destination: Path, records: Iterable[VolumeRecord]) -> Path | None:
    """The folder of sources that a place is below, where there is one: a conversion of that folder
    would take what is written for scans."""
    folders = source_folders(records)
    return next((above for above in destination.resolve().parents if above in folders), None)


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
    """Write one volume and its labels, all of them or none."""
    volume = table.index(record.id)
    change, affine = way_back(record) if axes == "original" else (None, np.array(record.affine))
    row = int(table.volumes["image"][volume])
    code = record.affine_code
    images: list[Path] = []
    labels: dict[str, Path] = {}
    codes = set()
    try:
        for name, voxels in image_files(record, turned(read_all(reader, row), change)):
            file = new_file(destination / "images" / f"{name}{suffix}")
            scaling = (record.slope, record.intercept)
            codes.add(write_nifti(file, voxels, affine, code, scaling))
            images.append(file)
        for label in record.labels:
            row = table.label_row(volume, label.name)
            file = new_file(destination / "labels" / label.name / f"{record.id}{suffix}")
            (voxels,) = turned(read_all(reader, row), change)
            write_nifti(file, voxels, affine, code, (1.0, 0.0))
            labels[label.name] = file
    except BaseException:
        for file in (*images, *labels.values()):
            file.unlink(missing_ok=True)
        raise
    in_source_grid = change is not None or record.original_orientation == "".join(
        nib.orientations.aff2axcodes(np.array(record.affine))
    )
    is_guessed = code == 0 and codes != {0}
    return Exported(record.id, tuple(images), labels, in_source_grid, is_guessed)


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


def new_file(file: Path) -> Path:
    """The same; CorpusError where another volume's file has its name, as ID_0000 of ID may have."""
    if file.exists():
        raise CorpusError(
            f"{file}: is that of another volume; export this one alone, by --ids, into another "
            "folder"
        )
    return file


def write_nifti(
    file: Path, voxels: np.ndarray, affine: np.ndarray, code: int, scaling: tuple[float, float]
) -> int:
    """Write stored voxels as they are; the code of their world, as `made_header` has it."""
    header = made_header(voxels.shape, voxels.dtype, affine, code, scaling)
    write_image(file, header, voxels)
    return int(header["sform_code"])
