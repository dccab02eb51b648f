"""Runs of several processes: the same curve as one, and faults on one rank."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import small_run
import torch
from ports import free_port
from rank_nursery import Nursery
from safetensors.torch import load_file
from small_run import make_corpus
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from mim3d.engine.runs import checkpoint_files
from mim3d.engine.runs.checkpoint_reader import PER_RANK, SafeReader, load_tensors
from mim3d.engine.training.metrics import read_rows

pytestmark = pytest.mark.slow
SCRIPT = Path(small_run.__file__)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def launch():
    """Run the script as so many ranks: (ranks, corpus, out, fault, method, replicate, accum)."""
    nursery = Nursery("small_run")
    yield lambda ranks, *words: nursery.launch(ranks, SCRIPT, *words)
    nursery.close()


@pytest.fixture(scope="module")
def single(launch, corpus, tmp_path_factory):
    """Runs of one process, by method, optimiser and accumulation."""
    made = {}

    def get(method="mae", optimiser="", accum=1):
        key = f"{method}{optimiser}-{accum}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp(key) / "run"
            done = launch(1, corpus, made[key], optimiser, method, 1, accum)
            assert done.returncode == 0, done.stderr
        return made[key]

    return get


def torchrun(ranks, corpus, out, fault, restarts):
    """Run the script under torchrun; a rank's output is in ours."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        f"--nproc-per-node={ranks}", f"--max-restarts={restarts}", "--monitor-interval=0.2",
        str(SCRIPT), str(corpus), str(out), fault,
    ]  # fmt: skip
    # The agent's own store: a port that it only picked for the first rank may be taken by another
    # process while that rank imports torch.
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "0",
    }
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=540, check=False
    )


