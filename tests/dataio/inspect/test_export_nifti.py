"""Export: voxels, dtype, scaling, affine and labels as they were in the sources, bit for bit."""

import json
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import pytest
from nibabel.arrayproxy import ArrayProxy

from mim3d.dataio.convert.run import convert
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.errors import ChunkError, CorpusError
from mim3d.dataio.inspect.export_nifti import export_corpus
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.reader.shard_reader import ShardReader
from mim3d.dataio.sources.discover import discover
from mim3d.dataio.sources.phantom import make_cohort
from mim3d.dataio.sources.source import Source
from mim3d.engine.commands.cli import main


def make_corpus(source: str | list[Source], root: Path, **recipe) -> Corpus:
    sources = discover(source).sources if isinstance(source, str) else source
    report = convert(sources, root, Conversion(**recipe), workers=1)
    assert not report.rejections
    return Corpus.open(root)


def load(file: str | Path) -> nib.Nifti1Image:
    return cast(nib.Nifti1Image, nib.load(file))


def raw(image: nib.Nifti1Image) -> tuple[np.ndarray, float, float]:
    proxy = cast(ArrayProxy, image.dataobj)
    return proxy.get_unscaled(), float(proxy.slope), float(proxy.inter)


def assert_same_image(one: str | Path, two: str | Path) -> None:
    (a, a_slope, a_inter), (b, b_slope, b_inter) = raw(load(one)), raw(load(two))
    assert a.dtype.newbyteorder("=") == b.dtype.newbyteorder("=")
    np.testing.assert_array_equal(a, b)
    assert (a_slope, a_inter) == (b_slope, b_inter)
    np.testing.assert_array_equal(load(one).affine, load(two).affine)
    assert int(load(one).header["sform_code"]) in (0, int(load(two).header["sform_code"]))
    np.testing.assert_array_equal(load(one).get_fdata(), load(two).get_fdata())


def test_a_cohort_of_many_orientations_comes_back(tmp_path):
    cohort = make_cohort(tmp_path / "cohort", 20)
    make_corpus(str(cohort), tmp_path / "c.zarr")
    argv = ["export-nifti", str(tmp_path / "c.zarr"), str(tmp_path / "out")]
    assert main([*argv, "--json", str(tmp_path / "f.json")]) == 0
    assert json.loads((tmp_path / "f.json").read_text()) == {"volumes": 20, "in_stored_grid": 0}
    for number in range(20):
        name = f"phantom_{number:03d}.nii.gz"
        assert_same_image(cohort / "imagesTr" / name, tmp_path / "out" / "images" / name)
        assert_same_image(cohort / "labelsTr" / name, tmp_path / "out" / "labels" / "seg" / name)
    assert main(argv) == 2  # never writes over a file


def test_the_zoo_comes_back(tmp_path, real_data):
    skipped = {"rgb24_ct_perfusion", "be_float32_nan_raw_nii", "float32_nan"}
    sources = [s for s in discover(str(real_data / "nifti_zoo")).sources if s.id not in skipped]
    corpus = make_corpus(sources, tmp_path / "c.zarr")
    assert main(["export-nifti", str(corpus.root), str(tmp_path / "out"), "--no-compress"]) == 0
    for record in corpus.records:
        exported = tmp_path / "out" / "images" / f"{record.id}.nii"
        source = load(record.sources[0])
        if record.n_frames > 1:
            np.testing.assert_array_equal(load(exported).affine, source.affine)
            frame = source.get_fdata()[..., record.frame].squeeze()
            np.testing.assert_array_equal(load(exported).get_fdata().squeeze(), frame)
        elif record.source_dtype == "float64":
            np.testing.assert_allclose(load(exported).get_fdata(), source.get_fdata(), rtol=1e-6)
        else:
            assert_same_image(record.sources[0], exported)


def assert_same_corpus(one: Corpus, two: Corpus) -> None:
    """The same volumes: voxels, labels, places, subjects and splits."""
    assert [r.id for r in one.records] == [r.id for r in two.records]
    for a, b in zip(one.records, two.records, strict=True):
        assert (a.subject, a.group, a.split) == (b.subject, b.group, b.split)
        assert (a.channels, a.dtype, a.shape, a.affine) == (b.channels, b.dtype, b.shape, b.affine)
        assert a.shard_sha256 == b.shard_sha256
        assert [(x.name, x.shard_sha256) for x in a.labels] == [
            (x.name, x.shard_sha256) for x in b.labels
        ]


