"""nvCOMP's way to decode, without a GPU: the real library as far as it goes, then a stand-in.

The stand-in takes the same calls (their types are those that were declared to the real one) and
decodes in host memory, so addresses, sizes, slices and statuses are checked bit by bit.
"""

import ctypes
import importlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numcodecs import lz4, zstd  # pyright: ignore[reportAttributeAccessIssue]

from mim3d.dataio.device import inflate
from mim3d.dataio.device.device_copy import ALIGN, to_device
from mim3d.dataio.device.inflate import NvcompInflate, inflate_on_host
from mim3d.dataio.errors import ChunkError

CPU = torch.device("cpu")
CUDA_ERROR = 1000  # nvcompErrorCudaError
CANNOT_DECOMPRESS = 12  # nvcompErrorCannotDecompress
TEMP = 100  # bytes a stream


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
                    each = [np.array([value]) for value in (source, length, target, room)]
                    inflate_on_host(codec, *each)
            self.batches.append(n)
            return 0

        return act


class Event:
    def record(self, _stream) -> None:
        pass

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass


@pytest.fixture
def stand_in(monkeypatch):
    """Makes an NvcompInflate over a Library."""
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _d: SimpleNamespace(cuda_stream=0))
    monkeypatch.setattr(torch.cuda, "Event", Event)

    def make(spoilt=()):
        library = Library(set(spoilt))
        module = SimpleNamespace(load_library=lambda: library)
        monkeypatch.setattr(importlib, "import_module", lambda _name: module)
        return NvcompInflate(CPU), library

    return make


def streams(codec, n=7):
    """(arguments of a call, the bytes it must write, where they are written)."""
    rng = np.random.default_rng(0)
    plain = [rng.integers(0, 4, 50 + 40 * i, np.uint8) for i in range(n)]
    pack = (lambda v: lz4.compress(v.tobytes())[4:]) if codec == "lz4" else zstd.compress
    packed = [np.frombuffer(pack(each), np.uint8) for each in plain]
    out = np.zeros(sum(map(len, plain)), np.uint8)
    at = np.cumsum([0, *map(len, plain[:-1])])
    arguments = (
        np.array([each.ctypes.data for each in packed]),
        np.array([len(each) for each in packed]),
        out.ctypes.data + at,
        np.array([len(each) for each in plain]),
    )
    return arguments, np.concatenate(plain), out, packed


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
@pytest.mark.parametrize(("temp_bytes", "batches"), [(1 << 30, [7]), (3 * TEMP, [3, 3, 1])])
def test_every_stream_goes_where_it_belongs(stand_in, monkeypatch, codec, temp_bytes, batches):
    monkeypatch.setattr(inflate, "TEMP_BYTES", temp_bytes)
    decode, library = stand_in()
    arguments, plain, out, _packed = streams(codec)
    decode(codec, *arguments)
    decode.settle()
    np.testing.assert_array_equal(out, plain)
    assert library.batches == batches


@pytest.mark.parametrize("waits", [True, False])
def test_a_stream_that_does_not_decode_is_told(stand_in, waits):
    decode, _library = stand_in(spoilt=[2, 5])
    arguments, *_kept = streams("lz4")
    decode("lz4", *arguments)
    with pytest.raises(ChunkError, match="could not decode 2 streams"):
        decode.settle() if waits else decode("lz4", *arguments)


def test_the_real_library_takes_the_calls():
    """Sizes come from libnvcomp itself; decoding gets as far as CUDA, which is not there."""
    pytest.importorskip("nvidia.libnvcomp")
    decode = NvcompInflate(CPU)
    assert decode._temp_bytes("lz4", 1000, 4096) == 0
    assert 50_000_000 < decode._temp_bytes("zstd", 1000, 32768) < 500_000_000


@pytest.mark.skipif(torch.cuda.is_available(), reason="would decode host addresses on a GPU")
@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_the_real_library_asks_for_a_gpu_and_nothing_else(monkeypatch, codec):
    pytest.importorskip("nvidia.libnvcomp")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _d: SimpleNamespace(cuda_stream=0))
    arguments, *_kept = streams(codec)
    with pytest.raises(ChunkError, match=f"status {CUDA_ERROR}"):
        NvcompInflate(CPU)(codec, *arguments)


def test_arrays_travel_together_and_stay_what_they_are():
    arrays = [
        np.arange(24).reshape(2, 3, 4)[:, ::2],
        np.array([[True, False]]),
        np.array([0.5, -np.inf], np.float32),
        np.arange(5, dtype=np.int16),
    ]
    moved = to_device(arrays, CPU)
    assert len({tensor.untyped_storage().data_ptr() for tensor in moved}) == 1
    for tensor, array in zip(moved, arrays, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), array)
        assert tensor.numpy().dtype == array.dtype
        assert (tensor.data_ptr() - moved[0].data_ptr()) % ALIGN == 0
