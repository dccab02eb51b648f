"""One writer to a folder of results: the kernel's lock on a file in it.

The lock goes with the process, however that ends, so nothing has to be cleaned up after a crash.
Network file systems without locks refuse it loudly, which is better than two writers.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mim3d.dataio.storage.file_lock import is_dead
from mim3d.engine.errors import TrainingError
from mim3d.engine.runs.files import refuse_address

LOCK = ".lock"
DEAD_HOLDER_S = 20.0
"""A killed holder's lock is waited for: a process that it was starting may hold it for a moment."""


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; TrainingError naming the holder where another process has it."""
    refuse_address(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+", encoding="utf-8") as held:
        take(held, folder)
        held.truncate(0)
        held.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        held.flush()
        yield


def take(held: IO[str], folder: Path) -> None:
    """Take the lock, patient with a dead holder only."""
    patience = time.monotonic() + DEAD_HOLDER_S
    while True:
        try:
            return fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            held.seek(0)
            holder = held.read().strip()
            if not is_dead(holder) or time.monotonic() > patience:
                raise TrainingError(
                    f"{folder}: {holder or 'another process'} is writing to it; wait for it, stop "
                    "it, or name another --out"
                ) from error
            time.sleep(0.05)
