"""Whose each label file is: by place, then by name; what may be either's is told."""

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_trial import Trial, loaded, save

from mim3d.engine.commands.weights.predict import main as command
from mim3d.engine.errors import ConfigError
from mim3d.engine.predict.label_files import LabelFile, matched
from mim3d.engine.predict.scans import Scan


def pairs(labels: list[str], scans: list[str], ids: tuple[str, ...] = ()) -> dict[str, str]:
    """The label of each scan below /s; a problem stands in brackets."""
    files = [LabelFile(f"/l/{name}", tuple(name.split("/")[:-1])) for name in labels]
    names = ids or tuple(name.split(".")[0].replace("/", "_") for name in scans)
    made = [Scan(id, id, (f"/s/{name}",), "", {}) for id, name in zip(names, scans, strict=True)]
    found = matched(files, "/l", made, "/s")
    told = {scan.id: f"[{found.problems.get(scan.id, '')}]" for scan in made}
    return {**told, **{id: path.removeprefix("/l/") for id, path in found.files.items()}}


def test_the_place_decides_before_the_name() -> None:
    both = ["a/scan.nii.gz", "b/scan.nii.gz"]
    assert pairs(both, both) == {"a_scan": both[0], "b_scan": both[1]}
    deeper = [f"x/{name}" for name in both]
    assert pairs(deeper, both) == {"a_scan": deeper[0], "b_scan": deeper[1]}
    assert pairs(["p.nii", "q/p.nii"], ["p.nii", "q/p.nii"]) == {"p": "p.nii", "q_p": "q/p.nii"}
    assert pairs(["a/scan.nii"], both) == {"a_scan": "a/scan.nii", "b_scan": "[]"}
    lacking = pairs(["a/p1.nii"], ["a/p1.nii", "b/p1.nii"])
    assert lacking["a_p1"] == "a/p1.nii"
    assert "has no label of it" in lacking["b_p1"]
    assert "a/p1.nii is that of /s/a/p1.nii, which it fits better" in lacking["b_p1"]
    assert pairs(["c/scan.nii"], ["a/scan.nii.gz"]) == {"a_scan": "[]"}
    assert pairs(["c/p1.nii"], ["a/p1.nii.gz"]) == {"a_p1": "c/p1.nii"}
    assert pairs(["p1.nii"], ["imagesTr/p1_0000.nii"], ("p1",)) == {"p1": "p1.nii"}


def test_one_label_is_of_one_scan_unless_names_say_one_case() -> None:
    both = ["a/scan.nii.gz", "b/scan.nii.gz"]
    assert all("has the name of 2 scans" in line for line in pairs(["scan.nii"], both).values())
    assert pairs(["a_scan.nii"], both) == {"a_scan": "a_scan.nii", "b_scan": "[]"}
    assert pairs(["a_b.nii"], ["a b.nii", "a_b.nii"], ("a_b--1", "a_b")) == {
        "a_b--1": "[]",
        "a_b": "a_b.nii",
    }
    assert pairs(["a b.nii", "a_b.nii"], ["a b.nii", "a_b.nii"], ("a_b--1", "a_b")) == {
        "a_b--1": "a b.nii",
        "a_b": "a_b.nii",
    }
    words = ["p1_t1.nii", "p1_t2.nii"]
    assert pairs(["p1.nii"], words) == {"p1_t1": "p1.nii", "p1_t2": "p1.nii"}
    split = pairs(["p1.nii"], ["a/p1_t1.nii", "b/p1_t2.nii"])
    assert all("has the name of 2 scans" in line for line in split.values())
    several = pairs(["c/p1.nii", "d/p1.nii"], ["a/p1.nii"])
    assert "several label files of it: /l/c/p1.nii, /l/d/p1.nii; leave one" in several["a_p1"]


def scored(folder: Path) -> dict[str, str]:
    with (folder / "scores.csv").open(newline="") as stream:
        return {row["id"]: row["label"] for row in csv.DictReader(stream)}


@pytest.fixture
def twins(trial: Trial, tmp_path: Path) -> Path:
    """SRC with a/scan.nii.gz and b/scan.nii.gz, and labels/scan.nii.gz beside it."""
    for folder, image in zip(("a", "b"), trial.images, strict=False):
        (tmp_path / "scans" / folder).mkdir(parents=True)
        shutil.copy(image, tmp_path / "scans" / folder / "scan.nii.gz")
    (tmp_path / "labels").mkdir()
    label = trial.nifti / "labelsTr" / trial.images[0].name
    shutil.copy(label, tmp_path / "labels" / "scan.nii.gz")
    return tmp_path


