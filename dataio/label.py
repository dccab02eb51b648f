"""Label files beside their image: the same grid, whole classes, and points to crop around."""

import base64
from dataclasses import dataclass

import numpy as np

from mim3d.dataio.conversion import Conversion
from mim3d.dataio.errors import SourceError
from mim3d.dataio.nifti_file import read_nifti
from mim3d.dataio.resample import resample_label, resampled_grid
from mim3d.dataio.volume import Volume, file_grid, turned_view

POINTS_PER_CLASS = 64
POINTS_PER_LABEL = 4096
MAX_CLASS = 65535
INTEGERS = ("uint8", "int16", "uint16", "int32")


@dataclass(frozen=True)
class Label:
    """A label array ready to be stored; `points` are class -> (n, 3) voxels in z, y, x."""

    name: str
    voxels: np.ndarray
    classes: dict[int, int]
    points: dict[int, np.ndarray]
    source: str
    sha256: str


def read_label(
    name: str, path: str, volume: Volume, image_path: str, conversion: Conversion
) -> Label:
    """Read a label and bring it to the stored grid of its volume.

    Raises SourceError other-grid, label-frames, label-not-integer or label-range.
    """
    file = read_nifti(path, conversion.byte_budget)
    grid = file_grid(file)
    difference = volume.file_grid.difference(grid)
    if difference:
        detail = f"label {name!r} is not on the grid of {image_path}: {difference}"
        raise SourceError("other-grid", path, f"{detail}; resample it onto the image's grid")
    n_frames = file.header.n_frames
    if n_frames not in (1, volume.n_frames):
        detail = f"label {name!r} has {n_frames} frames, the image {volume.n_frames}"
        raise SourceError("label-frames", path, detail)
    raw = file.voxels[volume.frame if n_frames > 1 else 0]
    whole = whole_classes(raw, file.header.slope, file.header.intercept, name, path)
    voxels = _placed(
        turned_view(whole, volume.file_grid, conversion.orientation), volume, conversion
    )
    classes = count_classes(voxels)
    return Label(name, voxels, classes, class_points(voxels, classes), path, file.sha256)


def whole_classes(
    raw: np.ndarray, slope: float, intercept: float, name: str, path: str
) -> np.ndarray:
    """The smallest of uint8, int16, uint16, int32 that holds every class exactly."""
    plain = (slope, intercept) == (1.0, 0.0)
    if plain and raw.dtype == np.uint8:
        return raw
    if raw.dtype.kind == "f" or not plain:
        real = slope * raw.astype(np.float64) + intercept
        if not np.isfinite(real).all() or (np.rint(real) != real).any():
            detail = f"label {name!r} holds fractions or NaN: it is no segmentation"
            raise SourceError("label-not-integer", path, f"{detail}; threshold or round it")
        raw = real
    low, high = float(raw.min()), float(raw.max())
    if high > MAX_CLASS or low < -MAX_CLASS:
        detail = f"label {name!r} has classes {low:g} to {high:g}, beyond {MAX_CLASS}"
        raise SourceError("label-range", path, f"{detail}; renumber them")
    for kind in INTEGERS:
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return raw.astype(kind)
    raise SourceError("label-range", path, f"label {name!r}: classes {low:g} to {high:g}")


def _placed(voxels: np.ndarray, volume: Volume, conversion: Conversion) -> np.ndarray:
    """Resampled and cropped as the image was."""
    if conversion.spacing_mm is not None:
        old = volume.oriented_grid
        new = resampled_grid(old, conversion.spacing_mm)
        voxels = resample_label(np.ascontiguousarray(voxels), old, new)
    slices = tuple(slice(a, b) for a, b in zip(*volume.crop, strict=True))
    return voxels[slices]


def count_classes(voxels: np.ndarray) -> dict[int, int]:
    """Voxels of every class present."""
    if voxels.dtype == np.uint8:
        counts = np.bincount(voxels.reshape(-1), minlength=1)
        return {int(number): int(counts[number]) for number in np.flatnonzero(counts)}
    numbers, counts = np.unique(voxels, return_counts=True)
    return dict(zip(numbers.tolist(), counts.tolist(), strict=True))


def class_points(voxels: np.ndarray, classes: dict[int, int]) -> dict[int, np.ndarray]:
    """Up to 64 voxels of each class above 0, drawn without replacement, the same every time."""
    present = [number for number in sorted(classes) if number > 0]
    if not present:
        return {}
    each = max(1, min(POINTS_PER_CLASS, POINTS_PER_LABEL // len(present)))
    flat = np.ascontiguousarray(voxels).reshape(-1)
    inside = np.flatnonzero(flat > 0)
    numbers = flat[inside]
    order = np.argsort(numbers, kind="stable")
    starts = np.searchsorted(numbers[order], present)
    points = {}
    for number, start in zip(present, starts, strict=True):
        count = classes[number]
        drawn = np.random.default_rng(number).choice(count, min(each, count), replace=False)
        chosen = inside[order[start + np.sort(drawn)]]
        points[number] = np.stack(np.unravel_index(chosen, voxels.shape), axis=1).astype("<u4")
    return points


def pack_points(points: dict[int, np.ndarray]) -> dict[str, str]:
    """Points as JSON holds them: base64 of little-endian uint32 (n, 3) by class."""
    return {
        str(number): base64.b64encode(zyx.astype("<u4").tobytes()).decode()
        for number, zyx in points.items()
    }


def unpack_points(packed: dict[str, str]) -> dict[int, np.ndarray]:
    """Inverse of `pack_points`."""
    return {
        int(number): np.frombuffer(base64.b64decode(text), "<u4").reshape(-1, 3)
        for number, text in packed.items()
    }
