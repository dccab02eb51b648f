"""Two nodes, each with an agent of its own, on loopback: a rank that dies is started again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small_run
from ports import free_port
from small_run import make_corpus

from mim3d.engine.training.metrics import read_rows

pytestmark = pytest.mark.slow
SCRIPT = Path(small_run.__file__)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def single(corpus, tmp_path_factory):
    """The run of one process."""
    out = tmp_path_factory.mktemp("single") / "run"
    command = [sys.executable, str(SCRIPT), str(corpus), str(out)]
    subprocess.run(command, env=environment(), check=True, capture_output=True)
    return out


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}


def node(port: int, log: Path, *words: str, restarts: int = 2, **env: str) -> subprocess.Popen:
    """One of two agents that meet at a port, with a rank each."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1",
        "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=two-nodes",
        f"--max-restarts={restarts}", "--monitor-interval=0.2", str(SCRIPT), *words,
    ]  # fmt: skip
    with log.open("w") as told:
        return subprocess.Popen(
            command, env=environment(**env), stdout=told, stderr=subprocess.STDOUT
        )


@pytest.mark.parametrize(
    ("dead", "env"),
    [(0, {}), (1, {}), (1, {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"})],
    ids=["first", "second", "second-own-store"],
)
def test_a_rank_that_dies_on_either_node_is_started_again(corpus, single, tmp_path, dead, env):
    out, port = tmp_path / "run", free_port()
    words = (str(corpus), str(out), f"dead-once-{dead}")
    logs = [tmp_path / f"node-{number}" for number in range(2)]
    nodes = [node(port, log, *words, **env) for log in logs]
    try:
        codes = [one.wait(400) for one in nodes]
    finally:
        for one in nodes:
            one.kill()
    told = "".join(log.read_text() for log in logs)
    assert codes == [0, 0], told
    assert out.with_suffix(".died").exists()
    assert "going on from the checkpoint of step 3" in told
    mine, theirs = (read_rows(run / "metrics.jsonl") for run in (out, single))
    assert [row["step"] for row in mine] == [row["step"] for row in theirs]
    for row, wanted in zip(mine, theirs, strict=True):
        assert row["loss"] == pytest.approx(wanted["loss"], rel=2e-6)


def slurm_tasks(corpus, out) -> list[subprocess.Popen]:
    """Two processes with the variables that srun sets, and no agent, that train for long."""
    shared = environment(SLURM_NTASKS="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    words = ["pretrain", "demo-mae", "--data.corpus", str(corpus), "--out", str(out)]
    words += ["--vit.crop-size", "16", "16", "16", "--vit.patch-size", "8", "8", "8"]
    words += ["--vit.width", "12", "--vit.depth", "1", "--vit.heads", "2", "--global-batch", "4"]
    words += ["--method.decoder-width", "12", "--method.decoder-depth", "1"]
    words += ["--method.decoder-heads", "2", "--steps", "100000", "--log.every", "1"]
    words += ["--log.no-tensorboard", "--parallel.timeout-s", "30"]  # to meet, too
    return [
        subprocess.Popen(
            [sys.executable, "-m", "mim3d.engine.commands.cli", *words],
            env={**shared, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for i in range(2)
    ]


def wait_for_rows(out: Path, task: subprocess.Popen) -> None:
    deadline = time.monotonic() + 150
    while not (out / "metrics.jsonl").exists() or len(read_rows(out / "metrics.jsonl")) < 4:
        assert task.poll() is None, task.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_the_loss_of_the_stores_host_is_told_by_the_survivor(corpus, tmp_path, number):
    """Also where it only keeps silent, as a node does that lost its power."""
    host, survivor = slurm_tasks(corpus, tmp_path / "run")
    try:
        wait_for_rows(tmp_path / "run", survivor)
        host.send_signal(number)
        message = survivor.communicate(timeout=150)[1]
    finally:
        host.kill()
        host.communicate()
    assert survivor.returncode == 2
    assert message.startswith(
        "mim3d pretrain: rank 1 of 2 lost contact with the ranks' store on 127.0.0.1: killed, "
        "hanging or cut off. The same command goes on from the last checkpoint"
    )
    assert message.count("\n") == 1, message


def test_a_rank_that_is_lost_is_named_by_the_others(corpus, tmp_path):
    """Without a launcher of ours."""
    host, lost = slurm_tasks(corpus, tmp_path / "run")
    try:
        wait_for_rows(tmp_path / "run", host)
        lost.send_signal(signal.SIGSTOP)
        message = host.communicate(timeout=150)[1]
    finally:
        lost.kill()
        lost.communicate()
    assert host.returncode == 2
    assert message.startswith("mim3d pretrain: rank 0 of 2 lost contact with rank 1: killed, hang")
    assert message.count("\n") == 1, message
