"""Classes and numbers of whole volumes: tables that are not as they should be, weights, scores."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_finetune import make_labelled_corpus, small_finetune

from mim3d.dataio.reader.corpus import Corpus
from mim3d.engine.commands.cli import main
from mim3d.engine.errors import ConfigError
from mim3d.engine.finetune.classification import (
    auroc,
    balanced_accuracy,
    balanced_weights,
    one_class_notes,
    recalls,
)
from mim3d.engine.finetune.config import identity
from mim3d.engine.finetune.finetune import make_task, run_finetune
from mim3d.engine.finetune.regression import r2, remarks
from mim3d.engine.finetune.splits import SplitConfig
from mim3d.engine.finetune.targets import read_targets, read_values
from mim3d.engine.finetune.volume_task import windows
from mim3d.engine.runs.files import read_json


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_labelled_corpus(tmp_path_factory.mktemp("phantom"))


def written(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    file = folder / "t.csv"
    file.write_text(text, encoding=encoding)
    return file


@pytest.mark.parametrize(
    ("text", "encoding", "note"),
    [
        ("subject,target\na,x\nb,y\n", "utf-8-sig", ""),
        ("Subject;Target;site\na;x;1\nb;y;2\n", "utf-8", ""),
        ("subject\ttarget\r\na\tx\r\nb\ty\r\n", "utf-8", ""),
        ("subject, target\na , x\nb,y \n", "utf-8", "spaces around 2 entries of t.csv"),
        ("subject,target\na,x\nb,y\nc,\nd,N/A\n", "utf-8", "2 subjects of t.csv have no target: c"),
        ("subject,target\na,x\nb,y\nb,y\n\n", "utf-8", "1 rows of t.csv say again"),
        ("subject,target\na,x\nb,y\nc\n", "utf-8", "1 subjects of t.csv have no target: c"),
    ],
)
def test_a_table_is_mended_where_nothing_is_guessed_and_that_is_said(
    tmp_path: Path, text: str, encoding: str, note: str
) -> None:
    found = read_targets(written(tmp_path, text, encoding))
    assert found.by_subject == {"a": "x", "b": "y"}
    mended = [one for one in found.notes if "has one subject" not in one]
    assert len(mended) == bool(note)
    assert note in "".join(mended)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "id,class\na,1\n",
            "columns subject and target, once each, and rows; it has 'id', 'class'",
        ),
        ("", "it has nothing"),
        ("subject,target\n", "no subject has a target"),
        ("subject,target,target\na,x,y\n", "once each"),
        ("subject,target\na,1\nb,1\n", "two classes"),
        (
            "subject,target\na,x\nb,y\na,y\n",
            "'a' has target 'x' on line 2 and 'y' on line 4",
        ),
        ("subject,target\na,x\n,y\n", "line 3: target 'y' has no subject"),
        (
            "subject,target\na,CN\nb,cn\n",
            "'CN' and 'cn' differ in capitals or spaces alone",
        ),
        (
            "subject,target\n" + "".join(f"s{i},{60 + 1.7 * i}\n" for i in range(20)),
            "20 different numbers for 20 subjects are no classes: set --head regress",
        ),
    ],
)
def test_a_table_that_cannot_be_right_is_refused(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as refused:
        read_targets(written(tmp_path, text))
    assert "t.csv" in str(refused.value)


def test_a_table_of_another_encoding_or_none_is_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="save it as CSV UTF-8"):
        read_targets(written(tmp_path, "subject,target\na,gesund\nb,erkränkt\n", "latin-1"))
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_targets(tmp_path / "none.csv")


def test_few_numbers_are_classes_in_the_order_of_their_size(tmp_path: Path) -> None:
    """Such as a clinical dementia rating."""
    rows = "".join(f"s{i},{(0, 0.5, 10, 2)[i % 4]}\n" for i in range(12))
    assert read_targets(written(tmp_path, "subject,target\n" + rows)).names == [
        "0",
        "0.5",
        "2",
        "10",
    ]


def test_numbers_are_read_and_words_among_them_refused(tmp_path: Path) -> None:
    found = read_values(written(tmp_path, "subject,target\na,71.5\nb, 60\nc,\nd,-3e1\n"))
    assert found.by_subject == {"a": 71.5, "b": 60.0, "d": -30.0}
    assert len(found.notes) == 2
    assert found.bins() == {"d": "quantile 1", "b": "quantile 2", "a": "quantile 3"}
    with pytest.raises(ConfigError, match=r"line 2: target '71,5' of subject 'a' is no number"):
        read_values(written(tmp_path, 'subject,target\na,"71,5"\nb,60\n'))
    with pytest.raises(ConfigError, match="nothing to learn"):
        read_values(written(tmp_path, "subject,target\na,60\nb,60.0\n"))


def test_classification_scores_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.6, 0.4], [0.1, 0.9]])
    targets = np.array([0, 0, 1, 1])
    assert auroc(probabilities, targets) == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    assert balanced_accuracy(np.array([0, 0, 0, 1]), targets) == pytest.approx(0.75)
    assert balanced_accuracy(np.array([0, 0, 0]), np.array([0, 0, 1])) == pytest.approx(0.5)


def test_windows_cover_every_voxel() -> None:
    image = torch.arange(2 * 5 * 9 * 4, dtype=torch.float32).view(2, 5, 9, 4)
    crops = windows(image, (4, 4, 6))
    assert crops.shape == (6, 2, 4, 4, 6)
    assert set(image.flatten().tolist()) == set(crops.flatten().tolist())


def test_weights_are_inverse_to_frequency_and_one_on_average() -> None:
    weights = balanced_weights(torch.tensor([0, 0, 0, 1]), 3)
    assert weights.tolist() == pytest.approx([4 / 6, 2.0, 0.0])
    assert float((weights * torch.tensor([3, 1, 0])).sum()) == pytest.approx(4.0)


def test_one_class_for_all_is_remarked() -> None:
    predicted, targets = np.array([1, 1, 1, 1]), np.array([1, 1, 1, 0])
    (note,) = one_class_notes(predicted, targets, ("AD", "CN"))
    assert "ALL 4 VOLUMES ARE PREDICTED AS 'CN', which 75% of them are" in note
    assert not one_class_notes(predicted, np.array([1, 1, 1, 1]), ("AD", "CN"))
    assert not one_class_notes(np.array([1, 0, 1, 1]), targets, ("AD", "CN"))
    assert recalls(predicted, targets, 3) == [0.0, 1.0, None]


def test_numbers_are_scored_by_hand() -> None:
    targets = np.array([1.0, 2.0, 3.0])
    assert r2(targets, targets) == 1.0
    assert r2(np.full(3, 2.0), targets) == 0.0
    assert np.isnan(r2(targets, np.ones(3)))
    assert remarks(2.0, 1.5)[0].startswith("THE MEAN OF THE TRAINING SUBJECTS PREDICTS AS WELL")
    assert remarks(1.0, 1.5) == ()


def ages(corpus: Path, folder: Path) -> Path:
    """Numbers as Excel writes them: a byte-order mark, semicolons; one is missing."""
    subjects = sorted({record.subject for record in Corpus.open(corpus).records})
    rows = [f"{s};{40 + 7.25 * i if i else ''}" for i, s in enumerate(subjects)]
    file = folder / "ages.csv"
    file.write_text("\n".join(["subject;target", *rows]) + "\n", encoding="utf-8-sig")
    return file


def test_ages_are_learned_from_a_table_by_the_command(corpus: Path, tmp_path: Path) -> None:
    words = [
        *("finetune", "demo", "--data.corpus", str(corpus), "--head", "regress"),
        *("--data.targets", str(ages(corpus, tmp_path)), "--out", str(tmp_path / "run")),
        *("--data.split.validation", "0.3", "--vit.crop-size", "16", "16", "16", "--steps", "2"),
        *("--vit.width", "12", "--vit.depth", "2", "--vit.heads", "2", "--eval-every", "1"),
        *("--device", "cpu"),
    ]
    assert main(words) == 0
    result = read_json(tmp_path / "run" / "result.json")
    last = result["rows"][-1]
    assert last["score"] <= 1.0
    assert {"mae", "rmse", "mae_of_mean"} <= last.keys()
    assert all(40 < case["target"] < 100 for case in result["cases"])
    # An untrained head predicts near the training mean, in years.
    assert all(20 < case["predicted"] < 120 for case in result["cases"])
    assert any("1 subjects of ages.csv have no target" in note for note in result["notes"])


def test_the_scale_of_numbers_is_the_training_subjects(corpus: Path, tmp_path: Path) -> None:
    file = ages(corpus, tmp_path)
    base = small_finetune(corpus)
    config = replace(base, head="regress", data=replace(base.data, targets=str(file)))
    train = sorted(read_values(file).by_subject)[:3]
    task = make_task(config, Corpus.open(corpus), None, torch.device("cpu"), train)
    known = torch.tensor([read_values(file).by_subject[subject] for subject in train])
    assert float(task.net.get_buffer("target_mean")) == pytest.approx(float(known.mean()))
    assert float(task.net.get_buffer("target_std")) == pytest.approx(float(known.std(correction=0)))
    assert len(task.volumes(sorted(read_values(file).by_subject))) == 7


def test_balanced_weights_train_and_belong_to_a_run(corpus: Path, tmp_path: Path) -> None:
    config = small_finetune(corpus, head="classify", steps=2)
    weighted = replace(config, class_weights="balanced")
    assert "class_weights" not in identity(config)
    assert identity(weighted)["class_weights"] == "balanced"
    result = run_finetune(weighted, tmp_path / "run")
    assert any(note.startswith("subjects by class (train, validation") for note in result.notes)
    with pytest.raises(ConfigError, match="class_weights balanced, not None"):
        run_finetune(config, tmp_path / "run")
    with pytest.raises(ConfigError, match="class_weights balanced does not count with head unetr"):
        replace(config, head="unetr", class_weights="balanced")


def test_a_split_that_is_not_stratified_is_that_of_earlier_versions(corpus: Path) -> None:
    config = small_finetune(corpus, head="classify")
    assert identity(config)["data"]["split"]["stratify"]
    plain = replace(config.data, split=SplitConfig(0.3, 0.2, stratify=False))
    assert "stratify" not in identity(replace(config, data=plain))["data"]["split"]
    assert "stratify" not in identity(small_finetune(corpus))["data"]["split"]


def test_a_table_of_other_names_is_told_both(corpus: Path, tmp_path: Path) -> None:
    rows = "".join(f"{i},{'xy'[i % 2]}\n" for i in range(8))
    file = written(tmp_path, "subject,target\n" + rows)
    config = small_finetune(corpus, head="classify")
    config = replace(config, data=replace(config.data, targets=str(file)))
    with pytest.raises(
        ConfigError, match=r"0 subjects with a target .* \(0, 1, 2 and so on there, "
    ):
        run_finetune(config, tmp_path / "run")
