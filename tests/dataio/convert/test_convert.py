import hashlib
import json
from itertools import product
from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np
import pytest
import tensorstore
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nibabel.arrayproxy import ArrayProxy

from mim3d.dataio.convert.run import convert
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.corpus.manifest import VolumeRecord
from mim3d.dataio.corpus.names import own_file
from mim3d.dataio.corpus.quarantine import parse_quarantine
from mim3d.dataio.corpus.seen_files import SEEN
from mim3d.dataio.errors import CorpusError
from mim3d.dataio.inspect.verify import verify
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.sources.source import Source

DTYPES = ("uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32")


def save(path: Path, voxels: np.ndarray, affine=None, kind=nib.Nifti1Image) -> str:
    image = kind(voxels, np.diag([1.0, 1.5, 2.0, 1.0]) if affine is None else affine)
    image.header.set_sform(image.affine, 1)
    nib.save(image, path)
    return str(path)


def random_affine(rng: np.random.Generator) -> np.ndarray:
    """Any axis order and flips, a little oblique, any spacing and origin."""
    matrix = np.eye(3)[rng.permutation(3)] * rng.choice([-1.0, 1.0], 3)
    tilt = np.eye(3) + rng.uniform(-0.1, 0.1, (3, 3))
    affine = np.eye(4)
    affine[:3, :3] = tilt @ matrix * rng.uniform(0.4, 4, 3)
    affine[:3, 3] = rng.uniform(-200, 200, 3)
    return affine


def stored(root: Path, record: VolumeRecord) -> np.ndarray:
    return array(root, f"{record.id}/0")


def array(root: Path, path: str) -> np.ndarray:
    """Voxels of one array, by zarr-python."""
    return np.asarray(zarr.open_array(str(root / path), mode="r")[...])


def load(path: Path | str) -> nib.Nifti1Image:
    """Image by nibabel."""
    return cast(nib.Nifti1Image, nib.load(path))


def tree_hash(root: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.is_file() and p.name != SEEN):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def sources(folder: Path, n: int = 4, seed: int = 0) -> list[Source]:
    """A few labelled volumes of different shapes and orders."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(n):
        shape = rng.integers(5, 45, 3)
        affine = random_affine(rng)
        image = save(folder / f"i{i}.nii.gz", rng.integers(-99, 999, shape, np.int16), affine)
        label = save(folder / f"l{i}.nii.gz", rng.integers(0, 3, shape, np.uint8), affine)
        made.append(Source(f"case {i}", (image,), {"seg": label}, subject=f"s{i // 2}"))
    return made


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(DTYPES),
    shape=st.tuples(*[st.integers(1, 40)] * 3),
    big_endian=st.booleans(),
    codec=st.sampled_from(["lz4", "zstd"]),
)
def test_voxels_and_places_are_those_of_nibabel(
    tmp_path_factory, seed, dtype, shape, big_endian, codec
):
    folder = tmp_path_factory.mktemp("any")
    rng = np.random.default_rng(seed)
    voxels = rng.integers(0, 100, shape).astype(dtype)
    affine = random_affine(rng)
    header = nib.Nifti1Header(endianness=">" if big_endian else "<")
    header.set_data_dtype(dtype)
    image = nib.Nifti1Image(voxels, affine, header, dtype=dtype)
    image.header.set_sform(affine, 1)
    nib.save(image, folder / "a.nii.gz")
    convert([Source("a", (str(folder / "a.nii.gz"),))], folder / "c", Conversion(codec=codec))
    record = Corpus.open(folder / "c").records[0]
    assert_agrees(folder / "c", record, folder / "a.nii.gz")


def assert_agrees(root: Path, record: VolumeRecord, file: Path | str, frame: int = -1) -> None:
    """Voxels, dtype, world corners and orientation against nibabel's canonical image."""
    loaded = load(file)
    proxy = cast(ArrayProxy, loaded.dataobj)
    turn = nib.io_orientation(loaded.affine)
    want = nib.apply_orientation(np.asanyarray(proxy.get_unscaled()), turn)
    real = nib.as_closest_canonical(loaded)
    want = want[..., frame] if frame >= 0 else want.reshape(want.shape[:3])
    got = stored(root, record)
    assert record.source_dtype == want.dtype.name
    want = want.astype(np.float32) if want.dtype == np.float64 else want
    if want.dtype.kind in "iu" and want.dtype.itemsize == 8:  # none of them needs 64 bits
        assert any(record.source_dtype in warning for warning in record.warnings)
        want = want.astype(record.dtype)
    assert got.dtype == want.dtype.newbyteorder("=") and got.dtype.name == record.dtype
    assert np.array_equal(got, want.transpose(2, 1, 0), equal_nan=want.dtype.kind == "f")
    scaled = real.get_fdata()
    scaled = scaled[..., frame] if frame >= 0 else scaled.reshape(want.shape)
    mine = record.slope * got.astype(np.float64) + record.intercept
    assert np.allclose(mine, scaled.transpose(2, 1, 0), rtol=1e-6, equal_nan=True)
    ends = [(0, size - 1) for size in want.shape]
    corners = np.array([(*corner, 1) for corner in product(*ends)])
    affine = np.array(record.affine)
    assert np.allclose(corners @ affine.T, corners @ real.affine.T, atol=1e-6)
    assert record.original_orientation == "".join(nib.aff2axcodes(loaded.affine))
    assert "".join(nib.aff2axcodes(affine)) == "RAS"
    assert (record.slope, record.intercept) == (proxy.slope, proxy.inter)


