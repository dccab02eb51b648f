"""A study over a real Dask cluster: the same results, a killed worker, and what is refused."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask_cluster
import pytest
from small_finetune import make_labelled_corpus
from small_study import small_study

from mim3d.dataio.errors import Mim3dError
from mim3d.engine.commands import compare as command
from mim3d.engine.errors import ConfigError, TrainingError
from mim3d.engine.models.vit import ViT3D
from mim3d.engine.runs.encoder_file import save_encoder
from mim3d.engine.runs.files import read_jsonl
from mim3d.engine.study import run as study_run
from mim3d.engine.study.config import StudyConfig
from mim3d.engine.study.dask_pool import refuse_other_files, refuse_shared_workers, result_of
from mim3d.engine.study.run import run_study


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with dask_cluster.cluster(tmp_path_factory.mktemp("dask")) as address:
        yield address


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_labelled_corpus(tmp_path_factory.mktemp("phantom"))


@pytest.fixture
def config(corpus: Path) -> StudyConfig:
    plain = small_study(corpus)
    plan = replace(plain.finetune, steps=20, eval_every=5)
    return replace(plain, seeds=(0, 1), arms=("scratch", "mae"), finetune=plan, workers=2)


def without_clocks(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]


def kill_when(process: Any, cells: Path) -> None:
    """Kill a worker once cells have begun."""
    deadline = time.monotonic() + 240
    while not any(cells.glob("*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()


@pytest.mark.slow
def test_a_cluster_gives_the_results_of_this_machine_though_a_worker_dies(
    cluster: str, config: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_study(config, tmp_path / "local")
    monkeypatch.chdir(tmp_path)  # a relative folder must mean the same to every worker
    doomed = dask_cluster.start_worker(cluster, tmp_path / "doomed.log")
    try:
        with dask_cluster.connect_when_ready(cluster, 3):
            pass
        killer = threading.Thread(target=kill_when, args=(doomed, tmp_path / "far" / "cells"))
        killer.start()
        result = run_study(config, "far", dask=cluster)
        killer.join()
    finally:
        dask_cluster.stop(doomed)
    assert result.failed == {}
    for name in ("results.jsonl", "cases.jsonl"):
        here, far = (read_jsonl(tmp_path / place / name) for place in ("local", "far"))
        assert here
        assert without_clocks(far) == without_clocks(here)


@pytest.mark.slow
def test_an_arm_that_cannot_run_fails_alone_on_a_cluster(
    cluster: str, config: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_run, "refuse_impossible", lambda *_: None)  # exchanged meanwhile
    odd, vit = tmp_path / "odd", replace(config.vit, width=24)
    odd.mkdir()
    save_encoder(odd, vit, ViT3D(vit).state_dict(), {"method": "mae"})
    config = replace(config, seeds=(0,), arms=("scratch", f"odd={odd}"))
    result = run_study(config, tmp_path / "study", dask=cluster)
    (message,) = result.failed.values()
    assert "width 24 instead of 12" in message


def test_a_worker_of_several_threads_is_refused_with_the_command() -> None:
    refuse_shared_workers({"tcp://a:1": 1}, "tcp://s:8786")
    with pytest.raises(ConfigError, match=r"a:1 has 4 threads.*--nthreads 1"):
        refuse_shared_workers({"tcp://a:1": 4}, "tcp://s:8786")


def test_a_worker_that_sees_other_files_is_refused(tmp_path: Path) -> None:
    class Elsewhere:
        def run(self, call: object, place: str) -> dict[str, bool]:
            assert Path(place).exists()
            return {"tcp://a:1": True, "tcp://b:1": ".seen-by-" not in place}

    with pytest.raises(ConfigError, match=r"b:1 does not see .*share"):
        refuse_other_files(Elsewhere(), "tcp://s:8786", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_kills_its_workers_fails_alone() -> None:
    killed = pytest.importorskip("distributed.scheduler").KilledWorker

    class Lost:
        def result(self) -> None:
            raise killed("run_there", None, 3)

    with pytest.raises(TrainingError, match=r"ran cell one died \(4 times.*without --dask"):
        result_of(Lost(), "cell one")


def test_no_scheduler_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, corpus: Path
) -> None:
    monkeypatch.setattr("mim3d.dataio.convert.dask_runner.CONNECT_S", 1)
    words = ["demo", "--data.corpus", str(corpus), "--labels", "4", "--out", str(tmp_path / "s")]
    with pytest.raises(Mim3dError, match="no Dask scheduler answers"):
        command.main([*words, "--dask", "tcp://127.0.0.1:9"])
