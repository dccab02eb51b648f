"""From a corpus and a configuration to what is sampled and how each crop is read."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from mim3d.dataio.augment import Augmentation, augmentation
from mim3d.dataio.chunk_boxes import Triple
from mim3d.dataio.chunk_table import ChunkTable
from mim3d.dataio.errors import CorpusError, Mim3dError
from mim3d.dataio.loader_config import LoaderConfig
from mim3d.dataio.normalisation import Intensities, intensities, largest
from mim3d.dataio.sampler import LabelPoints, Nodes, Sampler, volume_weights

LARGEST_FLOAT16 = 65504.0


@dataclass(frozen=True)
class CropJob:
    """What stays the same from batch to batch.

    `image_rows` and `label_rows` map a volume to its arrays in the chunk table (-1: none);
    `intensities` has one entry per volume of the table. With `augmentation.per_view` flips and
    intensities are left to the graph, for each view has its own. `image_dtype` is what crops are
    read into: float32, or uint16 for the bits of bfloat16.
    """

    crop_size: Triple
    channels: int
    views: int
    augmentation: Augmentation
    intensities: Intensities
    image_rows: np.ndarray
    label_rows: np.ndarray | None
    label_dtype: str | None
    replace_errors: bool
    image_dtype: str = "float32"


def crop_job(table: ChunkTable, config: LoaderConfig, volumes: np.ndarray) -> CropJob:
    """Put together the job of reading crops of `volumes` (table rows)."""
    image_rows = np.asarray(table.volumes["image"]).astype(np.int64)
    images = np.asarray(table.arrays)[image_rows]
    channels = np.unique(images["channels"][volumes])
    if len(channels) > 1:
        raise CorpusError(
            f"{table.root}: volumes have {', '.join(map(str, channels))} channels; a batch needs "
            "one number: choose subjects, or convert them to corpora of their own"
        )
    label_rows = None if config.label is None else label_arrays(table, config.label)
    values = intensities(config.normalise, np.asarray(table.volumes), images)
    if config.dtype == "float16":
        _check_float16(table, config.normalise, largest(values, table.volumes, images), volumes)
    return CropJob(
        crop_size=config.crop_size,
        channels=int(channels[0]),
        views=config.views,
        augmentation=augmentation(config.augment),
        intensities=values,
        image_rows=image_rows,
        label_rows=label_rows,
        label_dtype=None if label_rows is None else _label_dtype(table, label_rows[volumes]),
        replace_errors=config.on_error == "replace",
    )


def make_sampler(
    table: ChunkTable, config: LoaderConfig, volumes: np.ndarray, world: int = 1
) -> Sampler:
    """Build the sampler over `volumes` (table rows) for `world` ranks."""
    rows = np.asarray(table.volumes)[volumes]
    points = None
    if config.foreground_fraction > 0 and config.label is not None:
        points = _label_points(table, label_arrays(table, config.label)[volumes])
    return Sampler(
        config.seed,
        volumes,
        rows["shape"],
        config.crop_size,
        snap=config.snap,
        weights=volume_weights(config.weighting, rows),
        foreground_fraction=config.foreground_fraction,
        points=points,
        nodes=Nodes(config.nodes, world * config.micro_batch, config.node_rotation),
    )


def choose_volumes(
    table: ChunkTable, label: str | None, subjects: Collection[str] | None
) -> np.ndarray:
    """Rows of the volumes of `subjects` (None: all) that have `label` (None: whether or not)."""
    rows = np.arange(table.n_volumes)
    if subjects is not None:
        if isinstance(subjects, str) or not all(isinstance(name, str) for name in subjects):
            raise Mim3dError(f"subjects={subjects!r} must be a collection of names: ['a', 'b']")
        rows = rows[_of_subjects(table, set(subjects))]
    if label is not None:
        rows = rows[label_arrays(table, label)[rows] >= 0]
    if not len(rows):
        raise CorpusError(f"{table.root}: no volume left for these subjects and label {label!r}")
    return rows


def label_arrays(table: ChunkTable, label: str) -> np.ndarray:
    """Row in `arrays` of each volume's `label`, -1 where it has none; (n_volumes,) int64."""
    if label not in table.label_names:
        known = ", ".join(table.label_names) or "none"
        raise CorpusError(f"{table.root}: has no label {label!r}; its labels: {known}")
    arrays = np.asarray(table.arrays)
    rows = np.flatnonzero(arrays["label"] == table.label_names.index(label))
    found = np.full(table.n_volumes, -1, np.int64)
    found[arrays["volume"][rows]] = rows
    return found


def _of_subjects(table: ChunkTable, wanted: set[str]) -> np.ndarray:
    """Mask of the volumes whose subject is wanted; CorpusError for one the corpus lacks."""
    names = [table.subjects[i] for i in range(len(table.subjects))]
    unknown = sorted(wanted.difference(names))
    if unknown:
        raise CorpusError(
            f"{table.root}: has no subject {', '.join(unknown[:5])}"
            f"{' and others' if len(unknown) > 5 else ''}"
        )
    chosen = np.array([name in wanted for name in names])
    return chosen[np.asarray(table.volumes["subject"])]


def _check_float16(table: ChunkTable, mode: str, values: np.ndarray, volumes: np.ndarray) -> None:
    """Refuse volumes with voxels that float16 would make infinite."""
    worst = volumes[int(np.argmax(values[volumes]))]
    if values[worst] > LARGEST_FLOAT16:
        raise CorpusError(
            f"{table.root}: with normalise={mode!r} voxels of volume {table.volume_id(worst)} "
            f"reach {values[worst]:g}, beyond {LARGEST_FLOAT16:g} of dtype='float16': use "
            "dtype='bfloat16' or another normalisation"
        )


def _label_dtype(table: ChunkTable, rows: np.ndarray) -> str:
    """Choose uint8 where every label array is, else int16: one dtype for all batches.

    Wider classes are refused: DALI resizes no other integers.
    """
    stored = np.unique(table.arrays["dtype"][rows])
    kinds = {np.dtype(bytes(kind).decode()).name for kind in stored}
    if not kinds <= {"uint8", "int8", "int16"}:
        raise CorpusError(
            f"{table.root}: labels are stored as {', '.join(sorted(kinds))}; the loader takes "
            "uint8, int8 and int16: renumber the classes before converting"
        )
    return "uint8" if kinds == {"uint8"} else "int16"


def _label_points(table: ChunkTable, rows: np.ndarray) -> LabelPoints:
    """Foreground points of the label arrays `rows`, gathered in that order."""
    arrays = np.asarray(table.points["array"]).astype(np.int64)
    order = np.argsort(arrays, kind="stable")
    begin = np.searchsorted(arrays[order], rows, side="left")
    end = np.searchsorted(arrays[order], rows, side="right")
    chosen = [order[a:b] for a, b in zip(begin, end, strict=True)]
    first = np.concatenate([[0], np.cumsum([len(each) for each in chosen])])
    taken = table.points[np.concatenate(chosen)] if first[-1] else table.points[:0]
    return LabelPoints(first, np.asarray(taken["cls"]), np.asarray(taken["zyx"]))
