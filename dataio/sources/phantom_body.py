"""A synthetic body: tissues and labelled structures as functions of world position.

Four nuclei look alike. The two beside the cistern (a dark, horned landmark) are label 1, the two
away from it are label 2. A canal of the same brightness runs from end to end; only its part in the
wide end of the egg-shaped body is label 3. Two unlabelled nodules of the same brightness are
decoys. Bodies are turned by up to 30 degrees and crops are mirrored in training, so brightness,
shape or place in the picture alone do not name a structure: the landmark does. Every rule survives
mirroring, so flips stay valid augmentations.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom

Field = NDArray[np.floating]
LABELS = {0: "background", 1: "near nuclei", 2: "far nuclei", 3: "wide-end canal"}
NUCLEI = ((0.37, 0.24, 1), (-0.37, 0.24, 1), (0.37, -0.27, 2), (-0.37, -0.27, 2))


@dataclass(frozen=True)
class Tissue:
    """What a voxel is made of: shares in [0, 1] that a scanner turns into intensities.

    `body`, `shell`, `nuclei` and `cistern` are soft-edged shares; `folds` is a signed texture of
    the parenchyma; `label` holds the classes of LABELS.
    """

    body: Field
    shell: Field
    nuclei: Field
    cistern: Field
    folds: Field
    label: NDArray[np.uint8]


@dataclass(frozen=True)
class Body:
    """One subject's anatomy: pose, size and the jitter of its parts."""

    rotation: NDArray[np.float64]  # world mm -> body axes
    semi_axes_mm: NDArray[np.float64]
    offset_mm: NDArray[np.float64]
    jitter: NDArray[np.float64]  # (4, 3), of the nuclei, in units of the semi-axes
    nucleus_radius: float
    decoys: NDArray[np.float64]  # (2, 3)
    fold_phase: NDArray[np.float64]  # (3,)
    wander: float  # sideways sweep of the canal


def draw_body(rng: np.random.Generator, field_of_view_mm: float) -> Body:
    """Draw a subject that fills most of a cubic field of view."""
    half = 0.5 * field_of_view_mm
    angles = rng.uniform(-0.25, 0.25, 3)  # a little tilt ...
    angles[2] = rng.uniform(-0.5, 0.5)  # ... and a larger turn about the long axis
    decoys = rng.uniform(-0.45, 0.45, (2, 3))
    decoys[:, 2] = np.where(rng.random(2) < 0.5, -1, 1) * rng.uniform(0.35, 0.55, 2)
    return Body(
        rotation=rotation_matrix(angles),
        semi_axes_mm=half * rng.uniform(0.8, 0.95, 3) * [0.92, 0.92, 0.98],
        offset_mm=half * rng.uniform(-0.05, 0.05, 3),
        jitter=rng.uniform(-0.06, 0.06, (4, 3)),
        nucleus_radius=rng.uniform(0.19, 0.23),
        decoys=decoys,
        fold_phase=rng.uniform(0, 2 * np.pi, 3),
        wander=rng.uniform(-0.12, 0.12),
    )


def rotation_matrix(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation about x, then y, then z by `angles` in radians."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], period: int) -> Field:
    """Gaussian noise of unit spread that varies over about `period` voxels."""
    coarse = gaussian_filter(rng.standard_normal([n // period + 4 for n in shape]), 1.0)
    steps = [n / m for n, m in zip(shape, coarse.shape, strict=True)]
    fine = np.asarray(zoom(coarse, steps, order=1))
    return ((fine - fine.mean()) / max(float(fine.std()), 1e-6)).astype(np.float32)


def body_coordinates(
    body: Body, shape: tuple[int, int, int], affine: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Position of every voxel in units of the semi-axes, (3, x, y, z)."""
    to_body = (body.rotation / body.semi_axes_mm).T  # rows: body axes
    linear = to_body @ affine[:3, :3]
    origin = to_body @ (affine[:3, 3] - body.offset_mm)
    axes = [np.arange(n, dtype=np.float32) for n in shape]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    rows = [linear[i, 0] * x + linear[i, 1] * y + linear[i, 2] * z + origin[i] for i in range(3)]
    return np.stack(rows).astype(np.float32)


def build_tissue(
    body: Body,
    shape: tuple[int, int, int],
    affine: NDArray[np.float64],
    rng: np.random.Generator,
) -> Tissue:
    """Fill a grid (x, y, z) of the given affine (voxel index -> world mm) with the body."""
    at = body_coordinates(body, shape, affine)
    at = at + 0.03 * np.stack([smooth_noise(rng, shape, 12) for _ in range(3)])
    x, y, z = at
    edge = 0.5 * float(np.abs(np.diag(affine[:3, :3])).max() / body.semi_axes_mm.min()) + 0.01
    taper = 1.0 - 0.3 * np.clip(-z, 0, 1)  # wide where z > 0: the end that names the canal
    radius = np.sqrt((x / taper) ** 2 + (y / taper) ** 2 + z**2)
    label = np.zeros(shape, np.uint8)
    share = np.zeros(shape, np.float32)
    for (cx, cy, cls), jitter in zip(NUCLEI, body.jitter, strict=True):
        centre = np.array([cx, cy, 0.05]) + jitter
        inside = body.nucleus_radius - distance(at, centre, stretch=(1.0, 1.0, 0.75))
        label[inside > 0] = cls
        share = np.maximum(share, soft(inside, edge))
    for centre in body.decoys:
        inside = 0.6 * body.nucleus_radius - distance(at, centre)
        share = np.maximum(share, soft(inside, edge))
    sway = body.wander * np.sin(3.0 * z)
    canal = np.minimum(0.14 - np.hypot(x - sway, y + 0.6), 0.8 - np.abs(z))
    label[(canal > 0) & (z > 0.08) & (label == 0)] = 3
    share = np.maximum(share, soft(canal, edge))
    return Tissue(
        body=soft(1.0 - radius, edge),
        shell=soft(0.07 - np.abs(radius - 0.93), edge),
        nuclei=share,
        cistern=soft(horned(x, y, z), edge),
        folds=folded(at, radius, body.fold_phase),
        label=label,
    )


def distance(
    at: Field, centre: NDArray[np.float64], stretch: tuple[float, ...] = (1.0, 1.0, 1.0)
) -> Field:
    """Distance from `centre` in body units, with the axes weighted by `stretch`."""
    away = [w * (a - c) for a, c, w in zip(at, centre, stretch, strict=True)]
    return np.sqrt(away[0] ** 2 + away[1] ** 2 + away[2] ** 2).astype(np.float32)


def horned(x: Field, y: Field, z: Field) -> Field:
    """Signed depth inside the cistern: a bent bar across the body's front, at y > 0."""
    bend = 0.58 - 0.9 * x**2
    return np.minimum(0.12 - np.hypot(y - bend, 0.8 * (z - 0.05)), 0.42 - np.abs(x))


def folded(at: Field, radius: Field, phase: NDArray[np.float64]) -> Field:
    """Ridges that deepen toward the surface, like gyri; in [-1, 1]."""
    waves = [np.sin(11.0 * a + p) for a, p in zip(at, phase, strict=True)]
    return (np.clip(radius - 0.35, 0, 0.6) / 0.6 * waves[0] * waves[1] * waves[2]).astype(
        np.float32
    )


def soft(depth: Field, edge: float) -> Field:
    """Share of a voxel inside a surface at signed `depth` (partial volume, linear over `edge`)."""
    return np.clip(0.5 + 0.5 * depth / edge, 0.0, 1.0).astype(np.float32)
