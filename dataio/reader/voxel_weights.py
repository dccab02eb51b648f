"""Which voxels of a crop count, where a run ignores some: padding, air, and what a label marks.

    padding      beyond the volume
    air          not above the foreground's threshold in any channel that has one: the rule of the
                 corpus' statistics (Otsu's threshold of each channel); padding is air too
    label:NAME   where the volume's label of that name is not 0, such as nnssl's anonymization_mask;
                 of a volume without it all counts

Padding is worked out from a crop's place, air from its normalised voxels: where a normalisation
clips above the threshold, all that it clips low is air, for nothing tells it from air any more.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mim3d.dataio.chunks.decode import Rescale
from mim3d.dataio.corpus.chunk_table import ChunkTable, label_arrays
from mim3d.dataio.corpus.manifest import VolumeRecord
from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.geometry import Triple
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.reader.shard_reader import Request

PADDING, AIR, LABEL = "padding", "air", "label:"
ULPS = 4 * float(np.finfo(np.float32).eps)
"""How far off, of the numbers it is made of, a normalised voxel may be."""
Part = tuple[slice, slice, slice]


def check_ignore(
    words: Sequence[str], what: str = "ignore", kind: type[Mim3dError] = Mim3dError
) -> None:
    """A `kind` where a word is none of padding, air and label:NAME, or stands twice."""
    for word in words:
        if word not in (PADDING, AIR) and not re.fullmatch(f"{LABEL}.+", word):
            raise kind(f"{what}={word!r}: {PADDING}, {AIR} or {LABEL}NAME, a label of the corpus")
    if len({*words}) < len(words):
        raise kind(f"{what}={' '.join(words)!r} names one of them twice: leave one")


def ignored_labels(words: Sequence[str]) -> list[str]:
    """Names of the labels that such words name."""
    return [word.removeprefix(LABEL) for word in words if word.startswith(LABEL)]


@dataclass(frozen=True)
class VoxelWeights:
    """What tells of any crop which of its voxels count.

    `volume_of` is the volume of each array of the table, `slopes` what a step of its stored values
    is worth, `shapes` (n, 3) of the volumes; `thresholds` of each channel in stored values, that of
    a volume's first at `first[volume]`, infinite where a channel has none; None where air counts.
    `labels` are rows in the table of each volume's array, -1 for none, by the label's name.
    `lacking` counts chosen volumes without it, `covered` those that it marks whole.
    """

    volume_of: np.ndarray
    slopes: np.ndarray
    shapes: np.ndarray
    first: np.ndarray
    thresholds: np.ndarray | None
    padding: bool
    labels: Mapping[str, np.ndarray]
    lacking: Mapping[str, int]
    covered: Mapping[str, int]

    @property
    def is_padding_alone(self) -> bool:
        """Whether a crop's place says all."""
        return self.thresholds is None and not self.labels

    def remarks(self, n: int) -> list[str]:
        """What to say of the labels of `n` chosen volumes."""
        found = [
            f"{missing} of {n} volumes have no label {name!r}: nothing of them is ignored by it"
            for name, missing in self.lacking.items()
            if missing
        ]
        return found + [
            f"label {name!r} covers {whole} of {n} volumes whole: their crops are drawn, and none "
            "of their voxels is scored"
            for name, whole in self.covered.items()
            if whole
        ]

    def volume(self, image: Request) -> int:
        """The volume that a crop is of."""
        return int(self.volume_of[image.row])

    def part(self, image: Request, size: Triple) -> Part:
        """The part of a crop, as it comes out, whose voxels are in the volume; all of it where
        padding counts."""
        return self.part_of(self.volume(image), image.start, image.flip, size)

    def part_of(
        self, volume: int, start: Sequence[int], flip: Sequence[bool], size: Triple
    ) -> Part:
        """The same of a crop of that volume."""
        if not self.padding:
            return slice(0, size[0]), slice(0, size[1]), slice(0, size[2])
        z, y, x = map(_inside, start, self.shapes[volume].tolist(), size, flip)
        return z, y, x

    def foreground(self, image: Request) -> tuple[float, list[float]]:
        """A sign, and of each channel a value: where sign * voxel of a crop as it comes out is
        above that of any channel, there is foreground."""
        assert self.thresholds is not None and image.rescale is not None
        first, slope = int(self.first[self.volume(image)]), float(self.slopes[image.row])
        stored = self.thresholds[first : first + len(image.rescale)].tolist()
        # Contrast is turned over where a gain is negative, not where the file's own slope is.
        sign = 1.0 if slope * image.rescale[0].scale >= 0 else -1.0
        given = zip(stored, image.rescale, strict=True)
        return sign, [_normalised(at, rescale, sign, slope > 0) for at, rescale in given]


