"""What docs/security.md says that a hostile file cannot do."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel.nifti1 import Nifti1Extension, Nifti1Image
from synthetic_study import write_study

from mim3d.dataio.convert.run import convert
from mim3d.dataio.convert.volume_ids import safe_id
from mim3d.dataio.corpus.manifest import read_manifest, record_line
from mim3d.dataio.corpus.names import MANIFEST, NAME, own_file
from mim3d.dataio.sources.discover import discover
from mim3d.engine.commands.cli import main
from mim3d.engine.report.report import build_report

TEXT = "DOE^JOHN"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    voxels = np.arange(20**3, dtype=np.int16).reshape(20, 20, 20)
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        image = Nifti1Image(voxels % (2 if folder == "labelsTr" else 30000), np.eye(4))
        image.header["descrip"] = TEXT
        image.header["intent_name"] = TEXT
        image.header.extensions.append(Nifti1Extension("comment", TEXT.encode()))
        image.to_filename(tmp_path / "in" / folder / "a.nii.gz")
    convert(discover(str(tmp_path / "in")).sources, tmp_path / "c.zarr", workers=1)
    return tmp_path / "c.zarr"


@pytest.mark.parametrize(
    "name", ["../../out", "/tmp/out", "a/b", "..", "a..b", "", "-a", ".a", "a\n"]
)
@pytest.mark.parametrize("part", ["id", "label"])
def test_a_forged_name_writes_nowhere(corpus: Path, tmp_path: Path, name, part, capsys) -> None:
    (record,) = read_manifest(corpus)
    record = replace(record, warnings=("the manifest may grow, not shrink",))
    forged = replace(record, id=name)
    if part == "label":
        forged = replace(record, labels=(replace(record.labels[0], name=name),))
    own_file(corpus, MANIFEST).write_text(record_line(forged) + "\n")
    before = sorted(tmp_path.rglob("*"))
    assert main(["export-nifti", str(corpus), str(tmp_path / "deep/er/out")]) == 2
    assert sorted(tmp_path.rglob("*")) == before
    printed = capsys.readouterr().err
    assert f"{name!r} is not the name of a volume or label" in printed
    assert len(printed.strip().splitlines()) == 1


def test_the_remedy_for_a_forged_name(corpus: Path, tmp_path: Path) -> None:
    (record,) = read_manifest(corpus)
    own_file(corpus, MANIFEST).write_text(record_line(replace(record, id="../x")) + "\n")
    assert (
        main(["convert", str(tmp_path / "in"), str(tmp_path / "new.zarr"), "--workers", "1"]) == 0
    )
    assert main(["export-nifti", str(tmp_path / "new.zarr"), str(tmp_path / "out")]) == 0


@given(st.text(max_size=300))
def test_every_name_that_the_converter_gives_is_taken(wanted: str) -> None:
    assert NAME.fullmatch(safe_id(wanted))


def test_text_of_headers_is_not_carried_over(corpus: Path, tmp_path: Path) -> None:
    assert main(["export-nifti", str(corpus), str(tmp_path / "out"), "--no-compress"]) == 0
    files = [f for where in (corpus, tmp_path / "out") for f in where.rglob("*") if f.is_file()]
    assert len(files) > 8
    assert not [file for file in files if TEXT.encode() in file.read_bytes()]


def test_names_and_notes_put_no_script_into_a_report(tmp_path: Path) -> None:
    evil = '<script>alert("1")</script>'
    speeds = {"scratch": 1.0, "simclr": 1.0, "mae": 1.2, evil: 1.1}
    broken = f"--><img src=x {evil}"
    write_study(tmp_path, speeds=speeds, notes=[evil], corpus=evil, machine_line=broken)
    file = tmp_path / "study.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"name": evil}))
    page = build_report(tmp_path).read_text()
    assert "alert" in page
    assert evil not in page
    assert "<script" not in page
    assert "<img src=x" not in page
