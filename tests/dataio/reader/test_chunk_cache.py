"""Compressed chunks in memory and on disk: budget, policies, threads, damage, the same voxels."""

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mim3d.bench.corpora import anatomy_like, corpus_of
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.errors import CorpusWarning, Mim3dError
from mim3d.dataio.loader.loader import Loader, LoaderConfig
from mim3d.dataio.reader import disk_cache
from mim3d.dataio.reader.chunk_cache import ChunkCache
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.reader.disk_cache import DiskCache, folder_bytes
from mim3d.dataio.reader.kept_shard import PAGE
from mim3d.dataio.reader.local_shards import LocalShards
from mim3d.dataio.reader.shard_reader import ShardReader

CONFIG = LoaderConfig(crop_size=(24, 24, 24), micro_batch=3, threads=2)
SIDE = 40


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    volumes = [anatomy_like((SIDE, SIDE, SIDE), i) for i in range(4)]
    return corpus_of(tmp_path_factory.mktemp("cache") / "c.zarr", volumes)


@pytest.fixture(scope="module")
def corpus(root) -> Corpus:
    return Corpus.open(root)


@pytest.fixture(params=["host", "disk"])
def make(request, tmp_path):
    """A function that makes a cache of a budget and a policy."""

    def made(budget: int, policy: str = "keep") -> ChunkCache:
        if request.param == "host":
            return ChunkCache(budget, policy)
        return DiskCache(tmp_path / "kept", budget, policy)

    return made


