"""libnvcomp in host memory: the same calls, of the types that were declared to the real one."""

import ctypes
import sys
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mim3d.dataio.device import inflate
from mim3d.dataio.device.inflate import inflate_on_host

CANNOT_DECOMPRESS = 12  # nvcompErrorCannotDecompress
TEMP = 100  # bytes a stream


def installed(monkeypatch: pytest.MonkeyPatch, spoilt: Collection[int] = ()) -> "Library":
    """The library that is found from now on, in which `spoilt` streams fail."""
    library = Library(set(spoilt))
    module: Any = SimpleNamespace(load_library=lambda: library)
    monkeypatch.setitem(sys.modules, "nvidia.libnvcomp", module)
    return library


class Function:
    """One function of the stand-in: refuses what the declared types would refuse."""

    def __init__(self, does) -> None:
        self.does = does
        self.argtypes: list[type] = []
        self.restype: type | None = None

    def __call__(self, *arguments):
        assert self.restype is ctypes.c_int
        for kind, given in zip(self.argtypes, arguments, strict=True):
            if not isinstance(given, kind):
                kind.from_param(given)
        return self.does(*arguments)


def numbers(address: int, n: int, kind: Any) -> np.ndarray:
    return np.ctypeslib.as_array((kind * n).from_address(address))


class Library:
    """libnvcomp in host memory; `spoilt` streams, by their number in all calls, fail."""

    def __init__(self, spoilt: set[int]) -> None:
        self.spoilt, self.done, self.batches = spoilt, 0, []
        for codec, (name, _) in inflate.NVCOMP.items():
            ask, act = Function(self.temp_size), Function(self.decompressor(codec))
            setattr(self, f"nvcompBatched{name}DecompressGetTempSizeAsync", ask)
            setattr(self, f"nvcompBatched{name}DecompressAsync", act)

    def temp_size(self, n, _largest, _options, found, _total) -> int:
        found._obj.value = n * TEMP
        return 0

    def decompressor(self, codec):
        def act(sources, lengths, rooms, written, n, temp, temp_bytes, targets, options, *rest):
            assert bytes(options) == bytes(64)
            assert temp_bytes >= n * TEMP
            numbers(temp, temp_bytes, ctypes.c_uint8)[:] = 0xEE
            arrays = [numbers(a, n, ctypes.c_int64) for a in (sources, lengths, rooms, targets)]
            status = numbers(rest[0], n, ctypes.c_int32)
            size = numbers(written, n, ctypes.c_int64)
            for i, (source, length, room, target) in enumerate(zip(*arrays, strict=True)):
                bad = self.done in self.spoilt
                self.done += 1
                size[i], status[i] = (0, CANNOT_DECOMPRESS) if bad else (room, 0)
                if not bad:
                    inflate_on_host(codec, np.array([[source], [length], [room], [target]]))
            self.batches.append(n)
            return 0

        return act
