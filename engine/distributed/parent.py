"""A rank ends with the process that started it, however that one ends; imports no torch."""

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

LAUNCHER = "MIM3D_LAUNCHER"
"""Process that starts ranks; they find it in their environment."""
PR_SET_PDEATHSIG = 1
POLL_S = 0.2


def end_with_launcher() -> None:
    """In a rank that `launch_ranks` started: be killed when that process is no more.

    The kernel kills even a rank that is stopped; elsewhere than on Linux a thread looks.
    """
    parent = int(os.environ.get(LAUNCHER, "0"))
    if not parent:
        return
    if os.getppid() != parent:
        if not Path("/proc", str(parent)).exists() and sys.platform == "linux":
            os._exit(1)  # it died while this process was starting
        return  # a process that a rank started
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() == parent:
            return
    threading.Thread(target=_look, args=(parent,), daemon=True).start()


def _look(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_S)
    os._exit(1)


def quieten_torch() -> None:
    """In a rank, before torch is imported: no C++ stack for each call of a store that is gone."""
    if not {"RANK", "SLURM_PROCID"}.isdisjoint(os.environ):
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