def test_channels_of_several_files_come_back_as_files(tmp_path):
    rng = np.random.default_rng(0)
    affine = np.diag([-1.0, 2.0, 3.0, 1.0])
    volumes = [rng.integers(0, 99, (9, 8, 7)).astype(np.int16) for _ in range(3)]
    for i, voxels in enumerate(volumes):
        nib.save(nib.Nifti1Image(voxels, affine), tmp_path / f"{i}.nii")
    labels = {n: str(tmp_path / f"{i}.nii") for i, n in enumerate(("organ", "lesion"))}
    two, one = (str(tmp_path / "0.nii"), str(tmp_path / "1.nii")), (str(tmp_path / "2.nii"),)
    sources = [
        Source("two", two, labels, subject="p1", group="g", split="train"),
        Source("one", one, {"seg": one[0]}, subject="p2", split="val"),
        Source("last", one[:1] + two[:1], {}, subject="p3", split="test"),
    ]
    corpus = make_corpus(sources, tmp_path / "c.zarr")
    out = tmp_path / "out"
    assert main(["export-nifti", str(tmp_path / "c.zarr"), str(out)]) == 0
    assert_same_image(tmp_path / "0.nii", out / "images" / "two_0000.nii.gz")
    assert_same_image(tmp_path / "1.nii", out / "images" / "two_0001.nii.gz")
    assert_same_image(tmp_path / "2.nii", out / "images" / "one.nii.gz")
    assert_same_corpus(corpus, make_corpus(str(out), tmp_path / "again.zarr"))
    assert main(["export-nifti", str(tmp_path / "c.zarr"), str(out), "--ids", "none"]) == 2


def test_channels_of_one_file_come_back_on_its_fourth_axis(tmp_path):
    affine = np.array([[0, 2.0, 0, 5], [-1, 0, 0, 1], [0, 0, 3, 2], [0, 0, 0, 1]])
    voxels = np.random.default_rng(0).integers(0, 99, (9, 8, 7, 3)).astype(np.int16)
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "in" / "four.nii.gz")
    corpus = make_corpus(str(tmp_path / "in"), tmp_path / "c.zarr", time_axis="channels")
    assert main(["export-nifti", str(tmp_path / "c.zarr"), str(tmp_path / "out")]) == 0
    exported = tmp_path / "out" / "images" / "four.nii.gz"
    assert load(exported).shape == (9, 8, 7, 3)
    assert_same_image(tmp_path / "in" / "four.nii.gz", exported)
    again = make_corpus(str(tmp_path / "out"), tmp_path / "again.zarr", time_axis="channels")
    assert again.records[0].shard_sha256 == corpus.records[0].shard_sha256
    split = make_corpus(str(tmp_path / "out"), tmp_path / "split.zarr")
    assert [r.id for r in split.records] == [f"four--t00{i}" for i in range(3)]


def test_stored_axes_and_resampled_volumes(tmp_path, capsys):
    cohort = make_cohort(tmp_path / "cohort", 3)
    corpus = make_corpus(str(cohort), tmp_path / "c.zarr")
    words = ["export-nifti", str(corpus.root), str(tmp_path / "ras"), "--axes", "stored"]
    assert main([*words, "--ids", "phantom_001"]) == 0
    files = [p.relative_to(tmp_path / "ras") for p in (tmp_path / "ras").rglob("*.nii.gz")]
    assert len(files) == 2
    image = load(tmp_path / "ras" / "images" / "phantom_001.nii.gz")
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    closest = nib.as_closest_canonical(load(cohort / "imagesTr" / "phantom_001.nii.gz"))
    np.testing.assert_array_equal(image.get_fdata(), closest.get_fdata())
    make_corpus(str(cohort), tmp_path / "r.zarr", spacing_mm=(2.0, 2.0, 2.0))
    assert main(["export-nifti", str(tmp_path / "r.zarr"), str(tmp_path / "res")]) == 0
    assert "resampled or cropped" in capsys.readouterr().out
    image = load(tmp_path / "res" / "images" / "phantom_001.nii.gz")
    np.testing.assert_allclose(image.header.get_zooms(), 2.0, rtol=1e-5)