@pytest.mark.real
@pytest.mark.parametrize("folder", ["nifti_zoo", "volumes"])
def test_every_odd_and_real_file_agrees_or_says_why_not(real_data, tmp_path, folder):
    files = sorted(
        p for p in (real_data / folder).rglob("*") if p.name.endswith((".nii", ".gz", ".hdr"))
    )
    found = [Source(p.relative_to(real_data).as_posix(), (str(p),)) for p in files]
    convert(found, tmp_path / "c", workers=1)
    records = Corpus.open(tmp_path / "c").records
    for record in records:
        assert_agrees(tmp_path / "c", record, record.sources[0], record.frame)
    rejected = parse_quarantine(own_file(tmp_path / "c", "quarantine.jsonl").read_bytes())
    assert {r.code for r in rejected} <= {"rgb", "non-finite"}
    assert {r.sources[0] for r in records} | {r.path for r in rejected} == set(map(str, files))
    assert not verify(tmp_path / "c").problems


def test_three_libraries_read_the_same_voxels(tmp_path):
    import zarrs

    convert(sources(tmp_path, 3), tmp_path / "c", workers=1)
    corpus = Corpus.open(tmp_path / "c")
    for record in corpus.records:
        for array in ("0", "labels.seg"):
            path = tmp_path / "c" / record.id / array
            spec = {"driver": "zarr3", "kvstore": f"file://{path}/"}
            by_tensorstore = tensorstore.open(spec).result().read().result()
            by_zarr = zarr.open_array(str(path), mode="r")[...]
            assert np.array_equal(by_tensorstore, by_zarr)
            with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
                assert np.array_equal(zarr.open_array(str(path), mode="r")[...], by_zarr)
    assert zarrs.__name__


