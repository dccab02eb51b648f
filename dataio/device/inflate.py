"""Batches of lz4 or zstd streams to bytes: nvCOMP on a GPU, numcodecs on the host.

Both take addresses, so that compressed bytes are decoded where they are resident: columns of
`streams` (4, n) int64 are a stream's address and its bytes, then its bytes when decoded and where
they go.
"""

import ctypes
import importlib
from collections import deque
from typing import Any, Protocol

import numpy as np
import torch

from mim3d.dataio.device.device_copy import to_device
from mim3d.dataio.device.lanes import Lanes
from mim3d.dataio.errors import ChunkError, Mim3dError
from mim3d.kernels.backend import on_device

TEMP_BYTES = 1 << 30
"""Working memory of one call: zstd asks for 0.1 MB a stream of 32 KiB, lz4 for none."""


class Inflate(Protocol):
    """Decodes streams from memory of one device to memory of the same device."""

    def __call__(self, codec: str, streams: np.ndarray) -> None:
        """Decode the streams."""
        ...

    def check(self) -> None:
        """ChunkError where a stream is known by now not to have decoded."""
        ...

    def settle(self) -> None:
        """Wait for the device; ChunkError where a stream did not decode."""
        ...


class HostInflate:
    """Decodes in host memory, stream by stream: the truth for the GPU's way, and its test."""

    def __call__(self, codec: str, streams: np.ndarray) -> None:
        """Decode the streams; a ChunkError at once where one does not."""
        from numcodecs import lz4, zstd  # pyright: ignore[reportAttributeAccessIssue]

        for source, nbytes, size, target in streams.T.tolist():
            data = ctypes.string_at(source, nbytes)
            if codec == "lz4":
                plain = lz4.decompress(size.to_bytes(4, "little") + data)
            else:
                plain = zstd.decompress(data)
            if len(plain) != size:
                raise ChunkError(
                    f"a {codec} stream decodes to {len(plain)} bytes instead of {size}"
                )
            ctypes.memmove(target, plain, size)

    def check(self) -> None:
        """All have, or were told."""

    def settle(self) -> None:
        """Nothing is under way."""


inflate_on_host = HostInflate()


class _Lz4Options(ctypes.Structure):
    _fields_ = [
        ("backend", ctypes.c_int),
        ("sort_before_hw_decompress", ctypes.c_int),
        ("data_type", ctypes.c_int),
        ("bitshuffle_mode", ctypes.c_int),
        ("reserved", ctypes.c_char * 48),
    ]


class _ZstdOptions(ctypes.Structure):
    _fields_ = [("backend", ctypes.c_int), ("reserved", ctypes.c_char * 60)]


NVCOMP = {"lz4": ("LZ4", _Lz4Options), "zstd": ("Zstd", _ZstdOptions)}


class NvcompInflate:
    """nvCOMP's batched decompression through its C interface, on the lane that is current.

    Loads libnvcomp, which comes with DALI; only on a machine with a driver. No host sync: a stream
    that did not decode is a ChunkError of a later call, or of `settle`. So are all calls from then
    on, for what it left may be kept on the device.
    """

    def __init__(self, lanes: Lanes) -> None:
        self.lanes = lanes
        self._failed = 0
        self._pending: deque[tuple[Any, torch.Tensor]] = deque()
        try:
            self._library: Any = importlib.import_module("nvidia.libnvcomp").load_library()
        except ImportError as error:
            raise Mim3dError(
                "decoding on the GPU needs libnvcomp: pip install 'mim3d[cuda13]'"
            ) from error
        if self._library is None:
            raise Mim3dError("libnvcomp is installed but cannot be loaded: is there a driver?")
        for name, options in NVCOMP.values():
            self._function(f"nvcompBatched{name}DecompressGetTempSizeAsync").argtypes = [
                ctypes.c_size_t, ctypes.c_size_t, options, ctypes.c_void_p, ctypes.c_size_t,
            ]  # fmt: skip
            self._function(f"nvcompBatched{name}DecompressAsync").argtypes = [
                *[ctypes.c_void_p] * 4, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t,
                ctypes.c_void_p, options, ctypes.c_void_p, ctypes.c_void_p,
            ]  # fmt: skip

    def __call__(self, codec: str, streams: np.ndarray) -> None:
        """Decode the streams; all addresses are on the device."""
        self.check()
        name, options = NVCOMP[codec]
        n, largest = streams.shape[1], int(streams[2].max())
        [rows] = to_device([streams], self.lanes)
        written = torch.empty(n, dtype=torch.int64, device=rows.device)
        status = torch.empty(n, dtype=torch.int32, device=rows.device)
        step = max(1, min(n, n * TEMP_BYTES // max(self._temp_bytes(codec, n, largest), 1)))
        temp_bytes = self._temp_bytes(codec, step, largest)
        temp = torch.empty(max(temp_bytes, 1), dtype=torch.uint8, device=rows.device)
        decompress = self._function(f"nvcompBatched{name}DecompressAsync")
        with on_device(rows):
            stream = self.lanes.handle()
            for at in range(0, n, step):
                addresses, lengths, room, targets = (row[at:].data_ptr() for row in rows)
                self._checked(
                    decompress(
                        addresses, lengths, room, written[at:].data_ptr(), min(step, n - at),
                        temp.data_ptr(), temp_bytes, targets, options(),
                        status[at:].data_ptr(), stream,
                    )
                )  # fmt: skip
            self._note(((status != 0) | (written != rows[2])).sum(dtype=torch.int64))

    def check(self) -> None:
        """ChunkError where a stream is known by now not to have decoded."""
        self._raise_failures(wait=False)

    def settle(self) -> None:
        """Wait for the device; ChunkError where a stream did not decode."""
        self._raise_failures(wait=True)

    def _note(self, failures: torch.Tensor) -> None:
        """Bring the number of streams that failed to the host, when the device comes to it."""
        count = self.lanes.pinned(8).view(torch.int64)
        self.lanes.download(count, failures.view(1))
        self._pending.append((self.lanes.record(), count))

    def _raise_failures(self, wait: bool) -> None:
        while self._pending and (wait or self.lanes.passed(self._pending[0][0])):
            mark, count = self._pending.popleft()
            self.lanes.finish(mark)
            self._failed += int(count)
        if self._failed:
            raise ChunkError(
                f"nvCOMP could not decode {self._failed} streams whose stored bytes are sound: use "
                "cache='host', and report the corpus' codec"
            )

    def _temp_bytes(self, codec: str, n: int, largest: int) -> int:
        """Working memory for n streams of at most `largest` bytes."""
        name, options = NVCOMP[codec]
        found = ctypes.c_size_t()
        ask = self._function(f"nvcompBatched{name}DecompressGetTempSizeAsync")
        self._checked(ask(n, largest, options(), ctypes.byref(found), n * largest))
        return found.value

    def _function(self, name: str) -> Any:
        function = getattr(self._library, name)
        function.restype = ctypes.c_int
        return function

    def _checked(self, code: int) -> None:
        if code:
            raise ChunkError(f"nvCOMP refused a batch of streams with status {code}")
