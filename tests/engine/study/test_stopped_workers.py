"""A study of several workers told to stop, in every way that users and schedulers do it."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask_cluster
import psutil
import pytest
from live_processes import wait_for_end
from small_finetune import make_labelled_corpus
from small_study import small_study

from mim3d.engine.errors import StoppedError
from mim3d.engine.runs.files import read_jsonl
from mim3d.engine.study.config import StudyConfig
from mim3d.engine.study.run import run_study

pytestmark = pytest.mark.slow
STEPS = 80


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> StudyConfig:
    plain = small_study(make_labelled_corpus(tmp_path_factory.mktemp("phantom")))
    plan = replace(plain.finetune, steps=STEPS, eval_every=20)
    return replace(plain, arms=("scratch",), seeds=(0, 1, 2), finetune=plan, workers=2)


@pytest.fixture(scope="module")
def whole(config: StudyConfig, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Rows of the study that nobody stopped."""
    out = tmp_path_factory.mktemp("whole")
    run_study(replace(config, workers=1), out)
    return rows(out)


def rows(out: Path) -> list[dict[str, Any]]:
    found = read_jsonl(out / "results.jsonl")
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in found]


def begun(out: Path, runs: int) -> bool:
    """Whether so many runs have made a step that they have told."""
    return len(list(out.glob("cells/*/metrics.jsonl"))) >= runs


def cells(out: Path) -> list[Path]:
    return list(out.glob("cells/*"))


def results(out: Path) -> list[Path]:
    return list(out.glob("cells/*/result.json"))


