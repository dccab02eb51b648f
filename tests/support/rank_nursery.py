"""Ranks as children of one process that has imported torch already: a start costs nothing.

What torchrun does for ranks of one machine, and no more: its variables, a store of the agent's, and
all are ended once one has failed. Launching itself is tested with torchrun.
"""

import contextlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

GRACE_S = 30.0
"""What a rank has to end once another has failed, as of torchrun's agent."""


class Nursery:
    """A process to fork ranks from, which has imported the module of a script."""

    def __init__(self, module: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, module],
            env=variables(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def launch(
        self, n_ranks: int, script: Path, *words: object
    ) -> subprocess.CompletedProcess[str]:
        """Run a script with arguments as so many ranks, or as a process that is none (0).

        The return code is the first that is not 0; what all print comes together.
        """
        assert self._process.stdin and self._process.stdout
        with TemporaryDirectory() as folder:
            task = Task(n_ranks, [str(script), *map(str, words)], folder, variables())
            self._process.stdin.write(json.dumps(vars(task)) + "\n")
            self._process.stdin.flush()
            code = int(self._process.stdout.readline())
            out, err = (Path(folder, name).read_text() for name in ("out", "err"))
        return subprocess.CompletedProcess(task.words, code, out, err)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def variables() -> dict[str, str]:
    """Ours, for processes of one thread and no GPU."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@dataclass(frozen=True)
class Task:
    """A script to run: how many ranks, its words, a folder for what is printed, and variables."""

    n_ranks: int
    words: list[str]
    folder: str
    variables: dict[str, str]

    def variables_of(self, rank: int, port: int) -> dict[str, str]:
        """What torchrun tells a rank."""
        if not self.n_ranks:
            return {}
        n, own = str(self.n_ranks), str(rank)
        attempt = Path(self.folder, "attempt_0", own)
        attempt.mkdir(parents=True)
        return {
            **dict.fromkeys(("RANK", "LOCAL_RANK", "ROLE_RANK"), own),
            **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE", "ROLE_WORLD_SIZE"), n),
            **dict.fromkeys(("GROUP_RANK", "TORCHELASTIC_RESTART_COUNT"), "0"),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_ERROR_FILE": str(attempt / "error.json"),
            "TORCHELASTIC_MAX_RESTARTS": "0",
            "TORCHELASTIC_RUN_ID": "nursery",
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }

    def become(self, rank: int, port: int) -> None:
        """Make this process that rank, but for the script."""
        os.environ.update(self.variables | self.variables_of(rank, port))
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in ((1, "out"), (2, "err")):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            os.dup2(os.open(Path(self.folder, name), flags), number)
        sys.argv = list(self.words)


def watched(children: Sequence[int]) -> int:
    """Wait for processes, end all once one has failed, and return its code."""
    first, deadline = 0, float("inf")
    left = {*children}
    while left:
        for pid in [*left]:
            done, status = os.waitpid(pid, os.WNOHANG)
            if not done:
                continue
            left.discard(pid)
            if (code := os.waitstatus_to_exitcode(status)) and not first:
                first, deadline = code, time.monotonic() + GRACE_S
                signal_all(left, signal.SIGTERM)
        if time.monotonic() > deadline:
            signal_all(left, signal.SIGKILL)
        time.sleep(0.02)
    return first


def signal_all(processes: set[int], number: signal.Signals) -> None:
    """Send it to those that are there."""
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def agent(task: Task) -> Task | None:
    """Fork the ranks and wait for them: None in the agent, the task in a rank.

    Ranks are forked before the store is made, whose threads no child would have.
    """
    children, ports = [], []
    for rank in range(task.n_ranks or 1):
        read, write = os.pipe()
        if not (pid := os.fork()):
            with os.fdopen(read) as told:  # a line: later ranks hold this pipe's other end too
                task.become(rank, int(told.readline()))
            return task
        os.close(read)
        children.append(pid)
        ports.append(write)
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for write in ports:
        os.write(write, f"{store.port}\n".encode())
        os.close(write)
    print(watched(children), flush=True)
    return None


def serve() -> Task | None:
    """Carry out the tasks of standard input, each under an agent; the task in a rank, else None."""
    # Not by `for line in sys.stdin`: a child would have what is read ahead.
    while line := sys.stdin.readline():
        if pid := os.fork():
            os.waitpid(pid, 0)
            continue
        if (task := agent(Task(**json.loads(line)))) is None:
            os._exit(0)
        return task
    return None


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent)]
    __import__(sys.argv[1])
    mine = serve()
    if mine is not None:
        runpy.run_path(mine.words[0], run_name="__main__")
