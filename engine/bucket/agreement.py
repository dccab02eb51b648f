"""What ranks do together: in saving threads, where all learn of one's error; once a machine."""

import fcntl
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

import torch.distributed as dist

from mim3d.dataio.errors import Mim3dError
from mim3d.engine.distributed.process_group import Ranks, first_decides
from mim3d.engine.errors import CheckpointError, TrainingError
from mim3d.engine.runs.checkpoint_reader import failure_line

Done = TypeVar("Done")


def together(ranks: Ranks, act: Callable[[], Done]) -> list[Done]:
    """What each rank's `act` gave; a CheckpointError on all of them where one failed.

    A TrainingError where it was one, after which the run cannot go on.
    """
    mine: tuple[object, str, bool] = None, "", False
    try:
        mine = act(), "", False
    except Exception as error:
        reason = str(error) if isinstance(error, Mim3dError) else failure_line(error)
        mine = None, reason, isinstance(error, TrainingError)
    found: list = [None] * ranks.world
    dist.all_gather_object(found, mine, group=ranks.saving)
    for rank, (_, reason, final) in enumerate(found):
        if reason:
            kind = TrainingError if final else CheckpointError
            raise kind(reason if ranks.world == 1 else f"rank {rank}: {reason}")
    return cast(list[Done], [done for done, *_ in found])


def first_acts(ranks: Ranks, act: Callable[[], None]) -> None:
    """The same of what the first rank alone does."""
    together(ranks, act if ranks.first else lambda: None)


def elsewhere(ranks: Ranks, folder: Path, act: Callable[[], None]) -> None:
    """Do `act` once on every machine whose ranks do not see the first rank's `folder`.

    What the first rank has in its own, the others get by it.
    """
    mark = folder / first_decides(ranks, lambda: _left_mark(folder))
    try:
        if not mark.exists():
            with (folder / ".turn").open("a") as turn:
                fcntl.flock(turn, fcntl.LOCK_EX)
                if not mark.exists():
                    act()
                    mark.touch()
        dist.barrier(group=ranks.control)
    finally:
        mark.unlink(missing_ok=True)


def _left_mark(folder: Path) -> str:
    mark = folder / f".here-{uuid.uuid4().hex}"
    mark.touch()
    return mark.name
