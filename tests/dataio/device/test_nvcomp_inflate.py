"""nvCOMP's way to decode, without a GPU: the real library as far as it goes, then a stand-in.

The stand-in decodes in host memory, so addresses, sizes, slices and statuses are checked.
"""

import numpy as np
import pytest
import torch
from numcodecs import lz4, zstd  # pyright: ignore[reportAttributeAccessIssue]
from nvcomp_library import TEMP, installed

from mim3d.dataio.device import inflate
from mim3d.dataio.device.device_copy import ALIGN, to_device
from mim3d.dataio.device.inflate import NvcompInflate
from mim3d.dataio.device.lanes import HostLanes
from mim3d.dataio.errors import ChunkError

CPU = HostLanes(torch.device("cpu"))
CUDA_ERROR = 1000  # nvcompErrorCudaError


@pytest.fixture
def stand_in(monkeypatch):
    """Makes an NvcompInflate over a Library."""

    def make(spoilt=()):
        library = installed(monkeypatch, spoilt)
        return NvcompInflate(CPU), library

    return make


def streams(codec, n=7):
    """(streams of a call, the bytes it must write, where they are written)."""
    rng = np.random.default_rng(0)
    plain = [rng.integers(0, 4, 50 + 40 * i, np.uint8) for i in range(n)]
    pack = (lambda v: lz4.compress(v.tobytes())[4:]) if codec == "lz4" else zstd.compress
    packed = [np.frombuffer(pack(each), np.uint8) for each in plain]
    out = np.zeros(sum(map(len, plain)), np.uint8)
    at = np.cumsum([0, *map(len, plain[:-1])])
    rows = [
        [each.ctypes.data for each in packed],
        [len(each) for each in packed],
        [len(each) for each in plain],
        out.ctypes.data + at,
    ]
    return np.array(rows, np.int64), np.concatenate(plain), out, packed


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
@pytest.mark.parametrize(("temp_bytes", "batches"), [(1 << 30, [7]), (3 * TEMP, [3, 3, 1])])
def test_every_stream_goes_where_it_belongs(stand_in, monkeypatch, codec, temp_bytes, batches):
    monkeypatch.setattr(inflate, "TEMP_BYTES", temp_bytes)
    decode, library = stand_in()
    given, plain, out, _packed = streams(codec)
    decode(codec, given)
    decode.settle()
    np.testing.assert_array_equal(out, plain)
    assert library.batches == batches


@pytest.mark.parametrize("waits", [True, False])
def test_a_stream_that_does_not_decode_is_told(stand_in, waits):
    decode, _library = stand_in(spoilt=[2, 5])
    given, *_kept = streams("lz4")
    decode("lz4", given)
    for _ in range(2):  # and from then on: what they left may be kept
        with pytest.raises(ChunkError, match="could not decode 2 streams"):
            decode.settle() if waits else decode("lz4", given)


def test_the_real_library_takes_the_calls():
    """Sizes come from libnvcomp itself; decoding gets as far as CUDA, which is not there."""
    pytest.importorskip("nvidia.libnvcomp")
    decode = NvcompInflate(CPU)
    assert decode._temp_bytes("lz4", 1000, 4096) == 0
    assert 50_000_000 < decode._temp_bytes("zstd", 1000, 32768) < 500_000_000


@pytest.mark.skipif(torch.cuda.is_available(), reason="would decode host addresses on a GPU")
@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_the_real_library_asks_for_a_gpu_and_nothing_else(codec):
    pytest.importorskip("nvidia.libnvcomp")
    given, *_kept = streams(codec)
    with pytest.raises(ChunkError, match=f"status {CUDA_ERROR}"):
        NvcompInflate(CPU)(codec, given)


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
