"""Scores of predictions: those of validation, by files of many names, told where there are none."""

import csv
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_trial import Trial, loaded, save, voxels

from mim3d.engine.commands.weights.predict import main as command
from mim3d.engine.errors import ConfigError
from mim3d.engine.finetune import dice
from mim3d.engine.predict import scores as module
from mim3d.engine.predict.predict import run_predict
from mim3d.engine.runs.files import read_json


def table(folder: Path) -> dict[tuple[str, int], tuple[float, float]]:
    with (folder / "scores.csv").open(newline="") as stream:
        return {
            (row["id"], int(row["class"])): tuple(
                float(row[name] or "nan") for name in ("dice", "hd95_mm")
            )
            for row in csv.DictReader(stream)
        }  # pyright: ignore[reportReturnType]


def test_held_out_volumes_have_the_scores_of_validation(
    trial: Trial, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = read_json(trial.run / "result.json")
    names = result["rows"][-1]["class_names"]
    for source in (trial.corpus, trial.nifti):
        out = tmp_path / source.name
        outcome = command([str(trial.run), str(source), str(out), "--labels", "own"])
        assert outcome.exit_code == 0
        assert outcome.figures["scored"] == 8
        told = capsys.readouterr().out
        assert "Dice" in told
        assert all(name in told for name in names)
        found = table(out)
        for case in result["cases"]:
            for number, (score, far) in enumerate(
                zip(case["dice"], case["hd95"], strict=True), start=1
            ):
                mine = found[case["volume"], number]
                for one, two in zip(mine, (score, far), strict=True):
                    assert one == pytest.approx(math.nan if two is None else two, 1e-5, nan_ok=True)


def test_a_folder_of_labels_is_matched_by_names_and_scored_once(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, out = tmp_path / "labels", tmp_path / "out"
    shutil.copytree(trial.nifti / "labelsTr", labels)
    first = run_predict(trial.run, trial.nifti, out, labels=str(labels))
    assert first.scores["scored"] == 8
    assert first.table == out / "scores.csv"
    calls = []
    plain = module.hd95_by_class
    monkeypatch.setattr(module, "hd95_by_class", lambda *a: calls.append(1) or plain(*a))
    again = run_predict(trial.run, trial.nifti, out, labels=str(labels))
    assert not calls
    assert str(again.scores) == str(first.scores)
    some = sorted(labels.iterdir())[0]
    image = loaded(some)
    save(np.asarray(image.dataobj)[::-1].copy(), image.affine, some)
    changed = run_predict(trial.run, trial.nifti, out, labels=str(labels))
    assert len(calls) == 1
    assert str(changed.scores) != str(first.scores)


def test_a_corpus_whose_label_files_are_gone_is_scored_by_what_it_keeps(
    trial: Trial, tmp_path: Path
) -> None:
    kept = run_predict(trial.run, trial.corpus, tmp_path / "a", labels="own")
    moved = trial.nifti.rename(trial.nifti.with_name("elsewhere"))
    try:
        gone = run_predict(trial.run, trial.corpus, tmp_path / "b", labels="own")
    finally:
        moved.rename(trial.nifti)
    assert gone.scores == kept.scores
    for file in (tmp_path / "a").glob("*.nii.gz"):
        other = loaded(tmp_path / "b" / file.name)
        assert np.array_equal(voxels(file), np.asarray(other.dataobj))
        assert np.allclose(loaded(file).affine, other.affine)


def test_what_cannot_be_scored_is_told(
    trial: Trial, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, out = tmp_path / "labels", tmp_path / "out"
    shutil.copytree(trial.nifti / "labelsTr", labels)
    lost, foreign, shifted, twice = sorted(labels.iterdir())[:4]
    lost.unlink()
    image = loaded(foreign)
    save(np.full(image.shape, 9, np.uint8), image.affine, foreign)
    image = loaded(shifted)
    save(np.asarray(image.dataobj)[1:], image.affine, shifted)
    shutil.copytree(labels, labels / "more", ignore=lambda _, names: set(names) - {twice.name})
    outcome = command([str(trial.run), str(trial.nifti), str(out), "--labels", str(labels)])
    assert outcome.exit_code == 3
    assert outcome.figures["scored"] == 4
    told = capsys.readouterr().out
    name = lost.name.split(".")[0]
    assert f"has no label of it: name its file {name}.nii.gz" in told
    assert "has class 9, and the network knows 0 to 3" in told
    assert "not on the grid of" in told
    assert "several label files of it" in told
    shutil.copy(trial.nifti / "labelsTr" / lost.name, labels / f"{name}.nii.gz")
    shutil.rmtree(labels / "more")
    command([str(trial.run), str(trial.nifti), str(out), "--labels", str(labels)])
    told = capsys.readouterr().out
    assert "has no label of it" not in told
    assert "several" not in told
    with pytest.raises(ConfigError, match="no such folder or file"):
        run_predict(trial.run, trial.nifti, out, labels=str(tmp_path / "nowhere"))
    (tmp_path / "bare").mkdir()
    with pytest.raises(ConfigError, match="holds no label files"):
        run_predict(trial.run, trial.nifti, out, labels=str(tmp_path / "bare"))


def test_scans_without_labels_of_their_own_say_so(trial: Trial, tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    shutil.copytree(trial.nifti / "imagesTr", scans)
    report = run_predict(trial.run, scans, tmp_path / "out", labels="own")
    unscored = report.scores["unscored"]
    assert len(unscored) == 8
    assert "name the folder of label files by --labels" in unscored[0]["detail"]
    labels = str(trial.nifti / "labelsTr")
    assert run_predict(trial.run, scans, tmp_path / "out", labels=labels).scores["scored"] == 8


def test_untold_voxels_and_masks_of_255(trial: Trial, tmp_path: Path) -> None:
    image = trial.images[0]
    run_predict(trial.run, image, tmp_path / "out")
    (file,) = (tmp_path / "out").glob("*.nii.gz")
    found, own = voxels(file), loaded(file)
    true = found.copy()
    true[:5] = 255  # untold; right everywhere else
    labels = tmp_path / "labels"
    labels.mkdir()
    save(true, own.affine, labels / file.name)
    scores = run_predict(trial.run, image, tmp_path / "out", labels=str(labels)).scores
    assert set(scores["dice_by_class"].values()) <= {1.0}
    assert scores["dice"] == 1.0
    mask = np.where(found == 1, 255, 0).astype(np.uint8)
    save(mask, own.affine, labels / file.name)
    scores = run_predict(trial.run, image, tmp_path / "out", labels=str(labels)).scores
    whole = dice.dice_by_class(found, (mask == 255).astype(np.uint8), 4)
    assert list(scores["dice_by_class"].values()) == [
        pytest.approx(each, nan_ok=True) for each in whole
    ]
