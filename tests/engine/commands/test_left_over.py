"""Volumes of a corpus that are of none of the sources given: gone, or left out of a table."""

import json
import re
from pathlib import Path

import pytest

from mim3d.dataio.corpus.manifest import read_manifest
from mim3d.engine.commands.cli import main

pytestmark = pytest.mark.usefixtures("place")


def converted(source: str, *more: str) -> int:
    return main(["convert", source, "c", "--workers", "1", *more])


def ids() -> list[str]:
    return sorted(record.id for record in read_manifest(Path("c")))


def labels(id: str) -> list[str]:
    (record,) = (each for each in read_manifest(Path("c")) if each.id == id)
    return [label.name for label in record.labels]


def table(name: str, *rows: str, columns: str = "image,label") -> str:
    """A CSV beside the images; the path of it."""
    Path("raw", name).write_text("\n".join([columns, *rows]) + "\n")
    return f"raw/{name}"


def row(n: int, label: int | None = None) -> str:
    return f"P{n}.nii.gz,P{n if label is None else label}_seg.nii.gz"


def test_prune_names_what_it_takes_out_before_and_after(capsys):
    assert converted("raw") == 0
    Path("raw/P1.nii.gz").unlink()
    Path("raw/P1_seg.nii.gz").unlink()
    capsys.readouterr()
    for words, would in (
        (["--dry-run"], "would be kept (--prune removes them)"),
        (["--dry-run", "--prune"], "would be removed"),
    ):
        assert converted("raw", *words, "--json", "f.json") == 0
        told = capsys.readouterr().out
        assert f"1 volume of sources that are no more {would}:\n  P1 (" in told
        source = Path("raw/P1.nii.gz").resolve()
        assert json.loads(Path("f.json").read_text())["gone"] == [f"P1 ({source})"]
        assert ids() == ["P0", "P1", "P2"]
    assert converted("raw", "--prune") == 0
    told = capsys.readouterr().out
    assert "1 volumes removed, their sources are no more:\n  P1 (" in told
    assert ids() == ["P0", "P2"]


def test_a_moved_file_is_not_told_to_be_gone(capsys):
    assert converted("raw") == 0
    Path("raw/P1.nii.gz").rename("raw/Q1.nii.gz")
    Path("raw/P1_seg.nii.gz").rename("raw/Q1_seg.nii.gz")
    capsys.readouterr()
    converted("raw", "--dry-run", "--prune")
    assert "no more" not in capsys.readouterr().out


def test_rows_taken_out_of_a_table_are_told(capsys):
    assert converted(table("t.csv", row(0), row(1), row(2))) == 0
    capsys.readouterr()
    for words in (["--dry-run"], []):
        assert converted(table("t.csv", row(1)), *words, "--json", "f.json") == 0
        told = capsys.readouterr().out
        assert "2 volumes of sources that were not given now stay (P0, P2)" in told
        assert json.loads(Path("f.json").read_text())["unlisted"] == ["P0", "P2"]
    remedy = re.search(r"`mim3d (remove [^`]*)` takes one out", told)
    assert remedy is not None and main(remedy[1].split()) == 0
    assert ids() == ["P1", "P2"]
    capsys.readouterr()
    assert converted("raw/t.csv") == 0
    assert "1 volume of sources that were not given now stay (P2)" in capsys.readouterr().out
    assert converted("raw/t.csv") == 0 and "not given" in capsys.readouterr().out


def test_another_id_in_a_table_is_not_passed_over(capsys):
    columns = "image,label,id"
    assert converted(table("t.csv", f"{row(0)},one", f"{row(1)},two", columns=columns)) == 0
    capsys.readouterr()
    changed = table("t.csv", f"{row(0)},one", f"{row(1)},zwei", columns=columns)
    for words in (["--dry-run"], []):
        assert converted(changed, *words) == 3
        assert "the id of two stays two, though zwei is told now: conv" in capsys.readouterr().out
        assert ids() == ["one", "two"]
        assert converted(changed, "--accept-doubts", *words) == 0
    assert main(["convert", changed, "new", "--workers", "1"]) == 0


def test_ids_that_the_converter_changed_are_no_other_ids():
    rows = [f"{row(0)},a b", f"{row(1)},a b", f"{row(2)},{'x' * 130}"]
    changed = table("t.csv", *rows, columns="image,label,id")
    assert converted(changed) == 0
    assert converted(changed) == 0


def test_two_columns_of_one_name_are_refused_where_they_differ(capsys):
    columns = "image,Image,label"
    assert converted(table("t.csv", f"P0.nii.gz,{row(1)}", columns=columns)) == 2
    told = capsys.readouterr().err
    assert "line 2: has two columns 'image' that differ ('P0.nii.gz' and 'P1.nii.gz')" in told
    assert converted(table("t.csv", f"P0.nii.gz,{row(0)}", columns=columns)) == 0
    assert converted(table("t.csv", f"P0.nii.gz,{row(1)}", columns="image,other,label")) == 3


def test_one_label_for_two_people_is_a_warning(capsys):
    assert converted(table("t.csv", row(0), row(1, label=0))) == 3
    told = capsys.readouterr().out
    assert "1 label of several subjects' images (such as " in told and "P0_seg.nii.gz: " in told
    assert converted("raw/t.csv", "--accept-doubts") == 0
    assert main(["inspect", "c", "--no-pictures"]) == 0
    assert converted(table("t.csv", row(0), row(1))) == 0
    assert labels("P1") == ["seg"]
    capsys.readouterr()
    assert main(["inspect", "c", "--no-pictures"]) == 0


def test_a_label_that_another_image_takes_is_told(capsys):
    assert converted(table("t.csv", row(0), row(1))) == 0
    capsys.readouterr()
    assert converted(table("t.csv", row(0), "P1.nii.gz,", row(2, label=1))) == 3
    told = capsys.readouterr().out
    assert "the set of labels of P1 was seg and is none now" in told
    assert labels("P1") == [] and labels("P2") == ["seg"]


def test_a_dry_run_is_refused_where_the_run_is(capsys):
    assert converted("raw") == 0
    Path("file").write_text("x")
    Path("full").mkdir()
    Path("full/notes.txt").write_text("x")
    for place, more in (("file", []), ("full", []), ("c/sub", []), ("c", ["--chunk", "8"])):
        told = []
        for words in (["--dry-run"], []):
            capsys.readouterr()
            assert main(["convert", "raw", place, "--workers", "1", *more, *words]) == 2
            told.append(capsys.readouterr().err)
        assert told[0] == told[1]
    assert {path.name for path in Path("full").iterdir()} - {".lock"} == {"notes.txt"}
