"""Ranks of one round meet in a store that knows earlier rounds, also ones that were cut short."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from mim3d.engine.distributed.meeting import meet, named
from mim3d.engine.distributed.process_group import met_in_one_line
from mim3d.engine.distributed.within import within
from mim3d.engine.errors import TrainingError


def met(store, world, late=()):
    """Names of the round, by rank; those in `late` come when the others have begun."""

    def come(rank):
        if rank in late:
            time.sleep(0.3)
        return meet(store, rank, world, 30.0)

    with ThreadPoolExecutor(world) as threads:
        return list(threads.map(come, range(world)))


@pytest.mark.parametrize("late", [(), (0,), (1, 2)], ids=["together", "first-late", "others-late"])
def test_every_round_has_a_name_of_its_own(late):
    store = dist.HashStore()
    rounds = [met(store, 3, late) for _ in range(3)]
    assert all(len(set(names)) == 1 for names in rounds)
    assert len({names[0] for names in rounds}) == 3


def test_what_a_round_that_was_cut_short_left_is_not_taken_for_this_one():
    """A rank that asked and died, then a first rank that died waiting for another."""
    store = dist.HashStore()
    with pytest.raises(TrainingError, match="rank 1 waited for the first rank in vain"):
        meet(store, 1, 3, 0.2)
    with pytest.raises(TrainingError, match="waited in vain for ranks 1, 2 of 3"):
        meet(store, 0, 3, 0.4)
    assert len(set(met(store, 3, late=(1,)))) == 1


def test_many_ranks_are_named_by_the_first():
    assert named({3}) == "rank 3"
    assert named(set(range(1, 20))) == "ranks 1, 2, 3, 4, 5, 6, 7, 8 and 11 more"


def test_ranks_that_do_not_find_one_another_say_so_in_one_line(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "node-7")
    wanted = r"rank 0 of 1 did not find the others within 5 s.*node-7:.*IFNAME.*no route"
    with pytest.raises(TrainingError, match=wanted) as caught, met_in_one_line(5.0):
        raise dist.DistNetworkError("no route\nframe #0: c10::Error\nframe #1")
    assert "\n" not in str(caught.value)


def test_a_call_that_never_returns_is_left_behind():
    for_ever = threading.Event()
    with pytest.raises(TimeoutError):
        within(0.1, for_ever.wait)
    for_ever.set()
    assert within(60.0, lambda: 7) == 7
    with pytest.raises(KeyError):
        within(60.0, lambda: {}[1])
