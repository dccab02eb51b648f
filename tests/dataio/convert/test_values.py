"""Changes of stored values in their own memory: the same voxels, and the memory left over goes."""

import mmap
import os
from pathlib import Path

import numpy as np
import pytest

from mim3d.dataio import memory as memory_module
from mim3d.dataio.convert.values import Values, as_asked, cut
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.memory import room, trim

BOX = ((1, 2, 0), (5, 6, 7))
PAGES = Path("/proc/self/pagemap")


def in_room(voxels: np.ndarray) -> np.ndarray:
    """A copy in memory that can be trimmed."""
    own = room(voxels.nbytes).view(voxels.dtype).reshape(voxels.shape)
    own[...] = voxels
    return own


def resident(owner: np.ndarray, nbytes: int) -> int:
    """Of so many bytes from an array's first one on, those whose pages are in memory.

    Page by page: mappings beside one another may be one to the kernel.
    """
    page = mmap.PAGESIZE
    first = owner.__array_interface__["data"][0] // page
    with PAGES.open("rb", buffering=0) as pages:
        pages.seek(8 * first)
        found = np.frombuffer(pages.read(8 * -(-nbytes // page)), np.uint64)
    return page * int(np.count_nonzero(found >> np.uint64(62)))  # in memory, or swapped out


@pytest.mark.parametrize("shape", [(6, 7, 8), (2, 6, 7, 8)])
@pytest.mark.parametrize("kind", ["own", "room", "flipped", "read-only", "foreign"])
def test_a_box_is_cut_out_in_place_or_copied(shape, kind):
    voxels = np.random.default_rng(0).integers(-99, 99, shape).astype("<i2")
    (z0, y0, x0), (z1, y1, x1) = BOX
    wanted = voxels[..., z0:z1, y0:y1, x0:x1].copy()
    if kind == "room":
        voxels = in_room(voxels)
    if kind == "flipped":
        voxels = voxels[..., ::-1].copy()[..., ::-1]
    if kind == "foreign":
        voxels = voxels.astype(">i2")
    voxels.flags.writeable = kind != "read-only"
    got = cut(voxels, BOX)
    np.testing.assert_array_equal(got, wanted)
    assert got.flags.c_contiguous
    assert got.dtype == voxels.dtype
    assert np.shares_memory(got, voxels) == (kind in ("own", "room", "foreign"))


@pytest.mark.parametrize("target", ["uint8", "int16"])
@pytest.mark.parametrize("window", [None, (-20.0, 300.0)])
def test_quantised_in_place_equals_quantised_apart(target, window):
    voxels = np.random.default_rng(0).normal(100, 80, (5, 40, 50)).astype(np.float32)
    conversion = Conversion(dtype=target, window=window)
    frozen = voxels.copy()
    frozen.flags.writeable = False
    apart = as_asked(Values(frozen, 0.5, 3.0), conversion, "f")
    within = as_asked(Values(in_room(voxels), 0.5, 3.0), conversion, "f")
    np.testing.assert_array_equal(within.voxels, apart.voxels)
    assert within.voxels.dtype == target
    assert (within.slope, within.intercept) == (apart.slope, apart.intercept)
    assert within.max_error == apart.max_error > 0
    np.testing.assert_array_equal(frozen, voxels)


@pytest.mark.skipif(not os.access(PAGES, os.R_OK), reason="needs Linux's /proc")
def test_what_a_smaller_volume_leaves_is_given_back():
    voxels = in_room(np.full((8, 512, 512), 1.5, np.float32))
    voxels[0] = 7
    whole = voxels.nbytes
    assert resident(voxels, whole) >= whole
    stored = as_asked(Values(voxels, 1.0, 0.0), Conversion(dtype="uint8"), "f").voxels
    assert stored.nbytes <= resident(stored, whole) < stored.nbytes + (64 << 10)
    assert stored[0].min() == 255
    assert stored[1:].max() == 0


def test_only_rooms_are_trimmed(monkeypatch):
    found = []
    monkeypatch.setattr(memory_module, "_advise", lambda _memory, advice, *span: found.append(span))
    page = mmap.PAGESIZE
    for memory in (np.zeros(9 * page, np.uint8), np.frombuffer(mmap.mmap(-1, 9 * page), np.uint8)):
        trim(memory[:page])
    assert found == []
    memory = room(9 * page)
    found.clear()
    trim(memory[: 2 * page + 1].view(np.int8))
    trim(memory)
    trim(memory[::2])
    trim(np.ndarray((page,), np.uint16, memory.data))
    assert found == [(3 * page, 6 * page), (2 * page, 7 * page)]


def test_no_room_is_a_memory_error():
    with pytest.raises(MemoryError, match="no room"):
        room(1 << 62)
