"""blosc frames taken apart by hand: the streams decode to the shuffled bytes, wrapped ones too."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numcodecs import blosc, lz4, zstd  # pyright: ignore[reportAttributeAccessIssue]
from torch import from_numpy

from mim3d.dataio.device.blosc_frame import literal_lz4, parse_frame, raw_zstd
from mim3d.dataio.device.inflate import inflate_on_host
from mim3d.kernels.assemble import unshuffle


def decoded(frame, nbytes):
    """Chunk bytes, still shuffled, from the streams of a frame."""
    out = np.zeros(nbytes, np.uint8)
    kept = [np.ascontiguousarray(stream.data) for stream in frame.streams]
    rows = [
        [data.ctypes.data for data in kept],
        [len(data) for data in kept],
        [stream.size for stream in frame.streams],
        [out.ctypes.data + stream.at for stream in frame.streams],
    ]
    inflate_on_host(frame.codec, np.array(rows, np.int64))
    return out


@given(
    codec=st.sampled_from(["lz4", "zstd"]),
    dtype=st.sampled_from(["u1", "<i2", "<f4", "<f8"]),
    side=st.sampled_from([3, 8, 16, 32]),
    spread=st.sampled_from([0, 3, 1000, None]),
    level=st.sampled_from([0, 1, 5]),
    shuffle=st.sampled_from([1, 2]),
    seed=st.integers(0, 1000),
)
def test_streams_decode_to_the_shuffled_chunk(codec, dtype, side, spread, level, shuffle, seed):
    rng = np.random.default_rng(seed)
    n = side**3
    if spread is None:
        voxels = np.frombuffer(rng.bytes(n * np.dtype(dtype).itemsize), dtype)
    else:
        voxels = rng.normal(0, spread, n).astype(dtype)
    data = np.frombuffer(blosc.compress(voxels, codec.encode(), level, shuffle, 65536), np.uint8)
    if shuffle == 2 and n % 8:
        with pytest.raises(ValueError, match="multiples of 8"):
            parse_frame(data, voxels.nbytes, voxels.itemsize)
        return
    frame = parse_frame(data, voxels.nbytes, voxels.itemsize)
    assert frame.shuffle == ("bit" if shuffle == 2 else "byte")
    got = decoded(frame, voxels.nbytes)
    ordered = unshuffle(from_numpy(got)[None], voxels.itemsize, frame.block_bytes, shuffle == 2)
    np.testing.assert_array_equal(ordered[0].numpy(), voxels.view(np.uint8))


@given(st.binary(max_size=5000))
def test_wrapped_bytes_come_back(plain):
    array = np.frombuffer(plain, np.uint8)
    packed = len(plain).to_bytes(4, "little") + literal_lz4(array).tobytes()
    if plain:
        assert lz4.decompress(packed) == plain
        assert zstd.decompress(raw_zstd(array).tobytes()) == plain


def test_a_raw_zstd_frame_may_need_several_blocks():
    plain = np.random.default_rng(0).integers(0, 256, 300_000).astype(np.uint8)
    assert zstd.decompress(raw_zstd(plain).tobytes()) == plain.tobytes()


@pytest.mark.parametrize("at", range(16))
@pytest.mark.parametrize("value", [0, 255])
def test_a_damaged_header_raises_or_changes_nothing(at, value):
    voxels = np.random.default_rng(0).normal(0, 9, 4096).astype("<i2")
    data = np.frombuffer(blosc.compress(voxels, b"lz4", 5, 1, 65536), np.uint8).copy()
    good = decoded(parse_frame(data, voxels.nbytes, 2), voxels.nbytes)
    data[at] = value
    try:
        frame = parse_frame(data, voxels.nbytes, 2)
        got = decoded(frame, voxels.nbytes)
    except (ValueError, RuntimeError):
        return
    # Versions and the frame's own length say nothing about the streams.
    assert at in {0, 1, 2, 12, 13, 14, 15} or (got == good).all()


@pytest.mark.parametrize("cut", [0, 3, 15, 16, 19, 40])
def test_a_short_frame_raises(cut):
    voxels = np.zeros(4096, "<i2")
    data = np.frombuffer(blosc.compress(voxels, b"lz4", 5, 1, 65536), np.uint8)
    with pytest.raises(ValueError, match="frame"):
        parse_frame(data[:cut], voxels.nbytes, 2)
