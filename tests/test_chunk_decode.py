"""The compiled loop against numcodecs and numpy: every dtype, flips, cuts, and hostile frames."""

import importlib.util
import shutil
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numcodecs import blosc  # pyright: ignore[reportAttributeAccessIssue]

from mim3d.bench.corpora import anatomy_like, corpus_of
from mim3d.dataio import chunk_decode
from mim3d.dataio.chunk_decode import Affine, checked_frame, decode_frame
from mim3d.dataio.corpus import Corpus
from mim3d.dataio.shard_reader import ShardReader

SOURCE = Path(chunk_decode.__file__).with_name("_crops.c")
AFFINE = Affine(-20.0, 60.0, 0.37, 1.5)


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    """The extension, compiled from its source by this test."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to build the extension with")
    built = tmp_path_factory.mktemp("ext") / f"_crops{sysconfig.get_config_var('EXT_SUFFIX')}"
    include = sysconfig.get_paths()["include"]
    flags = ["-O2", "-Wall", "-Werror", "-ffp-contract=off", "-shared", "-fPIC", f"-I{include}"]
    subprocess.run([compiler, *flags, str(SOURCE), "-o", str(built)], check=True)
    spec = importlib.util.spec_from_file_location("_crops", built)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from(["u1", "i1", "<u2", "<i2", "<i4", "<f4"]),
    kind=st.sampled_from(["smooth", "runs", "period", "noise"]),
    shape=st.sampled_from([(32, 32, 32), (16, 16, 16), (7, 9, 11), (40, 33, 17)]),
    shuffle=st.sampled_from([0, 1]),
    level=st.sampled_from([0, 1, 5, 9]),
    seed=st.integers(0, 10**6),
)
def test_the_compiled_loop_equals_numcodecs_and_numpy(
    crops, dtype, kind, shape, shuffle, level, seed
):
    rng = np.random.default_rng(seed)
    voxels = voxels_of(shape, dtype, kind, seed)
    frame = np.frombuffer(blosc.compress(voxels, b"lz4", level, shuffle, 65536), np.uint8)
    low = [int(rng.integers(0, n)) for n in shape]
    size = [int(rng.integers(1, n - a + 1)) for n, a in zip(shape, low, strict=True)]
    wanted = voxels[tuple(slice(a, a + s) for a, s in zip(low, size, strict=True))]
    box = np.array([[*low, *size, 1, 2, 3]], np.int32)
    inner = tuple(slice(1 + i, 1 + i + size[i]) for i in range(3))
    steps = tuple(slice(None, None, int(rng.choice([-1, 1]))) for _ in range(3))
    for affine in (None, AFFINE, Affine(-np.inf, np.inf, 2.0, -1.0)):
        target = np.full([s + 5 for s in size], 9, dtype if affine is None else np.float32)
        numbers = None if affine is None else (affine.clips, *affine)
        done, code = crops.fill_crop(
            [frame], box, target[steps], shape, voxels.dtype.kind, voxels.dtype.itemsize, numbers
        )
        if code == chunk_decode.UNSUPPORTED:
            assert not shuffle
            return
        assert (done, code) == (1, 0)
        want = wanted if affine is None else affine.apply(wanted.astype(np.float32))
        np.testing.assert_array_equal(target[steps][inner], want)
        target[steps][inner] = 9
        assert (target == 9).all()


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from(["u1", "<i2", "<f4"]),
    kind=st.sampled_from(["smooth", "runs", "period"]),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), max_size=6),
    cut=st.integers(0, 10**6),
)
def test_no_frame_writes_outside_its_box_or_stops_the_process(crops, dtype, kind, flips, cut):
    voxels = voxels_of((16, 16, 16), dtype, kind, 3)
    frame = np.frombuffer(blosc.compress(voxels, b"lz4", 5, 1, 65536), np.uint8).copy()
    for at, value in flips:
        frame[at % len(frame)] ^= value
    frame = frame[: len(frame) - cut % len(frame)] if cut % 3 else frame
    target = np.full((20, 20, 20), 9, dtype)
    box = np.array([[2, 3, 4, 12, 11, 10, 1, 2, 3]], np.int32)
    done, code = crops.fill_crop(
        [frame], box, target, (16, 16, 16), voxels.dtype.kind, voxels.dtype.itemsize, None
    )
    assert done == (code == 0)
    target[1:13, 2:13, 3:13] = 9
    assert (target == 9).all()


def test_zstd_frames_are_left_to_numcodecs(crops):
    voxels = voxels_of((16, 16, 16), "<i2", "smooth", 0)
    frame = np.frombuffer(blosc.compress(voxels, b"zstd", 1, 1, 65536), np.uint8)
    target = np.zeros((16, 16, 16), "<i2")
    box = np.array([[0, 0, 0, 16, 16, 16, 0, 0, 0]], np.int32)
    answer = crops.fill_crop([frame], box, target, (16, 16, 16), "i", 2, None)
    assert answer == (0, chunk_decode.UNSUPPORTED)


@pytest.mark.parametrize(
    "box", [[0, 0, 0, 17, 1, 1, 0, 0, 0], [-1, 0, 0, 1, 1, 1, 0, 0, 0], [0, 0, 0, 9, 9, 9, 9, 0, 0]]
)
def test_boxes_that_do_not_fit_are_refused(crops, box):
    frame = np.frombuffer(blosc.compress(np.zeros((16, 16, 16), "u1"), b"lz4", 5, 1), np.uint8)
    target = np.zeros((16, 16, 16), "u1")
    with pytest.raises(ValueError, match="do not fit"):
        crops.fill_crop([frame], np.array([box], np.int32), target, (16, 16, 16), "u", 1, None)


def test_the_reader_gives_the_same_with_and_without_it(crops, tmp_path, monkeypatch):
    voxels = [anatomy_like((50, 60, 70), i, dtype) for i, dtype in enumerate(["int16", "float32"])]
    root = corpus_of(tmp_path / "c.zarr", voxels)
    reader = ShardReader(Corpus.open(root).table, root)
    for row in (0, 1):
        for flip in ((False, True, False), (True, False, True)):
            got = []
            for module in (None, crops):
                monkeypatch.setattr(chunk_decode, "compiled", lambda module=module: module)
                got.append(
                    reader.read_box(
                        row, (-4, 9, 21), (48, 48, 48), fill=-3, flip=flip, affine=AFFINE
                    )
                )
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
