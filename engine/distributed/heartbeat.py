"""What each rank of this machine is doing, for the process that started them; imports no torch.

A beat is a copy into a mapped page of a file, so that a rank can tell every phase of every step.
"""

import mmap
import os
import struct
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

FOLDER = "MIM3D_HEARTBEATS"
"""Where ranks leave their pages; set by `launch_ranks`, and nothing is left where it is not."""
PAGE, HEAD = 256, struct.Struct("<qdqH")

WAITING, COMPUTING = "waiting for a batch", "computing"
LOST, FAILED = "lost contact with another rank", "failed and said why"
"""How a rank ends; what else it may be doing is in words of its own."""


@dataclass(frozen=True)
class Beat:
    """The last that a rank left: since when it does what."""

    rank: int
    process: int
    time: float
    """By the system's monotonic clock, which processes share."""
    step: int
    """The optimiser step under way, from 1; 0 before the first."""
    doing: str

    @property
    def where(self) -> str:
        """In words."""
        return f"at step {self.step}, {self.doing}" if self.step else self.doing


class Heart:
    """A rank's page."""

    def __init__(self, file: Path) -> None:
        with file.open("wb+") as out:
            out.truncate(PAGE)
            self._page = mmap.mmap(out.fileno(), PAGE)
        self._step = 0

    def beat(self, doing: str, step: int | None = None) -> None:
        """Begin something else; `step` stays where none is given."""
        self._step = self._step if step is None else step
        text = doing.encode()[: PAGE - HEAD.size]
        head = HEAD.pack(os.getpid(), time.monotonic(), self._step, len(text))
        self._page[: HEAD.size + len(text)] = head + text


@lru_cache(maxsize=1)
def _heart() -> Heart | None:
    folder = os.environ.get(FOLDER, "")
    rank = os.environ.get("RANK", "")
    return Heart(Path(folder) / f"rank-{int(rank)}") if folder and rank else None


def beat(doing: str, step: int | None = None) -> None:
    """Say what this rank does from now on."""
    heart = _heart()
    if heart is not None:
        heart.beat(doing, step)


def read_beats(folder: Path) -> dict[int, Beat]:
    """The last beat of each rank that has begun."""
    beats: dict[int, Beat] = {}
    for file in folder.glob("rank-*"):
        page = file.read_bytes()
        if len(page) != PAGE:
            continue  # just being made
        process, when, step, length = HEAD.unpack_from(page)
        doing = page[HEAD.size : HEAD.size + length].decode(errors="replace")
        if process:
            rank = int(file.name.removeprefix("rank-"))
            beats[rank] = Beat(rank, process, when, step, doing)
    return beats
