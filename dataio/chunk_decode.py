"""One stored chunk to voxels: crc32c checked, then blosc decoded."""

import google_crc32c
import numpy as np
from numcodecs import blosc  # pyright: ignore[reportAttributeAccessIssue]

CRC_BYTES = 4
BLOSC_HEADER_BYTES = 16


def decode_chunk(stored: np.ndarray, out: np.ndarray) -> None:
    """Decode `stored` (uint8, blosc frame then little-endian crc32c) into contiguous `out`.

    Raises ValueError, saying why, where the checksum, the frame's sizes or its content are wrong.
    """
    frame = stored[:-CRC_BYTES]
    if len(frame) < BLOSC_HEADER_BYTES:
        raise ValueError(f"{len(stored)} bytes are too few for a blosc frame with a checksum")
    expected = int.from_bytes(stored[-CRC_BYTES:].tobytes(), "little")
    actual = google_crc32c.value(frame)
    if actual != expected:
        raise ValueError(f"crc32c is {actual:08x}, stored is {expected:08x}")
    decoded_bytes = int.from_bytes(frame[4:8].tobytes(), "little")
    if decoded_bytes != out.nbytes:
        raise ValueError(f"frame decodes to {decoded_bytes} bytes, a chunk has {out.nbytes}")
    try:
        blosc.decompress(frame, out)
    except RuntimeError as error:
        raise ValueError(f"blosc cannot decode it: {error}") from error
