"""Buffers used again are never anybody else's while a view of them lives."""

import gc

import numpy as np
import pytest

from mim3d.dataio import memory as scratch_module
from mim3d.dataio.memory import LEAST_BYTES, forget, scratch


@pytest.fixture(autouse=True)
def none_kept():
    forget()
    yield
    forget()


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_a_buffer_is_used_again_when_its_last_view_is_gone():
    first = scratch(3 * LEAST_BYTES + 5)
    assert first.shape == (3 * LEAST_BYTES + 5,)
    assert first.flags.writeable
    assert address(first) % 4096 == 0
    place = address(first)
    del first
    gc.collect()
    assert address(scratch(3 * LEAST_BYTES)) == place


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[5:100],
        lambda a: np.frombuffer(a, "<i2")[::-1],
        lambda a: np.frombuffer(memoryview(a)[:64], "<f4").reshape(4, 4).T,
        lambda a: np.lib.stride_tricks.as_strided(a, (4,), (8,)),
        memoryview,
    ],
)
def test_a_view_of_any_kind_keeps_it(view):
    first = scratch(LEAST_BYTES)
    place = address(first)
    kept = view(first)
    del first
    gc.collect()
    second = scratch(LEAST_BYTES)
    assert address(second) != place
    second[:] = 7
    before = bytes(kept)
    second[:] = 9
    assert bytes(kept) == before


def test_small_or_ill_fitting_requests_leave_it_alone():
    place = address(scratch(64 * LEAST_BYTES))
    assert address(scratch(LEAST_BYTES)) != place
    assert scratch(0).size == 0
    assert address(scratch(20 * LEAST_BYTES)) == place


def test_no_more_than_a_few_are_kept_and_none_after_forgetting():
    held = [scratch(LEAST_BYTES * n) for n in range(1, 10)]
    del held
    gc.collect()
    assert len(scratch_module._free) == scratch_module.KEPT
    forget()
    assert not scratch_module._free


def test_no_room_is_a_memory_error():
    with pytest.raises(MemoryError):
        scratch(1 << 60)
