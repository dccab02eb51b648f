"""What to read: a pure function of (seed, global sample index), whatever the number of ranks.

Sample g of a run is the same crop at any world size; rank r of w takes its slice of each global
batch. So the loader's whole state is the index of the next sample. Within an epoch (as many
samples as there are volumes) uniform weighting visits every volume once; other weightings visit
each volume its expected number of times, rounded down or up (systematic sampling).

With `Nodes` each node of a cluster draws from a split of its own, so that what it keeps in memory
is what it will be asked for. Batches are still a function of (seed, global index): the number of
nodes belongs to a run as its seed does, and ranks may change as long as it stays.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np

from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.geometry import Triple
from mim3d.dataio.reader.label_points import Points
from mim3d.dataio.transforms.counter_random import below, bits, permutation, uniform

PointsOf = Callable[[int], Points]
Weighting = Literal["uniform", "voxels", "foreground"]
WEIGHTINGS: tuple[Weighting, ...] = get_args(Weighting)
# Streams of random numbers; epochs take EPOCH + epoch.
START, FOREGROUND, POINT, AUGMENT, REPLACE, CLASS = 1, 4, 5, 6, 7, 8
OFFSET, SPLITS, EPOCH, NODE_EPOCH = 9, 10, 1 << 32, 1 << 48
KEPT_EPOCHS = 2


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
class Nodes:
    """How volumes are split between nodes: the k-th share of each global batch is node k's.

    `global_batch` is samples per step, all ranks together. From one epoch to the next a share
    `rotation` of each split goes to the neighbour, so that 1 / rotation epochs pass it all on.
    """

    count: int
    global_batch: int
    rotation: float = 0.0

    def __post_init__(self) -> None:
        if self.count < 1 or self.global_batch % self.count:
            raise Mim3dError(
                f"nodes={self.count} does not divide the global batch of {self.global_batch}"
            )
        if not 0 <= self.rotation <= 1:
            raise Mim3dError(f"node_rotation={self.rotation} must lie in [0, 1]")

    def of(self, index: np.ndarray) -> np.ndarray:
        """Node of each global sample index."""
        return index % self.global_batch // (self.global_batch // self.count)


class Sampler:
    """Draws crops of `crop_size` from `volumes` (rows of the table) of `shapes` (n, 3).

    `weights` (n,) are relative; None visits all alike. `snap` aligns starts to multiples of so
    many voxels, which saves decoding; the last start is reachable whatever the snap, so no voxel
    is out of reach. A share `foreground_fraction` of crops is centred on one of `points`, as near
    as the snap and the volume's border allow, each class of a volume as often as any other. `nodes`
    gives each node its own volumes; only without weights.
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
        points: PointsOf | None = None,
        nodes: Nodes | None = None,
    ) -> None:
        if nodes is not None and nodes.count > 1 and weights is not None:
            raise Mim3dError("nodes above 1 need weighting='uniform': a split has no weights")
        if not len(volumes):
            raise Mim3dError("no volume is left to sample from; widen the subjects or the label")
        self.seed, self.snap = seed, snap
        self.volumes = np.asarray(volumes, np.int64)
        self.shapes = np.asarray(shapes, np.int64)
        self.crop = np.array(crop_size, np.int64)
        self.foreground_fraction = foreground_fraction
        self.points = points
        self.nodes = nodes if nodes is not None and nodes.count > 1 else None
        self._cumulative = None if weights is None else _cumulative(weights)
        self._epoch = lru_cache(maxsize=KEPT_EPOCHS)(self._draw_epoch)

    @property
    def epoch_samples(self) -> int:
        """Samples per epoch: the number of volumes."""
        return len(self.volumes)

    def samples(self, first: int, count: int) -> Samples:
        """Draw the samples with global indices `first` to `first + count`."""
        return self.at(np.arange(first, first + count, dtype=np.int64))

    def at(self, index: np.ndarray) -> Samples:
        """Draw the samples with these global indices, (b,) int64."""
        epoch, place = np.divmod(index, self.epoch_samples)
        epochs, which = np.unique(epoch, return_inverse=True)
        if len(epochs) > KEPT_EPOCHS and self.nodes is None:  # a small corpus
            return self._place(index, self._draw_epochs(epochs)[which, place])
        entry = np.empty(len(index), np.int64)
        for i, each in enumerate(epochs.tolist()):
            entry[which == i] = self._epoch(each)[place[which == i]]
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
        if self.nodes is not None:
            return self._draw_splits(self.nodes, epoch)
        return self._draw_epochs(np.array([epoch]))[0]

    def _draw_epochs(self, epochs: np.ndarray) -> np.ndarray:
        """The same of several epochs, without splits: (epochs, places)."""
        n = self.epoch_samples
        order = permutation(self.seed, EPOCH + epochs[:, None], n)
        if self._cumulative is None:
            return order
        offset = uniform(self.seed, OFFSET, epochs[:, None])
        slots = np.searchsorted(self._cumulative, (np.arange(n) + offset) / n, side="right")
        return np.take_along_axis(np.minimum(slots, n - 1), order, axis=1)

    def _draw_splits(self, nodes: Nodes, epoch: int) -> np.ndarray:
        """The same where each node has its split: sections of one circle of all volumes.

        A section is as long as the node has places in this epoch (epochs need not end with a
        batch), so every volume is drawn once.
        """
        n = self.epoch_samples
        node = nodes.of(epoch * n + np.arange(n))
        turned = int(epoch * nodes.rotation * n / nodes.count) % n
        circle = np.roll(permutation(self.seed, SPLITS, n), -turned)
        ends = np.cumsum(np.bincount(node, minlength=nodes.count))
        entry = np.empty(n, np.int64)
        for k in range(nodes.count):
            mine = circle[ends[k - 1] if k else 0 : ends[k]]
            order = permutation(self.seed, NODE_EPOCH + epoch * nodes.count + k, len(mine))
            entry[node == k] = mine[order]
        return entry

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
        points_of: PointsOf,
        chosen: np.ndarray,
        index: np.ndarray,
        entry: np.ndarray,
        start: np.ndarray,
    ) -> np.ndarray:
        for i in np.flatnonzero(chosen):
            points = points_of(int(entry[i]))
            if not len(points.classes):
                continue
            kinds = np.unique(points.classes)
            at = index[i : i + 1]
            kind = kinds[int(below(self.seed, CLASS, at, len(kinds))[0])]
            rows = np.flatnonzero(points.classes == kind)
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
