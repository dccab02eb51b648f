"""Ranks that write to one bucket, each from a machine of its own, and processes that are killed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import small_run
from ports import free_port
from small_run import small_config

from mim3d.dataio.storage.object_store import RemoteStore
from mim3d.engine.pretrain.pretrain import run_pretrain
from mim3d.engine.runs.checkpoint_files import committed
from mim3d.engine.runs.checkpoint_reader import verified
from mim3d.engine.training.metrics import read_rows

pytestmark = pytest.mark.slow
ADDRESS = "s3://runs/team/run"


def launch(ranks, corpus, fault=""):
    """Run the script as ranks; what they print."""
    shared = {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "MIM3D_STORE_TIMEOUT_S": "60",
    }
    running = [
        subprocess.Popen(
            [sys.executable, small_run.__file__, str(corpus), ADDRESS, fault],
            env={**os.environ, **shared, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    told = [process.communicate(timeout=500)[0] for process in running]
    return [process.returncode for process in running], told


def copied(store, folder: Path) -> Path:
    for key, about in store.listed().items():
        store.fetch(key, folder / key, about.nbytes)
    return folder


@pytest.fixture(scope="module")
def losses(corpus, tmp_path_factory):
    """Of one process in a folder."""
    out = tmp_path_factory.mktemp("one") / "run"
    run_pretrain(small_config(corpus), out)
    return [row["loss"] for row in read_rows(out / "metrics.jsonl")]


def test_two_ranks_of_two_machines_stop_and_go_on_on_two_others(endpoint, corpus, losses, tmp_path):
    codes, told = launch(2, corpus, "sigtermown-cache")
    assert codes == [0, 0], told
    assert "rank 0 step" in told[0]
    assert "True" in told[0]
    store = RemoteStore(ADDRESS)
    assert len(list(tmp_path.glob("cache?/mim3d/runs/*/run/.staging.json"))) == 2
    for folder in tmp_path.glob("cache*"):
        shutil.rmtree(folder)
    codes, told = launch(2, corpus, "own-cache")
    assert codes == [0, 0], told
    assert "going on from the checkpoint of step" in told[0]
    copy = copied(store, tmp_path / "copy")
    newest = committed(copy / "checkpoints")[0]
    assert verified(newest).world == 2
    assert {file.name for file in newest.glob("*.distcp")} == {"__0_0.distcp", "__1_0.distcp"}
    rows = read_rows(copy / "metrics.jsonl")
    assert [row["loss"] for row in rows] == pytest.approx(losses, rel=2e-6)
    left = [p for p in tmp_path.glob("cache*/**/checkpoints/step-*/*") if p.name != "manifest.json"]
    assert not left


def test_ranks_that_mean_two_places_are_told(endpoint, corpus):
    codes, told = launch(2, corpus, "own-address")
    assert all(code != 0 for code in codes)
    assert f"{ADDRESS}0 is not one place on all nodes: what rank 0 wrote there" in "".join(told)
    assert "is not seen by rank 1" in "".join(told)


@pytest.mark.parametrize("name", ["__0_0.distcp", "manifest.json"])
def test_a_killed_upload_looks_like_none(name, endpoint, corpus, losses, tmp_path):
    codes, told = launch(1, corpus, f"kill-sending-{name}")
    assert codes == [-9], told
    store = RemoteStore(ADDRESS)
    copy = copied(store, tmp_path / "copy")
    assert [
        verified(folder).step
        for folder in committed(copy / "checkpoints")
        if (folder / "manifest.json").exists()
    ] == [3]
    assert ("checkpoints/step-00000006/.metadata" in store.listed()) == (name == "manifest.json")
    codes, told = launch(1, corpus)
    assert codes == [0], told
    assert "going on from the checkpoint of step 3" in told[0]
    assert "holds it; waiting" not in told[0]  # for the dead one's lease
    rows = read_rows(copied(store, tmp_path / "done") / "metrics.jsonl")
    assert [row["loss"] for row in rows] == pytest.approx(losses, rel=2e-6)