def assert_same_curve(out, other, rel=2e-6, norm_rel=1e-4):
    mine, theirs = read_rows(out / "metrics.jsonl"), read_rows(other / "metrics.jsonl")
    assert [row["step"] for row in mine] == [row["step"] for row in theirs]
    for row, wanted in zip(mine, theirs, strict=True):
        assert row["loss"] == pytest.approx(wanted["loss"], rel=rel)
        assert row["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=norm_rel)


def assert_same_weights(out, other):
    mine, theirs = (load_file(run / "encoder.safetensors") for run in (out, other))
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name


def stored_tensors(folder):
    """Every tensor of a checkpoint, whole."""
    stored = SafeReader(folder).read_metadata().state_dict_metadata
    state = {
        key: torch.empty(about.size, dtype=about.properties.dtype)
        for key, about in stored.items()
        if isinstance(about, TensorStorageMetadata)
    }
    load_tensors(folder, state)
    return state


def assert_same_state(out, other):
    """The last checkpoints agree in weights, moments and counts, but for the order of sums."""
    mine, theirs = (
        stored_tensors(checkpoint_files.committed(run / "checkpoints")[0]) for run in (out, other)
    )
    kept = {key for key in theirs if not key.startswith(PER_RANK)}
    assert kept == {key for key in mine if not key.startswith(PER_RANK)}
    assert mine["optim.steps_done"] == theirs["optim.steps_done"] == 8
    moments = [key for key in kept if ".exp_avg" in key]
    assert moments
    for key in moments:
        distance = torch.linalg.vector_norm(mine[key] - theirs[key])
        assert distance <= 1e-4 * torch.linalg.vector_norm(theirs[key]), key


@pytest.mark.parametrize(
    ("method", "ranks", "replicate", "accum"),
    [
        ("mae", 2, 1, 1),
        ("mae", 4, 2, 1),
        ("mae", 2, 1, 2),
        ("simclr", 2, 1, 1),
        ("simclr", 4, 1, 1),
        ("simclr", 2, 1, 2),
        ("simmim", 2, 1, 1),
        ("swin", 2, 1, 1),
        ("compiled", 2, 1, 1),
        ("primus", 2, 1, 1),
        ("resenc", 2, 1, 1),
        ("ignoring", 2, 1, 2),
    ],
)
def test_ranks_agree_with_one_process(
    launch, corpus, single, tmp_path, method, ranks, replicate, accum
):
    """FSDP, HSDP and accumulation at equal global batch; SimCLR's negatives cross ranks.

    They are those of a micro-batch, so there one process accumulates too.
    """
    done = launch(ranks, corpus, tmp_path / "run", "", method, replicate, accum)
    assert done.returncode == 0, done.stderr
    one = single(method, accum=accum if method == "simclr" else 1)
    # Swin's first gradient is a twentieth of the others, so the order of its sums shows more.
    assert_same_curve(tmp_path / "run", one, norm_rel=5e-4 if method == "swin" else 1e-4)
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert rows[-1]["stage_communication_alone_s"] > 0
    if method == "ignoring":
        alone = read_rows(one / "metrics.jsonl")
        assert [row["counted"] for row in rows] == pytest.approx([row["counted"] for row in alone])


def test_lamb_over_ranks_is_lamb(launch, corpus, single, tmp_path):
    """Trust ratios of sharded parameters are those of whole ones."""
    done = launch(2, corpus, tmp_path / "two", "lamb")
    assert done.returncode == 0, done.stderr
    assert_same_curve(tmp_path / "two", single(optimiser="lamb"))


@pytest.mark.parametrize("fault", ["sigterm", "sigint"])
def test_a_signal_to_one_rank_stops_all_at_one_step_and_resume_is_exact(
    launch, corpus, tmp_path, fault
):
    done = launch(2, corpus, tmp_path / "broken", fault)
    assert done.returncode == 0, done.stderr
    assert "told to stop: step" in done.stdout
    assert done.stdout.count("True") == 2
    facts = checkpoint_files.verify(
        checkpoint_files.committed(tmp_path / "broken" / "checkpoints")[0]
    )
    assert f"rank 0 step {facts.step} True" in done.stdout
    assert f"rank 1 step {facts.step} True" in done.stdout
    assert launch(2, corpus, tmp_path / "broken").returncode == 0
    assert launch(2, corpus, tmp_path / "whole").returncode == 0
    assert_same_weights(tmp_path / "broken", tmp_path / "whole")


@pytest.mark.parametrize("optimiser", ["", "lamb"])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_resume_at_another_world_size_sees_the_same_samples(
    launch, corpus, single, tmp_path, before, after, optimiser
):
    """One rank keeps its model whole, two shard it: the checkpoint is the same to both."""
    out = tmp_path / "run"
    done = launch(before, corpus, out, optimiser + "sigterm")
    assert done.returncode == 0, done.stderr
    saved = checkpoint_files.committed(out / "checkpoints")[0]
    facts = checkpoint_files.verify(saved)
    assert facts.world == before
    assert 3 < facts.step < 8
    assert stored_tensors(saved)["optim.steps_done"] == facts.step
    done = launch(after, corpus, out, optimiser)
    assert done.returncode == 0, done.stderr
    assert f"going on from the checkpoint of step {facts.step}" in done.stdout
    assert_same_curve(out, single(optimiser=optimiser))
    assert_same_state(out, single(optimiser=optimiser))


def test_a_dead_rank_is_restarted_from_the_last_commit(corpus, single, tmp_path):
    done = torchrun(2, corpus, tmp_path / "run", "dead", restarts=1)
    assert done.returncode == 0, done.stderr
    assert "going on from the checkpoint of step 3" in done.stdout
    assert_same_curve(tmp_path / "run", single())


def test_slurms_tasks_form_one_run(corpus, single, tmp_path):
    """Two processes with the variables that srun sets, without torchrun."""
    shared = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "SLURM_NTASKS": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    command = [sys.executable, str(SCRIPT), str(corpus), str(tmp_path / "run")]
    tasks = [
        subprocess.Popen(command, env={**shared, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)})
        for i in range(2)
    ]
    assert [task.wait(540) for task in tasks] == [0, 0]
    assert_same_curve(tmp_path / "run", single())


def test_another_configuration_is_refused_on_every_rank(launch, corpus, single, tmp_path):
    shutil.copytree(single(), tmp_path / "run")
    (tmp_path / "run" / "pretext.json").unlink()
    done = launch(2, corpus, tmp_path / "run", "", "simmim")
    assert done.returncode != 0
    assert done.stderr.count("CheckpointError:") == 1
    assert done.stderr.count("PeerError:") == 1
    assert done.stderr.count("holds a run of another configuration") >= 2


def test_an_error_on_one_rank_is_told_by_that_rank_alone(launch, corpus, tmp_path):
    done = launch(2, corpus, tmp_path / "run", "full-disk")
    assert done.returncode != 0
    assert done.stderr.count("OSError: [Errno 28] No space left on device") == 1
    found = f"{tmp_path / 'run'} cannot be written: No space left on device. Free space there"
    assert f"PeerError: rank 1: {found}" in done.stderr
    newest = checkpoint_files.committed(tmp_path / "run" / "checkpoints")[0]
    assert checkpoint_files.verify(newest).step == 3


def test_a_rank_that_diverges_takes_all_back_and_they_go_on_as_one(
    launch, corpus, single, tmp_path
):
    """What is skipped and removed is agreed on; only the volumes of the guilty rank are told."""
    done = launch(2, corpus, tmp_path / "run", "poison")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("REWOUND from step 7 to the checkpoint of step 3") == 1
    assert_same_curve(tmp_path / "run", single(optimiser="poison"))
    both, alone = (
        json.loads((run / "rewinds.json").read_text())
        for run in (tmp_path / "run", single(optimiser="poison"))
    )
    assert set(both[0]["volumes"]) < set(alone[0]["volumes"])
    assert {**both[0], "volumes": []} == {**alone[0], "volumes": []}


