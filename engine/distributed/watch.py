"""The launcher looks at its ranks' heartbeats: who hangs, since which step, and in what.

A rank that hangs says nothing itself. The others do after `parallel.timeout-s`: then those of which
nothing was heard are named, and killed, as nobody can save any more.
"""

import sys
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from mim3d.engine.distributed.heartbeat import (
    COMPUTING,
    FAILED,
    LOST,
    WAITING,
    Beat,
    read_beats,
)

POLL_S = 0.5
GRACE_S = 4.0
"""Ranks that wait for the same one notice it so far apart."""
STILL_S = 120.0
"""A step that takes so long is told of."""
NAMED = 4


def lives(beat: Beat) -> bool:
    """Whether the rank's process is there."""
    try:
        return psutil.Process(beat.process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class RankWatch:
    """Looks until closed; `verdict` is what was found where the ranks lost one another."""

    def __init__(self, folder: Path, ranks: int) -> None:
        self.verdict = ""
        self._folder, self._ranks = folder, ranks
        self._stopped: set[int] = set()
        self._processes: dict[int, int] = {}
        self._still = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(POLL_S):
            self._look()

    def _look(self) -> None:
        beats = read_beats(self._folder)
        self._begin_anew(beats)
        self._note_stopped(beats.values())
        lost = [beat for beat in beats.values() if beat.doing == LOST]
        if any(beat.doing == FAILED for beat in beats.values()):
            return
        if lost and not self.verdict:
            noticed = min(beat.time for beat in lost)
            silent = [beat for beat in beats.values() if beat.doing != LOST]
            # Of a rank that died the agent knows, and of what.
            if time.monotonic() - noticed > GRACE_S and all(map(lives, silent)):
                self.verdict = self._who(silent, noticed)
                for beat in silent:
                    with suppress(psutil.Error):
                        psutil.Process(beat.process).kill()
        elif not lost:
            self._note_stillness(beats)

    def _begin_anew(self, beats: dict[int, Beat]) -> None:
        """Where ranks were started again, say why, and forget those before."""
        processes = {rank: beat.process for rank, beat in beats.items()}
        changed = [r for r, p in processes.items() if self._processes.get(r, p) != p]
        if changed:
            if self.verdict:
                print(f"mim3d: {self.verdict}; all ranks start again", file=sys.stderr, flush=True)
            self.verdict, self._still = "", False
            self._stopped.clear()
        self._processes |= processes

    def _note_stopped(self, beats: Iterable[Beat]) -> None:
        for beat in beats:
            with suppress(psutil.Error):
                if psutil.Process(beat.process).status() == psutil.STATUS_STOPPED:
                    self._stopped.add(beat.rank)
                else:
                    self._stopped.discard(beat.rank)

    def _who(self, hung: Sequence[Beat], noticed: float) -> str:
        """Whom the others waited for, the earliest first."""
        if not hung:
            return (
                f"all {self._ranks} ranks lost contact with one another (parallel.timeout-s), as "
                "where the network between them fails"
            )
        first, *others = sorted(hung, key=lambda beat: (beat.step, beat.time))
        more = "".join(f"; rank {beat.rank} {beat.where}" for beat in others[: NAMED - 1])
        return (
            f"rank {first.rank} of {self._ranks} hangs: {self._where(first)}, for "
            f"{noticed - first.time:.0f} s, until the others gave it up (parallel.timeout-s){more}"
        )

    def _where(self, beat: Beat) -> str:
        stopped = f" (process {beat.process} is stopped)" if beat.rank in self._stopped else ""
        return beat.where + stopped

    def _note_stillness(self, beats: dict[int, Beat]) -> None:
        """Say where ranks stand, once, when a step takes very long."""
        if len(beats) < self._ranks:
            return
        since = time.monotonic() - max(beat.time for beat in beats.values())
        steps = all(beat.doing in (WAITING, COMPUTING) for beat in beats.values())
        if since < STILL_S or not steps:
            self._still = False
        elif not self._still:
            self._still = True
            ranks = sorted(beats.values(), key=lambda beat: (beat.step, beat.time))[:NAMED]
            where = "; ".join(f"rank {beat.rank} {self._where(beat)}" for beat in ranks)
            more = f"; and {len(beats) - NAMED} more" if len(beats) > NAMED else ""
            line = f"no rank has moved for {since:.0f} s: {where}{more}"
            print(f"mim3d: {line}", file=sys.stderr, flush=True)
