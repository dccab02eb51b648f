"""One writer: flock on a file, patient with a dead holder."""

import os
import re
from pathlib import Path


def is_dead(holder: str) -> bool:
    """Whether `process PID on NODE` names a process of this machine that is no more."""
    found = re.fullmatch(r"process (\d+) on (\S+)", holder)
    if found is None or found[2] != os.uname().nodename:
        return False
    return not Path("/proc", found[1]).exists()
