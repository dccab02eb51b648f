"""Changes of stored values, each with its largest error known: NaN policy, window, dtype.

Voxels that may be written are changed in place, so that a volume is held once: what is given to
these functions is theirs. What it no longer takes is given back to the system.
"""

import mmap
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from math import ceil, floor
from typing import Any

import numpy as np

from mim3d.dataio.conversion import Conversion
from mim3d.dataio.errors import SourceError
from mim3d.dataio.manifest import Triple


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
    """float64 to float32 with its error, then the policy for NaN and infinities.

    Raises SourceError overflow or non-finite.
    """
    if values.voxels.dtype.kind != "f":
        return values
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
    if policy == "reject":
        detail = f"{n_nan} NaN and {n_inf} infinite of {voxels.size} voxels"
        raise SourceError("non-finite", path, f"{detail}; --nan-policy zero or keep takes it")
    if policy == "keep":
        return values
    copy = not voxels.flags.writeable
    voxels = np.nan_to_num(voxels, copy=copy, nan=0.0, posinf=0.0, neginf=0.0)
    return replace(values, voxels=voxels)


def finite_only(voxels: np.ndarray) -> np.ndarray:
    """The voxels statistics are about: all, unless NaN or infinities were kept."""
    if voxels.dtype.kind != "f" or (np.isfinite(voxels.min()) and np.isfinite(voxels.max())):
        return voxels
    return voxels[np.isfinite(voxels)]


def windowed(values: Values, window: tuple[float, float] | None) -> Values:
    """Clip real values to the window; integers stay integers."""
    if window is None:
        return values
    low, high = sorted((end - values.intercept) / values.slope for end in window)
    dtype = values.voxels.dtype.newbyteorder("=")
    if dtype.kind != "f":
        info = np.iinfo(dtype)
        low = min(max(ceil(low), info.min), info.max)
        high = max(min(floor(high), info.max), info.min)
    # Ends of the voxels' own dtype, or numpy would clip in float64.
    ends = dtype.type(low), dtype.type(high)
    voxels = values.voxels
    out = voxels if voxels.flags.writeable else np.empty_like(voxels)
    return replace(values, voxels=np.clip(voxels, *ends, out=out))


def as_dtype(values: Values, conversion: Conversion) -> Values:
    """The dtype asked for.

    float32 holds real values. Integers keep the stored values where these fit, else the range (the
    window, or minimum to maximum) is spread over all levels and half a level is the largest error.
    """
    target = conversion.dtype
    if target in ("native", values.voxels.dtype.name):
        return values
    if target == "float32":
        return _recast(values, np.dtype(target), 1.0, 0.0)
    info = np.iinfo(target)
    low, high = float(values.voxels.min()), float(values.voxels.max())
    if values.voxels.dtype.kind != "f" and info.min <= low and high <= info.max:
        return replace(values, voxels=values.voxels.astype(target))
    return _quantised(values, np.dtype(target), conversion.window)


def _quantised(values: Values, dtype: np.dtype, window: tuple[float, float] | None) -> Values:
    """Spread the window, or minimum to maximum, over all levels of an integer dtype."""
    ends = [values.slope * float(end) + values.intercept
            for end in (values.voxels.min(), values.voxels.max())]  # fmt: skip
    low, high = window or (min(ends), max(ends))
    info = np.iinfo(dtype)
    slope = (high - low) / (int(info.max) - int(info.min)) or 1.0
    return _recast(values, dtype, slope, low - slope * int(info.min))


def _recast(values: Values, dtype: np.dtype, slope: float, intercept: float) -> Values:
    """The real values at another dtype and scaling, and the largest change this makes.

    Plane by plane, as float64 of a whole int16 volume would be four times its size.
    """
    stored = room_for(values.voxels, dtype)
    largest = 0.0
    for voxels, out in zip(planes(values.voxels), planes(stored), strict=True):
        real = values.slope * voxels.astype(np.float64) + values.intercept
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


def room_for(voxels: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """An array of the voxels' shape to write plane by plane, behind where they are read.

    That is the voxels' own memory where it is writable, in one piece and each voxel no larger.
    """
    if in_one_piece(voxels) and dtype.itemsize <= voxels.dtype.itemsize:
        return np.ndarray(voxels.shape, dtype, voxels.data)
    return np.empty(voxels.shape, dtype)


def in_one_piece(voxels: np.ndarray) -> bool:
    """Whether voxels may be written and follow each other without gaps, in their own order."""
    return voxels.flags.writeable and voxels.flags.c_contiguous


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


class Room(mmap.mmap):
    """Memory a volume is made in; a type of its own, so that `trim` can tell it."""


def room(nbytes: int) -> np.ndarray:
    """`nbytes` of fresh uint8 that `trim` can shorten; MemoryError where there is no room."""
    try:
        memory = Room(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"no room for {nbytes} bytes") from error
    _advise(memory, "MADV_HUGEPAGE")
    return np.frombuffer(memory, np.uint8, nbytes)


def trim(voxels: np.ndarray) -> None:
    """Give back what lies behind voxels at the front of a `room`; of other memory nothing.

    What is given back reads as zeros; nobody may count on it any more.
    """
    owner: Any = voxels
    while isinstance(owner, np.ndarray | memoryview):
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    if isinstance(owner, Room) and voxels.flags.c_contiguous:
        front = voxels.ctypes.data - np.frombuffer(owner, np.uint8).ctypes.data
        end = -(-(front + voxels.nbytes) // mmap.PAGESIZE) * mmap.PAGESIZE
        if end < len(owner):
            _advise(owner, "MADV_DONTNEED", end, len(owner) - end)


def _advise(memory: mmap.mmap, advice: str, *span: int) -> None:
    """Tell the kernel about memory; where it does not take advice, that is only held longer."""
    with suppress(OSError, AttributeError):
        memory.madvise(getattr(mmap, advice), *span)
