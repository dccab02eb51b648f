"""A study put away is small, draws the same report, goes on, and replaces nothing it has not."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from small_finetune import make_labelled_corpus
from small_study import small_study

from mim3d.bench.keep import main
from mim3d.bench.reports import figures
from mim3d.engine.analysis.figures import figures_of
from mim3d.engine.report.report import build_report
from mim3d.engine.runs.files import read_jsonl, write_json
from mim3d.engine.study.config import StudyConfig
from mim3d.engine.study.run import run_study

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> StudyConfig:
    plain = small_study(make_labelled_corpus(tmp_path_factory.mktemp("phantom")))
    plain = replace(plain, arms=("scratch", "mae"), seeds=(0, 1))
    return replace(plain, pretrain=replace(plain.pretrain, crops=16, per_seed=False))


@pytest.fixture(scope="module")
def study(config: StudyConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "study"
    run_study(config, out)
    build_report(out)
    return out


def test_the_report_and_the_study_go_on_from_what_is_kept(
    config: StudyConfig, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept"
    assert main([str(study), str(kept), "--cases"]) == 0
    assert sorted(file.name for file in kept.iterdir()) == [
        "cases.jsonl.gz",
        "plan.json",
        "pretraining.json",
        "results.jsonl.gz",
        "study.json",
    ]
    first = {file.name: file.read_bytes() for file in kept.iterdir()}
    assert main([str(study), str(kept), "--cases"]) == 0  # again: the same bytes
    assert {file.name: file.read_bytes() for file in kept.iterdir()} == first

    of_study = figures_of(study / "report.html") | {"report": None}
    assert figures(kept, tmp_path / "drawn") == of_study

    again = tmp_path / "again"
    shutil.copytree(kept, again)
    run_study(config, again)
    assert "4 runs are taken from" in capsys.readouterr().out
    plain = [{k: v for k, v in row.items() if k != "pictures"} for row in rows_of(study)]
    assert rows_of(again) == plain


def rows_of(folder: Path) -> list[dict[str, object]]:
    return read_jsonl(folder / "results.jsonl") + read_jsonl(folder / "cases.jsonl")


def test_what_is_kept_is_not_replaced_by_less_or_by_another_study(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, less = tmp_path / "kept", tmp_path / "less"
    assert main([str(study), str(kept)]) == 0
    assert not (kept / "cases.jsonl.gz").exists()
    before = {file.name: file.read_bytes() for file in kept.iterdir()}

    less.mkdir()
    for file in study.glob("*.json"):
        shutil.copy(file, less)
    rows = (study / "results.jsonl").read_text().splitlines()
    some = [line for line in rows if '"seed": 1' not in line]
    assert 0 < len(some) < len(rows)
    (less / "results.jsonl").write_text("\n".join(some) + "\n")
    assert main([str(less), str(kept)]) == 2
    assert f"{kept} has 2 runs that {less} has not: name another folder" in capsys.readouterr().err

    shutil.copy(study / "results.jsonl", less)
    write_json(less / "study.json", {"name": "another"})
    assert main([str(less), str(kept)]) == 2
    assert "has study small, not another: name another folder" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in kept.iterdir()} == before
    assert main([str(tmp_path / "none"), str(tmp_path / "x")]) == 2
    assert "holds no results of a study" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
