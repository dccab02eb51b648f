"""The graph on a CPU: order, ownership of outputs, errors and the end of its threads."""

import threading

import numpy as np
import pytest

from mim3d.dataio.loader.view_graph import ViewGraph
from mim3d.dataio.transforms.augment import augmentation, draw_view
from mim3d.dataio.transforms.graph import GraphSpec
from mim3d.dataio.transforms.views import plans, view_of

SIZE = (6, 7, 8)
BATCH = 3
KIND = augmentation("contrastive")


def spec_of(threads: int = 2, views: int = 2) -> GraphSpec:
    return GraphSpec(BATCH, 1, SIZE, views, None, KIND, None, threads)


def crops(number: int) -> np.ndarray:
    drawn = np.random.default_rng(number).standard_normal((BATCH, 1, *SIZE))
    return drawn.astype(np.float32)


def drawn(number: int) -> list:
    seeds = np.arange(number * BATCH, (number + 1) * BATCH, dtype=np.uint64)
    return [draw_view(KIND, seeds, view, SIZE) for view in range(2)]


@pytest.mark.parametrize("threads", [1, 3])
def test_batches_come_in_order_with_both_views(threads):
    graph = ViewGraph(spec_of(threads), lambda i: [crops(i), *drawn(i)])
    kept = [graph.run() for _ in range(12)]  # more than the pools have: nothing is overwritten
    graph.close()
    for number, outputs in enumerate(kept):
        for got, draws in zip(outputs, drawn(number), strict=True):
            for i, plan in enumerate(plans(draws, per_view=True)):
                np.testing.assert_array_equal(got[i].numpy(), view_of(crops(number)[i], plan))


def test_memory_is_used_again_once_let_go():
    graph = ViewGraph(spec_of(), lambda i: [crops(i), *drawn(i)])
    places = {tensor.data_ptr() for _ in range(40) for tensor in graph.run()}
    graph.close()
    assert len(places) < 20


def test_what_reading_raises_comes_out_and_a_closed_graph_says_so():
    def feed(i: int) -> list:
        if i == 3:
            raise OSError("the disk is gone")
        return [crops(i), *drawn(i)]

    graph = ViewGraph(spec_of(), feed)
    graph.run()
    with pytest.raises(OSError, match="the disk is gone"):
        for _ in range(3):
            graph.run()
    graph.close()
    graph.close()
    with pytest.raises(RuntimeError, match="closed"):
        graph.run()


def test_threads_end_with_the_graph():
    others = set(threading.enumerate())  # of which any may end meanwhile
    graph = ViewGraph(spec_of(threads=4), lambda i: [crops(i), *drawn(i)])
    graph.run()
    assert set(threading.enumerate()) - others
    graph.close()
    assert not set(threading.enumerate()) - others


def test_an_error_while_a_view_is_made_is_raised():
    wrong = spec_of()
    graph = ViewGraph(wrong, lambda i: [crops(i).astype(np.float64), *drawn(i)])
    with pytest.raises((ValueError, AssertionError)):
        graph.run()
    graph.close()
