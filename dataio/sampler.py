"""What to read: a pure function of (seed, global sample index), whatever the number of ranks.

Sample g of a run is the same crop at any world size; rank r of w takes its slice of each global
batch. So the loader's whole state is the index of the next sample. Within an epoch (as many
samples as there are volumes) uniform weighting visits every volume once; other weightings visit
each volume its expected number of times, rounded down or up (systematic sampling).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mim3d.dataio.chunk_boxes import Triple
from mim3d.dataio.counter_random import below, bits, permutation, uniform
from mim3d.dataio.errors import Mim3dError

WEIGHTINGS = ("uniform", "voxels", "foreground")
# Streams of random numbers; epochs take EPOCH + epoch.
START, FOREGROUND, POINT, AUGMENT, REPLACE, CLASS = 1, 4, 5, 6, 7, 8
OFFSET, EPOCH = 9, 1 << 32


@dataclass(frozen=True)
class Samples:
    """Crops to read; one entry per sample.

    `sample` is the global index, `volume` a row of the table, `start` (b, 3) the crop's first
    voxel (negative where the crop is larger than the volume), `augment_seed` uint64.
    """

    sample: np.ndarray
    volume: np.ndarray
    start: np.ndarray
    augment_seed: np.ndarray


@dataclass(frozen=True)
class LabelPoints:
    """Voxels of foreground classes, sorted by volume then class.

    The points of entry i of the sampler's volumes are rows `first[i]` to `first[i + 1]` of `zyx`
    (n, 3) and `classes` (n,).
    """

    first: np.ndarray
    classes: np.ndarray
    zyx: np.ndarray


class Sampler:
    """Draws crops of `crop_size` from `volumes` (rows of the table) of `shapes` (n, 3).

    `weights` (n,) are relative; None visits all alike. `snap` aligns starts to multiples of so
    many voxels, which saves decoding; the last start is reachable whatever the snap, so no voxel
    is out of reach. A share `foreground_fraction` of crops is centred on one of `points`, as near
    as the snap and the volume's border allow, each class of a volume as often as any other.
    """

    def __init__(
        self,
        seed: int,
        volumes: np.ndarray,
        shapes: np.ndarray,
        crop_size: Triple,
        *,
        snap: int = 16,
        weights: np.ndarray | None = None,
        foreground_fraction: float = 0.0,
        points: LabelPoints | None = None,
    ) -> None:
        if not len(volumes):
            raise Mim3dError("no volume is left to sample from; widen the subjects or the label")
        self.seed, self.snap = seed, snap
        self.volumes = np.asarray(volumes, np.int64)
        self.shapes = np.asarray(shapes, np.int64)
        self.crop = np.array(crop_size, np.int64)
        self.foreground_fraction = foreground_fraction
        self.points = points
        self._cumulative = None if weights is None else _cumulative(weights)
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)

    @property
    def epoch_samples(self) -> int:
        """Samples per epoch: the number of volumes."""
        return len(self.volumes)

    def samples(self, first: int, count: int) -> Samples:
        """Draw the samples with global indices `first` to `first + count`."""
        index = np.arange(first, first + count, dtype=np.int64)
        epoch, place = np.divmod(index, self.epoch_samples)
        entry = np.array(
            [self._epoch(int(e))[p] for e, p in zip(epoch, place, strict=True)], np.int64
        )
        return self._place(index, entry)

    def replacement(self, sample: int, attempt: int) -> Samples:
        """Draw the crop that stands in for a sample which cannot be read, at any attempt >= 1."""
        index = np.array([sample], np.int64)
        other = bits(self.seed, REPLACE + (attempt << 16), index)
        entry = (other % np.uint64(self.epoch_samples)).astype(np.int64)
        drawn = self._place(other.view(np.int64), entry)
        return Samples(index, drawn.volume, drawn.start, drawn.augment_seed)

    def _draw_epoch(self, epoch: int) -> np.ndarray:
        """Entry of `volumes` at each place of an epoch."""
        n = self.epoch_samples
        order = permutation(self.seed, EPOCH + epoch, n)
        if self._cumulative is None:
            return order
        offset = uniform(self.seed, OFFSET, np.array([epoch]))
        slots = np.searchsorted(self._cumulative, (np.arange(n) + offset) / n, side="right")
        return np.minimum(slots, n - 1)[order]

    def _place(self, index: np.ndarray, entry: np.ndarray) -> Samples:
        """Draw each start among the multiples of `snap` that fit, and the last start that fits."""
        shape = self.shapes[entry]
        room = shape - self.crop
        fits = np.maximum(room, 0)
        u = uniform(self.seed, START + np.arange(3), index[:, None])
        choices = -(-fits // self.snap) + 1
        start = np.minimum((u * choices).astype(np.int64) * self.snap, fits)
        start = np.where(room < 0, room // 2, start)
        if self.foreground_fraction > 0 and self.points is not None:
            chosen = uniform(self.seed, FOREGROUND, index) < self.foreground_fraction
            start = self._on_foreground(self.points, chosen, index, entry, start)
        return Samples(index, self.volumes[entry], start, bits(self.seed, AUGMENT, index))

    def _on_foreground(
        self,
        points: LabelPoints,
        chosen: np.ndarray,
        index: np.ndarray,
        entry: np.ndarray,
        start: np.ndarray,
    ) -> np.ndarray:
        for i in np.flatnonzero(chosen):
            first, last = int(points.first[entry[i]]), int(points.first[entry[i] + 1])
            if first == last:
                continue
            kinds = np.unique(points.classes[first:last])
            at = index[i : i + 1]
            kind = kinds[int(below(self.seed, CLASS, at, len(kinds))[0])]
            rows = first + np.flatnonzero(points.classes[first:last] == kind)
            point = points.zyx[rows[int(below(self.seed, POINT, at, len(rows))[0])]]
            start[i] = self._centred(point, self.shapes[entry[i]])
        return start

    def _centred(self, point: np.ndarray, shape: np.ndarray) -> np.ndarray:
        """Snapped start nearest to a crop centred on `point`, inside the volume where it fits."""
        room = shape - self.crop
        wanted = (point.astype(np.int64) - self.crop // 2 + self.snap // 2) // self.snap * self.snap
        # With a snap above the crop's half the nearest start could miss the point itself.
        wanted = np.where((wanted > point) | (wanted + self.crop <= point), point, wanted)
        return np.where(room < 0, room // 2, np.clip(wanted, 0, np.maximum(room, 0)))


def volume_weights(weighting: str, volumes: np.ndarray) -> np.ndarray | None:
    """Weights of table rows: None for `uniform`, voxels, or voxels of the foreground's box."""
    if weighting == "uniform":
        return None
    if weighting == "voxels":
        return volumes["shape"].astype(np.float64).prod(axis=1)
    if weighting == "foreground":
        box = volumes["foreground_box"].astype(np.float64)
        return np.maximum((box[:, 1] - box[:, 0]).prod(axis=1), 1.0)
    raise Mim3dError(f"weighting={weighting!r} is none of: {', '.join(WEIGHTINGS)}")


def _cumulative(weights: np.ndarray) -> np.ndarray:
    weights = np.asarray(weights, np.float64)
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
        raise Mim3dError("sampling weights must be finite, not negative and not all zero")
    return np.cumsum(weights / weights.sum())
