"""Options of the commands that train, and their ranks on this machine."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from mim3d.dataio.finite import MOST_WORKERS, refuse_outside
from mim3d.engine.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class LaunchArgs:
    """On how many processes a command trains."""

    nproc: int = 1
    """Processes to start on this machine (one per GPU)."""
    max_restarts: int = 0
    """How often to start again from the last checkpoint when a process dies (with --nproc)."""
    staging: str = ""
    """Folder of this machine in which a run at an address (--out s3://...) is made; of this user's
    cache if nothing is said."""

    def __post_init__(self) -> None:
        """Counts that can be."""
        refuse_outside(self, "nproc", most=MOST_WORKERS, kind=ConfigError)
        if self.nproc < 1 or self.max_restarts < 0:
            raise ConfigError(
                f"--nproc {self.nproc} must be at least 1 and --max-restarts {self.max_restarts} "
                "not negative"
            )

    @property
    def launches(self) -> bool:
        """Whether this process is to start ranks, and not one of them."""
        return self.nproc > 1 and "RANK" not in os.environ

    def launch(self, words: Sequence[str], timeout_s: float) -> None:
        """Run `mim3d WORDS` as ranks; `timeout_s` is how long they wait for one another.

        A signal must leave them as much time to save.
        """
        from mim3d.engine.distributed.launch import launch_ranks

        launch_ranks(rank_words(words), self.nproc, self.max_restarts, shutdown_s=timeout_s)


def is_first() -> bool:
    """Whether this process prints and writes figures; of many ranks of a run one does."""
    return os.environ.get("RANK", "0") == "0"


def rank_words(words: Sequence[str]) -> list[str]:
    """The words of one rank: without those of the launcher, which torchrun would take for its."""
    mine = ("--nproc", "--max-restarts", "--max_restarts")
    kept: list[str] = []
    queue = iter(words)
    for word in queue:
        if word in mine:
            next(queue, None)
        elif not word.startswith(tuple(f"{name}=" for name in mine)):
            kept.append(word)
    return kept
