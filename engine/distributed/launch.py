"""Ranks on this machine, one process each, under torch's elastic agent.

The agent lives in this process: a signal to it reaches the ranks, which save and end, and where it
is killed the kernel kills them. A rank that dies ends the others; up to `restarts` times all start
again. A second Ctrl-C kills the ranks and this process.
"""

import logging
import math
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from mim3d.dataio.errors import Mim3dError
from mim3d.engine.distributed.heartbeat import FOLDER
from mim3d.engine.distributed.parent import LAUNCHER
from mim3d.engine.distributed.watch import RankWatch
from mim3d.engine.errors import EXIT_USER_ERROR
from mim3d.engine.variables import variables_kept

SAVING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""Signals on which ranks save and end; the other handled ones only end them."""
HANDLED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGQUIT)
"""What the agent listens for; Ctrl-C, of which the second means another thing, we do."""
VARIABLES = ("OMP_NUM_THREADS", LAUNCHER, FOLDER, "TORCHELASTIC_SIGNALS_TO_HANDLE")
"""What this module, and the agent, set for the ranks."""
GO_ON = (
    "The same command goes on from the last checkpoint, --max-restarts N would have done so by "
    "itself"
)
MARK = "mim3d-"
"""Begins the run id that the agent hands to its ranks."""


def launched_here() -> bool:
    """Whether this process is a rank that `launch_ranks` started."""
    return os.environ.get("TORCHELASTIC_RUN_ID", "").startswith(MARK)


def launch_ranks(
    words: Sequence[str], nproc: int, restarts: int, shutdown_s: float = 600.0
) -> None:
    """Run `mim3d WORDS` as `nproc` ranks, which have `shutdown_s` to save and end when told to.

    Raises SystemExit where a rank has told the error, Mim3dError where one died without a word.
    """
    # Left to itself the agent kills ranks 30 s after a signal, in the middle of a large checkpoint,
    # and dies of SIGUSR1. Older torch cannot be told.
    wanted: dict[str, Any] = {
        "shutdown_timeout": max(1, math.ceil(shutdown_s)),
        "signals_to_handle": ",".join(signal.Signals(number).name for number in HANDLED),
    }
    known = LaunchConfig.__dataclass_fields__
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        run_id=f"{MARK}{uuid.uuid4()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=restarts,
        monitor_interval=0.2,
        **{name: value for name, value in wanted.items() if name in known},
    )
    with (
        variables_kept(*VARIABLES),
        handlers_kept(),
        watched(nproc) as watch,
        ended_in_one_line(watch, nproc),
        interrupts_passed_on(),
    ):
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        os.environ[LAUNCHER] = str(os.getpid())
        # What went wrong is told in one line, by a rank or above; the agent's account adds nothing.
        logging.disable(logging.CRITICAL)
        elastic_launch(config, sys.executable)("-m", "mim3d.engine.commands.cli", *words)


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Take back what the agent does to signals of this process."""
    handlers = {number: signal.getsignal(number) for number in HANDLED}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:  # of C's, which Python can neither tell nor set
                signal.signal(number, handler)


@contextmanager
def ended_in_one_line(watch: RankWatch, nproc: int) -> Iterator[None]:
    """Turn what ends an agent into what the command says: nothing, where a rank has said it."""
    try:
        yield
    except SignalException as signalled:
        print(f"mim3d: {signalled.sigval.name} was passed on to {nproc} ranks", file=sys.stderr)
        raise SystemExit(0 if signalled.sigval in SAVING else 128 + signalled.sigval) from None
    except ChildFailedError as failed:
        if watch.verdict:
            raise Mim3dError(f"{watch.verdict}. {GO_ON}") from None
        rank, first = failed.get_first_failure()
        if first.exitcode == EXIT_USER_ERROR:
            raise SystemExit(EXIT_USER_ERROR) from None
        raise Mim3dError(
            f"rank {rank} of {nproc} ended by {first.signal_name()} (code {first.exitcode}; out of "
            f"memory?). {GO_ON}"
        ) from None


@contextmanager
def watched(nproc: int) -> Iterator[RankWatch]:
    """Ranks leave their heartbeats in a folder of this run, and are looked at."""
    with tempfile.TemporaryDirectory(prefix="mim3d-ranks-") as folder:
        os.environ[FOLDER] = folder
        watch = RankWatch(Path(folder), nproc)
        try:
            yield watch
        finally:
            watch.close()


@contextmanager
def interrupts_passed_on() -> Iterator[None]:
    """Hand a first Ctrl-C to the agent, as it hands itself other signals; a second one ends all."""

    def first(number: int, frame: FrameType | None) -> None:
        signal.signal(number, second)
        raise SignalException("interrupted", signal.Signals(number))

    def second(number: int, frame: FrameType | None) -> None:
        for rank in psutil.Process().children(recursive=True):
            rank.kill()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    before = signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
