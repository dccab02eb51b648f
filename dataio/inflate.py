"""Batches of lz4 or zstd streams to bytes: nvCOMP on a GPU, numcodecs on the host.

Both take addresses, so that compressed bytes are decoded where they are resident.
"""

import ctypes
import importlib
from typing import Any, Protocol

import numpy as np
import torch

from mim3d.dataio.errors import ChunkError, Mim3dError


class Inflate(Protocol):
    """Decodes streams from memory of one device to memory of the same device."""

    def __call__(
        self,
        codec: str,
        source: np.ndarray,
        nbytes: np.ndarray,
        target: np.ndarray,
        size: np.ndarray,
    ) -> None:
        """Decode stream i: `nbytes[i]` bytes at address `source[i]` to `size[i]` at `target[i]`."""
        ...


def inflate_on_host(
    codec: str, source: np.ndarray, nbytes: np.ndarray, target: np.ndarray, size: np.ndarray
) -> None:
    """Decode in host memory, stream by stream: the truth for the GPU's way, and its test."""
    from numcodecs import lz4, zstd  # pyright: ignore[reportAttributeAccessIssue]

    for a, n, b, m in zip(
        source.tolist(), nbytes.tolist(), target.tolist(), size.tolist(), strict=True
    ):
        data = ctypes.string_at(a, n)
        if codec == "lz4":
            plain = lz4.decompress(m.to_bytes(4, "little") + data)
        else:
            plain = zstd.decompress(data)
        if len(plain) != m:
            raise ChunkError(f"a {codec} stream decodes to {len(plain)} bytes instead of {m}")
        ctypes.memmove(b, plain, m)


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
    """nvCOMP's batched decompression through its C interface, on torch's current stream.

    Loads libnvcomp, which comes with DALI; only on a machine with a driver. No host sync.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
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

    def __call__(
        self,
        codec: str,
        source: np.ndarray,
        nbytes: np.ndarray,
        target: np.ndarray,
        size: np.ndarray,
    ) -> None:
        """Decode the streams; all addresses are on the device."""
        name, options = NVCOMP[codec]
        n = len(source)
        table = torch.from_numpy(np.stack([source, nbytes, size, target]).astype(np.int64))
        rows = table.pin_memory().to(self.device, non_blocking=True)
        written = torch.empty(n, dtype=torch.int64, device=self.device)
        status = torch.empty(n, dtype=torch.int32, device=self.device)
        temp_bytes = ctypes.c_size_t()
        largest, total = int(size.max()), int(size.sum())
        self._checked(
            self._function(f"nvcompBatched{name}DecompressGetTempSizeAsync")(
                n, largest, options(), ctypes.byref(temp_bytes), total
            )
        )
        temp = torch.empty(max(temp_bytes.value, 1), dtype=torch.uint8, device=self.device)
        stream = torch.cuda.current_stream(self.device)
        self._checked(
            self._function(f"nvcompBatched{name}DecompressAsync")(
                rows[0].data_ptr(), rows[1].data_ptr(), rows[2].data_ptr(), written.data_ptr(), n,
                temp.data_ptr(), temp_bytes.value, rows[3].data_ptr(), options(),
                status.data_ptr(), stream.cuda_stream,
            )
        )  # fmt: skip

    def _function(self, name: str) -> Any:
        function = getattr(self._library, name)
        function.restype = ctypes.c_int
        return function

    def _checked(self, code: int) -> None:
        if code:
            raise ChunkError(f"nvCOMP refused a batch of streams with status {code}")
