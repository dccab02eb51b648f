"""What all ranks must have in common and nodes may not: the run's folder, and the corpus."""

import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist

from mim3d.engine.distributed.meeting import named, until
from mim3d.engine.distributed.process_group import Ranks, first_decides
from mim3d.engine.errors import ConfigError

Fact = TypeVar("Fact")

SEEN_S = 10.0
"""Network file systems may show a new file a little later."""


def refuse_unshared_folder(folder: Path, ranks: Ranks) -> None:
    """A ConfigError where a rank does not see what the first one writes in the run's folder.

    Every rank writes its part of a checkpoint there.
    """
    refuse_unseen(
        ranks,
        Marks(
            f"{folder.absolute()} is not one folder on all nodes",
            lambda name: (folder / name).touch(),
            lambda name: (folder / name).exists(),
            lambda name: (folder / name).unlink(missing_ok=True),
            "Name an --out that all nodes share",
        ),
    )


@dataclass(frozen=True)
class Marks:
    """How a mark is left in a place, seen and removed by its name; and what is said of the place
    where others do not see it.
    """

    unlike: str
    leave: Callable[[str], None]
    sees: Callable[[str], bool]
    remove: Callable[[str], None]
    remedy: str


def refuse_unseen(ranks: Ranks, marks: Marks) -> None:
    """A ConfigError on every rank where one does not see the mark that the first one leaves."""
    if ranks.world == 1:
        return
    name, unlike = first_decides(ranks, lambda: _left(marks))
    sees = until(lambda: marks.sees(name), time.monotonic() + SEEN_S)
    others = _of_all(ranks, sees)
    if ranks.first:
        marks.remove(name)
    blind = {rank: node for rank, (seen, node) in enumerate(others) if not seen}
    if blind:
        raise ConfigError(
            f"{unlike}: what rank 0 wrote there on {others[0][1]} is not seen by "
            f"{_named_with_nodes(blind)}. {marks.remedy}: every rank writes its part of a "
            "checkpoint there"
        )


def refuse_other_corpora(corpus: str, sha256: str, ranks: Ranks) -> None:
    """A ConfigError where a rank opened another corpus by the same name; `sha256` is this rank's.

    Ranks would draw other crops than those that their indices mean.
    """
    if ranks.world == 1:
        return
    found = _of_all(ranks, sha256)
    first, node = found[0]
    other = {rank: node for rank, (digest, node) in enumerate(found) if digest != first}
    if other:
        digest = found[min(other)][0]
        raise ConfigError(
            f"{corpus} is not the same corpus on all nodes: its manifest is {first[:12]} for rank "
            f"0 on {node} and {digest[:12]} for {_named_with_nodes(other)}. Copy it to every node "
            "anew, or name one that all nodes share"
        )


def _left(marks: Marks) -> tuple[str, str]:
    name = f".seen-by-all-{uuid.uuid4().hex}"
    marks.leave(name)
    return name, marks.unlike


def _of_all(ranks: Ranks, fact: Fact) -> list[tuple[Fact, str]]:
    """Each rank's fact, and its node."""
    found: list = [None] * ranks.world
    dist.all_gather_object(found, (fact, os.uname().nodename), group=ranks.control)
    return found


def _named_with_nodes(ranks: dict[int, str]) -> str:
    return f"{named(set(ranks))} on {', '.join(sorted(set(ranks.values()))[:8])}"
