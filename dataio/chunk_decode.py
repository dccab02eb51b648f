"""Stored chunks to voxels: crc32c checked, then blosc decoded and put where they belong.

Two ways with equal results: a small compiled loop (`_crops.c`) that decodes lz4 frames and writes
only the crop's voxels, normalised, in one pass; and numcodecs with numpy for every other frame,
and where the extension was not built (`compiled()` tells).
"""

import importlib
from functools import lru_cache
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from numcodecs import blosc  # pyright: ignore[reportAttributeAccessIssue]

from mim3d.dataio.chunk_boxes import Triple

CRC_BYTES = 4
BLOSC_HEADER_BYTES = 16
COMPILED_DTYPES = frozenset(["|u1", "|i1", "<u2", "<i2", "<i4", "<f4"])
# Codes of fill_crop.
DONE, UNSUPPORTED = 0, 4


class Affine(NamedTuple):
    """`clip(voxel, low, high) * scale + shift`, in float32 and that order."""

    low: float
    high: float
    scale: float
    shift: float

    @property
    def clips(self) -> bool:
        """Whether there is a bound to clip to."""
        return bool(np.isfinite(self.low) or np.isfinite(self.high))

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Apply to a float32 array in place."""
        if self.clips:
            np.clip(values, np.float32(self.low), np.float32(self.high), out=values)
        if self.scale != 1:
            values *= np.float32(self.scale)
        if self.shift != 0:
            values += np.float32(self.shift)
        return values


IDENTITY = Affine(-np.inf, np.inf, 1.0, 0.0)


@lru_cache(maxsize=1)
def compiled() -> Any:
    """The compiled loop, or None where it was not built."""
    try:
        return importlib.import_module("mim3d.dataio._crops")
    except ImportError:
        return None


def checked_frame(stored: np.ndarray) -> np.ndarray:
    """Blosc frame of a stored chunk (uint8, frame then little-endian crc32c).

    Raises ValueError where the checksum says otherwise.
    """
    frame = stored[:-CRC_BYTES]
    if len(frame) < BLOSC_HEADER_BYTES:
        raise ValueError(f"{len(stored)} bytes are too few for a blosc frame with a checksum")
    expected = int.from_bytes(stored[-CRC_BYTES:].tobytes(), "little")
    actual = google_crc32c.value(frame)
    if actual != expected:
        raise ValueError(f"crc32c is {actual:08x}, stored is {expected:08x}")
    return frame


def decode_frame(frame: np.ndarray, out: np.ndarray) -> None:
    """Decode a blosc frame into contiguous `out`; ValueError where sizes or content are wrong."""
    decoded_bytes = int.from_bytes(frame[4:8].tobytes(), "little")
    if decoded_bytes != out.nbytes:
        raise ValueError(f"frame decodes to {decoded_bytes} bytes, a chunk has {out.nbytes}")
    try:
        blosc.decompress(frame, out)
    except RuntimeError as error:
        raise ValueError(f"blosc cannot decode it: {error}") from error


def fill_crop(
    frames: list[np.ndarray],
    boxes: np.ndarray,
    target: np.ndarray,
    chunk: Triple,
    dtype: np.dtype,
    affine: Affine | None,
) -> tuple[int, bool]:
    """Write boxes of lz4 frames into `target` (z, y, x) by the compiled loop.

    Returns how many frames were done, and False where the next one is damaged (else it is of
    another kind, or all are done). `affine` None copies voxels of equal dtype; else the target
    is float32.
    """
    numbers = None if affine is None else (affine.clips, *affine)
    done, code = compiled().fill_crop(
        frames, boxes, target, chunk, dtype.kind, dtype.itemsize, numbers
    )
    return done, code in (DONE, UNSUPPORTED)


def fits_compiled(dtype: np.dtype, target: np.ndarray, affine: Affine | None) -> bool:
    """Whether the compiled loop is there and writes this dtype into this target."""
    if compiled() is None or dtype.str not in COMPILED_DTYPES:
        return False
    return target.dtype == (dtype if affine is None else np.float32)
