"""What stands around every run: ranks, deterministic kernels, errors in one line, progress."""

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from mim3d.dataio.progress import Progress, progress
from mim3d.engine.arithmetic.attention import attention_kernels
from mim3d.engine.distributed.config import DeviceKind, ParallelConfig
from mim3d.engine.distributed.first_failure import first_failure
from mim3d.engine.distributed.process_group import Ranks, process_ranks
from mim3d.engine.errors import TrainingError


@contextmanager
def run_ranks(
    parallel: ParallelConfig, device: DeviceKind = "auto", seed: int = 0
) -> Iterator[Ranks]:
    """The ranks of a run, whose kernels are as asked for and of which one tells what went wrong.

    Random numbers that modules draw while training come from `seed` and the rank.
    """
    with ExitStack() as stack:
        stack.enter_context(deterministic_kernels(parallel.deterministic))
        stack.enter_context(attention_kernels(parallel.attention))
        ranks = stack.enter_context(process_ranks(parallel.timeout_s, device))
        stack.enter_context(first_failure(ranks))
        stack.enter_context(seeded(seed + ranks.rank, ranks.device))
        yield ranks


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Generators of the CPU and the device begin at `seed`, and are put back afterwards."""
    devices = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextmanager
def deterministic_kernels(wanted: bool) -> Iterator[None]:
    """Choose deterministic kernels for a while; a CPU's are anyway."""
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    # cuBLAS reads this when its first handle is made.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def explain_full_disk(out: Path) -> Iterator[None]:
    """A TrainingError with the remedy where the run's own files no longer find room."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise TrainingError(
            f"{out} cannot be written: {os.strerror(error.errno)}. Free space there and run the "
            "same command again: it goes on from the last checkpoint"
        ) from error


class Silent:
    """Progress of the ranks that do not print."""

    def advance(self, items: float = 1.0, status: str = "") -> None:
        """Show nothing."""

    def move(self, items: float, status: str = "") -> None:
        """Shift nothing."""

    def note(self, line: str) -> None:
        """Say nothing: the first rank does."""


@contextmanager
def shown_progress(title: str, steps: int, ranks: Ranks) -> Iterator[Progress]:
    """Progress on the first rank."""
    if not ranks.first:
        yield Silent()
        return
    with progress(title, steps, "steps") as shown:
        yield shown
