"""Label maps on a scan's own grid: turned, oblique, resampled, cropped, channels, odd headers."""

import gzip
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from scipy import ndimage
from small_finetune import small_finetune
from small_trial import Trial, loaded, save, voxels

from mim3d.dataio.convert.run import convert
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.geometry import Grid
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.reader.shard_reader import ShardReader
from mim3d.dataio.reader.whole_volume import read_volume
from mim3d.dataio.sources.discover import discover
from mim3d.engine.commands.weights.predict import main as command
from mim3d.engine.finetune.finetune import run_finetune
from mim3d.engine.finetune.sliding_window import Windows, blended
from mim3d.engine.finetune.trained import TRAINED, load_network, read_trained
from mim3d.engine.models.config import ViTConfig
from mim3d.engine.predict.config import PredictConfig
from mim3d.engine.predict.own_grid import own_grid
from mim3d.engine.predict.predict import run_predict
from mim3d.engine.runs.files import read_json, write_json

nib: Any = nibabel
RECIPES = {
    "as it is": Conversion(),
    "isotropic": Conversion(spacing_mm=(1.7, 1.7, 1.7)),
    "finer": Conversion(spacing_mm=(1.0, 0.6, 1.3), orientation="LPS"),
    "int16 in a window": Conversion(
        dtype="int16", window=(20.0, 400.0), spacing_mm=(2.5, 1.5, 1.5)
    ),
    "cropped": Conversion(foreground=True),
    "cropped and resampled": Conversion(foreground=True, spacing_mm=(1.7, 1.7, 1.7)),
    "kept": Conversion(orientation="keep"),
}


def read_otherwise(trial: Trial, folder: Path, conversion: Conversion) -> Path:
    """The run, as if its corpus had been made by that recipe."""
    shutil.copytree(trial.run, folder)
    told = read_json(folder / TRAINED)
    scans = {**told["scans"], "conversion": conversion.attributes()}
    scans |= {"smallest_mm": None, "largest_mm": None}
    write_json(folder / TRAINED, {**told, "scans": scans})
    return folder


@pytest.mark.parametrize("name", RECIPES)
def test_files_come_out_as_a_corpus_of_the_recipe_and_on_their_own_grid(
    trial: Trial, tmp_path: Path, name: str
) -> None:
    run = read_otherwise(trial, tmp_path / "run", RECIPES[name])
    sources = discover(str(trial.nifti)).sources[:2]
    convert(sources, tmp_path / "corpus.zarr", RECIPES[name], workers=1)
    ids = tuple(source.id for source in sources)
    by_file, by_corpus = tmp_path / "a", tmp_path / "b"
    assert run_predict(run, trial.nifti, by_file, PredictConfig(ids=ids)).failed == ()
    assert run_predict(run, tmp_path / "corpus.zarr", by_corpus).doubts == ()
    for source in sources:
        file = f"{source.id}.nii.gz"
        image, own = loaded(by_file / file), loaded(Path(source.images[0]))
        assert image.shape == own.shape
        assert np.array_equal(image.affine, own.affine)
        assert (by_file / file).read_bytes() == (by_corpus / file).read_bytes()
        wanted, sure = by_scipy(run, tmp_path / "corpus.zarr", source.id)
        found = voxels(by_file / file)
        assert len(np.unique(found)) > 1
        assert sure.mean() > 0.95
        assert np.array_equal(found[sure], wanted[sure])


