"""Boxes to chunks: against painting voxel by voxel."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mim3d.dataio.chunks.boxes import plan_box

small = st.integers(1, 9)


@given(
    shape=st.tuples(small, small, small),
    chunk=st.tuples(*[st.integers(1, 5)] * 3),
    start=st.tuples(*[st.integers(-6, 12)] * 3),
    size=st.tuples(small, small, small),
)
def test_copying_the_planned_slices_is_slicing_the_volume(shape, chunk, start, size):
    grid = [-(-n // c) for n, c in zip(shape, chunk, strict=True)]
    padded = np.full([g * c for g, c in zip(grid, chunk, strict=True)], -1)
    padded[tuple(map(slice, shape))] = np.arange(np.prod(shape)).reshape(shape)
    plan = plan_box(shape, chunk, start, size)

    got = np.full(size, -1)
    for number, source, target in zip(plan.chunks, plan.sources, plan.targets, strict=True):
        origin = np.array(np.unravel_index(number, grid)) * chunk
        block = padded[tuple(slice(o, o + c) for o, c in zip(origin, chunk, strict=True))]
        got[target] = block[source]

    around = np.full([n + 40 for n in shape], -1)
    around[tuple(slice(20, 20 + n) for n in shape)] = padded[tuple(map(slice, shape))]
    want = around[tuple(slice(20 + a, 20 + a + s) for a, s in zip(start, size, strict=True))]
    np.testing.assert_array_equal(got, want)
    assert plan.covers == bool((want >= 0).all())
    assert len(set(plan.chunks)) == len(plan.chunks)


def test_a_box_outside_the_volume_needs_no_chunk():
    assert plan_box((8, 8, 8), (4, 4, 4), (9, 0, 0), (4, 4, 4)).chunks == ()
    assert plan_box((8, 8, 8), (4, 4, 4), (-5, 0, 0), (4, 4, 4)).chunks == ()
