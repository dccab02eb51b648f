"""The compiled encoding of chunks against numcodecs: bits, marks, chunks of zeros, room, errors."""

import ctypes
import sys
import threading
import time

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mim3d.dataio.chunks import encode as chunk_encode
from mim3d.dataio.chunks import gather as chunk_gather
from mim3d.dataio.chunks.codec import ChunkCodec
from mim3d.dataio.chunks.encode import OVERHEAD, ChunkEncoder, compress_address
from mim3d.dataio.chunks.shard_writer import ShardStream, checked_digest, chunk_index, n_chunks

LOOP = chunk_gather.chunk_loops()
needs_loop = pytest.mark.skipif(
    LOOP is None or not compress_address(), reason="the loop in C is not built"
)
GUARD = 64


def plain(codec, chunk):
    """A chunk as numcodecs and google_crc32c have it; nothing where all its bits are 0."""
    return codec.encode(chunk) if chunk.tobytes().strip(b"\0") else b""


def content(kind, shape, dtype, seed):
    rng = np.random.default_rng(seed)
    n = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if kind == "noise":
        return np.frombuffer(rng.bytes(n), dtype).reshape(shape)
    values = rng.integers(0, 4 if kind == "smooth" else 2, shape).cumsum(axis=-1)
    if kind == "sparse":
        values = values * (rng.random(shape[0]) < 0.5).reshape(-1, *[1] * (len(shape) - 1))
    return values.astype(dtype)


@needs_loop
@settings(max_examples=200)
@given(
    compressor=st.sampled_from(["lz4", "zstd"]),
    dtype=st.sampled_from(["u1", "i1", "i2", "u2", "f2", "i4", "f4", "f8"]),
    sides=st.tuples(*[st.sampled_from([1, 3, 8, 16, 32])] * 3),
    n=st.integers(1, 9),
    kind=st.sampled_from(["noise", "smooth", "sparse"]),
    batch=st.sampled_from([1, 3, 1 << 10]),
    shuffle=st.sampled_from(["auto", "byte", "bit"]),
    seed=st.integers(0, 10**6),
)
def test_every_bit_is_numcodecs(compressor, dtype, sides, n, kind, batch, shuffle, seed):
    codec = ChunkCodec(compressor, np.dtype(dtype).name, sides, shuffle)
    chunks = content(kind, (n, *sides), dtype, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunk_encode, "BATCH_BYTES", batch * (codec.nbytes + OVERHEAD))
        found = [(bytes(part), marks) for part, marks in ChunkEncoder(codec).parts(chunks)]
    wanted = [plain(codec, chunk) for chunk in chunks]
    assert b"".join(part for part, _ in found) == b"".join(wanted)
    marks = np.concatenate([m for _, m in found])
    assert marks[:, 0].tolist() == [len(frame) for frame in wanted]
    crcs = [google_crc32c.value(frame[:-4]) if frame else 0 for frame in wanted]
    assert marks[:, 1].tolist() == crcs


@needs_loop
def test_a_minus_zero_is_no_zero():
    codec = ChunkCodec("lz4", "float32", (4, 4, 4))
    chunks = np.zeros((3, 4, 4, 4), np.float32)
    chunks[1] = -0.0
    ((part, marks),) = ChunkEncoder(codec).parts(chunks)
    assert bytes(part) == codec.encode(chunks[1])
    assert marks[:, 0].tolist() == [0, len(codec.encode(chunks[1])), 0]