def _inside(start: int, n: int, size: int, flipped: bool) -> slice:
    """Places of one axis of a crop that lie in a volume of `n` voxels."""
    first, end = min(max(-start, 0), size), min(max(n - start, 0), size)
    return slice(size - end, size - first) if flipped else slice(first, max(first, end))


def _normalised(stored: float, rescale: Rescale, sign: float, rising: bool) -> float:
    """A threshold as sign * voxels come out, raised by what rounding may add to a voxel at it."""
    if not np.isfinite(stored):
        return stored
    if stored >= rescale.high if rising else stored <= rescale.low:
        return np.inf  # all that is above it is clipped to it
    parts = min(max(stored, rescale.low), rescale.high) * rescale.scale, rescale.shift
    return sign * sum(parts) + ULPS * max(map(abs, parts))


def voxel_weights(corpus: Corpus, words: Sequence[str], volumes: np.ndarray) -> VoxelWeights | None:
    """What ignores `words` in `volumes` (rows of the table); None where there are none.

    Mim3dError where a label that is named is of none of the volumes, or leaves no voxel of them.
    """
    if not words:
        return None
    table = corpus.table
    names = ignored_labels(words)
    labels = {name: label_arrays(table, name) for name in names}
    known = records_of(corpus, volumes) if AIR in words or names else []
    lacking = {name: int((rows[volumes] < 0).sum()) for name, rows in labels.items()}
    covered = {name: sum(covers(record, name) for record in known) for name in names}
    for name in names:
        if len(volumes) in (lacking[name], covered[name]):
            what = "covers all" if covered[name] else "is of none"
            raise Mim3dError(
                f"{table.root}: label {name!r}, which is to be ignored, {what} of the "
                f"{len(volumes)} chosen volumes: leave out {LABEL}{name}, or choose others"
            )
    return VoxelWeights(
        volume_of=np.asarray(table.arrays["volume"]).astype(np.int64),
        slopes=np.asarray(table.arrays["slope"]).astype(np.float64),
        shapes=np.asarray(table.volumes["shape"]).astype(np.int64),
        first=table.first_channel,
        thresholds=stored_thresholds(table, volumes, known) if AIR in words else None,
        padding=PADDING in words or AIR in words,
        labels=labels,
        lacking=lacking,
        covered=covered,
    )


def records_of(corpus: Corpus, volumes: np.ndarray) -> list[VolumeRecord]:
    """The manifest's records of rows of the table; all others are let go."""
    opened = Corpus(corpus.root, corpus.attributes, corpus.address)
    by_id = {record.id: record for record in opened.records}
    return [by_id[corpus.table.volume_id(row)] for row in volumes.tolist()]


def covers(record: VolumeRecord, name: str) -> bool:
    """Whether a label of a volume leaves no voxel of it."""
    return any(label.name == name and not label.classes.get(0) for label in record.labels)


def stored_thresholds(
    table: ChunkTable, volumes: np.ndarray, records: Sequence[VolumeRecord]
) -> np.ndarray:
    """Threshold of every channel in stored values, float64; of whole numbers between two of them.

    A channel that is one value everywhere has none: it shows no voxel beside channels that do
    (inf), and all where there are no others (-inf).
    """
    found = np.full(len(table.channels), -np.inf)
    for volume, record in zip(volumes.tolist(), records, strict=True):
        channels = record.channel_records
        constant = [channel.foreground_rule == "all" for channel in channels]
        is_whole = np.dtype(record.dtype).kind in "iu"
        first = int(table.first_channel[volume])
        for i, channel in enumerate(channels):
            at = -np.inf if all(constant) else np.inf
            if not constant[i]:
                at = (channel.foreground_threshold - record.intercept) / record.slope
                at = between(at, record.slope < 0) if is_whole else at
            found[first + i] = at
    return found


def between(threshold: float, falling: bool) -> float:
    """The middle between the last whole number that is air and the next."""
    nearest = round(threshold)
    if abs(threshold - nearest) < 1e-6 * max(1.0, abs(threshold)):
        threshold = nearest
    return np.ceil(threshold) - 0.5 if falling else np.floor(threshold) + 0.5