class Counted(LocalShards):
    """Storage that counts the bytes it was asked for, and knows what was announced and not read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked = 0
        self.announced: set[tuple[int, ...]] = set()

    def announce(self, path, offsets, sizes):
        self.announced.add(tuple(offsets.tolist()))

    def runs(self, path, nbytes, offsets, sizes):
        self.asked += sum(sizes)
        self.announced.discard(tuple(offsets))
        return super().runs(path, nbytes, offsets, sizes)


def reader_of(corpus: Corpus, cache: ChunkCache | None) -> tuple[ShardReader, Counted]:
    storage = Counted(corpus.root)
    return ShardReader(corpus.table, corpus.root, storage, cache), storage


boxes = st.lists(
    st.tuples(st.integers(0, 3), *[st.integers(-8, SIDE - 4)] * 3, st.integers(1, 24)),
    min_size=1,
    max_size=12,
)


@settings(max_examples=30, deadline=None)
@given(wanted=boxes, budget=st.integers(1, 400_000), policy=st.sampled_from(["keep", "lru"]))
def test_every_box_is_right_and_the_budget_holds(corpus, wanted, budget, policy):
    plain, _ = reader_of(corpus, None)
    cache = ChunkCache(budget, policy)
    reader, _ = reader_of(corpus, cache)
    for volume, z, y, x, side in wanted:
        box = (int(corpus.table.volumes["image"][volume]), (z, y, x), (side, side, side))
        np.testing.assert_array_equal(reader.read_box(*box), plain.read_box(*box))
        assert cache.used_bytes <= budget
    if policy == "keep":
        assert cache.evicted == 0


def test_what_fits_is_read_once_and_then_decoded_where_it_lies(corpus, make):
    cache = make(1 << 26)
    reader, storage = reader_of(corpus, cache)
    whole = (SIDE, SIDE, SIDE)
    first = reader.read_box(0, (0, 0, 0), whole)
    asked = storage.asked
    assert asked > 0
    for _ in range(3):
        np.testing.assert_array_equal(reader.read_box(0, (0, 0, 0), whole), first)
    assert storage.asked == asked
    assert cache.hits == 3 * cache.misses > 0
    assert asked <= cache.used_bytes <= asked + 3 * PAGE + 20_000


def test_a_box_announced_twice_leaves_nothing_unread(corpus, make):
    reader, storage = reader_of(corpus, make(1 << 22))
    box, beside = ((0, 0, 0), (32, 32, 32)), ((0, 0, 0), (16, 16, 16))
    reader.announce(0, *box)
    reader.read_box(0, *beside)
    reader.announce(0, *box)
    assert storage.announced
    for _ in range(2):
        reader.read_box(0, *box)
    assert not storage.announced
    reader.close()


@pytest.mark.parametrize("announced", [False, True])
def test_what_has_room_is_kept_first_and_decoded_where_it_lies(
    corpus, make, monkeypatch, announced
):
    """Chunk by chunk goes only what may not fit."""
    box = (0, (3, 5, 7), (30, 30, 30))
    want = reader_of(corpus, None)[0].read_box(*box)
    by_chunk = []
    through = ChunkCache.through
    monkeypatch.setattr(
        ChunkCache, "through", lambda *given: by_chunk.append(given) or through(*given)
    )
    for budget, steps in ((1 << 26, 0), (40_000, 1)):
        cache = make(budget)
        reader, _ = reader_of(corpus, cache)
        if announced:
            reader.announce(*box)
        np.testing.assert_array_equal(reader.read_box(*box), want)
        assert len(by_chunk) == steps
        assert cache.misses == 27  # chunks of 16
        reader.close()


@pytest.mark.parametrize("cached", [False, True])
def test_sets_of_chunks_of_the_same_ends_are_told_apart(corpus, cached):
    """As where a device asks for what it lacks of several boxes."""
    reader, _ = reader_of(corpus, ChunkCache(1 << 26) if cached else None)
    array = reader.array(0)
    reader.announce_chunks(array, np.array([0, 1, 5]))
    for chunks in ([0, 2, 5], [0, 1, 5]):
        alone, _ = reader_of(corpus, None)
        numbers, views = reader.stored(array, np.array(chunks))
        np.testing.assert_array_equal(numbers, chunks)
        for number, view in zip(chunks, views, strict=True):
            (sound,) = alone.stored(array, np.array([number]))[1]
            np.testing.assert_array_equal(view, sound)


def test_what_lies_between_is_kept_too(corpus, make):
    class Generous(Counted):
        def runs(self, path, nbytes, offsets, sizes):
            begin, end = offsets[0], offsets[-1] + sizes[-1]
            return super().runs(path, nbytes, [begin], [end - begin])

    cache, storage = make(1 << 26), Generous(corpus.root)
    reader = ShardReader(corpus.table, corpus.root, storage, cache)
    reader.read_box(0, (0, 16, 0), (16, 24, 16))  # two rows of chunks, and one between
    asked = storage.asked
    reader.read_box(0, (0, 16, 16), (16, 16, 16))
    assert storage.asked == asked


def test_the_budget_counts_what_the_system_gives(corpus):
    psutil = pytest.importorskip("psutil")
    process = psutil.Process()
    volumes = [anatomy_like((160, 160, 160), i) for i in range(2)]
    root = corpus_of(Path(corpus.root).parent / "large.zarr", volumes)
    large = Corpus.open(root)
    cache = ChunkCache(1 << 30)
    reader, _ = reader_of(large, cache)
    out = np.empty((1, 160, 160, 160), np.int16)
    plain, _ = reader_of(large, None)
    for row in range(2):
        plain.read_box(row, (0, 0, 0), (160, 160, 160), out)
    before = process.memory_info().rss
    for row in range(2):
        for z in range(0, 160, 32):
            reader.read_box(row, (z, 0, 0), (32, 160, 160), out[:, z : z + 32])
    grown = process.memory_info().rss - before
    assert cache.used_bytes > 1 << 22
    assert grown < 1.5 * cache.used_bytes + (4 << 20)


def test_a_scan_larger_than_the_budget_hits_its_share_with_keep_only(corpus):
    hits = {}
    size = (SIDE, SIDE, SIDE)
    probe = ChunkCache(1 << 26)
    reader_of(corpus, probe)[0].read_box(0, (0, 0, 0), size)
    for policy in ("keep", "lru"):
        cache = ChunkCache(int(2.6 * probe.used_bytes), policy)
        reader, _ = reader_of(corpus, cache)
        for _ in range(5):
            for row in range(4):
                reader.read_box(row, (0, 0, 0), size)
        hits[policy] = cache.hits
        assert (cache.evicted > 0) == (policy == "lru")
    assert hits["keep"] >= 4 * 2 * 27
    assert hits["lru"] == 0


def test_a_policy_must_be_known():
    with pytest.raises(Mim3dError, match="cache_policy='fifo'"):
        ChunkCache(10, "fifo")


@pytest.mark.parametrize("cache", ["host", "disk"])
def test_the_loader_gives_the_same_crops(root, cache, tmp_path):
    where = f"disk:{tmp_path / 'kept'}" if cache == "disk" else cache
    with (
        Loader(root, replace(CONFIG, cache="none")) as plain,
        Loader(root, replace(CONFIG, cache=where)) as cached,
    ):
        for _ in range(16):
            assert torch.equal(next(plain).image, next(cached).image)
        metrics = cached.metrics()
    assert metrics["cache_hits"] > metrics["cache_misses"] > 0
    assert metrics["cache_bytes"] > 0


def test_codecs_that_the_loop_leaves_alone_are_kept_too(tmp_path):
    volumes = [anatomy_like((SIDE, SIDE, SIDE), 3)]
    made = corpus_of(tmp_path / "z.zarr", volumes, conversion=Conversion(codec="zstd"))
    corpus = Corpus.open(made)
    reader, storage = reader_of(corpus, ChunkCache(1 << 26))
    asked = []
    for _ in range(2):
        box = reader.read_box(0, (0, 0, 0), (SIDE, SIDE, SIDE))
        np.testing.assert_array_equal(box[0], volumes[0])
        asked.append(storage.asked)
    assert asked[0] == asked[1]


def test_auto_keeps_nothing_of_a_folder(root):
    with Loader(root, CONFIG) as loader:
        next(loader)
        assert "cache_hits" not in loader.metrics()


@pytest.mark.parametrize("cache", ["disk:", "disc:/tmp", "Host", ""])
def test_a_cache_that_is_none_is_refused_with_the_choices(cache):
    with pytest.raises(Mim3dError, match="is none of: auto, none, host, device, disk:FOLDER"):
        LoaderConfig(cache=cache)


def test_threads_may_share_a_cache(corpus, make):
    plain, _ = reader_of(corpus, None)
    want = [plain.read_box(row, (0, 0, 0), (SIDE, SIDE, SIDE)) for row in range(4)]
    reader, _ = reader_of(corpus, make(300_000, "lru"))

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        row, (z, y, x) = int(rng.integers(4)), rng.integers(0, 20, 3).tolist()
        got = reader.read_box(row, (z, y, x), (20, 20, 20))
        np.testing.assert_array_equal(got, want[row][:, z : z + 20, y : y + 20, x : x + 20])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(200)))
    assert reader.cache is not None
    assert reader.cache.used_bytes <= 300_000


def whole(reader: ShardReader, row: int = 0) -> np.ndarray:
    return reader.read_box(row, (0, 0, 0), (SIDE, SIDE, SIDE))


def test_a_later_run_reads_from_the_disk(corpus, tmp_path):
    first, _ = reader_of(corpus, DiskCache(tmp_path / "d", 1 << 26))
    want = whole(first)
    first.close()
    later, storage = reader_of(corpus, DiskCache(tmp_path / "d", 1 << 26))
    np.testing.assert_array_equal(whole(later), want)
    assert storage.asked == 0


@pytest.mark.parametrize("harm", ["flip", "hole", "cut", "gone", "marks"])
def test_what_befell_a_file_of_the_cache_is_read_anew(corpus, tmp_path, harm):
    reader, storage = reader_of(corpus, DiskCache(tmp_path / "d", 1 << 26))
    want = whole(reader)
    for file in (tmp_path / "d").glob("*.shard"):
        data = bytearray(file.read_bytes())
        if harm == "flip":
            data[len(data) // 2] ^= 16
            file.write_bytes(bytes(data))
        elif harm == "hole":
            os.truncate(file, 0)
            os.truncate(file, len(data))
        elif harm == "cut":
            os.truncate(file, 100)
        elif harm == "gone":
            file.unlink()
        else:
            marks = file.with_suffix(".present")
            marks.write_bytes(b"\1" * (marks.stat().st_size - 3))
    asked = storage.asked
    np.testing.assert_array_equal(whole(reader), want)
    reader.close()
    again, storage = reader_of(corpus, DiskCache(tmp_path / "d", 1 << 26))
    np.testing.assert_array_equal(whole(again), want)
    np.testing.assert_array_equal(whole(again), want)
    assert asked > 0


def test_a_disk_that_is_full_is_told_and_reading_goes_on(corpus, tmp_path, monkeypatch):
    def full(*_arguments: object) -> int:
        raise OSError(28, "No space left on device", str(tmp_path / "d"))

    plain, _ = reader_of(corpus, None)
    reader, _ = reader_of(corpus, DiskCache(tmp_path / "d", 1 << 26))
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.warns(CorpusWarning, match=r"No space left.*make room, or name another folder"):
        got = whole(reader)
    np.testing.assert_array_equal(got, whole(plain))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(whole(reader, 1), whole(plain, 1))


def test_a_folder_above_its_budget_loses_what_was_used_longest_ago(corpus, tmp_path):
    folder = tmp_path / "d"
    reader, _ = reader_of(corpus, DiskCache(folder, 1 << 26))
    for row in range(4):
        whole(reader, row)
    reader.close()
    (folder / "mine.txt").write_text("stays")
    one = max(file.stat().st_blocks * 512 for file in folder.glob("*.shard"))
    oldest = sorted(folder.glob("*.shard"))[0]
    for file in (oldest, oldest.with_suffix(".present")):
        os.utime(file, (1, 1))
    smaller = DiskCache(folder, 3 * one + 8 * PAGE)
    assert not oldest.exists()
    assert smaller.used_bytes == folder_bytes(folder) <= 3 * one + 8 * PAGE
    assert (folder / "mine.txt").exists()


def test_files_of_another_day_make_room_while_others_run(corpus, tmp_path, monkeypatch):
    folder = tmp_path / "d"
    first, _ = reader_of(corpus, DiskCache(folder, 1 << 26))
    whole(first)
    used = folder_bytes(folder)
    for file in folder.iterdir():
        os.utime(file, (1, 1))
    cache = DiskCache(folder, used + 2 * PAGE)
    monkeypatch.setattr(disk_cache, "LOOK_S", 0.0)
    reader, storage = reader_of(corpus, cache)
    whole(reader, 1)
    asked = storage.asked
    whole(reader, 1)
    assert storage.asked < 2 * asked


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Mim3dError, match=r"cannot be made.*name another folder"):
        DiskCache(tmp_path / "file" / "d", 100)
    DiskCache(tmp_path / "other", 100)


def test_many_shards_take_few_descriptors(corpus, tmp_path, monkeypatch):
    from mim3d.dataio.reader import kept_shard

    monkeypatch.setattr(kept_shard, "OPEN_FILES", 2)
    reader, storage = reader_of(corpus, DiskCache(tmp_path / "d", 1 << 26))
    asked = []
    for _ in range(2):
        for row in range(4):
            whole(reader, row)
        asked.append(storage.asked)
    assert asked[0] == asked[1]
    links = [link.resolve() for link in Path("/proc/self/fd").iterdir()]
    assert len([file for file in links if file.is_relative_to(tmp_path)]) <= 2
