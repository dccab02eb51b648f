"""Which errors mean that another rank is gone: torch's own types, and what gloo says."""

import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from mim3d.dataio.errors import first_line
from mim3d.engine.distributed.first_failure import is_lost_peer, without_c_file
from mim3d.engine.errors import TrainingError

SCRIPT = """
import os, signal, sys
from datetime import timedelta
import torch, torch.distributed as dist, torch.multiprocessing as mp
from mim3d.engine.distributed.first_failure import is_lost_peer

def rank(number, store):
    group = dist.FileStore(store, 2)
    dist.init_process_group("gloo", store=group, rank=number, world_size=2,
                            timeout=timedelta(seconds=120))
    value = torch.ones(1)
    dist.all_reduce(value)
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        while True:
            dist.all_reduce(value)
    except Exception as error:
        print(type(error).__name__, is_lost_peer(error), flush=True)
        os._exit(0)

if __name__ == "__main__":
    context = mp.get_context("spawn")
    ranks = [context.Process(target=rank, args=(n, sys.argv[1])) for n in range(2)]
    [one.start() for one in ranks]
    [one.join() for one in ranks]
"""


@pytest.mark.parametrize(
    "error",
    [
        dist.DistBackendError("NCCL communicator was aborted"),
        dist.DistNetworkError("no such host"),
        dist.DistStoreError("wait timeout after 600000ms"),
        RuntimeError(
            "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"
        ),
        RuntimeError("Timed out waiting 600000ms for recv operation to complete"),
    ],
)
def test_lost_ranks_are_known_by_type_and_gloos_by_text(error: Exception) -> None:
    assert is_lost_peer(error)


@pytest.mark.parametrize(
    "error",
    [
        TrainingError("the peer review timed out"),
        OSError(110, "Connection timed out"),
        RuntimeError("shapes of peers (3, 4) and (5, 6) cannot be multiplied"),
        ValueError("gloo"),
        torch.OutOfMemoryError("no room for a buffer of nccl"),  # a RuntimeError by another name
    ],
)
def test_other_errors_are_not_taken_for_them(error: Exception) -> None:
    assert not is_lost_peer(error)


def test_of_an_error_the_first_line_is_told_without_its_c_file() -> None:
    gloo = "[/__w/pytorch/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:35550\nframe #0"
    assert without_c_file(first_line(RuntimeError(gloo))) == "Read error [127.0.0.1]:35550"
    assert first_line(KeyError()) == "KeyError"


@pytest.mark.slow
def test_what_this_torch_raises_where_a_rank_was_killed(tmp_path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "store")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout.split()[-1] == "True", done.stdout + done.stderr[-2000:]