def test_labels_follow_their_image(tmp_path):
    made = sources(tmp_path, 4)
    convert(made, tmp_path / "c", workers=1)
    corpus = Corpus.open(tmp_path / "c")
    for record in corpus.records:
        (label,) = record.labels
        canonical = nib.as_closest_canonical(load(label.source))
        want = np.asarray(canonical.dataobj).transpose(2, 1, 0)
        assert np.array_equal(array(tmp_path / "c", f"{record.id}/labels.seg"), want)
        assert label.classes == {k: int((want == k).sum()) for k in np.unique(want)}
    assert {r.subject for r in corpus.records} == {"s0", "s1"}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("shape", "other-grid"),
        ("place", "other-grid"),
        ("fraction", "label-not-integer"),
        ("range", "label-range"),
        ("damaged", "truncated"),
    ],
)
def test_a_bad_label_is_told_with_its_image_and_does_not_cost_it(tmp_path, change, code):
    good, bad = sources(tmp_path, 2)
    path = Path(bad.labels["seg"])
    convert([good, bad], tmp_path / "kept", workers=1)
    whole = tree_hash(tmp_path / "kept")
    label = load(path)
    voxels, affine = np.asarray(label.dataobj), np.array(label.affine)
    if change == "shape":
        voxels = voxels[:-1]
    elif change == "place":
        affine[:3, 3] += 3
    elif change == "fraction":
        voxels = voxels.astype(np.float32) + 0.5
    elif change == "range":
        voxels = voxels.astype(np.int32) * 100000
    save(path, voxels, affine)
    if change == "damaged":
        path.write_bytes(path.read_bytes()[:-10])
    report = convert([good, bad], tmp_path / "c", workers=1)
    assert (report.n_converted, report.n_quarantined) == (2, 1)
    (rejection,) = report.rejections
    assert (rejection.code, rejection.path) == (code, str(path))
    assert rejection.detail.count(bad.images[0]) == 1
    assert rejection.detail.endswith(" was converted without it")
    labels = {r.id: len(r.labels) for r in Corpus.open(tmp_path / "c").records}
    assert labels == {"case_0": 1, "case_1": 0}
    # A volume that was whole keeps what it has.
    report = convert([good, bad], tmp_path / "kept", workers=1)
    assert report.rejections[0].code == code and "keeps the volume it has" in (
        report.rejections[0].detail
    )
    own_file(tmp_path / "kept", "quarantine.jsonl").write_bytes(b"")
    assert tree_hash(tmp_path / "kept") == whole
    assert not verify(tmp_path / "kept").problems


def test_a_label_mended_or_lost(tmp_path):
    (source,) = sources(tmp_path, 1)
    path = Path(source.labels["seg"])
    good = path.read_bytes()
    path.write_bytes(good[:-9])
    assert convert([source], tmp_path / "c", workers=1).n_quarantined == 1
    path.write_bytes(good)
    report = convert([source], tmp_path / "c", workers=1)
    assert (report.n_converted, report.n_volumes, report.n_quarantined) == (1, 1, 0)
    convert([source], tmp_path / "fresh", workers=1)
    assert tree_hash(tmp_path / "c") == tree_hash(tmp_path / "fresh")
    path.unlink()
    report = convert([Source(source.id, source.images, subject="s0")], tmp_path / "c", workers=1)
    assert [r.code for r in report.rejections] == ["missing"]
    assert Corpus.open(tmp_path / "c").records[0].labels


def test_a_label_bad_in_one_frame_leaves_all_frames_whole(tmp_path):
    four = np.random.default_rng(1).integers(0, 9, (8, 9, 10, 3)).astype(np.int16)
    label = (four > 4).astype(np.float32)
    label[0, 0, 0, 2] = 0.5
    source = Source(
        "a", (save(tmp_path / "a.nii", four),), {"seg": save(tmp_path / "l.nii", label)}
    )
    report = convert([source], tmp_path / "c", workers=1)
    assert (report.n_volumes, report.n_quarantined) == (3, 1)
    assert not any(r.labels for r in Corpus.open(tmp_path / "c").records)
    assert not verify(tmp_path / "c").problems


def test_labels_in_floats_become_whole_numbers(tmp_path):
    voxels = np.random.default_rng(0).integers(0, 300, (9, 8, 7))
    image = save(tmp_path / "i.nii.gz", voxels.astype(np.int16))
    label = save(tmp_path / "l.nii.gz", voxels.astype(np.float64))
    convert([Source("a", (image,), {"seg": label})], tmp_path / "c")
    got = array(tmp_path / "c", "a/labels.seg")
    assert got.dtype == np.int16 and np.array_equal(got, voxels.transpose(2, 1, 0))


