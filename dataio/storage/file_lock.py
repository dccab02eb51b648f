"""One writer: flock on a file, patient with a dead holder."""

import fcntl
import os
import re
import time
from pathlib import Path
from typing import IO

LOOK_S = 0.02


def take_lock(held: IO[str], patience_s: float) -> str:
    """Take the kernel's lock on an open file; who else holds it, or empty where it is ours.

    A holder that was killed while it started a worker leaves the lock with the worker until that
    one's exec closes it: a moment, so it is waited for, `patience_s`, where the holder is dead.
    """
    until = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            held.seek(0)
            holder = held.read().strip()
            if not is_dead(holder) or time.monotonic() > until:
                return holder or "another process"
            time.sleep(LOOK_S)
        else:
            return ""


def sign(held: IO[str]) -> None:
    """Write into a file whose lock is ours who has it."""
    held.truncate(0)
    held.write(f"process {os.getpid()} on {os.uname().nodename}\n")
    held.flush()


def is_dead(holder: str) -> bool:
    """Whether `process PID on NODE` names a process of this machine that is no more."""
    found = re.fullmatch(r"process (\d+) on (\S+)", holder)
    if found is None or found[2] != os.uname().nodename:
        return False
    return not Path("/proc", found[1]).exists()
