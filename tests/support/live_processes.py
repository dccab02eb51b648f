"""Processes that a test waits for the end of, though they are not its own children."""

import time
from collections.abc import Iterable

import psutil


def runs(process: psutil.Process) -> bool:
    """Whether it does; a zombie does not, that nobody collects where its parent went first."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for_end(processes: Iterable[psutil.Process], seconds: float = 240) -> None:
    """Until none of them runs."""
    deadline = time.monotonic() + seconds
    while any(map(runs, processes)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
