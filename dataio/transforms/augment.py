"""Augmentation parameters, drawn on the host from each sample's seed: no generator keeps a state.

DALI receives them as arguments, so a resumed run, or the same sample on another rank, gets the
same augmentation. Flips, gain and bias of the crop itself are folded into the reading.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.geometry import Triple
from mim3d.dataio.registry import NameClashError, Registry
from mim3d.dataio.transforms.artefacts import NO_ARTEFACTS, Artefacts
from mim3d.dataio.transforms.counter_random import bits, uniform
from mim3d.dataio.transforms.placement import N_DRAWS, Placements, Spatial, place

if TYPE_CHECKING:
    from torch import Tensor

Range = tuple[float, float]
# Streams of random numbers, one per parameter; FLIP, SIDE and PLACE take three, one per axis.
FLIP, SIDE, PLACE = 0, 3, 6
MAGNIFICATION, ZOOM, TURN, AXIS, ANGLE, GAIN, BIAS, BLUR, SIGMA, NOISE, NOISE_STD = range(9, 20)
N_STREAMS, NOISE_SEED = 20, 20
SPATIAL = 32  # and those behind it


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a crop, in units of normalised intensity, voxels and degrees.

    `flip`: chance per axis. `gain` and `bias`: `out = gain * image + bias`. `rotate`: chance of a
    rotation by up to `degrees` about one axis; `zoom`: chance of a zoom about the middle, by a
    factor from `magnification`; `noise`: chance, with deviation up to `noise_std`. With `per_view`
    flips, gain and bias are drawn for each view, which also has `side`, the length of its random
    resized crop as a share of each axis, and `blur`: chance, with sigma from `sigma`.

    `rotate` and `zoom` move voxels within the crop, whose border they repeat. `spatial` turns and
    zooms it within its volume instead: what a crop needs is read, so nothing is made up but beyond
    the volume, and voxels are blended once. It is for one view.

    `artefacts` of MRI come after noise, of each view its own, and leave labels alone.

    `intensity` is a plugin's own change, after all others: of a view (b, c, z, y, x) float32 on
    the loader's device and the samples' seeds (b,) uint64, from which alone it draws, so that a
    sample is the same on any rank and after a resume. It gives a tensor of the same shape, whose
    voxels stay where they are.
    """

    flip: float = 0.0
    gain: Range = (1.0, 1.0)
    bias: Range = (0.0, 0.0)
    rotate: float = 0.0
    degrees: float = 0.0
    zoom: float = 0.0
    magnification: Range = (1.0, 1.0)
    noise: float = 0.0
    noise_std: float = 0.0
    per_view: bool = False
    side: Range = (1.0, 1.0)
    blur: float = 0.0
    sigma: Range = (0.3, 0.9)
    spatial: Spatial | None = None
    artefacts: Artefacts = NO_ARTEFACTS
    intensity: "Callable[[Tensor, np.ndarray], Tensor] | None" = None

    @property
    def moves(self) -> bool:
        """Whether voxels may come to lie elsewhere in the crop than where they were read."""
        turns = self.per_view or self.rotate or self.zoom
        return bool(turns) or self.spatial is not None

    def __post_init__(self) -> None:
        for name in ("flip", "rotate", "zoom", "blur", "noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise Mim3dError(f"augmentation {name}={getattr(self, name)} is no probability")
        if not 0 < self.side[0] <= self.side[1] <= 1:
            raise Mim3dError(f"augmentation side={self.side} must lie in (0, 1]")
        if not 1 <= self.magnification[0] <= self.magnification[1]:
            # DALI's nearest-voxel resize does not clamp: a box that overhangs reads other memory.
            raise Mim3dError(
                f"augmentation magnification={self.magnification} must be at least 1, low <= high"
            )
        if not self.per_view and (self.blur or self.side != (1.0, 1.0)):
            raise Mim3dError("augmentation blur and side need per_view=True")
        if self.spatial is not None and (self.per_view or self.rotate or self.zoom):
            raise Mim3dError(
                "augmentation spatial goes with no per_view, rotate or zoom: a crop is read, and "
                "blended, once"
            )


_SEGMENTATION = Augmentation(
    flip=0.5,
    gain=(0.8, 1.2),
    bias=(-0.2, 0.2),
    rotate=0.2,
    degrees=15.0,
    zoom=0.2,
    magnification=(1.0, 1.3),
    noise=0.1,
    noise_std=0.1,
)
_SPATIAL = Spatial(rotate=0.2, degrees=30.0, zoom=0.2, scale=(0.7, 1.4))
"""Chances and ranges of nnssl's masked pretraining (and of nnU-Net's training)."""
_WITHIN_VOLUME = replace(
    _SEGMENTATION, rotate=0.0, degrees=0.0, zoom=0.0, magnification=(1.0, 1.0), spatial=_SPATIAL
)
AUGMENTATIONS: Registry[Augmentation] = Registry(
    "augmentation",
    {
        "none": Augmentation(),
        "mim": Augmentation(flip=0.5, gain=(0.9, 1.1), bias=(-0.1, 0.1)),
        "contrastive": Augmentation(
            flip=0.5,
            gain=(0.6, 1.4),
            bias=(-0.4, 0.4),
            rotate=0.3,
            degrees=20.0,
            noise=0.3,
            noise_std=0.15,
            per_view=True,
            side=(0.6, 1.0),
            blur=0.5,
        ),
        "segmentation": _SEGMENTATION,
        # Without flips: for structures that are told apart by where they lie, left and right.
        "upright": replace(_SEGMENTATION, flip=0.0),
        "spatial": Augmentation(flip=0.5, gain=(0.9, 1.1), bias=(-0.1, 0.1), spatial=_SPATIAL),
        "spatial-segmentation": _WITHIN_VOLUME,
        "spatial-upright": replace(_WITHIN_VOLUME, flip=0.0),
    },
)
AUTOMATIC = "auto"
"""Stands for contrastive or mim, by the number of views."""


@dataclass(frozen=True)
class ViewDraws:
    """Parameters of one view; arrays of one entry per sample, float32 unless said.

    `resized` (b,) bool says whether the box from `roi_start` to `roi_end` (b, 3), in voxels, is
    stretched to the crop; an end before its start means a flip.
    `turn_z`, `turn_y`, `turn_x` (b,) bool: rotate about that axis by `matrix` (b, 2, 3), which
    maps destination to source in the plane's (fast, slow) axes. `blurred` (b,) bool says whether
    `sigma` is used; `noise_std` 0 means no noise; `noise_seed` (b,) is uint64.
    """

    resized: np.ndarray
    roi_start: np.ndarray
    roi_end: np.ndarray
    turn_z: np.ndarray
    turn_y: np.ndarray
    turn_x: np.ndarray
    matrix: np.ndarray
    gain: np.ndarray
    bias: np.ndarray
    blurred: np.ndarray
    sigma: np.ndarray
    noise_std: np.ndarray
    noise_seed: np.ndarray


def augmentation(name: str) -> Augmentation:
    """Look up a named augmentation; an UnknownNameError lists the names."""
    return AUGMENTATIONS.find(name, "augment")


def register_augmentation(name: str, kind: Augmentation) -> None:
    """Add a plugin's augmentation, which `augment=NAME` then means."""
    if not isinstance(kind, Augmentation):
        raise Mim3dError(
            f"the augmentation {name!r} is a {type(kind).__name__}: give an Augmentation(...)"
        )
    if name == AUTOMATIC:
        raise NameClashError(f"{name!r} is what stands for mim or contrastive: take another name")
    AUGMENTATIONS.add(name, kind)


def draw_flips(kind: Augmentation, seeds: np.ndarray, view: int = 0) -> np.ndarray:
    """Draw (b, 3) bool: mirror along z, y, x."""
    if not kind.flip:
        return np.zeros((len(seeds), 3), bool)
    return (uniform(view, FLIP + np.arange(3)[:, None], seeds) < kind.flip).T


def draw_placements(
    kind: Augmentation,
    seeds: np.ndarray,
    start: np.ndarray,
    size: Triple,
    flips: np.ndarray,
    volumes: np.ndarray,
) -> Placements | None:
    """Where crops of `size` at `start` (b, 3) lie in their volumes, rows (b,) of the table's.

    None where no crop is turned within its volume; `flips` (b, 3) are the crops'.
    """
    if kind.spatial is None:
        return None
    u = uniform(0, SPATIAL + np.arange(N_DRAWS)[:, None], seeds)
    grid = np.asarray(volumes["spacing_mm"], np.float64), np.asarray(volumes["shape"], np.int64)
    return place(kind.spatial, u, start, size, flips, *grid)


def draw_view(kind: Augmentation, seeds: np.ndarray, view: int, size: Triple) -> ViewDraws:
    """Draw the parameters of view 0 or 1 of crops of `size`."""
    u = uniform(view, np.arange(N_STREAMS)[:, None], seeds)
    resized, roi_start, roi_end = _boxes(kind, u, np.array(size, np.float64))
    axis = np.where(u[TURN] < kind.rotate, (3 * u[AXIS]).astype(np.int64), -1)
    noise = np.where(u[NOISE] < kind.noise, kind.noise_std * u[NOISE_STD], 0.0)
    return ViewDraws(
        resized=resized,
        roi_start=roi_start.astype(np.float32, order="C"),
        roi_end=roi_end.astype(np.float32, order="C"),
        turn_z=axis == 0,
        turn_y=axis == 1,
        turn_x=axis == 2,
        matrix=_matrices(np.deg2rad(kind.degrees) * (2 * u[ANGLE] - 1), axis, size),
        gain=_between(kind.gain, u[GAIN]).astype(np.float32),
        bias=_between(kind.bias, u[BIAS]).astype(np.float32),
        blurred=u[BLUR] < kind.blur,
        sigma=_between(kind.sigma, u[SIGMA]).astype(np.float32),
        noise_std=noise.astype(np.float32),
        noise_seed=bits(view, NOISE_SEED, seeds),
    )


def _boxes(
    kind: Augmentation, u: np.ndarray, extent: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which samples are resized, and the start and end (b, 3) of their boxes, in voxels."""
    if kind.per_view:
        side = _between(kind.side, u[SIDE : SIDE + 3].T) * extent
        start = u[PLACE : PLACE + 3].T * (extent - side)
        flips = kind.flip > u[FLIP : FLIP + 3].T
        end = start + side
        every = np.ones(len(side), bool)
        return every, np.where(flips, end, start), np.where(flips, start, end)
    half = extent / (2 * _between(kind.magnification, u[MAGNIFICATION]))[:, None]
    return u[ZOOM] < kind.zoom, extent / 2 - half, extent / 2 + half


def _matrices(angle: np.ndarray, axis: np.ndarray, size: Triple) -> np.ndarray:
    """Rotations (b, 2, 3) about the middle of the plane across `axis`, fast axis first."""
    extent = np.array(size, np.float64)
    planes = np.array([[2, 1], [2, 0], [1, 0]])  # (fast, slow) axis of the planes across z, y, x
    middle = extent[planes[axis]] / 2
    turned = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], 1)
    turned = turned.reshape(-1, 2, 2)
    offset = middle - np.einsum("bij,bj->bi", turned, middle)
    return np.concatenate([turned, offset[:, :, None]], axis=2).astype(np.float32)


def _between(bounds: Range, u: np.ndarray) -> np.ndarray:
    return bounds[0] + (bounds[1] - bounds[0]) * u