def test_a_folder_that_is_not_shared_is_refused_at_the_start(launch, corpus, tmp_path):
    done = launch(2, corpus, tmp_path / "run", "own-out")
    assert done.returncode != 0
    assert f"{tmp_path / 'run'} is not one folder on all nodes: what rank 0 wrote" in done.stderr
    assert "is not seen by rank 1 on" in done.stderr
    left = {path.name for path in tmp_path.rglob("*")}
    assert not {name for name in left if "seen" in name or name in ("own", "checkpoints")}


def test_another_corpus_by_the_same_name_is_refused_at_the_start(launch, corpus, tmp_path):
    same, own = tmp_path / "corpus.zarr", tmp_path / "own"
    shutil.copytree(corpus, same)
    shutil.copytree(make_corpus(tmp_path / "two", subjects=2), own)
    done = launch(2, same, tmp_path / "run", "own-corpus")
    assert done.returncode != 0
    # Whichever rank's words the agent passed on: each names the corpus as it was told it.
    words = "is not the same corpus on all nodes: its manifest is"
    assert any(f"{name} {words}" in done.stderr for name in (same, own))
    assert "for rank 1 on" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_nan_on_one_rank_updates_no_rank(launch, corpus, tmp_path):
    """The bad step is counted on all, and weights stay finite and equal to a run of one rank."""
    done = launch(2, corpus, tmp_path / "run", "nan")
    assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert rows[-1]["bad_steps"] == 1
    assert all(
        torch.isfinite(t).all()
        for t in load_file(tmp_path / "run" / "encoder.safetensors").values()
    )


# Where the process is killed, and the newest checkpoint that must then be whole.
HOOKS = {
    "write_data": 3,
    "finish": 3,
    "commit": 3,
    "write_manifest": 3,
    "sync": 3,
    "prune": 3,
    "discard": 8,
}


def test_a_second_interrupt_ends_at_once_and_loses_nothing_committed(
    launch, corpus, single, tmp_path
):
    out = tmp_path / "run"
    done = launch(0, corpus, out, "sigint-twice")
    assert done.returncode == -signal.SIGINT
    assert "Ctrl-C again ends at once, without saving" in done.stderr
    assert "told to stop" not in done.stdout
    saved = [checkpoint_files.verify(folder).step for folder in committed_in(out)]
    assert max(saved, default=0) < 4
    assert launch(0, corpus, out).returncode == 0
    assert_same_weights(out, single())


def committed_in(out):
    return checkpoint_files.committed(out / "checkpoints")


@pytest.mark.parametrize("hook", HOOKS)
def test_sigkill_while_saving_loses_nothing_committed(launch, corpus, single, tmp_path, hook):
    """What is left of a process killed at this point of saving is whole, and resumes exactly."""
    out = tmp_path / "run"
    assert launch(0, corpus, out, f"kill-at-{hook}").returncode == -signal.SIGKILL
    newest = checkpoint_files.committed(out / "checkpoints")[0]
    assert checkpoint_files.verify(newest).step == HOOKS[hook]
    again = launch(0, corpus, out)
    assert again.returncode == 0, again.stderr[-2000:]
    assert f"going on from the checkpoint of step {HOOKS[hook]}" in again.stdout
    assert not list((out / "checkpoints").glob("tmp-*"))
    assert_same_weights(out, single())
    assert json.loads((out / "pretext.json").read_text())["step"] == 8


def test_a_probe_over_ranks_changes_nothing_and_says_what_one_rank_says(
    launch, corpus, single, tmp_path
):
    for fault in ("probe", ""):
        done = launch(2, corpus, tmp_path / f"two{fault}", fault)
        assert done.returncode == 0, done.stderr
    probed, plain = (read_rows(tmp_path / run / "metrics.jsonl") for run in ("twoprobe", "two"))
    assert [row["loss"] for row in probed] == [row["loss"] for row in plain]
    assert_same_weights(tmp_path / "twoprobe", tmp_path / "two")
    alone = read_rows(single(optimiser="probe") / "metrics.jsonl")
    for row, wanted in zip(probed, alone, strict=True):
        for name in (name for name in wanted if name.startswith(("probe_linear", "probe_knn"))):
            assert row[name] == pytest.approx(wanted[name], abs=0.1)
            if name.endswith("_start"):
                assert row[name] == wanted[name]
    assert (tmp_path / "twoprobe" / "best" / "encoder.safetensors").exists()