def wait_until(there: Any, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not there() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert there()


def workers_of(parent: Any) -> list[psutil.Process]:
    children = psutil.Process(parent.pid).children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def has_saved(cell: Path) -> bool:
    return any(cell.glob("checkpoints/*"))


# Workers import this script as well. So that the test finds every worker at a run, whichever was
# up first and however fast the machine, a run waits before step HELD, which is before its first
# evaluation and checkpoint, until it is told to stop; or until the test lets its worker go on. Told
# by whom (a signal of the job, or the study's word), the test may say too.
HELD = 10
SCRIPT = f"""
import os, pickle, sys, time
from pathlib import Path
from mim3d.engine.commands import cli
from mim3d.engine.distributed.stop import StopSignal
from mim3d.engine.study import processes
from mim3d.engine.study.run import run_study

agreed, here = StopSignal.agreed, Path(__file__).parent

def told(self):
    word = processes._halt.is_set() or not (here / "by-the-study").exists()
    return self.signalled.is_set() and word

def held(self):
    self.steps = getattr(self, "steps", 0) + 1
    while self.steps == {HELD} and not (told(self) or (here / f"go-{{os.getpid()}}").exists()):
        time.sleep(0.02)
    return agreed(self)

StopSignal.agreed = held
note = processes.Processes._note

def noted(self, future, name, *rest):
    note(self, future, name, *rest)
    (here / f"noted-{{name}}").touch()

if __name__ == "__main__":
    processes.Processes._note = noted
    config = pickle.load(open(sys.argv[1], "rb"))
    cli.run_command = lambda name, words: run_study(config, sys.argv[2])
    sys.exit(cli.main(["compare", "small"]))
"""


@pytest.fixture
def start(config: StudyConfig, tmp_path: Path) -> Iterator[Any]:
    """Starts the study as a command of its own process group, which ends with the test."""
    (tmp_path / "study.py").write_text(SCRIPT)
    (tmp_path / "config.pickle").write_bytes(pickle.dumps(config))
    words = [sys.executable, *(str(tmp_path / name) for name in ("study.py", "config.pickle"))]
    parent = subprocess.Popen(
        [*words, str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    yield parent
    if parent.poll() is None:
        os.killpg(parent.pid, signal.SIGKILL)
    parent.wait()


@pytest.mark.parametrize(
    ("number", "whom"),
    [
        (signal.SIGUSR1, "the command"),
        (signal.SIGTERM, "the whole job"),
        (signal.SIGINT, "the whole job"),  # a terminal's
    ],
)
def test_a_signal_saves_what_is_under_way_and_the_same_command_goes_on(
    start: Any,
    config: StudyConfig,
    whole: list[dict[str, Any]],
    tmp_path: Path,
    number: int,
    whom: str,
) -> None:
    out = tmp_path / "out"
    wait_until(lambda: begun(out, 2))
    children = psutil.Process(start.pid).children(recursive=True)
    assert not any(map(has_saved, cells(out)))
    if whom == "the command":
        os.kill(start.pid, number)
    else:
        os.killpg(start.pid, number)
    said = start.communicate(timeout=240)[0]
    assert start.returncode == 0, said
    assert "told to stop, and what was under way is saved: run the same command to go on" in said
    assert "Traceback" not in said
    wait_for_end(children)
    assert all(map(has_saved, cells(out)))
    assert len(cells(out)) == 2  # the third is not begun
    if number == signal.SIGUSR1:
        assert run_study(config, out).failed == {}
        assert rows(out) == whole


def test_a_worker_without_a_run_dies_of_the_jobs_signal_and_the_other_saves(
    start: Any, tmp_path: Path
) -> None:
    """It dies where it waits for a task, and holds the lock of those that wait for one: the other,
    which stops at the study's word and not for want of it, must not wait for a task as well."""
    out = tmp_path / "out"
    (tmp_path / "by-the-study").touch()
    wait_until(lambda: begun(out, 2))
    idle, *_ = workers = workers_of(start)
    (tmp_path / f"go-{idle.pid}").touch()
    # Its own run, and the third: then it waits for another.
    wait_until(lambda: len(list(tmp_path.glob("noted-*"))) == 2)
    wait_until(lambda: idle.status() == psutil.STATUS_SLEEPING)
    os.killpg(start.pid, signal.SIGTERM)
    said = start.communicate(timeout=240)[0]
    assert start.returncode == 0, said
    assert "what was under way is saved" in said
    assert "Traceback" not in said
    wait_for_end(workers)
    assert len(results(out)) == 2
    (left,) = {*cells(out)} - {file.parent for file in results(out)}
    assert has_saved(left)


def test_a_second_interrupt_ends_it_at_once(start: Any, tmp_path: Path) -> None:
    wait_until(lambda: begun(tmp_path / "out", 2))
    workers = workers_of(start)
    assert len(workers) == 2
    for worker in workers:
        worker.suspend()  # so that it cannot save
    os.killpg(start.pid, signal.SIGINT)
    assert start.stdout is not None
    said = ""
    while "Ctrl-C again" not in said:
        said += (line := start.stdout.readline())
        assert line, said
    os.killpg(start.pid, signal.SIGINT)
    assert start.wait(60) == -signal.SIGINT
    for worker in workers:
        worker.resume()
    wait_for_end(workers)
    assert all(map(has_saved, cells(tmp_path / "out")))


def test_workers_end_where_one_of_them_dies(start: Any, tmp_path: Path) -> None:
    """One is killed as for want of memory; what the other was at is saved."""
    out = tmp_path / "out"
    wait_until(lambda: begun(out, 2))
    workers = workers_of(start)
    assert len(workers) == 2
    workers[0].kill()
    said = start.communicate(timeout=240)[0]
    assert start.returncode == 2
    assert "a worker process died" in said
    wait_for_end(workers)
    assert [has_saved(cell) for cell in cells(out)].count(True) == 1


def test_a_study_on_a_cluster_leaves_it_the_runs_under_way(
    config: StudyConfig, whole: list[dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def tell() -> None:
        wait_until(lambda: begun(out, 1))
        os.kill(os.getpid(), signal.SIGTERM)

    with dask_cluster.cluster(tmp_path) as address:
        teller = threading.Thread(target=tell)
        teller.start()
        with pytest.raises(StoppedError, match=r"on the cluster go on to their end.*for the rest"):
            run_study(config, out, dask=address)
        teller.join()
        # A worker takes up what it was sent, and no more once we have left.
        wait_until(lambda: len(results(out)) == len(cells(out)))
        assert run_study(config, out, dask=address).failed == {}
    assert rows(out) == whole
