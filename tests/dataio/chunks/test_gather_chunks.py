"""The compiled gathering of chunks against numpy: dtypes, byte orders, shapes, flips, addresses."""

from pathlib import Path

import numpy as np
import pytest
from built_extension import build_extension
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mim3d.dataio.chunks.gather import fits_loop, gathered_rows, loop_rows, slab_chunks
from mim3d.dataio.convert import intensity
from mim3d.dataio.native import extension

SOURCE = Path(extension.__file__).with_name("chunks.c")


@pytest.fixture(scope="module")
def loop(tmp_path_factory):
    """The extension, compiled from its source by this test."""
    return build_extension(SOURCE, tmp_path_factory.mktemp("ext"))


def by_definition(volume, sides):
    """Each chunk cut out by itself, zeros beyond the edge."""
    for z in range(0, volume.shape[0], sides[0]):
        for y in range(0, volume.shape[1], sides[1]):
            for x in range(0, volume.shape[2], sides[2]):
                part = volume[z : z + sides[0], y : y + sides[1], x : x + sides[2]]
                chunk = np.zeros(sides, volume.dtype.newbyteorder("="))
                chunk[tuple(map(slice, part.shape))] = part
                yield chunk


def view_of(shape, dtype, flips, permuted, odd, step, seed):
    """Noise seen through strides: parts of rows and planes, flips, another order, odd addresses."""
    z, y, x = shape
    block = (z * step + 1, y * step + 2, x + 3)
    nbytes = int(np.prod(block)) * np.dtype(dtype).itemsize
    noise = np.random.default_rng(seed).bytes(nbytes + 8)
    whole = np.frombuffer(noise, dtype, int(np.prod(block)), odd).reshape(block)
    part = whole[: z * step : step, 1 : 1 + y * step : step, 2 : 2 + x]
    part = part[tuple(slice(None, None, -1 if flip else None) for flip in flips)]
    return part.transpose(permuted)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from(["u1", "i1", "<i2", ">i2", "<u2", ">i4", "<i4", "<f4", ">f4", ">f8"]),
    shape=st.tuples(*[st.integers(1, 40)] * 3),
    sides=st.tuples(*[st.sampled_from([1, 3, 8, 16, 32])] * 3),
    flips=st.tuples(*[st.booleans()] * 3),
    permuted=st.sampled_from([(0, 1, 2), (1, 0, 2), (0, 2, 1), (2, 1, 0)]),
    odd=st.integers(0, 7),
    step=st.sampled_from([1, 2]),
    seed=st.integers(0, 10**6),
)
def test_both_ways_are_the_definition(loop, dtype, shape, sides, flips, permuted, odd, step, seed):
    volume = view_of(shape, dtype, flips, permuted, odd, step, seed)
    native = volume.dtype.newbyteorder("=").name
    expected = [chunk.tobytes() for chunk in by_definition(volume, sides)]
    slabs = (volume[z : z + sides[0]] for z in range(0, volume.shape[0], sides[0]))
    assert [c.tobytes() for slab in slabs for c in slab_chunks(slab, sides, native)] == expected
    assert [c.tobytes() for row in gathered_rows(volume, sides, native) for c in row] == expected
    if fits_loop(volume):
        rows = loop_rows(loop, volume, sides, native)
        found = [c.tobytes() for row in rows for c in row]
        assert found == expected


def test_views_of_any_order_are_for_the_compiled_loop():
    volume = np.zeros((4, 5, 6), ">i2")
    assert fits_loop(volume)
    assert fits_loop(volume[::-1, :, ::-1])
    assert fits_loop(volume.transpose(0, 2, 1))
    assert fits_loop(volume[:, :, ::2])
    assert not fits_loop(np.zeros((2, 2, 2), np.complex128))
    assert not fits_loop(volume[:, :0])


def test_what_does_not_fit_is_refused(loop):
    volume, chunks = np.zeros((8, 8, 8), "i2"), np.zeros((2, 4, 4, 4), "i2")
    for words in (
        (volume, 8, 0, chunks, False),
        (volume, 0, -1, chunks, False),
        (volume, 0, 0, chunks[:1], False),
        (volume, 0, 0, chunks[0], False),
        (volume[0], 0, 0, chunks, False),
        (volume.astype("i4"), 0, 0, chunks, False),
        (volume[:, :, :0], 0, 0, chunks, False),
    ):
        with pytest.raises(ValueError, match="do not fit"):
            loop.gather(*words)
    with pytest.raises((BufferError, ValueError)):
        loop.gather(volume, 0, 0, chunks[:, :, :, ::2], False)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from(["u1", "i1", "<u2", "<i2"]),
    shape=st.tuples(*[st.integers(1, 40)] * 3),
    flips=st.tuples(st.booleans(), st.booleans(), st.just(False)),
    step=st.sampled_from([1, 2]),
    seed=st.integers(0, 10**6),
)
def test_profiles_are_the_extremes_of_every_plane(loop, dtype, shape, flips, step, seed):
    voxels = view_of(shape, dtype, flips, (0, 1, 2), 0, step, seed)
    assert intensity.fits_profiles(voxels) == (voxels.shape[2] > 1)
    if voxels.shape[2] == 1:
        return  # numpy's, as the test of rows of one voxel has it
    found = [np.empty(n, dtype) for n in (1, *shape)]
    loop.profiles(voxels, voxels.dtype.kind == "i", *found)
    assert found[0][0] == voxels.min()
    ways = intensity.profiles(voxels)
    assert (ways.minimum, ways.maximum) == (voxels.min(), voxels.max())
    for axis, others in enumerate([(1, 2), (0, 2), (0, 1)]):
        np.testing.assert_array_equal(found[axis + 1], voxels.max(axis=others))
        np.testing.assert_array_equal(ways.along[axis], voxels.max(axis=others))


def test_profiles_of_another_kind_are_refused_or_numpys(loop, monkeypatch):
    voxels = np.arange(24, dtype="<i2").reshape(2, 3, 4)
    found = [np.empty(n, "<i2") for n in (1, 2, 3, 4)]
    with pytest.raises(ValueError, match="do not fit"):
        loop.profiles(voxels, True, *found[::-1])
    with pytest.raises(ValueError, match="do not fit"):
        loop.profiles(voxels.astype("f4"), True, *found)
    assert not intensity.fits_profiles(voxels.astype(">i2"))
    assert not intensity.fits_profiles(voxels.astype("f4"))
    assert not intensity.fits_profiles(voxels[:, :, ::2])
    first = intensity.profiles(voxels)
    monkeypatch.setattr(intensity, "chunk_loops", lambda: None)
    second = intensity.profiles(voxels)
    assert (first.minimum, first.maximum) == (second.minimum, second.maximum) == (0, 23)
    for one, other in zip(first.along, second.along, strict=True):
        np.testing.assert_array_equal(one, other)


def test_rows_of_one_voxel_have_no_stride_to_go_by() -> None:
    volume = np.array([[[85], [51]], [[63], [26]]], np.uint8).transpose(1, 0, 2)
    ((chunk,),) = gathered_rows(volume, (4, 4, 4), "uint8")
    wanted = np.zeros((4, 4, 4), np.uint8)
    wanted[:2, :2, :1] = volume
    assert (chunk == wanted).all()
    assert intensity.profiles(volume.astype(np.int16)).minimum == 26
