"""Buffers return when, and only when, nobody holds them."""

import gc
import sys
import weakref

import numpy as np
import pytest
import torch

from mim3d.dataio.loader.buffer_pool import BufferPool
from mim3d.dataio.transforms.augment import augmentation
from mim3d.dataio.transforms.graph import DirectGraph, GraphSpec


def test_a_buffer_is_reused_after_its_last_holder_let_go():
    pool = BufferPool((4, 8), "float32", 4)
    first = pool.take()
    place = first.ctypes.data
    second = pool.take()
    assert second.ctypes.data != place
    del first
    assert pool.take().ctypes.data == place


def test_a_tensor_or_a_slice_of_it_keeps_its_buffer():
    pool = BufferPool((4, 8), "float32", 4)
    array = pool.take()
    array[:] = 7
    part = torch.from_numpy(array)[1:3, ::2].view(-1)
    del array
    gc.collect()
    for _ in range(3):
        pool.take()[:] = 0
    assert (part == 7).all()
    place = part.untyped_storage().data_ptr()
    del part
    seen = [pool.take() for _ in range(3)]
    assert place in {each.ctypes.data for each in seen}


def test_a_pool_keeps_no_more_than_its_spare_buffers():
    pool = BufferPool((4, 8), "float32", 2)
    held = [pool.take() for _ in range(9)]
    assert len({each.ctypes.data for each in held}) == 9
    gone = [weakref.ref(each) for each in held]
    held.clear()
    assert sum(ref() is not None for ref in gone) == 2


def test_batches_that_are_kept_for_ever_do_not_end_the_reuse():
    pool = BufferPool((4, 8), "float32", 2)
    kept = [pool.take() for _ in range(5)]
    places = set()
    for _ in range(6):
        places.add(pool.take().ctypes.data)
    assert len(places) == 1
    assert places.isdisjoint(each.ctypes.data for each in kept)


def test_an_interrupt_is_not_lost_in_a_finaliser():
    """As Ctrl-C, which Python delivers at the next line of Python: none may run unseen."""
    pool = BufferPool((4, 8), "float32", 2)
    array, lines = pool.take(), []
    sys.setprofile(lambda frame, event, _arg: lines.append((frame.f_code.co_name, event)))
    try:
        del array
    finally:
        sys.setprofile(None)
    assert [name for name, event in lines if event == "call"] == []


def test_a_graph_with_operators_is_not_direct():
    kind = augmentation("segmentation")
    with pytest.raises(ValueError, match="without operators"):
        DirectGraph(GraphSpec(2, 1, (8, 8, 8), 1, None, kind, None, 1), lambda _i: [])


def test_the_direct_graph_copies_nothing():
    image, label = np.zeros((2, 1, 8, 8, 8), np.float32), np.zeros((2, 8, 8, 8), np.uint8)
    spec = GraphSpec(2, 1, (8, 8, 8), 1, "uint8", augmentation("mim"), None, 1)
    got, got_label = DirectGraph(spec, lambda _i: [image, label]).run()
    image[0, 0, 1, 2, 3] = label[1, 1, 1, 1] = 5
    assert got[0, 0, 1, 2, 3] == got_label[1, 1, 1, 1] == 5
