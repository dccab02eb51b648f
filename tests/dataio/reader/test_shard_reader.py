"""The direct shard reader: tensorstore is the oracle, damage is named, threads do not interfere."""

import errno
import gc
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorstore
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mim3d.bench.corpora import anatomy_like, corpus_of
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.errors import ChunkError, CorpusError
from mim3d.dataio.reader import local_shards as shard_files
from mim3d.dataio.reader.chunk_cache import ChunkCache
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.reader.local_shards import LocalShards, coalesce
from mim3d.dataio.reader.shard_reader import ShardReader

SHAPES = [(40, 50, 45), (33, 70, 28), (64, 64, 64), (5, 7, 96)]
DTYPES = ["uint8", "int8", "int16", "uint16", "int32", "float32", "uint32"]
KINDS = [
    Conversion(codec="lz4", chunk=32),
    Conversion(codec="zstd", chunk=16),
    Conversion(codec="lz4", chunk=8),
    Conversion(codec="lz4", chunk=64, shuffle="byte"),
]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind.codec}-{kind.chunk}")
def corpus(request, tmp_path_factory) -> Corpus:
    """One volume per dtype and shape, the third with a hole of absent chunks, one of 3 channels."""
    root = tmp_path_factory.mktemp("reader") / "c.zarr"
    volumes = [anatomy_like(SHAPES[i % len(SHAPES)], i, dtype) for i, dtype in enumerate(DTYPES)]
    volumes[2][:32, :32, :32] = 0
    volumes.append(np.stack([anatomy_like((35, 40, 33), i) for i in range(3)]))
    return Corpus.open(corpus_of(root, volumes, conversion=request.param))


def oracle(corpus: Corpus, row: int) -> np.ndarray:
    path = str(corpus.root / corpus.table.array_path(row))
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}
    voxels = tensorstore.open(spec).result().read().result()
    return voxels if voxels.ndim == 4 else voxels[None]


def expected_box(voxels, start, size, fill):
    low = [max(-a, 0) for a in start]
    high = [max(a + s - n, 0) for a, s, n in zip(start, size, voxels.shape[1:], strict=True)]
    padding = [(0, 0), *zip(low, high, strict=True)]
    padded = np.pad(voxels, padding, constant_values=fill)
    begin = [a + b for a, b in zip(start, low, strict=True)]
    return padded[:, *(slice(a, a + s) for a, s in zip(begin, size, strict=True))]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_boxes_equal_tensorstore(corpus, data):
    reader = ShardReader(corpus.table, corpus.root)
    row = data.draw(st.integers(0, len(corpus.table.arrays) - 1))
    voxels = oracle(corpus, row)
    start = tuple(data.draw(st.integers(-12, n + 4)) for n in voxels.shape[1:])
    size = tuple(data.draw(st.integers(1, 50)) for _ in range(3))
    flip = tuple(data.draw(st.booleans()) for _ in range(3))
    got = reader.read_box(row, start, size, fill=3, flip=flip)
    want = expected_box(voxels, start, size, 3)
    want = want[:, *(slice(None, None, -1 if mirrored else 1) for mirrored in flip)]
    assert got.dtype == voxels.dtype
    np.testing.assert_array_equal(got, want)
    reader.close()


def test_a_float_target_gets_the_values_and_strides_do_not_matter(corpus):
    reader = ShardReader(corpus.table, corpus.root)
    target = np.full((50, 45, 1, 40), np.nan, np.float32).transpose(2, 3, 0, 1)
    reader.read_box(0, (0, 0, 0), (40, 50, 45), target)
    np.testing.assert_array_equal(target, oracle(corpus, 0))


def test_a_target_of_another_shape_is_refused(corpus):
    with pytest.raises(ValueError, match=r"\(1, 4, 4, 4\).*\(1, 8, 8, 8\)"):
        ShardReader(corpus.table, corpus.root).read_box(
            0, (0, 0, 0), (8, 8, 8), np.empty((1, 4, 4, 4))
        )


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("dtype", b"<c8", r"v0000/0/c.0.0.0: dtype <c8 is none of"),
        ("dtype", b"|O", r"dtype \|O is none of"),
        ("shape", (40, 40, 200), "the table has 8 chunks, shape .* needs 28"),
    ],
)
def test_what_it_does_not_read_is_refused(own_corpus, field, value, expected):
    arrays = np.array(own_corpus.table.arrays)
    arrays[field][0] = value
    table = replace(own_corpus.table, arrays=arrays)
    with pytest.raises(CorpusError, match=expected):
        ShardReader(table, own_corpus.root).read_box(0, (0, 0, 0), (8, 8, 8))


