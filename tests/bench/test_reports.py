"""What results/ keeps: small, without reports, and enough to draw each report again."""

import html
from pathlib import Path

import pytest

from mim3d.bench.reports import figures, main

RESULTS = Path(__file__).resolve().parents[2] / "bench/results"
STUDIES = sorted(file.parent for file in RESULTS.rglob("study.json"))


def test_results_are_small_and_hold_no_report() -> None:
    files = [file for file in RESULTS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 5 << 20
    assert not [file for file in files if file.suffix == ".html"]
    assert not [file for file in files if file.stat().st_size > 256 << 10]


def test_a_report_is_drawn_again(tmp_path, capsys) -> None:
    kept = RESULTS / "2026-11-25-hippocampus-ten-seeds"
    assert main([str(kept), str(tmp_path / "out")]) == 0
    page = html.unescape((tmp_path / "out/report.html").read_text())
    assert "1.20× to 90 % of scratch" in page
    assert str(tmp_path / "out/report.html") in capsys.readouterr().out


@pytest.mark.parametrize("kept", STUDIES, ids=lambda kept: str(kept.relative_to(RESULTS)))
def test_every_kept_study_gives_its_figures(kept: Path, tmp_path) -> None:
    assert figures(kept, tmp_path)["headline"]


def test_a_folder_without_a_study_is_told_with_those_that_have_one(tmp_path, capsys) -> None:
    assert main([str(RESULTS / "2026-11-26-loader-cpu"), str(tmp_path)]) == 2
    told = capsys.readouterr().err
    named = told[told.index("name one of ") :].split(", ")[0].removeprefix("name one of ")
    assert main([named, str(tmp_path / "out")]) == 0
