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
from mim3d.engine.runs.files import read_json, write_json


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


def test_the_subjects_that_were_trained_on_are_told_and_scored_apart(
    trial: Trial, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subjects = read_json(trial.run / "result.json")["subjects"]
    words = [str(trial.run), str(trial.corpus), str(tmp_path / "out"), "--labels", "own"]
    figures = command(words).figures
    known, others = figures["trained_on"], figures["others"]
    assert known["subjects"] == sorted(subjects["train"])
    assert others["subjects"] == sorted([*subjects["validation"], *subjects["test"]])
    rows = table(tmp_path / "out")
    with (tmp_path / "out" / "scores.csv").open(newline="") as stream:
        split = {row["id"]: (row["subject"], row["split"]) for row in csv.DictReader(stream)}
    for part in (known, others):
        means = [
            dice.mean_of([rows[id, k][0] for k in (1, 2, 3)])
            for id, (subject, _) in split.items()
            if subject in part["subjects"]
        ]
        assert part["dice"] == pytest.approx(dice.mean_of(means), 1e-5)
    for name in ("train", "validation", "test"):
        assert {s for s, in_ in split.values() if in_ == name} == set(subjects[name])
    told = capsys.readouterr().out
    for part, title in ((known, "trained on, by name"), (others, "not trained on")):
        n = part["scored"]
        assert n == len(part["subjects"]) > 1
        assert f"{title}: dice {part['dice']:.4f} of {n} volumes of {n} subjects (such" in told


def test_a_run_that_tells_no_subjects_or_others_says_so(
    trial: Trial, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, scan = tmp_path / "run", tmp_path / "somebody.nii.gz"
    shutil.copytree(trial.run, run)
    shutil.copy(trial.images[0], scan)
    label = str(trial.nifti / "labelsTr" / trial.images[0].name)
    words = [str(run), str(scan), str(tmp_path / "out"), "--labels", label]
    command(words)
    told = capsys.readouterr().out
    assert "none of the scored (such as somebody) has the name of a subject that" in told
    result = read_json(run / "result.json")
    write_json(run / "result.json", {**result, "subjects": {}})
    figures = command(words).figures
    assert "the run does not tell whom it was trained on" in capsys.readouterr().out
    assert "trained_on" not in figures


def test_no_score_is_told_with_its_reason(
    trial: Trial, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans = tmp_path / "scans"
    shutil.copytree(trial.nifti / "imagesTr", scans)
    words = [str(trial.run), str(scans), str(tmp_path / "out"), "--labels"]
    assert command([*words, "own"]).exit_code == 3
    told = capsys.readouterr().out
    assert "no volume was scored: 8 scans have no true label that can be used" in told
    assert "its source tells no label: name the folder of label files by --labels" in told
    assert "nan" not in told
    assert command([*words, str(trial.nifti / "labelsTr")]).exit_code == 0
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(b"x" * 400)
    capsys.readouterr()
    words = [str(trial.run), str(bad), str(tmp_path / "none"), "--labels", "own"]
    assert command(words).exit_code == 3
    assert "no volume was scored: no scan was done" in capsys.readouterr().out


def test_classes_that_nobody_has_are_no_mean(
    trial: Trial, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = trial.images[0]
    run_predict(trial.run, image, tmp_path / "out")
    (file,) = (tmp_path / "out").glob("*.nii.gz")
    (tmp_path / "labels").mkdir()
    own = loaded(image)
    save(np.full(own.shape, 255, np.uint8), own.affine, tmp_path / "labels" / file.name)
    run = tmp_path / "run"
    shutil.copytree(trial.run, run)
    write_json(run / "trained.json", {**read_json(run / "trained.json"), "ignore": 255})
    command([str(run), str(image), str(tmp_path / "out"), "--labels", str(tmp_path / "labels")])
    told = capsys.readouterr().out
    assert "mean Dice - (none has" in told
    assert "in its label or its map) of 1 volumes" in told
