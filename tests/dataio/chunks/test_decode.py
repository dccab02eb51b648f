"""The loop in C against numcodecs and numpy: every dtype, flips, cuts, and hostile frames."""

import errno
import os
from itertools import pairwise
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import torch
from built_extension import build_extension
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numcodecs import blosc  # pyright: ignore[reportAttributeAccessIssue]

from mim3d.bench.corpora import anatomy_like, corpus_of
from mim3d.dataio.chunks import decode as chunk_decode
from mim3d.dataio.chunks.boxes import box_chunks
from mim3d.dataio.chunks.decode import Rescale, checked_frame, decode_frame, to_bfloat16
from mim3d.dataio.native import extension
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.reader.shard_reader import ShardReader

SOURCE = Path(extension.__file__).with_name("crops.c")
RESCALE = Rescale(-20.0, 60.0, 0.37, 1.5)
BAD_CRC = 5
ORDER = ["plain", "avx2", "avx512"]


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    """The extension, compiled from its source by this test."""
    return build_extension(SOURCE, tmp_path_factory.mktemp("ext"))


@pytest.fixture(params=["plain", "avx2", "avx512"])
def each_set(crops, request):
    """The extension by each set of instructions that this processor has."""
    if crops.instructions(request.param) != request.param:
        pytest.skip(f"this processor has no {request.param}")
    yield crops
    crops.instructions("")


def voxels_of(shape, dtype, kind, seed):
    rng = np.random.default_rng(seed)
    n = int(np.prod(shape))
    if kind == "smooth":
        return rng.normal(50, 20, shape).astype(dtype)
    if kind == "runs":
        return (
            np.repeat(rng.integers(0, 100, n), rng.integers(1, 60, n))[:n]
            .reshape(shape)
            .astype(dtype)
        )
    if kind == "period":
        return (np.arange(n) % rng.integers(1, 40)).reshape(shape).astype(dtype)
    return np.nan_to_num(np.frombuffer(rng.bytes(n * np.dtype(dtype).itemsize), dtype)).reshape(
        shape
    )


def stored(voxels, codec=b"lz4", level=5, shuffle=1, block=65536) -> np.ndarray:
    """A chunk as the converter stores it: frame and crc32c."""
    frame = blosc.compress(np.ascontiguousarray(voxels), codec, level, shuffle, block)
    return np.frombuffer(frame + google_crc32c.value(frame).to_bytes(4, "little"), np.uint8)


