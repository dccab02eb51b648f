"""DICOM series through dcm2niix: their voxels, patients and what is not converted twice."""

import locale
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mim3d.dataio.corpus.manifest import read_manifest
from mim3d.dataio.errors import SourceError
from mim3d.dataio.inspect.verify import verify
from mim3d.dataio.nifti.file import read_nifti
from mim3d.dataio.sources import layout_dicom
from mim3d.dataio.sources.discover import discover
from mim3d.engine.commands.cli import main

pytest.importorskip("dcm2niix")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Iterator[None]:
    """A cache of its own; and the locale as it was, for ITK's writer of DICOM sets it to C."""
    before = locale.setlocale(locale.LC_ALL)
    monkeypatch.setenv("MIM3D_CACHE", str(tmp_path / "cache"))
    yield
    locale.setlocale(locale.LC_ALL, before)


def series(folder: Path, patient: str, number: int) -> np.ndarray:
    """Six slices as a scanner writes them; returns the voxels z y x."""
    sitk = pytest.importorskip("SimpleITK")
    folder.mkdir(parents=True)
    voxels = np.random.default_rng(number).normal(300, 90, (6, 16, 12)).astype(np.int16)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    uid = f"1.2.826.0.1.3680043.2.1125.{number}"
    for z, plane in enumerate(voxels):
        image = sitk.GetImageFromArray(plane)
        image.SetSpacing((1.5, 1.5))
        found = {
            "0008|0008": "ORIGINAL\\PRIMARY\\AXIAL", "0008|0060": "CT", "0010|0020": patient,
            "0008|0018": f"{uid}.{z}", "0020|000d": f"{uid}.90", "0020|000e": f"{uid}.91",
            "0008|0020": "20200102", "0008|0030": "101112", "0008|0031": "101112",
            "0008|0032": "101112", "0008|0021": "20200102", "0018|0050": "3", "0020|0011": "7",
            "0020|0013": str(z + 1), "0020|0032": f"0\\0\\{3 * z}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
        }  # fmt: skip
        for key, value in found.items():
            image.SetMetaData(key, value)
        writer.SetFileName(str(folder / "slice.dcm"))
        writer.Execute(image)
        (folder / "slice.dcm").rename(folder / f"IM{z:03d}")
    return voxels


def test_series_are_sources_and_patients_their_subjects(tmp_path, capsys, monkeypatch):
    want = series(tmp_path / "in/a/s1", "P1", 1)
    series(tmp_path / "in/a/s2", "P1", 2)
    series(tmp_path / "in/b/s1", "P2", 3)
    found = discover(str(tmp_path / "in"))
    assert found.layout == "dicom" and [s.subject for s in found.sources] == ["P1", "P1", "P2"]
    file = read_nifti(found.sources[0].images[0], 1 << 30)
    assert np.array_equal(file.voxels[0][:, ::-1], want)  # dcm2niix turns rows to run upwards
    assert np.allclose(np.linalg.norm(file.header.affine[:3, :3], axis=0), (1.5, 1.5, 3))
    words = ["convert", str(tmp_path / "in"), str(tmp_path / "c"), "--workers", "1"]
    assert main(words) == 0
    assert "3 volumes of 2 subjects" in capsys.readouterr().out
    monkeypatch.setattr(layout_dicom, "run", None)  # nothing is converted again
    assert main(words) == 0 and "3 sources unchanged" in capsys.readouterr().out
    assert not verify(str(tmp_path / "c"), sources=True).problems
    assert len({record.source_hash for record in read_manifest(tmp_path / "c")}) == 3


def test_broken_series_and_a_missing_program_are_told(tmp_path, monkeypatch):
    series(tmp_path / "in/a", "P1", 1)
    (tmp_path / "in/b").mkdir()
    (tmp_path / "in/b/IM0").write_bytes(bytes(128) + b"DICM" + b"nothing that is DICOM" * 9)
    found = discover(str(tmp_path / "in"), "dicom")
    assert len(found.sources) == 1 and [s.code for s in found.skipped] == ["no-series"]
    monkeypatch.setitem(sys.modules, "dcm2niix", None)
    monkeypatch.setattr(layout_dicom, "find_spec", lambda name: None)
    with pytest.raises(SourceError, match=r"pip install 'mim3d\[containers\]'"):
        discover(str(tmp_path / "in"), "dicom")


def test_a_folder_without_dicom_is_told(tmp_path):
    (tmp_path / "a.txt").write_text("nothing")
    with pytest.raises(SourceError, match="no DICOM"):
        discover(str(tmp_path), "dicom")
