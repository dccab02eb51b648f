"""The device's way to a crop, run on the CPU: bit-identical to the shard reader's."""

from typing import Literal

import numpy as np
import pytest
import torch

from mim3d.bench.corpora import anatomy_like, corpus_of
from mim3d.dataio.chunk_decode import Affine
from mim3d.dataio.conversion import Conversion
from mim3d.dataio.corpus import Corpus
from mim3d.dataio.crop_request import Request
from mim3d.dataio.device_reader import STAGES, DeviceReader
from mim3d.dataio.errors import ChunkError, CorpusError
from mim3d.dataio.inflate import NvcompInflate, inflate_on_host
from mim3d.dataio.shard_reader import ShardReader

CPU = torch.device("cpu")
SIZE = (40, 33, 48)
STILL = (False, False, False)
AFFINES = [None, Affine(-np.inf, np.inf, 0.01, -2.0), Affine(50.0, 700.0, 0.003, 0.5)]


def reader_of(
    tmp_path,
    dtype="int16",
    codec: Literal["lz4", "zstd"] = "lz4",
    channels=1,
    chunk=32,
    shuffle: Literal["auto", "byte", "bit"] = "auto",
) -> ShardReader:
    shapes = [(70, 60, 90), (40, 40, 40), (33, 100, 50)]
    volumes = [
        np.stack([anatomy_like(shape, 7 * i + c, dtype) for c in range(channels)])
        for i, shape in enumerate(shapes)
    ]
    volumes[0][:, :32, :32, :32] = 0
    root = corpus_of(
        tmp_path / "c.zarr",
        [volume if channels > 1 else volume[0] for volume in volumes],
        conversion=Conversion(codec=codec, chunk=chunk, shuffle=shuffle),
    )
    return ShardReader(Corpus.open(root).table, root)


def requests_of(affine, seed, n=4, snap=1) -> list[Request]:
    rng = np.random.default_rng(seed)
    requests = []
    for _ in range(n):
        z, y, x = (int(value) // snap * snap for value in rng.integers(-20, 60, 3))
        a, b, c = (bool(value) for value in rng.integers(0, 2, 3))
        requests.append(Request(int(rng.integers(0, 3)), (z, y, x), (a, b, c), affine, -7.0))
    return requests


def expected(reader, request, dtype):
    out = np.empty((reader.array(request.row).channels, *SIZE), dtype)
    return reader.read_box(
        request.row, request.start, SIZE, out,
        fill=request.fill, flip=request.flip, affine=request.affine,
    )  # fmt: skip


@pytest.mark.parametrize("budget", [0, 200_000, 1 << 26])
@pytest.mark.parametrize(
    ("dtype", "codec", "channels", "chunk", "shuffle"),
    [
        ("int16", "lz4", 1, 32, "auto"),
        ("int16", "lz4", 1, 16, "byte"),
        ("int32", "lz4", 1, 16, "auto"),
        ("float32", "lz4", 1, 32, "auto"),
        ("uint8", "lz4", 2, 32, "auto"),
        ("uint8", "lz4", 1, 16, "bit"),
        ("float32", "zstd", 1, 16, "auto"),
        ("int16", "zstd", 1, 32, "bit"),
    ],
)
def test_crops_equal_the_shard_readers(tmp_path, dtype, codec, channels, chunk, shuffle, budget):
    reader = reader_of(tmp_path, dtype, codec, channels, chunk, shuffle)
    device = DeviceReader(reader, CPU, inflate_on_host, budget)
    for seed in range(6):
        requests = requests_of(AFFINES[seed % 3], seed, snap=16 if seed % 2 else 1)
        got = device.assemble(device.fetch(requests, SIZE), SIZE)
        for crop, request in zip(got, requests, strict=True):
            np.testing.assert_array_equal(crop, expected(reader, request, np.float32))
    assert device.resident_bytes <= max(budget, 16)
    metrics = device.metrics()
    assert min(metrics[f"device_{stage}_s"] for stage in STAGES) > 0
    if budget == 1 << 26:
        before = device.misses
        device.fetch(requests_of(None, 0), SIZE)
        assert device.misses == before
        assert device.hits > 0


def test_labels_keep_their_dtype(tmp_path):
    reader = reader_of(tmp_path, "uint8")
    device = DeviceReader(reader, CPU, inflate_on_host, 1 << 20)
    requests = [Request(1, (-3, 2, 10), (True, False, True), None, 0.0)]
    got = device.assemble(device.fetch(requests, SIZE), SIZE, torch.uint8)
    np.testing.assert_array_equal(got[0], expected(reader, requests[0], np.uint8))


def test_a_damaged_chunk_is_named(tmp_path):
    reader = reader_of(tmp_path)
    file = reader.shards.root / reader.array(1).path  # pyright: ignore[reportAttributeAccessIssue]
    data = bytearray(file.read_bytes())
    data[int(reader.table.ranges(1)[0][1]) + 30] ^= 4
    file.write_bytes(bytes(data))
    device = DeviceReader(reader, CPU, inflate_on_host, 1 << 20)
    with pytest.raises(ChunkError, match=r"volume v0001.*\(c 0, z 0, y 0, x 1\).*crc32c"):
        device.fetch([Request(1, (0, 0, 0), STILL, None, 0.0)], SIZE)


def test_volumes_of_two_dtypes_are_refused(tmp_path):
    volumes = [anatomy_like((40, 40, 40), i, dtype) for i, dtype in enumerate(["int16", "uint8"])]
    root = corpus_of(tmp_path / "c.zarr", volumes)
    device = DeviceReader(ShardReader(Corpus.open(root).table, root), CPU, inflate_on_host, 0)
    requests = [Request(row, (0, 0, 0), STILL, None, 0.0) for row in (0, 1)]
    with pytest.raises(CorpusError, match="cache='device' needs all volumes alike"):
        device.fetch(requests, SIZE)


def test_chunks_shuffled_in_two_ways_are_refused_together(tmp_path):
    """Only a corpus put together by hand has them; wrong voxels would be the alternative."""
    reader = reader_of(tmp_path, chunk=16)
    device = DeviceReader(reader, CPU, inflate_on_host, 1 << 26)
    fetched = device.fetch(requests_of(None, 0), SIZE)
    fetched.fresh.layouts[0, 1] = 0
    with pytest.raises(CorpusError, match="chunks are shuffled in different ways"):
        device.assemble(fetched, SIZE)


@pytest.mark.gpu
@pytest.mark.parametrize("shuffle", ["byte", "bit"])
@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_on_a_gpu_crops_are_the_same_bits(tmp_path, codec, shuffle):
    cuda = torch.device("cuda", 0)
    reader = reader_of(tmp_path, codec=codec, chunk=16, shuffle=shuffle)
    device = DeviceReader(reader, cuda, NvcompInflate(cuda), 1 << 26)
    for seed in range(6):
        requests = requests_of(AFFINES[seed % 3], seed, snap=16 if seed % 2 else 1)
        got = device.assemble(device.fetch(requests, SIZE), SIZE).cpu()
        for crop, request in zip(got, requests, strict=True):
            np.testing.assert_array_equal(crop, expected(reader, request, np.float32))
