"""Small rooms of the converter: ids, manifest lines, table, grids, resampling, labels, values."""

import re
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from old_tables import section

from mim3d.dataio.convert.intensity import lattice, otsu, prime_from, profiles
from mim3d.dataio.convert.label import classes_and_points
from mim3d.dataio.convert.measure import measured
from mim3d.dataio.convert.resample import resample_channels, resample_label, resampled_grid
from mim3d.dataio.convert.run import convert
from mim3d.dataio.convert.values import Values
from mim3d.dataio.convert.volume import turned_view
from mim3d.dataio.convert.volume_ids import safe_id, unique_ids
from mim3d.dataio.corpus.chunk_table import ChunkTable, PackedStrings
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.corpus.manifest import manifest_bytes, parse_entry, read_manifest, record_line
from mim3d.dataio.corpus.names import TABLE, own_file
from mim3d.dataio.corpus.ome import pack_points, unpack_points
from mim3d.dataio.errors import CorpusError, Mim3dError, SourceError
from mim3d.dataio.geometry import Grid, obliquity_deg, reorientation
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.sources.source import Source


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    folder = tmp_path_factory.mktemp("units")
    rng = np.random.default_rng(0)
    made = []
    for i in range(3):
        voxels = rng.integers(-90, 90, (40, 33, 20), np.int16)
        label = (voxels > 50).astype(np.uint8) * (1 + voxels % 2).astype(np.uint8)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / f"i{i}.nii.gz")
        nib.save(nib.Nifti1Image(label, np.eye(4)), folder / f"l{i}.nii.gz")
        labels = {} if i == 1 else {"seg": str(folder / f"l{i}.nii.gz")}
        made.append(Source(f"v{i}", (str(folder / f"i{i}.nii.gz"),), labels, subject=f"s{i // 2}"))
    convert(made, folder / "c", workers=1)
    return Corpus.open(folder / "c")


@given(st.text(max_size=300))
def test_ids_are_safe(wanted):
    made = safe_id(wanted)
    assert made and made.isascii() and len(made) <= 120
    assert not set(made) & set('/\\:*?"<>|\0 \n') and made[0] not in ".-" and ".." not in made
    assert safe_id(made) == made or "--" in made


@settings(max_examples=50)
@given(st.lists(st.sampled_from(["a", "A", "á", "a/b", "a_b", "", "ß", "SS", "ss"]), max_size=9))
def test_ids_are_unique_and_stable(names):
    made = [Source(name or "x", (f"/{i}.nii",)) for i, name in enumerate(names)]
    ids = unique_ids(made, [])
    assert len({i.casefold() for i in ids}) == len(ids)
    assert unique_ids(made, [(id, s.paths) for id, s in zip(ids, made, strict=True)]) == ids


def test_an_id_in_the_corpus_is_not_given_away():
    taken = [("a", ("/old.nii",))]
    (new,) = unique_ids([Source("A", ("/new.nii",))], taken)
    assert new.startswith("A--")


def test_a_manifest_line_comes_back_whole(corpus):
    record = corpus.records[0]
    assert parse_entry(record_line(record)) == record
    assert (
        manifest_bytes(reversed(corpus.records))
        == own_file(corpus.root, "manifest.jsonl").read_bytes()
    )


