"""Other containers: the voxels and affines that their own libraries give, and no damage unseen."""

import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from mim3d.dataio.errors import SourceError
from mim3d.dataio.nifti.file import files_behind, read_header, read_nifti, source_hash

BUDGET = 1 << 30
VOXELS = np.random.default_rng(0).normal(300, 90, (7, 6, 5)).astype(np.int16)  # x, y, z
AFFINE = np.array([[-1.5, 0, 0, 9], [0, 0, 2.5, -4], [0, -2, 0, 7], [0, 0, 0, 1.0]])


@pytest.fixture(scope="module")
def sitk():
    return pytest.importorskip("SimpleITK")


def written(path: Path, sitk) -> Path:
    """VOXELS under AFFINE as SimpleITK writes them, by way of NIfTI, which nibabel wrote."""
    nib.save(nib.Nifti1Image(VOXELS, AFFINE), path.parent / "by.nii")
    image = sitk.ReadImage(str(path.parent / "by.nii"))
    sitk.WriteImage(image, str(path), useCompression="zipped" in path.name)
    return path


def freesurfer(voxels: Any) -> Any:
    return nib.MGHImage(voxels, AFFINE)


@pytest.mark.parametrize("name", ["a.mgz", "a.mgh"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32"])
def test_freesurfer_volumes(tmp_path, name, dtype):
    want = VOXELS.astype(dtype)
    nib.save(freesurfer(want), tmp_path / name)
    again: Any = nib.load(tmp_path / name)
    found = read_nifti(str(tmp_path / name), BUDGET)
    assert np.array_equal(found.voxels[0].transpose(2, 1, 0), want)
    assert np.allclose(found.header.affine, again.affine, atol=1e-4)
    assert read_header(str(tmp_path / name), BUDGET).shape == (7, 6, 5)
    assert found.hash == source_hash(str(tmp_path / name), BUDGET)


NAMES = ["a.mha", "zipped.mha", "a.mhd", "zipped.mhd", "a.nrrd", "zipped.nrrd", "a.nhdr"]


@pytest.mark.parametrize("name", NAMES)
def test_itk_volumes(tmp_path, name, sitk):
    path = written(tmp_path / name, sitk)
    found = read_nifti(str(path), BUDGET)
    assert np.array_equal(found.voxels[0].transpose(2, 1, 0), VOXELS)
    assert np.allclose(found.header.affine, AFFINE, atol=1e-5)
    assert np.allclose(read_header(str(path), BUDGET).affine, AFFINE, atol=1e-5)
    assert found.hash == source_hash(str(path), BUDGET)
    assert len(files_behind(str(path))) == (2 if name.endswith(("mhd", "nhdr")) else 1)


@pytest.mark.parametrize("name", ["a.mgz", "a.mgh", *NAMES])
@pytest.mark.parametrize("cut", [1, 40])
def test_a_cut_file_is_refused(tmp_path, name, cut, request):
    if name.endswith(("mgz", "mgh")):
        path = tmp_path / name
        nib.save(freesurfer(VOXELS), path)
        cut += 20 if name.endswith("mgh") else 0  # what follows the voxels may be missing
    else:
        path = written(tmp_path / name, request.getfixturevalue("sitk"))
    last = Path(files_behind(str(path))[-1])
    last.write_bytes(last.read_bytes()[:-cut])
    with pytest.raises(SourceError, match=name):
        read_nifti(str(path), BUDGET)


@pytest.mark.parametrize("name", ["a.mgz", "zipped.mha", "zipped.nrrd"])
def test_flipped_bits_of_compressed_voxels_are_seen(tmp_path, name, request):
    path = tmp_path / name
    if name.endswith("mgz"):
        nib.save(freesurfer(VOXELS), path)
    else:
        written(path, request.getfixturevalue("sitk"))
    content = path.read_bytes()
    rng = np.random.default_rng(1)
    for at in rng.integers(len(content) - 300, len(content), 20).tolist():
        damaged = bytearray(content)
        damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(SourceError):
            read_nifti(str(path), BUDGET)


def test_vectors_and_lists_of_files_are_refused_in_words(tmp_path, sitk):
    colours = sitk.GetImageFromArray(np.zeros((4, 4, 4, 3), np.uint8), isVector=True)
    sitk.WriteImage(colours, str(tmp_path / "v.mha"))
    with pytest.raises(SourceError, match="3 components"):
        read_nifti(str(tmp_path / "v.mha"), BUDGET)
    written(tmp_path / "a.mhd", sitk)
    text = (tmp_path / "a.mhd").read_text().replace("a.raw", "a%03d.raw 1 5 1")
    (tmp_path / "a.mhd").write_text(text)
    with pytest.raises(SourceError, match="several files"):
        read_nifti(str(tmp_path / "a.mhd"), BUDGET)


def test_what_is_not_installed_is_named(tmp_path, sitk, monkeypatch):
    path = written(tmp_path / "a.mha", sitk)
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(SourceError, match=r"a\.mha: needs SimpleITK: pip install"):
        read_nifti(str(path), BUDGET)


def test_text_is_no_container(tmp_path):
    for name in ("a.mgz", "a.mha", "a.nrrd"):
        (tmp_path / name).write_bytes(b"nothing of the kind" * 40)
        with pytest.raises(SourceError, match=name):
            read_nifti(str(tmp_path / name), BUDGET)
