"""One rank tells why a run of many ended; the others end too, quietly and soon.

    with first_failure(ranks):
        train()

The rank that fails first leaves its reason in the ranks' store and raises its own error. Others,
whose collectives then break off, or that met the same error, find it there and raise PeerError.
Where nobody left a reason a rank was killed, and the first that notices says so, unless the
launcher does.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from mim3d.engine.distributed.launch import launched_here
from mim3d.engine.distributed.process_group import Ranks
from mim3d.engine.errors import TrainingError

CLAIM, REASON = "mim3d-failed", "mim3d-failed-why"
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
        reason = reason_of_another(ranks.rank, error)
        if reason is not None:
            raise PeerError(reason) from None
        if not is_lost_peer(error):
            raise
        lost = (
            f"rank {ranks.rank} lost contact with another of the {ranks.world} ranks: a process "
            "was killed, or its machine is gone (out of memory?). The same command goes on from "
            f"the last checkpoint ({first_line(error)[:100]})"
        )
        # Our own launcher knows which process died, and of what.
        raise (PeerError if launched_here() else TrainingError)(lost) from error


def reason_of_another(rank: int, error: Exception) -> str | None:
    """What the first failing rank said; None where this is the one, or where none can be asked."""
    try:
        store = dist.distributed_c10d._get_default_store()
        if store.add(CLAIM, 1) == 1:
            store.set(REASON, f"rank {rank}: {first_line(error)}")
            return None
        store.wait([REASON])
        return store.get(REASON).decode()
    except (RuntimeError, ValueError):
        # The store lived in a process that is gone: its error stands above, if it had one.
        return "the first rank is gone" if is_lost_peer(error) else None


def is_lost_peer(error: BaseException) -> bool:
    """Whether a collective broke off, as against a mistake in the arithmetic.

    torch's own types say so (NCCL's, the store's and the network's errors are DistErrors); of
    gloo's, which are plain RuntimeErrors, the text does.
    """
    if isinstance(error, dist.DistError):
        return True
    return type(error) is RuntimeError and LOST_GLOO.search(str(error)) is not None


def first_line(error: BaseException) -> str:
    """The error's first line, without a C++ stack."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
