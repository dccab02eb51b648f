"""One rank tells why a run of many ended; the others end too, quietly and soon.

    with first_failure(ranks):
        train()

The rank that fails first leaves its reason in the ranks' store and raises its own error. Others,
whose collectives then break off, or that met the same error, find it there and raise PeerError.
Where nobody left a reason a rank was killed, and the first that notices says so, unless the
launcher does.
"""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

from mim3d.dataio.errors import first_line
from mim3d.engine.distributed.heartbeat import FAILED, LOST, beat
from mim3d.engine.distributed.launch import launched_here
from mim3d.engine.distributed.meeting import named
from mim3d.engine.distributed.process_group import Ranks
from mim3d.engine.distributed.within import within
from mim3d.engine.errors import TrainingError

CLAIM, REASON, LOST_BY = "mim3d-failed", "mim3d-failed-why", "mim3d-lost"
STORE_S, ROLL_CALL_S = 10.0, 3.0
"""For one call of the store, whose host may be gone without a word; for others to be heard of."""
LOST_WORDS = "lost contact with"
LOST_GLOO = re.compile(
    r"gloo|connection (closed|reset|refused)|broken pipe|socket|timed out waiting|nccl",
    re.IGNORECASE,
)
"""What a plain RuntimeError says where gloo lost a rank: it has no exception type of its own."""


class PeerError(TrainingError):
    """Another rank ended the run and has told why; the command line adds nothing to it."""


@contextmanager
def first_failure(ranks: Ranks) -> Iterator[None]:
    """Let the first failing rank's error through; on the others raise PeerError."""
    try:
        yield
    except Exception as error:
        if ranks.world == 1 or isinstance(error, PeerError):
            raise
        lost = is_lost_peer(error)
        beat(LOST if lost else FAILED)
        try:
            reason, missing = reason_of_another(ranks, error, lost)
        except (RuntimeError, ValueError, TimeoutError):
            host = os.environ.get("MASTER_ADDR", "the first node")
            reason, missing = None, f"the ranks' store on {host}"
        if reason is not None:
            if f": {LOST_WORDS}" not in reason:
                beat(FAILED)
            raise PeerError(reason) from None
        if not lost:
            raise
        message = (
            f"rank {ranks.rank} of {ranks.world} {LOST_WORDS} {missing}: killed, hanging or cut "
            "off. The same command goes on from the last checkpoint "
            f"({without_c_file(first_line(error))[:100]})"
        )
        # Our own launcher knows which process died, and of what, or what it was doing.
        raise (PeerError if launched_here() else TrainingError)(message) from None


def reason_of_another(ranks: Ranks, error: Exception, lost: bool) -> tuple[str | None, str]:
    """What the first failing rank said, None where this is the one; and of whom is no sign.

    RuntimeError, ValueError or TimeoutError where the store cannot be asked: its host is gone.
    """
    store = dist.distributed_c10d._get_default_store()
    rank = ranks.rank
    if lost:
        within(STORE_S, lambda: store.set(f"{LOST_BY}/{rank}", ""))
    if within(STORE_S, lambda: store.add(CLAIM, 1)) != 1:
        patience = timedelta(seconds=STORE_S)
        within(2 * STORE_S, lambda: store.wait([REASON], patience))
        return within(STORE_S, lambda: store.get(REASON)).decode(), ""
    missing = "another rank" if lost else ""
    if lost and not launched_here():  # our own launcher knows more
        missing = named(within(STORE_S, lambda: silent_ranks(store, ranks)))
    words = f"{LOST_WORDS} {missing}" if lost else without_c_file(first_line(error))
    within(STORE_S, lambda: store.set(REASON, f"rank {rank}: {words}"))
    return None, missing


def silent_ranks(store: dist.Store, ranks: Ranks) -> set[int]:
    """Ranks that do not say, after a while, that they lost another: it is one of these."""
    silent = set(range(ranks.world)) - {ranks.rank}
    deadline = time.monotonic() + ROLL_CALL_S
    while silent and time.monotonic() < deadline:
        silent -= {other for other in silent if store.check([f"{LOST_BY}/{other}"])}
        time.sleep(0.05)
    return silent or set(range(ranks.world)) - {ranks.rank}


def is_lost_peer(error: BaseException) -> bool:
    """Whether a collective broke off, as against a mistake in the arithmetic.

    torch's own types say so (NCCL's, the store's and the network's errors are DistErrors); of
    gloo's, which are plain RuntimeErrors, the text does.
    """
    if isinstance(error, dist.DistError):
        return True
    return type(error) is RuntimeError and LOST_GLOO.search(str(error)) is not None


def without_c_file(line: str) -> str:
    """A line without the C++ file that it arose in."""
    return re.sub(r"^\[\S+:\d+\] ", "", line)