def test_channels_and_frames(tmp_path):
    rng = np.random.default_rng(1)
    four = rng.integers(0, 50, (11, 12, 13, 3)).astype(np.int16)
    path = save(tmp_path / "four.nii.gz", four)
    label = save(tmp_path / "seg.nii.gz", (four[..., 0] > 25).astype(np.uint8))
    singles = tuple(save(tmp_path / f"m{i}.nii.gz", four[..., i]) for i in range(3))
    mixed = (singles[0], save(tmp_path / "f.nii.gz", four[..., 1].astype(np.float32)))
    found = [
        Source("four", (path,), {"seg": label}),
        Source("multi", singles),
        Source("mix", mixed),
    ]
    convert(found, tmp_path / "split", workers=1)
    convert(found, tmp_path / "channels", Conversion(time_axis="channels"), workers=1)
    want = four.transpose(3, 2, 1, 0)
    records = {r.id: r for r in Corpus.open(tmp_path / "split").records}
    assert sorted(records) == ["four--t000", "four--t001", "four--t002", "mix", "multi"]
    for i in range(3):
        assert np.array_equal(stored(tmp_path / "split", records[f"four--t00{i}"]), want[i])
        assert records[f"four--t00{i}"].labels[0].name == "seg"
    assert np.array_equal(stored(tmp_path / "split", records["multi"]), want)
    assert records["multi"].channels == 3 and records["mix"].dtype == "float32"
    (record,) = [r for r in Corpus.open(tmp_path / "channels").records if r.id == "four"]
    assert np.array_equal(stored(tmp_path / "channels", record), want)
    assert record.array_shape == (3, 13, 12, 11)
    assert not verify(tmp_path / "channels").problems
    again = convert(found, tmp_path / "split", workers=1)
    assert (again.n_converted, again.n_unchanged) == (0, 3)


def test_channels_on_other_grids_are_refused(tmp_path):
    voxels = np.zeros((9, 8, 7), np.int16)
    paths = (save(tmp_path / "a.nii.gz", voxels), save(tmp_path / "b.nii.gz", voxels[1:]))
    report = convert([Source("a", paths)], tmp_path / "c", workers=1)
    assert report.rejections[0].code == "other-grid"


@pytest.mark.parametrize("policy", ["reject", "zero", "keep"])
def test_nan_policy(tmp_path, policy):
    voxels = np.random.default_rng(0).normal(5, 1, (20, 21, 22)).astype(np.float32)
    voxels[3, 4, 5], voxels[6, 7, 8] = np.nan, -np.inf
    path = save(tmp_path / "a.nii.gz", voxels)
    report = convert([Source("a", (path,))], tmp_path / "c", Conversion(nan_policy=policy))
    if policy == "reject":
        assert report.rejections[0].code == "non-finite"
        assert "1 NaN and 1 infinite" in report.rejections[0].detail
        return
    (record,) = Corpus.open(tmp_path / "c").records
    assert (record.n_nan, record.n_inf) == (1, 1)
    want = voxels if policy == "keep" else np.where(np.isfinite(voxels), voxels, 0)
    assert np.array_equal(stored(tmp_path / "c", record), want.transpose(2, 1, 0), equal_nan=True)
    assert 4 < record.intensity.mean < 6


def test_float64_becomes_float32_with_its_error(tmp_path):
    voxels = np.random.default_rng(0).normal(0, 1, (9, 8, 7))
    convert([Source("a", (save(tmp_path / "a.nii.gz", voxels),))], tmp_path / "c")
    (record,) = Corpus.open(tmp_path / "c").records
    error = np.abs(voxels - voxels.astype(np.float32)).max()
    assert record.cast_max_error == error > 0
    assert (record.source_dtype, record.dtype) == ("float64", "float32")
    assert any("float64" in warning for warning in record.warnings)
    huge = save(tmp_path / "b.nii.gz", voxels * 1e300)
    report = convert([Source("b", (huge,))], tmp_path / "c")
    assert report.rejections[0].code == "overflow"


