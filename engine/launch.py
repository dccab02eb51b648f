"""Ranks on this machine, one process each, under torch's elastic agent.

The agent lives in this process: a signal to it reaches the ranks, which save and end, and no
orphan is left. A rank that dies ends the others; up to `restarts` times all start again.
"""

import logging
import os
import sys
import uuid
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from mim3d.dataio.errors import Mim3dError
from mim3d.engine.outcome import EXIT_USER_ERROR

MARK = "mim3d-"
"""Begins the run id that the agent hands to its ranks."""


def launched_here() -> bool:
    """Whether this process is a rank that `launch_ranks` started."""
    return os.environ.get("TORCHELASTIC_RUN_ID", "").startswith(MARK)


def launch_ranks(words: Sequence[str], nproc: int, restarts: int) -> None:
    """Run `mim3d WORDS` as `nproc` ranks.

    Raises SystemExit where a rank has told the error, Mim3dError where one died without a word.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # What went wrong is told in one line, by a rank or below; the agent's own account adds nothing.
    logging.disable(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        run_id=f"{MARK}{uuid.uuid4()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=restarts,
        monitor_interval=0.2,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "mim3d.engine.cli", *words)
    except SignalException as signalled:
        print(f"mim3d: {signalled.sigval.name} was passed on to {nproc} ranks", file=sys.stderr)
        raise SystemExit(0) from None
    except ChildFailedError as failed:
        rank, first = failed.get_first_failure()
        if first.exitcode == EXIT_USER_ERROR:
            raise SystemExit(EXIT_USER_ERROR) from None
        raise Mim3dError(
            f"rank {rank} of {nproc} ended by {first.signal_name()} (code {first.exitcode}; out of "
            "memory?). The same command goes on from the last checkpoint, --max-restarts N would "
            "have done so by itself"
        ) from None
