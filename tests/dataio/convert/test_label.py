"""Labels are read in little memory: in place, block by block, with the same outcome."""

import numpy as np
import pytest

from mim3d.dataio.convert import label
from mim3d.dataio.convert.label import classes_and_points, whole_classes
from mim3d.dataio.errors import SourceError


@pytest.mark.parametrize("dtype", ["u1", ">i2", "<i4", "<f4", ">f8"])
@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (2.0, -1.0), (-3.0, 200.0)])
def test_classes_in_place_are_those_of_a_copy(dtype, slope, intercept):
    raw = np.random.default_rng(0).integers(0, 120, (5, 6, 7)).astype(dtype)
    wanted = slope * raw.astype(np.float64) + intercept
    frozen = raw.copy()
    frozen.flags.writeable = False
    for given in (frozen, raw):
        got = whole_classes(given, slope, intercept, "seg", "seg.nii")
        np.testing.assert_array_equal(got, wanted)
        assert got.dtype.kind in "iu"
        assert got.dtype.itemsize <= 2
        fits = got.dtype.itemsize <= raw.dtype.itemsize
        assert np.shares_memory(got, given) == (fits and (given is raw or got is given))


def test_a_fraction_anywhere_is_refused():
    raw = np.ones((4, 5, 6), np.float32)
    raw[3, 4, 5] = 0.5
    with pytest.raises(SourceError, match="fractions"):
        whole_classes(raw, 1.0, 0.0, "seg", "seg.nii")


@pytest.mark.parametrize("block", [1, 50, 1 << 16])
@pytest.mark.parametrize("lowest", [0, -3])
def test_points_do_not_depend_on_blocks_or_strides(block, lowest, monkeypatch):
    rng = np.random.default_rng(1)
    voxels = (rng.integers(0, 5, (11, 6, 9)) ** 2 + lowest).astype(np.int16)
    wanted = classes_and_points(voxels.copy())
    assert wanted[0] == {int(n): int((voxels == n).sum()) for n in np.unique(voxels)}
    monkeypatch.setattr(label, "BLOCK", block)
    for same in (voxels, voxels[::-1, :, ::-1].copy()[::-1, :, ::-1], np.asfortranarray(voxels)):
        classes, points = classes_and_points(same)
        assert classes == wanted[0]
        assert points.keys() == wanted[1].keys()
        for number, zyx in points.items():
            np.testing.assert_array_equal(zyx, wanted[1][number])
            assert (voxels[tuple(zyx.T)] == number).all()
