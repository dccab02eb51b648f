"""A whole small study: run, interrupted, gone on with, and drawn again from results alone."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_finetune import VIT, make_labelled_corpus
from small_study import small_study

from mim3d.dataio.reader.corpus import Corpus
from mim3d.engine.analysis.figures import figures_of
from mim3d.engine.commands import compare as command
from mim3d.engine.commands.arguments import UsageError
from mim3d.engine.errors import ConfigError, TrainingError
from mim3d.engine.finetune.config import LabelledData
from mim3d.engine.models.vit import ViT3D
from mim3d.engine.report.report import build_report
from mim3d.engine.runs.encoder_file import save_encoder
from mim3d.engine.runs.files import read_json, read_jsonl, write_json
from mim3d.engine.study import run as study_run
from mim3d.engine.study.config import StudyConfig
from mim3d.engine.study.pool import Failures, InProcess, PoolTask
from mim3d.engine.study.processes import LineSender, Processes
from mim3d.engine.study.run import open_pool, run_study


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_labelled_corpus(tmp_path_factory.mktemp("phantom"))


@pytest.fixture
def config(corpus: Path) -> StudyConfig:
    return small_study(corpus)


def other_encoder(folder: Path) -> Path:
    folder.mkdir()
    vit = replace(VIT, width=24)
    save_encoder(folder, vit, ViT3D(vit).state_dict(), {"method": "mae"})
    return folder


@pytest.mark.slow
def test_a_study_with_an_arm_that_cannot_run(
    config: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = other_encoder(tmp_path / "odd")
    config = replace(config, arms=(*config.arms, f"odd={odd}"))
    monkeypatch.setattr(study_run, "refuse_impossible", lambda *_: None)  # exchanged meanwhile
    result = run_study(config, tmp_path / "study")
    rows = read_jsonl(tmp_path / "study" / "results.jsonl")
    assert {row["arm"] for row in rows} == {"scratch", "simclr", "mae"}
    assert {(row["split"], row["step"]) for row in rows} == {
        ("validation", 0),
        ("validation", 1),
        ("validation", 2),
        ("test", 2),
    }
    assert len(result.failed) == 1
    assert "width 24 instead of 12" in next(iter(result.failed.values()))
    page = build_report(result.folder).read_text()
    assert "odd_unetr_labels-1_seed-0_lr-0.001 was not run" in page
    assert "Synthetic data" in page
    assert "What the pretraining of odd cost and learned is not known" in page
    assert "did not learn its pretext task" in page  # four steps teach nobody

    def never(*_: object) -> None:
        raise AssertionError("a finished part was repeated")

    monkeypatch.setattr(study_run, "run_finetune", never)
    config = replace(config, arms=config.arms[:3])
    again = run_study(config, tmp_path / "study")
    assert again.failed == {}
    assert read_jsonl(tmp_path / "study" / "results.jsonl") == rows

    outcome = command.main(["--report", "--out", str(tmp_path / "study")])
    assert (
        json.loads(json.dumps(outcome.figures))["headline"]
        == figures_of(tmp_path / "study" / "report.html")["headline"]
    )


@pytest.mark.slow
def test_held_out_subjects_never_pretrain(config: StudyConfig, tmp_path: Path) -> None:
    run_study(replace(config, arms=("mae",)), tmp_path)
    about = read_json(tmp_path / "study.json")
    seen = read_json(tmp_path / "pretrain" / "mae_seed-0" / "config.json")["data"]["subjects"]
    held_out = {*about["splits"]["validation"], *about["splits"]["test"]}
    assert held_out
    assert not held_out & set(seen)
    everyone = {record.subject for record in Corpus.open(config.data.corpus).records}
    assert held_out | set(seen) == everyone


def test_changed_settings_do_not_mix_with_old_cells(config: StudyConfig, tmp_path: Path) -> None:
    config = replace(config, arms=("scratch",))
    run_study(config, tmp_path)
    changed = replace(config, finetune=replace(config.finetune, global_batch=3))
    with pytest.raises(ConfigError, match="global_batch 2, not 3"):
        run_study(changed, tmp_path)
    (next((tmp_path / "cells").iterdir()) / "result.json").unlink()
    with pytest.raises(TrainingError, match="nothing to report"):
        run_study(changed, tmp_path)


def test_a_cell_that_failed_is_not_run_twice_and_results_come_with_every_phase(
    config: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = other_encoder(tmp_path / "odd")
    config = replace(config, arms=("scratch", f"odd={odd}"))
    monkeypatch.setattr(study_run, "refuse_impossible", lambda *_: None)  # exchanged meanwhile
    out, asked, there = tmp_path / "study", [], []

    class Watched(InProcess):
        def run(self, tasks: Sequence[PoolTask], title: str) -> Failures:
            asked.extend(task.name for task in tasks)
            there.append((out / "results.jsonl").exists())
            return super().run(tasks, title)

    monkeypatch.setattr(study_run, "open_pool", lambda *_: Watched())
    result = run_study(config, out)
    assert len(asked) == len(set(asked)) == 2
    assert len(result.failed) == 1
    assert there == [False, True, True]
    (failed,) = read_json(out / "study.json")["failed"]
    assert (failed["arm"], failed["diverged"]) == ("odd", False)


def test_a_study_without_a_corpus_names_the_option(config: StudyConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--data\.corpus"):
        run_study(replace(config, data=LabelledData()), tmp_path)
    with pytest.raises(ConfigError, match="name a study first"):
        command.main(["--out", "x"])
    with pytest.raises(ConfigError, match="no study"):
        command.main(["nonsense"])
    with pytest.raises(UsageError, match="--vary takes NAME=VALUE"):
        command.main(["demo", "--vary", "--out", str(tmp_path / "study")])


def write_square(folder: Path, number: int) -> None:
    print(f"squaring {number}")
    if number == 3:
        raise ConfigError("three is refused")
    write_json(folder / f"{number}.json", {"square": number**2, "threads": torch.get_num_threads()})


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_tasks_run_to_the_end_and_tell_their_errors(
    tmp_path: Path, workers: int, capfd: pytest.CaptureFixture[str]
) -> None:
    call = write_square if workers == 1 else write_json
    tasks = [PoolTask(f"task {n}", call, (tmp_path, n)) for n in range(5)]
    if workers == 2:  # a spawned process cannot import a test module
        tasks = [PoolTask(f"task {n}", write_json, (tmp_path / f"{n}.json", n)) for n in range(5)]
        tasks.append(PoolTask("task 3", read_json, (tmp_path / "missing.json",)))
    with open_pool(workers, "", tmp_path) as pool:
        failed = pool.run(tasks, "squares")
    assert list(failed) == ["task 3"]
    assert (tmp_path / "4.json").exists()
    assert "task 3" in capfd.readouterr().out


@pytest.mark.slow
def test_a_worker_that_dies_is_told_with_its_remedy() -> None:
    tasks = [PoolTask("dies", os._exit, (1,)), PoolTask("idle", print, ("idle",))]
    with Processes(2) as pool, pytest.raises(TrainingError, match="--workers 1"):
        pool.run(tasks, "dying")


@pytest.mark.slow
def test_every_phase_of_a_study_has_the_same_workers(tmp_path: Path) -> None:
    note = "import os; open({!r}, 'w').write(str(os.getpid()))"
    files = [tmp_path / "first", tmp_path / "second"]
    with Processes(1) as pool:
        for file in files:
            pool.run([PoolTask(file.name, exec, (note.format(str(file)),))], file.name)
        assert pool.run([], "nothing to do") == {}
    first, second = (int(file.read_text()) for file in files)
    assert first == second != os.getpid()


@pytest.mark.slow
def test_workers_end_with_a_study_that_was_killed(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from mim3d.engine.study.pool import PoolTask
from mim3d.engine.study.processes import Processes
from mim3d.engine.runs.files import write_json
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    sleep = "import pathlib, time; pathlib.Path({!r}).touch(); time.sleep(600)"
    files = [str(folder / f"started-{n}") for n in range(2)]
    tasks = [PoolTask(f"sleep for {file}", exec, (sleep.format(file),)) for file in files]
    tasks += [PoolTask("late", write_json, (folder / "late.json", 1))]
    with Processes(2) as pool:
        pool.run(tasks, "sleeping")
"""
    (tmp_path / "parent.py").write_text(script)
    parent = subprocess.Popen([sys.executable, str(tmp_path / "parent.py"), str(tmp_path)])

    def at_work() -> list[int]:
        started = len(list(tmp_path.glob("started-*"))) == 2
        return children_of(parent.pid, "spawn_main") if started else []

    workers = wait_for(at_work, 2)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 120
    while any(map(running, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(running, workers))
    assert not (tmp_path / "late.json").exists()


def wait_for(look: Callable[[], list[int]], wanted: int) -> list[int]:
    deadline = time.monotonic() + 240
    while len(found := look()) < wanted and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(found) == wanted
    return found


def children_of(pid: int, words: str) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and words in (entry / "cmdline").read_text():
                found.append(int(entry.name))
        except (OSError, ValueError):
            continue
    return found


def running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_lines_of_a_worker_are_handed_on_whole() -> None:
    got: list[str] = []
    sender = LineSender(got.append)
    print("one", "two", file=sender)
    sender.write("three\nfo")
    assert got == ["one two", "three"]
    assert not sender.isatty()
