"""One round of a contestant: crops per second, and what they cost the reader and the store."""

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass

from mim3d.bench.remote.server import usage
from mim3d.bench.remote.streams import BATCH, Batches


@dataclass(frozen=True)
class Rate:
    """Crops per second of wall clock; per crop CPU ms of the reader and of the server, requests,
    and bytes sent."""

    per_s: float
    cpu_ms: float
    server_cpu_ms: float = 0.0
    requests: float = 0.0
    nbytes: float = 0.0


def timed(stream: AbstractContextManager[Batches], address: str, warm: int, crops: int) -> Rate:
    """Take `warm` crops, then time `crops` more, while it reads ahead as in the middle of a run."""
    with stream as reading:
        for _ in range(warm // BATCH):
            next(reading)
        before = usage(address) if address else None
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(crops // BATCH):
            next(reading)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        if before is None:
            return Rate(crops / wall, 1e3 * cpu / crops)
        after = usage(address)
    return Rate(
        crops / wall,
        1e3 * cpu / crops,
        1e3 * (after.cpu_s - before.cpu_s) / crops,
        (after.requests - before.requests) / crops,
        (after.nbytes - before.nbytes) / crops,
    )
