"""One round of a contestant: crops per second of processor time and of wall clock."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mim3d.bench.loader.contestants import Round
from mim3d.bench.loader.crops import Crops


@dataclass(frozen=True)
class Rate:
    """Crops per second of CPU time and of wall clock; `cold` per wall second with no page cache."""

    per_cpu_s: float
    per_wall_s: float
    cold_per_wall_s: float | None = None


def timed(run: Round, crops: Crops) -> Rate:
    """Time a round until what it reads ahead is read, as it found the same read ahead."""
    settle()
    wall, cpu = time.perf_counter(), time.process_time()
    run(crops)
    wall, cpu = settle() - wall, time.process_time() - cpu
    return Rate(len(crops) / cpu, len(crops) / wall)


def settle() -> float:
    """Wait until this process is idle, for loaders read ahead; the time when that began."""
    idle_s, patience_s = 0.05, 10.0
    first = began = time.perf_counter()
    while began - first < patience_s:  # a driver's thread may never rest
        before = time.process_time()
        time.sleep(idle_s)
        if time.process_time() - before < 0.02 * idle_s:
            break
        began = time.perf_counter()
    return began


def evict(files: Sequence[Path]) -> None:
    """Ask the system to drop the files from its page cache, as far as it listens."""
    for file in files:
        fd = os.open(file, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
