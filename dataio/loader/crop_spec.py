"""From a corpus and a configuration to what is sampled and how each crop is read."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from mim3d.dataio.corpus.chunk_table import ChunkTable, choose_volumes, label_arrays
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.geometry import Triple
from mim3d.dataio.loader.config import LoaderConfig
from mim3d.dataio.loader.sampler import Nodes, Sampler, volume_weights
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.reader.datasets import drawn
from mim3d.dataio.reader.label_points import LabelPoints
from mim3d.dataio.reader.normalisation import Intensities, intensities, largest
from mim3d.dataio.reader.shard_reader import Flip, Request
from mim3d.dataio.reader.voxel_weights import VoxelWeights
from mim3d.dataio.transforms.augment import Augmentation

LARGEST_FLOAT16 = 65504.0


@dataclass(frozen=True)
class CropJob:
    """What stays the same from batch to batch.

    `volumes` are the table's, all of them; `image_rows` and each of `label_rows` map a volume to
    its arrays in the chunk table (-1: none); `intensities` has one entry per channel of every
    volume. With `augmentation.per_view` flips and intensities are left to the graph, for each view
    has its own. `image_dtype` is what crops are read into: float32, or uint16 for the bits of
    bfloat16. Where there are `weights` they have the label's place, as uint8, and `label_rows` are
    those of labels that mark what is ignored.
    """

    crop_size: Triple
    channels: int
    views: int
    augmentation: Augmentation
    intensities: Intensities
    volumes: np.ndarray
    image_rows: np.ndarray
    label_rows: tuple[np.ndarray, ...]
    label_dtype: str | None
    replace_errors: bool
    image_dtype: str = "float32"
    weights: VoxelWeights | None = None
    weights_by_place: VoxelWeights | None = None
    """Weights that are worked out at the end, from where crops lie: nothing moves their voxels."""


def image_request(
    job: CropJob, volume: int, start: Triple, flip: Flip, gain: float, bias: float
) -> Request:
    """The image's crop: flips, normalisation, gain and bias all at once."""
    return Request(
        int(job.image_rows[volume]),
        start,
        flip,
        job.intensities.rescales(volume, gain, bias),
        job.intensities.fills(volume),
    )


def label_requests(
    job: CropJob, volume: int, start: Triple, flip: Flip
) -> tuple[Request | None, ...]:
    """The crop of each of the volume's labels, None where it has none; padding is background."""
    rows = (int(each[volume]) for each in job.label_rows)
    return tuple(Request(row, start, flip, None, (0.0,)) if row >= 0 else None for row in rows)


def crop_job(
    table: ChunkTable,
    config: LoaderConfig,
    volumes: np.ndarray,
    weights: VoxelWeights | None = None,
) -> CropJob:
    """Put together the job of reading crops of `volumes` (table rows), and their weights."""
    image_rows = np.asarray(table.volumes["image"]).astype(np.int64)
    channels = np.unique(table.n_channels[volumes])
    if len(channels) > 1:
        raise CorpusError(
            f"{table.root}: volumes have {', '.join(map(str, channels))} channels; a batch needs "
            "one number: choose subjects, or convert them to corpora of their own"
        )
    labels, label_dtype = (), None
    if config.label is not None:
        labels = (label_arrays(table, config.label),)
        label_dtype = _label_dtype(table, labels[0][volumes])
    by_place = None
    if weights is not None and weights.is_padding_alone and not config.augmentation.moves:
        weights, by_place = None, weights
    if weights is not None:
        labels, label_dtype = tuple(weights.labels.values()), "uint8"
    values = intensities(config.normalise, table, volumes)
    if config.dtype == "float16":
        _check_float16(table, config.normalise, largest(values, table, volumes), volumes)
    return CropJob(
        crop_size=config.crop_size,
        channels=int(channels[0]),
        views=config.views,
        augmentation=config.augmentation,
        intensities=values,
        volumes=np.asarray(table.volumes),
        image_rows=image_rows,
        label_rows=labels,
        label_dtype=label_dtype,
        replace_errors=config.on_error == "replace",
        weights=weights,
        weights_by_place=by_place,
    )


def volumes_drawn(
    corpus: Corpus, config: LoaderConfig, subjects: Collection[str] | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Table rows that crops are drawn from and their weights (None: all alike), of these subjects.

    Mim3dError where the subjects, the label, `where` or `shares` leave none, or name what is not
    there.
    """
    table = corpus.table
    return drawn(
        *(corpus, choose_volumes(table, config.label, subjects), config.where, config.shares),
        lambda rows: volume_weights(config.weighting, np.asarray(table.volumes)[rows]),
    )


def make_sampler(
    table: ChunkTable,
    config: LoaderConfig,
    volumes: np.ndarray,
    world: int = 1,
    weights: np.ndarray | None = None,
) -> Sampler:
    """Build the sampler over `volumes` (table rows) of these weights for `world` ranks."""
    points = None
    if config.foreground_fraction > 0 and config.label is not None:
        points = LabelPoints(table, label_arrays(table, config.label)[volumes])
    return Sampler(
        config.seed,
        volumes,
        np.asarray(table.volumes)["shape"][volumes],
        config.crop_size,
        snap=config.snap,
        weights=weights,
        foreground_fraction=config.foreground_fraction,
        points=points,
        nodes=Nodes(config.nodes, world * config.micro_batch, config.node_rotation),
    )


def _check_float16(table: ChunkTable, mode: str, values: np.ndarray, volumes: np.ndarray) -> None:
    """Refuse volumes with voxels that float16 would make infinite; `values` are their largest."""
    worst = int(np.argmax(values))
    if values[worst] > LARGEST_FLOAT16:
        volume = table.volume_id(int(volumes[worst]))
        raise CorpusError(
            f"{table.root}: with normalise={mode!r} voxels of volume {volume} "
            f"reach {values[worst]:g}, beyond {LARGEST_FLOAT16:g} of dtype='float16': use "
            "dtype='bfloat16' or another normalisation"
        )


def _label_dtype(table: ChunkTable, rows: np.ndarray) -> str:
    """Choose uint8 where every label array is, else int16: one dtype for all batches.

    Wider classes are refused: DALI resizes no other integers.
    """
    stored = np.unique(table.arrays["dtype"][rows].view("<u8"))  # many times as fast as of bytes
    kinds = {np.dtype(bytes(kind).decode()).name for kind in stored.view("S8")}
    if not kinds <= {"uint8", "int8", "int16"}:
        raise CorpusError(
            f"{table.root}: labels are stored as {', '.join(sorted(kinds))}; the loader takes "
            "uint8, int8 and int16: renumber the classes before converting"
        )
    return "uint8" if kinds == {"uint8"} else "int16"
