"""Stored chunks to voxels: crc32c checked, then blosc decoded and put where they belong.

Two ways with equal results: a small loop in C (`native/crops.c`) that reads, checks and decodes
lz4 frames and writes only the crop's voxels, normalised, in one pass; and numcodecs with numpy for
every other frame, and where the extension was not built (`crop_loops()` tells).
"""

import math
import threading
from typing import Any, NamedTuple, Protocol

import google_crc32c
import numpy as np
from numcodecs import blosc  # pyright: ignore[reportAttributeAccessIssue]

from mim3d.dataio.geometry import Triple
from mim3d.dataio.native.extension import crop_loops

CRC_BYTES = 4
BLOSC_HEADER_BYTES = 16
LOOP_DTYPES = frozenset(["|u1", "|i1", "<u2", "<i2", "<i4", "<f4"])
# With a rescale; bfloat16 travels as the bits of uint16.
CAST_TARGETS = (np.dtype(np.float32), np.dtype(np.uint16))
COPY, FLOAT32, BFLOAT16 = 0, 1, 2
# Codes of read_crop.
DONE, TOO_SMALL, UNSUPPORTED, BAD_CRC, IO_ERROR, SHORT_FILE = 0, 3, 4, 5, 6, 7
_local = threading.local()


class Rescale(NamedTuple):
    """`clip(voxel, low, high) * scale + shift`, in float32 and that order."""

    low: float
    high: float
    scale: float
    shift: float

    @property
    def clips(self) -> bool:
        """Whether there is a bound to clip to."""
        return math.isfinite(self.low) or math.isfinite(self.high)

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Apply to a float32 array in place."""
        if self.clips:
            np.clip(values, np.float32(self.low), np.float32(self.high), out=values)
        if self.scale != 1:
            values *= np.float32(self.scale)
        if self.shift != 0:
            values += np.float32(self.shift)
        return values


IDENTITY = Rescale(-np.inf, np.inf, 1.0, 0.0)


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


class Decoded(NamedTuple):
    """What the loop in C did: up to which chunk of the box, a code, and what it is about.

    `detail` is an errno, or where a file ended; `read_ns` is the part of the time spent reading,
    `nbytes` what was read.
    """

    chunk: int
    code: int
    detail: int
    read_ns: int
    nbytes: int


class HasDescriptor(Protocol):
    """An open file, which stays open while the loop in C reads it."""

    def fileno(self) -> int:
        """Its descriptor."""
        ...


class Stored(NamedTuple):
    """Where the loop in C finds the chunks that a box meets, in C order.

    `source` is a descriptor of the shard, or what has one, memory that holds it (each chunk at its
    offset), runs of its bytes with the offsets (uint64, ascending) at which they begin, or a list
    of the chunks' stored bytes, empty where absent. For the first three `sizes` are those of all
    chunks of the shard (uint16 or uint32, 0 where absent), of which `first` is the channel's first;
    or `offsets` (uint64) and `sizes` (int64) of the box's chunks are given.
    """

    source: "int | HasDescriptor | memoryview | tuple[list[Any], np.ndarray] | list[np.ndarray]"
    sizes: np.ndarray | None = None
    first: int = 0
    offsets: np.ndarray | None = None


def read_crop(
    stored: Stored,
    grid: tuple[Triple, Triple, Triple],
    target: np.ndarray,
    dtype: np.dtype,
    rescale: Rescale | None,
) -> Decoded:
    """Fill `target` (z, y, x) with lz4 chunks of `dtype` by the loop in C, where they meet it.

    `grid` is the shape of the array, of a chunk, and the first voxel of the box, which may lie
    outside. `target` is of `dtype`, or float32, or bfloat16 as uint16; `rescale` None copies the
    voxels.
    """
    mode = COPY if rescale is None else FLOAT32 if target.dtype == np.float32 else BFLOAT16
    numbers = IDENTITY if rescale is None else rescale
    if not hasattr(_local, "scratch"):
        _local.scratch = bytearray(1 << 18)
    while True:
        done = Decoded(
            *crop_loops().read_crop(
                stored.source, stored.offsets, stored.sizes, stored.first, *grid, target,
                dtype.kind, dtype.itemsize, mode, (numbers.clips, *numbers), _local.scratch,
            )
        )  # fmt: skip
        if done.code != TOO_SMALL:
            return done
        _local.scratch = bytearray(done.detail)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Bits (uint16) of float32 values rounded to bfloat16, to the nearest even, as torch does."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)


def fits_loop(dtype: np.dtype, target: np.ndarray, rescale: Rescale | None) -> bool:
    """Whether the loop in C is there and writes this dtype into this target."""
    if crop_loops() is None or dtype.str not in LOOP_DTYPES:
        return False
    return target.dtype == dtype if rescale is None else target.dtype in CAST_TARGETS


def as_written(rescale: Rescale | None, value: float, dtype: np.dtype) -> float | np.generic:
    """One stored value as it is written into a target of that dtype."""
    if rescale is None:
        return value
    changed = rescale.apply(np.array([value], np.float32))
    return (to_bfloat16(changed) if dtype == np.uint16 else changed)[0]