def test_a_damaged_chunk_and_an_unknown_id_are_told(tmp_path):
    from mim3d.engine.commands import export_nifti

    corpus = make_corpus(str(make_cohort(tmp_path / "cohort", 1)), tmp_path / "c.zarr")
    with pytest.raises(CorpusError, match="phantom_000"):
        export_nifti.main([str(corpus.root), str(tmp_path / "out"), "--ids", "nobody"])
    shard = next((corpus.root / "phantom_000" / "0").glob("c.*"))
    damaged = bytearray(shard.read_bytes())
    damaged[100] ^= 1
    shard.write_bytes(damaged)
    outcome = export_nifti.main([str(corpus.root), str(tmp_path / "out")])
    assert (outcome.exit_code, outcome.figures["volumes"]) == (3, 0)
    assert "phantom_000" in outcome.figures["failed"][0]["detail"]
    assert not list((tmp_path / "out").rglob("*.nii.gz"))
    reader = ShardReader(corpus.table, corpus.root)
    with pytest.raises(ChunkError, match="phantom_000"):  # who gives no list is told as before
        export_corpus(corpus.records, corpus.table, reader, tmp_path / "library")
    reader.close()


def noise(file: Path, affine: Any, dtype: str = "int16", seed: int = 0) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    voxels = (np.random.default_rng(seed).random((9, 8, 7)) * 99).astype(dtype)
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_zooms((1.0, 2.0, 3.0))
    nib.save(image, file)
    return file


def test_one_damaged_volume_takes_no_other_along(tmp_path, capsys):
    corpus = make_corpus(str(make_cohort(tmp_path / "cohort", 3)), tmp_path / "c.zarr")
    row = corpus.table.label_row(corpus.table.index("phantom_001"), "seg")
    shard = corpus.root / corpus.table.shard_path(row)
    shard.write_bytes(b"x" * 90 + shard.read_bytes()[90:])
    argv = ["export-nifti", str(corpus.root), str(tmp_path / "out")]
    assert main(argv) == 3
    told = capsys.readouterr().out
    assert "1 volumes could not be written:" in told
    assert "volume phantom_001" in told
    remedy = told[told.index("`mim3d verify") + 1 :].split("`")[0]
    found = sorted(p.name for p in (tmp_path / "out" / "images").iterdir())
    assert found == ["phantom_000.nii.gz", "phantom_002.nii.gz"]  # an image without its label, no
    assert [len(list((tmp_path / "out").rglob(f"phantom_00{i}*"))) for i in range(3)] == [2, 0, 2]
    assert "phantom_001" not in (tmp_path / "out" / "dataset.json").read_text()
    assert main(remedy.split()[1:]) == 0
    again = ["export-nifti", str(corpus.root), str(tmp_path / "mended"), "--ids", "phantom_001"]
    assert main(again) == 0


def test_a_guess_is_not_stated_as_known(tmp_path, capsys):
    source = noise(tmp_path / "in" / "p.nii.gz", None)
    corpus = make_corpus(str(source.parent), tmp_path / "c.zarr")
    assert main(["export-nifti", str(corpus.root), str(tmp_path / "out")]) == 0
    header = load(tmp_path / "out" / "images" / "p.nii.gz").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (0, 0)
    assert_same_image(source, tmp_path / "out" / "images" / "p.nii.gz")
    again = make_corpus(str(tmp_path / "out"), tmp_path / "again.zarr").records[0]
    assert (again.affine_from, again.affine_code) == ("pixdim", 0)
    assert again.shard_sha256 == corpus.records[0].shard_sha256
    capsys.readouterr()
    stored = ["export-nifti", str(corpus.root), str(tmp_path / "ras"), "--axes", "stored"]
    assert main(stored) == 3  # turned: only a form can say so
    assert "left and right are a guess, which these files state (code 2)" in capsys.readouterr().out
    image = load(tmp_path / "ras" / "images" / "p.nii.gz")
    np.testing.assert_allclose(
        np.asarray(image.affine), np.array(corpus.records[0].affine), atol=1e-5
    )


