"""`mim3d pretrain` as a person calls it."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist
from live_processes import wait_for_end
from small_run import make_corpus

from mim3d.engine.commands import cli
from mim3d.engine.commands.launching import rank_words
from mim3d.engine.commands.pretrain import PretrainArgs, loss_line, main
from mim3d.engine.distributed import launch
from mim3d.engine.distributed.process_group import adopt_slurm, process_ranks
from mim3d.engine.errors import ConfigError
from mim3d.engine.pretrain.recipes import recipe
from mim3d.engine.training.metrics import read_rows

SMALL = """
    --vit.crop-size 16 16 16 --vit.width 24 --vit.depth 1 --vit.heads 2 --steps 2 --global-batch 2
    --method.decoder-width 24 --method.decoder-depth 1 --method.decoder-heads 2 --log.every 1
""".split()  # noqa: SIM905  read as words of a command


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def test_a_run_and_its_figures(corpus, tmp_path):
    words = ["demo-mae", "--data.corpus", str(corpus), "--out", str(tmp_path / "run"), *SMALL]
    outcome = main(words)
    assert outcome.exit_code == 0
    assert outcome.figures["step"] == 2
    assert not outcome.figures["interrupted"]
    assert outcome.figures["loss"] > 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["vit"]["width"] == 24


def test_a_run_ends_with_its_loss_against_trivial_ones_the_encoder_and_a_command_that_runs(
    corpus, tmp_path, capsys
):
    run = tmp_path / "a run"
    words = ["demo-mae", "--data.corpus", str(corpus), "--out", str(run), *SMALL]
    main(words)
    loss, encoder, last = capsys.readouterr().out.splitlines()[-3:]
    verdict = json.loads((run / "pretext.json").read_text())["pretext"]
    assert f"loss {verdict['loss']:.4f} (each patch's mean {verdict['patch_mean']:.4f}" in loss
    assert ("it was learned" in loss) == verdict["learned"]
    assert encoder == f"encoder: {run / 'encoder.safetensors'}"
    assert "mim3d embed" in last  # no fine-tuning recipe has this encoder
    assert cli.main(shlex.split(last.removeprefix("next: mim3d "))) == 0
    assert (run / "features" / "pooled.npz").exists()


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        ({"loss": 0.5, "patch_mean": 1.0, "learned": True}, "(each patch's mean 1.0000): it was l"),
        ({"loss": 1.0, "patch_mean": 1.0}, "NOT clearly better than each patch's mean: nothing"),
        ({"loss": 3.4, "chance": 3.43}, "(chance 3.4300): NOT clearly better than chance: nothing"),
        ({"loss": 0.5, "patch_mean": 1.0, "behind": [2]}, "each patch's mean in channels 2"),
        ({"loss": 0.5}, "loss 0.5000: there is nothing to compare it with, so no verdict"),
        (
            {"loss": 0.35, "patch_mean": 0.0, "constant": True, "constant_rows": 2, "rows": 2},
            "loss 0.3500: the last rows' crops are constant, so no verdict (where they are air,",
        ),
        (
            {"loss": 0.5, "patch_mean": 0.5, "constant_rows": 1, "rows": 2},
            "nothing learned; the crops of 1 of the last 2 rows are constant (where they are air,",
        ),
    ],
)
def test_a_loss_line_names_what_the_loss_is_compared_with(verdict, said):
    args = PretrainArgs(recipe("demo-mae"), Path("run"))
    assert said in loss_line("loss", {"learned": False, **verdict}, args)


@pytest.mark.slow
def test_a_recipes_encoder_goes_on_to_fine_tuning(corpus, tmp_path, capsys):
    run = tmp_path / "run"
    main(["demo-mae", "--data.corpus", str(corpus), "--out", str(run), "--steps", "1",
          "--global-batch", "2", "--schedule.warmup-steps", "0"])  # fmt: skip
    last = capsys.readouterr().out.splitlines()[-1]
    assert f"mim3d finetune demo --data.corpus {corpus} --init {run}" in last
    words = shlex.split(last.removeprefix("next: mim3d "))
    assert cli.main([*words, "--steps", "1", "--eval-every", "1"]) == 0
    assert (tmp_path / "run-finetuned" / "model.pt").exists()


def test_compiling_is_announced(corpus, tmp_path):
    from small_run import small_config

    from mim3d.engine.pretrain.pretrain import remarks
    from mim3d.engine.training.corpus import CorpusFit

    compiled = small_config(corpus, "compiled")
    assert any("--parallel.no-compile" in line for line in remarks(compiled, CorpusFit(4, 0)))
    assert remarks(small_config(corpus), CorpusFit(4, 0)) == []
    run = tmp_path / "run"
    words = ["demo-mae", "--data.corpus", str(corpus), "--out", str(run), *SMALL]
    assert main([*words, "--parallel.no-compile"]).exit_code == 0


@pytest.mark.slow
def test_nproc_starts_ranks(corpus, tmp_path):
    command = [
        sys.executable,
        "-m",
        "mim3d.engine.commands.cli",
        "pretrain",
        "demo-mae",
        "--nproc",
        "2",
    ]
    command += ["--data.corpus", str(corpus), "--out", str(tmp_path / "run"), *SMALL]
    command += ["--json", str(tmp_path / "figures.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=540, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["world"] == 2
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["nproc"], figures["step"], figures["loss"]) == (2, 2, row["loss"])
    assert "pretext" in figures
    began = (tmp_path / "run" / "metrics.jsonl").stat().st_mtime_ns
    again = main([*command[4:-2], "--nproc", "2"])  # finished: no rank is started for the answer
    assert again.figures == figures
    assert (tmp_path / "run" / "metrics.jsonl").stat().st_mtime_ns == began


def small_ranks(corpus, run, *words):
    command = [
        sys.executable,
        "-m",
        "mim3d.engine.commands.cli",
        "pretrain",
        "demo-mae",
        "--nproc",
        "2",
    ]
    at = SMALL.index("--steps")
    small = [*SMALL[:at], *SMALL[at + 2 :]] if "--steps" in words else SMALL
    command += ["--data.corpus", str(corpus), "--out", str(run), *small, *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_an_error_of_one_rank_is_one_line_of_the_whole_run(corpus, tmp_path):
    """The first rank alone opens Weights & Biases; a module that refuses stands in for it."""
    (tmp_path / "wandb.py").write_text("raise ImportError('not here')\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        run = small_ranks(corpus, tmp_path / "run", "--log.wandb")
    printed = run.communicate(timeout=540)[1].strip().splitlines()
    assert run.returncode == 2
    assert len(printed) == 1, printed
    assert "pip install wandb" in printed[0]


def wait_for_rows(run, file):
    deadline = time.monotonic() + 400
    while not (file.exists() and len(read_rows(file)) > 3):
        assert run.poll() is None, run.communicate()[1][-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGKILL])
def test_signals_to_launcher_and_rank(corpus, tmp_path, number):
    """SIGTERM, SIGUSR1 or Ctrl-C to the launcher saves and exits 0.

    A killed rank ends the run in one line.
    """
    run = small_ranks(corpus, tmp_path / "run", "--steps", "100000", "--checkpoint.every", "50000")
    wait_for_rows(run, tmp_path / "run" / "metrics.jsonl")
    if number != signal.SIGKILL:
        run.send_signal(number)
    else:
        psutil.Process(run.pid).children()[0].send_signal(number)
    printed = run.communicate(timeout=300)[1].strip().splitlines()
    saved = list((tmp_path / "run" / "checkpoints").glob("step-*"))
    if number != signal.SIGKILL:
        assert run.returncode == 0, printed
        assert len(saved) == 1
    else:
        assert run.returncode == 2
        assert len(printed) == 1, printed
        assert "ended by SIGKILL" in printed[0]
        assert not saved


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [False, True])
def test_ranks_end_with_a_launcher_that_is_killed(corpus, tmp_path, stopped):
    """Also a rank that hangs, here by SIGSTOP."""
    run = small_ranks(corpus, tmp_path / "run", "--steps", "100000", "--checkpoint.every", "50000")
    wait_for_rows(run, tmp_path / "run" / "metrics.jsonl")
    ranks = psutil.Process(run.pid).children()
    assert len(ranks) == 2
    if stopped:
        ranks[1].suspend()
    run.kill()
    wait_for_end(ranks)


@pytest.mark.slow
@pytest.mark.parametrize("restarts", [0, 1])
def test_a_rank_that_hangs_is_named(corpus, tmp_path, restarts):
    """It is told where it stands, and killed; where restarts are allowed, all go on."""
    words = ["--steps", "100000", "--checkpoint.every", "2"]
    words += ["--parallel.timeout-s", "30"]  # in which they must meet, too
    run = small_ranks(corpus, tmp_path / "run", *words, "--max-restarts", str(restarts))
    wait_for_rows(run, tmp_path / "run" / "metrics.jsonl")
    _, second = sorted(psutil.Process(run.pid).children(), key=lambda rank: rank.pid)
    second.suspend()
    if restarts:
        assert run.stderr is not None
        line = run.stderr.readline()
        run.send_signal(signal.SIGTERM)
        run.communicate(timeout=300)
    else:
        line = run.communicate(timeout=300)[1]
        assert run.returncode == 2
        assert line.count("\n") == 1
        assert "mim3d pretrain: rank" in line
        assert "The same command goes on from the last checkpoint" in line
    assert re.search(
        r"rank \d of 2 hangs: at step \d+, [a-z ]+ \(process \d+ is stopped\), for", line
    )
    assert f"(process {second.pid} is stopped)" in line
    assert line.endswith("all ranks start again\n") == bool(restarts)


@pytest.mark.slow
def test_a_second_interrupt_of_the_launcher_leaves_no_rank(corpus, tmp_path):
    run = small_ranks(corpus, tmp_path / "run", "--steps", "100000", "--checkpoint.every", "50000")
    wait_for_rows(run, tmp_path / "run" / "metrics.jsonl")
    ranks = psutil.Process(run.pid).children()
    assert len(ranks) == 2
    for rank in ranks:
        rank.suspend()  # as one that hangs in a collective
    run.send_signal(signal.SIGINT)
    # A second is none where the launcher has not taken the first yet: the two are one to it.
    for _ in range(12):
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.wait(timeout=5)
            break
        run.send_signal(signal.SIGINT)
    assert run.wait(timeout=60) == -signal.SIGINT
    wait_for_end(ranks)


def test_ranks_have_time_to_save_before_they_are_killed(tmp_path, monkeypatch):
    """The agent's own 30 s are less than a large checkpoint takes to be written."""
    seen = []

    def elastic_launch(config, _):
        seen.append(config)
        return lambda *_: None

    monkeypatch.setattr(launch, "elastic_launch", elastic_launch)
    words = ["demo-mae", "--data.corpus", "c", "--out", str(tmp_path / "run"), "--nproc", "2"]
    outcome = main([*words, "--parallel.timeout-s", "450"])
    options = launch.LaunchConfig.__dataclass_fields__  # torch 2.11 has not all of them
    if "shutdown_timeout" in options:
        assert seen[0].shutdown_timeout == 450
    if "signals_to_handle" in options:
        assert "SIGUSR1" in seen[0].signals_to_handle
    assert outcome.figures["interrupted"]


