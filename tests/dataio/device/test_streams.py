"""Chunks packed into streams: the C loop's bytes are those of the parser in Python."""

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs import blosc  # pyright: ignore[reportAttributeAccessIssue]
from torch import from_numpy

from mim3d.dataio.device import streams as stream_pack
from mim3d.dataio.device.inflate import inflate_on_host
from mim3d.dataio.device.streams import ALIGN, FrameError, StreamPacker
from mim3d.kernels.assemble import unshuffle

needs_loop = pytest.mark.skipif(stream_pack.stream_loops() is None, reason="the loop is not built")


def stored(voxels, codec=b"lz4", level=5, shuffle=1, block=65536) -> np.ndarray:
    frame = blosc.compress(np.ascontiguousarray(voxels), codec, level, shuffle, block)
    return np.frombuffer(frame + google_crc32c.value(frame).to_bytes(4, "little"), np.uint8)


def content(kind, n, dtype, rng):
    if kind == "noise":
        return np.frombuffer(rng.bytes(n * np.dtype(dtype).itemsize), dtype)
    return rng.normal(0, 3 if kind == "smooth" else 900, n).astype(dtype)


def packed(chunks, itemsize, nbytes, parts):
    packer = StreamPacker(len(chunks), sum(map(len, chunks)), nbytes, itemsize)
    packer.buffer = np.full(packer.room, 0xA5, np.uint8)
    for part in parts:
        packer.add([chunks[i] for i in part])
    return packer, packer.streams(np.arange(len(chunks)))


def decoded(packer, streams, n, nbytes):
    out = np.zeros((n, nbytes), np.uint8)
    offset, length, at, size = streams.rows.T
    target = out.ctypes.data + streams.owners * nbytes + at
    source = packer.buffer.ctypes.data + offset
    inflate_on_host(streams.codec, np.stack([source, length, size, target]))
    return out


@settings(max_examples=120)
@given(
    codec=st.sampled_from([b"lz4", b"zstd"]),
    dtype=st.sampled_from(["u1", "<i2", "<f4", "<f8"]),
    n=st.sampled_from([8, 24, 4096, 32768, 2**18]),
    kinds=st.lists(st.sampled_from(["noise", "smooth", "wide"]), min_size=1, max_size=5),
    level=st.sampled_from([0, 1, 5]),
    shuffle=st.sampled_from([1, 2]),
    seed=st.integers(0, 1000),
)
def test_both_ways_pack_what_decodes_to_the_voxels(codec, dtype, n, kinds, level, shuffle, seed):
    rng = np.random.default_rng(seed)
    voxels = [content(kind, n, dtype, rng) for kind in kinds]
    itemsize, nbytes = voxels[0].itemsize, voxels[0].nbytes
    chunks = [stored(v, codec, level, shuffle) for v in voxels]
    parts = [[0], list(range(1, len(chunks)))]
    packer, streams = packed(chunks, itemsize, nbytes, parts)
    got = decoded(packer, streams, len(chunks), nbytes)
    (block, bits), *others = np.unique(streams.layouts, axis=0).tolist()
    assert not others
    assert bits == (shuffle == 2)
    back = unshuffle(from_numpy(got), itemsize, block, bool(bits))
    np.testing.assert_array_equal(back.numpy(), np.stack([v.view(np.uint8) for v in voxels]))
    assert not (streams.rows[:, 0] % ALIGN).any()
    assert packer.used <= packer.room
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream_pack, "stream_loops", lambda: None)
        parsed, parsed_streams = packed(chunks, itemsize, nbytes, parts)
    assert parsed_streams.codec == streams.codec
    np.testing.assert_array_equal(parsed_streams.counts, streams.counts)
    np.testing.assert_array_equal(parsed_streams.rows[:, 2:], streams.rows[:, 2:])
    for mine, theirs in zip(streams.rows.tolist(), parsed_streams.rows.tolist(), strict=True):
        ours = packer.buffer[mine[0] : mine[0] + mine[1]]
        assert ours.tobytes() == parsed.buffer[theirs[0] : theirs[0] + theirs[1]].tobytes()


def test_a_damaged_chunk_is_told_by_its_place_and_leaves_nothing():
    rng = np.random.default_rng(0)
    chunks = [stored(rng.normal(0, 50, 4096).astype("<i2"), shuffle=2) for _ in range(4)]
    chunks[2] = chunks[2].copy()
    chunks[2][100] ^= 1
    packer = StreamPacker(4, sum(map(len, chunks)), 8192, 2)
    packer.buffer = np.zeros(packer.room, np.uint8)
    with pytest.raises(FrameError, match="crc32c") as caught:
        packer.add(chunks)
    assert caught.value.index == 2
    assert packer.streams(np.arange(2)).counts.tolist() == [2, 2]


def test_two_codecs_at_once_are_refused():
    voxels = np.arange(4096, dtype="<i2")
    chunks = [stored(voxels), stored(voxels, b"zstd")]
    with pytest.raises(ValueError, match="several codecs"):
        packed(chunks, 2, 8192, [[0, 1]])


@needs_loop
@settings(max_examples=300)
@given(
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), max_size=6),
    codec=st.sampled_from([b"lz4", b"zstd"]),
    level=st.sampled_from([0, 5]),
    cut=st.integers(0, 10**6),
    room=st.integers(0, 12000),
)
def test_no_frame_is_written_beyond_the_room(flips, codec, level, cut, room):
    """With a checksum that fits, so that the frame itself is looked at."""
    voxels = np.random.default_rng(1).normal(0, 60, 4096).astype("<i2")
    frame = stored(voxels, codec, level, 2)[:-4].copy()
    for at, value in flips:
        frame[at % len(frame)] ^= value
    frame = frame[: len(frame) - cut % len(frame)] if cut % 3 else frame
    checksum = google_crc32c.value(frame.tobytes()).to_bytes(4, "little")
    chunk = np.concatenate([frame, np.frombuffer(checksum, np.uint8)])
    out = np.full(room + 64, 0xA5, np.uint8)
    rows = np.full((4, 4), -7, np.int64)
    code, done, used, n_rows = stream_pack.stream_loops().pack(
        [chunk], 8192, 2, out[:room], 0, rows[:2], 0, np.zeros(1, np.int64),
        np.zeros((1, 3), np.int64),
    )  # fmt: skip
    assert (out[room:] == 0xA5).all()
    assert (rows[2:] == -7).all()
    assert used <= room
    assert (done == 1) == (code == 0)
    assert code == 0 or (used, n_rows) == (0, 0)


@needs_loop
@pytest.mark.parametrize("change", [{1: 0}, {2: 0}, {2: 3}, {4: -1}, {4: 10**6}, {6: 9}])
def test_what_does_not_fit_is_refused(change):
    arguments = [
        [stored(np.arange(4096, dtype="<i2"))], 8192, 2, np.zeros(20000, np.uint8), 0,
        np.zeros((2, 4), np.int64), 0, np.zeros(1, np.int64), np.zeros((1, 3), np.int64),
    ]  # fmt: skip
    for place, value in change.items():
        arguments[place] = value
    with pytest.raises(ValueError, match="do not fit"):
        stream_pack.stream_loops().pack(*arguments)
