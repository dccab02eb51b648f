"""The ranks of one round agree on a prefix for their keys, in a store that may know earlier rounds.

An agent's store outlives a restart, and so do the keys of those who died. What agents count
(`TORCHELASTIC_RESTART_COUNT`) is their own: other nodes do not count a failure here. So the first
rank names the round anew, and the others ask it under a name that was never used before.
"""

import time
import uuid
from collections.abc import Callable

import torch.distributed as dist

from mim3d.engine.errors import TrainingError

POLL_S = 0.05
HELLO, WELCOME, HERE = "mim3d-hello", "mim3d-welcome", "mim3d-here"


def meet(store: dist.Store, rank: int, world: int, timeout_s: float) -> str:
    """Name of this round, the same on every rank; TrainingError naming who did not come."""
    deadline = time.monotonic() + timeout_s
    if rank == 0:
        return _welcome(store, world, deadline)
    return _ask(store, rank, deadline)


def _ask(store: dist.Store, rank: int, deadline: float) -> str:
    mine = uuid.uuid4().hex
    store.set(f"{HELLO}/{rank}", mine)
    answer = f"{WELCOME}/{mine}"
    if not until(lambda: store.check([answer]), deadline):
        raise TrainingError(
            f"rank {rank} waited for the first rank in vain: it was not started, or did not get "
            "so far; what it says tells more. parallel.timeout-s is how long it is waited for"
        )
    name = store.get(answer).decode()
    store.set(f"{HERE}/{name}/{rank}", "")
    return name


def _welcome(store: dist.Store, world: int, deadline: float) -> str:
    """Answer whoever asks, also those who died since, until all that live have the answer."""
    name = uuid.uuid4().hex
    missing, answered = set(range(1, world)), dict[int, bytes]()

    def all_here() -> bool:
        for rank in sorted(missing):
            hello = f"{HELLO}/{rank}"
            if store.check([hello]) and (mine := store.get(hello)) != answered.get(rank):
                answered[rank] = mine
                store.set(f"{WELCOME}/{mine.decode()}", name)
            if store.check([f"{HERE}/{name}/{rank}"]):
                missing.remove(rank)
        return not missing

    if not until(all_here, deadline):
        raise TrainingError(
            f"the first rank waited in vain for {named(missing)} of {world}: not started, or ended "
            "on the way. parallel.timeout-s is how long they are waited for"
        )
    return name


def until(true: Callable[[], bool], deadline: float) -> bool:
    """Look until something is true; False where it is not by the deadline (time.monotonic)."""
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def named(ranks: set[int]) -> str:
    """Ranks in words: the first few by number."""
    some = ", ".join(map(str, sorted(ranks)[:8]))
    word = "rank" if len(ranks) == 1 else "ranks"
    return f"{word} {some}" + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