def test_options(tmp_path):
    rng = np.random.default_rng(3)
    voxels = np.full((40, 44, 48), -1000, np.int16)
    voxels[10:30, 12:30, 14:40] = rng.integers(0, 2000, (20, 18, 26))
    mask = (voxels > -500).astype(np.uint8)
    source = Source(
        "a",
        (save(tmp_path / "a.nii.gz", voxels, np.eye(4)),),
        {"seg": save(tmp_path / "l.nii.gz", mask, np.eye(4))},
    )

    def run(name, **options):
        convert([source], tmp_path / name, Conversion(**options))
        (record,) = Corpus.open(tmp_path / name).records
        assert not verify(tmp_path / name).problems
        label = array(tmp_path / name, "a/labels.seg")
        return record, stored(tmp_path / name, record), label

    record, got, label = run("crop", foreground=True)
    assert got.shape == label.shape == (26, 18, 20) and label.all()
    assert np.array_equal(got, voxels[10:30, 12:30, 14:40].transpose(2, 1, 0))
    assert [row[3] for row in record.affine[:3]] == [10, 12, 14]
    record, got, _ = run("lps", orientation="LPS")
    assert np.array_equal(got, voxels.transpose(2, 1, 0)[:, ::-1, ::-1])
    record, got, _ = run("window", window=(-100.0, 300.0))
    assert got.dtype == np.int16 and got.min() == -100 and got.max() == 300
    record, got, _ = run("byte", window=(-100.0, 300.0), dtype="uint8")
    real = record.slope * got + record.intercept
    want = np.clip(voxels, -100, 300).transpose(2, 1, 0)
    assert np.abs(real - want).max() <= record.cast_max_error + 1e-6 <= 400 / 255 / 2 + 0.01
    record, got, label = run("coarse", spacing_mm=(2.0, 2.0, 2.0))
    assert got.shape == label.shape == (24, 22, 20) and record.spacing_mm == (2.0, 2.0, 2.0)
    assert set(np.unique(label)) == {0, 1}
    record, got, _ = run("float", dtype="float32")
    assert np.array_equal(got, voxels.transpose(2, 1, 0).astype(np.float32))


def test_the_corpus_does_not_depend_on_order_workers_or_reruns(tmp_path):
    made = sources(tmp_path, 6)
    convert(made, tmp_path / "one", workers=1)
    convert(made[::-1], tmp_path / "two", workers=2)
    convert(made[:2], tmp_path / "three", workers=1)
    convert(made, tmp_path / "three", workers=1)
    again = convert(made, tmp_path / "three", workers=2)
    assert (again.n_unchanged, again.n_converted) == (6, 0)
    assert len({tree_hash(tmp_path / name) for name in ("one", "two", "three")}) == 1


def test_a_changed_source_is_converted_again_and_a_lost_one_kept(tmp_path):
    made = sources(tmp_path, 3)
    convert(made, tmp_path / "c", workers=1)
    changed = load(made[0].images[0])
    save(Path(made[0].images[0]), np.asarray(changed.dataobj) + np.int16(1), changed.affine)
    Path(made[1].images[0]).unlink()
    report = convert(made, tmp_path / "c", workers=1)
    assert (report.n_converted, report.n_unchanged, report.n_quarantined) == (1, 1, 1)
    records = Corpus.open(tmp_path / "c").records
    assert len(records) == 3
    assert_agrees(tmp_path / "c", records[0], made[0].images[0])
    assert report.rejections[0].code == "missing"
    assert not verify(tmp_path / "c").problems


def test_fewer_frames_leave_nothing_behind(tmp_path):
    four = np.random.default_rng(0).integers(0, 9, (8, 8, 8, 3)).astype(np.int16)
    source = Source("a", (save(tmp_path / "a.nii.gz", four),))
    convert([source], tmp_path / "c")
    save(tmp_path / "a.nii.gz", four[..., :2])
    convert([source], tmp_path / "c")
    assert [r.id for r in Corpus.open(tmp_path / "c").records] == ["a--t000", "a--t001"]
    assert not verify(tmp_path / "c").problems


