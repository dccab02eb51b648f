"""One round of a contestant: crops per second of processor time and of wall clock."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mim3d.bench.loader.contestants import Round
from mim3d.bench.loader.crops import Crops
from mim3d.bench.noise import spread
from mim3d.bench.timing import settle


@dataclass
class Rates:
    """Crops per second of processor time and of wall clock by round; `cold` with no page cache."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    cold: float | None = None

    def add(self, run: Round, crops: Crops) -> None:
        """One more round."""
        cpu, wall = timed(run, crops)
        self.cpu.append(cpu)
        self.wall.append(wall)

    def summary(self) -> dict[str, float | None]:
        """Medians, as --json keeps them."""
        return {
            "per_cpu_s": spread(self.cpu).median,
            "per_wall_s": spread(self.wall).median,
            "cold_per_wall_s": self.cold,
        }


def timed(run: Round, crops: Crops) -> tuple[float, float]:
    """Crops per second of processors and of wall clock.

    Timed until what a loader reads ahead is read, as it found the same read ahead.
    """
    settle()
    wall, cpu = time.perf_counter(), time.process_time()
    run(crops)
    wall, cpu = settle() - wall, time.process_time() - cpu
    return len(crops) / cpu, len(crops) / wall


def evict(files: Sequence[Path]) -> None:
    """Ask the system to drop the files from its page cache, as far as it listens."""
    for file in files:
        fd = os.open(file, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
