"""What all ranks must have in common and nodes may not: the run's folder, and the corpus."""

import os
import time
import uuid
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
    if ranks.world == 1:
        return
    mark = folder / first_decides(ranks, lambda: _leave_mark(folder))
    sees = until(mark.exists, time.monotonic() + SEEN_S)
    others = _of_all(ranks, (sees, str(folder.absolute())))
    if ranks.first:
        mark.unlink(missing_ok=True)
    blind = {rank: node for rank, ((seen, _), node) in enumerate(others) if not seen}
    if blind:
        (_, written), node = others[0]
        raise ConfigError(
            f"{written} is not one folder on all nodes: what rank 0 wrote there on "
            f"{node} is not seen by {_named_with_nodes(blind)}. Name an --out that all "
            "nodes share: every rank writes its part of a checkpoint there"
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


def _leave_mark(folder: Path) -> str:
    name = f".seen-by-all-{uuid.uuid4().hex}"
    (folder / name).touch()
    return name


def _of_all(ranks: Ranks, fact: Fact) -> list[tuple[Fact, str]]:
    """Each rank's fact, and its node."""
    found: list = [None] * ranks.world
    dist.all_gather_object(found, (fact, os.uname().nodename), group=ranks.control)
    return found


def _named_with_nodes(ranks: dict[int, str]) -> str:
    return f"{named(set(ranks))} on {', '.join(sorted(set(ranks.values()))[:8])}"