def test_hostile_ids_stay_inside_and_apart(tmp_path):
    names = [
        *("../../etc/x", "/abs", "A", "a", "Á", "A\u0301", "con", ".", "..", "zarr.json"),
        *("manifest.jsonl", "x" * 300, "a/b", "a_b", "日本", "本日", "--", "a--t000", "labels"),
        *("\u212a", "k", "a\nb"),
    ]
    made = []
    for i, name in enumerate(names):
        path = save(tmp_path / f"f{i}.nii.gz", np.full((3, 3, 3), i, np.int16))
        made.append(Source(name, (path,)))
    inside = tmp_path / "deep" / "c"
    report = convert(made, inside, workers=1)
    assert report.n_converted == len(names)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["c"]
    ids = [r.id for r in Corpus.open(inside).records]
    assert len({i.casefold() for i in ids}) == len(names) and all(i.isascii() for i in ids)
    assert not verify(inside).problems
    assert convert(made, inside, workers=1).n_unchanged == len(names)


def test_the_same_source_twice_is_told(tmp_path):
    (source,) = sources(tmp_path, 1)
    other = Source("other", source.images, source.labels)
    report = convert([source, other], tmp_path / "c", workers=1)
    assert report.n_converted == 1 and report.rejections[0].code == "duplicate-source"


def test_other_options_and_foreign_folders_are_refused(tmp_path):
    made = sources(tmp_path, 1)
    convert(made, tmp_path / "c", workers=1)
    with pytest.raises(CorpusError, match="codec 'lz4', now 'zstd'"):
        convert(made, tmp_path / "c", Conversion(codec="zstd"), workers=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.doc").write_text("precious")
    with pytest.raises(CorpusError, match=r"thesis\.doc"):
        convert(made, tmp_path / "mine", workers=1)
    with pytest.raises(CorpusError, match="not a corpus"):
        Corpus.open(tmp_path / "mine")
    with pytest.raises(CorpusError, match="no such folder"):
        Corpus.open(tmp_path / "none")


def test_statistics_against_numpy(tmp_path):
    rng = np.random.default_rng(5)
    voxels = np.clip(rng.normal(100, 20, (50, 50, 50)), 0, 255).astype(np.int16)
    voxels[:20] = rng.integers(0, 5, (20, 50, 50))
    image = nib.Nifti1Image(voxels, np.eye(4))
    image.header.set_slope_inter(2.0, -50.0)
    nib.save(image, tmp_path / "a.nii.gz")
    convert([Source("a", (str(tmp_path / "a.nii.gz"),))], tmp_path / "c")
    (record,) = Corpus.open(tmp_path / "c").records
    real = np.asarray(load(tmp_path / "a.nii.gz").dataobj)
    whole = record.intensity
    assert (whole.minimum, whole.maximum) == (real.min(), real.max())
    assert np.allclose([whole.mean, whole.std], [real.mean(), real.std()], rtol=1e-9)
    assert np.allclose([whole.p005, whole.p995], np.percentile(real, [0.5, 99.5]))
    inside = real[real > record.foreground_threshold]
    assert 0.55 < inside.size / real.size < 0.65
    assert np.allclose(
        [record.foreground.mean, record.foreground.std], [inside.mean(), inside.std()]
    )
    (z0, y0, x0), (z1, y1, x1) = record.foreground_box
    hit = np.argwhere(real.transpose(2, 1, 0) > record.foreground_threshold)
    assert (z0, y0, x0) == tuple(hit.min(axis=0)) and (z1, y1, x1) == tuple(hit.max(axis=0) + 1)


def test_a_constant_volume(tmp_path):
    path = save(tmp_path / "a.nii.gz", np.zeros((33, 5, 70), np.float32))
    convert([Source("a", (path,))], tmp_path / "c")
    (record,) = Corpus.open(tmp_path / "c").records
    assert (record.foreground_rule, record.intensity.std) == ("all", 0.0)
    assert record.foreground_box == ((0, 0, 0), (70, 5, 33))
    assert not stored(tmp_path / "c", record).any()
    assert not verify(tmp_path / "c").problems


def test_the_quarantine_is_json_lines(tmp_path):
    (tmp_path / "a.nii").write_text("no")
    convert([Source("a", (str(tmp_path / "a.nii"),))], tmp_path / "c")
    (line,) = own_file(tmp_path / "c", "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["code"] == "not-nifti"
    assert Corpus.open(tmp_path / "c").table.n_volumes == 0
