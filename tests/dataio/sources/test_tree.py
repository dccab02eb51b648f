"""Names that are not UTF-8: told, left out, and never the end of a run."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mim3d.dataio.corpus.quarantine import parse_quarantine
from mim3d.dataio.errors import SourceError
from mim3d.dataio.sources.discover import discover
from mim3d.engine.commands.cli import main


def save(folder: bytes, *names: bytes) -> None:
    image = nib.Nifti1Image(
        np.random.default_rng(0).normal(9, 3, (9, 8, 7)).astype("f4"), np.eye(4)
    )
    for name in names:
        path = Path(os.fsdecode(folder + b"/" + name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image.to_bytes())


def test_a_name_that_is_not_utf8_costs_nothing_but_its_file(tmp_path, capsys):
    root = os.fsencode(tmp_path / "in")
    save(root, b"a.nii", b"M\xfcller.nii", b"c.nii", b"\xfc/d.nii", "ü.nii".encode())
    words = ["convert", str(tmp_path / "in"), str(tmp_path / "out"), "--workers", "1"]
    for _ in range(2):  # and again on a rerun
        assert main([*words, "--accept-doubts"]) == 3
        assert "M\\xfcller.nii" in (printed := capsys.readouterr().out) and "2 bad-name" in printed
    left = parse_quarantine((tmp_path / "out/mim3d/quarantine.jsonl").read_bytes())
    assert [rejection.code for rejection in left] == ["bad-name", "bad-name"]
    assert main(["verify", str(tmp_path / "out")]) == 0
    assert "3 volumes" in capsys.readouterr().out


@pytest.mark.parametrize("what", [b"in\xe9", b"in\xe9/*.nii", b"in\xe9/a.nii"])
def test_a_source_that_is_not_utf8_is_refused_and_a_link_to_it_is_not(tmp_path, what):
    root = os.fsencode(tmp_path) + b"/in\xe9"
    save(root, b"a.nii")
    with pytest.raises(SourceError, match=r"in\\xe9.*symbolic link"):
        discover(os.fsdecode(os.fsencode(tmp_path) + b"/" + what))
    (tmp_path / "plain").symlink_to(os.fsdecode(root))
    assert [source.id for source in discover(str(tmp_path / "plain")).sources] == ["a"]


def test_an_annex_link_without_its_content_is_told_as_such(tmp_path):
    save(os.fsencode(tmp_path), b"a.nii")
    (tmp_path / "b.nii").symlink_to(".git/annex/objects/xx/yy/MD5E-s9--0.nii")
    (tmp_path / "c.nii").symlink_to("nowhere.nii")
    found = discover(str(tmp_path))
    assert [skip.code for skip in found.skipped] == ["annex-pointer", "broken-link"]
    assert "datalad get" in found.skipped[0].detail


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("x.nii.bz2", "bunzip2"), ("x.mnc", "mnc2nii"), ("x.zip", "unpack"), ("x", "--layout dicom")],
)
def test_files_that_are_not_read_are_told_with_what_to_do(tmp_path, name, remedy):
    save(os.fsencode(tmp_path), b"a.nii")
    (tmp_path / name).write_bytes(b"x")
    (skip,) = discover(str(tmp_path)).skipped
    assert skip.code == "not-nifti" and remedy in skip.detail
