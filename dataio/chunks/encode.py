"""Rows of chunks to what stands in a shard: each chunk's frame and crc32c, but for chunks of zeros.

Two ways with equal bits: a loop in C (`native/chunks.c`) that encodes many chunks per call
without the GIL, by the blosc library inside numcodecs; and numcodecs itself, chunk by chunk, where
the loop is not built or that library does not show its function.
"""

import ctypes
import struct
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numcodecs import blosc  # pyright: ignore[reportAttributeAccessIssue]
from typing_extensions import Buffer

from mim3d.dataio.chunks.codec import BLOCK_BYTES, COMPRESSORS, SHUFFLES, ChunkCodec
from mim3d.dataio.native.extension import chunk_loops

BATCH_BYTES = 1 << 18
"""Of chunks encoded by one call; what it writes stays in the cache until it is copied on."""
OVERHEAD = 20
"""Bytes that a chunk's frame (16) and checksum (4) can be longer than the chunk."""


@lru_cache(maxsize=1)
def compress_address() -> int:
    """Where numcodecs' library has `blosc_compress_ctx`; 0 where it does not show it."""
    try:
        function = ctypes.CDLL(blosc.__file__).blosc_compress_ctx
    except (OSError, AttributeError):
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value or 0


class ChunkEncoder:
    """Encodes contiguous chunks (n, ...) of one array in parts, each valid until the next.

    A part's marks (chunks, 2), uint32, are a chunk's length in the part and its crc32c; both are 0
    for a chunk of zeros, which is left out. RuntimeError where blosc fails.
    """

    def __init__(self, codec: ChunkCodec) -> None:
        self._codec = codec
        self._nbytes = codec.nbytes + OVERHEAD
        self._batch = max(1, BATCH_BYTES // self._nbytes)
        self._out = np.empty(0, np.uint8)
        name, shuffle = codec.compressor, SHUFFLES[codec.frame_shuffle]
        self._settings = compress_address(), name, COMPRESSORS[name], shuffle, BLOCK_BYTES
        self._loop = chunk_loops() if self._settings[0] else None

    def parts(self, chunks: np.ndarray) -> Iterator[tuple[Buffer, np.ndarray]]:
        """Parts and marks of the chunks in their order."""
        if self._loop is None:
            for chunk in chunks:
                yield self._plain(chunk)
            return
        for first in range(0, len(chunks), self._batch):
            batch = chunks[first : first + self._batch]
            room = len(batch) * self._nbytes
            if self._out.size < room:
                self._out = np.empty(room, np.uint8)
            marks = np.empty((len(batch), 2), np.uint32)
            used = self._loop.encode(*self._settings, batch, self._out, marks)
            yield self._out.data[:used], marks

    def _plain(self, chunk: np.ndarray) -> tuple[Buffer, np.ndarray]:
        """One chunk by numcodecs."""
        frame, crc = self._codec.frame(chunk)
        if (frame, crc) == self._codec.empty:
            return b"", np.zeros((1, 2), np.uint32)
        mark = (len(frame) + len(crc), *struct.unpack("<I", crc))
        return frame + crc, np.array([mark], np.uint32)
