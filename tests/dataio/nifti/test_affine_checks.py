"""Affines checked by plain numbers as by numpy; the first bytes inside gzip, whatever is before."""

import gzip
import io
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mim3d.dataio.geometry import Grid, axis_codes, obliquity_deg, reorientation
from mim3d.dataio.nifti.forms import SINGULAR, is_usable
from mim3d.dataio.nifti.gzip_stream import PEEKED, peek


@settings(max_examples=200)
@given(
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([1e-3, 1.0, 500.0]),
    flaw=st.sampled_from(["", "zero", "parallel", "thin", "nan", "inf"]),
)
def test_an_affine_is_usable_as_numpy_says(seed, scale, flaw):
    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3] = rng.normal(0, scale, (3, 4))
    if flaw == "zero":
        affine[:3, 1] = 0
    elif flaw in ("parallel", "thin"):
        affine[:3, 2] = 2 * affine[:3, 0] + (0 if flaw == "parallel" else 1e-9 * affine[:3, 1])
    elif flaw:
        affine[seed % 3, seed % 4] = np.nan if flaw == "nan" else -np.inf
    wanted = False
    if np.isfinite(affine).all():
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        volume = abs(np.linalg.det(affine[:3, :3]))
        wanted = bool(lengths.all()) and volume >= SINGULAR * lengths.prod()
    assert is_usable(affine) == wanted
    assert not flaw or not wanted


def test_what_is_kept_of_an_affine_does_not_follow_its_origin_or_a_later_change():
    affine = np.diag([-2.0, 3.0, 4.0, 1.0])
    moved = affine + np.array([[0, 0, 0, 7.0]] * 3 + [[0, 0, 0, 0]])
    grid = Grid((5, 6, 7), affine)
    assert grid.spacing_mm == Grid((5, 6, 7), moved).spacing_mm == (4.0, 3.0, 2.0)
    assert axis_codes(affine) == axis_codes(moved) == "LAS"
    assert reorientation(affine, "RAS").flips == (True, False, False)
    affine[:3, :3] = affine[:3, [1, 0, 2]] + 0.1
    assert grid.spacing_mm != (4.0, 3.0, 2.0)
    assert axis_codes(affine) == "ALS"
    assert obliquity_deg(affine) > obliquity_deg(moved) == 0.0


@pytest.mark.parametrize("name_bytes", [0, 1000, 3 * PEEKED[0]])
def test_the_first_bytes_are_told_behind_a_long_name(name_bytes):
    inside = os.urandom(5000)
    packed = io.BytesIO()
    with gzip.GzipFile("n" * name_bytes, "wb", fileobj=packed) as file:
        file.write(inside)
    assert peek(packed.getvalue(), 544, "a.nii.gz") == inside[:544]
    assert peek(gzip.compress(b"short"), 544, "a.nii.gz") == b"short"
