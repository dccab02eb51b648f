"""The settings that `mim3d bench step --sweep` tries, and which of two that it tried is better."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mim3d.bench.noise import compared
from mim3d.engine.pretrain.config import PretrainConfig

PARTS = (1, 2, 4)
"""Micro-batches of a step."""
AHEAD = (2, 4, 8)
"""Batches read ahead."""
THREADS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Setting:
    """What the sweep chooses; the cheaper first where they are compared."""

    grad_accum: int
    threads: int
    cache: str
    prefetch: int

    def words(self) -> list[str]:
        """Options of `mim3d pretrain`."""
        return [
            *("--parallel.grad-accum", str(self.grad_accum), "--data.threads", str(self.threads)),
            *("--data.cache", self.cache, "--data.prefetch", str(self.prefetch)),
        ]

    def applied(self, config: PretrainConfig) -> PretrainConfig:
        """The configuration with these settings."""
        loader = dataclasses.replace(
            config.data.loader, threads=self.threads, cache=self.cache, prefetch=self.prefetch
        )
        return dataclasses.replace(
            config,
            data=dataclasses.replace(config.data, loader=loader),
            parallel=dataclasses.replace(config.parallel, grad_accum=self.grad_accum),
        )


def reading_choices(device: torch.device) -> dict[str, dict[str, Any]]:
    """Threads and caches to try, the cheapest first."""
    caches = ("none", "host") if device.type == "cpu" else ("host", "device")
    cores = len(os.sched_getaffinity(0))
    threads = [n for n in THREADS if n <= max(cores, 1)]
    return {
        f"threads {n}, cache {cache}": {"threads": n, "cache": cache}
        for n in threads
        for cache in caches
    }


def ahead_choices() -> dict[str, dict[str, Any]]:
    """Batches to read ahead."""
    return {f"prefetch {n}": {"prefetch": n} for n in AHEAD}


def cheapest_best(rates: Mapping[str, Sequence[float]]) -> str:
    """The first, unless a later one is faster by more than the noise; then that one, and so on."""
    best, *others = rates
    for name in others:
        ratio = compared(rates[name], rates[best])
        if ratio.resolved and ratio.value > 1:
            best = name
    return best
