"""The phantom cohort: real NIfTI files, deterministic, labels told apart only by the landmark."""

import json
from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from nibabel.arrayproxy import ArrayProxy

from mim3d.dataio.errors import SourceError
from mim3d.dataio.sources.phantom import AXIS_CODES, Cohort, draw_grid, make_cohort, make_subject
from mim3d.dataio.sources.phantom_body import build_tissue, draw_body


def test_cohort_is_whole_varied_and_byte_deterministic(tmp_path):
    found: list[int] = []
    one = make_cohort(tmp_path / "one", 16, seed=3, advance=lambda: found.append(1))
    two = make_cohort(tmp_path / "two", 16, seed=3)
    files = sorted(p.relative_to(one) for p in one.rglob("*.nii.gz"))
    assert len(files) == 32
    assert len(found) == 16
    assert all((one / f).read_bytes() == (two / f).read_bytes() for f in files)
    images = [read(one / f) for f in files if f.parts[0] == "imagesTr"]
    assert len({i.shape for i in images}) > 8
    assert len({nib.aff2axcodes(i.affine) for i in images}) > 4
    assert len({np.dtype(i.get_data_dtype()).str for i in images}) >= 2
    assert {nib.aff2axcodes(i.affine) for i in images} <= {tuple(c) for c in AXIS_CODES}
    assert any(
        np.count_nonzero(np.abs(i.get_sform()[:3, :3]) > 1e-6) > 3 for i in images
    )  # oblique
    assert any(cast(ArrayProxy, i.dataobj).inter == -1024 for i in images)
    assert any(i.get_fdata().min() < -500 for i in images)  # CT-like
    assert any(i.get_fdata().min() >= 0 for i in images)  # MR-like
    assert make_cohort(tmp_path / "three", 16, seed=4) != one
    other = tmp_path / "three" / files[0]
    assert other.read_bytes() != (one / files[0]).read_bytes()


def test_labels_share_the_grid_and_hold_every_class():
    cohort = Cohort(n_subjects=12)
    for index in range(12):
        image, label = make_subject(cohort, index)
        assert image.shape == label.shape
        assert min(image.shape) >= 31
        assert max(image.shape) <= 52
        np.testing.assert_array_equal(image.affine, label.affine)
        assert int(image.header["sform_code"]) == int(image.header["qform_code"]) in (1, 2)
        counts = np.bincount(np.asarray(label.dataobj).ravel(), minlength=4)
        assert (counts[:4] > 30).all()


def test_brightness_does_not_name_the_nuclei():
    cohort = Cohort(n_subjects=10)
    for index in range(10):
        image, label = make_subject(cohort, index)
        voxels, classes = image.get_fdata(), np.asarray(label.dataobj)
        near, far = voxels[classes == 1], voxels[classes == 2]
        assert abs(near.mean() - far.mean()) < 1.5 * min(near.std(), far.std())


def test_the_landmark_names_the_nuclei():
    for index in range(10):
        rng = np.random.default_rng(index)
        shape, affine = draw_grid(rng, 42.0)
        tissue = build_tissue(draw_body(rng, 42.0), shape, affine, rng)
        dark, near, far = (
            apply_affine(affine, np.argwhere(mask).mean(axis=0))
            for mask in (tissue.cistern > 0.5, tissue.label == 1, tissue.label == 2)
        )
        assert np.linalg.norm(near - dark) < np.linalg.norm(far - dark)


def read(file: Path) -> nib.Nifti1Image:
    return cast(nib.Nifti1Image, nib.load(file))


def test_a_finished_folder_is_kept_and_a_foreign_one_refused(tmp_path):
    root = make_cohort(tmp_path / "c", 2)
    stamp = (root / "dataset.json").stat().st_mtime_ns
    assert make_cohort(root, 2) == root
    assert (root / "dataset.json").stat().st_mtime_ns == stamp
    with pytest.raises(SourceError, match="another data set"):
        make_cohort(root, 3)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(SourceError, match=r"thesis\.txt"):
        make_cohort(tmp_path / "mine", 2)


def test_description_is_msd_layout_and_an_interrupted_cohort_is_finished(tmp_path):
    root = make_cohort(tmp_path / "c", 3)
    described = json.loads((root / "dataset.json").read_text())
    assert described["numTraining"] == 3
    assert set(described["labels"]) == {"0", "1", "2", "3"}
    assert all((root / pair["image"]).is_file() for pair in described["training"])
    (root / "dataset.json").unlink()
    (root / "labelsTr" / "phantom_002.nii.gz").unlink()
    make_cohort(root, 3)
    assert (root / "labelsTr" / "phantom_002.nii.gz").is_file()


@pytest.mark.parametrize("wrong", [{"n_subjects": 0}, {"ct_share": 1.5}, {"field_of_view_mm": 2}])
def test_wrong_cohorts_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        make_cohort(tmp_path / "c", **wrong)
