"""What a device keeps, by the memory that is free on it: caps, choices, the line that tells."""

import numpy as np
import pytest
from race_device import a_device

from mim3d.bench.corpora import anatomy_like, corpus_of
from mim3d.dataio.device.device_fit import DeviceRoom, array_rows, keeping, stored_dtype
from mim3d.dataio.device.holdings import HeldChunks, HeldVoxels, voxel_places
from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.loader.loader import Loader, LoaderConfig
from mim3d.dataio.reader.corpus import Corpus

GIB = 1 << 30
CROP = (16, 16, 16)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    volumes = [anatomy_like((40, 33, 48), i) for i in range(3)]
    volumes[0][:16, :16, :16] = 0  # a chunk that is not stored
    labels = [(volume > 600).astype(np.uint8) for volume in volumes]
    return corpus_of(tmp_path_factory.mktemp("room") / "c.zarr", volumes, labels)


@pytest.mark.parametrize(
    ("budget", "free", "room"),
    [
        (64 * GIB, None, 64 * GIB),
        (64 * GIB, 200 * GIB, 64 * GIB),
        (64 * GIB, 80 * GIB, 32 * GIB),
        (1 * GIB, 80 * GIB, 1 * GIB),
        (1 * GIB, 0, 0),
    ],
)
def test_a_cache_takes_its_budget_and_two_fifths_of_what_is_free_at_most(budget, free, room):
    found = DeviceRoom(budget, free)
    assert found.nbytes == room
    assert ("40% of the" in found.text()) == (room < budget)


def decoded_bytes(root, label: str | None = None) -> tuple[int, int]:
    """Of all stored chunks, decoded and as stored; counted one by one."""
    table = Corpus.open(root).table
    sizes = np.asarray(table.sizes(slice(None)))
    decoded = stored = 0
    for row, array in enumerate(np.asarray(table.arrays)):
        if label is None and row not in np.asarray(table.volumes["image"]):
            continue
        part = sizes[int(array["first_chunk"]) :][: int(array["n_chunks"])]
        each = int(array["chunk"].astype(int).prod()) * np.dtype(array["dtype"].decode()).itemsize
        decoded += each * int((part > 0).sum())
        stored += int(array["shard_bytes"])
    return decoded, stored


def chosen(root, keeps: str, room: DeviceRoom, label: str | None = None):
    table = Corpus.open(root).table
    labels = [] if label is None else [label]
    arrays = np.concatenate([*array_rows(table, np.arange(3), labels).values()])
    return keeping(keeps, table, arrays, room, "cuda:0")


@pytest.mark.parametrize("label", [None, "seg"])
def test_voxels_stay_where_all_of_them_fit_to_the_byte(root, label):
    decoded, _ = decoded_bytes(root, label)
    fits, lacks = DeviceRoom(decoded), DeviceRoom(decoded - 1)
    kept = chosen(root, "auto", fits, label)
    assert kept.places is not None
    assert kept.places.nbytes == decoded
    assert "cuda:0 keeps decoded voxels" in kept.line
    assert "device_keeps='chunks' would keep" in kept.line
    assert chosen(root, "auto", lacks, label).places is None
    assert chosen(root, "chunks", fits, label).places is None
    assert chosen(root, "voxels", fits, label).places is not None


def test_every_stored_chunk_has_a_row_of_its_own_and_no_other_has_one(root):
    table = Corpus.open(root).table
    places = voxel_places(table, np.arange(len(table.arrays)))
    stored = np.asarray(table.sizes(slice(None))) > 0
    assert ((places.numbers > 0) == stored).all()
    assert not stored.all()
    rows = {nbytes: [] for nbytes in places.counts}
    for array in np.asarray(table.arrays):
        nbytes = int(array["chunk"].astype(int).prod()) * np.dtype(array["dtype"].decode()).itemsize
        part = np.arange(int(array["first_chunk"]), int(array["first_chunk"] + array["n_chunks"]))
        rows[nbytes] += places.of(part[stored[part]]).tolist()
    assert {nbytes: sorted(each) for nbytes, each in rows.items()} == {
        nbytes: list(range(n)) for nbytes, n in places.counts.items()
    }
    assert len(rows) == 2  # images and labels


@pytest.mark.parametrize(
    ("room", "words"),
    [
        (DeviceRoom(1000), "more than cache_bytes, 1e-06 GB"),
        (DeviceRoom(GIB, 10_000), "40% of the 1e-05 GB that are free on the device"),
    ],
)
def test_voxels_that_do_not_fit_are_refused_and_the_remedies_hold(root, room, words):
    with pytest.raises(Mim3dError) as told:
        chosen(root, "voxels", room)
    assert words in str(told.value)
    assert "take device_keeps='chunks', or more memory by cache_bytes or a larger device" in str(
        told.value
    )
    assert "compressed chunks" in chosen(root, "chunks", room).line
    assert chosen(root, "voxels", DeviceRoom(GIB, GIB)).places is not None


def test_the_line_says_how_much_of_the_corpus_stays_compressed(root):
    decoded, stored = decoded_bytes(root)
    half = chosen(root, "auto", DeviceRoom(stored // 2)).line
    assert "keeps compressed chunks, 50% of" in half
    between = chosen(root, "auto", DeviceRoom((stored + decoded) // 2)).line
    assert "keeps compressed chunks, all of" in between
    assert f"decoded they are {decoded / 1e9:.3g} GB" in between


@pytest.mark.parametrize(
    ("free", "keeps", "kind", "room"),
    [
        (None, "auto", HeldVoxels, None),
        (GIB, "auto", HeldVoxels, None),
        (GIB, "chunks", HeldChunks, None),
        (250_000, "auto", HeldChunks, 100_000),
        (0, "auto", HeldChunks, 16),
    ],
)
def test_the_loader_asks_the_device_and_tells_in_a_line(root, free, keeps, kind, room):
    config = LoaderConfig(CROP, micro_batch=2, cache="device", device_keeps=keeps)
    with Loader(root, LoaderConfig(CROP, micro_batch=2)) as loader:
        wanted = [next(loader).image for _ in range(4)]
    with a_device(free) as device, Loader(root, config) as loader:
        (line,) = loader.notes
        assert "\n" not in line
        assert ("decoded voxels" in line) == (kind is HeldVoxels)
        holding = loader._source.device_reader.holding  # pyright: ignore[reportAttributeAccessIssue]
        assert isinstance(holding, kind)
        if room is not None:
            assert isinstance(holding, HeldChunks)
            assert len(holding.arena) == room
        for expected in wanted:
            image = next(loader).image
            device.synchronize()
            np.testing.assert_array_equal(image.numpy(), expected.numpy())
        assert holding.nbytes <= max(room or GIB, 16)


def test_volumes_of_one_dtype_are_known_by_it(root, tmp_path):
    table = Corpus.open(root).table
    assert stored_dtype(table, np.arange(3)) == np.dtype("int16")
    kinds = ["int16", "uint8"]
    mixed = [anatomy_like((20, 20, 20), i, kind) for i, kind in enumerate(kinds)]
    other = Corpus.open(corpus_of(tmp_path / "m.zarr", mixed)).table
    assert stored_dtype(other, np.arange(2)) is None
    assert stored_dtype(other, np.arange(1, 2)) == np.dtype("uint8")
