"""Augmentation parameters, drawn on the host from each sample's seed: no generator keeps a state.

DALI receives them as arguments, so a resumed run, or the same sample on another rank, gets the
same augmentation. Flips, gain and bias of the crop itself are folded into the reading.
"""

from dataclasses import dataclass

import numpy as np

from mim3d.dataio.chunk_boxes import Triple
from mim3d.dataio.counter_random import bits, uniform
from mim3d.dataio.errors import Mim3dError

Range = tuple[float, float]


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a crop, in units of normalised intensity, voxels and degrees.

    `flip`: chance per axis. `gain` and `bias`: `out = gain * image + bias`. `rotate`: chance of a
    rotation by up to `degrees` about each axis with a zoom from `zoom`, one interpolation for
    both. Per view, where there are two: `side`, length of the random resized crop as a share of
    each axis; `blur`: chance, with sigma from `sigma`; `noise`: chance, with deviation up to
    `noise_std`.
    """

    flip: float = 0.0
    gain: Range = (1.0, 1.0)
    bias: Range = (0.0, 0.0)
    rotate: float = 0.0
    degrees: float = 0.0
    zoom: Range = (1.0, 1.0)
    side: Range = (1.0, 1.0)
    blur: float = 0.0
    sigma: Range = (0.3, 0.9)
    noise: float = 0.0
    noise_std: float = 0.0

    def __post_init__(self) -> None:
        for name in ("flip", "rotate", "blur", "noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise Mim3dError(f"augmentation {name}={getattr(self, name)} is no probability")
        if not 0 < self.side[0] <= self.side[1] <= 1:
            raise Mim3dError(f"augmentation side={self.side} must lie in (0, 1]")
        if not 0 < self.zoom[0] <= self.zoom[1]:
            raise Mim3dError(f"augmentation zoom={self.zoom} must be positive, low <= high")


AUGMENTATIONS = {
    "none": Augmentation(),
    "mim": Augmentation(flip=0.5, gain=(0.9, 1.1), bias=(-0.1, 0.1)),
    "contrastive": Augmentation(
        flip=0.5,
        gain=(0.6, 1.4),
        bias=(-0.4, 0.4),
        rotate=0.2,
        degrees=15.0,
        side=(0.6, 1.0),
        blur=0.5,
        noise=0.2,
        noise_std=0.1,
    ),
    "segmentation": Augmentation(
        flip=0.5,
        gain=(0.8, 1.2),
        bias=(-0.2, 0.2),
        rotate=0.2,
        degrees=15.0,
        zoom=(0.85, 1.2),
        noise=0.1,
        noise_std=0.1,
    ),
}


@dataclass(frozen=True)
class ViewDraws:
    """Parameters of one view; arrays of one entry per sample, float32 unless said.

    `roi_start`, `roi_end` (b, 3) bound the resized crop in voxels, end before start meaning a
    flip; `turn` (b,) bool says whether `matrix` (b, 3, 4), destination to source in x, y, z, is
    used, `blurred` (b,) bool whether `sigma` is; `noise_std` 0 means no noise; `noise_seed` (b,)
    is uint64.
    """

    roi_start: np.ndarray
    roi_end: np.ndarray
    turn: np.ndarray
    matrix: np.ndarray
    gain: np.ndarray
    bias: np.ndarray
    blurred: np.ndarray
    sigma: np.ndarray
    noise_std: np.ndarray
    noise_seed: np.ndarray


def augmentation(name: str) -> Augmentation:
    """Look up a named augmentation; Mim3dError lists the names."""
    if name not in AUGMENTATIONS:
        raise Mim3dError(f"augment={name!r} is none of: {', '.join(AUGMENTATIONS)}")
    return AUGMENTATIONS[name]


def draw_flips(kind: Augmentation, seeds: np.ndarray, view: int = 0) -> np.ndarray:
    """Draw (b, 3) bool: mirror along z, y, x."""
    return np.stack([_u(seeds, view, axis) < kind.flip for axis in range(3)], axis=1)


def draw_view(kind: Augmentation, seeds: np.ndarray, view: int, size: Triple) -> ViewDraws:
    """Draw the parameters of view 0 or 1 of crops of `size`."""
    flips = draw_flips(kind, seeds, view)
    extent = np.array(size, np.float64)
    side = np.stack([_between(kind.side, _u(seeds, view, 10 + i)) for i in range(3)], 1)
    start = np.stack([_u(seeds, view, 13 + i) for i in range(3)], 1) * (1 - side) * extent
    end = start + side * extent
    noise = np.where(_u(seeds, view, 22) < kind.noise, kind.noise_std * _u(seeds, view, 23), 0)
    return ViewDraws(
        roi_start=np.where(flips, end, start).astype(np.float32),
        roi_end=np.where(flips, start, end).astype(np.float32),
        turn=_u(seeds, view, 30) < kind.rotate,
        matrix=_matrices(kind, seeds, view, extent),
        gain=_between(kind.gain, _u(seeds, view, 40)).astype(np.float32),
        bias=_between(kind.bias, _u(seeds, view, 41)).astype(np.float32),
        blurred=_u(seeds, view, 20) < kind.blur,
        sigma=_between(kind.sigma, _u(seeds, view, 21)).astype(np.float32),
        noise_std=noise.astype(np.float32),
        noise_seed=bits(view, 50, seeds),
    )


def _matrices(kind: Augmentation, seeds: np.ndarray, view: int, extent: np.ndarray) -> np.ndarray:
    """Destination-to-source matrices (b, 3, 4) about the crop's middle, axes in x, y, z order."""
    angles = [np.deg2rad(kind.degrees) * (2 * _u(seeds, view, 31 + i) - 1) for i in range(3)]
    turned = np.broadcast_to(np.eye(3), (len(seeds), 3, 3))
    for axis, angle in enumerate(angles):
        turned = turned @ _rotation(axis, angle)
    turned = turned / _between(kind.zoom, _u(seeds, view, 34))[:, None, None]
    middle = extent[::-1] / 2
    offset = middle - turned @ middle
    return np.concatenate([turned, offset[:, :, None]], axis=2).astype(np.float32)


def _rotation(axis: int, angle: np.ndarray) -> np.ndarray:
    matrix = np.broadcast_to(np.eye(3), (len(angle), 3, 3)).copy()
    i, j = [k for k in range(3) if k != axis]
    matrix[:, i, i] = matrix[:, j, j] = np.cos(angle)
    matrix[:, i, j], matrix[:, j, i] = -np.sin(angle), np.sin(angle)
    return matrix


def _between(bounds: Range, u: np.ndarray) -> np.ndarray:
    return bounds[0] + (bounds[1] - bounds[0]) * u


def _u(seeds: np.ndarray, view: int, stream: int) -> np.ndarray:
    return uniform(view, stream, seeds)
