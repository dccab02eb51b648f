"""From stored planes back to the own voxels: exact where nothing was resampled, else as scipy."""

from dataclasses import replace
from itertools import pairwise, permutations, product
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from mim3d.dataio.convert.resample import resampled_grid
from mim3d.dataio.corpus.manifest import VolumeRecord
from mim3d.dataio.geometry import Grid, Triple, reorientation
from mim3d.engine.predict.own_grid import OwnGrid, own_grid, placed

nib: Any = nibabel
CODES = ["".join(w) for a in permutations(("LR", "PA", "IS")) for w in product(*a)]
SHAPE: Triple = (9, 7, 5)


def rotated(spacing_mm: tuple[float, float, float], degrees: float) -> np.ndarray:
    """An affine of that voxel size (x, y, z), oblique."""
    angle = np.deg2rad(degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing_mm)
    affine[:3, 3] = (-31.7, 12.25, 4.0)
    return affine


def record_of(own: Grid, stored: Grid) -> VolumeRecord:
    """A record that tells of these grids, and of nothing else."""
    record = object.__new__(VolumeRecord)
    z, y, x = own.shape
    told = {
        "shape": stored.shape,
        "affine": stored.nested_affine,
        "original_shape": (x, y, z),
        "original_affine": own.nested_affine,
    }
    for name, value in told.items():
        object.__setattr__(record, name, value)
    return record


def oriented(own: Grid, codes: str = "RAS") -> Grid:
    """The grid as convert turns it."""
    change = reorientation(own.affine, codes)
    z, y, x = own.shape
    turned = [(x, y, z)[axis] for axis in change.axes]
    return Grid((turned[2], turned[1], turned[0]), change.affine(own.affine, (x, y, z)))


def whole(scores: torch.Tensor, grid: OwnGrid, cuts: list[int]) -> np.ndarray:
    """Scores (k, z, y, x) of a stored grid, given in pieces, on the own grid; NaN where untold."""
    ends = [0, *cuts, scores.shape[1]]
    pieces = ((a, scores[:, a:b]) for a, b in pairwise(ends))
    out = np.full((len(scores), *grid.own.shape), np.nan, np.float32)
    for part in placed(pieces, grid):
        n = part.scores.shape[1]
        place = (slice(part.first, part.first + n), part.rows, part.columns)
        for channel, found in zip(out, part.scores.numpy(), strict=True):
            grid.turned(channel)[place] = found
    return out


@settings(max_examples=60)
@given(st.sampled_from(CODES), st.integers(0, 20), st.lists(st.integers(1, 4), unique=True))
def test_turned_voxels_come_back_to_the_voxel(codes: str, degrees: int, cuts: list[int]) -> None:
    start = Grid(SHAPE, rotated((0.7, 1.1, 2.5), degrees))
    own = oriented(start, codes)
    stored = oriented(own)
    grid = own_grid(record_of(own, stored))
    assert grid.is_exact
    assert grid.is_covered
    values = np.random.default_rng(0).random((2, *stored.shape), np.float32)
    found = whole(torch.from_numpy(values), grid, sorted(cuts))
    image = nib.Nifti1Image(values[0].T, stored.affine)
    wanted = image.as_reoriented(
        nib.orientations.ornt_transform(
            nib.orientations.io_orientation(stored.affine),
            nib.orientations.io_orientation(own.affine),
        )
    )
    assert np.allclose(wanted.affine, own.affine)
    assert np.array_equal(found[0], np.asarray(wanted.dataobj).T)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "ASL"])
def test_what_was_cropped_away_is_left_alone(codes: str) -> None:
    own = oriented(Grid((12, 10, 8), rotated((1.0, 1.0, 3.0), 5.0)), codes)
    before = oriented(own)
    stored = before.crop((2, 1, 3), (7, 6, 6))
    grid = own_grid(record_of(own, stored))
    assert grid.is_exact
    assert not grid.is_covered
    values = torch.rand(1, *stored.shape)
    found = whole(values, grid, [1, 3])
    turned = grid.turned(found[0])
    assert np.array_equal(turned[2:7, 1:6, 3:6], values[0].numpy())
    assert np.isnan(turned).sum() == 12 * 10 * 8 - values[0].numel()


@settings(max_examples=60)
@given(
    st.tuples(*[st.floats(0.4, 2.7)] * 3),
    st.tuples(*[st.integers(1, 12)] * 3),
    st.lists(st.integers(1, 5), max_size=3, unique=True),
    st.sampled_from(("RAS", "LIP", "PSR")),
)
def test_resampled_scores_are_interpolated_as_scipy_does(
    spacing: tuple[float, float, float], shape: Triple, cuts: list[int], codes: str
) -> None:
    own = oriented(Grid(shape, rotated((0.8, 1.3, 2.1), 11.0)), codes)
    turned = oriented(own)
    stored = resampled_grid(turned, spacing)
    grid = own_grid(record_of(own, stored))
    values = np.random.default_rng(1).random((3, *stored.shape), np.float32)
    cuts = sorted(cut for cut in cuts if cut < stored.shape[0])
    found = whole(torch.from_numpy(values), grid, cuts)
    assert np.isfinite(found).all()
    index = np.indices(turned.shape).reshape(3, -1)[::-1]
    between = np.linalg.inv(stored.affine) @ turned.affine
    places = (between[:3, :3] @ index + between[:3, 3:])[::-1]
    for channel, mine in zip(values, found, strict=True):
        wanted = ndimage.map_coordinates(channel, places, order=1, mode="nearest")
        assert np.allclose(grid.turned(mine).ravel(), wanted, atol=2e-5)


def test_a_grid_of_the_same_voxels_is_exact_though_it_was_asked_to_be_resampled() -> None:
    own = Grid(SHAPE, rotated((1.0, 1.0, 1.0), 0.0))
    assert own_grid(record_of(own, resampled_grid(own, (1.0, 1.0, 1.0)))).is_exact
    assert not own_grid(record_of(own, resampled_grid(own, (1.0, 1.0, 0.5)))).is_exact
    shifted = replace(own, affine=own.affine + np.eye(4)[3] * 0)
    assert own_grid(record_of(own, shifted)).is_exact
