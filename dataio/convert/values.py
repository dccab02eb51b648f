"""Changes of stored values, each with its largest error known: NaN policy, window, dtype.

Voxels that may be written are changed in place, so that a volume is held once: what is given to
these functions is theirs. What it no longer takes is given back to the system.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil, floor

import numpy as np

from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.errors import SourceError
from mim3d.dataio.geometry import Triple
from mim3d.dataio.memory import in_one_piece, room_for, trim

NARROWER = ("uint8", "int8", "int16", "uint16", "int32", "uint32")


@dataclass(frozen=True)
class Values:
    """Stored voxels of any shape and how to read them: real = slope * stored + intercept."""

    voxels: np.ndarray
    slope: float
    intercept: float
    n_nan: int = 0
    n_inf: int = 0
    max_error: float = 0.0

    def real(self) -> np.ndarray:
        """Real values in float32, a copy."""
        out = self.voxels.astype(np.float32)
        if (self.slope, self.intercept) != (1.0, 0.0):
            np.multiply(out, np.float32(self.slope), out=out)
            np.add(out, np.float32(self.intercept), out=out)
        return out


def as_stored(values: Values, policy: str, path: str) -> Values:
    """float64 to float32 with its error, 64-bit integers to what holds them exactly, then the
    policy for NaN and infinities.

    Raises SourceError overflow, too-wide or non-finite.
    """
    if values.voxels.dtype.kind != "f":
        return values if values.voxels.dtype.itemsize < 8 else _narrow_integers(values, path)
    if values.voxels.dtype.itemsize == 8:
        values = _narrow(values, path)
    return _finite(values, policy, path)


def _narrow(values: Values, path: str) -> Values:
    wide = values.voxels
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float32)
    if np.isinf(narrow).sum() > np.isinf(wide).sum():
        detail = "float64 values beyond float32's range of 3.4e38"
        raise SourceError("overflow", path, f"{detail}; rescale the file")
    error = 0.0
    # Blocks: the difference of whole volumes would be a second float64 copy.
    for before, after in zip(_blocks(wide), _blocks(narrow), strict=True):
        gap = np.abs(before - after)
        error = max(error, float(np.nanmax(gap, initial=0.0, where=np.isfinite(gap))))
    return replace(values, voxels=narrow, max_error=abs(values.slope) * error)


def _narrow_integers(values: Values, path: str) -> Values:
    """64-bit integers as the smallest integers that hold all of them: no reader on a GPU and few
    programs take 64 bits, and what numpy made of CT values or classes seldom needs them."""
    wide = values.voxels
    low, high = int(wide.min()), int(wide.max())
    holds = (np.dtype(k) for k in NARROWER if np.iinfo(k).min <= low and high <= np.iinfo(k).max)
    kind = next(holds, None)
    if kind is None:
        detail = f"{wide.dtype.name} voxels of {low} to {high} fit no integer of 32 bits"
        raise SourceError("too-wide", path, f"{detail}; rescale or renumber them")
    narrow = room_for(wide, kind)
    for before, after in zip(planes(wide), planes(narrow), strict=True):
        after[...] = before
    trim(narrow)
    return replace(values, voxels=narrow)


def _blocks(voxels: np.ndarray) -> list[np.ndarray]:
    flat = voxels.reshape(-1)
    return [flat[start : start + (1 << 20)] for start in range(0, flat.size, 1 << 20)]


def _finite(values: Values, policy: str, path: str) -> Values:
    voxels = values.voxels
    if np.isfinite(voxels.min()) and np.isfinite(voxels.max()):
        return values
    n_nan = sum(int(np.isnan(plane).sum()) for plane in planes(voxels))
    n_inf = sum(int(np.isinf(plane).sum()) for plane in planes(voxels))
    values = replace(values, n_nan=n_nan, n_inf=n_inf)
    if n_nan + n_inf == voxels.size:
        raise SourceError("non-finite", path, f"none of its {voxels.size} voxels is finite")
    if policy == "reject":
        detail = f"{n_nan} NaN and {n_inf} infinite of {voxels.size} voxels"
        raise SourceError("non-finite", path, f"{detail}; --nan-policy zero takes them as 0")
    if policy == "keep":
        return values
    zero = float(np.float32(-values.intercept / values.slope))  # what is read as 0
    if not np.isfinite(zero):
        detail = f"slope {values.slope:g} and intercept {values.intercept:g} have no 0 in float32"
        raise SourceError("non-finite", path, f"{detail} for --nan-policy zero")
    copy = not voxels.flags.writeable
    voxels = np.nan_to_num(voxels, copy=copy, nan=zero, posinf=zero, neginf=zero)
    return replace(values, voxels=voxels)


def finite_only(voxels: np.ndarray) -> np.ndarray:
    """The voxels statistics are about: all, unless NaN or infinities were kept."""
    if voxels.dtype.kind != "f" or (np.isfinite(voxels.min()) and np.isfinite(voxels.max())):
        return voxels
    return voxels[np.isfinite(voxels)]


def windowed(values: Values, window: tuple[float, float] | None, path: str) -> Values:
    """Clip real values to the window; integers stay integers, the last ones inside it.

    What that is short of the window's ends counts as error. Raises SourceError window where no
    integer lies inside.
    """
    if window is None:
        return values
    voxels, dtype = values.voxels, values.voxels.dtype.newbyteorder("=")
    low, high = stored_window(values, window)
    first, last, error = low, high, 0.0
    if dtype.kind != "f":
        info = np.iinfo(dtype)
        first, last = max(ceil(low), int(info.min)), min(floor(high), int(info.max))
        if first > last:
            detail = f"window {window[0]:g} to {window[1]:g} holds no value of {dtype.name} voxels"
            scaling = f"with slope {values.slope:g} and intercept {values.intercept:g}"
            raise SourceError("window", path, f"{detail} {scaling}; widen it or use float32")
        below, above = int(voxels.min()) < first, int(voxels.max()) > last
        error = abs(values.slope) * max(first - low if below else 0, high - last if above else 0)
    # Ends of the voxels' own dtype, or numpy would clip in float64.
    ends = dtype.type(first), dtype.type(last)
    out = voxels if voxels.flags.writeable else np.empty_like(voxels)
    clipped = np.clip(voxels, *ends, out=out)
    return replace(values, voxels=clipped, max_error=values.max_error + error)


def stored_window(values: Values, window: tuple[float, float]) -> tuple[float, float]:
    """The window's ends in stored values, ascending."""
    low, high = sorted((end - values.intercept) / values.slope for end in window)
    return low, high