def test_voxels_of_another_type_than_their_source_are_told(tmp_path, capsys):
    noise(tmp_path / "in" / "p.nii.gz", np.eye(4), "float64")
    noise(tmp_path / "in" / "q.nii.gz", np.eye(4))
    make_corpus(str(tmp_path / "in"), tmp_path / "c.zarr")
    assert main(["export-nifti", str(tmp_path / "c.zarr"), str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "1 were float64 in their sources and are float32, changed by at most" in told
    make_corpus(str(tmp_path / "in"), tmp_path / "int.zarr", dtype="int16")
    assert main(["export-nifti", str(tmp_path / "int.zarr"), str(tmp_path / "int")]) == 0
    told = capsys.readouterr().out
    assert "1 were float64 in their sources and are int16, changed by at most" in told
    assert "int16 in their sources" not in told


@pytest.mark.parametrize("where", ["c.zarr", "c.zarr/out", "in", "in/sub", "full", "file"])
def test_where_others_files_are_nothing_is_written(tmp_path, capsys, where):
    noise(tmp_path / "in" / "sub" / "p.nii.gz", np.eye(4))
    make_corpus(str(tmp_path / "in"), tmp_path / "c.zarr")
    noise(tmp_path / "full" / "images" / "q.nii.gz", np.eye(4))
    (tmp_path / "file").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    assert main(["export-nifti", str(tmp_path / "c.zarr"), str(tmp_path / where)]) == 2
    assert sorted(tmp_path.rglob("*")) == before
    assert str(tmp_path / where) in capsys.readouterr().err
    assert main(["export-nifti", str(tmp_path / "c.zarr"), ""]) == 2
    words = ["export-nifti", str(tmp_path / "c.zarr"), str(tmp_path / "elsewhere"), "--ids"]
    assert main([*words, "sub_p", "sub_p"]) == 0  # twice is once
    assert "lies below sources" not in capsys.readouterr().out
    below = tmp_path / "in" / "sub" / "new"
    assert main(["export-nifti", str(tmp_path / "c.zarr"), str(below)]) == 0
    assert f"lies below sources: a conversion of {below.parent} takes" in capsys.readouterr().out
    below.rename(tmp_path / "elsewhere too")  # "move it elsewhere"
    main(["convert", str(tmp_path / "in"), str(tmp_path / "c.zarr")])
    assert "1 volumes (0 converted now, 1 sources unchanged)" in capsys.readouterr().out


def test_a_corpus_without_volumes_is_told(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "p.nii.gz").write_bytes(b"x")
    assert main(["convert", str(tmp_path / "in"), str(tmp_path / "c.zarr")]) == 3
    words = ["export-nifti", str(tmp_path / "c.zarr"), str(tmp_path / "out")]
    for argv in (words, [*words, "--ids", "p"]):
        assert main(argv) == 2
        line = capsys.readouterr().err
        assert f"{tmp_path / 'c.zarr'}: holds no volume" in line
        assert "quarantine.jsonl for what was left out" in line
    assert not (tmp_path / "out").exists()


def test_a_channels_file_never_takes_another_volumes_name(tmp_path, capsys):
    files = [str(noise(tmp_path / "in" / f"{i}.nii", np.eye(4), seed=i)) for i in range(3)]
    sources = [
        Source("p", tuple(files[:2]), {}, subject="a"),
        Source("p_0000", (files[2],), {}, subject="b"),
    ]
    make_corpus(sources, tmp_path / "c.zarr")
    assert main(["export-nifti", str(tmp_path / "c.zarr"), str(tmp_path / "out")]) == 3
    assert "export this one alone, by --ids, into another folder" in capsys.readouterr().out
    assert_same_image(files[0], tmp_path / "out" / "images" / "p_0000.nii.gz")
    words = ["export-nifti", str(tmp_path / "c.zarr"), str(tmp_path / "other"), "--ids", "p_0000"]
    assert main(words) == 0
    assert_same_image(files[2], tmp_path / "other" / "images" / "p_0000.nii.gz")
