"""The ways to start many ranks that README and examples tell, each carried out on this machine."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from ports import PORTS, free_port
from small_run import make_corpus

from mim3d.engine.training.metrics import read_rows

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SMALL = """
    --vit.crop-size 16 16 16 --vit.width 24 --vit.depth 1 --vit.heads 2
    --method.decoder-width 24 --method.decoder-depth 1 --method.decoder-heads 2 --log.every 1
""".split()  # noqa: SIM905  read as words of a command
SRUN = """#!/bin/bash
# Stands in for srun: SLURM_NTASKS tasks, the first failure ends the others.
[ "$1" = --kill-on-bad-exit=1 ] || exit 64
shift
for ((i = 0; i < SLURM_NTASKS; i++)); do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & done
for ((i = 0; i < SLURM_NTASKS; i++)); do
    wait -n; code=$?
    [ $code = 0 ] || { kill $(jobs -p); exit $code; }
done
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def environment(**more):
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}


@pytest.fixture
def slurm(tmp_path):
    """A folder of commands that stand in for SLURM's, and the variables of a job on two nodes."""
    folder = tmp_path / "bin"
    folder.mkdir()
    scripts = {
        "srun": SRUN,
        "scontrol": '#!/bin/bash\n[ "$*" = "show hostnames two-nodes" ] && echo 127.0.0.1\n',
        "sbatch": f'#!/bin/bash\nprintf "%s\\n" "$@" > {tmp_path}/queued\n',
        "mim3d": f'#!/bin/bash\nexec {sys.executable} -P -m mim3d.engine.commands.cli "$@"\n',
    }
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return environment(
        PATH=f"{folder}:{os.environ['PATH']}",
        SLURM_JOB_ID=str(free_port() - PORTS.start),  # of which the script makes the port again
        SLURM_JOB_NODELIST="two-nodes",
        SLURM_NNODES="2",
        SLURM_NTASKS="2",
    )


def start_job(slurm, corpus, run, *options, batch="4"):
    # Saved at its end alone, however many steps a busy machine lets pass before it is told to stop.
    late = ["--checkpoint.every", "1000000"]
    words = ["demo-mae", str(corpus), str(run), *SMALL, "--global-batch", batch, *late, *options]
    return words, subprocess.Popen(
        ["bash", str(EXAMPLES / "pretrain.sbatch"), *words],
        env=slurm,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_rows(job, file):
    deadline = time.monotonic() + 200
    while not (file.exists() and len(read_rows(file)) > 3):
        assert job.poll() is None, job.communicate()[1][-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_slurm_script_runs_to_the_end(slurm, corpus, tmp_path):
    run = tmp_path / "run"
    _, job = start_job(slurm, corpus, run, "--steps", "2")
    _, printed = job.communicate(timeout=240)
    assert job.returncode == 0, printed[-2000:]
    assert read_rows(run / "metrics.jsonl")[-1]["world"] == 2
    assert (run / "pretext.json").exists()
    assert not (tmp_path / "queued").exists()


def test_the_slurm_script_saves_at_its_time_limit_and_queues_itself(slurm, corpus, tmp_path):
    run = tmp_path / "run"
    words, job = start_job(slurm, corpus, run, "--steps", "100000")
    wait_for_rows(job, run / "metrics.jsonl")
    for task in psutil.Process(job.pid).children(recursive=True):
        if "mim3d.engine.commands.cli" in task.cmdline():
            task.send_signal(signal.SIGUSR1)
    found, _ = job.communicate(timeout=240)
    assert job.returncode == 0
    assert "told to stop: step" in found
    assert len(list((run / "checkpoints").glob("step-*"))) == 1
    assert (tmp_path / "queued").read_text().split("\n")[1:-1] == words


def test_the_slurm_script_ends_in_one_line_on_an_error(slurm, corpus, tmp_path):
    words, job = start_job(slurm, corpus, tmp_path / "run", "--parallel.replicate", "1", batch="3")
    _, printed = job.communicate(timeout=240)
    assert job.returncode == 2, (words, printed)
    lines = [line for line in printed.splitlines() if line.startswith("mim3d")]
    assert len(lines) == 1
    assert "global_batch 3 must be a multiple of 2 ranks" in lines[0]
    assert "Traceback" not in printed
    assert not (tmp_path / "queued").exists()


def test_two_torchrun_agents_form_one_run(corpus, tmp_path):
    """README's line for several machines, both on this one."""
    run = tmp_path / "run"
    shim = tmp_path / "mim3d"
    shim.write_text(f'#!/bin/bash\nexec {sys.executable} -P -m mim3d.engine.commands.cli "$@"\n')
    shim.chmod(0o755)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--no-python",
        str(shim), "pretrain", "demo-mae", "--data.corpus", str(corpus), "--out", str(run),
        "--parallel.replicate", "2", "--steps", "2", "--global-batch", "4", *SMALL,
    ]  # fmt: skip
    agents = [
        subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    printed = [agent.communicate(timeout=240)[1] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], printed
    assert read_rows(run / "metrics.jsonl")[-1]["world"] == 2


def test_torchx_runs_its_component(corpus, tmp_path):
    pytest.importorskip("torchx")
    folder = tmp_path / "bin"
    folder.mkdir()
    torchrun = folder / "torchrun"
    torchrun.write_text(f'#!/bin/bash\nexec {sys.executable} -m torch.distributed.run "$@"\n')
    torchrun.chmod(0o755)
    component = f"{EXAMPLES / 'torchx_pretrain.py'}:pretrain"
    command = [
        sys.executable, "-c", "from torchx.cli.main import main; main()",
        "run", "-s", "local_cwd", component, "--recipe", "demo-mae", "--corpus", str(corpus),
        "--run", str(tmp_path / "run"), "--j", "1x2", "--", *SMALL, "--steps", "2",
        "--global-batch", "4",
    ]  # fmt: skip
    done = subprocess.run(
        command,
        env=environment(PATH=f"{folder}:{os.environ['PATH']}"),
        capture_output=True,
        text=True,
        timeout=240,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert read_rows(tmp_path / "run" / "metrics.jsonl")[-1]["world"] == 2