def as_asked(values: Values, conversion: Conversion, path: str) -> Values:
    """The window and dtype asked for.

    float32 holds real values. Integers keep the stored values where these fit, else the range (the
    window, or minimum to maximum) is spread over all levels and half a level is the largest error.
    Raises SourceError window.
    """
    target, window = conversion.dtype, conversion.window
    if target in ("native", values.voxels.dtype.name):
        return windowed(values, window, path)
    if target == "float32":
        return _recast(values, np.dtype(target), 1.0, 0.0, window)
    if _fits(values, np.dtype(target), window):
        kept = windowed(values, window, path)
        return replace(kept, voxels=kept.voxels.astype(target))
    return _quantised(values, np.dtype(target), window)


def _fits(values: Values, dtype: np.dtype, window: tuple[float, float] | None) -> bool:
    """Whether an integer dtype holds the stored integers that are left by the window."""
    if values.voxels.dtype.kind == "f":
        return False
    info, low, high = np.iinfo(dtype), int(values.voxels.min()), int(values.voxels.max())
    if window is not None:
        first, last = stored_window(values, window)
        low, high = max(low, ceil(first)), min(high, floor(last))
    return info.min <= low <= high <= info.max


def _quantised(values: Values, dtype: np.dtype, window: tuple[float, float] | None) -> Values:
    """Spread the window, or minimum to maximum, over all levels of an integer dtype."""
    ends = [values.slope * float(end) + values.intercept
            for end in (values.voxels.min(), values.voxels.max())]  # fmt: skip
    low, high = window or (min(ends), max(ends))
    info = np.iinfo(dtype)
    slope = (high - low) / (int(info.max) - int(info.min)) or 1.0
    return _recast(values, dtype, slope, low - slope * int(info.min), window)


def _recast(
    values: Values,
    dtype: np.dtype,
    slope: float,
    intercept: float,
    window: tuple[float, float] | None,
) -> Values:
    """The real values within the window at another dtype and scaling, and the largest change.

    Plane by plane, as float64 of a whole int16 volume would be four times its size.
    """
    stored = room_for(values.voxels, dtype)
    largest = 0.0
    for voxels, out in zip(planes(values.voxels), planes(stored), strict=True):
        real = values.slope * voxels.astype(np.float64) + values.intercept
        if window is not None:
            np.clip(real, *window, out=real)
        levels = (real - intercept) / slope
        if dtype.kind != "f":
            info = np.iinfo(dtype)
            levels = np.clip(np.rint(levels), info.min, info.max)
        out[...] = levels
        gap = np.abs(slope * out.astype(np.float64) + intercept - real)
        largest = max(largest, float(np.nanmax(gap, initial=0.0, where=np.isfinite(gap))))
    trim(stored)
    return replace(
        values, voxels=stored, slope=slope, intercept=intercept,
        max_error=values.max_error + largest,
    )  # fmt: skip


def planes(voxels: np.ndarray) -> Iterator[np.ndarray]:
    """Views (y, x) of (..., z, y, x) voxels, in C order."""
    for index in np.ndindex(voxels.shape[:-2]):
        yield voxels[index]


def cut(voxels: np.ndarray, box: tuple[Triple, Triple]) -> np.ndarray:
    """The voxels of a box in (..., z, y, x), moved to the front of their own memory if it may be.

    A voxel moves towards the front or stays, so planes in C order overwrite none that comes later.
    """
    part = voxels[(..., *(slice(a, b) for a, b in zip(*box, strict=True)))]
    if not in_one_piece(voxels):
        return np.ascontiguousarray(part)
    out = np.ndarray(part.shape, voxels.dtype, voxels.data)
    for plane, to in zip(planes(part), planes(out), strict=True):
        to[...] = plane
    trim(out)
    return out