def by_scipy(run: Path, corpus: Path, id: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels (x, y, z) by whole-volume logits and scipy, and where no rounding can change them."""
    opened, trained = Corpus.open(corpus), read_trained(run)
    record = next(record for record in opened.records if record.id == id)
    reader = ShardReader(opened.table, opened.root)
    whole = read_volume(reader, opened.table.index(id), None, trained.scans.normalise)
    net, image = load_network(run, trained), torch.from_numpy(whole.image)
    windows = Windows(record.shape, trained.config.vit.crop_size, trained.config.overlap)
    with torch.no_grad():
        parts = blended(net, lambda a, b: image[:, a:b], windows, torch.device("cpu"))
        shares = torch.cat([logits for _, logits in parts], 1).softmax(0).numpy()
    index = np.indices(record.original_shape).reshape(3, -1)
    between = np.linalg.inv(np.array(record.affine)) @ np.array(record.original_affine)
    places = (between[:3, :3] @ index + between[:3, 3:])[::-1]
    past = 0.5 if own_grid(record).is_exact else 1.001
    beyond = [(p < -past) | (p > n - 1 + past) for p, n in zip(places, record.shape, strict=True)]
    mixed = np.stack([ndimage.map_coordinates(s, places, order=1, mode="nearest") for s in shares])
    ordered = np.sort(mixed, axis=0)
    sure = ordered[-1] - ordered[-2] > 1e-4
    outside = np.any(beyond, axis=0)
    labels = np.where(outside, 0, mixed.argmax(0))
    shape = record.original_shape
    return labels.reshape(shape), (sure | outside).reshape(shape)


def test_one_head_stored_in_any_order_of_axes_gets_one_label_map(
    trial: Trial, tmp_path: Path
) -> None:
    image = loaded(trial.images[0])
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
    ras = nib.as_closest_canonical(nib.Nifti1Image(voxels(trial.images[0]), image.affine))
    base = nib.Nifti1Image(np.asarray(ras.dataobj), turn @ ras.affine)
    found = []
    scans = tmp_path / "scans"
    scans.mkdir()
    for codes in ("RAS", "LPS", "ASR", "SLP", "IPL"):
        wanted = nib.orientations.axcodes2ornt(codes)
        start = nib.orientations.io_orientation(base.affine)
        turned: Any = base.as_reoriented(nib.orientations.ornt_transform(start, wanted))
        save(np.asarray(turned.dataobj), turned.affine, scans / f"{codes}.nii.gz")
    run_predict(trial.run, scans, tmp_path / "out")
    for file in sorted((tmp_path / "out").glob("*.nii.gz")):
        assert np.array_equal(loaded(file).affine, loaded(scans / file.name).affine)
        back = nib.as_closest_canonical(loaded(file))
        assert np.allclose(back.affine, base.affine, atol=1e-4)
        found.append(np.asarray(back.dataobj))
    assert len(found) == 5
    for other in found[1:]:
        assert np.array_equal(other, found[0])


def write_odd(kind: str, image: Any, folder: Path) -> Path:
    """The image in an unusual but valid form."""
    data = np.asarray(image.dataobj)
    file = folder / "scan.nii"
    if kind == "pair":
        nib.save(nib.Nifti1Pair(data, image.affine), folder / "scan.img")
        return folder / "scan.hdr"
    if kind == "mgz":
        kept = data.astype(np.float32)
        nib.save(nib.MGHImage(kept, image.affine), folder / "scan.mgz")
        return folder / "scan.mgz"
    made: Any = {
        "nifti2": lambda: nib.Nifti2Image(data, image.affine),
        "big-endian": lambda: nib.Nifti1Image(data, image.affine, nib.Nifti1Header(endianness=">")),
        "scaled": lambda: nib.Nifti1Image(data, image.affine),
        "micron": lambda: nib.Nifti1Image(data, image.affine @ np.diag([1e3, 1e3, 1e3, 1])),
        "no forms": lambda: nib.Nifti1Image(data, None),
        "extended": lambda: nib.Nifti1Image(data, image.affine),
    }[kind]()
    if kind == "scaled":
        made.header.set_slope_inter(0.5, 10)
        made.header["cal_max"] = 300
    if kind == "micron":
        made.header.set_xyzt_units("micron")
        made.affine[:3, 3] *= 1e3
        made.set_sform(made.affine, 1)
    if kind == "extended":
        made.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"who it is"))
    nib.save(made, file)
    packed = folder / "scan.nii.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    file.unlink()
    return packed


KINDS = ("pair", "mgz", "nifti2", "big-endian", "scaled", "micron", "no forms", "extended")


@pytest.mark.parametrize("kind", KINDS)
def test_odd_headers_stay_theirs(trial: Trial, tmp_path: Path, kind: str) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    file = write_odd(kind, loaded(trial.images[1]), scans)
    report = run_predict(trial.run, file, tmp_path / "out")
    assert report.failed == ()
    own, image = loaded(file), loaded(tmp_path / "out" / "scan.nii.gz")
    assert image.shape == own.shape
    assert np.allclose(image.affine, own.affine, atol=1e-4)
    assert image.get_data_dtype() == np.uint8
    assert not image.header.extensions
    assert np.isnan(image.header["scl_slope"])  # as nibabel shows 1
    if kind != "mgz":
        for field in ("qform_code", "sform_code", "xyzt_units"):
            assert image.header[field] == own.header[field], field
        assert np.array_equal(image.header["pixdim"][:4], own.header["pixdim"][:4])
        assert image.header["cal_max"] == 0
    assert type(image).__name__ == ("Nifti2Image" if kind == "nifti2" else "Nifti1Image")
    assert np.asarray(image.dataobj).max() <= 3


def test_frames_of_a_time_series_get_a_map_each(trial: Trial, tmp_path: Path) -> None:
    image = loaded(trial.images[2])
    data = np.asarray(image.dataobj)
    save(np.stack([data, data[::-1]], -1), image.affine, tmp_path / "series.nii.gz")
    save(data, image.affine, tmp_path / "one.nii.gz")
    for name in ("series", "one"):
        run_predict(trial.run, tmp_path / f"{name}.nii.gz", tmp_path / name)
    names = sorted(file.name for file in (tmp_path / "series").glob("*.nii.gz"))
    assert names == ["series--t000.nii.gz", "series--t001.nii.gz"]
    first = voxels(tmp_path / "series" / names[0])
    assert first.ndim == 3
    assert np.array_equal(first, voxels(tmp_path / "one" / "one.nii.gz"))


@pytest.fixture(scope="module")
def four(trial: Trial, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A run on four channels, its corpus, and its files CASE_0000 .. CASE_0003."""
    folder = tmp_path_factory.mktemp("four")
    scans = folder / "scans"
    scans.mkdir()
    rows = ["image_0,image_1,image_2,image_3,label,subject"]
    for image in trial.images:
        name = image.name.split(".")[0]
        source, parts = loaded(image), []
        for channel in range(4):
            part = scans / f"{name}_{channel:04d}.nii.gz"
            data = np.roll(np.asarray(source.dataobj), channel, axis=0)
            nib.save(nib.Nifti1Image(data, source.affine, source.header), part)
            parts.append(str(part))
        rows.append(",".join([*parts, str(trial.nifti / "labelsTr" / image.name), name]))
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    found = discover(str(folder / "table.csv"))
    convert(found.sources, folder / "corpus.zarr", Conversion(), workers=1)
    vit = ViTConfig((16, 16, 16), (8, 8, 8), channels=4, width=12, depth=2, heads=2)
    run_finetune(replace(small_finetune(folder / "corpus.zarr"), vit=vit, steps=2), folder / "run")
    return folder / "run", folder / "corpus.zarr", scans


def test_scans_of_four_channels(
    four: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, corpus, scans = four
    assert run_predict(run, corpus, tmp_path / "a").n_done == 8
    assert command([str(run), str(scans), str(tmp_path / "b")]).exit_code == 0
    assert "8 scans of 4 channels, by names that end in _0000" in capsys.readouterr().out
    for file in sorted((tmp_path / "a").glob("*.nii.gz")):
        other = tmp_path / "b" / file.name.replace("_0000", "")  # the table called it by its first
        assert np.array_equal(voxels(file), voxels(other))
        assert np.array_equal(loaded(other).affine, loaded(scans / file.name).affine)
    fewer = tmp_path / "fewer"
    shutil.copytree(scans, fewer)
    next(fewer.glob("*_0002.nii.gz")).unlink()
    assert command([str(run), str(fewer), str(tmp_path / "c")]).exit_code == 3
    told = capsys.readouterr().out
    assert "has the channels _0000, _0001, _0003, and the network takes _0000 to _0003" in told


def test_channels_by_words_of_file_names(
    four: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _, scans = four
    words = ("t1", "t1ce", "t2", "flair")
    named = tmp_path / "named"
    named.mkdir()
    for channel, word in enumerate(words):
        shutil.copy(next(scans.glob(f"*0_000{channel}.nii.gz")), named / f"case-{word}.nii.gz")
    arguments = [str(run), str(named)]
    assert command([*arguments, str(tmp_path / "a")]).exit_code == 3
    assert "has 1 channels, and the network was trained on 4" in capsys.readouterr().out
    assert command([*arguments, str(tmp_path / "b"), "--channels", *words]).exit_code == 0
    run_known = tmp_path / "run"
    shutil.copytree(run, run_known)
    told = read_json(run_known / TRAINED)
    told["scans"]["channel_names"] = ["T1", "T1ce", "T2", "FLAIR"]
    write_json(run_known / TRAINED, told)
    capsys.readouterr()
    assert command([str(run_known), str(named), str(tmp_path / "c")]).exit_code == 0
    assert "channels are told by the words T1, T1ce, T2, FLAIR" in capsys.readouterr().out
    (one,), (two,) = ((tmp_path / n).glob("*.nii.gz") for n in ("b", "c"))
    assert np.array_equal(voxels(one), voxels(two))


def test_a_corpus_made_otherwise_is_remarked(trial: Trial, tmp_path: Path) -> None:
    conversion = Conversion(spacing_mm=(2.0, 2.0, 2.0))
    convert(discover(str(trial.nifti)).sources[:1], tmp_path / "other.zarr", conversion, workers=1)
    report = run_predict(trial.run, tmp_path / "other.zarr", tmp_path / "out")
    assert any("spacing_mm (2.0, 2.0, 2.0), not None" in doubt for doubt in report.doubts)
    assert report.n_done == 1
    (file,) = (tmp_path / "out").glob("*.nii.gz")
    own = next(image for image in trial.images if image.name == file.name)
    assert loaded(file).shape == loaded(own).shape


def test_a_source_that_was_replaced_lends_no_header(trial: Trial, tmp_path: Path) -> None:
    scan = tmp_path / "scan.nii.gz"
    shutil.copy(trial.images[0], scan)
    convert(discover(str(scan)).sources, tmp_path / "corpus.zarr", Conversion(), workers=1)
    record = Corpus.open(tmp_path / "corpus.zarr").records[0]
    image = loaded(trial.images[0])
    save(np.asarray(image.dataobj), image.affine + np.eye(4) * 0.5, scan)
    run_predict(trial.run, tmp_path / "corpus.zarr", tmp_path / "out")
    found = loaded(tmp_path / "out" / "scan.nii.gz")
    x, y, z = record.original_shape
    wanted = Grid((z, y, x), np.array(record.original_affine))
    assert np.allclose(found.affine, wanted.affine, atol=1e-5)
