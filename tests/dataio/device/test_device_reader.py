"""The device's way to a crop, run on the CPU: bit-identical to the shard reader's."""

import itertools
from typing import Literal

import numpy as np
import pytest
import torch

from mim3d.bench.corpora import anatomy_like, corpus_of
from mim3d.dataio.chunks.decode import Rescale
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.device.device_reader import STAGES, DeviceReader, chunk_tables
from mim3d.dataio.device.holdings import HeldChunks, HeldVoxels, voxel_places
from mim3d.dataio.device.inflate import NvcompInflate, inflate_on_host
from mim3d.dataio.device.lanes import HostLanes, Lanes, lanes_of
from mim3d.dataio.device.streams import ALIGN
from mim3d.dataio.errors import ChunkError, CorpusError
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.reader.shard_reader import Request, ShardReader, StoredArray

CPU = HostLanes(torch.device("cpu"))
VOXELS = -1  # in the budget's place: decoded chunks are held
SIZE = (40, 33, 48)
STILL = (False, False, False)
RESCALES = [None, Rescale(-np.inf, np.inf, 0.01, -2.0), Rescale(50.0, 700.0, 0.003, 0.5)]


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


def device_reader(reader: ShardReader, budget: int, lanes: Lanes = CPU) -> DeviceReader:
    """Holds so many bytes of compressed chunks, or voxels."""
    inflate = NvcompInflate(lanes) if lanes.overlaps else inflate_on_host
    if budget == VOXELS:
        places = voxel_places(reader.table, np.arange(len(reader.table.arrays)))
        return DeviceReader(reader, lanes, inflate, HeldVoxels(places, inflate, lanes))
    holding = HeldChunks(reader.table, budget, inflate, lanes)
    return DeviceReader(reader, lanes, inflate, holding)


