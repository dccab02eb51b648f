"""The main job end to end, on a cohort with every kind of bad file among the good ones."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mim3d.dataio.corpus.names import own_file
from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.sources.phantom import make_cohort
from mim3d.engine.commands import demo
from mim3d.engine.commands.cli import main
from mim3d.engine.commands.demo import DemoConfig, convert_source, run_demo, study_config
from mim3d.engine.study.config import StudyConfig
from mim3d.engine.study.recipes import demo as demo_study


def tiny_study() -> StudyConfig:
    """The demo's study with next to no steps: the same parts, no learning."""
    study = demo_study()
    simclr = replace(study.pretrain.simclr, global_batch=8)
    return replace(
        study,
        pretrain=replace(study.pretrain, crops=64, simclr=simclr),
        finetune=replace(study.finetune, steps=2, eval_every=1, global_batch=2, warmup_steps=1),
    )


def spoil(folder: Path) -> dict[str, str]:
    """Add volumes to an MSD folder, now without dataset.json; names of the bad and their codes."""
    images, labels = folder / "imagesTr", folder / "labelsTr"
    good = images / "phantom_000.nii.gz"
    (images / "truncated.nii.gz").write_bytes(good.read_bytes()[:-2000])
    (images / "text.nii.gz").write_bytes(gzip.compress(b"this is no volume" * 100))
    (images / "other_grid.nii.gz").write_bytes(good.read_bytes())
    for name in ("truncated", "text"):
        label = (labels / "phantom_000.nii.gz").read_bytes()
        (labels / f"{name}.nii.gz").write_bytes(label)
    wrong = nib.Nifti1Image(np.ones((5, 6, 7), np.uint8), np.eye(4))
    nib.save(wrong, labels / "other_grid.nii.gz")
    small = nib.Nifti1Image(np.arange(6 * 9 * 12, dtype=np.int16).reshape(6, 9, 12), np.eye(4))
    nib.save(small, images / "small.nii.gz")
    nib.save(nib.Nifti1Image(np.ones((6, 9, 12), np.uint8), np.eye(4)), labels / "small.nii.gz")
    (folder / "dataset.json").unlink()
    return {"truncated": "truncated", "text": "not-nifti", "other_grid": "other-grid"}


@pytest.mark.slow
def test_the_main_job_survives_bad_files_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "demo_study", tiny_study)
    data = make_cohort(tmp_path / "data", 8)
    bad = spoil(data)
    out = tmp_path / "out"
    words = ["demo", "--data", str(data), "--out", str(out), "--seeds", "1"]
    assert main([*words, "--json", str(tmp_path / "f.json")]) == 3
    shown = capsys.readouterr().out
    quarantine = [json.loads(x) for x in own_file(out / "corpus.zarr", "quarantine.jsonl").open()]
    found = {Path(entry["path"]).name.partition(".")[0]: entry["code"] for entry in quarantine}
    assert found == bad
    assert all(name in shown for name in bad)
    records = {record.id: record for record in Corpus.open(out / "corpus.zarr").records}
    assert {"small", "phantom_007"} <= records.keys()
    # A label on another grid is left out; its image, which is sound, still pretrains.
    assert set(bad) & records.keys() == {"other_grid"}
    assert not records["other_grid"].labels
    report = (out / "report.html").read_text()
    assert "SimCLR" in report
    assert 'src="http' not in report
    figures = json.loads((tmp_path / "f.json").read_text())
    assert figures["convert"]["n_quarantined"] == 3

    cells = sorted((out / "cells").glob("*/result.json"))
    assert len(cells) == 3
    before = [file.stat().st_mtime_ns for file in cells]
    assert main(words) == 3
    assert [file.stat().st_mtime_ns for file in cells] == before, "finished cells ran again"


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda folder: None, "not there"),
        (lambda folder: folder.mkdir(), "no NIfTI"),
        (lambda folder: (folder.mkdir(), (folder / "notes.txt").write_text("x")), "no NIfTI"),
    ],
    ids=["missing", "empty", "nothing fit"],
)
def test_data_that_is_none_is_told_in_one_line_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: object, word: str
) -> None:
    make(tmp_path / "data")  # type: ignore[operator]
    out = tmp_path / "out"
    assert main(["demo", "--data", str(tmp_path / "data"), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert word in error
    assert str(tmp_path / "data") in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_two_data_sets_never_share_a_folder(tmp_path: Path) -> None:
    data = make_cohort(tmp_path / "data", 8)
    demo.claim(DemoConfig(data=str(data), out=str(tmp_path / "out")), tmp_path / "out")
    with pytest.raises(Mim3dError, match="--out"):
        run_demo(DemoConfig(out=str(tmp_path / "out")))


def test_each_data_set_has_its_own_default_folder() -> None:
    assert DemoConfig().folder == Path("demo")
    assert DemoConfig(data="msd:Task04_Hippocampus").folder == Path("demo-msd-Task04_Hippocampus")
    assert DemoConfig(data="/a/b/scans/").folder == Path("demo-scans")


def test_a_corpus_without_labels_says_what_to_do(tmp_path: Path) -> None:
    data = make_cohort(tmp_path / "data", 8)
    demo.convert_source(str(data / "imagesTr"), tmp_path / "corpus.zarr")
    with pytest.raises(Mim3dError, match="labelsTr"):
        demo.only_label(Corpus.open(tmp_path / "corpus.zarr"))


@pytest.mark.parametrize(("subjects", "labels"), [(8, (1.0,)), (30, (16.0,))])
def test_few_labels_are_of_a_phantom_cohort_that_has_more(
    tmp_path: Path, subjects: int, labels: tuple[float, ...]
) -> None:
    cohort = str(make_cohort(tmp_path / "data", subjects, field_of_view_mm=16.0))
    convert_source(cohort, tmp_path / "c.zarr")
    assert study_config(DemoConfig(), tmp_path / "c.zarr").labels == labels
    assert study_config(DemoConfig(data=cohort), tmp_path / "c.zarr").labels == (1.0,)