def test_a_label_of_two_scans_scores_neither_and_its_remedy_works(
    trial: Trial, twins: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(trial.run), str(twins / "scans"), str(twins / "out")]
    words += ["--labels", str(twins / "labels")]
    outcome = command(words)
    assert (outcome.exit_code, outcome.figures["scored"]) == (3, 0)
    assert "name it a_scan.nii.gz" in capsys.readouterr().out
    assert command([*words, "--ids", "a_scan"]).figures["scored"] == 0  # others are asked too
    label = twins / "labels" / "scan.nii.gz"
    label.rename(twins / "labels" / "a_scan.nii.gz")
    outcome = command(words)
    assert (outcome.exit_code, outcome.figures["scored"]) == (3, 1)
    assert scored(twins / "out") == {"a_scan": str(twins / "labels" / "a_scan.nii.gz")}


def test_an_image_of_one_case_is_scored_with_a_warning(
    trial: Trial, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for word in ("t1", "t2"):
        (tmp_path / "scans").mkdir(exist_ok=True)
        shutil.copy(trial.images[0], tmp_path / "scans" / f"p1_{word}.nii.gz")
    (tmp_path / "labels").mkdir()
    label = trial.nifti / "labelsTr" / trial.images[0].name
    shutil.copy(label, tmp_path / "labels" / "p1.nii.gz")
    words = [str(trial.run), str(tmp_path / "scans"), str(tmp_path / "out")]
    words += ["--labels", str(tmp_path / "labels")]
    outcome = command(words)
    assert (outcome.exit_code, outcome.figures["scored"]) == (3, 2)
    assert "p1.nii.gz scores 2 scans" in capsys.readouterr().out
    (tmp_path / "labels" / "p1.nii.gz").rename(tmp_path / "labels" / "p1_t1.nii.gz")
    assert command(words).figures["scored"] == 1
    assert "scores 2 scans" not in capsys.readouterr().out


def test_scans_and_predictions_are_no_labels(trial: Trial, tmp_path: Path) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    image = loaded(trial.images[0])
    save((np.asarray(image.dataobj) > 100).astype(np.uint8), image.affine, scans / "p.nii.gz")
    words: list[Any] = [str(trial.run), str(scans), str(out), "--labels"]
    command(words[:3])
    with pytest.raises(ConfigError, match="holds the scans themselves"):
        command([*words, str(scans)])
    with pytest.raises(ConfigError, match="holds label maps that were predicted"):
        command([*words, str(out)])


def test_the_one_label_file_named_is_the_one_scans(trial: Trial, tmp_path: Path) -> None:
    label = tmp_path / "truth.nii.gz"
    shutil.copy(trial.nifti / "labelsTr" / trial.images[0].name, label)
    words = [str(trial.run), str(trial.images[0]), str(tmp_path / "out"), "--labels", str(label)]
    outcome = command(words)
    assert (outcome.exit_code, outcome.figures["scored"]) == (0, 1)
    assert scored(tmp_path / "out") == {trial.images[0].name.split(".")[0]: str(label)}


@pytest.mark.parametrize(
    ("label", "doubted"),
    [
        ("p2/ct.nii.gz", "p2"),
        ("p10/ct.nii.gz", "p10"),
        ("sub-02/ct.nii.gz", "sub-02"),
        ("p2/anat/ct.nii.gz", "p2"),  # the last folder alone is the scan's
        ("site1/labelsTr/ct.nii.gz", ""),
        ("P1/anat/ct.nii.gz", ""),
        ("rater/p1/anat/ct.nii.gz", ""),
        ("p1_seg/ct.nii.gz", ""),
        ("p9/p1_anat_ct.nii.gz", ""),  # named as the map
    ],
)
def test_a_folder_of_another_person_is_doubted(label: str, doubted: str) -> None:
    file = LabelFile(f"/l/{label}", tuple(label.split("/")[:-1]))
    id = "p1_anat_ct" if label.endswith("_ct.nii.gz") else "ct"
    scan = Scan(id, "p1", ("/s/p1/anat/ct.nii.gz",), "", {})
    found = matched([file], "/l", [scan], "/s/p1")
    assert found.files == {scan.id: file.path}
    assert [f"lies in {doubted}," in line for line in found.doubts] == [True] * bool(doubted)


def test_the_label_of_another_person_is_told_and_its_remedy_works(
    trial: Trial, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, labels = tmp_path / "sc" / "p1" / "ct.nii.gz", tmp_path / "labels"
    for folder in (image.parent, labels / "p2", labels / "p1"):
        folder.mkdir(parents=True)
    shutil.copy(trial.images[0], image)
    label = labels / "p2" / "ct.nii.gz"
    shutil.copy(trial.nifti / "labelsTr" / trial.images[0].name, label)
    words = [str(trial.run), str(image.parent), str(tmp_path / "out"), "--labels", str(labels)]
    assert command(words).exit_code == 3
    said = capsys.readouterr().out
    assert f"{label} scores " in said
    assert f"If not, move it to {labels / 'p1'}" in said
    label.rename(labels / "p1" / "ct.nii.gz")
    outcome = command(words)
    assert (outcome.exit_code, outcome.figures["scored"]) == (0, 1)