def test_threads_share_one_reader(corpus):
    reader = ShardReader(corpus.table, corpus.root)
    rows = range(len(corpus.table.arrays))
    truth = [oracle(corpus, row) for row in rows]

    def check(seed: int) -> bool:
        row = seed % len(truth)
        voxels = truth[row]
        start = tuple(seed * 7 % n for n in voxels.shape[1:])
        got = reader.read_box(row, start, (30, 30, 30), fill=0)
        return bool((got == expected_box(voxels, start, (30, 30, 30), 0)).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(check, range(200)))


@pytest.fixture
def own_corpus(tmp_path) -> Corpus:
    """A corpus that a test may spoil."""
    volumes = [anatomy_like((40, 40, 40), 1)]
    return Corpus.open(corpus_of(tmp_path / "own.zarr", volumes, conversion=Conversion(chunk=32)))


def shard_file(corpus: Corpus) -> Path:
    return corpus.root / corpus.table.shard_path(0)


def test_any_flipped_bit_of_a_chunk_raises_naming_volume_and_chunk(own_corpus):
    file = shard_file(own_corpus)
    sound = file.read_bytes()
    offset, nbytes = (int(part[1]) for part in own_corpus.table.ranges(0))
    for at in [*range(offset, offset + 20), *range(offset + 20, offset + nbytes, 997)]:
        spoilt = bytearray(sound)
        spoilt[at] ^= 1 << at % 8
        file.write_bytes(bytes(spoilt))
        reader = ShardReader(own_corpus.table, own_corpus.root)
        with pytest.raises(ChunkError, match=r"volume v0000.*chunk \(c 0, z 0, y 0, x 1\).*crc32c"):
            reader.read_box(0, (0, 0, 0), (40, 40, 40))
        # Chunks beside the damaged one still read.
        reader.read_box(0, (32, 0, 0), (8, 8, 8))


def test_a_vanished_shard_says_so(own_corpus):
    shard_file(own_corpus).unlink()
    with pytest.raises(CorpusError, match="not on disk"):
        ShardReader(own_corpus.table, own_corpus.root).read_box(0, (0, 0, 0), (8, 8, 8))


def test_an_unreadable_shard_says_so(own_corpus, monkeypatch):
    def refuse(*_args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shard_files.os, "open", refuse)
    with pytest.raises(CorpusError, match=r"0/c.0.0.0: cannot be read: Permission denied"):
        ShardReader(own_corpus.table, own_corpus.root).read_box(0, (0, 0, 0), (8, 8, 8))


def test_a_shard_of_another_size_is_not_read(own_corpus):
    with shard_file(own_corpus).open("ab") as file:
        file.write(b"more")
    with pytest.raises(CorpusError, match=r"the chunk table says .* --mend"):
        ShardReader(own_corpus.table, own_corpus.root).read_box(0, (0, 0, 0), (8, 8, 8))


def test_a_shard_cut_short_while_open_says_where_it_ends(own_corpus):
    reader = ShardReader(own_corpus.table, own_corpus.root)
    reader.read_box(0, (0, 0, 0), (8, 8, 8))
    with shard_file(own_corpus).open("r+b") as file:
        file.truncate(100)
    with pytest.raises(CorpusError, match="ends at byte 100"):
        reader.read_box(0, (0, 0, 0), (40, 40, 40))


def test_files_are_closed_when_too_many_are_open(corpus, monkeypatch):
    monkeypatch.setattr(shard_files, "OPEN_FILES", 2)
    reader = ShardReader(corpus.table, corpus.root)

    def opened() -> int:
        """Descriptors of the corpus' files; others of this process may come and go."""
        links = [link.resolve() for link in Path("/proc/self/fd").iterdir()]
        return sum(link.is_relative_to(corpus.root.resolve()) for link in links)

    gc.collect()  # what earlier tests' readers hold
    before = opened()
    for row in range(len(corpus.table.arrays)):
        reader.read_box(row, (0, 0, 0), (4, 4, 4))
    assert opened() == before + 2
    reader.close()
    assert opened() == before