def requests_of(rescale, seed, n=4, snap=1, channels=1) -> list[Request]:
    """Crops whose channels differ in intensities and padding."""
    rescales = rescale and tuple(
        Rescale(rescale.low + c, rescale.high + c, rescale.scale * (c + 1), rescale.shift - c)
        for c in range(channels)
    )
    fills = tuple(-7.0 * (c + 1) for c in range(channels))
    rng = np.random.default_rng(seed)
    requests = []
    for _ in range(n):
        z, y, x = (int(value) // snap * snap for value in rng.integers(-20, 60, 3))
        a, b, c = (bool(value) for value in rng.integers(0, 2, 3))
        requests.append(Request(int(rng.integers(0, 3)), (z, y, x), (a, b, c), rescales, fills))
    return requests


def expected(reader, request, dtype):
    out = np.empty((reader.array(request.row).channels, *SIZE), dtype)
    return reader.read_box(
        request.row, request.start, SIZE, out,
        fill=request.fill, flip=request.flip, rescale=request.rescale,
    )  # fmt: skip


@pytest.mark.parametrize("budget", [0, 200_000, 1 << 26, VOXELS])
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
    device = device_reader(reader, budget)
    for seed in range(6):
        requests = requests_of(RESCALES[seed % 3], seed, 4, 16 if seed % 2 else 1, channels)
        got = device.assemble(device.fetch(requests, SIZE), SIZE)
        for crop, request in zip(got, requests, strict=True):
            np.testing.assert_array_equal(crop, expected(reader, request, np.float32))
    assert budget == VOXELS or device.resident_bytes <= max(budget, 16)
    metrics = device.metrics()
    assert min(metrics[f"device_{stage}_s"] for stage in STAGES) > 0
    if budget in (1 << 26, VOXELS):
        before = device.misses
        device.fetch(requests_of(None, 0), SIZE)
        assert device.misses == before
        assert device.hits > 0


@pytest.mark.parametrize(("dtype", "codec"), [("int16", "lz4"), ("float32", "zstd")])
def test_a_budget_beyond_the_corpus_takes_what_the_corpus_needs(tmp_path, dtype, codec):
    """The default budget is more than a small machine has; one chunk at a time is the most room."""
    reader = reader_of(tmp_path, dtype, codec, chunk=16)
    device = device_reader(reader, 1 << 50)
    stored = int(np.asarray(reader.table.arrays)["shard_bytes"].sum())
    assert isinstance(device.holding, HeldChunks)
    assert len(device.holding.arena) < 1.5 * stored + (1 << 20)
    for row in range(len(reader.table.volumes)):
        array = reader.array(row)
        for z, y, x in itertools.product(*(range(0, n, 16) for n in array.shape)):
            request = Request(row, (z, y, x), (False, False, False), None, (0.0,))
            device.assemble(device.fetch([request], (16, 16, 16)), (16, 16, 16))
    before = device.misses
    for seed in range(4):
        device.fetch(requests_of(None, seed), SIZE)
    assert device.misses == before


def test_labels_keep_their_dtype(tmp_path):
    reader = reader_of(tmp_path, "uint8")
    device = device_reader(reader, 1 << 20)
    requests = [Request(1, (-3, 2, 10), (True, False, True), None, (0.0,))]
    got = device.assemble(device.fetch(requests, SIZE), SIZE, torch.uint8)
    np.testing.assert_array_equal(got[0], expected(reader, requests[0], np.uint8))


def test_a_damaged_chunk_is_named(tmp_path):
    reader = reader_of(tmp_path)
    file = reader.shards.root / reader.array(1).path  # pyright: ignore[reportAttributeAccessIssue]
    data = bytearray(file.read_bytes())
    data[int(reader.table.ranges(1)[0][1]) + 30] ^= 4
    file.write_bytes(bytes(data))
    device = device_reader(reader, 1 << 20)
    with pytest.raises(ChunkError, match=r"volume v0001.*\(c 0, z 0, y 0, x 1\).*crc32c"):
        device.fetch([Request(1, (0, 0, 0), STILL, None, (0.0,))], SIZE)


def test_volumes_of_two_dtypes_are_refused(tmp_path):
    volumes = [anatomy_like((40, 40, 40), i, dtype) for i, dtype in enumerate(["int16", "uint8"])]
    root = corpus_of(tmp_path / "c.zarr", volumes)
    device = device_reader(ShardReader(Corpus.open(root).table, root), 0)
    requests = [Request(row, (0, 0, 0), STILL, None, (0.0,)) for row in (0, 1)]
    with pytest.raises(CorpusError, match="cache='device' needs all volumes alike"):
        device.fetch(requests, SIZE)


def test_chunks_shuffled_in_two_ways_are_refused_together(tmp_path):
    """Only a corpus put together by hand has them; wrong voxels would be the alternative."""
    reader = reader_of(tmp_path, chunk=16)
    device = device_reader(reader, 1 << 26)
    fetched = device.fetch(requests_of(None, 0), SIZE)
    fetched.fresh.layouts[0, 1] = 0
    with pytest.raises(CorpusError, match="chunks are shuffled in different ways"):
        device.assemble(fetched, SIZE)


def test_batches_on_their_way_together_are_kept_once(tmp_path):
    """Read ahead of one another they all miss the same chunks; memory has each once."""
    reader = reader_of(tmp_path)
    device = device_reader(reader, 1 << 26)
    requests = requests_of(None, 0, n=8)
    others = requests_of(None, 1, n=8)
    ahead = [device.fetch(each, SIZE) for each in (requests, requests[1:] + others[:1], requests)]
    for fetched in ahead:
        device.assemble(fetched, SIZE)
    kept = device.resident_bytes
    assert kept == -(-len(ahead[0].buffer) // ALIGN) * ALIGN
    device.assemble(device.fetch(others, SIZE), SIZE)
    assert device.resident_bytes > kept
    before = device.misses
    again = device.assemble(device.fetch(requests + others, SIZE), SIZE)
    assert device.misses == before
    for crop, request in zip(again, requests + others, strict=True):
        np.testing.assert_array_equal(crop, expected(reader, request, np.float32))


def test_chunks_of_many_crops_are_found_where_they_lie():
    """Against one chunk after the other, for arrays of several sizes and starts beside them.

    A crop that begins with a chunk needs one less than one that begins inside it.
    """
    arrays = [
        StoredArray(0, np.dtype("i2"), 2, (33, 70, 16), (16, 32, 8), 100, 18, "a", 0, None),
        StoredArray(1, np.dtype("i2"), 2, (16, 32, 90), (16, 32, 8), 136, 12, "b", 0, None),
    ]
    starts, size = np.array([[-20, 31, 0], [16, -40, 83]]), (40, 60, 8)
    tables = chunk_tables(arrays, starts, size)
    assert tables.shape == (2, 2, 4, 3, 2)
    for (i, c, *place), number in np.ndenumerate(tables):
        array = arrays[i]
        counts = [-(-n // k) for n, k in zip(array.shape, array.chunk, strict=True)]
        z, y, x = (s // k + p for s, k, p in zip(starts[i], array.chunk, place, strict=True))
        ends = [(s + n - 1) // k for s, n, k in zip(starts[i], size, array.chunk, strict=True)]
        inside = all(0 <= a < n for a, n in zip((z, y, x), counts, strict=True))
        inside = inside and all(a <= end for a, end in zip((z, y, x), ends, strict=True))
        wanted = array.first_chunk + c * array.chunks_per_channel + (z * counts[1] + y) * counts[2]
        assert number == (wanted + x if inside else -1)


def test_boxes_of_several_sizes_are_found_as_each_alone():
    array = StoredArray(0, np.dtype("i2"), 2, (50, 70, 40), (16, 32, 8), 100, 60, "a", 0, None)
    starts = np.array([[3, 31, 0], [16, 0, 11], [0, 0, 0]])
    sizes = np.array([[20, 33, 9], [1, 70, 17], [0, 0, 0]])
    tables = chunk_tables([array] * 3, starts, sizes)
    for i in range(2):
        alone = chunk_tables([array], starts[i : i + 1], sizes[i : i + 1])
        np.testing.assert_array_equal(
            np.unique(tables[i][tables[i] >= 0]), np.unique(alone[alone >= 0])
        )
        part = tables[i][tuple(slice(0, n) for n in alone.shape[1:])]
        np.testing.assert_array_equal(part, alone[0])
    assert (tables[2] == -1).all()


def test_a_snapped_crop_decodes_its_own_chunks_only(tmp_path):
    reader = reader_of(tmp_path, chunk=16)
    device = device_reader(reader, 1 << 26)
    requests = [Request(0, (16, 16, 32), STILL, None, (0.0,))]
    assert len(device.fetch(requests, (32, 16, 48)).known) == 2 * 1 * 3
    assert len(device.fetch([requests[0]._replace(start=(16, 17, 32))], (32, 16, 48)).known) == 12


CASES = [
    ("int16", "lz4", 1, 16, "bit"),
    ("int16", "lz4", 1, 32, "byte"),
    ("float32", "lz4", 1, 32, "auto"),
    ("uint8", "lz4", 2, 32, "auto"),
    ("int16", "zstd", 1, 16, "byte"),
    ("float32", "zstd", 1, 32, "bit"),
]


@pytest.mark.gpu
@pytest.mark.parametrize("budget", [0, 200_000, 1 << 26, VOXELS])
@pytest.mark.parametrize(("dtype", "codec", "channels", "chunk", "shuffle"), CASES)
def test_on_a_gpu_crops_are_the_same_bits(tmp_path, dtype, codec, channels, chunk, shuffle, budget):
    cuda = lanes_of(torch.device("cuda", 0))
    pytest.importorskip("nvidia.libnvcomp")
    reader = reader_of(tmp_path, dtype, codec, channels, chunk, shuffle)
    device = device_reader(reader, budget, cuda)
    for seed in range(6):
        requests = requests_of(RESCALES[seed % 3], seed, snap=16 if seed % 2 else 1)
        got = device.assemble(device.fetch(requests, SIZE), SIZE).cpu()
        device.inflate.settle()  # pyright: ignore[reportAttributeAccessIssue]
        for crop, request in zip(got, requests, strict=True):
            np.testing.assert_array_equal(crop, expected(reader, request, np.float32))
    metrics = device.metrics()
    assert min(metrics[f"device_{stage}_s"] for stage in STAGES) > 0


@pytest.mark.gpu
def test_on_a_busy_gpu_nothing_waits_and_nothing_is_overwritten(tmp_path):
    """Forty batches queued behind slow work, on two streams in turn: buffers are used again."""
    cuda = lanes_of(torch.device("cuda", 0))
    pytest.importorskip("nvidia.libnvcomp")
    reader = reader_of(tmp_path, chunk=16)
    device = device_reader(reader, 1 << 26, cuda)
    batches = [requests_of(RESCALES[seed % 3], seed, n=6) for seed in range(40)]
    device.assemble(device.fetch(requests_of(None, 99), SIZE), SIZE)  # compiles
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    slow = torch.empty(2**30, dtype=torch.uint8, device=cuda.device)
    torch.cuda.synchronize()
    got = []
    for i, requests in enumerate(batches):
        with torch.cuda.stream(streams[i // 3 % 2]):
            slow.random_()
            fetched = device.fetch(requests, SIZE)
            torch.cuda.set_sync_debug_mode("error")
            try:
                got.append(device.assemble(fetched, SIZE))
            finally:
                torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    for crops, requests in zip(got, batches, strict=True):
        for crop, request in zip(crops.cpu(), requests, strict=True):
            np.testing.assert_array_equal(crop, expected(reader, request, np.float32))


@pytest.mark.gpu
def test_on_a_gpu_a_stream_that_does_not_decode_is_told(tmp_path):
    cuda = lanes_of(torch.device("cuda", 0))
    pytest.importorskip("nvidia.libnvcomp")
    reader = reader_of(tmp_path, chunk=16)
    device = device_reader(reader, 1 << 20, cuda)
    fetched = device.fetch(requests_of(None, 0), SIZE)
    at, length = fetched.fresh.rows[3, :2]
    fetched.buffer[at : at + length] = 0xFF  # a literal that never ends
    device.assemble(fetched, SIZE)
    with pytest.raises(ChunkError, match="could not decode 1 streams"):
        device.inflate.settle()  # pyright: ignore[reportAttributeAccessIssue]
