"""Joining ranges: what is covered, what is read beyond it, and which gaps are crossed."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mim3d.dataio.remote.ranges import SPARE_BYTES, SPARE_SHARE, Runs, cut, joined

lists = st.lists(
    st.tuples(st.integers(0, 200_000), st.integers(1, 50_000)), min_size=1, max_size=60
)


def ranges_of(pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Ranges from gaps and sizes."""
    gaps, sizes = (np.array(each, np.int64) for each in zip(*pairs, strict=True))
    return np.cumsum(gaps + sizes) - sizes, sizes


@given(pairs=lists, latency_bytes=st.sampled_from([0.0, 1e4, 1e5, 2.4e6, 1e9]))
def test_every_range_lies_in_its_run_and_runs_are_apart(pairs, latency_bytes):
    offsets, sizes = ranges_of(pairs)
    runs = joined(offsets, sizes, latency_bytes)
    assert (runs.begins[runs.of] <= offsets).all()
    assert (offsets + sizes <= runs.ends[runs.of]).all()
    assert (runs.ends[:-1] < runs.begins[1:]).all()
    spare = max(SPARE_SHARE * sizes.sum(), min(latency_bytes / 64, SPARE_BYTES))
    assert runs.nbytes <= sizes.sum() + spare
    for run in range(len(runs.begins)):  # no gap inside is wider than a request is worth
        inside = np.flatnonzero(runs.of == run)
        gaps = offsets[inside][1:] - (offsets + sizes)[inside][:-1]
        assert (gaps <= latency_bytes).all()


def test_a_slow_store_has_more_gaps_crossed_and_the_smallest_first():
    offsets = np.array([0, 1_000, 40_000, 41_500, 100_000], np.int64)
    sizes = np.full(5, 900, np.int64)
    assert len(joined(offsets, sizes, 50).begins) == 5
    assert joined(offsets, sizes, 150).of.tolist() == [0, 0, 1, 2, 3]
    assert joined(offsets, sizes, 1e6).of.tolist() == [0, 0, 1, 1, 2]


def test_rows_of_a_large_volume_stay_within_half_as_much_again():
    row, gap = 18_000, 71_000
    offsets = np.arange(36, dtype=np.int64) * (row + gap)
    runs = joined(offsets, np.full(36, row, np.int64), 0.1 * 80e6)
    assert 1 < runs.nbytes / (36 * row) <= 1.5


def test_a_whole_small_volume_is_one_request():
    offsets = np.arange(10, dtype=np.int64) * 3_000
    assert len(joined(offsets, np.full(10, 500, np.int64), 0.03 * 80e6).begins) == 1


@given(pairs=lists, most=st.integers(1, 60_000))
def test_long_runs_are_cut_without_a_byte_lost(pairs, most):
    offsets, sizes = ranges_of(pairs)
    runs = Runs(offsets, offsets + sizes, np.arange(len(offsets)))
    found = cut(runs, most)
    spans = list(zip(found.of, found.begins, found.ends, strict=True))
    assert max(end - begin for _, begin, end in spans) <= most
    for run, (begin, end) in enumerate(zip(offsets, offsets + sizes, strict=True)):
        mine = [span[1:] for span in spans if span[0] == run]
        assert mine[0][0] == begin
        assert mine[-1][1] == end
        assert all(a[1] == b[0] for a, b in pairwise(mine))