def test_where_descriptors_run_out_those_held_here_are_let_go(corpus, monkeypatch):
    """Several loaders of many volumes in one process, under the usual limit of 1024."""
    shards, opened = LocalShards(corpus.root), os.open
    reader = ShardReader(corpus.table, corpus.root, shards)

    def scarce(*args, **options):
        if len(shards._open) >= 2:
            raise OSError(errno.EMFILE, "Too many open files")
        return opened(*args, **options)

    monkeypatch.setattr(shard_files.os, "open", scarce)
    for row in range(len(corpus.table.arrays)):
        reader.read_box(row, (0, 0, 0), (4, 4, 4))
    reader.close()


class Garbled:
    """Storage whose next `times` answers have a bit wrong, as a bad network has."""

    def __init__(self, root: Path) -> None:
        self.sound, self.times = LocalShards(root), 0

    def open_file(self, path, nbytes):
        return None

    def runs(self, path, nbytes, offsets, sizes):
        sound = self.sound.runs(path, nbytes, offsets, sizes)
        found = [(begin, data.copy()) for begin, data in sound]
        if self.times:
            self.times -= 1
            found[0][1][20] ^= 4
        return found

    def watch(self, table):
        pass

    def has_room(self):
        return False

    def announce(self, path, offsets, sizes):
        pass

    def withdraw(self):
        pass

    def metrics(self):
        return {}

    def close(self):
        self.sound.close()


@pytest.mark.parametrize("cached", [False, True])
def test_bytes_garbled_on_their_way_are_asked_for_again(own_corpus, cached):
    want = oracle(own_corpus, 0)
    storage = Garbled(own_corpus.root)
    cache = ChunkCache(1 << 26) if cached else None
    reader = ShardReader(own_corpus.table, own_corpus.root, storage, cache)
    storage.times = 1
    np.testing.assert_array_equal(reader.read_box(0, (0, 0, 0), (40, 40, 40)), want)
    if cache is not None:
        cache.clear()
    storage.times = 4
    with pytest.raises(ChunkError, match="crc32c"):
        reader.read_box(0, (0, 0, 0), (40, 40, 40))
    storage.times = 0
    np.testing.assert_array_equal(reader.read_box(0, (0, 0, 0), (40, 40, 40)), want)


def test_a_damaged_chunk_does_not_stay_in_the_cache(own_corpus):
    file = shard_file(own_corpus)
    sound = file.read_bytes()
    spoilt = bytearray(sound)
    spoilt[int(own_corpus.table.ranges(0)[0][1]) + 9] ^= 1
    file.write_bytes(bytes(spoilt))
    reader = ShardReader(own_corpus.table, own_corpus.root, cache=ChunkCache(1 << 26))
    for _ in range(2):
        with pytest.raises(ChunkError, match="x 1"):
            reader.read_box(0, (0, 0, 0), (40, 40, 40))
    file.write_bytes(sound)
    got = reader.read_box(0, (0, 0, 0), (40, 40, 40))
    np.testing.assert_array_equal(got, oracle(own_corpus, 0))


ranges = st.lists(st.tuples(st.integers(1, 50), st.integers(0, 60)), min_size=1, max_size=20)


@given(ranges=ranges, gap=st.integers(0, 40), order=st.randoms())
def test_coalesced_runs_cover_every_range_once_and_never_touch(ranges, gap, order):
    offsets, sizes, at = [], [], 0
    for size, space in ranges:
        offsets.append(at)
        sizes.append(size)
        at += size + space
    shuffled = list(range(len(offsets)))
    order.shuffle(shuffled)
    offsets, sizes = [offsets[i] for i in shuffled], [sizes[i] for i in shuffled]
    runs = coalesce(offsets, sizes, gap)
    assert sorted(i for _, _, members in runs for i in members) == list(range(len(offsets)))
    for begin, length, members in runs:
        assert begin == min(offsets[i] for i in members)
        assert begin + length == max(offsets[i] + sizes[i] for i in members)
    ends = [begin + length for begin, length, _ in runs]
    assert all(runs[i + 1][0] - ends[i] > gap for i in range(len(runs) - 1))


def test_descriptions_of_arrays_do_not_pile_up(corpus, monkeypatch):
    monkeypatch.setattr("mim3d.dataio.reader.shard_reader.KNOWN_ARRAYS", 2)
    reader = ShardReader(corpus.table, corpus.root)
    rows = np.flatnonzero(corpus.table.arrays["label"] < 0).tolist()
    assert len(rows) > 2
    first = [reader.read_box(row, (0, 0, 0), (9, 9, 9)) for row in rows]
    assert len(reader._arrays) <= 2
    for row, voxels in zip(rows, first, strict=True):
        np.testing.assert_array_equal(reader.read_box(row, (0, 0, 0), (9, 9, 9)), voxels)
    reader.close()