@settings(max_examples=200)
@given(st.data())
def test_a_changed_manifest_line_is_refused(corpus, data):
    line = bytearray(record_line(corpus.records[0]).encode())
    line[data.draw(st.integers(0, len(line) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(CorpusError, match="checksum"):
        parse_entry(line.decode("utf-8", "replace"))


def test_a_later_line_wins_and_a_torn_one_does_not_count(corpus, tmp_path):
    first = corpus.records[0]
    text = record_line(first) + "\n" + record_line(replace(first, split="later")) + "\n"
    (tmp_path / "manifest.jsonl").write_text(text + record_line(first)[:100])
    (record,) = read_manifest(tmp_path)
    assert record.split == "later"


def test_the_table_says_what_the_manifest_says(corpus):
    table = corpus.table
    assert table.n_volumes == 3 and table.label_names == ("seg",)
    for volume, record in enumerate(corpus.records):
        assert table.volume_id(volume) == record.id and table.index(record.id) == volume
        assert table.subject(volume) == record.subject
        row = table.volumes[volume]
        assert tuple(row["shape"]) == record.shape
        assert row["n_labels"] == len(record.labels)
        assert np.isclose(row["foreground_mean"], record.foreground.mean)
        image = table.arrays[row["image"]]
        assert (image["volume"], image["label"], image["dtype"]) == (volume, -1, b"<i2")
        assert table.shard_path(int(row["image"])) == f"{record.id}/0/c.0.0.0"
        assert (corpus.root / table.shard_path(int(row["image"]))).stat().st_size == image[
            "shard_bytes"
        ]
        assert (table.label_row(volume, "seg") < 0) == (not record.labels)
        assert table.label_row(volume, "other") == -1
    with pytest.raises(CorpusError, match="no volume 'none'"):
        table.index("none")


def test_points_lie_in_their_class(corpus):
    import zarr

    table = corpus.table
    assert len(table.points)
    for row in np.unique(table.points["array"]):
        stored = zarr.open_array(str(corpus.root / table.array_path(int(row))), mode="r")
        voxels = np.asarray(stored[...])
        points = table.points[table.points["array"] == row]
        assert set(points["cls"]) == {1, 2}
        assert (voxels[tuple(points["zyx"].T)] == points["cls"]).all()


@pytest.mark.parametrize("name", ["volumes", "ids", "arrays", "subjects_offsets"])
def test_a_damaged_table_is_refused(corpus, tmp_path, name):
    import shutil

    shutil.copytree(corpus.root, tmp_path / "c")
    begin, nbytes = section(tmp_path / "c", name)
    content = bytearray(own_file(tmp_path / "c", TABLE).read_bytes())
    content[begin + nbytes - 1] ^= 1
    own_file(tmp_path / "c", TABLE).write_bytes(bytes(content))
    with pytest.raises(CorpusError, match="fail their checksum"):
        ChunkTable.open(tmp_path / "c")
    own_file(tmp_path / "c", TABLE).write_bytes(bytes(content[: begin + 1]))
    with pytest.raises(CorpusError, match=f"verify {tmp_path / 'c'} --mend"):
        ChunkTable.open(tmp_path / "c")
    own_file(tmp_path / "c", TABLE).unlink()
    with pytest.raises(CorpusError, match="is missing"):
        ChunkTable.open(tmp_path / "c")


@given(st.lists(st.text(max_size=20), unique=True, max_size=30), st.text(max_size=20))
def test_packed_strings(texts, other):
    texts = sorted(texts)
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    if any(b"\xed" in e for e in encoded):
        return
    offsets = np.concatenate([[0], np.cumsum([len(e) for e in encoded])]).astype("u8")
    packed = PackedStrings(np.frombuffer(b"".join(encoded), np.uint8), offsets)
    assert [packed[i] for i in range(len(packed))] == texts
    assert all(packed.find(text) == i for i, text in enumerate(texts))
    assert packed.find(other) == (texts.index(other) if other in texts else -1)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 1000),
    target=st.sampled_from(["RAS", "LPS", "ASR", "IPL", "keep"]),
)
def test_reorientation_is_nibabels(seed, target):
    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[rng.permutation(3)] * rng.choice([-2.0, 3.0], 3)
    affine[:3, :3] += rng.uniform(-0.2, 0.2, (3, 3))
    voxels = rng.integers(0, 99, (3, 4, 5))
    change = reorientation(affine, target)
    turned, moved = change.view(voxels), change.affine(affine, voxels.shape)
    if target != "keep":
        wanted = nib.orientations.axcodes2ornt(tuple(target))
        ornt = nib.orientations.ornt_transform(nib.io_orientation(affine), wanted)
        assert np.array_equal(turned, nib.apply_orientation(voxels, ornt))
        assert "".join(nib.aff2axcodes(moved)) == target
    index = np.argwhere(np.ones(turned.shape))
    here = {tuple(np.round(moved @ [*i, 1], 6)): turned[tuple(i)] for i in index}
    for i in np.argwhere(np.ones(voxels.shape)):
        assert here[tuple(np.round(affine @ [*i, 1], 6))] == voxels[tuple(i)]


def test_measures_of_a_turned_view_are_those_of_its_voxels():
    rng = np.random.default_rng(0)
    base = rng.normal(0, 1, (9, 10, 11)).astype(np.float32)
    base[2:5, 3:4, 6:9] += 50
    affine = np.array([[0, 0, -2.0, 5], [3, 0, 0, 1], [0, -1, 0, 2], [0, 0, 0, 1]])
    view = turned_view(base, Grid((9, 10, 11), affine), "RAS")
    turned = measured(Values(view, 1.0, 0.0))
    straight = measured(Values(np.ascontiguousarray(view), 1.0, 0.0))
    (found, box), copied = (turned.whole, turned.box), straight.whole
    assert np.isclose(found.whole.mean, copied.whole.mean) and box == straight.box
    hit = np.argwhere(view > found.stored_threshold)
    assert box == (tuple(hit.min(axis=0)), tuple(hit.max(axis=0) + 1))
    assert found.whole.maximum == view.max()


@settings(max_examples=50)
@given(st.integers(0, 1000), st.sampled_from(["u1", "i1", "i2", "u2", "i4", "f4"]))
def test_lattice_of_small_arrays_is_exact(seed, dtype):
    rng = np.random.default_rng(seed)
    voxels = (rng.normal(0, 40, (7, 8, 9)) % 100).astype(dtype)
    found = lattice(voxels)
    assert found.size == voxels.size
    for share in (0.5, 50, 99.5):
        assert np.isclose(found.percentile(share), np.percentile(voxels, share), atol=1e-5)
    assert np.allclose(found.moments(), (voxels.mean(dtype="f8"), voxels.std(dtype="f8")))


def test_large_arrays_are_sampled_evenly():
    voxels = np.random.default_rng(0).normal(100, 20, (128, 128, 128)).astype(np.float32)
    found = lattice(voxels)
    assert 2**16 < found.size <= 2**17
    mean, std = found.moments()
    assert abs(mean - 100) < 0.2 and abs(std - 20) < 0.2
    assert [prime_from(n) for n in (0, 1, 2, 8, 64)] == [1, 1, 2, 11, 67]


def test_otsu_splits_two_heaps():
    from skimage.filters import threshold_otsu

    rng = np.random.default_rng(0)
    both = np.concatenate([rng.normal(0, 3, 5000), rng.normal(60, 9, 3000)]).astype(np.float32)
    mine = otsu(lattice(both.reshape(8, 10, 100)))
    assert abs(mine - threshold_otsu(both, nbins=1024)) < 1.5


def test_profiles():
    voxels = np.random.default_rng(0).integers(-5, 50, (4, 5, 6)).astype(np.int16)
    found = profiles(voxels)
    assert (found.minimum, found.maximum) == (voxels.min(), voxels.max())
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        assert np.array_equal(found.along[axis], voxels.max(axis=others))


def test_resampling_keeps_a_smooth_image_in_place():
    grid = Grid((40, 44, 48), np.diag([1.0, 1.2, 1.5, 1.0]))
    new = resampled_grid(grid, (2.0, 1.0, 1.7))
    world = [np.arange(n) * s for n, s in zip(grid.shape, grid.spacing_mm, strict=True)]

    def field(z, y, x):
        return (100 + np.sin(z / 9)[:, None, None] + np.cos(y / 8)[:, None] + np.sin(x / 7)).astype(
            "f4"
        )

    (got,) = resample_channels([field(*world)[None]], grid, new)
    origin = new.affine[:3, 3][::-1]
    place = [
        o + np.arange(n) * s for o, n, s in zip(origin, new.shape, new.spacing_mm, strict=True)
    ]
    inner = (slice(4, -4),) * 3
    assert np.allclose(new.spacing_mm, (2.0, 1.0, 1.7))
    assert np.abs(got - field(*place))[inner].max() < 0.02


def test_downsampling_does_not_alias():
    stripes = np.zeros((64, 64, 64), np.float32)
    stripes[::2] = 100
    grid = Grid((64, 64, 64), np.eye(4))
    (coarse,) = resample_channels([stripes[None]], grid, resampled_grid(grid, (3.0, 3.0, 3.0)))
    assert coarse[4:-4].std() < 5 and abs(coarse.mean() - 50) < 2


def test_labels_resample_to_labels():
    voxels = np.zeros((30, 30, 30), np.uint8)
    voxels[5:20, 5:20, 5:20], voxels[10:14, 10:14, 10:14] = 3, 7
    grid = Grid((30, 30, 30), np.eye(4))
    for spacing in ((1.5, 1.5, 1.5), (0.5, 0.5, 0.5)):
        new = resampled_grid(grid, spacing)
        got = resample_label(voxels, grid, new)
        assert set(np.unique(got)) == {0, 3, 7}
        volume = np.prod(spacing)
        for number in (3, 7):
            true = (voxels == number).sum()
            # A cube four voxels wide loses its edges to a 1.5 mm grid; a large one does not.
            share = 0.05 if number == 3 else 0.6
            assert abs((got == number).sum() * volume - true) < share * true


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32"])
def test_label_points_are_drawn_once_and_for_all(dtype):
    rng = np.random.default_rng(0)
    voxels = rng.choice([0, 1, 2, 3, 200], (50, 51, 52), p=[0.9, 0.05, 0.04, 0.009, 0.001])
    voxels = voxels.astype(dtype)
    voxels[-1] = -5 if dtype != "uint8" else 9
    classes, points = classes_and_points(voxels)
    again = classes_and_points(voxels[::-1].copy()[::-1])[1]
    numbers, counts = np.unique(voxels, return_counts=True)
    assert classes == dict(zip(numbers.tolist(), counts.tolist(), strict=True))
    assert set(points) == {n for n in numbers.tolist() if n > 0}
    for number, zyx in points.items():
        assert len(zyx) == min(64, classes[number]) == len(np.unique(zyx, axis=0))
        assert (voxels[tuple(zyx.T)] == number).all()
        assert np.array_equal(zyx, again[number])
    unpacked = unpack_points(pack_points(points))
    assert all(np.array_equal(unpacked[n], points[n]) for n in points)


def test_grids_compare_by_their_corners():
    grid = Grid((9, 8, 7), np.diag([1.0, 2.0, 3.0, 1.0]))
    near = Grid((9, 8, 7), grid.affine + np.array([[0, 0, 0, 0.05]] + [[0.0] * 4] * 3))
    far = Grid((9, 8, 7), grid.affine + np.array([[0, 0, 0, 0.5]] + [[0.0] * 4] * 3))
    assert not grid.difference(near)
    assert "0.5 mm apart" in grid.difference(far)
    assert "shape (7, 8, 8)" in grid.difference(Grid((8, 8, 7), grid.affine))
    assert obliquity_deg(grid.affine) == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"codec": "gzip"},
        {"chunk": 1},
        {"orientation": "RAX"},
        {"orientation": "RRS"},
        {"spacing_mm": (1.0, 0.0, 1.0)},
        {"window": (5.0, 5.0)},
        {"byte_budget": 0},
    ],
)
def test_a_recipe_is_checked(fields):
    with pytest.raises(Mim3dError, match=re.escape(str(next(iter(fields.values()))))):
        Conversion(**fields)


def test_a_source_needs_an_image():
    with pytest.raises(SourceError):
        Source("a", ())
