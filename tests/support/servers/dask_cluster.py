"""A real Dask cluster for tests: a scheduler and two worker processes, started here."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def start(*words: str, log: Path) -> subprocess.Popen[bytes]:
    """A process of the Dask command line, such as `worker ADDRESS`."""
    return subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_" + words[0], *words[1:]],
        stdout=log.open("wb"),
        stderr=subprocess.STDOUT,
        cwd=log.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def start_worker(address: str, log: Path) -> subprocess.Popen[bytes]:
    """A worker of one thread, without a nanny that would restart it."""
    plain = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1"]
    return start("worker", address, *plain, log=log)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process, by force if need be."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def cluster(folder: Path) -> Iterator[str]:
    """Address of a scheduler with two single-threaded workers; logs go to `folder`."""
    log = folder / "scheduler.log"
    options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    processes = [start("scheduler", *options, log=log)]
    try:
        address = awaited(log, processes[0])
        processes += [start_worker(address, folder / f"worker{i}.log") for i in range(2)]
        with connect_when_ready(address, 2):
            pass
        yield address
    finally:
        for process in reversed(processes):
            stop(process)


def awaited(log: Path, process: subprocess.Popen[bytes]) -> str:
    """The address that a scheduler wrote to its log."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(r"(tcp://127\.0\.0\.1:\d+)", log.read_text())
        if found:
            return found[1]
        time.sleep(0.1)
    raise RuntimeError(f"the scheduler did not start: {log.read_text()}")


def connect_when_ready(address: str, n_workers: int) -> Any:
    """Client of the cluster once so many workers have joined."""
    from distributed import Client

    client = Client(address, timeout=240, set_as_default=False)
    client.wait_for_workers(n_workers, timeout=240)
    return client