@settings(max_examples=60)
@given(
    compressor=st.sampled_from(["lz4", "zstd"]),
    dtype=st.sampled_from(["u1", ">i2", "<i2", ">f4"]),
    channels=st.integers(0, 3),
    shape=st.tuples(*[st.integers(1, 40)] * 3),
    flip=st.booleans(),
    permuted=st.sampled_from([(0, 1, 2), (2, 1, 0)]),
    side=st.sampled_from([4, 16, 32]),
    seed=st.integers(0, 10**6),
)
def test_a_shard_is_the_same_without_either_compiled_part(
    compressor, dtype, channels, shape, flip, permuted, side, seed
):
    voxels = content("sparse", (*([channels] if channels else []), *shape), dtype, seed)
    lead = tuple(range(voxels.ndim - 3))
    voxels = voxels.transpose(*lead, *(len(lead) + axis for axis in permuted))
    voxels = voxels[..., ::-1] if flip else voxels
    sides = (1,) * len(lead) + (side,) * 3
    codec = ChunkCodec(compressor, voxels.dtype.newbyteorder("=").name, sides)

    def shard():
        stream = ShardStream(voxels, codec)
        data = b"".join(map(bytes, stream))
        assert (len(data), checked_digest(data, n_chunks(voxels.shape, sides))) == (
            stream.nbytes,
            stream.sha256,
        )
        return data

    first = shard()
    for part, name, without in (
        (chunk_encode, "compress_address", lambda: 0),
        (chunk_encode, "chunk_loops", lambda: None),
        (chunk_gather, "chunk_loops", lambda: None),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(part, name, without)
            assert shard() == first
    index = chunk_index(first, n_chunks(voxels.shape, sides))
    frames = iter(index.tolist())
    volumes = voxels if lead else voxels[None]
    for volume in volumes:
        for row in chunk_gather.gathered_rows(volume, sides[-3:], codec.dtype):
            for chunk in row:
                offset, nbytes = next(frames)
                assert first[offset : offset + nbytes] == plain(codec, chunk)
    assert next(frames, None) is None


@needs_loop
@pytest.mark.parametrize("compressor", ["lz4", "zstd"])
@pytest.mark.parametrize("itemsize", [1, 2, 4, 8])
def test_nothing_is_written_beyond_the_room_of_noise(compressor, itemsize):
    rng = np.random.default_rng(itemsize)
    for n_bytes in (itemsize, 16 * itemsize, 8192, 65536, 65536 + itemsize, 200_000):
        chunks = np.frombuffer(rng.bytes(3 * n_bytes), f"u{itemsize}").reshape(3, -1)
        room = 3 * (n_bytes + OVERHEAD)
        out = np.full(room + GUARD, 0xA5, np.uint8)
        marks = np.full((3 + GUARD, 2), 0xA5A5A5A5, np.uint32)
        used = LOOP.encode(
            compress_address(), compressor, 5, 1, 65536, chunks, out[:room], marks[:3]
        )
        assert used <= room
        assert (out[room:] == 0xA5).all()
        assert (marks[3:] == 0xA5A5A5A5).all()


@needs_loop
def test_what_does_not_fit_is_refused():
    chunks, marks = np.ones((2, 4, 4, 4), "i2"), np.zeros((2, 2), "u4")
    out = np.zeros(2 * (128 + OVERHEAD), "u1")
    address = compress_address()
    for words in (
        (0, "lz4", 5, 1, 65536, chunks, out, marks),
        (address, "lz4", 5, 1, 0, chunks, out, marks),
        (address, "lz4", 5, 1, 65536, chunks, out[:-1], marks),
        (address, "lz4", 5, 1, 65536, chunks, out, marks[:1]),
        (address, "lz4", 5, 1, 65536, chunks, out, marks.astype("u8")),
        (address, "lz4", 5, 1, 65536, chunks[:0], out, marks),
        (address, "lz4", 5, 1, 65536, chunks[0, 0, 0], out, marks),
        (address, "lz4", 5, 1, 65536, np.zeros((1, 1), "V256"), out, marks),
    ):
        with pytest.raises(ValueError, match="do not fit"):
            LOOP.encode(*words)
    with pytest.raises((BufferError, ValueError)):
        LOOP.encode(address, "lz4", 5, 1, 65536, chunks[:, ::2], out, marks)
    with pytest.raises(BufferError):
        LOOP.encode(address, "lz4", 5, 1, 65536, chunks, bytes(out), marks)
    with pytest.raises((TypeError, OverflowError)):
        LOOP.encode("nowhere", "lz4", 5, 1, 65536, chunks, out, marks)


@needs_loop
def test_a_failure_of_blosc_names_the_chunk():
    chunks, marks = np.zeros((3, 64), "i2"), np.zeros((3, 2), "u4")
    chunks[1:] = np.arange(64)
    out = np.zeros(3 * (128 + OVERHEAD), "u1")
    with pytest.raises(RuntimeError, match="chunk 1 of 3 with none-such"):
        LOOP.encode(compress_address(), "none-such", 5, 1, 65536, chunks, out, marks)


@needs_loop
def test_a_library_that_claims_more_than_its_room_is_an_error():
    kind = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * 10)
    chunks, marks = np.ones((2, 64), "i2"), np.zeros((2, 2), "u4")
    out = np.zeros(2 * (128 + OVERHEAD), "u1")
    for claimed in (128 + 17, 1 << 30, 0, -5):
        liar = kind(lambda *_, claimed=claimed: claimed)
        address = ctypes.cast(liar, ctypes.c_void_p).value
        with pytest.raises(RuntimeError, match="chunk 0 of 2"):
            LOOP.encode(address, "lz4", 5, 1, 65536, chunks, out, marks)


@needs_loop
def test_other_threads_run_meanwhile():
    sleep = ctypes.cast(ctypes.CDLL(None).usleep, ctypes.c_void_p).value
    chunks, marks = np.ones((1, 64), "i2"), np.zeros((1, 2), "u4")
    out, seen = np.zeros(128 + OVERHEAD, "u1"), []

    def encode():
        with pytest.raises(RuntimeError):  # usleep(900_000) makes no frame
            LOOP.encode(sleep, "lz4", 900_000, 1, 65536, chunks, out, marks)

    thread = threading.Thread(target=encode)
    thread.start()
    while thread.is_alive():
        seen.append(time.sleep(0.001))
    thread.join()
    assert len(seen) > 5


def test_a_library_without_the_function_is_told(monkeypatch):
    for file in ("/nowhere/blosc.so", sys.modules["numpy._core._multiarray_umath"].__file__):
        monkeypatch.setattr(chunk_encode.blosc, "__file__", file)
        assert compress_address.__wrapped__() == 0