def chunks_of(volume, side, **options) -> list[np.ndarray]:
    """Chunks of a volume in C order, those of zeros absent, and the last ones filled up with 0."""
    pads = [(0, -n % side) for n in volume.shape]
    padded = np.pad(volume, pads)
    found = []
    for z, y, x in np.ndindex(*(n // side for n in padded.shape)):
        part = padded[tuple(slice(i * side, (i + 1) * side) for i in (z, y, x))]
        found.append(stored(part, **options) if part.any() else np.empty(0, np.uint8))
    return found


def triple(values) -> tuple[int, int, int]:
    z, y, x = (int(value) for value in values)
    return z, y, x


def expected(volume, start, size, before, rescale, dtype):
    """The box by numpy; voxels outside keep what was there before."""
    out = before.copy()
    low = [max(a, 0) for a in start]
    high = [min(a + s, n) for a, s, n in zip(start, size, volume.shape, strict=True)]
    if any(a >= b for a, b in zip(low, high, strict=True)):
        return out
    part = volume[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    if rescale is not None:
        part = rescale.apply(part.astype(np.float32))
        part = part if dtype == np.float32 else to_bfloat16(part)
    inner = (slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))
    out[tuple(inner)] = part
    return out


def call(crops, source, shape, side, start, target, dtype, rescale, ranges=(None, None), first=0):
    numbers = chunk_decode.IDENTITY if rescale is None else rescale
    mode = 0 if rescale is None else 1 if target.dtype == np.float32 else 2
    return crops.read_crop(
        source, *ranges, first, shape, (side,) * 3, start, target, dtype.kind, dtype.itemsize, mode,
        (numbers.clips, *numbers), bytearray(1 << 21),
    )  # fmt: skip


def runs_of(content, offsets, sizes, rng):
    """A file's bytes cut between some of the chunks that lie there."""
    ends = (offsets + sizes.astype(np.uint64))[:-1][rng.random(max(len(sizes) - 1, 0)) < 0.3]
    begins = np.unique(np.concatenate([[0], ends])).astype(np.uint64)
    edges = [*begins.tolist(), len(content)]
    return [content[a:b] for a, b in pairwise(edges)], begins


@pytest.mark.filterwarnings("ignore:overflow encountered")
@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from(["u1", "i1", "<u2", "<i2", "<i4", "<f4"]),
    kind=st.sampled_from(["smooth", "runs", "period", "noise"]),
    side=st.sampled_from([7, 16, 32]),
    options=st.fixed_dictionaries(
        {
            "shuffle": st.sampled_from([0, 1, 2]),
            "level": st.sampled_from([0, 1, 5, 9]),
            "block": st.sampled_from([2048, 65536]),
        }
    ),
    seed=st.integers(0, 10**6),
    way=st.sampled_from(["memory", "ranges", "runs", "<u2", "<u4"]),
)
def test_the_compiled_loop_equals_numpy(
    each_set, tmp_path_factory, dtype, kind, side, options, seed, way
):
    """From memory, chunk by chunk or in runs, and from a file by ranges or by all chunks' sizes."""
    rng = np.random.default_rng(seed)
    shape, size = (triple(rng.integers(1, 45, 3)) for _ in range(2))
    volume = voxels_of(shape, dtype, kind, seed)
    volume[tuple(slice(0, side) for _ in shape)] *= int(rng.integers(0, 2))
    start = triple(rng.integers(-9, shape))
    every = chunks_of(volume, side, **options)
    frames = [every[i] for i in box_chunks(shape, (side, side, side), start, size)]
    source, ranges, first, opened = frames, (None, None), 0, -1
    if way != "memory":
        looked_up = way not in ("ranges", "runs")
        first = int(rng.integers(0, 4)) if looked_up else 0  # chunks of another channel before
        written = [frames[0]] * first + every if looked_up and frames else frames
        sizes = np.array([len(frame) for frame in written], np.int64)
        gaps = rng.integers(0, 2, len(written)) * rng.integers(0, 9000, len(written))
        gaps *= not looked_up
        offsets = (np.cumsum(sizes + gaps) - sizes).astype(np.uint64)
        file = tmp_path_factory.mktemp("chunks") / "shard"
        with file.open("wb") as out:
            for frame, gap in zip(written, gaps.tolist(), strict=True):
                out.write(bytes(gap) + frame.tobytes())
        source = opened = os.open(file, os.O_RDONLY)
        if looked_up and sizes.max(initial=0) > np.iinfo(way).max:
            way = "<u4"
        ranges = (None, sizes.astype(way)) if looked_up else (offsets, sizes)
        if way == "runs":
            source = runs_of(file.read_bytes(), offsets, sizes, rng)
    steps = tuple(slice(None, None, int(rng.choice([-1, 1]))) for _ in range(3))
    try:
        for rescale in (None, RESCALE, Rescale(-np.inf, np.inf, 2.0, -1.0)):
            for kind_out in ("<f4", "<u2") if rescale else (volume.dtype,):
                base = np.full([s + 2 for s in size], 9, kind_out)
                target = base[1:-1, 1:-1, 1:-1][steps]
                want = expected(volume, start, size, target, rescale, target.dtype)
                done, code, *_ = call(
                    each_set,
                    source,
                    shape,
                    side,
                    start,
                    target,
                    volume.dtype,
                    rescale,
                    ranges,
                    first,
                )
                if code == chunk_decode.UNSUPPORTED:
                    assert not options["shuffle"] or (options["shuffle"] == 2 and side % 2)
                    return
                assert (done, code) == (len(frames), 0)
                np.testing.assert_array_equal(target, want)
                base[1:-1, 1:-1, 1:-1] = 9
                assert (base == 9).all()
    finally:
        if opened >= 0:
            os.close(opened)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from(["u1", "<i2", "<f4"]),
    kind=st.sampled_from(["smooth", "runs", "period"]),
    shuffle=st.sampled_from([1, 2]),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), max_size=6),
    cut=st.integers(0, 10**6),
)
def test_no_frame_writes_outside_its_box_or_stops_the_process(
    each_set, dtype, kind, shuffle, flips, cut
):
    voxels = voxels_of((16, 16, 16), dtype, kind, 3)
    frame = stored(voxels, shuffle=shuffle)[:-4].copy()
    for at, value in flips:
        frame[at % len(frame)] ^= value
    frame = frame[: len(frame) - cut % len(frame)] if cut % 3 else frame
    # With a checksum that fits, so that decoding is reached.
    checksum = google_crc32c.value(frame.tobytes()).to_bytes(4, "little")
    frame = np.concatenate([frame, np.frombuffer(checksum, np.uint8)])
    base = np.full((20, 20, 20), 9, dtype)
    target = base[1:13, 2:13, 3:13]
    box = (16, 16, 16), 16, (2, 3, 4)
    done, code, *_ = call(each_set, [frame], *box, target, voxels.dtype, None)
    assert done == (code == 0)
    base[1:13, 2:13, 3:13] = 9
    assert (base == 9).all()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=5000), side=st.sampled_from([1, 2, 3, 4, 5, 7, 8, 16, 20]))
