"""Random numbers of one purpose, apart from all others."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int, purpose: str) -> Iterator[None]:
    """Draw the CPU's random numbers from (purpose, seed), and leave the stream outside alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(f"{purpose}:{seed}".encode()))
        yield
