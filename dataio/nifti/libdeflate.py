"""A whole gzip member in one call of libdeflate, into memory that is used again.

The `deflate` package carries the library, and on Linux shows its symbols; its own functions
allocate, and do not tell where a member ends.
"""

import ctypes
from functools import lru_cache
from typing import Any

import deflate
import numpy as np

from mim3d.dataio.memory import scratch

SUCCESS = 0
SIZE = ctypes.c_size_t


class Decompressor:
    """libdeflate's decompressor; one per call, as it belongs to one thread and costs little."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._state = ctypes.c_void_p(library.libdeflate_alloc_decompressor())
        if not self._state:
            raise MemoryError("no room for libdeflate")

    def gzip(self, data: memoryview, out: np.ndarray) -> tuple[int, int] | None:
        """Inflate the member `data` begins with, CRC checked: bytes read and bytes written.

        None where the member is damaged or larger than `out`.
        """
        source = np.frombuffer(data, np.uint8)
        read, written = SIZE(), SIZE()
        code = self._library.libdeflate_gzip_decompress_ex(
            self._state, source.ctypes.data, len(source), out.ctypes.data, len(out),
            ctypes.byref(read), ctypes.byref(written),
        )  # fmt: skip
        return (read.value, written.value) if code == SUCCESS else None

    def close(self) -> None:
        """Free it."""
        self._library.libdeflate_free_decompressor(self._state)


@lru_cache(maxsize=1)
def library() -> Any:
    """libdeflate as the `deflate` package has loaded it; None where it shows no symbols."""
    try:
        loaded = ctypes.CDLL(deflate._deflate.__file__)  # pyright: ignore[reportAttributeAccessIssue]
        loaded.libdeflate_alloc_decompressor.restype = ctypes.c_void_p
        loaded.libdeflate_alloc_decompressor.argtypes = []
        loaded.libdeflate_free_decompressor.argtypes = [ctypes.c_void_p]
        loaded.libdeflate_free_decompressor.restype = None
        pointer, sizes = ctypes.c_void_p, ctypes.POINTER(SIZE)
        loaded.libdeflate_gzip_decompress_ex.restype = ctypes.c_int
        loaded.libdeflate_gzip_decompress_ex.argtypes = [
            pointer, pointer, SIZE, pointer, SIZE, sizes, sizes,
        ]  # fmt: skip
    except (OSError, AttributeError):
        return None
    return loaded


def inflate_whole(data: memoryview, limit: int) -> memoryview | None:
    """What the one gzip member that `data` is inflates to, its CRC and length checked.

    None where `data` is not exactly one intact member of at most `limit` bytes, or there is no
    libdeflate to tell. MemoryError where `limit` bytes are too many.
    """
    loaded = library()
    if loaded is None:
        return None
    out = scratch(limit)
    decompressor = Decompressor(loaded)
    try:
        found = decompressor.gzip(data, out)
    finally:
        decompressor.close()
    if found is None or found[0] != len(data):
        return None
    return out.data[: found[1]]