def test_of_many_ranks_one_writes_the_figures(corpus, tmp_path, monkeypatch):
    words = ["demo-mae", "--data.corpus", str(corpus), "--out", str(tmp_path / "run"), *SMALL]
    figures = tmp_path / "figures.json"
    assert cli.main(["pretrain", *words]) == 0
    for rank, written in (("1", False), ("0", True)):
        monkeypatch.setenv("RANK", rank)
        assert cli.main(["pretrain", *words, "--json", str(figures)]) == 0
        assert figures.exists() == written


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["demo-mae", "--out", "x", "--nproc", "0"], "--nproc 0 must be at least 1"),
        (["demo-mae", "--out", "x", "--nproc", "3"], "global_batch 16 must be a multiple of 3"),
        (["demo-mae", "--out", "x", "--data.corpus", "/nowhere.zarr"], "/nowhere.zarr"),
        (["demo-mae", "--out", "x"], "--data.corpus"),
        (["no-such", "--out", "x"], "no recipe 'no-such'"),
        (["demo-mae", "--out", "x", "--vit.patch-size", "5", "8", "8"], "vit.patch_size"),
    ],
)
def test_errors_are_one_line(words, wanted, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mim3d.engine.commands.cli", "pretrain", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert wanted in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x").exists()


def test_slurms_variables_are_taken(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("SLURM_LOCALID", "1")
    with pytest.raises(ConfigError, match="export MASTER_ADDR"):
        adopt_slurm()
    monkeypatch.setenv("MASTER_ADDR", "node-0")
    adopt_slurm()
    # pop, not monkeypatch.delenv: that would put the values back when the test ends.
    taken = {n: os.environ.pop(n) for n in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")}
    assert taken == {
        "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_PORT": "29500",
    }  # fmt: skip


def test_a_group_that_exists_is_joined_and_left():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with process_ranks(30.0) as ranks:
            assert (ranks.rank, ranks.world) == (0, 1)
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()


def test_the_launchers_words_are_not_the_ranks():
    words = ["demo-mae", "--nproc", "4", "--out", "x", "--max-restarts=3", "--steps", "5"]
    assert rank_words(words) == ["demo-mae", "--out", "x", "--steps", "5"]
