"""Results are of the pretraining that was asked for: others are left out, told, and mended."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from small_finetune import VIT, make_labelled_corpus
from small_study import small_simclr, small_study

from mim3d.engine.errors import ConfigError
from mim3d.engine.models.vit import ViT3D
from mim3d.engine.report.report import build_report
from mim3d.engine.runs.encoder_file import save_encoder
from mim3d.engine.runs.files import read_json, read_jsonl
from mim3d.engine.study.config import StudyConfig
from mim3d.engine.study.gather import gather
from mim3d.engine.study.origin import ORIGIN, keep_origin
from mim3d.engine.study.run import run_study


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> StudyConfig:
    plain = small_study(make_labelled_corpus(tmp_path_factory.mktemp("phantom")))
    return replace(
        plain,
        arms=("scratch", "simclr"),
        pretrain=replace(plain.pretrain, crops=16, simclr=small_simclr(0.5), per_seed=False),
        finetune=replace(plain.finetune, steps=1),
    )


def arms(folder: Path) -> set[str]:
    return {row["arm"] for row in read_jsonl(folder / "results.jsonl")}


def notes(folder: Path) -> str:
    return "\n".join(read_json(folder / "study.json")["notes"])


@pytest.mark.slow
def test_a_refused_pretraining_is_not_reported_under_new_settings(
    config: StudyConfig, tmp_path: Path
) -> None:
    run_study(config, tmp_path)
    first = read_jsonl(tmp_path / "results.jsonl")
    (pretraining,) = read_json(tmp_path / "pretraining.json")
    (hashed,) = {row["pretraining_sha256"] for row in first if row["arm"] == "simclr"}
    assert pretraining["sha256"].startswith(hashed)
    assert not any("pretraining_sha256" in row for row in first if row["arm"] == "scratch")

    other = replace(config, pretrain=replace(config.pretrain, simclr=small_simclr(0.1)))
    again = run_study(other, tmp_path)
    assert list(again.failed) == ["pretraining simclr"]
    assert arms(tmp_path) == {"scratch"}
    assert read_json(tmp_path / "pretraining.json") == []
    assert "1 result of simclr left out: started from a pretraining of other" in notes(tmp_path)
    assert "left out" in build_report(tmp_path).read_text()

    shutil.rmtree(tmp_path / "pretrain" / "simclr")  # half of what the note tells to delete
    assert run_study(other, tmp_path).failed == {}
    assert arms(tmp_path) == {"scratch"}
    assert "left out" in notes(tmp_path)
    (cell,) = (tmp_path / "cells").glob("simclr_*")
    assert str(cell) in notes(tmp_path)
    shutil.rmtree(cell)
    assert run_study(other, tmp_path).failed == {}
    assert arms(tmp_path) == {"scratch", "simclr"}
    assert "left out" not in notes(tmp_path)
    assert run_study(config, tmp_path).failed.keys() == {"pretraining simclr"}  # the way back
    assert arms(tmp_path) == {"scratch"}


@pytest.mark.slow
def test_cells_of_earlier_versions_are_held_against_the_pretraining_that_lies_there(
    config: StudyConfig, tmp_path: Path
) -> None:
    run_study(config, tmp_path)
    (cell,) = (tmp_path / "cells").glob("simclr_*")
    (cell / ORIGIN).unlink()
    run_study(config, tmp_path)
    assert arms(tmp_path) == {"scratch", "simclr"}
    other = replace(config, pretrain=replace(config.pretrain, crops=24))
    run_study(other, tmp_path)
    assert arms(tmp_path) == {"scratch"}
    assert "holds a pretraining of other settings" in notes(tmp_path)


@pytest.mark.slow
def test_an_encoder_given_by_path_that_was_exchanged(config: StudyConfig, tmp_path: Path) -> None:
    given = encoder(tmp_path / "given", 0.5)
    config = replace(config, arms=("scratch", f"mine={given}"))
    run_study(config, tmp_path / "study")
    assert arms(tmp_path / "study") == {"scratch", "mine"}
    encoder(given, 2.0)
    run_study(config, tmp_path / "study")
    assert arms(tmp_path / "study") == {"scratch"}
    assert "started from another encoder than" in notes(tmp_path / "study")
    shutil.rmtree(given)  # nothing to hold it against: the cell's own record stands
    assert gather(tmp_path / "study")
    assert arms(tmp_path / "study") == {"scratch", "mine"}


def encoder(folder: Path, scale: float) -> Path:
    folder.mkdir(exist_ok=True)
    weights = {name: scale * tensor for name, tensor in ViT3D(VIT).state_dict().items()}
    save_encoder(folder, VIT, weights, {"method": "mae"})
    return folder


def test_a_run_stopped_half_way_does_not_go_on_with_another_encoder(tmp_path: Path) -> None:
    given, cell = str(encoder(tmp_path / "given", 0.5)), tmp_path / "cell"
    keep_origin(given, cell)
    keep_origin(given, cell)
    encoder(Path(given), 2.0)
    with pytest.raises(ConfigError, match=f"delete {cell}"):
        keep_origin(given, cell)
    shutil.rmtree(cell)
    keep_origin(given, cell)
    keep_origin("", tmp_path / "scratch")
    assert not (tmp_path / "scratch").exists()