def test_the_checksum_is_crc32c(each_set, data, side):
    """google_crc32c signs, the loop checks: a chunk passes, and with a bit wrong it fails."""
    n = side**3
    voxels = np.frombuffer((data * (n // (len(data) + 1) + 1) + bytes(n))[:n], "u1")
    chunk = stored(voxels.reshape(side, side, side), level=0)
    assert len(chunk) >= n
    target = np.zeros((side,) * 3, "u1")
    box = (side,) * 3, side, (0, 0, 0)
    assert call(each_set, [chunk], *box, target, voxels.dtype, None)[1] == 0
    spoilt = chunk.copy()
    spoilt[sum(data) % len(chunk)] ^= 1 << len(data) % 8
    assert call(each_set, [spoilt], *box, target, voxels.dtype, None)[1] == BAD_CRC


@pytest.mark.parametrize("most", ["", "plain", "avx2", "avx512"])
def test_instructions_are_chosen_by_name(crops, most):
    best = crops.instructions("")
    assert crops.instructions(most) == (min(most, best, key=ORDER.index) if most else best)
    assert crops.instructions() == crops.instructions(most)
    with pytest.raises(ValueError, match="neon is none of"):
        crops.instructions("neon")
    crops.instructions("")


def test_sizes_that_are_not_the_shards_are_refused(crops, tmp_path):
    chunk = stored(np.ones((16, 16, 16), "u1"))
    file = tmp_path / "shard"
    file.write_bytes(chunk.tobytes())
    target = np.zeros((16, 16, 16), "u1")
    arguments = (16, 16, 16), 16, (0, 0, 0), target, target.dtype, None
    with file.open("rb") as opened:
        for sizes, first in (("<u2", 1), ("<u2", -1), ("<u8", 0)):
            ranges = None, np.array([len(chunk)], sizes)
            with pytest.raises(ValueError, match="not those of the shard's chunks"):
                call(crops, opened.fileno(), *arguments, ranges, first)
        ranges = np.zeros(2, np.uint64), np.array([len(chunk)], np.int64)
        with pytest.raises(ValueError, match="not one offset and size"):
            call(crops, opened.fileno(), *arguments, ranges)


@pytest.mark.parametrize(
    ("begins", "lengths"),
    [([1], [0]), ([0], [-1]), ([0, 1], [1, 0]), ([2**64 - 9], [0]), ([], [])],
)
def test_chunks_beyond_their_runs_are_refused(crops, begins, lengths):
    chunk = stored(np.ones((16, 16, 16), "u1")).tobytes()
    target = np.zeros((16, 16, 16), "u1")
    arguments = (16, 16, 16), 16, (0, 0, 0), target, target.dtype, None
    runs = [chunk[: len(chunk) - 1] if n < 0 else chunk[:n] if n else chunk for n in lengths]
    ranges = np.zeros(1, np.uint64), np.array([len(chunk)], np.int64)
    with pytest.raises(ValueError, match="in none of the runs"):
        call(crops, (runs, np.array(begins, np.uint64)), *arguments, ranges)
    with pytest.raises(ValueError, match="not one beginning"):
        call(crops, ([chunk], np.zeros(2, np.uint64)), *arguments, ranges)
    with pytest.raises(TypeError):
        call(crops, (chunk, np.zeros(1, np.uint64)), *arguments, ranges)


def test_zstd_frames_are_left_to_numcodecs(crops):
    voxels = voxels_of((16, 16, 16), "<i2", "smooth", 0)
    target = np.zeros((16, 16, 16), "<i2")
    chunk = stored(voxels, b"zstd", 1)
    answer = call(crops, [chunk], (16, 16, 16), 16, (0, 0, 0), target, voxels.dtype, None)
    assert answer[:2] == (0, chunk_decode.UNSUPPORTED)


def test_a_file_cut_short_a_closed_one_and_a_small_scratch_are_told(crops, tmp_path):
    voxels = voxels_of((16, 16, 16), "<i2", "smooth", 0)
    chunk = stored(voxels)
    file = tmp_path / "shard"
    file.write_bytes(chunk[:100].tobytes())
    target = np.zeros((16, 16, 16), "<i2")
    ranges = np.array([0], np.uint64), np.array([len(chunk)], np.int64)
    arguments = ((16, 16, 16), 16, (0, 0, 0), target, voxels.dtype, None, ranges)
    with file.open("rb") as opened:
        number = opened.fileno()
        assert call(crops, number, *arguments)[1:3] == (chunk_decode.SHORT_FILE, 100)
    assert call(crops, number, *arguments)[1:3] == (chunk_decode.IO_ERROR, errno.EBADF)
    tail = (True, 0.0, 0.0, 1.0, 0.0), bytearray(8)
    grid = (16, 16, 16), (16, 16, 16), (0, 0, 0)
    _, code, wanted, *_ = crops.read_crop([chunk], None, None, 0, *grid, target, "i", 2, 0, *tail)
    assert code == chunk_decode.TOO_SMALL
    assert wanted > 2 * 16**3


@pytest.mark.parametrize(
    ("out", "frames", "message"),
    [
        (np.zeros((4, 4), "u1"), 1, "do not fit each other"),
        (np.zeros((4, 4, 4), "u2"), 1, "do not fit each other"),
        (np.zeros((4, 4, 4), "u1"), 2, "one buffer for each chunk"),
    ],
)
def test_what_does_not_fit_is_refused(crops, out, frames, message):
    chunk = stored(np.ones((16, 16, 16), "u1"))
    with pytest.raises(ValueError, match=message):
        call(crops, [chunk] * frames, (16, 16, 16), 16, (0, 0, 0), out, np.dtype("u1"), None)


def test_bfloat16_is_what_torch_makes_of_it():
    values = np.array([0, -0.0, 1.00390625, 1.01171875, 3e38, -1e-40, np.inf, np.nan], np.float32)
    values = np.concatenate([values, np.random.default_rng(0).normal(0, 9, 999).astype("f4")])
    want = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    got = to_bfloat16(values)
    assert got[7] == 0x7FC0  # a NaN; torch writes this one or another, by its vector width
    np.testing.assert_array_equal(np.delete(got, 7), np.delete(want, 7))


def test_the_reader_gives_the_same_with_and_without_it(crops, tmp_path, monkeypatch):
    voxels = [anatomy_like((50, 60, 70), i, dtype) for i, dtype in enumerate(["int16", "float32"])]
    root = corpus_of(tmp_path / "c.zarr", voxels)
    table = Corpus.open(root).table
    for row, dtype in ((0, "f4"), (1, "f4"), (0, "u2")):
        for flip in ((False, True, False), (True, False, True)):
            got = []
            for module in (None, crops):
                monkeypatch.setattr(chunk_decode, "crop_loops", lambda module=module: module)
                out = np.empty((1, 48, 48, 48), dtype)
                ShardReader(table, root).read_box(
                    row, (-4, 9, 21), (48, 48, 48), out, fill=-3, flip=flip, rescale=RESCALE
                )
                got.append(out)
            np.testing.assert_array_equal(*got)


def test_a_wrong_checksum_a_short_chunk_and_a_wrong_size_are_told():
    stored = np.zeros(10, np.uint8)
    with pytest.raises(ValueError, match="too few"):
        checked_frame(stored)
    with pytest.raises(ValueError, match="crc32c is"):
        checked_frame(np.zeros(40, np.uint8))
    frame = np.frombuffer(blosc.compress(np.zeros(64, "u1"), b"lz4", 5, 1), np.uint8)
    with pytest.raises(ValueError, match="64 bytes, a chunk has 32"):
        decode_frame(frame, np.zeros(32, "u1"))
